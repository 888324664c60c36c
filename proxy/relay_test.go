package proxy_test

import (
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/proxy"
)

// backendKinds run a test over a Unix and a TCP backend.
func backendKinds(t *testing.T, test func(t *testing.T, kind string)) {
	for _, kind := range []string{unixSocket, tcpSocket} {
		t.Run(kind, func(t *testing.T) { test(t, kind) })
	}
}

func TestRelay_EchoesOverEveryKindOfSocket(t *testing.T) {
	for _, tc := range []struct{ listener, backend string }{
		{tcpSocket, unixSocket},
		{tcpSocket, abstractSocket},
		{tcpSocket, tcpSocket},
		{tcpSocket, tcp6Socket},
		{tcp6Socket, unixSocket},
		{unixSocket, unixSocket},
		{unixSocket, tcpSocket},
		{abstractSocket, tcpSocket},
	} {
		t.Run(tc.listener+" to "+tc.backend, func(t *testing.T) {
			r := newRig(t, func(s *setup) { s.listener.Bind = []string{bindAddress(t, tc.listener)} }, serve(t, tc.backend, echo).address)
			c := r.dial()
			up, down := newStream(1), newStream(1)
			total := 0
			for _, n := range []int{1, 2, 1000, 64<<10 - 1, 64 << 10, 64<<10 + 1, 128 << 10} {
				if err := up.sendTo(c, n); err != nil {
					t.Fatal(err)
				}
				got := make([]byte, n)
				if _, err := io.ReadFull(c, got); err != nil {
					t.Fatalf("read of %d bytes: %v", n, err)
				}
				if err := down.check(got); err != nil {
					t.Fatal(err)
				}
				total += n
			}
			c.CloseWrite()
			wantEOF(t, c)
			rec := r.wantTermination("--")
			if rec.BytesIn != uint64(total) || rec.BytesOut != uint64(total) {
				t.Errorf("bytes in the record: got %d in, %d out; want %d", rec.BytesIn, rec.BytesOut, total)
			}
			want := ""
			if a, ok := c.LocalAddr().(*net.TCPAddr); ok {
				want = a.String()
			}
			if got := rec.Client; got.IsValid() != (want != "") || got.IsValid() && got.String() != want {
				t.Errorf("client in the record: got %v; want %q", got, want)
			}
			if b := rec.Backend; b == nil || b.Name != "b0" || b.Counters.BytesIn.Load() != uint64(total) || r.ln.Counters.BytesOut.Load() != uint64(total) {
				t.Errorf("counters: got %+v; want %d bytes each way", rec, total)
			}
		})
	}
}

func TestRelay_CarriesManyRequestsOfManySessions(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, nil, serve(t, kind, echo).address, serve(t, kind, echo).address)
		var running sync.WaitGroup
		for i := range 32 {
			c := r.dial()
			running.Go(func() {
				up, down := newStream(uint64(i)), newStream(uint64(i))
				got := make([]byte, 300)
				for range 50 {
					if failIf(t, up.sendTo(c, len(got)), "session %d", i) {
						return
					}
					if _, err := io.ReadFull(c, got); failIf(t, err, "session %d", i) {
						return
					}
					if failIf(t, down.check(got), "session %d", i) {
						return
					}
				}
				c.Close()
			})
		}
		running.Wait()
		r.ended(32)
	})
}

func TestSession_ClientHalfCloseKeepsBackendDirection(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, nil, serve(t, kind, func(c conn) {
			receive(t, c, "ask")
			wantEOF(t, c)
			send(t, c, []byte("answer"))
			wantEOF(t, c) // still
			send(t, c, []byte(" and more"))
		}).address)
		c := r.dial()
		send(t, c, []byte("ask"))
		c.CloseWrite()
		receive(t, c, "answer and more")
		wantEOF(t, c)
		r.wantTermination("--")
	})
}

