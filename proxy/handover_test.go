package proxy_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/handoff"
	"github.com/273ebdf9/lb/proxy"
)

// taker is a worker in this process: it takes connections from a channel, and greets each with its name.
type taker struct {
	testing.TB
	name  string
	front int // lb's end, of which the proxy has a copy
	back  int // the worker's end

	mu      sync.Mutex
	conns   []net.Conn     // guarded by mu
	ids     map[uint64]int // guarded by mu; how often each was taken
	ended   chan struct{}  // closed when run has returned
	stopped atomic.Bool    // it takes nothing, as if it hung
	resume  chan struct{}  // closed when it goes on
	mute    bool           // it takes and says nothing
}

// newTaker adds a backend with a channel to the rig's pool.
func (r *rig) newTaker(name string, weight int) *taker {
	r.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.Fatal(err)
	}
	w := &taker{TB: r.TB, name: name, front: pair[0], back: pair[1], ids: map[uint64]int{}, ended: make(chan struct{}), resume: make(chan struct{})}
	cfg := backends.DefaultBackendConfig()
	cfg.Name, cfg.Address, cfg.Weight = name, "unix:/nowhere/"+name, weight
	b, err := r.pool.Add(cfg, backends.HealthStarting)
	if err != nil {
		r.Fatal(err)
	}
	if err := r.proxy.OpenChannel(b, proxy.ChannelConfig{Front: w.front, Back: w.back}); err != nil {
		r.Fatal(err)
	}
	r.pool.SetHealth(b, backends.HealthUp, "test")
	go w.run()
	r.Cleanup(func() { w.die(r) })
	return w
}

// die is the end of the worker's process, as its supervisor sees it.
func (w *taker) die(r *rig) {
	if w.back < 0 {
		return
	}
	// run returns; a process that dies has no such thing, and loses nothing more
	unix.Shutdown(w.back, unix.SHUT_RDWR)
	<-w.ended
	r.proxy.CloseChannel(r.pool.Get(w.name))
	unix.Close(w.front)
	unix.Close(w.back)
	w.back = -1
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.conns {
		c.Close()
	}
}

// run takes connections until the channel ends.
func (w *taker) run() {
	defer close(w.ended)
	for {
		polled := []unix.PollFd{{Fd: int32(w.back), Events: unix.POLLIN}}
		unix.Poll(polled, -1)
		if w.stopped.Load() {
			if polled[0].Revents&unix.POLLHUP != 0 {
				return
			}
			<-w.resume
			continue
		}
		if !w.takeOne() {
			return
		}
	}
}

// takeOne takes a connection if there is one. It reports false when there will be none any more.
func (w *taker) takeOne() bool {
	buf, oob := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	n, oobn, _, _, err := unix.Recvmsg(w.back, buf, oob, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
	if err == unix.EAGAIN {
		return true
	}
	if err != nil || n == 0 {
		return false
	}
	c, err := handoff.ParseConnection(buf[:n])
	if err != nil {
		w.Errorf("lb said %q: %v", buf[:n], err)
		return false
	}
	messages, err := unix.ParseSocketControlMessage(oob[:oobn])
	if err != nil || len(messages) != 1 {
		w.Errorf("no descriptor came: %v", err)
		return false
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		w.Error(err)
		return false
	}
	f := os.NewFile(uintptr(fds[0]), "conn")
	conn, err := net.FileConn(f)
	f.Close()
	if !w.mute {
		unix.Sendto(w.back, []byte{byte(handoff.Taken)}, unix.MSG_NOSIGNAL, nil)
	}
	if err != nil {
		return true
	}
	if c.Probe {
		conn.Close()
		return true
	}
	w.mu.Lock()
	w.ids[c.ID]++
	w.conns = append(w.conns, conn)
	w.mu.Unlock()
	fmt.Fprintf(conn, "%s\n", w.name)
	go w.serve(conn)
	return true
}

// serve echoes until the client has said all, and closes.
func (w *taker) serve(conn net.Conn) {
	io.Copy(conn, conn)
	conn.Close()
}

func (w *taker) taken() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.conns)
}

// greeting reads the name of the worker that has the client's connection.
func (r *rig) greeting(c net.Conn) string {
	r.Helper()
	c.SetReadDeadline(time.Now().Add(ioTimeout))
	b := make([]byte, 0, 16)
	for {
		var one [1]byte
		if _, err := c.Read(one[:]); err != nil {
			r.Fatalf("no greeting: %v after %q", err, b)
		}
		if one[0] == '\n' {
			return string(b)
		}
		b = append(b, one[0])
	}
}

