//go:build e2e

package e2e

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// startStop starts a lines backend and an lb with the given stop_timeout, which listens on TCP and a Unix
// socket, and opens n sessions, half of them on each.
func startStop(t *testing.T, stopTimeout string, n int) (*lb, []net.Conn) {
	t.Helper()
	dir := tempDir(t)
	address := socketPath(dir, "w1")
	startLines(t, "w1", address)
	config := onePool(t, address)
	config.StopTimeout = stopTimeout
	config.Listeners[0].Bind = append(config.Listeners[0].Bind, socketPath(dir, "front"))
	l := startLB(t, config)
	l.waitHealth(t, "up")
	var conns []net.Conn
	for i := range n {
		conns = append(conns, dial(t, config.Listeners[0].Bind[i%2]))
	}
	wantAnswers(t, conns)
	return l, conns
}

func wantAnswers(t testing.TB, conns []net.Conn) {
	t.Helper()
	for i, conn := range conns {
		if who, err := askOn(conn); who != "w1" || err != nil {
			t.Errorf("answer on session %d: got %q, %v; want w1", i, who, err)
		}
	}
}

// waitRefused waits until lb refuses newcomers on each of its addresses.
func (l *lb) waitRefused(t testing.TB) {
	t.Helper()
	for _, listener := range l.config.Listeners {
		for _, bind := range listener.Bind {
			eventually(t, patience, func() error { return refused(bind) })
		}
	}
}

func TestStop_SessionsFinish(t *testing.T) {
	l, conns := startStop(t, "60s", 6)
	l.signal(t, syscall.SIGTERM)
	l.waitRefused(t)
	for len(conns) > 0 {
		wantAnswers(t, conns)
		if !l.running() {
			t.Fatalf("lb: got %v with %d sessions left; want it to wait for them", l.cmd.ProcessState, len(conns))
		}
		conns[0].Close()
		conns = conns[1:]
	}
	code, took := l.waitExit(t, patience)
	if code != 0 {
		t.Errorf("exit code after the last session: got %d; want 0", code)
	}
	if took > 2*time.Second {
		t.Errorf("end after the last session: got it after %v; want it at once", took)
	}
}

func TestStop_WithoutSessionsEndsAtOnce(t *testing.T) {
	l, _ := startStop(t, "60s", 0)
	l.signal(t, syscall.SIGTERM)
	code, took := l.waitExit(t, patience)
	if code != 0 {
		t.Errorf("exit code: got %d; want 0", code)
	}
	if took > 2*time.Second {
		t.Errorf("end without sessions: got it after %v; want it at once", took)
	}
	l.waitRefused(t)
	if _, err := os.Stat(l.socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("admin socket after the end: got %v; want it gone", err)
	}
}

func TestStop_TimeoutClosesSessions(t *testing.T) {
	l, conns := startStop(t, "2s", 4)
	l.signal(t, syscall.SIGTERM)
	l.waitRefused(t)
	wantAnswers(t, conns)
	code, took := l.waitExit(t, patience)
	if code != 0 {
		t.Errorf("exit code after stop_timeout: got %d; want 0", code)
	}
	if took < time.Second || took > 4*time.Second {
		t.Errorf("end with sessions that do not: got it after %v; want it after about 2s", took)
	}
	for i, conn := range conns {
		if who, err := askOn(conn); err == nil {
			t.Errorf("session %d after the end: got an answer of %s; want it closed", i, who)
		}
	}
}

// An operator who interrupts lb, or who is out of patience with its graceful end, does not wait for sessions.
func TestStop_AtOnce(t *testing.T) {
	for _, c := range []struct {
		name    string
		signals []syscall.Signal
	}{
		{"SIGTERM twice", []syscall.Signal{syscall.SIGTERM, syscall.SIGTERM}},
		{"SIGTERM and SIGINT", []syscall.Signal{syscall.SIGTERM, syscall.SIGINT}},
		{"SIGINT", []syscall.Signal{syscall.SIGINT}},
	} {
		t.Run(c.name, func(t *testing.T) {
			l, conns := startStop(t, "60s", 4)
			last := len(c.signals) - 1
			for _, sig := range c.signals[:last] {
				l.signal(t, sig)
				l.waitRefused(t) // the signal was seen, and lb waits for its sessions
				wantAnswers(t, conns)
			}
			l.signal(t, c.signals[last])
			code, took := l.waitExit(t, patience)
			if code != 0 {
				t.Errorf("exit code: got %d; want 0", code)
			}
			if took > 2*time.Second {
				t.Errorf("end after the last signal: got it after %v; want it at once", took)
			}
			for i, conn := range conns {
				if who, err := askOn(conn); err == nil {
					t.Errorf("session %d after the end: got an answer of %s; want it closed", i, who)
				}
			}
		})
	}
}

// A restarted lb takes its addresses again at once, whatever is left of the old one: sockets in TIME_WAIT,
// socket files.
func TestStop_AddressesAreFreeAgain(t *testing.T) {
	l, conns := startStop(t, "1s", 4)
	for _, end := range []os.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		l.signal(t, end)
		l.waitExit(t, patience)
		l = startLB(t, l.config)
		for _, bind := range l.config.Listeners[0].Bind {
			if who, err := askLine(bind, patience); who != "w1" || err != nil {
				t.Errorf("answer through %q after %v and a new start: got %q, %v; want w1", bind, end, who, err)
			}
		}
	}
	for _, conn := range conns {
		conn.Close()
	}
}
