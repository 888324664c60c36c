package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/proxy"
)

// listenOn opens a second listener of the rig.
func (r *rig) listenOn(change func(*proxy.ListenerConfig), bind ...string) (*proxy.Listener, error) {
	cfg := proxy.DefaultListenerConfig()
	cfg.Bind, cfg.Pool = bind, "pool"
	if change != nil {
		change(&cfg)
	}
	return listen(r.proxy, "second", cfg, r.pool)
}

// socketFile gives the path of an address.
func socketFile(address string) string { return strings.TrimPrefix(address, "unix:") }

func TestListen_SocketFileOfADeadProcessIsReplaced(t *testing.T) {
	address := bindAddress(t, unixSocket)
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: socketFile(address)})
	if err != nil {
		t.Fatal(err)
	}
	dead.SetUnlinkOnClose(false)
	dead.Close()
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{address} }, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	c.Close()
	r.ended(1)
}

func TestListen_SocketFileOfALivingProcessIsNotTaken(t *testing.T) {
	other := serve(t, unixSocket, echo)
	r := newRig(t, nil)
	if _, err := r.listenOn(nil, other.address); err == nil || !strings.Contains(err.Error(), "another process") {
		t.Errorf("Listen: got %v; want an error that says who is there", err)
	}
	c := dial(t, other.address)
	talk(t, c)
	c.Close()
}

func TestListen_FileOfAnotherKindIsNotRemoved(t *testing.T) {
	address := bindAddress(t, unixSocket)
	if err := os.WriteFile(socketFile(address), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, nil)
	if _, err := r.listenOn(nil, address); err == nil || !strings.Contains(err.Error(), "file of another kind") {
		t.Errorf("Listen: got %v; want an error that says what is there", err)
	}
	if b, err := os.ReadFile(socketFile(address)); string(b) != "precious" {
		t.Errorf("the file afterwards: got %q, %v; want it untouched", b, err)
	}
}

func TestListen_SocketFileHasTheMode(t *testing.T) {
	address := bindAddress(t, unixSocket)
	newRig(t, func(s *setup) {
		s.listener.Bind = []string{address}
		s.listener.UnixMode = "0640"
	})
	st, err := os.Stat(socketFile(address))
	if err != nil {
		t.Fatal(err)
	}
	if got := st.Mode().Perm(); got != 0o640 {
		t.Errorf("mode: got %o; want 640", got)
	}
}

func TestListen_FaultsSayWhatIsWrongAndLeaveNothing(t *testing.T) {
	taken := serve(t, tcpSocket, echo)
	r := newRig(t, nil)
	for bind, want := range map[string]error{
		taken.address:  unix.EADDRINUSE,
		"192.0.2.1:80": unix.EADDRNOTAVAIL, // no host has it (RFC 5737)
	} {
		// The first bind of the two is fine, and must be closed again.
		_, err := r.listenOn(nil, "127.0.0.1:0", bind)
		if !errors.Is(err, want) || !strings.Contains(err.Error(), fmt.Sprintf("%q", bind)) || !strings.Contains(err.Error(), `"second"`) {
			t.Errorf("Listen on %s: got %v; want %v, with the address and the listener", bind, err, want)
		}
	}
	if n := len(r.proxy.Listeners()); n != 1 {
		t.Errorf("listeners: got %d; want 1", n)
	}
}

func TestListen_EveryAddressTakesIPv4AndIPv6(t *testing.T) {
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{":0"} }, serve(t, unixSocket, echo).address)
	_, port, err := net.SplitHostPort(r.ln.Addresses()[0])
	if err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{"127.0.0.1", "::1"} {
		c := dial(t, net.JoinHostPort(host, port))
		talk(t, c)
		c.Close()
		if rec := r.recordOf(1, c); rec.Client.Addr().String() != host {
			t.Errorf("client: got %v; want %s, and no mapped form", rec.Client, host)
		}
		r.mu.Lock()
		r.records = nil
		r.mu.Unlock()
	}
}

func TestListen_AllBindsServe(t *testing.T) {
	r := newRig(t, func(s *setup) {
		s.listener.Bind = []string{"127.0.0.1:0", "[::1]:0", bindAddress(t, unixSocket), bindAddress(t, abstractSocket)}
	}, serve(t, unixSocket, echo).address)
	addresses := r.ln.Addresses()
	if len(addresses) != 4 {
		t.Fatalf("addresses: got %v; want four", addresses)
	}
	for _, address := range addresses {
		c := dial(t, address)
		talk(t, c)
		c.Close()
	}
	r.ended(4)
}

