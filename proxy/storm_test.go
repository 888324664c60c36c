package proxy_test

import (
	"io"
	"math/rand/v2"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

// testSeed is LB_TEST_SEED, or a new one; it is printed, to run the same again.
func testSeed(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("LB_TEST_SEED"); s != "" {
		var err error
		if seed, err = strconv.ParseUint(s, 10, 64); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("LB_TEST_SEED=%d", seed)
	return seed
}

// TestSession_ReleasesItsSlotOnceWhateverHappens has clients come, talk, fall silent, close, half-close and
// reset at random, over backends that serve, refuse, are full, never answer and reset, with few slots and a
// short queue, while the operator changes states and weights. The rig then looks whether every slot, place
// and descriptor came back.
func TestSession_ReleasesItsSlotOnceWhateverHappens(t *testing.T) {
	seed := testSeed(t)
	const clients, each = 24, 60
	full, _ := swamped(t)
	moody := func(c conn) { // a backend that does anything
		var b [1]byte
		if _, err := c.Read(b[:]); err != nil {
			return
		}
		switch b[0] % 5 {
		case 0:
			echo(c)
		case 1: // closes with unread bytes, or without
		case 2:
			if _, ok := c.(*net.TCPConn); ok {
				reset(c)
			}
		case 3:
			c.CloseWrite()
			io.Copy(io.Discard, c)
		case 4:
			newStream(1).sendTo(c, 300<<10)
		}
	}
	var told atomic.Int64
	r := newRig(t, func(s *setup) {
		s.pool.MaxConns, s.pool.QueueSize = 5, 12
		s.pool.ConnectTimeout, s.pool.QueueTimeout = 60*time.Millisecond, 100*time.Millisecond
		s.pool.IdleTimeout, s.pool.HalfClosedTimeout = 50*time.Millisecond, 50*time.Millisecond
		s.onRecord = func(*proxy.Record) { told.Add(1) }
	}, serve(t, unixSocket, moody).address, serve(t, tcpSocket, moody).address, serve(t, unixSocket, moody).address,
		nobody(t, unixSocket), nobody(t, tcpSocket), full, blackHole(t))

	var running sync.WaitGroup
	for i := range clients {
		rnd := rand.New(rand.NewPCG(seed, uint64(i)))
		running.Go(func() {
			for range each {
				c, err := net.Dial("tcp", r.ln.Addresses()[0])
				if failIf(t, err, "dial") {
					return
				}
				misbehave(c.(conn), rnd)
			}
		})
	}
	over := make(chan struct{})
	var operator sync.WaitGroup
	operator.Go(func() {
		rnd := rand.New(rand.NewPCG(seed, 1<<32))
		for {
			select {
			case <-over:
				return
			case <-time.After(time.Millisecond):
			}
			b := r.pool.Backends()[rnd.IntN(7)]
			switch rnd.IntN(3) {
			case 0:
				r.pool.SetHealth(b, []backends.HealthState{backends.HealthUp, backends.HealthUp, backends.HealthDown}[rnd.IntN(3)], "storm")
			case 1:
				r.pool.SetAdmin(b, []backends.AdminState{backends.AdminReady, backends.AdminReady, backends.AdminDrain}[rnd.IntN(3)], "storm")
			case 2:
				failIf(t, r.pool.SetWeight(b, 50+rnd.IntN(100), "storm"), "SetWeight")
			}
		}
	})
	running.Wait()
	close(over)
	operator.Wait()

	codes := map[string]int{}
	for _, rec := range r.ended(clients * each) {
		codes[rec.Termination.String()]++
	}
	t.Logf("termination codes: %v", codes)
	eventually(t, "no session is left", func() bool { return r.proxy.Sessions() == 0 && r.ln.Active() == 0 })
	if n := told.Load(); n != clients*each {
		t.Errorf("sessions told of: got %d; want %d, each once", n, clients*each)
	}
	if n := r.pool.QueueLen(); n != 0 {
		t.Errorf("waiting: got %d; want 0", n)
	}
	if h := r.proxy.Holdings(); h != (proxy.Holdings{Idle: h.Idle}) {
		t.Errorf("holdings: got %+v; want none", h)
	}
}

// misbehave uses a connection in one of many ways, and closes it.
func misbehave(c conn, rnd *rand.Rand) {
	defer c.Close()
	c.SetDeadline(time.Now().Add(ioTimeout))
	word := []byte{byte(rnd.IntN(256)), 'x', 'y'}
	switch rnd.IntN(9) {
	case 0: // close at once
	case 1:
		reset(c)
	case 2:
		c.Write(word)
		reset(c)
	case 3:
		c.Write(word)
	case 4:
		c.Write(word)
		c.CloseWrite()
		io.Copy(io.Discard, c)
	case 5: // silent until lb ends it
		io.Copy(io.Discard, c)
	case 6:
		c.Write(word)
		io.Copy(io.Discard, c)
	case 7: // much, to somebody who may not read it
		newStream(2).sendTo(c, 200<<10)
	case 8:
		c.Write(word)
		c.CloseWrite()
		c.Read(word[:1])
		reset(c)
	}
}
