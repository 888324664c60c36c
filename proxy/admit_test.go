package proxy_test

import (
	"net"
	"sync"
	"testing"
	"time"

	"github.com/273ebdf9/lb/proxy"
)

// dialFrom connects a client with an address of 127.0.0.0/8.
func (r *rig) dialFrom(ip string) conn {
	r.Helper()
	d := net.Dialer{Timeout: ioTimeout, LocalAddr: &net.TCPAddr{IP: net.ParseIP(ip)}}
	c, err := d.Dial("tcp", r.ln.Addresses()[0])
	if err != nil {
		r.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(ioTimeout))
	r.Cleanup(func() { c.Close() })
	return c.(conn)
}

// wantRefused compares the listener's counters; reasons that are not named must be 0.
func (r *rig) wantRefused(want map[proxy.Refusal]uint64) {
	r.Helper()
	for why := range r.ln.Refused {
		if got := r.ln.Refused[why].Load(); got != want[proxy.Refusal(why)] {
			r.Errorf("refused for %v: got %d; want %d", proxy.Refusal(why), got, want[proxy.Refusal(why)])
		}
	}
}

// last waits for the end of the n-th session and gives its record, which must have this code.
func (r *rig) last(n int, code string) proxy.Record {
	r.Helper()
	rec := r.ended(n)[n-1]
	if got := rec.Termination.String(); got != code {
		r.Errorf("termination code of session %d: got %s; want %s", n, got, code)
	}
	return rec
}

// wantClosed reads the end of a client that was refused.
func (r *rig) wantClosed(c conn) {
	r.Helper()
	wantEOF(r, c)
	c.Close()
}

func TestListener_AllowAndDeny(t *testing.T) {
	for _, tc := range []struct {
		name        string
		allow, deny []string
		in, out     []string // clients
	}{
		{name: "nothing said", in: []string{"127.0.0.1", "127.9.9.9"}},
		{name: "deny", deny: []string{"127.0.0.2", "127.1.0.0/16"}, in: []string{"127.0.0.1", "127.2.0.1"}, out: []string{"127.0.0.2", "127.1.2.3"}},
		{name: "allow", allow: []string{"127.1.0.0/16"}, in: []string{"127.1.0.1"}, out: []string{"127.0.0.1", "127.2.0.1"}},
		{name: "deny wins", allow: []string{"127.1.1.1"}, deny: []string{"127.1.0.0/16"}, out: []string{"127.1.1.1"}},
		{name: "allow IPv6 alone", allow: []string{"::/0"}, out: []string{"127.0.0.1"}},
		{name: "allow Unix alone", allow: []string{"unix:"}, out: []string{"127.0.0.1"}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := serve(t, unixSocket, echo)
			r := newRig(t, func(cfg *setup) { cfg.listener.Allow, cfg.listener.Deny = tc.allow, tc.deny }, s.address)
			n := 0
			for _, ip := range tc.in {
				c := r.dialFrom(ip)
				talk(t, c)
				c.Close()
				n++
				r.last(n, "--")
			}
			for _, ip := range tc.out {
				r.wantClosed(r.dialFrom(ip))
				n++
				if rec := r.last(n, "PR"); rec.Pool != nil || rec.Backend != nil || rec.Client.Addr().String() != ip {
					t.Errorf("record: got pool %v, backend %v, client %v; want none, none, %s", rec.Pool, rec.Backend, rec.Client, ip)
				}
			}
			r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedDeny: uint64(len(tc.out))})
			if got := s.served.Load(); got != int64(len(tc.in)) {
				t.Errorf("connections to the backend: got %d; want %d", got, len(tc.in))
			}
		})
	}
}

