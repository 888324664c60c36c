package proxy

// Hot path: the event loop. BenchmarkRelay and `make bench` hold its cost.

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

const (
	// sessionEvents is the mask of both ends. EPOLLOUT is not in it: a Unix socket fires that each time its
	// peer reads, which doubles the wake-ups (measured: 34 against 29 µs a request).
	sessionEvents = unix.EPOLLIN | unix.EPOLLPRI | unix.EPOLLRDHUP | unix.EPOLLET

	// roundTime is how long after its events a round goes on with directions that carry much.
	roundTime = time.Millisecond

	// stallAfter is how late a deadline is judged where lb, or the machine, stood still, and maxStallGrace
	// how much time the peers, and the other loops, get then.
	stallAfter    = 3 * wheelTick
	maxStallGrace = time.Second

	// countEvery is how often bytes of running sessions are added to the shared counters.
	countEvery = time.Second
)

// ids of tokens that are no session's.
const (
	inboxID         = -1
	firstListenerID = -2 // and downwards, by the listener's place in the loop
)

// loop is one event loop: a goroutine, an epoll set, and the sessions it owns. Everything in it but inbox and
// the atomics is touched by that goroutine alone.
type loop struct {
	p    *Proxy
	id   int
	epfd int32
	// eventfd: there is something in the inbox
	wakefd   int32
	ctl      func(epfd int32, op int, fd int32, mask uint32, data token) unix.Errno // epollCtl, or a test's
	events   []unix.EpollEvent
	waiting  waiting
	scratch  []byte
	now      time.Duration // since the proxy's epoch, read once a round
	table    table
	wheel    *wheel
	pipes    pipePool
	limits   relayLimits
	ready    []readyRef   // directions that used up their turn
	moved    int          // bytes carried in this round; see roundBytes
	dirty    []sessionRef // sessions with bytes the shared counters do not have
	countAt  time.Duration
	accepts  []*acceptor        // by token; nil where a listener was closed
	channels []*Channel         // by token; nil where one was closed
	pending  []*acceptor        // that have something to accept in this round
	waiters  []*backends.Waiter // free ones
	probes   []probe            // see backlog.go
	probing  bool               // the session that is connected comes from the head of a backlog's queue
	grant    func(*backends.Waiter, *backends.Backend)
	req      backends.Request
	rec      Record
	opened   uint64 // sessions so far
	headers  proxyHeaderReader
	header   []byte // the buffer of PROXY headers that are sent
	rsa      unix.RawSockaddrAny
	quit     bool

	freezing *freezing // park at the end of this round

	graceUntil time.Duration // no deadline is judged before; 0 as a rule
	// its sessions are those of another process: that they come late is no standstill
	takenOver bool

	resumeAt time.Duration // when to listen again; 0 while not paused
	retryAt  time.Duration // when to try listening sockets again that could not be served; 0 as a rule
	full     bool          // paused at max_sessions: resume as soon as there is room

	waitsForRoom atomic.Bool // full; whoever ends a session sees it and wakes the loop

	sessions atomic.Int64 // of this loop; written by it alone

	inbox struct {
		mu     sync.Mutex
		msgs   []message
		closed bool // the loop has ended, and wakefd is another's
	}
	inboxSpare []message
}

// readyRef is a direction that wants its next turn.
type readyRef struct {
	ref sessionRef
	src int32
}

// message is what reaches a loop from outside: a connection to take over, or something to do on the loop.
type message struct {
	do    func(*loop) // if set, all else is unset
	grant *backends.Waiter
	slot  *backends.Backend // of grant, acquired
	conn  accepted
}

func newLoop(p *Proxy, id int) (*loop, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	wakefd, err := unix.Eventfd(0, unix.EFD_NONBLOCK|unix.EFD_CLOEXEC)
	if err != nil {
		unix.Close(epfd)
		return nil, err
	}
	l := &loop{
		p: p, id: id, epfd: int32(epfd), wakefd: int32(wakefd),
		ctl:     epollCtl,
		events:  make([]unix.EpollEvent, 256),
		scratch: make([]byte, scratchSize),
		wheel:   newWheel(),
		pipes:   pipePool{size: pipeSize},
		limits:  relayLimits{turnBytes, roundBytes, spliceAfter, spliceWorth, lastWordsTimeout, backendTailTimeout},
	}
	l.grant = l.postGrant
	if e := epollCtl(l.epfd, unix.EPOLL_CTL_ADD, l.wakefd, unix.EPOLLIN|unix.EPOLLET, token{id: inboxID}); e != 0 {
		l.closeFDs()
		return nil, e
	}
	if err := l.openWaiting(); err != nil {
		l.closeFDs()
		return nil, err
	}
	return l, nil
}