func (r *rig) client() net.Conn {
	r.Helper()
	c, err := net.Dial("tcp", r.ln.Addresses()[0])
	if err != nil {
		r.Fatal(err)
	}
	r.Cleanup(func() { c.Close() })
	return c
}

// handsOff configures a pool that hands over.
func handsOff(s *setup) {
	s.pool.Handoff = backends.HandoffLB
	s.pool.HandoffTimeout = 500 * time.Millisecond
}

func TestHandOff_WorkerAndClientSpeakDirectly(t *testing.T) {
	r := newRig(t, handsOff)
	w := r.newTaker("w0", 100)
	c := r.client()
	if got := r.greeting(c); got != "w0" {
		t.Errorf("got a greeting of %q; want w0", got)
	}
	if got, want := w.conns[0].RemoteAddr().String(), c.LocalAddr().String(); got != want {
		t.Errorf("the worker sees client %s; want %s", got, want)
	}
	fmt.Fprint(c, "0123456789")
	if _, err := io.ReadFull(c, make([]byte, 10)); err != nil {
		t.Fatal(err)
	}
	b := r.pool.Get("w0")
	eventually(t, "the connection counts as taken", func() bool { return b.Untaken() == 0 })
	if b.Active() != 1 || r.proxy.Sessions() != 1 || r.ln.Active() != 1 {
		t.Errorf("got %d active, %d sessions, %d of the listener; want 1 each", b.Active(), r.proxy.Sessions(), r.ln.Active())
	}
	list := r.proxy.SessionList()
	if len(list) != 1 || list[0].Phase != "handed off" || list[0].BytesIn != 10 {
		// what went out is acknowledged later
		t.Errorf("got sessions %+v; want one, handed off, with 10 bytes in", list)
	}
	c.Close()
	rec := r.wantTermination("-H")
	if rec.BytesIn != 10 || rec.BytesOut != 13 || rec.Backend != b || rec.ConnectTime < 0 {
		t.Errorf("got %d bytes in, %d out, backend %v, connected after %v; want 10, 13, w0", rec.BytesIn, rec.BytesOut, rec.Backend, rec.ConnectTime)
	}
	if n := b.Counters.Connections.Load(); n != 1 {
		t.Errorf("got %d connections of the backend; want 1", n)
	}
}

// The kernel counts a FIN as a byte, also one that it has not told lb of. However the client ends the
// connection, the access log has what was carried. Where the worker closes first, the kernel gives the socket
// up before the client's FIN comes, and says nothing of that: a byte less came in then.
func TestHandOff_BytesAreThoseThatWereCarried(t *testing.T) {
	for name, test := range map[string]struct {
		end   func(c *net.TCPConn, worker net.Conn)
		short uint64 // how many bytes from the client may be missing
	}{
		"the client closes":      {end: func(c *net.TCPConn, _ net.Conn) { c.Close() }},
		"the client half-closes": {end: func(c *net.TCPConn, _ net.Conn) { c.CloseWrite() }},
		"the client resets":      {end: func(c *net.TCPConn, _ net.Conn) { c.SetLinger(0); c.Close() }},
		"the worker closes":      {end: func(_ *net.TCPConn, worker net.Conn) { worker.Close() }, short: 1},
	} {
		for _, says := range []string{"", "0123456789"} {
			t.Run(fmt.Sprintf("%s after %d bytes", name, len(says)), func(t *testing.T) {
				r := newRig(t, handsOff)
				w := r.newTaker("w0", 100)
				c := r.client().(*net.TCPConn)
				r.greeting(c)
				fmt.Fprint(c, says)
				if _, err := io.ReadFull(c, make([]byte, len(says))); err != nil {
					t.Fatal(err)
				}
				eventually(t, "lb hears that it is taken, and the client acknowledges all", func() bool {
					return r.pool.Get("w0").Untaken() == 0 && proxy.Unacknowledged(w.conns[0]) == 0
				})
				test.end(c, w.conns[0])
				rec := r.wantTermination("-H")
				in, out := uint64(len(says)), uint64(len(says)+3)
				if rec.BytesIn > in || rec.BytesIn+test.short < in || rec.BytesOut != out {
					t.Errorf("got %d bytes in, %d out; want %d, %d", rec.BytesIn, rec.BytesOut, in, out)
				}
			})
		}
	}
}

