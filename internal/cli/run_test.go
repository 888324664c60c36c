package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/config"
)

func TestRun_PrintsTheConfigThatFlagsStandFor(t *testing.T) {
	for _, test := range []struct {
		args string
		want []string // lines
	}{
		{"--listen :8080,[::1]:8081 --to 127.0.0.1:3001,unix:/run/app/2.sock",
			[]string{`bind = [":8080", "[::1]:8081"]`, `address = "127.0.0.1:3001"`, `address = "unix:/run/app/2.sock"`}},
		{"--listen :8080 --workers 4 -- node app.js", []string{`handoff = "node" # lb gives Node the accepted connections, as Node's cluster module does`,
			`command = ["node", "app.js"]`, `count = 4`}},
		{"--listen :8080 -- python3 app.py", []string{`command = ["python3", "app.py"]`, `env = { PORT = "{port}" } # the app listens there, at 127.0.0.1`}},
		{"--listen :8080 -- ./app --listen {socket}", []string{`command = ["./app", "--listen", "{socket}"]`}},
		{"--listen :8080 -- node app.js {port}", []string{`command = ["node", "app.js", "{port}"]`}},
		{`--listen :8080 -- ./app a"b\c` + "\x7fd", []string{`command = ["./app", "a\"b\\c\u007fd"]`}},
	} {
		var stdout, stderr bytes.Buffer
		args := append([]string{"run", "--print-config"}, strings.Fields(test.args)...)
		if code := Execute(args, &stdout, &stderr, Programs{}); code != 0 {
			t.Errorf("lb run %s: got exit code %d, %s; want 0", test.args, code, &stderr)
			continue
		}
		lines := strings.Split(stdout.String(), "\n")
		for _, want := range test.want {
			found := false
			for _, line := range lines {
				found = found || line == want
			}
			if !found {
				t.Errorf("lb run %s: got\n%s; want the line %s", test.args, &stdout, want)
			}
		}
		if _, err := config.Parse("printed", stdout.Bytes()); err != nil {
			t.Errorf("lb run %s: got a config with faults: %v", test.args, err)
		}
		if got := strings.Contains(stdout.String(), "PORT ="); got != (test.args == "--listen :8080 -- python3 app.py" || strings.Contains(test.args, `a"b`)) {
			t.Errorf("lb run %s: got PORT set: %v; want it for a command that does not say where it listens, alone", test.args, got)
		}
	}
}

func TestRun_SaysWhatIsMissing(t *testing.T) {
	for args, want := range map[string]string{
		"":                                    "what shall it serve?",
		"--listen :1":                         "where shall connections go?",
		"--listen :1 --to :2 -- app":          "give one of the two",
		"--listen :1 --to :2 --workers 3":     "--workers says how many",
		"--listen :1 --workers 0 -- app":      "at least 1",
		"-f lb.toml --listen :1 --to :2":      "-f FILE says all",
		"-f lb.toml -- app":                   "-f FILE says all",
		"--listen 8080 --print-config -- app": "write host:port",
	} {
		var stdout, stderr bytes.Buffer
		ran := false
		code := Execute(append([]string{"run"}, strings.Fields(args)...), &stdout, &stderr,
			Programs{Run: func(string) error { ran = true; return nil }})
		if code == 0 || ran || !strings.Contains(stderr.String(), want) {
			t.Errorf("lb run %s: got exit code %d, %q, ran %v; want a refusal with %q", args, code, &stderr, ran, want)
		}
	}
}

func TestInit_WritesAConfigThatLbTakes(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range map[string]string{
		"haproxy.cfg": "listen web\n bind :8080\n mode tcp\n option forwardfor\n server a 127.0.0.1:3001 check\n",
		"nginx.conf":  "stream { server { listen 8080; proxy_pass 127.0.0.1:3001; } }\n",
		"pm2.json":    `{"apps": [{"name": "web", "script": "app.js", "env": {"PORT": 8080}}]}`,
		"mystery":     "",
	} {
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct {
		args   string
		code   int
		stderr string
	}{
		{"init", 0, ""},
		{"init", 1, "lb.toml is there already"},
		{"init --from haproxy.cfg -o a.toml", 0, "line 4: option forwardfor: it needs a look into the requests"},
		{"init --from nginx.conf -o b.toml", 0, ""},
		{"init --from pm2.json -o c.toml", 0, ""},
		{"init --from mystery -o d.toml", 1, "say it with --as"},
		{"init --from mystery --as haproxy -o d.toml", 1, "mystery: it has no frontend"},
		{"init --from absent.cfg", 1, "absent.cfg: no such file"},
	} {
		code, _, stderr := lb(t, strings.Fields(test.args)...)
		if code != test.code || !strings.Contains(strings.ToLower(stderr), strings.ToLower(test.stderr)) || test.stderr == "" && stderr != "" {
			t.Errorf("lb %s: got exit code %d, %q; want %d, %q", test.args, code, stderr, test.code, test.stderr)
		}
	}
	for _, name := range []string{"lb.toml", "a.toml", "b.toml", "c.toml"} {
		text, err := os.ReadFile(name)
		if err == nil {
			_, err = config.Parse(name, text)
		}
		if err != nil {
			t.Error(err)
		}
	}
}
