package proxy_test

import (
	"io"
	"sync/atomic"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

// silent reads what comes and says nothing, until the end.
func silent(c conn) { io.Copy(io.Discard, c) }

// wantLasted compares how long a session was with the timeout that ended it.
func wantLasted(t testing.TB, rec proxy.Record, timeout time.Duration) {
	t.Helper()
	if rec.SessionTime < timeout || rec.SessionTime > timeout+5*time.Second {
		t.Errorf("session time: got %v; want %v", rec.SessionTime, timeout)
	}
}

func TestSession_IdleTimeoutNamesTheSideThatWasToSpeak(t *testing.T) {
	t.Parallel()
	const timeout = 500 * time.Millisecond // longer than an exchange takes on a busy machine
	idle := func(s *setup) { s.pool.IdleTimeout = timeout }
	t.Run("client", func(t *testing.T) {
		backendKinds(t, func(t *testing.T, kind string) {
			r := newRig(t, idle, serve(t, kind, echo).address)
			c := r.dial()
			send(t, c, []byte("x"))
			receive(t, c, "x")
			wantEOF(t, c)
			wantLasted(t, r.wantTermination("cD"), timeout)
		})
	})
	t.Run("client that never spoke", func(t *testing.T) {
		r := newRig(t, idle, serve(t, unixSocket, echo).address)
		wantEOF(t, r.dial())
		wantLasted(t, r.wantTermination("cD"), timeout)
	})
	t.Run("backend", func(t *testing.T) {
		backendKinds(t, func(t *testing.T, kind string) {
			r := newRig(t, idle, serve(t, kind, silent).address)
			c := r.dial()
			send(t, c, []byte("are you there?"))
			wantEOF(t, c)
			wantLasted(t, r.wantTermination("sD"), timeout)
		})
	})
}

func TestSession_BytesPostponeTheIdleTimeout(t *testing.T) {
	t.Parallel()
	const timeout = 400 * time.Millisecond
	r := newRig(t, func(s *setup) { s.pool.IdleTimeout = timeout }, serve(t, unixSocket, silent).address)
	c := r.dial()
	started := time.Now()
	for time.Since(started) < 2*timeout {
		send(t, c, []byte("."))
		time.Sleep(timeout / 20)
	}
	wantEOF(t, c)
	// the last byte went shortly before 2*timeout
	wantLasted(t, r.wantTermination("sD"), 3*timeout-timeout/10)
}

func TestSession_HalfClosedTimeoutHoldsFromTheFirstFIN(t *testing.T) {
	t.Parallel()
	const timeout = 50 * time.Millisecond
	half := func(s *setup) { s.pool.HalfClosedTimeout = timeout }
	t.Run("by the client", func(t *testing.T) {
		backendKinds(t, func(t *testing.T, kind string) {
			held := make(chan struct{})
			r := newRig(t, half, serve(t, kind, func(c conn) { // does not answer to EOF
				receive(t, c, "ask")
				<-held
			}).address)
			c := r.dial()
			send(t, c, []byte("ask"))
			c.CloseWrite()
			wantEOF(t, c)
			wantLasted(t, r.wantTermination("sD"), timeout)
			close(held)
		})
	})
	t.Run("by the backend", func(t *testing.T) {
		r := newRig(t, half, serve(t, tcpSocket, func(c conn) {
			send(t, c, []byte("bye"))
			c.CloseWrite()
			silent(c)
		}).address)
		c := r.dial()
		receive(t, c, "bye")
		wantEOF(t, c)
		wantLasted(t, r.wantTermination("cD"), timeout)
	})
	t.Run("and not idle_timeout", func(t *testing.T) {
		proceed := make(chan struct{})
		r := newRig(t, func(s *setup) {
			s.pool.IdleTimeout, s.pool.HalfClosedTimeout = timeout, 0
		}, serve(t, unixSocket, func(c conn) {
			silent(c)
			<-proceed
			send(t, c, []byte("a late answer"))
		}).address)
		c := r.dial()
		c.CloseWrite()
		time.Sleep(2 * (timeout + proxy.TimeoutPrecision))
		close(proceed)
		receive(t, c, "a late answer")
		wantEOF(t, c)
		r.wantTermination("--")
	})
}

func TestSession_ZeroIsNoTimeout(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *setup) { s.pool.IdleTimeout = 0 }, serve(t, unixSocket, echo).address)
	c := r.dial()
	send(t, c, []byte("x"))
	receive(t, c, "x")
	if h := r.proxy.Holdings(); h.Armed != 0 {
		t.Errorf("timers of a session without timeout: got %d; want 0", h.Armed)
	}
	c.Close()
	r.ended(1)
}

