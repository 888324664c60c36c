//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// configure replaces lb's config file; lb reads it at the next reload.
func (l *lb) configure(t testing.TB, config lbConfig) {
	t.Helper()
	writeFile(t, filepath.Dir(l.file), filepath.Base(l.file), config.toml(l.socket), 0o644)
	l.config = config
}

// reload runs lb reload, which must succeed.
func (l *lb) reload(t testing.TB) string {
	t.Helper()
	return mustRun(t, patience, lbBinary(t), "reload", "-s", l.socket).stdout
}

// fds counts the open descriptors of a process.
func (p *process) fds(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid()))
	if err != nil {
		t.Fatalf("cannot count the descriptors of %s: %v", p.name, err)
	}
	return len(entries)
}

// rss is the resident memory of a process in KiB: VmRSS of /proc/PID/status, proc(5).
func (p *process) rss(t testing.TB) int {
	t.Helper()
	for _, line := range strings.Split(readFile(t, fmt.Sprintf("/proc/%d/status", p.pid())), "\n") {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.Atoi(strings.TrimSpace(strings.TrimSuffix(rest, "kB")))
			if err != nil {
				t.Fatalf("cannot read the memory of %s: %v", p.name, err)
			}
			return n
		}
	}
	t.Fatalf("cannot find the memory of %s", p.name)
	return 0
}

// startWrk loads url with 64 connections until stopWrk.
func startWrk(t testing.TB, url string, args ...string) *process {
	t.Helper()
	args = append([]string{"-t", "1", "-c", "64", "-d", "300s", "--timeout", "15s"}, append(args, url)...)
	p := startProcess(t, "wrk", exec.Command(program(t, "wrk"), args...))
	p.stop = syscall.SIGINT
	return p
}

// stopWrk ends the load and wants that no request has failed.
func stopWrk(t testing.TB, p *process) {
	t.Helper()
	p.signal(t, syscall.SIGINT)
	if code := p.exitCode(t, patience); code != 0 {
		t.Errorf("exit code of wrk: got %d; want 0", code)
	}
	out := p.tail()
	found := wrkRequests.FindStringSubmatch(out)
	if found == nil || strings.Contains(out, "Socket errors") || strings.Contains(out, "Non-2xx") {
		t.Errorf("wrk: got\n%s\nwant requests and no errors", out)
		return
	}
	t.Logf("wrk: %s requests", found[1])
}

// changing is the config of the i-th of many reloads: w1 and w2 stay and change their weights, w3 and w4 come
// and go, and so do a listener and its pool.
func changing(base lbConfig, extra string, servers []*nginx, i int) lbConfig {
	pool := lbPool{Name: "app"}
	for j, s := range servers {
		if j >= 2 && (i>>(j-2))&1 == 0 {
			continue
		}
		weight := 50 + (i*37+j*11)%200
		pool.Backends = append(pool.Backends, lbBackend{Name: fmt.Sprintf("w%d", j+1), Address: s.unix, Options: fmt.Sprintf("weight = %d", weight)})
	}
	config := base
	config.Pools = []lbPool{pool}
	if i%5 == 4 {
		config.Listeners = append(config.Listeners[:1:1], lbListener{Name: "extra", Bind: []string{extra}, Pool: "more"})
		config.Pools = append(config.Pools, lbPool{
			Name: "more", Options: "queue_timeout = \"100ms\"\nconnect_timeout = \"100ms\"",
			Backends: []lbBackend{{Name: "w1", Address: servers[0].unix}},
		})
	}
	return config
}