func TestSession_BackendHalfCloseKeepsClientDirection(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, nil, serve(t, kind, func(c conn) {
			send(t, c, []byte("hello"))
			c.CloseWrite()
			receive(t, c, "late words")
			wantEOF(t, c)
		}).address)
		c := r.dial()
		receive(t, c, "hello")
		wantEOF(t, c)
		send(t, c, []byte("late "))
		send(t, c, []byte("words"))
		c.CloseWrite()
		r.wantTermination("--")
	})
}

func TestSession_ServerMaySpeakFirst(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, nil, serve(t, kind, func(c conn) {
			send(t, c, []byte("220 ready\r\n"))
			receive(t, c, "QUIT")
			send(t, c, []byte("bye"))
		}).address)
		c := r.dial()
		receive(t, c, "220 ready\r\n")
		send(t, c, []byte("QUIT"))
		receive(t, c, "bye")
		wantEOF(t, c)
		c.Close()
		r.wantTermination("--")
	})
}

func TestSession_FINWithTheFirstBytesIsNotLost(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, nil, serve(t, kind, echo).address)
		for range 50 { // bytes and FIN are there when the session begins, or come at any moment of it
			c := r.dial()
			send(t, c, []byte("one shot"))
			c.CloseWrite()
			receive(t, c, "one shot")
			wantEOF(t, c)
			c.Close()
		}
		for _, rec := range r.ended(50) {
			if rec.Termination.String() != "--" {
				t.Errorf("termination code: got %v; want --", rec.Termination)
			}
		}
	})
}

// The client's silence before its first byte is not the backend's latency; its first answer is counted, once.
func TestSession_FirstByteIsTimedFromTheClientsFirst(t *testing.T) {
	const silence, work = 300 * time.Millisecond, 50 * time.Millisecond
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		for range 2 {
			receive(t, c, "ask")
			time.Sleep(work) // the backend's own time, which is measured
			send(t, c, []byte("answer"))
		}
	}).address)
	c := r.dial()
	time.Sleep(silence)
	for range 2 {
		send(t, c, []byte("ask"))
		receive(t, c, "answer")
	}
	wantEOF(t, c)
	r.wantTermination("--")
	h := r.pool.Backends()[0].FirstByteTime.Snapshot()
	if h.Count() != 1 || h.Sum < work-5*time.Millisecond || h.Sum >= silence {
		t.Errorf("time to the first byte: got %d in %v; want one of %v", h.Count(), h.Sum, work)
	}
}

func TestSession_FullCloseOfUnixBackendClosesClientBothWays(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		receive(t, c, "ask")
		send(t, c, []byte("answer"))
	}).address)
	c := r.dial()
	send(t, c, []byte("ask"))
	receive(t, c, "answer")
	wantEOF(t, c)
	// The client has not closed its side; nothing waits for it.
	if rec := r.wantTermination("--"); rec.BytesIn != 3 || rec.BytesOut != 6 {
		t.Errorf("bytes in the record: got %d in, %d out; want 3 and 6", rec.BytesIn, rec.BytesOut)
	}
}

func TestSession_UnixBackendThatClosesAfterItsHalfCloseEndsTheSession(t *testing.T) {
	gone := make(chan struct{})
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		receive(t, c, "ask")
		send(t, c, []byte("answer"))
		c.CloseWrite()
		<-gone
	}).address)
	c := r.dial()
	send(t, c, []byte("ask"))
	receive(t, c, "answer")
	wantEOF(t, c)
	if n := r.proxy.Sessions(); n != 1 {
		t.Errorf("sessions after the half-close: got %d; want 1", n)
	}
	close(gone)
	r.wantTermination("--")
}

