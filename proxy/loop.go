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
	batch    batch
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

	sessions atomic.Int64 // of this loop, see countSessions; written by it alone
	away     int          // sessions that were handed over

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
		limits:  relayLimits{turnBytes, roundBytes, spliceAt, spliceWorth, batchFrom, lastWordsTimeout, backendTailTimeout},
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
	if err := l.openBatch(); err != nil {
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
	l.batch.close()
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
		l.dispatchAll(n)
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

// dispatchAll handles the first n events, which came of one wait. A batch ends with them: two waits may
// report the same end, and what is judged next must know what has arrived.
func (l *loop) dispatchAll(n int) {
	for i := range n {
		l.dispatch(&l.events[i])
	}
	l.runBatch()
	l.acceptPending()
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
	if mask == unix.EPOLLIN && l.batch.ring != nil && l.plain(s, e) {
		l.addToBatch(s, e)
		return
	}
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
	if s.waiter() != nil {
		l.leaveQueue(s)
	}
	if s.place() != nil {
		l.leaveBacklog(s)
	}
	if s.backend != nil {
		s.count()
		s.backend.SessionTime.Observe(l.now - s.start)
		l.release(s)
	}
	l.report(s)
	l.p.sessionEnded()
	l.table.put(s)
	l.countSessions()
}
