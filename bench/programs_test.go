package bench

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFindPrograms_NamesEveryPackage(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	_, err := FindPrograms(t.Context(), Search{Need: []Program{ProgramWrk, ProgramHAProxy, ProgramNginx, ProgramNginxStream}})
	if err == nil {
		t.Skip("the servers are found beside PATH, and wrk too")
	}
	if !errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "apt-get install wrk") {
		t.Errorf("got %v; want one that names the apt-get command", err)
	}
	all := missingError{ProgramWrk, ProgramNginxStream}
	if got := all.Error(); got != "cannot find wrk, nginx's stream module; install with: apt-get install wrk libnginx-mod-stream" {
		t.Errorf("got %q", got)
	}
}

func TestFindPrograms_TakesAPathInsteadOfLooking(t *testing.T) {
	path := actor(t, "other-haproxy")
	p, err := FindPrograms(t.Context(), Search{Paths: Programs{HAProxy: path}, Need: []Program{ProgramHAProxy}})
	if err != nil || p.HAProxy != path {
		t.Errorf("got %q, %v; want %q", p.HAProxy, err, path)
	}
	_, err = FindPrograms(t.Context(), Search{Paths: Programs{HAProxy: path + "-not"}, Need: []Program{ProgramHAProxy}, Install: io.Discard})
	if err == nil || errors.Is(err, ErrMissing) || !strings.Contains(err.Error(), "cannot run haproxy") {
		t.Errorf("got %v; want an error, and nothing installed", err)
	}
}

