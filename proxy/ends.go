package proxy

// How lb hears that a handed-off connection has ended: the kernel says so (package sockdiag), or the worker
// where it does not.

import (
	"errors"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"

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
	if !p.stopped {
		p.startEnds()
	}
	return nil
}

// EndsUnseen says why lb cannot see when handed-off connections end; nil if it can, or nobody has asked yet.
func (p *Proxy) EndsUnseen() error { return p.watchEnds() }

// startEnds has the first loop hear of ends. The caller holds mu.
func (p *Proxy) startEnds() {
	l := p.loops[0]
	if !p.started {
		l.listenForEnds() // Start compares, when it is known who was handed off
		return
	}
	l.post(message{do: (*loop).listenForEnds})
	p.startComparing()
}

// startComparing starts the goroutine that compares. The caller holds mu.
func (p *Proxy) startComparing() {
	p.comparing.Go(func() { p.compareEnds(p.noMoreEnds) })
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

// endsID is the id of the netlink socket's token, below those of channels.
const endsID = math.MinInt32

// endsPause is how long the netlink socket is left alone where the kernel has no memory to watch or read it.
const endsPause = 100 * time.Millisecond

// heard is what the hearing loop reads ends with. Only that loop touches it.
type heard struct {
	sockets [128]sockdiag.Socket
	batches [][]handedEnd // by loop
	deaf    bool          // it could not be watched or read, and is tried again
}

// listenForEnds has the loop hear of ends. One loop does it for all, as the kernel tells each subscriber of
// each end.
func (l *loop) listenForEnds() {
	errno := l.ctl(l.epfd, unix.EPOLL_CTL_ADD, int32(l.p.endings.FD()), unix.EPOLLIN, token{id: endsID})
	if errno != 0 && errno != unix.EEXIST {
		l.listenForEndsLater()
	}
}

// listenForEndsLater tries again what has failed. Meanwhile lb asks.
func (l *loop) listenForEndsLater() {
	if l.p.heard.deaf {
		return
	}
	l.p.heard.deaf = true
	time.AfterFunc(endsPause, func() {
		l.post(message{do: func(l *loop) {
			l.p.heard.deaf = false
			l.listenForEnds()
			l.p.askForEnds()
		}})
	})
}

// hearEnds reads of ends, and gives each loop those of its sessions. If there may be more, it comes again in
// the next round: epoll does not tell of an overflow that is to be told when all is read.
func (l *loop) hearEnds() {
	p := l.p
	if p.heard.deaf {
		return
	}
	if p.heard.batches == nil {
		p.heard.batches = make([][]handedEnd, len(p.loops))
	}
	batches := p.heard.batches
	n, err := p.endings.Read(p.heard.sockets[:])
	p.handed.mu.Lock()
	for i := range p.heard.sockets[:n] {
		s := &p.heard.sockets[i]
		if h := p.handed.all[s.Cookie]; h != nil {
			delete(p.handed.all, h.cookie)
			batches[h.loop.id] = append(batches[h.loop.id], carried(h, s))
		}
	}
	p.handed.mu.Unlock()
	own := batches[l.id]
	batches[l.id] = nil
	p.postEnds(batches)
	l.handedEnded(own)
	clear(own)
	batches[l.id] = own[:0]
	switch {
	case err == nil && n == len(p.heard.sockets):
		l.post(message{do: (*loop).hearEnds})
	case err == nil:
	case errors.Is(err, sockdiag.ErrOverflow):
		p.Stats.EndsLost.Add(1)
		p.askForEnds()
	default:
		epollCtl(l.epfd, unix.EPOLL_CTL_DEL, int32(p.endings.FD()), 0, token{})
		l.listenForEndsLater()
	}
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
	// compareRetry is how soon a list that could not be had is asked for again.
	compareRetry = 100 * time.Millisecond
	// messageDelay is how much later than a socket goes the message of its end may come.
	messageDelay = 500 * time.Millisecond
)

// askForEnds has the table compared with the sockets that there are, soon. It may be called on a loop.
func (p *Proxy) askForEnds() {
	select {
	case p.compare <- struct{}{}:
	default: // it is asked for
	}
}

// compareEnds is the goroutine that compares, as it waits for the kernel's list, until done is closed.
func (p *Proxy) compareEnds(done <-chan struct{}) {
	c := endComparison{p: p, batches: make([][]handedEnd, len(p.loops))}
	for {
		var again <-chan time.Time
		if pause := c.compare(); pause > 0 {
			again = time.After(pause)
		}
		select {
		case <-p.compare:
		case <-again:
		case <-done:
			return
		}
	}
}

// endComparison is what the goroutine compareEnds works with.
type endComparison struct {
	p       *Proxy
	batches [][]handedEnd        // by loop
	missing map[uint64]time.Time // whose sockets were not listed, and since when
}

// compare compares the table with the sockets that there are: what is not there any more, and is still not a
// while later, has ended untold. The kernel takes a socket off its lists at once, and tells of its end by a
// work queue of its own (sock_diag_broadcast_destroy): a message may be under way, and only it says what the
// connection has carried. compare returns when to compare again; 0 is when it is asked for.
func (c *endComparison) compare() (again time.Duration) {
	p, t := c.p, &c.p.handed
	t.mu.Lock()
	missing := maps.Clone(t.all) // not those that are given while the kernel lists
	t.mu.Unlock()
	if len(missing) == 0 {
		c.missing = nil
		return 0
	}
	for port := range t.portsNow() {
		if err := p.diag.Sockets(port, func(s *sockdiag.Socket) { delete(missing, s.Cookie) }); err != nil {
			return compareRetry
		}
	}
	before := c.missing
	c.missing = map[uint64]time.Time{}
	now := time.Now()
	t.mu.Lock()
	for cookie, h := range missing {
		switch since, again := before[cookie]; {
		case t.all[cookie] != h: // the message has come
		case !again:
			c.missing[cookie] = now
		case now.Sub(since) < messageDelay:
			c.missing[cookie] = since
		default:
			delete(t.all, cookie)
			c.batches[h.loop.id] = append(c.batches[h.loop.id], handedEnd{h: h})
		}
	}
	t.mu.Unlock()
	p.postEnds(c.batches)
	if len(c.missing) > 0 {
		return messageDelay
	}
	return 0
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

// closeEnds ends the subscription. The loops have ended.
func (p *Proxy) closeEnds() {
	p.mu.Lock()
	ends, diag := p.endings, p.diag
	p.mu.Unlock()
	if ends != nil {
		close(p.noMoreEnds)
		p.comparing.Wait()
		ends.Close()
		diag.Close()
	}
}
