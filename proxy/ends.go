package proxy

// How lb hears that a handed-off connection has ended: the kernel says so (package sockdiag), or the worker
// where it does not.

import (
	"errors"
	"maps"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/273ebdf9/lb/internal/handoff"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

// handedTable knows all connections that were given to workers and have not ended, by the kernel's number.
// Safe for concurrent use.
type handedTable struct {
	mu  sync.Mutex
	all map[uint64]*handed
	// at which clients connect or did, with who listened there last: never forgotten, and few
	ports map[uint16]*Listener
}

// listens notes that clients connect at the port.
func (t *handedTable) listens(port uint16, ln *Listener) {
	t.mu.Lock()
	if t.ports == nil {
		t.ports = map[uint16]*Listener{}
	}
	t.ports[port] = ln
	t.mu.Unlock()
}

// portsNow returns a copy of the ports.
func (t *handedTable) portsNow() map[uint16]*Listener {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.ports)
}

func (t *handedTable) add(h *handed) {
	t.mu.Lock()
	if t.all == nil {
		t.all = map[uint64]*handed{}
	}
	t.all[h.cookie] = h
	t.mu.Unlock()
}

func (t *handedTable) remove(h *handed) {
	t.mu.Lock()
	if t.all[h.cookie] == h {
		delete(t.all, h.cookie)
	}
	t.mu.Unlock()
}

// watchEnds begins to hear of the ends of connections. It does nothing when called again. The error says why
// it cannot.
func (p *Proxy) watchEnds() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.endings != nil || p.noEndings != nil {
		return p.noEndings
	}
	if p.endings, p.noEndings = sockdiag.ListenEnds(); p.noEndings != nil {
		p.endings = nil
		return p.noEndings
	}
	if p.diag, p.noEndings = sockdiag.Dial(); p.noEndings != nil {
		p.endings.Close()
		p.endings, p.diag = nil, nil
		return p.noEndings
	}
	p.setEndPorts()
	if p.started && !p.stopped {
		p.startEnds()
	}
	return nil
}

// EndsUnseen says why lb cannot see when handed-off connections end; nil if it can, or nobody has asked yet.
func (p *Proxy) EndsUnseen() error { return p.watchEnds() }

// startEnds starts the goroutine that hears. The caller holds mu.
func (p *Proxy) startEnds() {
	ends := p.endings
	p.hearing.Go(func() { p.hearEnds(ends) })
}

// setEndPorts has the kernel tell only of connections at the listeners' ports. The caller holds mu.
func (p *Proxy) setEndPorts() {
	if p.endings == nil {
		return
	}
	ports := slices.Collect(maps.Keys(p.handed.portsNow()))
	if len(ports) == 0 {
		ports = []uint16{0} // nobody's
	}
	_ = p.endings.SetPorts(ports...) // without it lb hears of more than it needs
}

func portOf(fd int32) uint16 { return localAddr(fd).Port() }

// hearEnds is the goroutine that hears of ends, until the subscription is closed.
func (p *Proxy) hearEnds(ends *sockdiag.Ends) {
	h := endReader{p: p, ends: ends, into: make([]sockdiag.Socket, 256), batches: make([][]handedEnd, len(p.loops))}
	h.reconcile() // of before it listened
	for {
		switch err := h.handle(ends.Read(h.into)); {
		case err == nil:
		case errors.Is(err, sockdiag.ErrOverflow):
			p.Stats.EndsLost.Add(1)
			h.reconcile()
		case errors.Is(err, os.ErrDeadlineExceeded):
			h.reconcile()
		case errors.Is(err, os.ErrClosed):
			return
		default: // the kernel cannot tell at the moment: ask it
			time.Sleep(reconcileRetry)
			h.reconcile()
		}
	}
}

// endReader is what the goroutine hearEnds works with.
type endReader struct {
	p       *Proxy
	ends    *sockdiag.Ends
	into    []sockdiag.Socket
	batches [][]handedEnd        // by loop
	missing map[uint64]time.Time // whose sockets were not listed, and since when
}