func TestListener_AllowAndDenyOfUnixClients(t *testing.T) {
	for _, tc := range []struct {
		name        string
		allow, deny []string
		in          bool
	}{
		{"nothing said", nil, nil, true},
		{"allow unix:", []string{"192.0.2.0/24", "unix:"}, nil, true},
		{"allow others", []string{"0.0.0.0/0", "::/0"}, nil, false},
		{"deny unix:", nil, []string{"unix:"}, false},
		{"deny others", nil, []string{"0.0.0.0/0", "::/0"}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, func(cfg *setup) {
				cfg.listener.Bind = []string{bindAddress(t, unixSocket)}
				cfg.listener.Allow, cfg.listener.Deny = tc.allow, tc.deny
			}, serve(t, unixSocket, echo).address)
			c := r.dial()
			if tc.in {
				talk(t, c)
				c.Close()
				r.last(1, "--")
				r.wantRefused(nil)
			} else {
				wantEOF(t, c)
				r.last(1, "PR")
				r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedDeny: 1})
			}
		})
	}
}

func TestListener_MaxConns(t *testing.T) {
	r := newRig(t, func(cfg *setup) { cfg.listener.MaxConns = 3 }, serve(t, unixSocket, echo).address)
	var open []conn
	fill := func(n int) {
		for len(open) < n {
			c := r.dial()
			talk(t, c)
			open = append(open, c)
		}
	}
	ended := 0
	for range 10 { // a place that is free is free once
		fill(3)
		r.wantClosed(r.dial())
		r.last(ended+1, "PR")
		open[0].Close()
		open = open[1:]
		r.last(ended+2, "--")
		ended += 2
	}
	if got := r.ln.MaxConns(); got != 3 {
		t.Errorf("MaxConns: got %d; want 3", got)
	}
	r.ln.SetMaxConns(5)
	fill(5)
	r.wantClosed(r.dial())
	r.ln.SetMaxConns(0)
	fill(20)
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedMaxConns: 11})
	if n := r.ln.Active(); n != 20 {
		t.Errorf("active: got %d; want 20", n)
	}
}

func TestListener_MaxConnsHoldsInABurst(t *testing.T) {
	const limit, clients = 20, 200
	r := newRig(t, func(cfg *setup) { cfg.listener.MaxConns = limit }, serve(t, unixSocket, silent).address)
	conns := make([]conn, clients)
	release := r.proxy.HoldLoops() // so that they come all at once
	for i := range conns {
		conns[i] = r.dial()
	}
	release()
	eventually(t, "all were let in or refused", func() bool {
		return r.ln.Active() <= limit && r.ln.Refused[proxy.RefusedMaxConns].Load()+uint64(r.ln.Active()) == clients
	})
	// Two loops that look at the same moment may both step back.
	if n := r.pool.Active(); n > limit || n < limit-2 {
		t.Errorf("sessions: got %d; want %d", n, limit)
	}
	for _, c := range conns {
		c.Close()
	}
	r.ended(clients)
}

func TestListener_Rate(t *testing.T) {
	t.Parallel()
	s := serve(t, unixSocket, echo)
	r := newRig(t, func(cfg *setup) { cfg.listener.Rate, cfg.listener.RateBurst = 0.001, 5 }, s.address)
	for i := range 5 {
		c := r.dial()
		talk(t, c)
		c.Close()
		r.last(i+1, "--")
	}
	for i := range 5 {
		r.wantClosed(r.dial())
		r.last(6+i, "PR")
	}
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedRate: 5})
	if got := s.served.Load(); got != 5 {
		t.Errorf("connections to the backend: got %d; want 5", got)
	}
}

func TestListener_RateLetsInAgainInTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(cfg *setup) { cfg.listener.Rate, cfg.listener.RateBurst = 10, 1 }, serve(t, unixSocket, echo).address)
	start, in := time.Now(), 0
	for in < 4 {
		c := r.dial()
		c.Write([]byte("x"))
		var b [1]byte
		if n, _ := c.Read(b[:]); n == 1 {
			in++
		}
		c.Close()
	}
	if d := time.Since(start); d < 300*time.Millisecond-proxy.TimeoutPrecision {
		t.Errorf("time of 4 connections at 10 a second: got %v; want 300ms at least", d)
	}
}

