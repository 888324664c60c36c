package proxy_test

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/proxy"
)

// spec is what a listener of the rig's pool shall be, at these addresses.
func (r *rig) spec(name string, bind ...string) proxy.ListenerSpec {
	cfg := proxy.DefaultListenerConfig()
	cfg.Bind, cfg.Pool = bind, r.pool.Name
	return proxy.ListenerSpec{Name: name, Config: cfg, Pool: r.pool}
}

// become makes the listeners what specs say.
func (r *rig) become(specs ...proxy.ListenerSpec) {
	r.Helper()
	change, err := r.proxy.Prepare(specs, nil)
	if err != nil {
		r.Fatal(err)
	}
	change.Commit()
}

// listener finds one by name.
func (r *rig) listener(name string) *proxy.Listener {
	r.Helper()
	all := r.proxy.Listeners()
	if i := slices.IndexFunc(all, func(ln *proxy.Listener) bool { return ln.Name == name }); i >= 0 {
		return all[i]
	}
	r.Fatalf("listener %q: got none of %d", name, len(all))
	return nil
}

// names are the listeners and their addresses.
func (r *rig) names() (names []string) {
	for _, ln := range r.proxy.Listeners() {
		names = append(names, fmt.Sprint(ln.Name, ln.Addresses()))
	}
	return names
}

// fixedPort is a TCP address that is free; nobody else takes it unless the kernel has run out of others.
func fixedPort(t testing.TB) string { return nobody(t, tcpSocket) }

// wantServed exchanges a word over a new connection to the address.
func wantServed(t testing.TB, address string) {
	t.Helper()
	c := dial(t, address)
	talk(t, c)
	c.Close()
}

// wantNobody fails when somebody listens at the address.
func wantNobody(t testing.TB, address string) {
	t.Helper()
	a, err := backends.ParseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := net.DialTimeout(a.Network(), a.Dial(), ioTimeout); err == nil {
		c.Close()
		t.Errorf("connect to %s: got a connection; want it refused", address)
	}
}

func TestTransition_AddressInUseLeavesEverythingAsItWas(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	old, path, free := fixedPort(t), bindAddress(t, unixSocket), fixedPort(t)
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{old} }, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	before := r.names()

	web := r.spec("web", old)
	web.Config.MaxConns = 1 // would refuse what comes below
	_, err = r.proxy.Prepare([]proxy.ListenerSpec{web, r.spec("more", path, free), r.spec("last", taken.Addr().String())}, nil)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), `"last"`) {
		t.Fatalf("Prepare: got %v; want EADDRINUSE of the listener \"last\"", err)
	}
	if got := r.names(); !slices.Equal(got, before) {
		t.Errorf("listeners: got %v; want %v", got, before)
	}
	for _, address := range []string{path, free} {
		wantNobody(t, address)
	}
	if _, err := os.Lstat(strings.TrimPrefix(path, "unix:")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("socket file after the failure: got %v; want none", err)
	}
	talk(t, c)
	wantServed(t, old)
	if n := r.ln.MaxConns(); n != 0 {
		t.Errorf("max_conns: got %d; want the old one, 0", n)
	}
	taken.Close()
	// nothing is left of the failure
	r.become(web, r.spec("more", path, free), r.spec("last", taken.Addr().String()))
	for _, address := range []string{path, free, taken.Addr().String()} {
		wantServed(t, address)
	}
	c.Close()
	r.ended(5)
}

