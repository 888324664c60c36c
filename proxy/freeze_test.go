package proxy_test

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/proxy"
)

// throughJSON copies v as another process would read it.
func throughJSON[T any](t testing.TB, v T) (copied T) {
	t.Helper()
	text, err := json.Marshal(v)
	if err == nil {
		err = json.Unmarshal(text, &copied)
	}
	if err != nil {
		t.Fatal(err)
	}
	return copied
}

// handOver freezes the rig's proxy and goes on with another one, which knows nothing but what was frozen and
// the descriptors. It gives how many sessions went over.
func (r *rig) handOver() int {
	r.Helper()
	r.handing.Lock()
	defer r.handing.Unlock()
	frozen, err := r.proxy.Freeze()
	if err != nil {
		r.Fatal(err)
	}
	all := slices.Concat(r.pool.Backends(), slices.DeleteFunc(slices.Clone(frozen.Backends), func(b *backends.Backend) bool { return !b.Removed() }))
	saved := throughJSON(r, r.pool.Save(all[len(r.pool.Backends()):]))
	r.frozen = frozen
	next := proxy.Frozen{
		Epoch: frozen.Epoch, Counts: frozen.Counts, Listeners: throughJSON(r, frozen.Listeners), Sessions: throughJSON(r, frozen.Sessions),
	}
	pool := newPool(r.setup)
	for _, b := range r.pool.Backends() {
		cfg := backends.DefaultBackendConfig()
		cfg.Name, cfg.Address = b.Name, b.Address.String()
		if _, err := pool.Add(cfg, backends.HealthStarting); err != nil {
			r.Fatal(err)
		}
	}
	restored, err := pool.Restore(saved)
	if err != nil {
		r.Fatal(err)
	}
	for range frozen.Pools {
		next.Pools = append(next.Pools, pool)
	}
	for _, b := range frozen.Backends {
		next.Backends = append(next.Backends, restored[slices.Index(all, b)])
	}
	p := r.newProxy()
	p.Inherit(&next)
	ln, err := listen(p, "web", r.setup.listener, pool)
	if err == nil {
		err = p.TakeOver(&next)
	}
	if err != nil {
		r.Fatal(err)
	}
	r.proxy.Abandon()
	r.proxy, r.pool, r.ln = p, pool, ln
	p.Start()
	return len(next.Sessions)
}

func TestFreeze_ThawedLoopsGoOn(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	if _, err := r.proxy.Freeze(); err != nil {
		t.Fatal(err)
	}
	send(t, c, []byte("while it is frozen"))
	newcomer := r.dial()
	send(t, newcomer, []byte("me too"))
	r.proxy.Thaw()
	receive(t, c, "while it is frozen")
	receive(t, newcomer, "me too")
	c.Close()
	newcomer.Close()
	r.ended(2)
}

func TestFreeze_IsRefusedOnceStopped(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	if _, err := r.proxy.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.stopped = true
	if _, err := r.proxy.Freeze(); err != proxy.ErrStopped {
		t.Errorf("Freeze: got %v; want %v", err, proxy.ErrStopped)
	}
}

func TestFreeze_CountsAndTimesGoOn(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	before := r.proxy.SessionList()[0]
	r.handOver()
	talk(t, c)
	after := r.proxy.SessionList()[0]
	if after.ID != before.ID || after.Client != before.Client || after.BytesIn != 8 || after.Backend != before.Backend {
		t.Errorf("session: got %+v; want %+v with 8 bytes in", after, before)
	}
	if d := after.Start.Sub(before.Start).Abs(); d > time.Millisecond {
		t.Errorf("start: moved by %v; want the same", d)
	}
	if n := r.pool.Backends()[0].Active(); n != 1 {
		t.Errorf("active: got %d; want 1", n)
	}
	c.Close()
	rec := r.wantTermination("--")
	if rec.BytesIn != 8 || rec.BytesOut != 8 {
		t.Errorf("bytes of the record: got %d in, %d out; want 8, 8", rec.BytesIn, rec.BytesOut)
	}
	if n := r.ln.Counters.Connections.Load(); n != 1 {
		t.Errorf("connections of the listener: got %d; want 1", n)
	}
	if n := r.pool.Backends()[0].Counters.BytesIn.Load(); n != 8 {
		t.Errorf("bytes of the backend: got %d; want 8", n)
	}
}

