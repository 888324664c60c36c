package fairness

import (
	"crypto/sha256"
	"encoding/base64"
	"regexp"
	"strings"
	"testing"
)

func TestPage_EscapesAllButHTML(t *testing.T) {
	var p page
	p.add(`<i title="%s">%s %d %s</i>`, `"a"`, "<b>&", 7, code("x<y"))
	if got, want := p.String(), `<i title="&#34;a&#34;">&lt;b&gt;&amp; 7 <code>x&lt;y</code></i>`; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}

// The browser runs an inline script, and takes an inline style, only if its hash is in the page's policy.
func TestPage_PolicyAllowsItsOwnScriptAndStyleOnly(t *testing.T) {
	t.Parallel()
	o := tiny(t, CaseEven)
	var b strings.Builder
	if err := mustRun(t, o).WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	for _, tag := range []string{"script", "style"} {
		bodies := regexp.MustCompile(`(?s)<`+tag+`>(.*?)</`+tag+`>`).FindAllStringSubmatch(page, -1)
		if len(bodies) != 1 || strings.Count(page, "<"+tag) != 1 {
			t.Fatalf("got %d elements %s; want one", len(bodies), tag)
		}
		sum := sha256.Sum256([]byte(bodies[0][1]))
		want := tag + "-src 'sha256-" + base64.StdEncoding.EncodeToString(sum[:]) + "'"
		if !strings.Contains(page, "default-src 'none'") || !strings.Contains(page, want) {
			t.Errorf("the policy of the page does not have %s", want)
		}
	}
}
