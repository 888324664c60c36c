package proxy_test

import (
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

func TestConnect_RefusedGoesToTheNextBackend(t *testing.T) {
	for _, dead := range []string{unixSocket, abstractSocket, tcpSocket} {
		t.Run(dead, func(t *testing.T) {
			var mu sync.Mutex
			var streaks []uint32
			r := newRig(t, func(s *setup) {
				s.onFailed = func(why backends.ConnectError, streak uint32) {
					mu.Lock()
					defer mu.Unlock()
					streaks = append(streaks, streak)
					if why != backends.ConnectRefused {
						t.Errorf("reason: got %v; want refused", why)
					}
				}
			}, nobody(t, dead), serve(t, unixSocket, echo).address)
			const sessions = 5
			for range sessions {
				c := r.dial()
				send(t, c, []byte("hello"))
				receive(t, c, "hello")
				c.Close()
			}
			for _, rec := range r.ended(sessions) {
				if rec.Backend.Name != "b1" || rec.Termination.String() != "--" {
					t.Errorf("record: got %v at %v; want -- at b1", rec.Termination, rec.Backend)
				}
			}
			mu.Lock()
			defer mu.Unlock()
			if len(streaks) == 0 || !slices.IsSorted(streaks) || int(streaks[len(streaks)-1]) != len(streaks) {
				t.Errorf("failures in a row, as told: got %v; want 1, 2, 3…", streaks)
			}
			if n := r.pool.Backends()[0].ConnectErrors[backends.ConnectRefused].Load(); int(n) != len(streaks) {
				t.Errorf("refusals counted: got %d; want %d", n, len(streaks))
			}
		})
	}
}

func TestConnect_FullBacklogIsSaturationAndNoFailure(t *testing.T) {
	full, _ := swamped(t)
	r := newRig(t, func(s *setup) {
		s.onFailed = func(why backends.ConnectError, streak uint32) {
			if why != backends.ConnectSaturated || streak != 0 {
				t.Errorf("failure: got %v, %d in a row; want saturated, 0", why, streak)
			}
		}
	}, full, serve(t, unixSocket, echo).address)
	for range 3 {
		c := r.dial()
		send(t, c, []byte("hello"))
		receive(t, c, "hello")
		c.Close()
	}
	r.ended(3)
	if n := r.pool.Backends()[0].ConnectErrors[backends.ConnectSaturated].Load(); n == 0 {
		t.Error("saturation was not counted")
	}
}

// A client that speaks and closes is heard, over TCP as over a Unix socket, whose close shows as a hang-up at
// once.
func TestConnect_ClientThatSpokeAndLeftIsHeard(t *testing.T) {
	for _, kind := range []string{tcpSocket, unixSocket} {
		for _, waits := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, waits %v", kind, waits), func(t *testing.T) {
				heard := make(chan string, 2)
				r := newRig(t, func(s *setup) {
					s.listener.Bind = []string{bindAddress(t, kind)}
					s.pool.MaxConns = 1
				}, serve(t, tcpSocket, func(c conn) {
					b, err := io.ReadAll(c)
					failIf(t, err, "backend")
					heard <- string(b)
				}).address)
				var first conn
				if waits {
					first = r.dial()
					eventually(t, "the slot is taken", func() bool { return r.pool.Active() == 1 })
				}
				release := r.proxy.HoldLoops()
				c := r.dial()
				send(t, c, []byte("last words"))
				c.Close()
				release()
				if waits {
					eventually(t, "it waits", func() bool { return r.pool.QueueLen() == 1 })
					r.proxy.Settle()
					first.Close()
					if got := await(t, "the first client's words", heard); got != "" {
						t.Errorf("heard of the first: got %q; want nothing", got)
					}
				}
				if got := await(t, "the client's words", heard); got != "last words" {
					t.Errorf("heard: got %q; want all that the client said", got)
				}
			})
		}
	}
}

func TestConnect_NobodyLeftClosesTheClient(t *testing.T) {
	for _, tc := range []struct {
		name      string
		addresses []string
		retries   int
	}{
		{"no backends", nil, 0},
		{"all refuse", []string{nobody(t, unixSocket), nobody(t, tcpSocket)}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, nil, tc.addresses...)
			wantEOF(t, r.dial())
			rec := r.wantTermination("SC")
			if rec.Backend != nil || rec.Retries != tc.retries || rec.ConnectTime != -1 {
				t.Errorf("record: got backend %v, %d retries, connect time %v; want none, %d, -1", rec.Backend, rec.Retries, rec.ConnectTime, tc.retries)
			}
		})
	}
}

func TestConnect_DownBackendsAreNotTried(t *testing.T) {
	s := serve(t, unixSocket, echo)
	r := newRig(t, func(cfg *setup) {
		cfg.health = func(int, string) backends.HealthState { return backends.HealthDown }
	}, s.address)
	wantEOF(t, r.dial())
	if rec := r.wantTermination("SC"); rec.Retries != 0 || s.served.Load() != 0 {
		t.Errorf("attempts on a backend that is down: got %d, served %d; want none", rec.Retries, s.served.Load())
	}
	r.pool.SetHealth(r.pool.Get("b0"), backends.HealthUp, "test")
	c := r.dial()
	send(t, c, []byte("hello"))
	receive(t, c, "hello")
	c.Close()
	r.ended(2)
}

// hold opens n sessions at once from several clients and keeps them.
func hold(t testing.TB, r *rig, n int) {
	t.Helper()
	var running sync.WaitGroup
	conns := make([]conn, n)
	for k := range 4 {
		running.Go(func() {
			for i := k; i < n; i += 4 {
				conns[i] = r.dial()
			}
		})
	}
	running.Wait()
	eventually(t, fmt.Sprintf("%d sessions", n), func() bool { return r.pool.Active() == int64(n) })
	t.Cleanup(func() {
		for _, c := range conns {
			c.Close()
		}
	})
}

func TestConnect_BurstIsSpreadExactly(t *testing.T) {
	for _, tc := range []struct {
		name    string
		weights []int
		want    []int64
	}{
		{"equal weights", []int{100, 100, 100, 100, 100, 100, 100, 100}, []int64{50, 50, 50, 50, 50, 50, 50, 50}},
		{"weights 1 to 3", []int{1, 3}, []int64{100, 300}},
		{"weight 0", []int{7, 0}, []int64{400, 0}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var addresses []string
			for range tc.weights {
				addresses = append(addresses, serve(t, unixSocket, silent).address)
			}
			r := newRig(t, func(s *setup) { s.weights = tc.weights }, addresses...)
			hold(t, r, 400)
			var got []int64
			for _, b := range r.pool.Backends() {
				got = append(got, b.Active())
			}
			if !slices.Equal(got, tc.want) {
				t.Errorf("sessions by backend: got %v; want %v", got, tc.want)
			}
			// And the loops have about the same each.
			if n := r.proxy.LoopSessions(); slices.Min(n) < 100 {
				t.Errorf("sessions by loop: got %v; want about 200 each", n)
			}
		})
	}
}

// queued makes a rig whose only backend takes one connection at a time.
func queued(t *testing.T, change func(*setup)) *rig {
	return newRig(t, func(s *setup) {
		s.pool.MaxConns = 1
		if change != nil {
			change(s)
		}
	}, serve(t, unixSocket, echo).address)
}

// talk exchanges a word, which proves that the client has a backend.
func talk(t testing.TB, c conn) {
	t.Helper()
	send(t, c, []byte("word"))
	receive(t, c, "word")
}