func TestFreeze_HalfClosedSessionsGoOn(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		t.Run("by the client", func(t *testing.T) {
			asked, answer := make(chan struct{}), make(chan struct{})
			r := newRig(t, nil, serve(t, kind, func(c conn) {
				if got, err := io.ReadAll(c); err != nil || string(got) != "question" {
					t.Errorf("backend heard %q, %v; want the question", got, err)
				}
				close(asked)
				<-answer
				c.Write([]byte("answer"))
			}).address)
			c := r.dial()
			send(t, c, []byte("question"))
			c.CloseWrite()
			<-asked
			r.handOver()
			close(answer)
			receive(t, c, "answer")
			wantEOF(t, c)
			r.wantTermination("--")
		})
		t.Run("by the backend", func(t *testing.T) {
			heard := make(chan string, 1)
			r := newRig(t, nil, serve(t, kind, func(c conn) {
				c.Write([]byte("banner"))
				c.CloseWrite()
				got, _ := io.ReadAll(c)
				heard <- string(got)
			}).address)
			c := r.dial()
			receive(t, c, "banner")
			wantEOF(t, c)
			r.handOver()
			send(t, c, []byte("last words"))
			c.CloseWrite()
			if got := await(t, "what the client said", heard); got != "last words" {
				t.Errorf("backend heard %q; want the last words", got)
			}
			r.wantTermination("--")
		})
	})
}

// TestFreeze_BytesOnTheirWayArrive holds megabytes for a client that does not read: in a buffer, and in a
// pipe.
func TestFreeze_BytesOnTheirWayArrive(t *testing.T) {
	for name, limits := range map[string]func(*proxy.Proxy){
		"in a buffer": func(p *proxy.Proxy) { p.SetRelayLimits(64<<10, 1<<20, 1<<30, 32<<10, 256<<10) },
		"in a pipe":   func(p *proxy.Proxy) { p.SetRelayLimits(64<<10, 1<<20, 64<<10, 1, 256<<10) },
	} {
		t.Run(name, func(t *testing.T) {
			const total = 32 << 20
			var sent atomic.Int64
			out := newStream(7)
			r := newRig(t, func(s *setup) { s.prepare = limits }, serve(t, unixSocket, func(c conn) {
				failIf(t, trickle(c, out, total, &sent), "backend's write")
			}).address)
			c := r.dial()
			blocked(t, &sent)
			h := r.proxy.Holdings()
			if name == "in a pipe" && h.Piped == 0 || name == "in a buffer" && h.Buffered == 0 {
				t.Fatalf("nothing is held %s: %+v", name, h)
			}
			r.handOver()
			if d := r.frozen.Sessions[0].Directions[1]; len(d.Buffered) != h.Buffered || d.Piped != h.Piped {
				t.Errorf("frozen: got %d bytes, %d in a pipe; want %d, %d", len(d.Buffered), d.Piped, h.Buffered, h.Piped)
			}
			if n, err := newStream(7).receiveFrom(c); err != nil || n != total {
				t.Errorf("the client got %d bytes, %v; want %d", n, err, total)
			}
			c.Close()
			r.ended(1)
		})
	}
}

// TestFreeze_AnEndUnderWayGoesOn hands sessions over that a reset is about to end: what was taken before it
// still arrives, then the reset, with the termination of the side that caused it; also over hand-overs one
// after the other.
func TestFreeze_AnEndUnderWayGoesOn(t *testing.T) {
	const total = 400_000
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, nil, serve(t, kind, func(c conn) {
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
		got, over := make(chan int, 1), false
		go func() { got <- readToReset(t, c) }()
		for !over {
			r.handOver()
			select {
			case n := <-got:
				over = true
				if n != total {
					t.Errorf("bytes before the reset: got %d; want %d", n, total)
				}
			default:
			}
		}
		if rec := r.wantTermination("SD"); rec.BytesOut != total {
			t.Errorf("bytes in the record: got %d; want %d", rec.BytesOut, total)
		}
	})
}

func TestFreeze_AConnectUnderWayGoesOn(t *testing.T) {
	t.Parallel()
	address, answer := slowListener(t)
	r := newRig(t, func(s *setup) { s.pool.ConnectTimeout = time.Minute }, address)
	c := r.dial()
	send(t, c, []byte("word"))
	eventually(t, "the session connects", func() bool {
		list := r.proxy.SessionList()
		return len(list) == 1 && list[0].Phase == "connecting"
	})
	r.handOver()
	if got := r.proxy.SessionList()[0].Phase; got != "connecting" {
		t.Errorf("phase: got %q; want connecting", got)
	}
	answer()
	receive(t, c, "word")
	c.Close()
	r.ended(1)
}