func TestConfig_Faults(t *testing.T) {
	cfg := proxy.DefaultConfig()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*proxy.Config){
		"loops: -1 is not within 0..1024":   func(c *proxy.Config) { c.Loops = -1 },
		"loops: 1025 is not within 0..1024": func(c *proxy.Config) { c.Loops = 1025 },
		"max_sessions: -1 is negative":      func(c *proxy.Config) { c.MaxSessions = -1 },
		"stop_timeout: 30ns is below 1ms":   func(c *proxy.Config) { c.StopTimeout = 30 },
	} {
		cfg := proxy.DefaultConfig()
		spoil(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v; want %q", err, want)
		}
	}
}

func TestListenerConfig_Faults(t *testing.T) {
	valid := func() proxy.ListenerConfig {
		cfg := proxy.DefaultListenerConfig()
		cfg.Bind, cfg.Pool = []string{"127.0.0.1:80"}, "app"
		return cfg
	}
	cfg := valid()
	if err := cfg.Validate(); err != nil {
		t.Error(err)
	}
	for want, spoil := range map[string]func(*proxy.ListenerConfig){
		"bind: missing":                func(c *proxy.ListenerConfig) { c.Bind = nil },
		`bind[1]: cannot parse`:        func(c *proxy.ListenerConfig) { c.Bind = append(c.Bind, "x") },
		"pool: missing":                func(c *proxy.ListenerConfig) { c.Pool = "" },
		"backlog: 0 is not a positive": func(c *proxy.ListenerConfig) { c.Backlog = 0 },
		`unix_mode: "rw" is not`:       func(c *proxy.ListenerConfig) { c.UnixMode = "rw" },
		`unix_mode: "1777" is not`:     func(c *proxy.ListenerConfig) { c.UnixMode = "1777" },
		"keepalive: 1ns is not within": func(c *proxy.ListenerConfig) { c.Keepalive = 1 },
	} {
		cfg := valid()
		spoil(&cfg)
		if err := cfg.Validate(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("got %v; want %q", err, want)
		}
	}
}

func TestNew_MoreSessionsThanDescriptorsIsAnError(t *testing.T) {
	cfg := proxy.DefaultConfig()
	cfg.MaxSessions = 1 << 30
	before := len(openFDs())
	if _, err := proxy.New(cfg); err == nil || !strings.Contains(err.Error(), "proxy.max_sessions") {
		t.Errorf("New: got %v; want an error that names the key", err)
	}
	if n := len(openFDs()); n != before {
		t.Errorf("descriptors: got %d; want %d", n, before)
	}
}

// A proxy with one listener and one backend: what lb is made of.
func Example() {
	backend, err := net.Listen("unix", "@lb-example")
	if err != nil {
		panic(err)
	}
	defer backend.Close()
	go func() {
		c, err := backend.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, "hello from the backend\n")
		c.Close()
	}()

	pool := backends.NewPool("app", backends.DefaultConfig(), new(balancer.LeastConn))
	b := backends.DefaultBackendConfig()
	b.Address = "unix:@lb-example"
	if _, err := pool.Add(b, backends.HealthUp); err != nil {
		panic(err)
	}
	p, err := proxy.New(proxy.DefaultConfig())
	if err != nil {
		panic(err)
	}
	p.OnSession = func(rec *proxy.Record) {
		fmt.Println("session ended:", rec.Termination, rec.BytesOut, "bytes to the client")
	}
	p.Start()
	cfg := proxy.DefaultListenerConfig()
	cfg.Bind, cfg.Pool = []string{"127.0.0.1:0"}, "app"
	ln, err := listen(p, "web", cfg, pool)
	if err != nil {
		panic(err)
	}

	c, err := net.Dial("tcp", ln.Addresses()[0])
	if err != nil {
		panic(err)
	}
	answer, _ := io.ReadAll(c)
	c.Close()
	p.Stop(context.Background()) // waits for the sessions
	fmt.Printf("%s", answer)
	// Output:
	// session ended: -- 23 bytes to the client
	// hello from the backend
}