// closeFDs closes what newLoop opened. The loop has ended, and nobody posts to it any more.
func (l *loop) closeFDs() {
	l.inbox.mu.Lock()
	l.inbox.closed = true
	l.inbox.mu.Unlock()
	closeFD(l.epfd)
	closeFD(l.wakefd)
	if l.waiting.park != nil {
		l.waiting.park.Close()
	}
}

// post puts m into the loop's inbox and wakes it. Safe for concurrent use.
func (l *loop) post(m message) {
	l.inbox.mu.Lock()
	l.inbox.msgs = append(l.inbox.msgs, m)
	first := len(l.inbox.msgs) == 1
	l.inbox.mu.Unlock()
	if first {
		l.wake()
	}
}

// wakeAgain is when a loop is woken again where the write that wakes it has failed.
const wakeAgain = 5 * time.Millisecond

// wake has the loop look into its inbox.
func (l *loop) wake() {
	one := [8]byte{1}
	if _, err := unix.Write(int(l.wakefd), one[:]); err != nil {
		time.AfterFunc(wakeAgain, func() {
			l.inbox.mu.Lock()
			defer l.inbox.mu.Unlock()
			if !l.inbox.closed {
				l.wake()
			}
		})
	}
}

// call runs f on the loop and waits for it. The caller holds Proxy.mu, or the loop runs and does not end.
func (l *loop) call(f func(*loop)) {
	if !l.p.started {
		f(l)
		return
	}
	done := make(chan struct{})
	l.post(message{do: func(l *loop) { f(l); close(done) }})
	<-done
}

// run is the loop's goroutine. It returns when a message has set quit.
func (l *loop) run() {
	fire := l.expired
	l.now = l.p.since() // not 0 where sessions go on
	for !l.quit {
		n := l.wait()
		l.now = l.p.since()
		l.moved = 0
		l.waiting.note(l.now, n)
		for i := range n {
			l.dispatch(&l.events[i])
		}
		l.acceptPending()
		if l.resumeAt != 0 {
			l.tryResume()
		}
		if l.retryAt != 0 && l.now >= l.retryAt {
			l.retryAcceptors()
		}
		if l.wheel.due() <= l.now {
			l.expire(fire)
		}
		if len(l.probes) > 0 {
			l.runProbes()
		}
		l.runReady()
		if l.freezing != nil {
			l.park()
			l.now = l.p.since()
		}
		if len(l.dirty) > 0 && l.now >= l.countAt {
			l.countDirty()
		}
	}
	l.pipes.close(&l.p.Stats)
}

// expire handles the timers that are due, after everything that has arrived by then: after lb, or the whole
// machine, stood still, the bytes that a deadline waits for may be here. Where it comes much too late, the
// others may have stood still too: no deadline is judged for as long again, up to maxStallGrace.
func (l *loop) expire(fire func(*session)) {
	switch late := l.now - l.wheel.due(); {
	case l.graceUntil == 0 && late > stallAfter && !l.takenOver:
		l.graceUntil = l.now + min(late, maxStallGrace)
	case l.now >= l.graceUntil: // judge now, however late: a loop that is always late must end sessions too
		l.graceUntil = 0
	}
	l.takenOver = false
	most := 2*l.table.used/len(l.events) + 2 // enough for every end to be heard
	for n := len(l.events); n == len(l.events) && most > 0; most-- {
		n = epollWait(l.epfd, l.events, 0)
		for i := range n {
			l.dispatch(&l.events[i])
		}
		l.acceptPending()
	}
	l.wheel.expire(l.now, fire)
}

// dispatch handles one event.
func (l *loop) dispatch(ev *unix.EpollEvent) {
	if ev.Fd < 0 {
		if ev.Fd == inboxID {
			l.readInbox()
			return
		}
		if ev.Fd <= firstChannelID {
			l.channelEvent(ev.Fd)
			return
		}
		if a := l.accepts[firstListenerID-ev.Fd]; a != nil && !a.queued {
			a.queued = true
			l.pending = append(l.pending, a)
		}
		return
	}
	s := l.table.at(ev.Fd >> 1)
	if s.gen != ev.Pad || s.phase == phaseFree {
		return // a late event of a session that ended in this round
	}
	e := int(ev.Fd & 1)
	switch s.phase {
	case phaseHeader:
		l.headerEvent(s, ev.Events)
		return
	case phaseQueued:
		l.queuedEvent(s, ev.Events)
		return
	case phaseConnecting:
		l.connectEvent(s, e, ev.Events)
		return
	case phaseHandedOff:
		return // nothing of it is in the epoll set any more
	}
	l.relayEvent(s, e, ev.Events)
}

