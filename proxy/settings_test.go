package proxy_test

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/proxy"
)

// splitRig is a rig whose listener spreads over the pools blue and green.
func splitRig(t *testing.T, blue, green int, byClient bool) (*rig, *backends.Split) {
	t.Helper()
	r := newRig(t, nil)
	pools := map[string]*backends.Pool{}
	for _, name := range []string{"blue", "green"} {
		pools[name] = backends.NewPool(name, backends.DefaultConfig(), new(balancer.LeastConn))
		b := backends.DefaultBackendConfig()
		b.Name, b.Address = name, serve(t, unixSocket, echo).address
		if _, err := pools[name].Add(b, backends.HealthUp); err != nil {
			t.Fatal(err)
		}
	}
	split, err := backends.NewSplit(map[string]int{"blue": blue, "green": green}, byClient, func(name string) *backends.Pool { return pools[name] })
	if err != nil {
		t.Fatal(err)
	}
	web := r.spec("web", "127.0.0.1:0")
	web.Pool, web.Split, web.Config.Pool = nil, split, ""
	r.become(web)
	t.Cleanup(func() {
		for name, p := range pools {
			if n := p.Active(); n != 0 {
				t.Errorf("slots of %s left: got %d; want 0", name, n)
			}
		}
	})
	return r, split
}

// shares counts records by pool.
func shares(records []proxy.Record) map[string]int {
	n := map[string]int{}
	for _, rec := range records {
		n[rec.Pool.Name]++
	}
	return n
}

func TestSplit_IsExactOverAThousandConnections(t *testing.T) {
	r, split := splitRig(t, 90, 10, false)
	if r.ln.Split() != split || r.ln.Pool() != nil {
		t.Errorf("listener: got pool %v, split %v; want the split alone", r.ln.Pool(), r.ln.Split())
	}
	thousand := func() {
		var running sync.WaitGroup
		for range 4 {
			running.Go(func() {
				for range 250 {
					c := r.dial()
					c.CloseWrite()
					wantEOF(t, c)
					c.Close()
				}
			})
		}
		running.Wait()
	}
	thousand()
	if n := shares(r.ended(1000)); n["blue"] != 900 || n["green"] != 100 {
		t.Errorf("connections by pool: got %v; want 900 and 100", n)
	}
	if err := split.SetWeights(map[string]int{"blue": 1, "green": 3}); err != nil {
		t.Fatal(err)
	}
	thousand()
	if n := shares(r.ended(2000)[1000:]); n["blue"] != 250 || n["green"] != 750 {
		t.Errorf("connections by pool after the change: got %v; want 250 and 750", n)
	}
}

func TestSplit_ByClientKeepsAClientWithItsSide(t *testing.T) {
	r, split := splitRig(t, 50, 50, true)
	const clients, times = 64, 3
	visit := func() (side map[string]string) {
		side = map[string]string{}
		before := len(r.ended(0))
		for range times {
			for i := range clients {
				c := r.dialFrom(fmt.Sprintf("127.0.%d.%d", i/8, i+1))
				c.CloseWrite()
				wantEOF(t, c)
				c.Close()
			}
		}
		for _, rec := range r.ended(before + times*clients)[before:] {
			ip := rec.Client.Addr().String()
			if was, ok := side[ip]; ok && was != rec.Pool.Name {
				t.Errorf("client %s: got %s after %s; want the same side", ip, rec.Pool.Name, was)
			}
			side[ip] = rec.Pool.Name
		}
		return side
	}
	first := visit()
	n := map[string]int{}
	for _, pool := range first {
		n[pool]++
	}
	if n["blue"] < clients/4 || n["green"] < clients/4 {
		t.Errorf("clients by side: got %v; want about half each", n)
	}
	if err := split.SetWeights(map[string]int{"blue": 75, "green": 25}); err != nil {
		t.Fatal(err)
	}
	for ip, pool := range visit() {
		if first[ip] == "blue" && pool != "blue" {
			t.Errorf("client %s left the side that has got more", ip)
		}
	}
}

func TestSession_MaxAgeEndsItWhateverItDoes(t *testing.T) {
	t.Parallel()
	const age = 100 * time.Millisecond
	for _, busy := range []bool{false, true} {
		t.Run(fmt.Sprintf("busy %v", busy), func(t *testing.T) {
			r := newRig(t, func(s *setup) { s.pool.MaxSessionAge = age }, serve(t, unixSocket, echo).address)
			c := r.dial()
			var err error
			for err == nil {
				if busy {
					_, err = c.Write([]byte("x"))
				}
				if err == nil {
					_, err = c.Read(make([]byte, 1))
				}
			}
			rec := r.wantTermination("PD")
			if d := rec.SessionTime; d < age*9/10 || d > age*11/10+10*proxy.TimeoutPrecision {
				t.Errorf("age at the end: got %v; want %v, a tenth more or less", d, age)
			}
		})
	}
}

