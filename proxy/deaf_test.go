package proxy_test

import (
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestDeaf_ListenerThatCannotBeWatchedIsTriedAgain(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	address := r.ln.Addresses()[0]
	restore := r.proxy.BreakEpoll(unix.EPOLL_CTL_ADD)
	r.become(r.spec("web", "127.0.0.1:0"), r.spec("new", "127.0.0.1:0"))
	ln := r.listener("new")
	if n := r.proxy.Stats.AcceptErrors.Load(); n == 0 {
		t.Error("errors counted: got 0; want some")
	}
	eventually(t, "it is known that the new listener is deaf", func() bool {
		return slices.Equal(r.proxy.NotAccepting(), []string{"new"})
	})
	restore()
	wantServed(t, ln.Addresses()[0])
	wantServed(t, address)
	eventually(t, "it is known that both are heard", func() bool { return r.proxy.NotAccepting() == nil })
}

func TestDeaf_ListenersComeBackAfterThePauseAtMaxSessions(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *setup) { s.proxy.MaxSessions = 2 }, serve(t, unixSocket, echo).address)
	first, second := r.dial(), r.dial()
	for _, c := range []conn{first, second} {
		send(t, c, []byte("x"))
		receive(t, c, "x")
	}
	third := r.dial() // waits in the kernel's queue
	send(t, third, []byte("z"))
	eventually(t, "the limit is reached", func() bool { return r.proxy.Stats.LimitReached.Load() > 0 })
	restore := r.proxy.BreakEpoll(unix.EPOLL_CTL_ADD)
	first.Close()
	second.Close()
	eventually(t, "the loops failed to listen again", func() bool { return r.proxy.Stats.AcceptErrors.Load() > 0 })
	restore()
	receive(t, third, "z")
	third.Close()
}

// TestDeaf_OneBrokenListenerLeavesTheOthersAlone: somebody who shares the socket has shut it down.
func TestDeaf_OneBrokenListenerLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	r.become(r.spec("web", "127.0.0.1:0"), r.spec("broken", "127.0.0.1:0"))
	ln := r.listener("broken")
	for _, fd := range ln.FDs() {
		unix.Shutdown(fd, unix.SHUT_RD)
	}
	eventually(t, "it is known which", func() bool { return slices.Equal(r.proxy.NotAccepting(), []string{"broken"}) })
	before, began := r.proxy.Stats.AcceptErrors.Load(), time.Now()
	for range 50 {
		wantServed(t, r.ln.Addresses()[0])
	}
	if n := r.proxy.Stats.AcceptErrors.Load() - before; n > 2*(uint64(time.Since(began)/time.Second)+2) {
		t.Errorf("errors in %v: got %d; want one a second and loop", time.Since(began), n)
	}
}