func TestReload_200UnderLoadCostNoConnection(t *testing.T) {
	var servers []*nginx
	for i := range 4 {
		servers = append(servers, startNginx(t, fmt.Sprintf("w%d", i+1), nil))
	}
	base := onePool(t, servers[0].unix, servers[1].unix)
	l := startLB(t, base)
	l.waitHealth(t, "up")
	extra := freePort(t, "127.0.0.1")
	url := "http://" + l.addr()

	// Once through everything, so that buffers, pipes and pools have the size that they keep.
	wrk(t, url+"/name")
	for i := range 20 {
		l.configure(t, changing(base, extra, servers, i))
		l.reload(t)
	}
	l.configure(t, base)
	l.reload(t)
	l.waitReleased(t)
	fds, rss := settledFDs(t, l), l.rss(t)

	held := dial(t, l.addr())
	keepAlive := startWrk(t, url+"/name")
	anew := startWrk(t, url+"/name", "-H", "Connection: close")
	start := time.Now()
	for i := range 200 {
		l.configure(t, changing(base, extra, servers, i))
		l.reload(t)
		if i%5 == 4 {
			if err := accepts(extra); err != nil {
				t.Errorf("reload %d: the listener that came: %v", i, err)
			}
		} else if i > 0 && i%5 == 0 {
			if err := refused(extra); err != nil {
				t.Errorf("reload %d: the listener that went: %v", i, err)
			}
		}
	}
	t.Logf("200 reloads in %v", time.Since(start))
	stopWrk(t, keepAlive)
	stopWrk(t, anew)
	say(t, held, "GET /name HTTP/1.0\r\n\r\n")
	hear(t, held, "HTTP/1.1 200")
	held.Close()

	l.configure(t, base)
	l.reload(t)
	l.waitReleased(t)
	eventually(t, patience, func() error {
		if now := l.fds(t); now > fds {
			return fmt.Errorf("descriptors of lb after 200 reloads: got %d; want the %d from before", now, fds)
		}
		return nil
	})
	if now := l.rss(t); now > rss+16<<10 {
		t.Errorf("memory of lb after 200 reloads: got %d KiB; want about the %d KiB from before", now, rss)
	} else {
		t.Logf("memory of lb: %d KiB before, %d KiB after", rss, now)
	}
}

// settledFDs is the number of lb's descriptors when it does nothing: the lowest of some looks, as probes come
// and go.
func settledFDs(t testing.TB, l *lb) int {
	t.Helper()
	lowest := l.fds(t)
	for range 20 {
		l.status(t) // takes its time
		lowest = min(lowest, l.fds(t))
	}
	return lowest
}

func TestWeight_ShowsInTheVeryNextConnections(t *testing.T) {
	dir := tempDir(t)
	config := onePool(t, socketPath(dir, "w1.sock"), socketPath(dir, "w2.sock"))
	config.Pools[0].Options = "balance = \"roundrobin\""
	for _, b := range config.Pools[0].Backends {
		startLines(t, b.Name, b.Address)
	}
	l := startLB(t, config)
	l.waitHealth(t, "up")
	weight := func(backend, n string) {
		t.Helper()
		mustRun(t, patience, lbBinary(t), "weight", "app/"+backend, n, "-s", l.socket)
	}
	ask := func(n int) map[string]int {
		t.Helper()
		counts := map[string]int{}
		for range n {
			who, err := askLine(l.addr(), patience)
			if err != nil {
				t.Fatal(err)
			}
			counts[who]++
		}
		return counts
	}
	if got := ask(1000); got["w1"] < 490 || got["w1"] > 510 {
		t.Errorf("100:100 over 1000 connections: got %v; want 500 each, within 1 %%", got)
	}
	weight("w1", "90")
	weight("w2", "10")
	if got := ask(10); got["w1"] != 9 {
		t.Errorf("90:10 over the next 10 connections: got %v; want 9 and 1", got)
	}
	if got := ask(1000); got["w1"] < 890 || got["w1"] > 910 {
		t.Errorf("90:10 over 1000 connections: got %v; want 900 and 100, within 1 %%", got)
	}
	weight("w1", "0")
	if got := ask(100); got["w2"] != 100 {
		t.Errorf("0:10 over the next 100 connections: got %v; want all on w2", got)
	}
	weight("w1", "50%")
	weight("w2", "0")
	if got := ask(100); got["w1"] != 100 || l.status(t).backend(t, "w1").Weight != 50 {
		t.Errorf("50:0 over the next 100 connections: got %v, weight %d; want all on w1, 50", got, l.status(t).backend(t, "w1").Weight)
	}
}

