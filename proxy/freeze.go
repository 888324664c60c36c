package proxy

import (
	"cmp"
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/clock"
)

// ErrLoopHangs: an event loop did not come round, so that nothing could be frozen.
var ErrLoopHangs = errors.New("an event loop hangs")

// freezeTimeout bounds how long Freeze waits for the loops. A round takes milliseconds.
const freezeTimeout = 5 * time.Second

// Frozen is all that the loops hold, as plain data, for TakeOver in another process that has the same
// descriptors. Numbers of pools, backends and listeners are places in Pools, Backends and Listeners; -1 is
// none. Durations count from Epoch unless they say otherwise.
type Frozen struct {
	Epoch     time.Duration // of CLOCK_MONOTONIC (clock_gettime(2)), which goes on over an exec
	Counts    SavedCounts
	Listeners []SavedListener // the open ones, and then those that are closed and still have sessions
	Sessions  []SavedSession
	Channels  []SavedChannel

	// Pools and Backends are those that sessions are about, members or not. They are no plain data: whoever
	// writes the rest down writes them down too.
	Pools    []*backends.Pool
	Backends []*backends.Backend
}

// SavedCounts are the Stats of a proxy.
type SavedCounts struct {
	PipesDenied, SplicedBytes, AcceptErrors, LimitReached, ShedClients uint64
}

// SavedListener is a listener and what it has counted.
type SavedListener struct {
	Name    string
	Sockets []SavedSocket // none: it is closed
	Pool    int           // of a closed one: where its connections went
	MaxConns, Connections,
	BytesIn, BytesOut uint64
	Refused  []uint64      // by Refusal
	RateDebt time.Duration // see access.RateLimiter.Debt
	Sources  []SavedSource
}

// SavedSocket is a listening socket.
type SavedSocket struct {
	FD               int
	Bind, Addr, Path string // see socket
	Dev, Ino         uint64 `json:",omitempty"` // of the file at Path when it was made
}

// SavedSource is a client address that is ahead of its source_rate.
type SavedSource struct {
	Source netip.Prefix
	Debt   time.Duration
}

// SavedSession is a session. Phase and flags are the numbers of session.go, which are part of the form: new
// ones are added, none is given another meaning.
type SavedSession struct {
	ID                      uint64
	Loop                    int
	Phase                   uint8
	HalfOpen, Busy          bool
	LastFrom, Retries       uint8
	Listener, Pool, Backend int
	Tried                   []int
	Ends                    [2]SavedEnd
	Directions              [2]SavedDirection
	Client                  netip.AddrPort
	Forwarded               bool // the client's PROXY header said what follows
	Peer, Server            netip.AddrPort
	TLVs                    []byte
	Counted                 bool // among the sources of its listener
	Place                   int  // in the queue of its pool, from 0; -1: it does not wait there
	Forbidden               []int

	Handed SavedHanded // while it is handed over

	// 0 is never, see session
	Start, Budget, QueuedAt, Chosen, Connected, Active, Expires, Timer time.Duration
	Pause, Queued                                                      time.Duration // lengths
}

// SavedEnd is one of the sockets of a session.
type SavedEnd struct {
	FD    int // -1: none
	Flags uint8
}

// SavedDirection is one of the streams of a session.
type SavedDirection struct {
	Buffered               []byte // read, and not taken by the destination yet
	Piped                  int    // bytes in the pipe
	PipeR, PipeW, PipeSize int    // while Piped > 0
	Bytes                  uint64
	Full, Flags            uint8
}

// FDs are all descriptors that TakeOver needs.
func (f *Frozen) FDs() []int {
	var fds []int
	for _, ln := range f.Listeners {
		for _, s := range ln.Sockets {
			fds = append(fds, s.FD)
		}
	}
	for i := range f.Sessions {
		s := &f.Sessions[i]
		for e := range s.Ends {
			if fd := s.Ends[e].FD; fd >= 0 {
				fds = append(fds, fd)
			}
			if s.Handed.Untaken && e == client {
				fds = append(fds, s.Handed.FD)
			}
			if d := &s.Directions[e]; d.Piped > 0 {
				fds = append(fds, d.PipeR, d.PipeW)
			}
		}
	}
	return fds
}

