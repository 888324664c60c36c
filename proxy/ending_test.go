package proxy_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/proxy"
)

// readToReset reads until the stream ends with a reset, and returns how many bytes came before it.
func readToReset(t testing.TB, c conn) int {
	t.Helper()
	n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
	if !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("end of the stream after %d bytes: got %v; want ECONNRESET", n, err)
	}
	return int(n)
}

func TestEnding_WhatABackendSaidBeforeItsResetReachesASlowClient(t *testing.T) {
	t.Parallel()
	const total = 400_000
	for _, mode := range []string{"copy", "splice"} {
		backendKinds(t, func(t *testing.T, kind string) {
			t.Run(mode, func(t *testing.T) {
				r := newRig(t, func(s *setup) {
					s.prepare = func(p *proxy.Proxy) {
						if mode == "splice" {
							p.SetRelayLimits(16<<10, 1<<20, 16<<10, 1, 128<<10)
						} else {
							p.DenyPipes()
						}
					}
				}, serve(t, kind, func(c conn) {
					receive(t, c, "as") // the rest of the request stays unread: closing is a reset
					send(t, c, bytes.Repeat([]byte("z"), total))
					if kind == tcpSocket { // its kernel must not discard what lb has not taken yet
						eventually(t, "lb has everything", func() bool { return unacknowledged(t, c) == 0 })
					}
				}).address)
				c := r.dial()
				c.(*net.TCPConn).SetReadBuffer(64 << 10)
				send(t, c, []byte("ask"))
				eventually(t, "the backend has closed, and lb holds what the client does not take", func() bool {
					return r.proxy.Holdings().Failed == 1
				})
				if n := readToReset(t, c); n != total {
					t.Errorf("bytes before the reset: got %d; want %d", n, total)
				}
				if rec := r.wantTermination("SD"); rec.BytesOut != total {
					t.Errorf("bytes in the record: got %d; want %d", rec.BytesOut, total)
				}
			})
		})
	}
}

// unacknowledged returns how many bytes of c's send queue the peer's kernel has not taken.
func unacknowledged(t testing.TB, c conn) (n int) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) })
	}
	failIf(t, err, "SIOCOUTQ")
	return n
}

func TestEnding_WhatAClientSaidBeforeItsResetReachesASlowBackend(t *testing.T) {
	t.Parallel()
	backendKinds(t, func(t *testing.T, kind string) {
		proceed, got := make(chan struct{}), make(chan int64, 1)
		r := newRig(t, nil, serve(t, kind, func(c conn) {
			c.(buffered).SetReadBuffer(64 << 10)
			<-proceed
			n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
			if kind == tcpSocket && !errors.Is(err, unix.ECONNRESET) {
				t.Errorf("end of the backend's stream: got %v; want ECONNRESET", err)
			}
			got <- n
		}).address)
		c := r.dial()
		eventually(t, "the session is there", func() bool { return r.pool.Active() == 1 })
		r.proxy.ShrinkBuffers(16<<10, 256<<10)
		c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
		c.Write(make([]byte, 4<<20)) // as much as fits: lb holds some
		eventually(t, "lb holds bytes", func() bool { return r.proxy.Holdings().Buffers+r.proxy.Holdings().Pipes > 0 })
		reset(c)
		eventually(t, "lb knows of the reset", func() bool { return r.proxy.Holdings().Failed == 1 })
		held := r.proxy.Holdings()
		close(proceed)
		n := await(t, "the backend's bytes", got)
		if rec := r.wantTermination("CD"); int64(rec.BytesIn) != n || n < int64(held.Buffered+held.Piped) {
			t.Errorf("bytes at the backend: got %d; want the record's %d, and the %d that lb held", n, rec.BytesIn, held.Buffered+held.Piped)
		}
	})
}

func TestEnding_BackendThatTakesNothingOfADeadClientEndsInTime(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *setup) {
		s.prepare = func(p *proxy.Proxy) { p.SetEndTimeouts(50*time.Millisecond, 100*time.Millisecond) }
	}, serve(t, unixSocket, func(c conn) { waitHangUp(c) }).address)
	c := r.dial()
	eventually(t, "the session is there", func() bool { return r.pool.Active() == 1 })
	r.proxy.ShrinkBuffers(16<<10, 256<<10)
	c.SetWriteDeadline(time.Now().Add(200 * time.Millisecond))
	c.Write(make([]byte, 4<<20))
	eventually(t, "lb holds bytes", func() bool { return r.proxy.Holdings().Buffers+r.proxy.Holdings().Pipes > 0 })
	reset(c)
	r.ended(1)
}

func TestEnding_RefusalToReadEndsTheSessionOnBothSides(t *testing.T) {
	t.Parallel()
	for _, leaves := range []bool{false, true} {
		hung := make(chan error, 1)
		refused := make(chan struct{})
		r := newRig(t, func(s *setup) {
			s.prepare = func(p *proxy.Proxy) { p.SetEndTimeouts(50*time.Millisecond, time.Second) }
		}, serve(t, unixSocket, func(c conn) {
			raw, _ := c.SyscallConn()
			raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) })
			close(refused)
			hung <- waitHangUp(c)
		}).address)
		c := r.dial()
		<-refused
		send(t, c, []byte("nobody reads this"))
		if leaves {
			c.Close()
		} else {
			wantReset(t, c)
		}
		failIf(t, await(t, "the backend's hang-up", hung), "backend")
		r.wantTermination("SD")
	}
}

// TestEnding_EventsThatCannotBeHadAreAskedForAgain: a direction is blocked, and epoll_ctl(2) fails.
func TestEnding_EventsThatCannotBeHadAreAskedForAgain(t *testing.T) {
	t.Parallel()
	const total = 1 << 20
	proceed := make(chan struct{})
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		receive(t, c, "ask")
		send(t, c, make([]byte, total))
	}).address)
	c := r.dial()
	c.(*net.TCPConn).SetReadBuffer(64 << 10)
	eventually(t, "the session is there", func() bool { return r.pool.Active() == 1 })
	r.proxy.ShrinkBuffers(64<<10, 64<<10)
	restore := r.proxy.BreakEpoll(unix.EPOLL_CTL_MOD)
	send(t, c, []byte("ask"))
	go func() {
		eventually(t, "a session waits for the kernel", func() bool { return r.proxy.Stats.Shortages.Load() > 0 })
		restore()
		close(proceed)
	}()
	await(t, "the shortage", proceed)
	if n, err := io.Copy(io.Discard, struct{ io.Reader }{c}); err != nil || n != total {
		t.Errorf("got %d bytes, %v; want %d", n, err, total)
	}
}