// endsSocket returns the descriptor by which the only proxy of this process hears of ends.
func endsSocket(t *testing.T) int {
	t.Helper()
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		fd, _ := strconv.Atoi(name.Name())
		addr, err := unix.Getsockname(fd)
		if netlink, ok := addr.(*unix.SockaddrNetlink); err == nil && ok && netlink.Groups != 0 {
			return fd
		}
	}
	t.Fatal("the proxy hears of no ends")
	return -1
}

// TestHandOff_EndsAreSeenThoughTheKernelCannotTell: an error of the socket that tells of ends passes, and lb
// asks meanwhile.
func TestHandOff_EndsAreSeenThoughTheKernelCannotTell(t *testing.T) {
	r := newRig(t, handsOff)
	r.newTaker("w0", 100)
	b := r.pool.Get("w0")
	clients := []net.Conn{r.client(), r.client(), r.client()}
	for _, c := range clients {
		r.greeting(c)
	}
	eventually(t, "the connections count as taken", func() bool { return b.Untaken() == 0 })
	told := endsSocket(t)
	kept, err := unix.FcntlInt(uintptr(told), unix.F_DUPFD_CLOEXEC, 0)
	failIf(t, err, "dup of the socket")
	defer unix.Close(kept)
	directory, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0) // a read of it fails
	failIf(t, err, "open")
	defer unix.Close(directory)
	failIf(t, unix.Dup3(directory, told, unix.O_CLOEXEC), "dup3")
	clients[0].Close()
	clients[1].Close()
	r.ended(2)
	failIf(t, unix.Dup3(kept, told, unix.O_CLOEXEC), "dup3")
	clients[2].Close()
	if rec := r.recordOf(3, clients[2].(*net.TCPConn)); rec.BytesOut != 3 {
		t.Errorf("bytes of the connection that the kernel told of: got %d; want 3", rec.BytesOut)
	}
}

func TestChannel_ThatTheKernelCannotWatchIsWatchedLater(t *testing.T) {
	r := newRig(t, handsOff)
	restore := r.proxy.BreakEpoll(unix.EPOLL_CTL_ADD)
	r.newTaker("w0", 100)
	restore()
	if got := r.greeting(r.client()); got != "w0" {
		t.Errorf("got a greeting of %q; want w0", got)
	}
	eventually(t, "lb hears that the connection is taken", func() bool { return r.pool.Get("w0").Untaken() == 0 })
}

func TestHandOff_IsExact(t *testing.T) {
	for _, listen := range []string{"127.0.0.1:0", "[::1]:0"} {
		for name, weights := range map[string][]int{"even": {100, 100, 100, 100, 100, 100, 100, 100}, "1:3": {100, 300}} {
			t.Run(name+" "+listen, func(t *testing.T) {
				r := newRig(t, func(s *setup) {
					handsOff(s)
					s.pool.HandoffTimeout = ioTimeout // the workers are goroutines beside 400 clients
					s.listener.Bind = []string{listen}
				})
				sum := 0
				var workers []*taker
				for i, weight := range weights {
					workers = append(workers, r.newTaker(fmt.Sprintf("w%d", i), weight))
					sum += weight
				}
				const n = 400
				var running sync.WaitGroup
				clients := make([]net.Conn, n)
				for i := range n {
					running.Go(func() {
						c, err := net.Dial("tcp", r.ln.Addresses()[0])
						if err != nil {
							t.Error(err)
							return
						}
						clients[i] = c
					})
				}
				running.Wait()
				for _, c := range clients {
					r.greeting(c)
				}
				for i, w := range workers {
					if got, want := w.taken(), n*weights[i]/sum; got != want {
						t.Errorf("%s took %d; want %d", w.name, got, want)
					}
					if got := r.pool.Get(w.name).Active(); got != int64(n*weights[i]/sum) {
						t.Errorf("%s counts %d; want %d", w.name, got, n*weights[i]/sum)
					}
				}
				for _, c := range clients {
					c.Close()
				}
				eventually(t, "every count is 0", func() bool { return r.pool.Active() == 0 && r.proxy.Sessions() == 0 })
			})
		}
	}
}