// TestSession_UrgentByteBeforeTheEndCutsNothingOff: to splice(2) an urgent byte with a FIN behind it is the
// end of the stream.
func TestSession_UrgentByteBeforeTheEndCutsNothingOff(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		for _, behind := range []int{0, 1, 100_000} {
			got := make(chan int64, 1)
			r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, kind, func(c conn) {
				n, err := io.Copy(io.Discard, struct{ io.Reader }{c})
				failIf(t, err, "read of what the client sent")
				got <- n
			}).address)
			c := r.dial()
			r.proxy.BytesBeforeDeadlines(func() { // lb sees it all at once
				send(t, c, make([]byte, 30_000))
				raw, err := c.SyscallConn()
				failIf(t, err, "SyscallConn")
				raw.Control(func(fd uintptr) { failIf(t, unix.Sendto(int(fd), []byte{'U'}, unix.MSG_OOB, nil), "urgent byte") })
				send(t, c, make([]byte, behind))
				failIf(t, c.CloseWrite(), "half-close")
			})
			if n, want := await(t, "the end of the stream", got), int64(30_001+behind); n != want {
				t.Errorf("bytes at the backend, %d behind the urgent one: got %d; want %d", behind, n, want)
			}
			if rec := r.wantTermination("--"); rec.BytesIn != uint64(30_001+behind) {
				t.Errorf("bytes in the record: got %d; want %d", rec.BytesIn, 30_001+behind)
			}
		}
	})
}

func TestSession_UrgentByteIsCarriedInline(t *testing.T) {
	for _, mode := range []string{"copy", "splice"} {
		backendKinds(t, func(t *testing.T, kind string) {
			t.Run(mode, func(t *testing.T) {
				r := newRig(t, func(s *setup) {
					if mode == "splice" {
						s.prepare = func(p *proxy.Proxy) { p.SetRelayLimits(1024, 1<<20, 1024, 1, 64<<10) }
					}
				}, serve(t, kind, echo).address)
				c := r.dial()
				up, down := newStream(1), newStream(1)
				exchange := func(n int) {
					t.Helper()
					got := make([]byte, n)
					if _, err := io.ReadFull(c, got); err != nil {
						t.Fatalf("read of %d bytes: %v", n, err)
					}
					if err := down.check(got); err != nil {
						t.Fatal(err)
					}
				}
				for range 20 {
					if err := up.sendTo(c, 2000); err != nil {
						t.Fatal(err)
					}
					raw, _ := c.SyscallConn()
					raw.Write(func(fd uintptr) bool {
						if err := unix.Sendto(int(fd), up.next(1), unix.MSG_OOB, nil); err != nil {
							t.Errorf("send of the urgent byte: %v", err)
						}
						return true
					})
					exchange(2001)
					if err := up.sendTo(c, 3); err != nil { // after the mark
						t.Fatal(err)
					}
					exchange(3)
				}
				c.CloseWrite()
				wantEOF(t, c)
				r.wantTermination("--")
			})
		})
	}
}

// A read of a Unix socket stops behind a message with descriptors, which lb does not pass on. What is behind
// it is.
func TestSession_BytesBehindDescriptorsAreNotLost(t *testing.T) {
	heard := make(chan string, 1)
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{bindAddress(t, unixSocket)} }, serve(t, unixSocket, func(c conn) {
		b, err := io.ReadAll(c)
		failIf(t, err, "backend")
		heard <- string(b)
	}).address)
	c := r.dial()
	release := r.proxy.HoldLoops()
	if _, _, err := c.(*net.UnixConn).WriteMsgUnix([]byte("with a descriptor, "), unix.UnixRights(0), nil); err != nil {
		t.Error(err)
	}
	send(t, c, []byte("and without"))
	c.CloseWrite()
	release()
	if got := await(t, "the client's words", heard); got != "with a descriptor, and without" {
		t.Errorf("heard: got %q; want everything", got)
	}
	c.Close()
	r.ended(1)
}

// blocked waits until a counter stands still: the sender has filled every buffer on its way.
func blocked(t testing.TB, sent *atomic.Int64) int64 {
	t.Helper()
	last, since := int64(-1), time.Now()
	eventually(t, "the sender is blocked", func() bool {
		if n := sent.Load(); n != last {
			last, since = n, time.Now()
		}
		return last > 0 && time.Since(since) > 100*time.Millisecond
	})
	return last
}

