package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/proxy"
)

// ioTimeout ends a test whose bytes do not come.
const ioTimeout = time.Minute

// setup is what a rig is made of.
type setup struct {
	proxy    proxy.Config
	pool     backends.Config
	listener proxy.ListenerConfig
	weights  []int                                         // by backend; 100 where there is none
	prepare  func(*proxy.Proxy)                            // before Start
	onRecord func(*proxy.Record)                           // on a loop
	onFailed func(backends.ConnectError, uint32)           // on a loop
	onPool   func(*backends.Pool)                          // before Start
	policy   func() backends.Policy                        // of the pool; balancer.LeastConn where nil
	health   func(i int, addr string) backends.HealthState // up where nil
}

// rig is a proxy of two loops with one listener and one pool. At the end of its test it is stopped, and no
// slot, session or pipe may be left; TestMain looks for descriptors, as tests run at the same time.
type rig struct {
	testing.TB
	setup *setup
	proxy *proxy.Proxy
	pool  *backends.Pool
	ln    *proxy.Listener

	frozen  *proxy.Frozen // by the last handOver
	handing sync.RWMutex  // held by handOver, which replaces the proxy, the pool and the listener
	mu      sync.Mutex
	records []proxy.Record // guarded by mu
	stopped bool
}

// newRig makes a rig that balances over the addresses.
func newRig(t testing.TB, change func(*setup), addresses ...string) *rig {
	t.Helper()
	cfg := &setup{proxy: proxy.DefaultConfig(), pool: backends.DefaultConfig(), listener: proxy.DefaultListenerConfig()}
	cfg.proxy.Loops = 2
	cfg.listener.Bind = []string{"127.0.0.1:0"}
	cfg.listener.Pool = "pool"
	if change != nil {
		change(cfg)
	}
	r := &rig{TB: t, setup: cfg, pool: newPool(cfg)}
	for i, address := range addresses {
		b := backends.DefaultBackendConfig()
		b.Name, b.Address = fmt.Sprintf("b%d", i), address
		if i < len(cfg.weights) {
			b.Weight = cfg.weights[i]
		}
		health := backends.HealthUp
		if cfg.health != nil {
			health = cfg.health(i, address)
		}
		if _, err := r.pool.Add(b, health); err != nil {
			t.Fatal(err)
		}
	}
	if cfg.onPool != nil {
		cfg.onPool(r.pool)
	}
	r.proxy = r.newProxy()
	r.proxy.Start()
	t.Cleanup(func() { r.check() })
	var err error
	if r.ln, err = listen(r.proxy, "web", cfg.listener, r.pool); err != nil {
		t.Fatal(err)
	}
	return r
}

// listen opens one listener more.
func listen(p *proxy.Proxy, name string, cfg proxy.ListenerConfig, pool *backends.Pool) (*proxy.Listener, error) {
	var specs []proxy.ListenerSpec
	for _, ln := range p.Listeners() {
		specs = append(specs, proxy.ListenerSpec{Name: ln.Name, Config: *ln.Config(), Pool: ln.Pool(), Split: ln.Split()})
	}
	change, err := p.Prepare(append(specs, proxy.ListenerSpec{Name: name, Config: cfg, Pool: pool}), nil)
	if err != nil {
		return nil, err
	}
	change.Commit()
	all := p.Listeners()
	return all[len(all)-1], nil
}

func newPool(cfg *setup) *backends.Pool {
	if cfg.policy != nil {
		return backends.NewPool("pool", cfg.pool, cfg.policy())
	}
	return backends.NewPool("pool", cfg.pool, new(balancer.LeastConn))
}

// newProxy makes a proxy that tells the rig of its sessions.
func (r *rig) newProxy() *proxy.Proxy {
	r.Helper()
	cfg := r.setup
	if *batching == proxy.BatchingOff {
		cfg.proxy.Batching = proxy.BatchingOff
	}
	p, err := proxy.New(cfg.proxy)
	if err != nil {
		r.Fatal(err)
	}
	p.BatchAll()
	p.OnSession = func(rec *proxy.Record) {
		r.mu.Lock()
		r.records = append(r.records, *rec)
		r.mu.Unlock()
		if cfg.onRecord != nil {
			cfg.onRecord(rec)
		}
	}
	p.OnConnectFailure = func(_ *backends.Backend, why backends.ConnectError, streak uint32) {
		if cfg.onFailed != nil {
			cfg.onFailed(why, streak)
		}
	}
	if cfg.prepare != nil {
		cfg.prepare(p)
	}
	return p
}

// check stops the proxy and looks for what it has left behind.
func (r *rig) check() {
	r.Helper()
	if !r.stopped {
		ctx, cancel := context.WithTimeout(context.Background(), ioTimeout)
		defer cancel()
		killed, err := r.proxy.Stop(ctx)
		if err != nil {
			r.Errorf("Stop: %v", err)
		}
		if killed != 0 {
			r.Errorf("sessions that did not end: got %d; want 0", killed)
		}
	}
	for _, b := range r.pool.Backends() {
		if n := b.Active(); n != 0 {
			r.Errorf("slots of %s left: got %d; want 0", b.Name, n)
		}
	}
	if n := r.ln.Active(); n != 0 {
		r.Errorf("sessions of the listener left: got %d; want 0", n)
	}
	if n := r.proxy.Sessions(); n != 0 {
		r.Errorf("sessions of the proxy left: got %d; want 0", n)
	}
	if n := r.proxy.Stats.Pipes.Load(); n != 0 {
		r.Errorf("pipes left: got %d; want 0", n)
	}
}