func TestTransition_AbortLeavesEverythingAsItWas(t *testing.T) {
	old, path, free := fixedPort(t), bindAddress(t, unixSocket), fixedPort(t)
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{old} }, serve(t, unixSocket, echo).address)
	before := r.names()
	change, err := r.proxy.Prepare([]proxy.ListenerSpec{r.spec("other", path, free)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	wantServed(t, old) // prepared is not done
	change.Abort()
	if got := r.names(); !slices.Equal(got, before) {
		t.Errorf("listeners: got %v; want %v", got, before)
	}
	wantServed(t, old)
	wantNobody(t, path)
	wantNobody(t, free)
	r.ended(2)
}

func TestTransition_BadSettingsOpenNothing(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	free := fixedPort(t)
	bad := r.spec("bad", fixedPort(t))
	bad.Config.Deny = []string{"no prefix"}
	if _, err := r.proxy.Prepare([]proxy.ListenerSpec{r.spec("good", free), bad}, nil); err == nil || !strings.Contains(err.Error(), "deny") {
		t.Errorf("Prepare: got %v; want an error about deny", err)
	}
	wantNobody(t, free)
	wantServed(t, r.ln.Addresses()[0])
	r.ended(1)
}

// queueUp connects n clients that wait in the kernel until release is called; each has said a word.
func (r *rig) queueUp(n int, address string) (clients []conn, release func()) {
	r.Helper()
	release = r.proxy.HoldLoops()
	for range n {
		c := dial(r, address)
		send(r, c, []byte("word"))
		clients = append(clients, c)
	}
	return clients, release
}

// wantAnswers reads the answers of clients that were queued.
func (r *rig) wantAnswers(clients []conn) {
	r.Helper()
	for _, c := range clients {
		receive(r, c, "word")
		c.Close()
	}
}

func TestTransition_KeptSocketKeepsItsQueue(t *testing.T) {
	for _, kind := range []string{tcpSocket, unixSocket, abstractSocket} {
		t.Run(kind, func(t *testing.T) {
			address := fixedPort(t)
			if kind != tcpSocket {
				address = bindAddress(t, kind)
			}
			r := newRig(t, func(s *setup) { s.listener.Bind = []string{address} }, serve(t, unixSocket, echo).address)
			clients, release := r.queueUp(50, address)
			web := r.spec("web", address)
			web.Config.Backlog = 100
			r.become(web) // while no loop can do anything
			release()
			r.wantAnswers(clients)
			wantServed(t, address)
			for _, rec := range r.ended(51) {
				if rec.Listener != r.ln || rec.Termination.String() != "--" {
					t.Errorf("record: got %v at %s; want -- at the same listener", rec.Termination, rec.Listener.Name)
				}
			}
		})
	}
}

func TestTransition_RemovedSocketServesItsQueue(t *testing.T) {
	for _, kind := range []string{tcpSocket, unixSocket} {
		t.Run(kind, func(t *testing.T) {
			address, other := fixedPort(t), fixedPort(t)
			if kind == unixSocket {
				address = bindAddress(t, kind)
			}
			r := newRig(t, func(s *setup) { s.listener.Bind = []string{address, other} }, serve(t, unixSocket, echo).address)
			clients, release := r.queueUp(50, address)
			done := make(chan struct{})
			change, err := r.proxy.Prepare([]proxy.ListenerSpec{r.spec("web", other)}, nil)
			if err != nil {
				t.Fatal(err)
			}
			go func() { change.Commit(); close(done) }()
			release()
			await(t, "Commit", done)
			wantNobody(t, address)
			r.wantAnswers(clients)
			wantServed(t, other)
			r.ended(51)
		})
	}
}

func TestTransition_RemovedListenerServesItsQueueAndSessions(t *testing.T) {
	address := fixedPort(t)
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{address} }, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	clients, release := r.queueUp(50, address)
	done := make(chan struct{})
	change, err := r.proxy.Prepare(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() { change.Commit(); close(done) }()
	release()
	await(t, "Commit", done)
	if n := r.names(); len(n) != 0 {
		t.Errorf("listeners: got %v; want none", n)
	}
	wantNobody(t, address)
	r.wantAnswers(clients)
	talk(t, c)
	c.Close()
	for _, rec := range r.ended(51) {
		if rec.Listener != r.ln || rec.Termination.String() != "--" {
			t.Errorf("record: got %v at %s; want -- at web", rec.Termination, rec.Listener.Name)
		}
	}
}

func TestTransition_SocketMovesToAnotherListenerWithItsQueue(t *testing.T) {
	address := fixedPort(t)
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{address} }, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	clients, release := r.queueUp(50, address)
	change, err := r.proxy.Prepare([]proxy.ListenerSpec{r.spec("api", address)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { change.Commit(); close(done) }()
	release()
	await(t, "Commit", done)
	r.wantAnswers(clients)
	r.ended(50)
	wantServed(t, address)
	records := r.ended(51)
	if got := records[50].Listener; got != r.listener("api") {
		t.Errorf("listener of the last session: got %s; want api", got.Name)
	}
	talk(t, c)
	c.Close()
	if got := r.ended(52)[51].Listener; got != r.ln {
		t.Errorf("listener of the first session: got %s; want web, as it began", got.Name)
	}
	if n := r.listener("api").Active(); n != 0 {
		t.Errorf("sessions of api left: got %d; want 0", n)
	}
	// And back, with both names at once.
	other := fixedPort(t)
	r.become(r.spec("web", address), r.spec("api", other))
	wantServed(t, address)
	r.ended(53)
	wantServed(t, other)
	records = r.ended(54)
	if a, b := records[52].Listener.Name, records[53].Listener.Name; a != "web" || b != "api" {
		t.Errorf("listeners: got %s, %s; want web, api", a, b)
	}
	r.become(r.spec("web", other), r.spec("api", address)) // they change places
	wantServed(t, address)
	r.ended(55)
	wantServed(t, other)
	records = r.ended(56)
	if a, b := records[54].Listener.Name, records[55].Listener.Name; a != "api" || b != "web" {
		t.Errorf("listeners after they changed places: got %s, %s; want api, web", a, b)
	}
}

func TestTransition_PortZeroIsAnotherPortForEachListener(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	other, err := listen(r.proxy, "other", r.spec("other", "127.0.0.1:0").Config, r.pool)
	if err != nil {
		t.Fatal(err)
	}
	if a, b := r.ln.Addresses()[0], other.Addresses()[0]; a == b {
		t.Fatalf("addresses: got %s for both", a)
	}
	wantServed(t, r.ln.Addresses()[0])
	r.ended(1)
	wantServed(t, other.Addresses()[0])
	records := r.ended(2)
	if records[0].Listener != r.ln || records[1].Listener != other {
		t.Errorf("listeners: got %s, %s; want web, other", records[0].Listener.Name, records[1].Listener.Name)
	}
	two := r.spec("two", "127.0.0.1:0", "127.0.0.1:0")
	r.become(two)
	if a := r.listener("two").Addresses(); a[0] == a[1] {
		t.Errorf("addresses of one listener: got %v; want two", a)
	}
}

func TestTransition_SettingsAreForNewConnections(t *testing.T) {
	blue, green := serve(t, unixSocket, echo), serve(t, unixSocket, echo)
	r := newRig(t, nil, blue.address)
	other := backends.NewPool("green", backends.DefaultConfig(), new(balancer.LeastConn))
	b := backends.DefaultBackendConfig()
	b.Name, b.Address = "g", green.address
	if _, err := other.Add(b, backends.HealthUp); err != nil {
		t.Fatal(err)
	}
	old := r.dial()
	talk(t, old)
	web := r.spec("web", "127.0.0.1:0")
	web.Pool, web.Config.Pool = other, "green"
	web.Config.Deny = []string{"127.0.0.9"}
	address := r.ln.Addresses()[0]
	r.become(web)
	if got := r.ln.Addresses()[0]; got != address {
		t.Errorf("address: got %s; want the same, %s", got, address)
	}
	wantServed(t, address)
	r.ended(1)
	r.wantClosed(r.dialFrom("127.0.0.9"))
	r.ended(2)
	talk(t, old)
	old.Close()
	records := r.ended(3)
	if got := []*backends.Pool{records[0].Pool, records[1].Pool, records[2].Pool}; got[0] != other || got[1] != nil || got[2] != r.pool {
		t.Errorf("pools: got %v; want green, none as it was refused, and the old one's", got)
	}
	if r.ln.Pool() != other || len(r.ln.Config().Deny) != 1 {
		t.Errorf("listener: got pool %v, deny %v; want the new ones", r.ln.Pool().Name, r.ln.Config().Deny)
	}
	if n := other.Active(); n != 0 {
		t.Errorf("slots of green left: got %d; want 0", n)
	}
}

func TestTransition_LimitsGoOnWhereTheyWere(t *testing.T) {
	r := newRig(t, func(s *setup) {
		s.listener.Rate, s.listener.RateBurst = 0.001, 2
		s.listener.SourceMaxConns = 3
	}, serve(t, unixSocket, echo).address)
	old := r.dial()
	talk(t, old)
	web := r.spec("web", "127.0.0.1:0")
	web.Config.Rate, web.Config.RateBurst = 0.001, 2
	web.Config.SourceMaxConns = 1
	r.become(web) // a change gives no new burst
	r.wantClosed(r.dial())
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedSourceMaxConns: 1})
	old.Close()
	r.ended(2)
	wantServed(t, r.ln.Addresses()[0])
	r.ended(3)
	r.wantClosed(r.dial())
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedSourceMaxConns: 1, proxy.RefusedRate: 1})
	// Sessions that were counted while there was a limit are counted out when there is none.
	web.Config.Rate, web.Config.SourceMaxConns = 0, 2
	r.become(web)
	c := r.dial()
	talk(t, c)
	web.Config.SourceMaxConns = 0
	r.become(web)
	c.Close()
	r.ended(5)
	web.Config.SourceMaxConns = 1
	r.become(web)
	wantServed(t, r.ln.Addresses()[0])
	r.ended(6)
}

