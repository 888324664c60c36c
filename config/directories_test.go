package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestMissingDirectories_AreNamedWithTheirKey(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(text string, want ...string) {
		t.Helper()
		got := parseOK(t, strings.ReplaceAll(text, "DIR", dir)+app).MissingDirectories("lb.toml")
		if len(got) != len(want) {
			t.Fatalf("%s: got %v; want %d", text, got, len(want))
		}
		for i, w := range want {
			if !strings.HasPrefix(got[i].String(), strings.ReplaceAll(w, "DIR", dir)) {
				t.Errorf("%s: got %q; want %q", text, got[i], w)
			}
		}
	}
	check("[admin]\nsocket = 'DIR/lb/a.sock'\nstate_file = 'DIR/state'\n[log]\noutput = 'DIR/log'\naccess = 'stdout'\n")
	check("[log]\noutput = 'DIR/no/log'\naccess = 'DIR/file/log'\n[admin]\nsocket = 'DIR/a/b/a.sock'\nstate_file = 'DIR/no/state'\n",
		`lb.toml:2: log.output: there is no directory "DIR/no" on this host`,
		`lb.toml:3: log.access: there is no directory "DIR/file" on this host`,
		`lb.toml:5: admin.socket: there is no directory "DIR/a" on this host`,
		`lb.toml:6: admin.state_file: there is no directory "DIR/no" on this host`)
	check("[listeners.local]\npool = 'app'\nbind = ['unix:@abstract', 'unix:DIR/x.sock', 'unix:DIR/no/x.sock']\n",
		`lb.toml:3: listeners.local.bind[2]: there is no directory "DIR/no"`)
	check("[pools.w.workers]\ncommand = ['DIR/app', 'x']\ndir = 'DIR/file'\n[listeners.w]\npool = 'w'\nbind = ['127.0.0.1:1']\n",
		`lb.toml:2: pools.w.workers.command: there is no program "DIR/app" on this host`,
		`lb.toml:3: pools.w.workers.dir: there is no directory "DIR/file" on this host`)
	check("[pools.w.workers]\ncommand = ['/bin/sh']\nlog = 'DIR/no/{slot}.log'\n[listeners.w]\npool = 'w'\nbind = ['127.0.0.1:1']\n",
		`lb.toml:3: pools.w.workers.log: there is no directory "DIR/no"`)
}
