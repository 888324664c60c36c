package daemon

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/miekg/dns"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/eventually"
)

// nameServer is a name server on loopback, whose answers a test sets.
type nameServer struct {
	address string
	mu      sync.Mutex
	answer  func(m *dns.Msg) // guarded by mu; makes the answer of a reply, or sets it to nothing
	silent  bool             // guarded by mu
}

func newNameServer(t *testing.T) *nameServer {
	t.Helper()
	s := &nameServer{}
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err != nil {
			l.Close()
			continue
		}
		s.address = l.Addr().String()
		for _, srv := range []*dns.Server{{Listener: l, Handler: s}, {PacketConn: pc, Handler: s}} {
			started, ended := make(chan struct{}), make(chan error, 1)
			srv.NotifyStartedFunc = func() { close(started) }
			go func() { ended <- srv.ActivateAndServe() }()
			<-started
			t.Cleanup(func() { srv.Shutdown(); <-ended })
		}
		return s
	}
	t.Fatal("no port is free for TCP and UDP")
	return nil
}

// ServeDNS is dns.Handler.
func (s *nameServer) ServeDNS(w dns.ResponseWriter, ask *dns.Msg) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent {
		return
	}
	m := new(dns.Msg).SetReply(ask)
	if s.answer != nil {
		s.answer(m)
	}
	if w.LocalAddr().Network() == "udp" {
		m.Truncate(512)
	}
	w.WriteMsg(m)
}

func (s *nameServer) set(answer func(m *dns.Msg)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer, s.silent = answer, false
}

func (s *nameServer) setSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
}

// records answers each question with those of its name and type.
func records(lines ...string) func(m *dns.Msg) {
	return func(m *dns.Msg) {
		for _, line := range lines {
			rr, err := dns.NewRR(line)
			if err != nil {
				panic(err)
			}
			if q := m.Question[0]; strings.EqualFold(rr.Header().Name, q.Name) && rr.Header().Rrtype == q.Qtype {
				m.Answer = append(m.Answer, rr)
			}
		}
	}
}

// hosts answers with the addresses of these numbers.
func (a *app) hosts(numbers ...int) func(m *dns.Msg) {
	var lines []string
	for _, n := range numbers {
		lines = append(lines, "app.test. 0 A "+a.ip(n))
	}
	return records(lines...)
}

// app is a program on many addresses of loopback with one port, which says its number to each client and then
// holds the connection. Each app has a net of its own, so that its port is free on all of its addresses.
type app struct {
	net  int32
	port int
	t    *testing.T
}

var apps atomic.Int32

// newApp serves the numbers, the first of which finds a port.
func newApp(t *testing.T, numbers ...int) *app {
	t.Helper()
	a := &app{t: t, net: 10 + apps.Add(1)}
	for _, n := range numbers {
		a.serve(n)
	}
	return a
}

func (a *app) serve(n int) {
	a.t.Helper()
	l, err := net.Listen("tcp", a.name(n))
	if err != nil {
		a.t.Fatal(err)
	}
	a.port = l.Addr().(*net.TCPAddr).Port
	var serving sync.WaitGroup
	serving.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer c.Close()
				fmt.Fprintf(c, "%d\n", n)
				c.Read(make([]byte, 1)) // until the other side closes
			})
		}
	})
	a.t.Cleanup(func() { l.Close(); serving.Wait() })
}

func (a *app) ip(n int) string { return fmt.Sprintf("127.%d.0.%d", a.net, n) }

// name is what the backend of number n is called.
func (a *app) name(n int) string { return fmt.Sprintf("%s:%d", a.ip(n), a.port) }

const discoverConfig = `
[admin]
socket = "DIR/admin.sock"
http = ""
state_file = "DIR/state"
[log]
output = "DIR/log"
[listeners.web]
bind = ["unix:DIR/web.sock"]
pool = "app"
[pools.app]
discover = "dns:app.test:PORT"
resolver = ["SERVER"]
[pools.app.health]
interval = "100ms"
`