// handle gives the loops the first n ends that were read, and returns err.
func (r *endReader) handle(n int, err error) error {
	t := &r.p.handed
	t.mu.Lock()
	for i := range r.into[:n] {
		if h := t.all[r.into[i].Cookie]; h != nil {
			delete(t.all, h.cookie)
			r.batches[h.loop.id] = append(r.batches[h.loop.id], carried(h, &r.into[i]))
		}
	}
	t.mu.Unlock()
	r.p.postEnds(r.batches)
	return err
}

// carried returns what a connection has carried until its end. The kernel counts an acknowledged FIN as a
// byte of Acked and never of Sent, and a FIN that came as a byte of Received. Where the FIN of this side was
// acknowledged, one has come from the other as a rule; after a reset none has.
func carried(h *handed, s *sockdiag.Socket) handedEnd {
	end := handedEnd{h: h, received: s.Received, sent: min(s.Acked, s.Sent)}
	if s.Acked > s.Sent && end.received > 0 {
		end.received--
	}
	return end
}

// postEnds gives each loop the ends of its connections.
func (p *Proxy) postEnds(batches [][]handedEnd) {
	for i, ends := range batches {
		if len(ends) > 0 {
			batches[i] = nil
			p.loops[i].post(message{do: func(l *loop) { l.handedEnded(ends) }})
		}
	}
}

const (
	// reconcileRetry is how soon a list that could not be had is asked for again.
	reconcileRetry = 100 * time.Millisecond
	// messageDelay is how much later than a socket goes the message of its end may come.
	messageDelay = 500 * time.Millisecond
)

// reconcile compares the table with the sockets that there are: what is not there any more, and is still not
// a while later, has ended untold. The kernel takes a socket off its lists at once, and tells of its end by a
// work queue of its own (sock_diag_broadcast_destroy): a message may be under way, and only it says what the
// connection has carried.
func (r *endReader) reconcile() {
	p, t := r.p, &r.p.handed
	r.ends.WaitUntil(time.Time{})
	t.mu.Lock()
	missing := maps.Clone(t.all) // not those that are given while the kernel lists
	t.mu.Unlock()
	if len(missing) == 0 {
		r.missing = nil
		return
	}
	for port := range t.portsNow() {
		if err := p.diag.Sockets(port, func(s *sockdiag.Socket) { delete(missing, s.Cookie) }); err != nil {
			r.ends.WaitUntil(time.Now().Add(reconcileRetry))
			return
		}
	}
	before := r.missing
	r.missing = map[uint64]time.Time{}
	now := time.Now()
	t.mu.Lock()
	for cookie, h := range missing {
		switch since, again := before[cookie]; {
		case t.all[cookie] != h: // the message has come
		case !again:
			r.missing[cookie] = now
		case now.Sub(since) < messageDelay:
			r.missing[cookie] = since
		default:
			delete(t.all, cookie)
			r.batches[h.loop.id] = append(r.batches[h.loop.id], handedEnd{h: h})
		}
	}
	t.mu.Unlock()
	p.postEnds(r.batches)
	if len(r.missing) > 0 {
		r.ends.WaitUntil(now.Add(messageDelay))
	}
}

// reported is told by a worker that a connection has ended. It reports whether there is such a connection.
func (p *Proxy) reported(ch *Channel, end handoff.End) bool {
	p.handed.mu.Lock()
	h := p.handed.all[end.ID]
	if h == nil || h.channel != ch {
		p.handed.mu.Unlock()
		return p.endings != nil // the kernel was faster
	}
	delete(p.handed.all, end.ID)
	p.handed.mu.Unlock()
	h.loop.post(message{do: func(l *loop) { l.handedEnded([]handedEnd{{h, end.Received, end.Sent}}) }})
	return true
}

// closeEnds ends the subscription and its goroutine.
func (p *Proxy) closeEnds() {
	p.mu.Lock()
	ends, diag := p.endings, p.diag
	p.mu.Unlock()
	if ends != nil {
		ends.Close()
		p.hearing.Wait()
		diag.Close()
	}
}