// A worker that hangs has a full window, which others serve; what it had taken stays with it.
func TestHandOff_WhatAHungWorkerHasNotTakenGoesToOthersOnce(t *testing.T) {
	down := make(chan string, 100)
	r := newRig(t, func(s *setup) {
		handsOff(s)
		s.prepare = func(p *proxy.Proxy) { p.OnUntaken = func(b *backends.Backend) { down <- b.Name } }
	})
	hung, other := r.newTaker("w0", 100), r.newTaker("w1", 100)
	kept := r.client()
	first := r.greeting(kept)
	kept2 := r.client()
	r.greeting(kept2)
	if first == "w1" {
		hung, other = other, hung
	}
	hung.stopped.Store(true)
	const n = 16
	var clients []net.Conn
	for range n {
		clients = append(clients, r.client())
	}
	for _, c := range clients {
		if got := r.greeting(c); got != other.name {
			t.Errorf("a new connection was served by %s, which hangs", got)
		}
	}
	if name := <-down; name != hung.name {
		t.Errorf("told of %s; want %s", name, hung.name)
	}
	hung.stopped.Store(false)
	close(hung.resume)
	total := 0
	for _, w := range []*taker{hung, other} {
		w.mu.Lock()
		for id, times := range w.ids {
			if times != 1 {
				t.Errorf("connection %x was taken %d times", id, times)
			}
			total++
		}
		w.mu.Unlock()
	}
	if total != n+2 {
		t.Errorf("%d connections were taken; want %d", total, n+2)
	}
	if got := r.pool.Get(hung.name); got.Active() != 1 || got.Untaken() != 0 {
		t.Errorf("the hung worker counts %d, %d of them untaken; want what it had taken: 1", got.Active(), got.Untaken())
	}
}

func TestHandOff_WhatADeadWorkerHasNotTakenGoesToOthers(t *testing.T) {
	r := newRig(t, handsOff)
	dead := r.newTaker("w0", 100)
	dead.stopped.Store(true)
	var clients []net.Conn
	for range 8 {
		clients = append(clients, r.client())
	}
	b := r.pool.Get("w0")
	eventually(t, "its window is full", func() bool { return b.Untaken() == 8 })
	r.newTaker("w1", 100)
	// Its supervisor's order: no process, then no backend.
	dead.stopped.Store(false)
	dead.resumeNever(r)
	for _, c := range clients {
		if got := r.greeting(c); got != "w1" {
			t.Errorf("served by %s; want w1", got)
		}
	}
}

// With on_down = "close" the sessions of a worker that is down are closed. What it has not taken is none of
// its.
func TestCloseBackend_WhatAWorkerHasNotTakenGoesToOthers(t *testing.T) {
	r := newRig(t, handsOff)
	hung := r.newTaker("w0", 100)
	hung.stopped.Store(true)
	var clients []net.Conn
	for range 8 {
		clients = append(clients, r.client())
	}
	b := r.pool.Get("w0")
	eventually(t, "its window is full", func() bool { return b.Untaken() == 8 })
	r.newTaker("w1", 100)
	r.pool.SetHealth(b, backends.HealthDown, "test")
	r.proxy.TakeBack(b)
	if n, err := r.proxy.CloseBackend(b); n != 0 || err != nil {
		t.Errorf("closed %d, %v; want none", n, err)
	}
	for _, c := range clients {
		if got := r.greeting(c); got != "w1" {
			t.Errorf("served by %s; want w1", got)
		}
	}
	hung.stopped.Store(false)
	close(hung.resume)
}