func TestSession_IdleTimeoutWithUndeliveredBytesIsNoCleanEnd(t *testing.T) {
	t.Parallel()
	backendKinds(t, func(t *testing.T, kind string) {
		const total = 48 << 20
		var sent atomic.Int64
		r := newRig(t, func(s *setup) { s.pool.IdleTimeout = 300 * time.Millisecond }, serve(t, kind, func(c conn) {
			trickle(c, newStream(1), total, &sent) // fails when it is cut off
		}).address)
		c := r.dial() // and does not read
		c.(buffered).SetReadBuffer(64 << 10)
		rec := r.wantTermination("cD")
		n, err := newStream(1).receiveFrom(c)
		if err == nil {
			t.Errorf("a truncated stream ended cleanly after %d of %d bytes; want ECONNRESET", n, total)
		}
		if uint64(n) > rec.BytesOut {
			t.Errorf("received: got %d bytes; want at most the record's %d", n, rec.BytesOut)
		}
	})
}

func TestConnect_BackendThatNeverAnswersTimesOut(t *testing.T) {
	t.Parallel()
	const timeout = 100 * time.Millisecond
	r := newRig(t, func(s *setup) { s.pool.ConnectTimeout = timeout }, blackHole(t))
	c := r.dial()
	wantEOF(t, c)
	rec := r.wantTermination("sC")
	wantLasted(t, rec, timeout)
	if rec.Backend != nil || rec.Retries != 1 || rec.ConnectTime != -1 {
		t.Errorf("record: got backend %v, %d retries, connect time %v; want none, 1, -1", rec.Backend, rec.Retries, rec.ConnectTime)
	}
	if n := r.pool.Backends()[0].ConnectErrors[backends.ConnectTimeout].Load(); n != 1 {
		t.Errorf("connect timeouts counted: got %d; want 1", n)
	}
}

func TestConnect_RetriesWithinTheBudget(t *testing.T) {
	t.Parallel()
	const budget = time.Second
	r := newRig(t, func(s *setup) { s.pool.ConnectTimeout = budget }, blackHole(t), serve(t, tcpSocket, echo).address)
	c := r.dial()
	send(t, c, []byte("sent, and the end of it too, while the first backend is tried"))
	c.CloseWrite()
	receive(t, c, "sent, and the end of it too, while the first backend is tried")
	wantEOF(t, c)
	rec := r.wantTermination("--")
	if rec.Retries != 1 || rec.Backend.Name != "b1" || rec.ConnectTime < budget/2-proxy.TimeoutPrecision || rec.ConnectTime > budget {
		t.Errorf("record: got %d retries, backend %v after %v; want 1, b1, after half of %v", rec.Retries, rec.Backend.Name, rec.ConnectTime, budget)
	}
}

func TestConnect_BudgetIsForAllAttemptsTogether(t *testing.T) {
	t.Parallel()
	// A machine that stands still for a quarter of the budget sees fewer attempts.
	for budget := 300 * time.Millisecond; ; budget *= 4 {
		r := newRig(t, func(s *setup) { s.pool.ConnectTimeout = budget }, blackHole(t), blackHole(t), blackHole(t))
		wantEOF(t, r.dial())
		rec := r.wantTermination("sC")
		wantLasted(t, rec, budget)
		if rec.Retries == 3 {
			return
		}
		if budget > 4*time.Second {
			t.Fatalf("retries within %v: got %d; want 3, each with half of the time left", budget, rec.Retries)
		}
	}
}

func TestConnect_ClientThatResetsMeanwhileEndsTheAttempt(t *testing.T) {
	r := newRig(t, nil, blackHole(t))
	c := r.dial()
	eventually(t, "the backend is being tried", func() bool { return r.pool.Backends()[0].Active() == 1 })
	reset(c)
	rec := r.wantTermination("CC")
	if rec.SessionTime > 4*time.Second { // connect_timeout is 5s
		t.Errorf("session time: got %v; want the moment of the reset", rec.SessionTime)
	}
	if n := r.pool.Backends()[0].Active(); n != 0 {
		t.Errorf("slots held afterwards: got %d; want 0", n)
	}
}
