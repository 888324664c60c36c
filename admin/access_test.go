package admin

import (
	"os"
	"strings"
	"testing"
)

func TestAccess_OfEveryRouteIsAsTheDocsSay(t *testing.T) {
	text, err := os.ReadFile("../docs/access.md")
	if err != nil {
		t.Fatal(err)
	}
	_, table, _ := strings.Cut(string(text), "## The API")
	var want []string
	for _, rt := range new(Server).routes() {
		want = append(want, "| `"+rt.access.String()+"` | `"+rt.method+" "+rt.path+"` |")
	}
	var got []string
	for _, line := range strings.Split(table, "\n") {
		if strings.HasPrefix(line, "| `") {
			got = append(got, line)
		}
	}
	if got, want := strings.Join(got, "\n"), strings.Join(want, "\n"); got != want {
		t.Errorf("docs/access.md: got\n%s\nwant\n%s", got, want)
	}
}