func TestSession_MaxAgeIsSpread(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *setup) { s.pool.MaxSessionAge = 500 * time.Millisecond }, serve(t, unixSocket, silent).address)
	hold(t, r, 40)
	least, most := time.Hour, time.Duration(0)
	for _, rec := range r.ended(40) {
		if rec.Termination.String() != "PD" {
			t.Errorf("termination code: got %v; want PD", rec.Termination)
		}
		least, most = min(least, rec.SessionTime), max(most, rec.SessionTime)
	}
	if least < 450*time.Millisecond || most-least < 30*time.Millisecond {
		t.Errorf("ages: got %v to %v; want them spread from 450ms to 550ms", least, most)
	}
}

// tcpOptions are what the kernel says of a socket.
func tcpOptions(t testing.TB, fd int) (cfg backends.TCPConfig, nodelay int) {
	t.Helper()
	get := func(level, option int) int {
		v, err := unix.GetsockoptInt(fd, level, option)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if get(unix.SOL_SOCKET, unix.SO_KEEPALIVE) != 0 {
		cfg.Keepalive = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)) * time.Second
		cfg.KeepaliveInterval = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_KEEPINTVL)) * time.Second
		cfg.KeepaliveCount = get(unix.IPPROTO_TCP, unix.TCP_KEEPCNT)
	}
	cfg.TCPUserTimeout = time.Duration(get(unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)) * time.Millisecond
	return cfg, get(unix.IPPROTO_TCP, unix.TCP_NODELAY)
}

func TestTCP_OptionsHoldOnBothSides(t *testing.T) {
	off := backends.TCPConfig{KeepaliveInterval: time.Second, KeepaliveCount: 1}
	for name, cfg := range map[string]struct{ client, backend backends.TCPConfig }{
		"defaults": {backends.DefaultTCPConfig(), backends.DefaultTCPConfig()},
		"off":      {off, off},
		"each its own": {
			backends.TCPConfig{Keepalive: 11 * time.Second, KeepaliveInterval: 12 * time.Second, KeepaliveCount: 13, TCPUserTimeout: 14 * time.Second},
			backends.TCPConfig{Keepalive: 21 * time.Second, KeepaliveInterval: 22 * time.Second, KeepaliveCount: 23, TCPUserTimeout: 2400 * time.Millisecond},
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(s *setup) {
				s.listener.TCPConfig, s.pool.TCPConfig = cfg.client, cfg.backend
			}, serve(t, tcpSocket, echo).address)
			c := r.dial()
			talk(t, c)
			want := []backends.TCPConfig{cfg.client, cfg.backend}
			for i, fd := range r.proxy.SessionFDs()[0] {
				if want[i].Keepalive == 0 {
					want[i].KeepaliveInterval, want[i].KeepaliveCount = 0, 0
				}
				if got, nodelay := tcpOptions(t, fd); got != want[i] || nodelay == 0 {
					t.Errorf("options of end %d: got %+v, nodelay %d; want %+v, 1", i, got, nodelay, want[i])
				}
			}
			c.Close()
			r.ended(1)
		})
	}
}

func TestTCP_ChangedOptionsHoldForNewConnections(t *testing.T) {
	r := newRig(t, nil, serve(t, tcpSocket, echo).address)
	old := r.dial()
	talk(t, old)
	web := r.spec("web", "127.0.0.1:0")
	web.Config.Keepalive, web.Config.TCPUserTimeout = 33*time.Second, 44*time.Second
	r.become(web)
	pool := *r.pool.Config()
	pool.Keepalive = 55 * time.Second
	b := r.pool.Backends()[0]
	r.pool.ReplaceMembers(pool, nil, []backends.Member{{Backend: b, Config: backends.BackendConfig{Name: b.Name, Address: b.Address.String(), Weight: b.Weight()}}}, "test")
	fresh := r.dial()
	talk(t, fresh)
	for _, s := range r.proxy.SessionFDs() {
		peer, err := unix.Getpeername(s[0])
		if err != nil {
			t.Fatal(err)
		}
		want := [2]time.Duration{75 * time.Second, 75 * time.Second}
		if peer.(*unix.SockaddrInet4).Port == fresh.LocalAddr().(*net.TCPAddr).Port {
			want = [2]time.Duration{33 * time.Second, 55 * time.Second}
		}
		for i, fd := range s {
			if got, _ := tcpOptions(t, fd); got.Keepalive != want[i] {
				t.Errorf("keepalive of end %d: got %v; want %v", i, got.Keepalive, want[i])
			}
		}
	}
	old.Close()
	fresh.Close()
	r.ended(2)
}