// buffered is a socket with buffers of its own.
type buffered interface {
	SetReadBuffer(bytes int) error
	SetWriteBuffer(bytes int) error
}

// trickle writes n bytes of a stream and counts them as they go.
func trickle(c conn, s *stream, n int, sent *atomic.Int64) error {
	for n > 0 {
		k := min(n, 32<<10)
		if err := s.sendTo(c, k); err != nil {
			return err
		}
		sent.Add(int64(k))
		n -= k
	}
	return c.CloseWrite()
}

func TestSession_SlowReaderBlocksTheSender(t *testing.T) {
	const total = 8 << 20 // more than the kernel buffers together, which are small here
	for _, mode := range []string{"copy", "splice"} {
		for _, towards := range []string{"backend", "client"} {
			backendKinds(t, func(t *testing.T, kind string) {
				t.Run(mode+" to "+towards, func(t *testing.T) {
					var sent atomic.Int64
					begin, read := make(chan struct{}), make(chan struct{})
					finished := make(chan error, 2)
					up, down := newStream(1), newStream(1)
					source := func(c conn) {
						c.(buffered).SetWriteBuffer(64 << 10)
						<-begin
						finished <- trickle(c, up, total, &sent)
					}
					sink := func(c conn) {
						c.(buffered).SetReadBuffer(64 << 10)
						<-read
						n, err := down.receiveFrom(c)
						if err == nil && n != total {
							err = fmt.Errorf("got %d bytes; want %d", n, total)
						}
						finished <- err
					}
					here, there := source, sink
					if towards == "client" {
						here, there = sink, source
					}
					r := newRig(t, func(s *setup) {
						s.prepare = func(p *proxy.Proxy) {
							if mode == "splice" {
								p.SetRelayLimits(16<<10, 1<<20, 16<<10, 1, 128<<10)
							} else {
								p.DenyPipes()
							}
						}
					}, serve(t, kind, there).address)
					c := r.dial()
					go here(c)
					eventually(t, "the session is there", func() bool { return r.pool.Active() == 1 })
					r.proxy.ShrinkBuffers(256<<10, 256<<10)
					close(begin)
					if n := blocked(t, &sent); n >= total {
						t.Errorf("the sender was not blocked: sent %d of %d bytes", n, total)
					}
					h := r.proxy.Holdings()
					if mode == "splice" {
						if h.Pipes != 1 || h.Piped == 0 || h.Piped > 128<<10 || h.Buffers != 0 {
							t.Errorf("held while blocked: got %+v; want one pipe, not empty, of at most 128 KiB, and nothing else", h)
						}
					} else if h.Buffers != 1 || h.Buffered == 0 || h.Buffered > 64<<10 || h.Pipes != 0 {
						t.Errorf("held while blocked: got %+v; want one buffer, not empty, of at most 64 KiB, and nothing else", h)
					}
					before := cpuTime()
					time.Sleep(50 * time.Millisecond) // a loop that spins would show
					if used := cpuTime() - before; used > 25*time.Millisecond {
						t.Errorf("processor time while blocked for 50ms: got %v; want next to nothing", used)
					}
					close(read)
					for range 2 {
						failIf(t, await(t, "end of a transfer", finished), "transfer")
					}
					c.Close()
					r.wantTermination("--")
				})
			})
		}
	}
}