// freezing is a stop of all loops.
type freezing struct {
	parked chan *loop
	thaw   chan struct{} // closed when they go on
}

// park stops the loop until thaw. Everything in it may be read and written by whoever waits for parked.
func (l *loop) park() {
	f := l.freezing
	l.freezing = nil
	f.parked <- l
	<-f.thaw
}

// Freeze stops every loop between two rounds and writes down what they hold; clients wait in the kernel's
// queue, bytes in the sockets. Until Thaw no other method returns, but for those that read a number or name
// no loop, and nobody may call the pools. Errors are ErrStopped and ErrLoopHangs; then everything goes on.
func (p *Proxy) Freeze() (*Frozen, error) {
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		return nil, ErrStopped
	}
	f := &freezing{parked: make(chan *loop, len(p.loops)), thaw: make(chan struct{})}
	p.freezing = f
	for _, l := range p.loops {
		l.post(message{do: func(l *loop) { l.freezing = f }})
	}
	late := newPatience(freezeTimeout)
	defer late.Stop()
	for parked := 0; parked < len(p.loops); {
		select {
		case <-f.parked:
			parked++
		case <-late.C:
			if late.over() {
				p.Thaw()
				return nil, ErrLoopHangs
			}
		}
	}
	p.emptyInboxes()
	return p.save(), nil
}

// Thaw has the loops go on after Freeze.
func (p *Proxy) Thaw() {
	close(p.freezing.thaw)
	p.freezing = nil
	p.mu.Unlock()
}

// emptyInboxes does what was on its way to the parked loops: connections that one handed to another, slots
// that were granted. Each may send another one; it ends because nothing new comes in.
func (p *Proxy) emptyInboxes() {
	for again := true; again; {
		again = false
		for _, l := range p.loops {
			l.inbox.mu.Lock()
			n := len(l.inbox.msgs)
			l.inbox.mu.Unlock()
			if n > 0 {
				l.now = p.since()
				l.readInbox()
				again = true
			}
		}
	}
}

// saver writes the loops down.
type saver struct {
	frozen    *Frozen
	listeners map[*Listener]int
	pools     map[*backends.Pool]int
	backends  map[*backends.Backend]int
	places    map[*backends.Waiter]int
}

func (p *Proxy) save() *Frozen {
	w := saver{
		frozen: &Frozen{
			Epoch:    clock.Monotonic() - p.since(),
			Sessions: make([]SavedSession, 0, p.sessions.Load()),
			Counts: SavedCounts{
				PipesDenied: p.Stats.PipesDenied.Load(), SplicedBytes: p.Stats.SplicedBytes.Load(), AcceptErrors: p.Stats.AcceptErrors.Load(),
				LimitReached: p.Stats.LimitReached.Load(), ShedClients: p.Stats.ShedClients.Load(),
			},
		},
		listeners: map[*Listener]int{}, pools: map[*backends.Pool]int{}, backends: map[*backends.Backend]int{}, places: map[*backends.Waiter]int{},
	}
	for _, l := range p.loops {
		l.now = p.since()
		l.countDirty()
	}
	now := p.since()
	for _, ln := range p.listeners {
		w.listener(ln, true, now)
	}
	for _, l := range p.loops {
		l.table.each(func(s *session) { w.session(l, s, now) })
		for _, ch := range l.channels {
			w.channel(ch)
		}
	}
	return w.frozen
}

// listener gives the number of a listener. Those that are open come first.
func (w *saver) listener(ln *Listener, open bool, now time.Duration) int {
	if n, ok := w.listeners[ln]; ok {
		return n
	}
	set := ln.settings.Load()
	s := SavedListener{
		Name: ln.Name, Pool: -1, MaxConns: uint64(set.maxConns.Load()),
		Connections: ln.Counters.Connections.Load(), BytesIn: ln.Counters.BytesIn.Load(), BytesOut: ln.Counters.BytesOut.Load(),
		RateDebt: set.rate.Debt(now),
	}
	for i := range ln.Refused {
		s.Refused = append(s.Refused, ln.Refused[i].Load())
	}
	if open {
		for _, x := range *ln.sockets.Load() {
			s.Sockets = append(s.Sockets, SavedSocket{int(x.fd), x.bind, x.addr, x.path, x.file.dev, x.file.ino})
		}
	} else {
		s.Pool = w.pool(set.anyPool())
	}
	for _, x := range set.sources.Export(now) {
		if x.Debt > 0 {
			s.Sources = append(s.Sources, SavedSource{x.Source, x.Debt})
		}
	}
	w.listeners[ln] = len(w.frozen.Listeners)
	w.frozen.Listeners = append(w.frozen.Listeners, s)
	return w.listeners[ln]
}

