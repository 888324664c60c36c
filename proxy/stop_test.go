package proxy_test

import (
	"context"
	"errors"
	"net"
	"os"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

// stopping is what Stop gives.
type stopping struct {
	killed int64
	err    error
}

// stop runs Stop and gives its answer on a channel.
func (r *rig) stop(ctx context.Context) <-chan stopping {
	r.stopped = true
	answer := make(chan stopping, 1)
	go func() {
		killed, err := r.proxy.Stop(ctx)
		answer <- stopping{killed, err}
	}()
	return answer
}

func TestStop_ServesWhatIsQueuedAndRefusesTheRest(t *testing.T) {
	for _, kind := range []string{tcpSocket, unixSocket} {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t, func(s *setup) { s.listener.Bind = []string{bindAddress(t, kind)} }, serve(t, unixSocket, echo).address)
			a, err := backends.ParseAddress(r.ln.Addresses()[0])
			if err != nil {
				t.Fatal(err)
			}
			release := r.proxy.HoldLoops()
			var conns []conn
			for range 20 { // wait in the kernel's queue, nobody accepts
				conns = append(conns, r.dial())
			}
			answer := r.stop(t.Context())
			release()
			for _, c := range conns {
				talk(t, c)
			}
			if c, err := net.Dial(a.Network(), a.Dial()); err == nil {
				t.Error("connect while stopping: got a connection; want an error")
				c.Close()
			}
			if kind == unixSocket {
				if _, err := os.Lstat(a.Path); !errors.Is(err, os.ErrNotExist) {
					t.Errorf("socket file while stopping: got %v; want none", err)
				}
			}
			for _, c := range conns {
				c.Close()
			}
			if got := await(t, "Stop", answer); got.killed != 0 || got.err != nil {
				t.Errorf("Stop: got %d killed, %v; want none, nil", got.killed, got.err)
			}
			r.ended(20)
		})
	}
}

func TestStop_EndsWhatDoesNotEndInTime(t *testing.T) {
	r := newRig(t, func(s *setup) { s.pool.MaxConns = 2 }, serve(t, unixSocket, echo).address)
	busy, done := r.dial(), r.dial()
	talk(t, busy)
	talk(t, done)
	waiting := r.dial()
	eventually(t, "it waits", func() bool { return r.pool.QueueLen() == 1 })
	ctx, cancel := context.WithCancel(t.Context())
	answer := r.stop(ctx)
	talk(t, busy)
	done.Close()
	talk(t, waiting) // has its place still
	last := r.ended(1)
	if last[0].Termination.String() != "--" {
		t.Errorf("termination code of a session that finished: got %v; want --", last[0].Termination)
	}
	cancel()
	if got := await(t, "Stop", answer); got.killed != 2 || got.err != nil {
		t.Errorf("Stop: got %d killed, %v; want 2, nil", got.killed, got.err)
	}
	for _, rec := range r.ended(3)[1:] {
		if rec.Termination.String() != "KD" {
			t.Errorf("termination code: got %v; want KD", rec.Termination)
		}
	}
	wantEOF(t, busy)
	wantEOF(t, waiting)
}

func TestStop_KillsInEveryPhase(t *testing.T) {
	r := newRig(t, func(s *setup) {
		s.proxy.Loops = 1 // with two, who waits may get the slot of one who was killed before
		s.pool.MaxConns = 1
	}, serve(t, unixSocket, echo).address, blackHole(t))
	var conns []conn
	for i, phase := range []string{"relaying", "connecting", "queued"} {
		conns = append(conns, r.dial())
		eventually(t, phase, func() bool {
			list := r.proxy.SessionList()
			return len(list) == i+1 && list[i].Phase == phase
		})
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if got := await(t, "Stop", r.stop(ctx)); got.killed != 3 || got.err != nil {
		t.Errorf("Stop: got %d killed, %v; want 3, nil", got.killed, got.err)
	}
	var codes []string
	for _, rec := range r.ended(3) {
		codes = append(codes, rec.Termination.String())
	}
	slices.Sort(codes)
	if want := []string{"KC", "KD", "KQ"}; !slices.Equal(codes, want) {
		t.Errorf("termination codes: got %v; want %v", codes, want)
	}
	for _, c := range conns {
		wantEOF(t, c)
	}
}

func TestStop_IsOnce(t *testing.T) {
	r := newRig(t, nil)
	if got := await(t, "Stop", r.stop(t.Context())); got.err != nil {
		t.Error(got.err)
	}
	if _, err := r.proxy.Stop(t.Context()); !errors.Is(err, proxy.ErrStopped) {
		t.Errorf("second Stop: got %v; want ErrStopped", err)
	}
	cfg := proxy.DefaultListenerConfig()
	cfg.Bind = []string{"127.0.0.1:0"}
	if _, err := listen(r.proxy, "late", cfg, r.pool); !errors.Is(err, proxy.ErrStopped) {
		t.Errorf("Listen after Stop: got %v; want ErrStopped", err)
	}
	if n := len(r.proxy.SessionList()); n != 0 {
		t.Errorf("sessions after Stop: got %d; want 0", n)
	}
}

// A socket that had an event in the round in which it is closed must not be accepted on: its number may be
// another's.
func TestLoop_ClosedListenerIsNotAcceptedOn(t *testing.T) {
	r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, unixSocket, echo).address)
	client := socketsFor(t, 1)[0]
	r.proxy.UnwatchWithAcceptPending(func() { r.connectTo(client) })
	if n := r.proxy.Sessions(); n != 0 {
		t.Errorf("sessions of a listener that is gone: got %d; want 0", n)
	}
	unix.Close(client)
}