// relayEvent handles an event of end e of a session that relays.
func (l *loop) relayEvent(s *session, e int, mask uint32) {
	s.note(e, mask)
	if mask&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		if src, ok := s.settling(); ok {
			l.settlingEvent(s, src, e, mask)
			return
		}
	}
	if mask&unix.EPOLLOUT != 0 && s.dirs[1-e].blocked() {
		if !l.pump(s, 1-e) {
			return
		}
	}
	if s.ends[e].flags&endReadable != 0 && !l.pump(s, e) {
		return
	}
	if d := &s.dirs[e]; mask&unix.EPOLLERR != 0 && d.flags&(dirEOF|dirBroken) != 0 {
		// The error is not read any more, and no other event will come.
		l.readFailed(s, e)
	} else if mask&unix.EPOLLERR != 0 && d.blocked() {
		s.halfOpen = true // what came before the error is delivered first
		l.armIdle(s)
	} else if mask&unix.EPOLLHUP != 0 && d.flags&dirEOF != 0 && e == backend && s.isUnix(backend) {
		l.closeMirrored(s) // it had half-closed before
	}
}

// note translates an event mask into the end's flags.
func (s *session) note(e int, mask uint32) {
	f := s.ends[e].flags
	if mask&unix.EPOLLIN != 0 {
		f |= endReadable
	}
	if mask&unix.EPOLLRDHUP != 0 {
		f |= endReadable | endHalfClosed
	}
	if mask&unix.EPOLLHUP != 0 {
		f |= endReadable | endHungUp
	}
	if mask&unix.EPOLLERR != 0 {
		f |= endReadable | endFailed
	}
	if mask&unix.EPOLLPRI != 0 {
		f |= endReadable | endUrgent
	}
	s.ends[e].flags = f
}

// runReady gives directions that used up their turn the next one, those first that have waited longest, for
// at most roundTime: then others have theirs, who carry little and wait.
func (l *loop) runReady() {
	n := len(l.ready)
	for i := range n {
		if i > 0 && l.p.since()-l.now > roundTime {
			n = i
			break
		}
		r := l.ready[i]
		s := l.table.find(r.ref)
		if s == nil {
			continue
		}
		s.dirs[r.src].flags &^= dirQueued
		l.moved = 0
		l.pump(s, int(r.src))
	}
	l.ready = l.ready[:copy(l.ready, l.ready[n:])]
}

// readInbox does what was posted.
func (l *loop) readInbox() {
	var count [8]byte
	unix.Read(int(l.wakefd), count[:])
	l.inbox.mu.Lock()
	msgs := l.inbox.msgs
	l.inbox.msgs = l.inboxSpare[:0]
	l.inbox.mu.Unlock()
	for i := range msgs {
		switch m := &msgs[i]; {
		case m.do != nil:
			m.do(l)
		case m.grant != nil:
			l.granted(m.grant, m.slot)
		default:
			l.open(m.conn)
		}
		msgs[i] = message{}
	}
	l.inboxSpare = msgs
}

// countDirty adds the bytes of running sessions to the shared counters.
func (l *loop) countDirty() {
	kept := l.dirty[:0]
	for _, ref := range l.dirty {
		s := l.table.find(ref)
		if s == nil {
			continue
		}
		s.count()
		switch {
		case !s.spread && l.now-s.connected < countEvery:
			kept = append(kept, ref) // it is too young
			continue
		case !s.spread:
			s.spread = true
			s.spreadKeepalive()
		}
		s.dirty = false
	}
	l.dirty = kept
	l.countAt = l.now + countEvery
}

// count adds what the shared counters of the listener and the backend do not have yet.
func (s *session) count() {
	up, down := &s.dirs[client], &s.dirs[backend]
	if up.bytes > up.counted {
		n := up.bytes - up.counted
		up.counted = up.bytes
		s.listener.Counters.BytesIn.Add(n)
		s.backend.Counters.BytesIn.Add(n)
	}
	if down.bytes > down.counted {
		n := down.bytes - down.counted
		down.counted = down.bytes
		s.listener.Counters.BytesOut.Add(n)
		s.backend.Counters.BytesOut.Add(n)
	}
}

// armIdle sets the timer to the earliest moment at which the session could have been idle for too long.
// Moving bytes does not touch the timer: when it fires, s.active tells how long the silence really was.
func (l *loop) armIdle(s *session) {
	if at := l.deadline(s); at != never {
		l.wheel.arm(s, at)
	} else {
		l.wheel.cancel(s)
	}
}

// deadline is when the session has been idle or alive for too long, if nothing moves until then.
func (l *loop) deadline(s *session) time.Duration {
	at := never
	if limit := l.idleLimit(s); limit > 0 {
		at = s.active + limit
	}
	if s.expires > 0 {
		at = min(at, s.expires)
	}
	if s.recheck > 0 {
		at = min(at, s.recheck)
	}
	return at
}