// anyPool is one of the pools that the settings lead to.
func (set *settings) anyPool() *backends.Pool {
	if set.split != nil {
		return set.split.Pools()[0]
	}
	return set.pool
}

func (w *saver) pool(p *backends.Pool) int {
	if p == nil {
		return -1
	}
	n, ok := w.pools[p]
	if !ok {
		n = len(w.frozen.Pools)
		w.pools[p] = n
		w.frozen.Pools = append(w.frozen.Pools, p)
		for i, waiter := range p.Waiters() {
			w.places[waiter] = i
		}
	}
	return n
}

func (w *saver) backend(b *backends.Backend) int {
	if b == nil {
		return -1
	}
	n, ok := w.backends[b]
	if !ok {
		n = len(w.frozen.Backends)
		w.backends[b] = n
		w.frozen.Backends = append(w.frozen.Backends, b)
		w.pool(b.Pool())
	}
	return n
}

func (w *saver) backendsOf(list []*backends.Backend) []int {
	var numbers []int
	for _, b := range list {
		numbers = append(numbers, w.backend(b))
	}
	return numbers
}

func (w *saver) session(l *loop, s *session, now time.Duration) {
	var waits wait
	if s.wait != nil {
		waits = *s.wait
	}
	v := SavedSession{
		ID: s.id, Loop: l.id, Phase: uint8(s.phase), HalfOpen: s.halfOpen, Busy: s.busy, LastFrom: s.lastFrom, Retries: s.retries,
		Listener: w.listener(s.listener, false, now), Pool: w.pool(s.pool), Backend: w.backend(s.backend), Tried: w.backendsOf(waits.tried),
		Client: s.client, Counted: s.source.Counted(), Place: -1,
		Start: s.start, Budget: s.budget, QueuedAt: waits.queuedAt, Chosen: s.chosen, Connected: s.connected, Active: s.active, Expires: s.expires,
		Timer: time.Duration(s.timer.tick) * wheelTick, Pause: waits.pause, Queued: s.queued,
	}
	if f := s.forwarded; f != nil {
		v.Forwarded, v.Peer, v.Server, v.TLVs = true, f.peer, f.server, f.tlvs
	}
	if waits.waiter != nil {
		v.Place, v.Forbidden = w.places[waits.waiter], w.backendsOf(waits.waiter.Tried())
	}
	if h := waits.handed; h != nil {
		v.Handed = h.save()
	}
	for e := range s.ends {
		v.Ends[e] = SavedEnd{int(s.ends[e].fd), s.ends[e].flags}
		d := &s.dirs[e]
		if d.piped == 0 {
			l.returnPipe(d)
		}
		x := SavedDirection{Bytes: d.bytes, Full: d.full, Flags: d.flags, Piped: int(d.piped)}
		if d.buffered != nil {
			x.Buffered = d.buffered.B[d.off:]
		}
		if d.piped > 0 {
			x.PipeR, x.PipeW, x.PipeSize = int(d.pipe.r), int(d.pipe.w), d.pipe.size
		}
		v.Directions[e] = x
	}
	w.frozen.Sessions = append(w.frozen.Sessions, v)
}

// byPlace sorts the numbers of sessions that wait by their places, those of one pool after those of another.
func byPlace(sessions []SavedSession) []int {
	var waiting []int
	for i := range sessions {
		if sessions[i].Place >= 0 {
			waiting = append(waiting, i)
		}
	}
	slices.SortStableFunc(waiting, func(a, b int) int {
		x, y := &sessions[a], &sessions[b]
		return cmp.Or(cmp.Compare(x.Pool, y.Pool), cmp.Compare(x.Place, y.Place))
	})
	return waiting
}