func TestListener_SourceMaxConns(t *testing.T) {
	r := newRig(t, func(cfg *setup) { cfg.listener.SourceMaxConns = 2 }, serve(t, unixSocket, echo).address)
	ended := 0
	open := map[string][]conn{}
	ips := []string{"127.0.0.1", "127.0.0.2", "127.0.0.3"}
	for range 10 { // what a source has given back it has once
		for _, ip := range ips {
			for len(open[ip]) < 2 {
				c := r.dialFrom(ip)
				talk(t, c)
				open[ip] = append(open[ip], c)
			}
			r.wantClosed(r.dialFrom(ip))
			ended++
			r.last(ended, "PR")
		}
		for _, ip := range ips {
			open[ip][0].Close()
			open[ip] = open[ip][1:]
			ended++
			r.last(ended, "--")
		}
	}
	if n := r.ln.LiveSources(); n != len(ips) {
		t.Errorf("sources with connections: got %d; want %d", n, len(ips))
	}
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedSourceMaxConns: 30})
	for _, ip := range ips {
		open[ip][0].Close()
	}
	r.ended(ended + len(ips))
	if n := r.ln.LiveSources(); n != 0 {
		t.Errorf("sources with connections at the end: got %d; want 0", n)
	}
}

func TestListener_SourceRate(t *testing.T) {
	r := newRig(t, func(cfg *setup) { cfg.listener.SourceRate, cfg.listener.SourceBurst = 0.001, 2 }, serve(t, unixSocket, echo).address)
	n := 0
	for _, ip := range []string{"127.0.0.1", "127.0.0.2"} {
		for range 2 {
			c := r.dialFrom(ip)
			talk(t, c)
			c.Close()
			n++
			r.last(n, "--")
		}
		for range 3 {
			r.wantClosed(r.dialFrom(ip))
			n++
			r.last(n, "PR")
		}
	}
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedSourceRate: 6})
}

func TestListener_UnixClientsHaveNoSource(t *testing.T) {
	r := newRig(t, func(cfg *setup) {
		cfg.listener.Bind = []string{bindAddress(t, unixSocket)}
		cfg.listener.SourceMaxConns, cfg.listener.SourceRate = 1, 0.001
	}, serve(t, unixSocket, echo).address)
	for range 5 {
		talk(t, r.dial())
	}
	r.wantRefused(nil)
}

// TestListener_RefusedGivesBackWhatItHad lets each limit refuse a connection that those before it have let
// in.
func TestListener_RefusedGivesBackWhatItHad(t *testing.T) {
	r := newRig(t, func(cfg *setup) {
		cfg.listener.SourceMaxConns = 1
		cfg.listener.Rate, cfg.listener.RateBurst = 0.001, 1
		cfg.listener.MaxConns = 1
	}, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	r.wantClosed(r.dial())
	c.Close()
	r.ended(2)
	for range 5 {
		r.wantClosed(r.dial())
	}
	r.ended(7)
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedMaxConns: 1, proxy.RefusedRate: 5})
	if n, m := r.ln.LiveSources(), r.ln.Active(); n != 0 || m != 0 {
		t.Errorf("left: got %d sources, %d sessions; want none", n, m)
	}
}

// TestListener_SourcesUnderLoadAreReleasedOnce has clients come and go by every way out at once.
func TestListener_SourcesUnderLoadAreReleasedOnce(t *testing.T) {
	r := newRig(t, func(cfg *setup) {
		cfg.listener.SourceMaxConns = 3
		cfg.pool.MaxConns = 2
		cfg.pool.QueueSize = 2
		cfg.pool.QueueTimeout = 10 * time.Millisecond
	}, allUnix(t, 2, echo)...)
	var running sync.WaitGroup
	for k := range 8 {
		running.Go(func() {
			for i := range 40 {
				c := r.dialFrom([]string{"127.0.0.1", "127.0.0.2"}[k%2])
				c.Write([]byte("x"))
				switch i % 3 {
				case 0:
					reset(c)
				case 1:
					c.CloseWrite()
					c.Read(make([]byte, 10))
					c.Close()
				default:
					c.Close()
				}
			}
		})
	}
	running.Wait()
	records := r.ended(8 * 40)
	if n := r.ln.LiveSources(); n != 0 {
		t.Errorf("sources with connections: got %d; want 0", n)
	}
	refused := 0
	for _, rec := range records {
		if rec.Termination.String() == "PR" {
			refused++
		}
	}
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedSourceMaxConns: uint64(refused)})
}