func TestWeight_OfLeastConnShowsInHeldConnections(t *testing.T) {
	dir := tempDir(t)
	w1, w2 := startHolder(t, socketPath(dir, "w1.sock")), startHolder(t, socketPath(dir, "w2.sock"))
	l := startLB(t, onePool(t, w1.address, w2.address))
	l.waitHealth(t, "up")
	mustRun(t, patience, lbBinary(t), "weight", "app/w1", "90", "-s", l.socket)
	mustRun(t, patience, lbBinary(t), "weight", "app/w2", "10", "-s", l.socket)
	for range 1000 {
		dial(t, l.addr())
	}
	s := l.waitActive(t, 1000)
	if got := s.backend(t, "w1").Active; got < 890 || got > 910 {
		t.Errorf("sessions of w1 with 90:10 over 1000: got %d; want 900, within 1 %%", got)
	}
}

// settings is the status without what the traffic changes.
func (s lbStatus) settings() lbStatus {
	for i := range s.Listeners {
		s.Listeners[i].Active, s.Listeners[i].Connections = 0, 0
	}
	for _, p := range s.Pools {
		for i := range p.Backends {
			p.Backends[i].Active, p.Backends[i].Connections = 0, 0
		}
	}
	return s
}

func TestReload_BadConfigLeavesEverythingAsItWas(t *testing.T) {
	dir := tempDir(t)
	config := onePool(t, socketPath(dir, "w1.sock"), socketPath(dir, "w2.sock"))
	config.Pools[0].Backends[0].Options = "weight = 70"
	for _, b := range config.Pools[0].Backends {
		startLines(t, b.Name, b.Address)
	}
	taken, err := net.Listen("tcp", freePort(t, "127.0.0.1"))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	l := startLB(t, config)
	l.waitHealth(t, "up")
	good := config.toml(l.socket)
	before := l.status(t).settings()
	held := dial(t, l.addr())
	if _, err := askOn(held); err != nil {
		t.Fatal(err)
	}
	replace := func(from, to string) string {
		t.Helper()
		if !strings.Contains(good, from) {
			t.Fatalf("the config has no %q", from)
		}
		// The weight is changed in every one of them: no part of a bad config may hold.
		return strings.Replace(strings.Replace(good, from, to, 1), "weight = 70", "weight = 71", 1)
	}
	more := fmt.Sprintf("\n[listeners.more]\nbind = [%q]\npool = \"app\"\n", taken.Addr())
	free := freePort(t, "127.0.0.1")
	for _, tc := range []struct {
		name, text string
		want       []string
	}{
		{"syntax", replace("[pools.app]", "[pools.app"), []string{"lb.toml:", "]"}},
		{"unknown key", replace("[pools.app]\n", "[pools.app]\nnonsense = 1\n"), []string{"lb.toml:", "pools.app.nonsense", "unknown"}},
		{"bare integer as duration", replace("[pools.app]\n", "[pools.app]\nidle_timeout = 30\n"), []string{"pools.app.idle_timeout", "30s"}},
		{"duplicate name", replace(`name = "w2"`, `name = "w1"`), []string{"pools.app.backends[1].name", "already"}},
		{"address in use", replace("[pools.app]\n", more+"[pools.app]\n"), []string{"more", taken.Addr().String(), "listens there: address already in use"}},
		{"address in use, after one that is free", replace("[pools.app]\n", strings.Replace(more, "bind = [", fmt.Sprintf("bind = [%q, ", free), 1)+"[pools.app]\n"), []string{"listens there: address already in use"}},
		{"unknown pool", replace(`pool = "app"`, `pool = "ap"`), []string{"listeners.web.pool", `did you mean "app"`}},
		{"weight out of range", strings.Replace(good, "weight = 70", "weight = 1001", 1), []string{"pools.app.backends[0].weight", "1001", "0..1000"}},
		{"unreadable file", "", []string{"lb.toml", "no such file"}},
		{"a directory", "dir", []string{"lb.toml", "directory"}},
		{"empty", " ", []string{"listeners", "missing"}},
	} {
		os.RemoveAll(l.file)
		switch tc.text {
		case "":
		case "dir":
			os.Mkdir(l.file, 0o755)
		default:
			writeFile(t, filepath.Dir(l.file), filepath.Base(l.file), tc.text, 0o644)
		}
		r := run(t, patience, nil, lbBinary(t), "reload", "-s", l.socket)
		if r.code != 1 {
			t.Errorf("%s: exit code of lb reload: got %d; want 1\n%s%s", tc.name, r.code, r.stdout, r.stderr)
		}
		for _, want := range tc.want {
			if !strings.Contains(r.stderr, want) {
				t.Errorf("%s: lb reload: got %q; want %q in it", tc.name, r.stderr, want)
			}
		}
		if after := l.status(t).settings(); !reflect.DeepEqual(after, before) {
			t.Errorf("%s: status after it: got %+v; want %+v", tc.name, after, before)
		}
		if err := refused(free); err != nil {
			t.Errorf("%s: %v", tc.name, err)
		}
		if _, err := askOn(held); err != nil {
			t.Errorf("%s: the session that ran: %v", tc.name, err)
		}
		if _, err := askLine(l.addr(), patience); err != nil {
			t.Errorf("%s: a new session: %v", tc.name, err)
		}
	}
	os.RemoveAll(l.file)
	writeFile(t, filepath.Dir(l.file), filepath.Base(l.file), strings.Replace(good, "weight = 70", "weight = 30", 1), 0o644)
	if out := l.reload(t); !strings.Contains(out, "pools.app.backends.w1.weight: 70 → 30") {
		t.Errorf("lb reload of a good file: got %q; want the change", out)
	}
	if got := l.status(t).backend(t, "w1").Weight; got != 30 {
		t.Errorf("weight: got %d; want 30", got)
	}
	held.Close()
}