// idleLimit is how long the session may be silent; 0 is for ever.
func (l *loop) idleLimit(s *session) time.Duration {
	cfg := s.pool.Config()
	limit := cfg.IdleTimeout
	if s.halfOpen {
		limit = cfg.HalfClosedTimeout
	}
	if (s.dirs[client].flags|s.dirs[backend].flags)&dirBroken != 0 || s.ends[client].flags&endFailed != 0 {
		limit = l.endLimit(s, limit)
	}
	return limit
}

// expired handles a timer that has fired.
func (l *loop) expired(s *session) {
	if l.now < l.graceUntil && !l.onlyLooks(s) {
		l.wheel.arm(s, l.graceUntil)
		return
	}
	switch s.phase {
	case phaseHeader:
		l.refuse(s, RefusedHeaderTimeout)
		return
	case phaseQueued:
		l.queueTimeout(s)
		return
	case phaseConnecting:
		l.connectTimeout(s)
		return
	case phaseHandedOff:
		l.untakenTooLong(s)
		return
	}
	if l.deadline(s) > l.now {
		l.armIdle(s)
		return
	}
	aged := s.expires > 0 && s.expires <= l.now
	if (s.dirs[client].flags|s.dirs[backend].flags)&dirQueued != 0 && !aged {
		// it has bytes, and waits for its turn
		l.wheel.arm(s, l.now+wheelTick)
		return
	}
	if s.recheck > 0 && s.recheck <= l.now && !aged {
		l.look(s)
		return
	}
	if s.end != (Termination{}) { // it was about to end
		l.timedOutEnding(s)
		return
	}
	s.end = termClientIdle
	if aged {
		s.end = termAge
	} else if s.dirs[client].blocked() || s.lastFrom == client && !s.dirs[backend].blocked() {
		s.end = termBackendIdle
	}
	l.close(s, false)
}

// onlyLooks reports whether the session's timer wants it to be looked at, and judges no deadline.
func (l *loop) onlyLooks(s *session) bool {
	return s.phase == phaseRelaying && (l.deadline(s) > l.now || s.recheck > 0 && s.recheck <= l.now)
}

// close ends a session: closes its sockets, with RST when reset is set, gives its slot and buffers back, and
// reports it.
func (l *loop) close(s *session, reset bool) {
	// Before the sockets: a client that hears of the end may come again at once, and finds its place free.
	s.source.Release()
	s.listener.active.Add(-1)
	for e := range s.ends {
		x := &s.ends[e]
		if x.fd < 0 {
			continue
		}
		// An end that will not get all of its bytes must not take a FIN for the end of them.
		if d := &s.dirs[1-e]; (reset || d.blocked()) && !s.isUnix(e) {
			resetOnClose(x.fd)
			d.bytes -= min(uint64(outQueue(x.fd)), d.bytes) // those are not delivered any more
		}
		closeFD(x.fd)
	}
	for i := range s.dirs {
		d := &s.dirs[i]
		l.dropBuffered(d)
		if d.pipe != nil {
			if d.piped > 0 {
				l.pipes.discard(d.pipe, &l.p.Stats)
			} else {
				l.pipes.put(d.pipe, &l.p.Stats)
			}
		}
	}
	l.wheel.cancel(s)
	if s.waiter != nil {
		l.leaveQueue(s)
	}
	if s.place != nil {
		l.leaveBacklog(s)
	}
	if s.backend != nil {
		s.count()
		s.backend.SessionTime.Observe(l.now - s.start)
		l.release(s)
	}
	l.report(s)
	l.sessions.Store(int64(l.table.used - 1))
	l.p.sessionEnded()
	l.table.put(s)
}

// report tells Proxy.OnSession.
func (l *loop) report(s *session) {
	if l.p.OnSession == nil {
		return
	}
	l.rec = Record{
		Start: l.p.epoch.Add(s.start), Client: s.client,
		Listener: s.listener, Pool: s.pool, Backend: s.backend,
		QueueTime: s.queued, ConnectTime: -1, SessionTime: l.now - s.start,
		BytesIn: s.dirs[client].bytes, BytesOut: s.dirs[backend].bytes,
		Retries: int(s.retries), Termination: s.end, Sessions: l.p.sessions.Load(),
	}
	if s.connected > 0 {
		l.rec.ConnectTime = s.connected - s.start
	}
	if s.handed != nil && s.handed.takenAt() > 0 {
		l.rec.ConnectTime = s.handed.takenAt() - s.start
	}
	l.p.OnSession(&l.rec)
}