// ended waits until n sessions have ended and gives their records, in the order of their ends.
func (r *rig) ended(n int) []proxy.Record {
	r.Helper()
	eventually(r, fmt.Sprintf("%d sessions have ended", n), func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.records) >= n
	})
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.records)
}

// recordOf waits until n sessions have ended and gives the record of c's: two loops tell of theirs in any
// order.
func (r *rig) recordOf(n int, c conn) proxy.Record {
	r.Helper()
	for _, rec := range r.ended(n) {
		if rec.Client.String() == c.LocalAddr().String() {
			return rec
		}
	}
	r.Fatalf("no record of client %v", c.LocalAddr())
	return proxy.Record{}
}

// wantTermination waits for the end of the only session and compares its code.
func (r *rig) wantTermination(want string) proxy.Record {
	r.Helper()
	rec := r.ended(1)[0]
	if got := rec.Termination.String(); got != want {
		r.Errorf("termination code: got %s; want %s", got, want)
	}
	return rec
}

// conn is a stream whose directions end one by one.
type conn interface {
	net.Conn
	CloseWrite() error
	SyscallConn() (syscall.RawConn, error)
}

// dial connects a client to the rig's listener.
func (r *rig) dial() conn {
	r.Helper()
	return dial(r, r.ln.Addresses()[0])
}

// dial connects to an address as backends has it.
func dial(t testing.TB, address string) conn {
	t.Helper()
	a, err := backends.ParseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.DialTimeout(a.Network(), a.Dial(), ioTimeout)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(ioTimeout))
	t.Cleanup(func() { c.Close() })
	return c.(conn)
}

// server is a backend in this process.
type server struct {
	address string
	served  atomic.Int64 // connections accepted
}

// kinds of sockets.
const (
	unixSocket     = "unix"
	abstractSocket = "abstract"
	tcpSocket      = "tcp"
	tcp6Socket     = "tcp6"
)

var numbered atomic.Int64

// bindAddress is a free address of a kind, to listen on.
func bindAddress(t testing.TB, kind string) string {
	t.Helper()
	switch kind {
	case unixSocket:
		dir, err := os.MkdirTemp("", "proxy-test-") // t.TempDir is too long for sun_path
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { os.RemoveAll(dir) })
		return "unix:" + filepath.Join(dir, "s")
	case abstractSocket:
		return fmt.Sprintf("unix:@lb-test-%d-%d", os.Getpid(), numbered.Add(1))
	case tcp6Socket:
		return "[::1]:0"
	}
	return "127.0.0.1:0"
}

// serve runs a backend that gives each connection to handle and closes it when handle returns.
func serve(t testing.TB, kind string, handle func(conn)) *server {
	t.Helper()
	a, err := backends.ParseAddress(bindAddress(t, kind))
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen(a.Network(), a.Dial())
	if err != nil {
		t.Fatal(err)
	}
	s := &server{address: a.String()}
	if !a.IsUnix() {
		s.address = ln.Addr().String()
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil { // a test that takes all descriptors
				continue
			}
			s.served.Add(1)
			running.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(ioTimeout))
				handle(c.(conn))
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		running.Wait()
	})
	return s
}

// echo sends back what it reads.
func echo(c conn) {
	io.Copy(c, struct{ io.Reader }{c}) // plain reads and writes, no splice
	c.CloseWrite()
}

// await gives what comes from a channel, within a time that no good test needs.
func await[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(ioTimeout + 2*time.Second):
		t.Fatalf("%s: nothing after %v", what, ioTimeout)
	}
	return v
}

// failIf reports an error from any goroutine and says whether there was one.
func failIf(t testing.TB, err error, format string, args ...any) bool {
	t.Helper()
	if err != nil {
		t.Errorf(format+": %v", append(args, err)...)
	}
	return err != nil
}

// send writes all of b.
func send(t testing.TB, c conn, b []byte) {
	t.Helper()
	if _, err := c.Write(b); err != nil {
		t.Errorf("write: %v", err)
	}
}

// receive reads exactly want.
func receive(t testing.TB, c conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	n, err := io.ReadFull(c, got)
	if string(got[:n]) != want {
		t.Errorf("read: got %q, %v; want %q", got[:n], err, want)
	}
}

// wantEOF reads the end of the stream.
func wantEOF(t testing.TB, c conn) {
	t.Helper()
	var b [1]byte
	if n, err := c.Read(b[:]); err != io.EOF {
		t.Errorf("read at the end: got %d bytes, %v; want EOF", n, err)
	}
}

// wantReset reads the error of a reset connection.
func wantReset(t testing.TB, c conn) {
	t.Helper()
	var b [1]byte
	if n, err := c.Read(b[:]); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("read at the end: got %d bytes, %v; want ECONNRESET", n, err)
	}
}

// reset closes a TCP connection with RST.
func reset(c conn) {
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
}