// A worker that dies after it has read a connection from its channel, and before it has said so, has done
// nothing with it as a rule: lb gives it to another one. What it has touched ends with it.
func TestHandOff_WhatADeadWorkerHasReadAndNotTouchedGoesToOthers(t *testing.T) {
	for name, test := range map[string]struct {
		says      string // the client, before the worker dies
		halfClose bool
		touch     func(conn int) // what the worker does
		goesOn    bool
	}{
		"untouched":                 {goesOn: true},
		"with bytes that wait":      {says: "hello", goesOn: true},
		"with bytes and a FIN":      {says: "hello", halfClose: true, goesOn: true},
		"read from":                 {says: "hello", touch: func(conn int) { unix.Read(conn, make([]byte, 1)) }},
		"written to":                {touch: func(conn int) { unix.Write(conn, []byte("x")) }},
		"read from, with a FIN":     {says: "hello", halfClose: true, touch: func(conn int) { unix.Read(conn, make([]byte, 5)) }},
		"peeked into, not read yet": {says: "hello", touch: func(conn int) { unix.Recvfrom(conn, make([]byte, 5), unix.MSG_PEEK) }, goesOn: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, handsOff)
			dead := r.newTaker("w0", 100)
			dead.stopped.Store(true)
			c := r.client()
			fmt.Fprint(c, test.says)
			if test.halfClose {
				c.(*net.TCPConn).CloseWrite()
			}
			b := r.pool.Get("w0")
			eventually(t, "it is given", func() bool { return b.Untaken() == 1 })
			oob := make([]byte, unix.CmsgSpace(4))
			_, oobn, _, _, err := unix.Recvmsg(dead.back, make([]byte, 256), oob, unix.MSG_CMSG_CLOEXEC)
			if err != nil {
				t.Fatal(err)
			}
			messages, _ := unix.ParseSocketControlMessage(oob[:oobn])
			fds, err := unix.ParseUnixRights(&messages[0])
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "what the client says has come", func() bool {
				n, _ := unix.IoctlGetInt(fds[0], unix.SIOCINQ)
				return n == len(test.says)
			})
			if test.halfClose {
				polled := []unix.PollFd{{Fd: int32(fds[0]), Events: unix.POLLRDHUP}}
				unix.Poll(polled, -1)
			}
			if test.touch != nil {
				test.touch(fds[0])
			}
			unix.Close(fds[0])
			r.newTaker("w1", 100)
			dead.stopped.Store(false)
			dead.resumeNever(r)
			if !test.goesOn {
				r.wantTermination("SH")
				return
			}
			if got := r.greeting(c); got != "w1" {
				t.Errorf("served by %s; want w1", got)
			}
			echo := make([]byte, len(test.says))
			if _, err := io.ReadFull(c, echo); err != nil || string(echo) != test.says {
				t.Errorf("got an echo of %q, %v; want %q", echo, err, test.says)
			}
		})
	}
}

// resumeNever ends the worker before it takes anything.
func (w *taker) resumeNever(r *rig) {
	r.pool.SetHealth(r.pool.Get(w.name), backends.HealthDown, "died")
	r.proxy.CloseChannel(r.pool.Get(w.name))
	close(w.resume)
	w.die(r)
}

// With a window of 1 the queue is lb's, and whoever is free takes the oldest.
func TestHandOff_AFullWindowQueues(t *testing.T) {
	r := newRig(t, func(s *setup) {
		handsOff(s)
		s.pool.HandoffWindow = 1
		s.pool.HandoffTimeout = time.Minute
	})
	w := r.newTaker("w0", 100)
	w.stopped.Store(true)
	var clients []net.Conn
	b := r.pool.Get("w0")
	for i := range 5 {
		clients = append(clients, r.client())
		eventually(t, "one is given, the others wait", func() bool { return b.Untaken() == 1 && r.pool.QueueLen() == i })
	}
	w.stopped.Store(false)
	close(w.resume)
	for _, c := range clients {
		r.greeting(c)
	}
	for i, c := range w.conns {
		if c.RemoteAddr().String() != clients[i].LocalAddr().String() {
			t.Errorf("the %d-th taken is %v; want %v, first come, first served", i, c.RemoteAddr(), clients[i].LocalAddr())
		}
	}
}

func TestProbe_ReturnsWhenTaken(t *testing.T) {
	r := newRig(t, handsOff)
	w := r.newTaker("w0", 100)
	b := r.pool.Get("w0")
	f, err := r.proxy.Probe(context.Background(), b)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	w.stopped.Store(true)
	for range 3 {
		ctx, cancel := context.WithTimeout(context.Background(), 50*time.Millisecond)
		if f, err := r.proxy.Probe(ctx, b); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a worker that hangs: got %v, %v; want a timeout", f, err)
		}
		cancel()
	}
	w.stopped.Store(false)
	close(w.resume)
	if f, err = r.proxy.Probe(context.Background(), b); err != nil {
		t.Fatal(err)
	}
	f.Close()
	if b.Active() != 0 || b.Untaken() != 0 {
		t.Errorf("probes count: %d active, %d untaken", b.Active(), b.Untaken())
	}
}

// overWhen is a context whose time is over when done is closed.
type overWhen struct {
	context.Context
	done chan struct{}
}

func (c overWhen) Done() <-chan struct{} { return c.done }