func TestFreeze_TheQueueKeepsItsOrder(t *testing.T) {
	const waiting = 40
	r := queued(t, nil)
	first := r.dial()
	talk(t, first)
	var clients []conn
	for i := range waiting {
		clients = append(clients, r.dial())
		r.waits(i + 1)
	}
	r.handOver()
	r.waits(waiting)
	if n := r.pool.Queue.Queued.Load(); n != waiting {
		t.Errorf("queued in all: got %d; want %d", n, waiting)
	}
	first.Close()
	for i, c := range clients {
		talk(t, c) // whoever is served out of turn keeps the only slot, and this one never has it
		if n := r.pool.QueueLen(); n != waiting-i-1 {
			t.Fatalf("queue: got %d; want %d", n, waiting-i-1)
		}
		c.Close()
	}
	r.ended(waiting + 1)
}

func TestFreeze_AProxyHeaderIsReadToItsEnd(t *testing.T) {
	r := newRig(t, func(s *setup) { s.listener.AcceptProxy = true }, serve(t, unixSocket, echo).address)
	c := r.dial()
	send(t, c, []byte("PROXY TCP4 192.0.2.1 192.0."))
	eventually(t, "the header is awaited", func() bool {
		list := r.proxy.SessionList()
		return len(list) == 1 && list[0].Phase == "header"
	})
	r.handOver()
	send(t, c, []byte("2.2 1000 2000\r\nword"))
	receive(t, c, "word")
	if got := r.proxy.SessionList()[0].Client.String(); got != "192.0.2.1:1000" {
		t.Errorf("client: got %s; want that of the header", got)
	}
	r.handOver()
	if got := r.proxy.SessionList()[0].Client.String(); got != "192.0.2.1:1000" {
		t.Errorf("client after another hand-over: got %s; want that of the header", got)
	}
	c.Close()
	r.ended(1)
}

// TestFreeze_TimeoutsComeWhenTheyWereDue hands over when most of each timeout has passed.
func TestFreeze_TimeoutsComeWhenTheyWereDue(t *testing.T) {
	t.Parallel()
	const timeout = time.Second
	due := func(t *testing.T, start time.Time) {
		t.Helper()
		if took := time.Since(start); took < timeout-proxy.TimeoutPrecision {
			t.Errorf("timeout after %v; want %v", took, timeout)
		}
	}
	handOverLate := func(r *rig, start time.Time) {
		r.Helper()
		eventually(r, "most of the timeout has passed", func() bool { return time.Since(start) > timeout*3/4 })
		r.handOver()
		before := r.frozen.Sessions
		r.handOver()
		if after := r.frozen.Sessions; time.Since(start) < timeout {
			for i := range after { // nothing has ended yet
				if after[i].Timer != before[i].Timer {
					r.Errorf("due: got %v after a hand-over; want %v as before", after[i].Timer, before[i].Timer)
				}
			}
		}
	}
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, func(s *setup) { s.pool.IdleTimeout = timeout }, serve(t, unixSocket, echo).address)
		c := r.dial()
		start := time.Now() // the silence begins later
		talk(t, c)
		handOverLate(r, start)
		wantEOF(t, c)
		due(t, start)
		r.wantTermination("cD")
	})
	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		r := queued(t, func(s *setup) { s.pool.QueueTimeout = timeout })
		first := r.dial()
		talk(t, first)
		start := time.Now()
		c := r.dial()
		r.waits(1)
		handOverLate(r, start)
		wantEOF(t, c)
		due(t, start)
		r.wantTermination("sQ")
		first.Close()
		r.ended(2)
	})
	t.Run("header", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, func(s *setup) { s.listener.AcceptProxy, s.listener.ProxyTimeout = true, timeout }, serve(t, unixSocket, echo).address)
		start := time.Now()
		c := r.dial()
		send(t, c, []byte("PROXY"))
		handOverLate(r, start)
		if _, err := c.Read(make([]byte, 1)); err == nil { // a reset, as its bytes were not read
			t.Error("read at the end: got bytes; want an end")
		}
		due(t, start)
		r.wantTermination("cR")
	})
	t.Run("connect", func(t *testing.T) {
		t.Parallel()
		r := newRig(t, func(s *setup) { s.pool.ConnectTimeout = timeout }, blackHole(t))
		start := time.Now()
		c := r.dial()
		eventually(t, "the session connects", func() bool { return len(r.proxy.SessionList()) == 1 })
		handOverLate(r, start)
		wantEOF(t, c)
		due(t, start)
		r.wantTermination("sC")
	})
}