func TestReload_BySignal(t *testing.T) {
	dir := tempDir(t)
	w1, w2 := startHolder(t, socketPath(dir, "w1.sock")), startHolder(t, socketPath(dir, "w2.sock"))
	config := onePool(t, w1.address)
	l := startLB(t, config)
	l.waitHealth(t, "up")
	config.Pools[0].Backends = append(config.Pools[0].Backends, lbBackend{Name: "w2", Address: w2.address})
	l.configure(t, config)
	l.signal(t, syscall.SIGHUP)
	eventually(t, patience, func() error {
		if got := len(l.status(t).Pools[0].Backends); got != 2 {
			return fmt.Errorf("backends after SIGHUP: got %d; want 2", got)
		}
		return nil
	})
}

func TestReload_RemovedPoolLosesNobody(t *testing.T) {
	dir := tempDir(t)
	config := onePool(t, socketPath(dir, "w1.sock"))
	startLines(t, "w1", config.Pools[0].Backends[0].Address)
	l := startLB(t, config)
	l.waitHealth(t, "up")
	held := dial(t, l.addr())
	if _, err := askOn(held); err != nil {
		t.Fatal(err)
	}
	config.Pools[0].Name, config.Listeners[0].Pool = "other", "other"
	load := startLoad(t, l.addr(), 8)
	for i := range 20 {
		name := fmt.Sprintf("p%d", i)
		config.Pools[0].Name, config.Listeners[0].Pool = name, name
		l.configure(t, config)
		l.reload(t)
	}
	load.end()
	load.wantNoError(t)
	if who, err := askOn(held); err != nil || who != "w1" {
		t.Errorf("the session of the first pool: got %q, %v; want an answer", who, err)
	}
	held.Close()
}
