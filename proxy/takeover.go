package proxy

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/valyala/bytebufferpool"
	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/clock"
	"github.com/273ebdf9/lb/proxy/internal/access"
)

// ErrBadState: what was frozen does not fit together.
var ErrBadState = errors.New("the sessions that were handed over do not fit together")

// inherited is a listening socket of the process before.
type inherited struct {
	listener string
	SavedSocket
}

// Inherit makes the proxy's clock and its listening sockets those of another one that was frozen: a listener
// of the same name and bind address takes a socket instead of opening its own. Call it before the first
// Prepare.
func (p *Proxy) Inherit(f *Frozen) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.epoch = time.Now().Add(f.Epoch - clock.Monotonic())
	for _, ln := range f.Listeners {
		for _, s := range ln.Sockets {
			p.inherited = append(p.inherited, &inherited{ln.Name, s})
		}
	}
	c := &f.Counts
	p.Stats.PipesDenied.Store(c.PipesDenied)
	p.Stats.SplicedBytes.Store(c.SplicedBytes)
	p.Stats.AcceptErrors.Store(c.AcceptErrors)
	p.Stats.LimitReached.Store(c.LimitReached)
	p.Stats.ShedClients.Store(c.ShedClients)
}

// takeInherited gives the inherited socket for a bind address, that of the listener before another's; nil if
// there is none. The caller holds mu.
func (p *Proxy) takeInherited(name, bind string) *socket {
	at := -1
	for i, x := range p.inherited {
		if x.Bind == bind && (x.listener == name || at < 0) {
			at = i
			if x.listener == name {
				break
			}
		}
	}
	if at < 0 {
		return nil
	}
	x := p.inherited[at]
	p.inherited = append(p.inherited[:at], p.inherited[at+1:]...)
	s := &socket{fd: int32(x.FD), bind: x.Bind, addr: x.Addr, path: x.Path, file: fileID{x.Dev, x.Ino}, inherited: true}
	if s.path != "" && s.file == (fileID{}) { // the process before did not know
		s.file = fileAt(s.path)
	}
	return s
}

// TakeOver goes on with the sessions of another proxy that was frozen: f, with its Pools and Backends those
// of this process. Call it before Start, with the listeners that Inherit has told of. Nothing is done to a
// descriptor but that it gets into an epoll set; so another process can adopt the same after a failure.
// Inherited sockets that no listener has taken are closed by Start.
func (p *Proxy) TakeOver(f *Frozen) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	t := takeover{p: p, f: f, sessions: make([]*session, len(f.Sessions))}
	for i := range f.Listeners {
		if err := t.listener(&f.Listeners[i]); err != nil {
			return err
		}
	}
	for i := range f.Sessions {
		if err := t.session(i); err != nil {
			return fmt.Errorf("cannot adopt session %d of %d: %w", i+1, len(f.Sessions), err)
		}
	}
	t.channels()
	if err := t.register(); err != nil {
		return err
	}
	for _, i := range byPlace(f.Sessions) {
		s := t.sessions[i]
		if s.pool == nil || s.waiter() == nil {
			return ErrBadState
		}
		tried, err := t.backends(f.Sessions[i].Forbidden)
		if err != nil {
			return err
		}
		s.wait.waiter.Since = t.p.epoch.Add(s.wait.queuedAt)
		s.pool.Requeue(&backends.Request{Client: s.client.Addr(), Tried: tried}, s.wait.waiter)
	}
	t.requeueBacklogs()
	return nil
}

// requeueBacklogs has the sessions that wait for a backlog go on with it, in their order.
func (t *takeover) requeueBacklogs() {
	var waiting []int
	for i, s := range t.sessions {
		if s.phase == phaseQueued && s.waiter() == nil {
			waiting = append(waiting, i)
		}
	}
	slices.SortStableFunc(waiting, func(x, y int) int { return cmp.Compare(t.sessions[x].budget, t.sessions[y].budget) })
	for _, i := range waiting {
		s := t.sessions[i]
		l := t.p.loops[t.f.Sessions[i].Loop%len(t.p.loops)]
		if t.p.backlogs.add(l, s, false) {
			l.probes = append(l.probes, probe{pool: s.pool, pause: minBacklogPause})
		}
		l.wheel.arm(s, s.budget+s.pool.Config().ConnectTimeout)
	}
}