func TestTransition_AfterStopIsRefused(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	path := bindAddress(t, unixSocket)
	change, err := r.proxy.Prepare([]proxy.ListenerSpec{r.spec("web", path)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	r.stopped = true
	if _, err := r.proxy.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	change.Commit() // closes what was opened
	wantNobody(t, path)
	if _, err := r.proxy.Prepare(nil, nil); !errors.Is(err, proxy.ErrStopped) {
		t.Errorf("Prepare after Stop: got %v; want ErrStopped", err)
	}
}

// TestTransition_ManyUnderLoad changes names, addresses and settings at random; the address that is always
// among them must serve every connection.
func TestTransition_ManyUnderLoad(t *testing.T) {
	const transitions = 200
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("LB_TEST_SEED"); s != "" {
		fmt.Sscan(s, &seed)
	}
	t.Logf("LB_TEST_SEED=%d", seed)
	random := rand.New(rand.NewPCG(seed, 1))
	stable, others := fixedPort(t), []string{fixedPort(t), bindAddress(t, unixSocket), bindAddress(t, abstractSocket), fixedPort(t)}
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{stable} }, allUnix(t, 2, echo)...)
	var stop atomic.Bool
	var served, strays atomic.Int64
	var running sync.WaitGroup
	for range 4 {
		running.Go(func() {
			for !stop.Load() {
				c := dial(t, stable)
				send(t, c, []byte("word"))
				receive(t, c, "word")
				c.CloseWrite()
				wantEOF(t, c)
				c.Close()
				served.Add(1)
			}
		})
	}
	running.Go(func() { // whoever comes to an address that goes may be too late, but must not be left alone
		for i := 0; !stop.Load(); i++ {
			a, _ := backends.ParseAddress(others[i%len(others)])
			c, err := net.DialTimeout(a.Network(), a.Dial(), ioTimeout)
			if err != nil {
				continue
			}
			c.SetDeadline(time.Now().Add(ioTimeout))
			c.Write([]byte("word"))
			c.(conn).CloseWrite()
			if _, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("a client of %v was left alone", a)
			}
			strays.Add(1)
			c.Close()
		}
	})
	for i := range transitions {
		names := []string{"web", "api", "db"}
		random.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
		specs := []proxy.ListenerSpec{r.spec(names[0], stable)}
		for _, k := range random.Perm(len(others))[:random.IntN(len(others)+1)] {
			if n := random.IntN(len(names)); n < len(specs) {
				specs[n].Config.Bind = append(specs[n].Config.Bind, others[k])
			} else {
				specs = append(specs, r.spec(names[len(specs)], others[k]))
			}
		}
		for k := range specs {
			cfg := &specs[k].Config
			cfg.Backlog = 100 + random.IntN(1000)
			cfg.MaxConns = random.IntN(2) * 1000
			cfg.SourceMaxConns = random.IntN(2) * 1000
			cfg.Rate = float64(random.IntN(2) * 1_000_000)
			if random.IntN(2) == 0 {
				cfg.Deny = []string{"192.0.2.0/24"}
			}
		}
		change, err := r.proxy.Prepare(specs, nil)
		if err != nil {
			t.Errorf("transition %d: %v", i, err)
			break
		}
		if random.IntN(8) == 0 {
			change.Abort()
			continue
		}
		change.Commit()
		var want, got []string
		for _, s := range specs {
			want = append(want, s.Name)
		}
		for _, ln := range r.proxy.Listeners() {
			got = append(got, ln.Name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("listeners after transition %d: got %v; want %v", i, got, want)
		}
	}
	stop.Store(true)
	running.Wait()
	if served.Load() < transitions || strays.Load() == 0 {
		t.Errorf("load: got %d connections, %d to others; want more", served.Load(), strays.Load())
	}
	r.become(r.spec("web", stable))
	wantServed(t, stable)
	eventually(t, "all sessions have ended", func() bool { return r.proxy.Sessions() == 0 })
	for _, rec := range r.ended(0) {
		if !slices.Contains([]string{"--", "CD"}, rec.Termination.String()) {
			t.Errorf("record: got %v at %s; want none but -- and CD", rec.Termination, rec.Listener.Name)
			break
		}
	}
}
