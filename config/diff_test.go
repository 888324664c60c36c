package config

import (
	"strings"
	"testing"
)

const diffBase = `
[listeners.web]
bind = ["127.0.0.1:8080"]
pool = "app"
[pools.app]
[[pools.app.backends]]
name = "w1"
address = "unix:/run/w1.sock"
[[pools.app.backends]]
name = "w2"
address = "unix:/run/w2.sock"
`

func TestDiff_SaysEachDifferenceOnALine(t *testing.T) {
	for name, tc := range map[string]struct {
		replace []string // of diffBase
		want    string
	}{
		"nothing":  {[]string{"[pools.app]", "# a comment\n[pools.app]\nbalance = \"leastconn\""}, ""},
		"weight":   {[]string{`"unix:/run/w1.sock"`, "\"unix:/run/w1.sock\"\nweight = 50"}, `pools.app.backends.w1.weight: 100 → 50`},
		"address":  {[]string{`/run/w1.sock`, `/run/x.sock`}, `pools.app.backends.w1.address: "unix:/run/w1.sock" → "unix:/run/x.sock"`},
		"duration": {[]string{"[pools.app]", "[pools.app]\nidle_timeout = \"75s\""}, `pools.app.idle_timeout: "1h" → "75s"`},
		"bind":     {[]string{`["127.0.0.1:8080"]`, `["127.0.0.1:8080", "[::1]:80"]`}, `listeners.web.bind: ["127.0.0.1:8080"] → ["127.0.0.1:8080", "[::1]:80"]`},
		"health":   {[]string{"[pools.app]", "[pools.app]\n[pools.app.health]\nfall = 5"}, `pools.app.health.fall: 3 → 5`},
		"backend":  {[]string{`name = "w2"`, `name = "w3"`}, "pools.app.backends.w3: added (unix:/run/w2.sock)\npools.app.backends.w2: removed (unix:/run/w2.sock)"},
		"order":    {[]string{"w1", "w0", "w2", "w1", "w0", "w2"}, `pools.app.backends (order): w1, w2 → w2, w1`},
		"pool":     {[]string{"app", "api"}, "listeners.web.pool: \"app\" → \"api\"\npools.api: added (backends: w1, w2)\npools.app: removed (backends: w1, w2)"},
		"listener": {[]string{"listeners.web", "listeners.www"}, "listeners.www: added (127.0.0.1:8080)\nlisteners.web: removed (127.0.0.1:8080)"},
		"split":    {[]string{`pool = "app"`, `split = { app = 90 }`}, "listeners.web.pool: \"app\" → \"\"\nlisteners.web.split.app: added (90)"},
	} {
		text := diffBase
		for i := 0; i < len(tc.replace); i += 2 {
			text = strings.ReplaceAll(text, tc.replace[i], tc.replace[i+1])
		}
		from, err := Parse("old", []byte(diffBase))
		if err != nil {
			t.Fatal(err)
		}
		to, err := Parse("new", []byte(text))
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		var lines []string
		for _, c := range Diff(from, to) {
			lines = append(lines, c.String())
		}
		if got := strings.Join(lines, "\n"); got != tc.want {
			t.Errorf("%s: got\n%s\nwant\n%s", name, got, tc.want)
		}
	}
}