// takeover is one TakeOver.
type takeover struct {
	p         *Proxy
	f         *Frozen
	listeners []*Listener // by number
	sessions  []*session  // by number
	untaken   []untakenPlace
}

// listener goes on with the counts of a listener, or makes one of a closed one.
func (t *takeover) listener(s *SavedListener) error {
	ln := t.open(s)
	if ln == nil {
		pool, err := t.pool(s.Pool)
		if err != nil {
			return err
		}
		ln = &Listener{Name: s.Name}
		ln.settings.Store(&settings{cfg: DefaultListenerConfig(), pool: pool})
		ln.sockets.Store(&[]*socket{})
	}
	t.listeners = append(t.listeners, ln)
	ln.Counters.Connections.Store(s.Connections)
	ln.Counters.BytesIn.Store(s.BytesIn)
	ln.Counters.BytesOut.Store(s.BytesOut)
	for i := range min(len(s.Refused), len(ln.Refused)) {
		ln.Refused[i].Store(s.Refused[i])
	}
	now := t.p.since()
	set := ln.settings.Load()
	set.maxConns.Store(int64(min(s.MaxConns, math.MaxInt32)))
	set.rate.SetDebt(s.RateDebt, now)
	if len(s.Sources) > 0 {
		debts := make([]access.SourceState, len(s.Sources))
		for i, x := range s.Sources {
			debts[i] = access.SourceState{Source: x.Source, Debt: x.Debt}
		}
		set.sources.ImportDebts(debts, now)
	}
	return nil
}

// open is the listener that goes on; nil if there is none.
func (t *takeover) open(s *SavedListener) *Listener {
	if len(s.Sockets) > 0 {
		for _, ln := range t.p.listeners {
			if ln.Name == s.Name {
				return ln
			}
		}
	}
	return nil
}

func (t *takeover) pool(n int) (*backends.Pool, error) {
	if n < -1 || n >= len(t.f.Pools) {
		return nil, ErrBadState
	}
	if n < 0 {
		return nil, nil
	}
	return t.f.Pools[n], nil
}

func (t *takeover) backend(n int) (*backends.Backend, error) {
	if n < -1 || n >= len(t.f.Backends) {
		return nil, ErrBadState
	}
	if n < 0 {
		return nil, nil
	}
	return t.f.Backends[n], nil
}

func (t *takeover) backends(numbers []int) (list []*backends.Backend, err error) {
	for _, n := range numbers {
		b, err := t.backend(n)
		if err != nil || b == nil {
			return nil, ErrBadState
		}
		list = append(list, b)
	}
	return list, nil
}

// session makes a session of what was written down, in a loop.
func (t *takeover) session(i int) error {
	v, p := &t.f.Sessions[i], t.p
	if v.Listener < 0 || v.Listener >= len(t.listeners) || v.Loop < 0 || v.LastFrom > backend ||
		v.Phase <= uint8(phaseFree) || v.Phase > uint8(phaseHandedOff) || v.Ends[client].FD < 0 && v.Phase != uint8(phaseHandedOff) {
		return ErrBadState
	}
	pool, err1 := t.pool(v.Pool)
	b, err2 := t.backend(v.Backend)
	tried, err3 := t.backends(v.Tried)
	if err := errors.Join(err1, err2, err3); err != nil {
		return err
	}
	ph := phase(v.Phase)
	connects := ph == phaseConnecting || ph == phaseRelaying
	hasBackend := connects || ph == phaseHandedOff
	if hasBackend != (b != nil) || connects != (v.Ends[backend].FD >= 0) || pool == nil && ph != phaseHeader || b != nil && b.Pool() != pool {
		return ErrBadState
	}
	l := p.loops[v.Loop%len(p.loops)]
	s := l.table.take()
	t.sessions[i] = s
	s.listener, s.pool, s.backend = t.listeners[v.Listener], pool, b
	s.id, s.phase, s.halfOpen, s.busy, s.lastFrom, s.retries = v.ID, ph, v.HalfOpen, v.Busy, v.LastFrom, v.Retries
	s.client = v.Client
	if v.Forwarded {
		s.forwarded = &forwarded{peer: v.Peer, server: v.Server, tlvs: append([]byte(nil), v.TLVs...)}
	}
	s.start, s.budget, s.chosen, s.connected = v.Start, v.Budget, v.Chosen, v.Connected
	s.active, s.expires, s.queued = v.Active, v.Expires, v.Queued
	if ph == phaseQueued || v.Pause > 0 || len(tried) > 0 && ph != phaseRelaying {
		w := l.table.wait(s)
		w.tried, w.queuedAt, w.pause = append(w.tried, tried...), v.QueuedAt, v.Pause
	}
	if v.Place >= 0 {
		l.table.wait(s).waiter = &backends.Waiter{Grant: l.grant, Session: s.ref().pack()}
	}
	if v.Counted {
		s.source = s.listener.settings.Load().sources.Restore(s.client.Addr())
	}
	if ph == phaseHandedOff {
		l.away++
		t.handed(l, s, &v.Handed)
	} else if b != nil {
		pool.Retake(b)
	}
	s.listener.active.Add(1)
	p.sessions.Add(1)
	l.countSessions()
	l.takenOver = true
	l.opened = max(l.opened, v.ID/uint64(len(p.loops))+1)
	if v.Timer > 0 {
		l.wheel.arm(s, v.Timer)
	}
	return t.carry(l, s, v)
}

