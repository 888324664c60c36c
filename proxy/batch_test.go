package proxy_test

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/proxy"
)

// needRing skips a test on a machine that has no io_uring.
func needRing(t *testing.T) {
	t.Helper()
	if err := proxy.TryBatching(); err != nil {
		t.Skipf("%v: nothing to test here", err)
	}
}

func TestBatching_IsAsTheConfigSays(t *testing.T) {
	needRing(t)
	for mode, want := range map[string]bool{proxy.BatchingAuto: true, proxy.BatchingOn: true, proxy.BatchingOff: false} {
		cfg := proxy.DefaultConfig()
		cfg.Loops, cfg.Batching = 1, mode
		p, err := proxy.New(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if on, err := p.Batching(); on != want || err != nil {
			t.Errorf("batching = %q: got %v, %v; want %v", mode, on, err, want)
		}
		p.Start()
		if _, err := p.Stop(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// breakRings has the kernel refuse every io_uring of this process from now on: something else has their
// descriptors' numbers.
func breakRings(t *testing.T) (n int) {
	t.Helper()
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	const dir = "/proc/self/fd"
	names, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		link, _ := os.Readlink(filepath.Join(dir, name.Name()))
		if !strings.Contains(link, "io_uring") {
			continue
		}
		fd := 0
		for _, c := range name.Name() {
			fd = fd*10 + int(c-'0')
		}
		if err := unix.Dup3(int(null.Fd()), fd, unix.O_CLOEXEC); err != nil {
			t.Fatal(err)
		}
		n++
	}
	return n
}

func TestBatching_LosesNothingWhenTheRingIsRefused(t *testing.T) {
	needRing(t)
	if *batching == proxy.BatchingOff {
		t.Skip("-batching off: there is no ring")
	}
	r := newRig(t, nil, serve(t, unixSocket, echo).address, serve(t, tcpSocket, echo).address)
	const clients, rounds = 16, 200
	half := make(chan struct{}, clients)
	broken := make(chan struct{})
	var running sync.WaitGroup
	for i := range clients {
		c := r.dial()
		running.Go(func() {
			up, down := newStream(uint64(i)), newStream(uint64(i))
			for round := range rounds {
				if round == rounds/2 {
					half <- struct{}{}
					if i%2 == 0 { // the others go on meanwhile
						<-broken
					}
				}
				const n = 100
				if err := up.sendTo(c, n); err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, n)
				if _, err := io.ReadFull(c, got); err != nil {
					t.Errorf("client %d, round %d: %v", i, round, err)
					return
				}
				if err := down.check(got); err != nil {
					t.Error(err)
					return
				}
			}
			c.CloseWrite()
		})
	}
	for range clients {
		<-half
	}
	if n := breakRings(t); n == 0 {
		t.Error("there was no ring to break")
	}
	close(broken)
	running.Wait()
	for range clients {
		r.wantTermination("--")
	}
	if n := r.proxy.Stats.RingsLost.Load(); n == 0 {
		t.Error("no loop has given its ring up")
	}
}

// TestBatching_IsOverBeforeADeadlineIsJudged: a deadline is judged after what has arrived is carried, and a
// direction that two waits report is not twice in a batch.
func TestBatching_IsOverBeforeADeadlineIsJudged(t *testing.T) {
	r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, unixSocket, echo).address)
	c := r.dial()
	send(r, c, []byte("hello"))
	receive(r, c, "hello")
	before := r.proxy.BytesBeforeDeadlines(func() {})
	got := r.proxy.BytesBeforeDeadlines(func() {
		if _, err := c.Write([]byte("12345")); err != nil {
			t.Error(err)
		}
	})
	if got < before+5 {
		t.Errorf("bytes carried when deadlines are judged: got %d; want at least %d", got, before+5)
	}
}

// TestBatching_SendsWithoutTheRingThatItReceivedWith: no event would wake a send that was never refused.
func TestBatching_SendsWithoutTheRingThatItReceivedWith(t *testing.T) {
	needRing(t)
	if *batching == proxy.BatchingOff {
		t.Skip("-batching off: there is no ring")
	}
	for _, kind := range []string{unixSocket, tcpSocket} {
		r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, kind, echo).address)
		c := r.dial()
		send(r, c, []byte("hello"))
		receive(r, c, "hello")
		r.proxy.BatchInTwo(func() { send(r, c, []byte("again")) }, func() { breakRings(t) }, proxy.ClientEnd)
		receive(r, c, "again")
		c.Close()
	}
}

// bothOrders runs f for both kinds of backends and both orders in which a session's ends may be in a batch.
func bothOrders(t *testing.T, f func(t *testing.T, kind string, ends []int)) {
	t.Helper()
	for _, kind := range []string{unixSocket, tcpSocket} {
		for name, ends := range map[string][]int{
			"client first": {proxy.ClientEnd, proxy.BackendEnd}, "backend first": {proxy.BackendEnd, proxy.ClientEnd},
		} {
			t.Run(kind+", "+name, func(t *testing.T) { f(t, kind, ends) })
		}
	}
}

// TestBatching_ResetIsNoEnd: the kernel tells a socket's error once, and whoever reads on takes it for the
// end.
func TestBatching_ResetIsNoEnd(t *testing.T) {
	needRing(t)
	if *batching == proxy.BatchingOff {
		t.Skip("-batching off: there is no ring")
	}
	bothOrders(t, func(t *testing.T, kind string, ends []int) {
		leave, left := make(chan struct{}), make(chan struct{})
		r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, kind, func(c conn) {
			receive(t, c, "as") // the rest of the request stays unread: closing is a reset
			send(t, c, []byte("half an ans"))
			<-leave
			c.Close()
			close(left)
		}).address)
		c := r.dial()
		send(r, c, []byte("ask"))
		receive(r, c, "half an ans")
		r.proxy.BatchInTwo(func() {
			close(leave)
			<-left
			failIf(t, c.CloseWrite(), "half-close")
		}, func() {}, ends...)
		if n := readToReset(t, c); n != 0 {
			t.Errorf("bytes before the reset: got %d; want 0", n)
		}
		r.wantTermination("SD")
	})
}