func TestFindPrograms_InstallsOnlyWhatIsMissing(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("PATH", dir)
	asked := filepath.Join(dir, "asked")
	script := "#!/bin/sh\necho \"$@\" > " + asked + "\n"
	if err := os.WriteFile(filepath.Join(dir, "apt-get"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/bin/sh", filepath.Join(dir, "haproxy")); err != nil {
		t.Fatal(err)
	}
	_, err := FindPrograms(t.Context(), Search{Need: []Program{ProgramWrk, ProgramHAProxy}, Install: io.Discard})
	words, readErr := os.ReadFile(asked)
	if readErr != nil || !strings.HasSuffix(string(words), " wrk\n") || !errors.Is(err, ErrMissing) {
		t.Errorf("got apt-get %q, %v, %v; want one package, and that it is still missing", words, readErr, err)
	}
}

func TestParseNginxStream(t *testing.T) {
	f := func(options, module string, ok bool) {
		t.Helper()
		got, gotOK := parseNginxStream("nginx version: nginx/1.22.1\nconfigure arguments: " + options + "\n")
		if got != module || gotOK != ok {
			t.Errorf("%s: got %q, %v; want %q, %v", options, got, gotOK, module, ok)
		}
	}
	f("--prefix=/p --modules-path=/m --with-stream=dynamic", "/m/ngx_stream_module.so", true)
	f("--prefix=/p --with-stream=dynamic", "/p/modules/ngx_stream_module.so", true)
	f("--with-stream --with-stream_ssl_module", "", true)
	f("--with-stream_ssl_module", "", false)
}

func TestParseVersion(t *testing.T) {
	f := func(out, want string) {
		t.Helper()
		if got := parseVersion("x", out); got != want {
			t.Errorf("%q: got %q; want %q", out, got, want)
		}
	}
	f("HAProxy version 2.6.12-1+deb12u4 2026/10/17 - https://haproxy.org/\nKnown bugs", "x 2.6.12-1+deb12u4")
	f("nginx version: nginx/1.22.1\n", "x 1.22.1")
	f("wrk debian/4.1.0-3+b2 [epoll] Copyright", "x 4.1.0-3+b2")
	f("", "x (unknown version)")
}

func TestConfigs(t *testing.T) {
	backends := []Backend{{Name: "w1", Socket: "/d/w1.sock"}, {Name: "w2", Socket: "/d/w2.sock"}}
	f := func(config string, wants ...string) {
		t.Helper()
		for _, want := range wants {
			if !strings.Contains(config, want) {
				t.Errorf("no %q in:\n%s", want, config)
			}
		}
	}
	plain, spliced := haproxyConfig("/h", "127.0.0.1:1", backends, HAProxyOptions{}), haproxyConfig("/h", "127.0.0.1:1", backends, HAProxyOptions{Splice: true})
	f(plain, "nbthread 2\n", "mode tcp\n", "balance leastconn\n", "bind 127.0.0.1:1\n", "server w2 unix@/d/w2.sock\n")
	if strings.Contains(plain, "splice") || spliced == plain {
		t.Error("only one of the two haproxys may splice")
	}
	f(spliced, "option splice-auto\n")
	f(nginxStreamConfig("/h", "127.0.0.1:1", backends, "/m.so", false),
		"load_module /m.so;", "worker_processes 2;", "least_conn;", "zone app 64k;", "listen 127.0.0.1:1 reuseport;", "server unix:/d/w2.sock;")
	if strings.Contains(nginxStreamConfig("/h", "127.0.0.1:1", backends, "", true), "load_module") {
		t.Error("a built-in stream needs no module")
	}
	weighted := []Backend{{Name: "w1", Socket: "/d/w1.sock", Weight: 90}, {Name: "w2", Socket: "/d/w2.sock", Weight: 10}}
	f(haproxyConfig("/h", "127.0.0.1:1", weighted, HAProxyOptions{RoundRobin: true, Check: "/health", Admin: true}),
		"stats socket /h/admin.sock level admin\n", "balance roundrobin\n", "option httpchk GET /health\n", "server w2 unix@/d/w2.sock weight 10 check inter 500ms")
	if turns := nginxStreamConfig("/h", "127.0.0.1:1", weighted, "", true); strings.Contains(turns, "least_conn") || !strings.Contains(turns, "w1.sock weight=90;") {
		t.Errorf("got %s; want the weights, and no least_conn", turns)
	}
	f(RelayConfig(3, "off")("/h", "127.0.0.1:1", backends),
		"[proxy]\nloops = 3\nbatching = \"off\"\n[admin]\n", "socket = \"/h/admin.sock\"\n", "bind = [\"127.0.0.1:1\"]\n",
		"[[pools.app.backends]]\nname = \"w2\"\naddress = \"unix:/d/w2.sock\"\n")
	f(handoffConfig(Programs{Nginx: "/n", Preload: "/l.so"}, "/h", "127.0.0.1:1", 3, 2),
		"[proxy]\nloops = 3\n", "bind = [\"127.0.0.1:1\"]\n", "handoff = \"lb\"\n", "count = 2\n", "\"/h/worker{slot}/nginx.conf\"", "LD_PRELOAD = \"/l.so\"")
	f(backendConfig("/h", "/www", "unix:/d/w1.sock", "127.0.0.1:1"),
		"worker_processes 1;", "sendfile on;", "listen unix:/d/w1.sock;", "listen 127.0.0.1:1;", "return 200 \"ok\\n\"")
}

func TestAllCases_AreServed(t *testing.T) {
	for _, kase := range AllCases() {
		if BodySize(kase.Path) < 0 {
			t.Errorf("case %s: nobody serves %s", kase.Name, kase.Path)
		}
	}
	if got := BodySize("/other"); got != -1 {
		t.Errorf("got size %d of an unknown path; want -1", got)
	}
}

// A reserved port is nobody else's, and a server can listen on it all the same.
func TestReservePort_IsKeptForAServer(t *testing.T) {
	p, err := ReservePort()
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	addr := netip.MustParseAddrPort(p.Addr)
	if again, err := reserve(int(addr.Port())); err == nil {
		again.Close()
		t.Error("it can be reserved twice")
	}
	if first := firstEphemeral(); first > 10000 && (addr.Port() < 1024 || int(addr.Port()) >= first) {
		t.Errorf("got port %d; want one below the ephemeral ones from %d", addr.Port(), first)
	}
	for range 2 { // one after the other, as a server that is restarted
		ln, err := net.Listen("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.Dial("tcp", p.Addr)
		if err != nil {
			t.Fatal(err)
		}
		served, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		served.Close() // first, so that it is the server's side that waits (TIME_WAIT)
		conn.Close()
		if err := ln.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