func (c overWhen) Err() error {
	select {
	case <-c.done:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// A probe waits in line with the clients' connections. That its time is over is no reason to take those back.
func TestProbe_TakesNothingBack(t *testing.T) {
	for name, busy := range map[string]bool{"hung": false, "busy": true} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, func(s *setup) {
				handsOff(s)
				s.pool.HandoffTimeout = time.Minute
			})
			w, other := r.newTaker("w0", 100), r.newTaker("w1", 100)
			w.stopped.Store(true)
			b := r.pool.Get("w0")
			other.stopped.Store(true)
			var clients []net.Conn
			for i := range 40 { // more than the window of either
				clients = append(clients, r.client())
				eventually(t, "it is chosen", func() bool { return r.pool.Active() == int64(i+1) })
			}
			ctx, want := overWhen{t.Context(), make(chan struct{})}, context.DeadlineExceeded
			got := make(chan error)
			go func() {
				_, err := r.proxy.Probe(ctx, b)
				got <- err
			}()
			eventually(t, "the probe is given", func() bool { return proxy.Probing(b) })
			if busy {
				want = proxy.ErrBusy
				w.takeOne()
				eventually(t, "lb hears that one is taken", func() bool { return b.Untaken() == 19 })
			}
			close(ctx.done)
			if err := <-got; !errors.Is(err, want) {
				t.Errorf("got %v; want %v", err, want)
			}
			for _, w := range []*taker{w, other} {
				w.stopped.Store(false)
				close(w.resume)
			}
			for _, c := range clients {
				r.greeting(c)
			}
			if w.taken() != 20 || other.taken() != 20 {
				t.Errorf("taken: got %d and %d; want 20 each", w.taken(), other.taken())
			}
		})
	}
}

func TestChannel_AHostileWorkerCostsItselfOnly(t *testing.T) {
	for name, evil := range map[string]func(fd int){
		"takes more than it was given": func(fd int) { unix.Write(fd, []byte{1}) },
		"speaks nonsense":              func(fd int) { unix.Write(fd, []byte("HTTP/1.1 200 OK\r\n")) },
		"closes the channel":           func(fd int) { unix.Shutdown(fd, unix.SHUT_WR) },
		"tells ends that are none":     func(fd int) { unix.Write(fd, handoff.AppendEnded(nil, handoff.End{ID: 5})) },
		"passes descriptors": func(fd int) {
			unix.Sendmsg(fd, []byte("take this"), unix.UnixRights(fd, fd, fd), nil, 0)
		},
		"floods": func(fd int) {
			for range 1000 {
				unix.Sendto(fd, []byte{byte(handoff.Hello)}, unix.MSG_DONTWAIT, nil)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			broken := make(chan string, 10)
			r := newRig(t, func(s *setup) {
				handsOff(s)
				s.prepare = func(p *proxy.Proxy) {
					p.OnChannel = func(b *backends.Backend, event proxy.ChannelEvent, text string) {
						if event == proxy.ChannelBroken {
							broken <- b.Name + " " + text
						}
					}
				}
			})
			bad := r.newTaker("w0", 100)
			good := r.newTaker("w1", 100)
			evil(bad.back)
			select {
			case <-broken:
			case <-time.After(ioTimeout):
				t.Fatal("nobody noticed")
			}
			for range 10 {
				if got := r.greeting(r.client()); got != good.name {
					t.Errorf("served by %s", got)
				}
			}
		})
	}
}

// A worker may end while lb waits for its last sessions: its channel is read no more, whoever else has
// descriptors of it.
func TestCloseChannel_WhileTheProxyStops(t *testing.T) {
	broken := make(chan string, 100)
	r := newRig(t, func(s *setup) {
		handsOff(s)
		s.prepare = func(p *proxy.Proxy) {
			p.OnChannel = func(_ *backends.Backend, _ proxy.ChannelEvent, text string) {
				select {
				case broken <- text:
				default:
				}
			}
		}
	})
	leaving := r.newTaker("w0", 100)
	leavingFirst := r.client()
	r.greeting(leavingFirst)
	r.newTaker("w1", 100)
	held := r.client()
	r.greeting(held)
	leavingFirst.Close()
	eventually(t, "its session has ended", func() bool { return r.pool.Get("w0").Active() == 0 })
	stopped := make(chan struct{})
	go func() {
		r.proxy.Stop(context.Background())
		close(stopped)
	}()
	eventually(t, "it stops", func() bool { // the listener is closed
		c, err := net.Dial("tcp", r.ln.Addresses()[0])
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	r.proxy.CloseChannel(r.pool.Get("w0"))
	unix.Write(leaving.back, []byte{byte(handoff.Taken)}) // nobody reads it
	held.Close()
	<-stopped
	r.stopped = true
	select {
	case text := <-broken:
		t.Errorf("lb went on reading: %s", text)
	default:
	}
}