// newDiscoverRig is a daemon whose pool discovers its backends.
func newDiscoverRig(t *testing.T, s *nameServer, a *app) *rig {
	t.Helper()
	dir, err := os.MkdirTemp("", "lb-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	r := &rig{t: t, dir: dir, file: filepath.Join(dir, "lb.toml")}
	text := strings.NewReplacer("DIR", dir, "SERVER", s.address, "PORT", strconv.Itoa(a.port)).Replace(discoverConfig)
	if err := os.WriteFile(r.file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	r.begin()
	t.Cleanup(func() { r.end() })
	return r
}

// backendsText is the pool's backends with weight, admin state and health.
func (r *rig) backendsText(pool string) string {
	var all []string
	for _, b := range r.view.Load().pool(pool).Backends() {
		all = append(all, fmt.Sprintf("%s=%d,%v,%v", b.Name, b.Weight(), b.Admin(), b.Health()))
	}
	slices.Sort(all)
	return strings.Join(all, " ")
}

// wait waits until the pool app has these backends.
func (r *rig) wait(when string, want ...string) {
	r.t.Helper()
	text := strings.Join(want, " ")
	if !eventually.Within(eventually.Patience, func() bool { return r.backendsText("app") == text }) {
		r.t.Fatalf("%s: got %s; want %s", when, r.backendsText("app"), text)
	}
}

// connect opens a connection, and returns it with the number of the program that it has reached.
func (r *rig) connect() (net.Conn, string) {
	r.t.Helper()
	c, err := net.Dial("unix", r.dir+"/web.sock")
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		r.t.Fatalf("cannot read from a backend: %v", err)
	}
	return c, strings.TrimSpace(line)
}

// discovery is the pool's discovery as lb status has it.
func (r *rig) discovery() *api.DiscoveryStatus {
	r.t.Helper()
	p, err := r.client().Pool(r.t.Context(), "app")
	if err != nil {
		r.t.Fatal(err)
	}
	return p.Discovery
}

// events are those that lb has kept.
func (r *rig) events() (all []api.Event) {
	r.t.Helper()
	if err := r.client().Events(r.t.Context(), api.EventQuery{}, func(e api.Event) error { all = append(all, e); return nil }); err != nil {
		r.t.Fatal(err)
	}
	return all
}

func TestDiscover_BackendsComeAndGoAndKeepWhatTheyHave(t *testing.T) {
	t.Parallel()
	s, a := newNameServer(t), newApp(t, 2, 3, 4)
	s.set(a.hosts(3, 2))
	r := newDiscoverRig(t, s, a)
	c, ctx := r.client(), t.Context()
	r.wait("at the start", a.name(2)+"=100,ready,up", a.name(3)+"=100,ready,up")
	r.must(c.SetWeight(ctx, "app", a.name(2), 30))
	r.must(c.SetAdmin(ctx, "app", a.name(3), "drain"))
	conn, number := r.connect()
	if number != "2" {
		t.Fatalf("a connection went to %s; 3 is in drain", number)
	}
	before := r.view.Load().pool("app").Get(a.name(2))

	s.set(a.hosts(2, 3, 4))
	r.wait("one more", a.name(2)+"=30,ready,up", a.name(3)+"=100,drain,up", a.name(4)+"=100,ready,up")
	if b := r.view.Load().pool("app").Get(a.name(2)); b != before || b.Counters.Connections.Load() != 1 || b.Active() != 1 {
		t.Error("a backend that stayed was made anew")
	}

	s.set(a.hosts(4))
	r.wait("two less", a.name(4)+"=100,ready,up")
	for range 3 {
		if _, number := r.connect(); number != "4" {
			t.Errorf("a connection went to %s, which is not listed", number)
		}
	}
	if before.Active() != 1 {
		t.Errorf("the backend that left has %d sessions; want the one that it had", before.Active())
	}

	s.set(a.hosts(2, 3, 4))
	want := []string{a.name(2) + "=30,ready,up", a.name(3) + "=100,drain,up", a.name(4) + "=100,ready,up"}
	r.wait("back again", want...)
	if b := r.view.Load().pool("app").Get(a.name(2)); b != before || b.Active() != 1 {
		t.Error("a backend that came back while it had a session was made anew")
	}
	if _, err := r.Reload(ctx, false, "test"); err != nil {
		t.Fatal(err)
	}
	if got := r.backendsText("app"); got != strings.Join(want, " ") {
		t.Errorf("after a reload: got %s; want %s", got, want)
	}
	if b := r.view.Load().pool("app").Get(a.name(2)); b != before {
		t.Error("a reload made a backend anew")
	}
	conn.Close()
	r.restart()
	r.wait("after a restart", want...)
}

func TestDiscover_AnUnsoundAnswerChangesNothing(t *testing.T) {
	t.Parallel()
	for name, spoil := range map[string]func(s *nameServer){
		"SERVFAIL": func(s *nameServer) { s.set(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }) },
		"NXDOMAIN": func(s *nameServer) { s.set(func(m *dns.Msg) { m.Rcode = dns.RcodeNameError }) },
		"empty":    func(s *nameServer) { s.set(nil) },
		"silence":  (*nameServer).setSilent,
		"a thousand addresses": func(s *nameServer) {
			var lines []string
			for i := range 1000 {
				lines = append(lines, fmt.Sprintf("app.test. 0 A 127.1.%d.%d", i/250, i%250+1))
			}
			answer := new(dns.Msg)
			answer.Question = []dns.Question{{Name: "app.test.", Qtype: dns.TypeA}}
			records(lines...)(answer)
			s.set(func(m *dns.Msg) {
				if m.Question[0].Qtype == dns.TypeA {
					m.Answer = answer.Answer
				}
			})
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, a := newNameServer(t), newApp(t, 2, 3)
			s.set(a.hosts(2, 3))
			r := newDiscoverRig(t, s, a)
			want := []string{a.name(2) + "=100,ready,up", a.name(3) + "=100,ready,up"}
			r.wait("at the start", want...)
			spoil(s)
			eventually.True(t, "stale in the status", func() bool { return !r.discovery().StaleSince.IsZero() })
			if st := r.discovery(); st.Error == "" || st.Backends != 2 || st.Source != fmt.Sprintf("dns:app.test:%d", a.port) {
				t.Errorf("got status %+v", st)
			}
			if _, err := r.Reload(t.Context(), false, "test"); err != nil {
				t.Fatal(err)
			}
			r.wait("meanwhile", want...)
			r.connect()
			code, out, _ := lb(t, "status", "app", "-s", r.dir+"/admin.sock")
			if !strings.Contains(out, "discovers dns:app.test") || !strings.Contains(out, "no sound answer for") {
				t.Errorf("lb status exits %d and prints\n%s\nwithout a word of it", code, out)
			}

			r.restart()
			r.wait("started from the last known", want...)
			eventually.True(t, "stale in the status after a restart", func() bool { return !r.discovery().StaleSince.IsZero() })
			r.connect()

			s.set(a.hosts(3))
			repaired := time.Now()
			r.wait("after the repair", a.name(3)+"=100,ready,up")
			eventually.True(t, "sound in the status", func() bool { return r.discovery().StaleSince.IsZero() })
			if d := time.Since(repaired); d > 5*time.Second {
				t.Errorf("agreed %v after the repair; want within 5 s", d)
			}
			var turns []string
			for _, e := range r.events() {
				if e.Kind == "discovery" {
					turns = append(turns, e.Text)
				}
			}
			if len(turns) != 2 || !strings.Contains(turns[0], "2 known backends stay") || !strings.Contains(turns[1], "again") {
				t.Errorf("got events %q; want one that answers fail, and one that they come again", turns)
			}
		})
	}
}

