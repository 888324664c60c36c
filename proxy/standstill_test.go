package proxy_test

import (
	"testing"
	"time"

	"github.com/273ebdf9/lb/proxy"
)

// standstill has every loop stand still until all its deadlines are over, as SIGSTOP does, while meanwhile
// runs.
func (r *rig) standstill(d time.Duration, meanwhile func()) {
	r.Helper()
	release := r.proxy.HoldLoops()
	over := time.Now().Add(d)
	meanwhile()
	time.Sleep(time.Until(over)) // it is the time that passes that matters
	release()
}

// TestStandstill_WhatArrivedMeanwhileIsHeardBeforeADeadlineIsJudged: of every deadline there is. Each stands
// still for a little longer than the deadline, and for so much longer that everybody may have.
func TestStandstill_WhatArrivedMeanwhileIsHeardBeforeADeadlineIsJudged(t *testing.T) {
	t.Parallel()
	const limit = 250 * time.Millisecond
	for _, stands := range []time.Duration{2 * limit, 5 * limit} {
		t.Run(stands.String(), func(t *testing.T) {
			t.Parallel()
			t.Run("idle_timeout", func(t *testing.T) {
				t.Parallel()
				for range 3 {
					r := newRig(t, func(s *setup) { s.pool.IdleTimeout = limit }, serve(t, unixSocket, echo).address)
					c := r.dial()
					send(t, c, []byte("a"))
					receive(t, c, "a")
					r.standstill(stands, func() { send(t, c, []byte("b")) })
					receive(t, c, "b")
					c.Close()
				}
			})
			t.Run("half_closed_timeout", func(t *testing.T) {
				t.Parallel()
				say := make(chan struct{})
				r := newRig(t, func(s *setup) { s.pool.HalfClosedTimeout = limit }, serve(t, tcpSocket, func(c conn) {
					wantEOF(t, c)
					<-say
					send(t, c, []byte("a late answer"))
				}).address)
				c := r.dial()
				c.CloseWrite()
				eventually(t, "half of it is closed", func() bool { return r.proxy.Holdings().HalfOpen == 1 })
				r.standstill(stands, func() { close(say) })
				receive(t, c, "a late answer")
				wantEOF(t, c)
			})
			t.Run("proxy_timeout", func(t *testing.T) {
				t.Parallel()
				r := acceptsProxy(t, func(s *setup) { s.listener.ProxyTimeout = limit })
				c := r.dial()
				eventually(t, "the header is awaited", func() bool { return len(r.proxy.SessionList()) == 1 })
				r.standstill(stands, func() { send(t, c, []byte(header(t, 1, farClient4, farServer4))) })
				talk(t, c)
				c.Close()
			})
			t.Run("queue_timeout", func(t *testing.T) {
				t.Parallel()
				r := newRig(t, func(s *setup) { s.pool.MaxConns, s.pool.QueueSize, s.pool.QueueTimeout = 1, 10, limit },
					serve(t, unixSocket, echo).address)
				first := r.dial()
				send(t, first, []byte("a"))
				receive(t, first, "a")
				second := r.dial()
				send(t, second, []byte("b"))
				r.waits(1)
				r.standstill(stands, func() { first.Close() })
				receive(t, second, "b")
				second.Close()
			})
			t.Run("connect_timeout", func(t *testing.T) {
				t.Parallel()
				address, accept := fullBacklog(t)
				r := newRig(t, func(s *setup) { s.pool.ConnectTimeout = limit }, address)
				c := r.dial()
				send(t, c, []byte("x"))
				eventually(t, "it waits for a backlog", func() bool { return r.proxy.Backlogged() == 1 })
				r.standstill(stands, func() { go accept() })
				receive(t, c, "x")
				c.Close()
			})
			t.Run("the watchdog", func(t *testing.T) {
				t.Parallel()
				r := newRig(t, nil)
				release := r.proxy.HoldLoops()
				turned := make(chan bool)
				go func() { turned <- r.proxy.Turning(stands) }()
				time.Sleep(stands / 2)
				release()
				if !await(t, "Turning", turned) {
					t.Error("loops that came round again in time: got false; want true")
				}
			})
		})
	}
}

func TestStandstill_DeadlinesAreJudgedAfterIt(t *testing.T) {
	t.Parallel()
	const limit = 50 * time.Millisecond
	r := newRig(t, func(s *setup) { s.pool.IdleTimeout = limit }, serve(t, unixSocket, echo).address)
	c := r.dial()
	send(t, c, []byte("a"))
	receive(t, c, "a")
	r.standstill(10*limit, func() {})
	wantEOF(t, c)
	if rec := r.wantTermination("cD"); rec.SessionTime > proxy.MaxStallGrace+2*10*limit {
		t.Errorf("session time: got %v; want at most %v", rec.SessionTime, proxy.MaxStallGrace+2*10*limit)
	}
}