func TestFreeze_SourceLimitsGoOn(t *testing.T) {
	r := newRig(t, func(s *setup) { s.listener.SourceMaxConns = 1 }, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	r.handOver()
	wantEOF(t, r.dial()) // the second one of its address
	r.ended(1)
	c.Close()
	r.ended(2)
	eventually(t, "the place is free", func() bool { return r.ln.LiveSources() == 0 })
	again := r.dial()
	talk(t, again)
	again.Close()
	r.ended(3)
}

func TestTakeOver_RefusesWhatDoesNotFit(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	frozen, err := r.proxy.Freeze()
	if err != nil {
		t.Fatal(err)
	}
	defer func() { c.Close(); r.ended(1) }()
	defer r.proxy.Thaw()
	for name, spoil := range map[string]func(*proxy.SavedSession){
		"listener":       func(s *proxy.SavedSession) { s.Listener = 9 },
		"no listener":    func(s *proxy.SavedSession) { s.Listener = -1 },
		"pool":           func(s *proxy.SavedSession) { s.Pool = 9 },
		"no pool":        func(s *proxy.SavedSession) { s.Pool = -1 },
		"backend":        func(s *proxy.SavedSession) { s.Backend = 9 },
		"no backend":     func(s *proxy.SavedSession) { s.Backend = -1 },
		"phase":          func(s *proxy.SavedSession) { s.Phase = 200 },
		"free":           func(s *proxy.SavedSession) { s.Phase = 0 },
		"loop":           func(s *proxy.SavedSession) { s.Loop = -1 },
		"tried":          func(s *proxy.SavedSession) { s.Tried = []int{-1} },
		"no client":      func(s *proxy.SavedSession) { s.Ends[0].FD = -1 },
		"closed socket":  func(s *proxy.SavedSession) { s.Ends[1].FD = 1 << 20 },
		"side":           func(s *proxy.SavedSession) { s.LastFrom = 2 },
		"too much piped": func(s *proxy.SavedSession) { s.Directions[0].Piped = 1 },
	} {
		t.Run(name, func(t *testing.T) {
			pool := backends.NewPool("pool", backends.DefaultConfig(), new(balancer.LeastConn))
			cfg := backends.DefaultBackendConfig()
			cfg.Name, cfg.Address = "b", "unix:/nowhere"
			b, err := pool.Add(cfg, backends.HealthUp)
			if err != nil {
				t.Fatal(err)
			}
			next := proxy.Frozen{Listeners: []proxy.SavedListener{{Name: "web", Pool: 0}}, Sessions: throughJSON(t, frozen.Sessions),
				Pools: []*backends.Pool{pool}, Backends: []*backends.Backend{b}}
			spoil(&next.Sessions[0])
			p, err := proxy.New(r.setup.proxy)
			if err != nil {
				t.Fatal(err)
			}
			if err := p.TakeOver(&next); err == nil {
				t.Error("TakeOver: got no error")
			}
			p.Start()
			if _, err := p.Freeze(); err != nil {
				t.Fatal(err)
			}
			p.Abandon()
		})
	}
}

// slowListener is a TCP address that does not answer until answer is called, and then echoes.
func slowListener(t *testing.T) (address string, answer func()) {
	t.Helper()
	fd, address, hangUp := fullListener(t)
	return address, func() {
		hangUp()
		accepting := make(chan struct{})
		go func() {
			defer close(accepting)
			for {
				c, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
				if err != nil {
					return
				}
				go echoRaw(c)
			}
		}()
		t.Cleanup(func() { unix.Shutdown(fd, unix.SHUT_RD); <-accepting })
	}
}

// echoRaw sends back what comes, until the end.
func echoRaw(fd int) {
	defer unix.Close(fd)
	for buf := make([]byte, 64); ; {
		n, err := unix.Read(fd, buf)
		if n <= 0 || err != nil {
			return
		}
		unix.Write(fd, buf[:n])
	}
}