func TestDiscover_TheLastOnesStayUntilAnotherTakesConnections(t *testing.T) {
	t.Parallel()
	s, a := newNameServer(t), newApp(t, 2)
	s.set(a.hosts(2))
	r := newDiscoverRig(t, s, a)
	r.wait("at the start", a.name(2)+"=100,ready,up")
	s.set(a.hosts(3))
	r.wait("with one that is not there", a.name(2)+"=100,ready,up", a.name(3)+"=100,ready,down")
	if _, number := r.connect(); number != "2" {
		t.Errorf("a connection went to %s", number)
	}
	a.serve(3)
	r.wait("once it is there", a.name(3)+"=100,ready,up")
}

func TestDiscover_StandsBesideWhatIsConfigured(t *testing.T) {
	t.Parallel()
	s, a := newNameServer(t), newApp(t, 2, 3)
	s.set(a.hosts(2, 3))
	r := newDiscoverRig(t, s, a)
	text, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	// One of the two has a name and a weight of its own: it is there once.
	more := fmt.Sprintf("\n[[pools.app.backends]]\nname = \"mine\"\naddress = %q\nweight = 7\n", a.name(2))
	if err := os.WriteFile(r.file, append(text, more...), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Reload(t.Context(), false, "test"); err != nil {
		t.Fatal(err)
	}
	r.wait("both", a.name(3)+"=100,ready,up", "mine=7,ready,up")
	r.must(r.client().RemoveBackend(t.Context(), "app", a.name(3)))
	r.restart()
	r.wait("without the one that the operator removed", "mine=7,ready,up")
	if err := os.WriteFile(r.file, []byte(strings.ReplaceAll(string(text)+more, "discover = ", "#")), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Reload(t.Context(), false, "test"); err != nil {
		t.Fatal(err)
	}
	r.wait("without discover", "mine=7,ready,up")
	if r.discovery() != nil {
		t.Error("the status has the discover of before")
	}
}

func TestDiscover_LeavesOutLbItself(t *testing.T) {
	t.Parallel()
	s, a := newNameServer(t), newApp(t, 2)
	s.set(a.hosts(2, 5))
	r := newDiscoverRig(t, s, a)
	text, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	own := fmt.Sprintf(`"unix:%s/web.sock", %q`, r.dir, a.name(6))
	if err := os.WriteFile(r.file, []byte(strings.Replace(string(text), fmt.Sprintf(`"unix:%s/web.sock"`, r.dir), own, 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Reload(t.Context(), false, "test"); err != nil {
		t.Fatal(err)
	}
	s.set(a.hosts(2, 6))
	r.wait("without itself", a.name(2)+"=100,ready,up")
	eventually.True(t, "an event", func() bool {
		return slices.ContainsFunc(r.events(), func(e api.Event) bool {
			return e.Kind == "discovery" && strings.Contains(e.Text, "left out") && strings.Contains(e.Text, a.name(6))
		})
	})
}

func TestDiscover_WeightsAndTiersOfAService(t *testing.T) {
	t.Parallel()
	s, a := newNameServer(t), newApp(t, 2, 3)
	set := func(weight int, at2 string) {
		s.set(records(fmt.Sprintf("_app._tcp.test. 0 SRV 1 %d %d w2.test.", weight, a.port), fmt.Sprintf("_app._tcp.test. 0 SRV 2 50 %d w3.test.", a.port),
			"w2.test. 0 A "+at2, "w3.test. 0 A "+a.ip(3)))
	}
	set(50, a.ip(2))
	r := newDiscoverRig(t, s, a)
	text, err := os.ReadFile(r.file)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(r.file, []byte(strings.Replace(string(text), fmt.Sprintf("dns:app.test:%d", a.port), "srv:_app._tcp.test", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Reload(t.Context(), false, "test"); err != nil {
		t.Fatal(err)
	}
	w2, w3 := fmt.Sprintf("w2.test:%d", a.port), fmt.Sprintf("w3.test:%d", a.port)
	r.wait("at the start", w2+"=50,ready,up", w3+"=50,ready,up")
	for range 4 {
		if _, number := r.connect(); number != "2" {
			t.Errorf("a connection went to %s, which is a backup", number)
		}
	}
	b := r.view.Load().pool("app").Get(w2)
	set(70, a.ip(2))
	r.wait("another weight", w2+"=70,ready,up", w3+"=50,ready,up")
	r.must(r.client().SetWeight(t.Context(), "app", w2, 10))
	set(80, a.ip(2))
	eventually.True(t, "another weight, which the operator's goes before", func() bool { return b.ConfiguredWeight() == 80 })
	r.wait("the operator's", w2+"=10,ready,up", w3+"=50,ready,up")
	set(80, a.ip(3)) // the target moves: connections follow, counts stay
	eventually.True(t, "the target's new address", func() bool { return b.Sockaddr().AddrPort().Addr().String() == a.ip(3) })
	if _, number := r.connect(); number != "3" || r.view.Load().pool("app").Get(w2) != b {
		t.Errorf("a connection went to %s; want it where the target has moved", number)
	}
}

// Whoever does not use it pays nothing for it.
func TestDiscover_WithoutItNothingRuns(t *testing.T) {
	r := newRig(t)
	r.must(r.client().SetWeight(t.Context(), "app", "w1", 30))
	if r.discoveries.pools != nil || r.discoveries.keeper != nil {
		t.Errorf("got %v and %v; want nothing", r.discoveries.pools, r.discoveries.keeper)
	}
	stacks := make([]byte, 1<<20)
	stacks = stacks[:runtime.Stack(stacks, true)]
	for _, name := range []string{"lb/discovery.", "(*keeper)"} {
		if strings.Contains(string(stacks), name) {
			t.Errorf("a goroutine of %s runs", name)
		}
	}
	if _, err := os.Stat(r.dir + "/state" + foundSuffix); !os.IsNotExist(err) {
		t.Errorf("the file of discovered backends: %v; want none", err)
	}
	if n := testing.AllocsPerRun(100, func() { r.discoveries.all(); r.discoveryStatus("app"); r.discoveries.of("app") }); n != 0 {
		t.Errorf("%v allocations; want none", n)
	}
}