// cpuTime is what this process has used.
func cpuTime() time.Duration {
	var u unix.Rusage
	unix.Getrusage(unix.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func TestRelay_SplicesLargeTransfersBothWaysAtOnce(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		const total = 8 << 20
		both := func(c conn, seedOut, seedIn uint64) error {
			finished := make(chan error, 1)
			go func() {
				err := newStream(seedOut).sendTo(c, total)
				c.CloseWrite()
				finished <- err
			}()
			n, err := newStream(seedIn).receiveFrom(c)
			if err == nil && n != total {
				err = fmt.Errorf("got %d bytes; want %d", n, total)
			}
			if sendErr := <-finished; sendErr != nil {
				return sendErr
			}
			return err
		}
		r := newRig(t, nil, serve(t, kind, func(c conn) { failIf(t, both(c, 2, 1), "backend") }).address)
		c := r.dial()
		failIf(t, both(c, 1, 2), "client")
		rec := r.wantTermination("--")
		if rec.BytesIn != total || rec.BytesOut != total {
			t.Errorf("bytes in the record: got %d in, %d out; want %d", rec.BytesIn, rec.BytesOut, total)
		}
		if n := r.proxy.Stats.SplicedBytes.Load(); n < total {
			t.Errorf("spliced bytes: got %d; want at least half of %d", n, 2*total)
		}
		if h := r.proxy.Holdings(); h.Pipes != 0 || int64(h.Idle) != r.proxy.Stats.Pipes.Load() {
			t.Errorf("pipes after the session: got %+v, %d open; want all idle", h, r.proxy.Stats.Pipes.Load())
		}
	})
}

func TestSession_IdleHoldsNeitherPipeNorBuffer(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, nil, serve(t, kind, echo).address)
		var conns []conn
		for i := range 8 {
			c := r.dial()
			conns = append(conns, c)
			finished := make(chan error, 1)
			go func() { finished <- newStream(uint64(i)).sendTo(c, 4<<20) }()
			got := make([]byte, 4<<20)
			if _, err := io.ReadFull(c, got); err != nil {
				t.Fatal(err)
			}
			failIf(t, await(t, "end of sending", finished), "send")
		}
		if r.proxy.Stats.SplicedBytes.Load() == 0 {
			t.Error("nothing was spliced: this test would see no pipe")
		}
		eventually(t, "idle sessions hold nothing", func() bool {
			h := r.proxy.Holdings()
			return h.Sessions == 8 && h.Pipes == 0 && h.Buffers == 0
		})
		for _, c := range conns {
			c.Close()
		}
		r.ended(8)
	})
}

func TestRelay_CopiesWhenThereIsNoPipe(t *testing.T) {
	r := newRig(t, func(s *setup) { s.prepare = (*proxy.Proxy).DenyPipes }, serve(t, unixSocket, echo).address)
	c := r.dial()
	finished := make(chan error, 1)
	go func() {
		err := newStream(1).sendTo(c, 8<<20)
		c.CloseWrite()
		finished <- err
	}()
	n, err := newStream(1).receiveFrom(c)
	if err != nil || n != 8<<20 {
		t.Errorf("transfer: got %d bytes, %v; want %d", n, err, 8<<20)
	}
	failIf(t, await(t, "end of sending", finished), "send")
	r.wantTermination("--")
	if r.proxy.Stats.PipesDenied.Load() == 0 || r.proxy.Stats.SplicedBytes.Load() != 0 {
		t.Errorf("pipes denied: got %d, and %d bytes spliced; want some, and none", r.proxy.Stats.PipesDenied.Load(), r.proxy.Stats.SplicedBytes.Load())
	}
}

func TestLoop_StaleEventsDoNotTouchTheNextTenant(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	c := r.dial()
	send(t, c, []byte("first tenant"))
	receive(t, c, "first tenant")
	c.Close()
	r.ended(1)
	var conns []conn
	for range 4 { // some take the freed slot
		c := r.dial()
		send(t, c, []byte("x"))
		receive(t, c, "x")
		conns = append(conns, c)
	}
	r.proxy.InjectStaleEvents(unix.EPOLLIN | unix.EPOLLERR | unix.EPOLLHUP | unix.EPOLLRDHUP)
	for _, c := range conns {
		send(t, c, []byte("still here"))
		receive(t, c, "still here")
		c.Close()
	}
	for _, rec := range r.ended(5) {
		if rec.Termination.String() != "--" {
			t.Errorf("termination code: got %v; want --", rec.Termination)
		}
	}
}
