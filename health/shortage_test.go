package health

import (
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
	"golang.org/x/sys/unix"
)

// What lb itself is out of says nothing of the backend, wherever in a probe it shows.
func TestProbe_OwnShortageIsInconclusive(t *testing.T) {
	var p plan
	for _, errno := range []unix.Errno{unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.EADDRNOTAVAIL, unix.ENOSPC} {
		err := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", errno)}
		for where, got := range map[string]result{"connecting": p.connectFault(err), "reading": p.exchangeFault(err, "a reply", nil)} {
			if got.outcome != Inconclusive || !got.shortage || !strings.HasPrefix(got.reason, "lb cannot probe it: "+errno.Error()) {
				t.Errorf("%v while %s: got %+v; want inconclusive, as lb is out of something", errno, where, got)
			}
		}
	}
	if got := p.connectFault(os.NewSyscallError("connect", unix.ECONNREFUSED)); got.outcome != Failure || got.shortage {
		t.Errorf("a refusal: got %+v; want a failure", got)
	}
}

// A process without descriptors left cannot probe. That is told once, and once when it can again.
func TestChecker_ShortageIsAnEventAndNoChangeOfHealth(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.run()
		at(1500 * time.Millisecond)
		r.answers(shortage(unix.EMFILE))
		at(10500 * time.Millisecond)
		const why = "lb cannot probe it: too many open files (RLIMIT_NOFILE)"
		r.wantChanges("2s b0 probe possible→impossible: " + why)
		r.wantHealth(r.b[0], backends.HealthUp)
		if s := r.Status(r.b[0]); !s.Shortage || s.Reason != why || s.Failures != 0 {
			t.Errorf("status: got %+v; want the shortage and no failure", s)
		}
		r.answers(success("ok"))
		at(12500 * time.Millisecond)
		r.wantChanges("11s b0 probe impossible→possible: ok")
	})
}

// A probe whose end lb has slept through says nothing: the answer may have come in time.
func TestChecker_OwnStandstillIsNoFailure(t *testing.T) {
	for _, tc := range []struct {
		found result
		late  time.Duration
		down  bool
	}{
		{timedOut("timeout"), 4 * time.Second, false},
		{result{outcome: Failure, reason: "does not accept", hung: true}, 4 * time.Second, false},
		{timedOut("timeout"), 0, true},
		{failure("connection refused"), 4 * time.Second, true}, // that is no question of time
	} {
		onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
			r := newRig(t, exact(nil), 1)
			r.run()
			at(1500 * time.Millisecond)
			r.respond(func(_ *backends.Backend, p *plan) result { time.Sleep(p.Timeout + tc.late); return tc.found })
			at(30 * time.Second)
			if down := r.b[0].Health() == backends.HealthDown; down != tc.down {
				t.Errorf("%q, %v late: got down %v; want %v", tc.found.reason, tc.late, down, tc.down)
			}
		})
	}
}

// When lb wakes up late, the heartbeats that came meanwhile are not read yet: all workers have a whole
// interval again.
func TestEvidence_HeartbeatIsNotMissedWhileLBStoodStill(t *testing.T) {
	cfg := exact(notify)
	p, err := cfg.plan()
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	r := evidence{health: backends.HealthUp}
	r.begin(p, now, 0)
	for range 2 * p.Fall {
		now = now.Add(p.Interval + 5*time.Second)
		r.due(p, now, backends.AdminReady)
		if r.failures != 0 || r.health != backends.HealthUp || !r.next.Equal(now.Add(p.Interval)) {
			t.Fatalf("5s late: got %d misses, %v, next in %v; want none, and a whole interval", r.failures, r.health, r.next.Sub(now))
		}
	}
	for i := range p.Fall {
		now = now.Add(p.Interval)
		if r.due(p, now, backends.AdminReady); r.failures != i+1 {
			t.Fatalf("in time: got %d misses; want %d", r.failures, i+1)
		}
	}
	if r.health != backends.HealthDown {
		t.Errorf("after %d misses: got %v; want down", p.Fall, r.health)
	}
}

// A backend that expects PROXY headers gets one from probes too, at its own address only.
func TestProbe_SendsTheHeaderThatTheBackendExpects(t *testing.T) {
	for _, typ := range []string{typeAccept, typeConnect, typeHTTP, typeSendExpect} {
		for version, want := range map[string]string{
			"":   "",
			"v1": "PROXY UNKNOWN\r\n",
			"v2": "\r\n\r\n\x00\r\nQUIT\n\x20\x00\x00\x00",
		} {
			for _, other := range []bool{false, true} {
				got := make(chan string, 1)
				address := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
					b := make([]byte, 100)
					_ = conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond)) // some send nothing
					n, _ := conn.Read(b)
					got <- string(b[:n])
				})
				c := exact(func(c *Config) {
					c.Type = typ
					if typ == typeSendExpect {
						c.Expect = "x"
					}
					if other {
						c.Address = address
					}
				})
				p, err := c.plan()
				if err != nil {
					t.Fatal(err)
				}
				pool := newPoolOf(t, func(c *backends.Config) { c.SendProxy = version }, backends.HealthUp, address)
				x := prober{sockets: kernel(t)}
				x.probe(t.Context(), p, pool.Backends()[0])
				x.close()
				header := want
				if other {
					header = ""
				}
				// "accept" closes at once: the header may be lost with the reset.
				if first := <-got; !strings.HasPrefix(first, header) && !(typ == typeAccept && first == "") || header == "" && strings.Contains(first, "PROXY") {
					t.Errorf("%s", fmt.Sprintf("%s, send_proxy %q, other address %v: the backend got %q; want it to begin with %q", typ, version, other, first, header))
				}
			}
		}
	}
}
