package config

import (
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestHostWarnings_NameTheirKey(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	check := func(text string, want ...string) {
		t.Helper()
		got := parseOK(t, strings.ReplaceAll(text, "DIR", dir)+app).HostWarnings("lb.toml")
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
	workers := func(keys string) string {
		return "[pools.w.workers]\n" + keys + "[listeners.w]\npool = 'w'\nbind = ['127.0.0.1:1']\n"
	}
	// A bare name is looked for as the worker will, in its own PATH if it has one.
	if err := os.Mkdir(filepath.Join(dir, "bin"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bin", "lb-app"), []byte("#!/bin/sh\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	check(workers("command = ['sh']\n"))
	check(workers("command = ['lb-app']\nenv = { PATH = '/nonexistent:DIR/bin' }\n"))
	check(workers("command = ['lb-app']\nenv = { PATH = '{slot}' }\n"))
	check(workers("command = ['lb-app']\n"), `lb.toml:2: pools.w.workers.command: there is no program "lb-app" in PATH, as lb check has it (`)
	check(workers("command = ['sh']\nenv = { PATH = 'DIR/bin' }\n"),
		`lb.toml:2: pools.w.workers.command: there is no program "sh" in the PATH of pools.w.workers.env (DIR/bin), without which no worker starts`)
	// not executable
	check(workers("command = ['file']\nenv = { PATH = 'DIR' }\n"), `lb.toml:2: pools.w.workers.command: there is no program "file"`)
	t.Setenv("PATH", filepath.Join(dir, "bin"))
	check(workers("command = ['lb-app']\n"))
	check(workers("command = ['sh']\n"), `lb.toml:2: pools.w.workers.command: there is no program "sh" in PATH, as lb check has it (DIR/bin)`)
	t.Chdir(dir)
	// which exec.LookPath refuses
	check(workers("command = ['lb-app']\nenv = { PATH = 'bin' }\n"), `lb.toml:2: pools.w.workers.command: there is no program "lb-app"`)
	// A path is one in the worker's directory.
	check(workers("command = ['./lb-app']\ndir = 'DIR/bin'\n"))
	check(workers("command = ['./app']\ndir = 'DIR/bin'\n"), `lb.toml:2: pools.w.workers.command: there is no program "DIR/bin/app" on this host`)
	check(workers("command = ['./app']\n"))
	check(workers("command = ['./app']\ndir = 'DIR/no'\n"), `lb.toml:3: pools.w.workers.dir: there is no directory "DIR/no"`)
	check(workers("command = ['/bin/sh']\nrlimit_nofile = 64\n"))
	check(workers("command = ['/bin/sh']\nrlimit_nofile = 64\n"))
	check(workers("command = ['/bin/sh']\nrlimit_nofile = 4000000000\n"), `lb.toml:3: pools.w.workers.rlimit_nofile: no worker starts with so many: 4000000000 is above `)
}

// TestHostWarnings_NameWhyNoWorkerStarts: the script is there, and the kernel will not run it.
func TestHostWarnings_NameWhyNoWorkerStarts(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	for text, want := range map[string]string{
		"#!/nonexistent/python3 -u\nprint(1)\n": `the interpreter "/nonexistent/python3" in the first line of "DIR/app" does not exist`,
		"#!/bin/sh\r\necho 1\r\n":               `the first line of "DIR/app" ends in CRLF`,
		"#!\necho 1\n":                          `the first line of "DIR/app" names no interpreter`,
		"echo 1\n":                              `"DIR/app" is a script without a first line such as #!/bin/sh`,
		"\xEF\xBB\xBF#!/bin/sh\n":               `"DIR/app" begins with a byte order mark`,
		"":                                      `"DIR/app" is empty`,
		"#!/bin/sh\necho 1\n":                   "",
	} {
		if err := os.WriteFile(filepath.Join(dir, "app"), []byte(text), 0o700); err != nil {
			t.Fatal(err)
		}
		for _, command := range []string{"command = ['DIR/app']\n", "command = ['app']\n", "command = ['./app']\ndir = 'DIR'\n"} {
			file := "[pools.w.workers]\n" + command + "[listeners.w]\npool = 'w'\nbind = ['127.0.0.1:1']\n"
			var got string
			for _, f := range parseOK(t, strings.ReplaceAll(file, "DIR", dir)+app).HostWarnings("lb.toml") {
				got += f.String() + "\n"
			}
			whole := strings.ReplaceAll("lb.toml:2: pools.w.workers.command: no worker starts: "+want, "DIR", dir)
			if want == "" && got != "" || want != "" && !strings.HasPrefix(got, whole) {
				t.Errorf("%q by %q: got %q; want %q", text, command, got, want)
			}
		}
	}
}

func TestBeyondNofile(t *testing.T) {
	f := func(n, hard, most uint64, privileged bool, want string) {
		t.Helper()
		if got := beyondNofile(n, hard, most, privileged); !strings.HasPrefix(got, want) || want == "" && got != "" {
			t.Errorf("%d of %d, at most %d, privileged %v: got %q; want %q", n, hard, most, privileged, got, want)
		}
	}
	f(4096, 4096, 1<<20, false, "")
	f(4097, 4096, 1<<20, false, "4097 is above 4096, the hard limit that lb check runs with; raise it")
	f(4097, 4096, 1<<20, true, "")
	f(4097, 4096, 0, true, "")
	f(1<<20+1, math.MaxUint64, 1<<20, true, "1048577 is above 1048576, the most that this host allows (sysctl fs.nr_open)")
}

func TestHostWarnings_SayWhatHealthDoesNotSee(t *testing.T) {
	warnings := func(pool string) []string {
		t.Helper()
		c := parseOK(t, "[listeners.web]\nbind = ['127.0.0.1:8080']\npool = 'p'\n"+pool)
		var all []string
		for _, w := range append(c.Warnings, c.HostWarnings("lb.toml")...) {
			all = append(all, w.String())
		}
		return all
	}
	backend := func(address string) string { return "[[pools.p.backends]]\naddress = '" + address + "'\n" }
	for _, pool := range []string{
		backend("unix:/run/app.sock"), backend("unix:@app"), backend("127.0.0.2:80"), backend("[::1]:80"), backend("localhost:80"),
		"[pools.p.health]\ntype = 'http'\n" + backend("192.0.2.1:80"),
		"[pools.p.health]\ntype = 'none'\n" + backend("192.0.2.1:80"),
		"[pools.p.health]\naddress = '127.0.0.1:81'\n" + backend("192.0.2.1:80"),
	} {
		if got := warnings(pool); len(got) > 0 {
			t.Errorf("%s: got %q; want nothing", pool, got)
		}
	}
	for _, tc := range []struct{ pool, key string }{
		{"[pools.p.health]\ntype = 'connect'\n" + backend("unix:/run/app.sock"), "pools.p.health.type: "},
		{backend("127.0.0.1:80") + backend("192.0.2.1:80") + backend("192.0.2.2:80"), "pools.p.backends[1].address: 192.0.2.1:80 is on another host"},
		{"[pools.p.health]\naddress = '192.0.2.1:81'\n" + backend("unix:/run/app.sock"), "pools.p.health.address: 192.0.2.1:81 is on another host"},
	} {
		got := warnings(tc.pool)
		if len(got) != 1 || !strings.Contains(got[0], tc.key) {
			t.Errorf("%s: got %q; want one of %s", tc.pool, got, tc.key)
			continue
		}
		for _, word := range []string{"connect", "http", "notify", "send-expect"} {
			if !strings.Contains(got[0], word) {
				t.Errorf("%s: got %q; want it to name %s", tc.pool, got[0], word)
			}
		}
	}
}