// register puts all sockets into the epoll sets, every loop's at the same time: with many sessions it is most
// of the work. An edge that the process before has seen and not acted on comes again, as a socket is new in
// its set.
func (t *takeover) register() error {
	errs := make([]error, len(t.p.loops))
	var running sync.WaitGroup
	for i, l := range t.p.loops {
		running.Go(func() {
			l.table.each(func(s *session) {
				for e := range s.ends {
					x := &s.ends[e]
					if x.fd < 0 || errs[i] != nil {
						continue
					}
					mask := uint32(sessionEvents)
					if x.flags&endArmedOut != 0 {
						mask |= unix.EPOLLOUT
					}
					if errno := l.register(s, e, mask); errno != 0 {
						errs[i] = fmt.Errorf("cannot watch the socket of a session: %w", errno)
					}
				}
			})
		})
	}
	running.Wait()
	return errors.Join(errs...)
}

// carry takes over the sockets of a session, and what is on its way between them.
func (t *takeover) carry(l *loop, s *session, v *SavedSession) error {
	for e := range s.ends {
		s.ends[e] = end{fd: int32(v.Ends[e].FD), flags: v.Ends[e].Flags &^ endRegistered}
		x, d := &v.Directions[e], &s.dirs[e]
		d.bytes, d.counted, d.full, d.flags = x.Bytes, x.Bytes, x.Full, x.Flags&^dirQueued
		if len(x.Buffered) > 0 {
			d.buffered = bytebufferpool.Get()
			d.buffered.B = append(d.buffered.B[:0], x.Buffered...)
		}
		if x.Piped > 0 {
			if x.PipeSize < x.Piped {
				return ErrBadState
			}
			d.pipe, d.piped = &pipe{r: int32(x.PipeR), w: int32(x.PipeW), size: x.PipeSize}, int32(x.Piped)
			l.pipes.open++
			l.p.Stats.Pipes.Add(1)
		}
		if x.Flags&dirQueued != 0 {
			l.later(s, e)
		}
	}
	for e := range s.dirs {
		if s.dirs[e].flags&dirBroken != 0 {
			// it was about to end, by the side that takes nothing or has failed
			s.endsWith(resetBy(1 - e))
		}
	}
	for e := range s.dirs { // what was waited for comes as no event
		if d := &s.dirs[e]; d.flags&dirSettling != 0 || d.blocked() && s.ends[1-e].flags&endArmedOut == 0 {
			// Not later than it was to be looked at: hand-overs one after the other would put it off for
			// ever.
			w := l.table.wait(s)
			w.recheck = l.p.since() + minSettlePause
			if v.Timer > 0 {
				w.recheck = min(w.recheck, v.Timer)
			}
			l.armIdle(s)
		}
	}
	return nil
}
