package proxy

// Hot path of new connections. BenchmarkConnect and `make bench` hold its cost.

import (
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxAcceptBatch = 64
	// acceptPause is how long a loop leaves its listeners alone when lb is out of descriptors. What connects
	// meanwhile waits in the kernel's queue.
	acceptPause = 50 * time.Millisecond
	// maxAcceptPause is the longest time that a loop leaves one listening socket alone that it cannot serve:
	// each failure in a row doubles acceptPause.
	maxAcceptPause = time.Second
	// acceptFaults in a row that are the newcomers' own make a pause all the same: some come again for ever.
	acceptFaults = 16
	// deafAfter is how long a socket cannot be served before lb counts as not accepting there.
	deafAfter = time.Second
	// fullPause is the same at max_sessions, where the end of sessions ends the pause: it only bounds how
	// long a loop could miss that.
	fullPause = time.Second
	// A loop that has handOverAt sessions more than another, and a quarter more, gives a new one to that.
	handOverAt = 16
)

// acceptor is a listening socket in one loop.
type acceptor struct {
	ln     *Listener
	socket *socket
	fd     int32
	id     int32 // its token
	batch  int   // how many to accept at once: 1, more while the queue proves deep
	queued bool  // in loop.pending
	in     bool  // in the epoll set

	faults  int           // accepts in a row that failed by the newcomer's fault
	unheard bool          // the last attempt to put it into the epoll set failed
	pause   time.Duration // the last one after a failure of this socket; 0 as a rule
	retryAt time.Duration // when it is tried again after one; 0 as a rule
}

// watch puts a socket of ln into the loop's epoll set. EPOLLEXCLUSIVE wakes one loop for a connection, not
// all (epoll_ctl(2)); it cannot be modified, only removed and added.
func (l *loop) watch(ln *Listener, s *socket) {
	for _, a := range l.accepts {
		if a != nil && a.socket == s { // it goes from one listener to another
			a.ln = ln
			return
		}
	}
	i := slices.Index(l.accepts, nil)
	if i < 0 {
		i = len(l.accepts)
		l.accepts = append(l.accepts, nil)
	}
	a := &acceptor{ln: ln, socket: s, fd: s.fd, id: int32(firstListenerID - i), batch: 1}
	l.accepts[i] = a
	if l.resumeAt == 0 {
		l.resume(a)
	}
}

// resume puts a listening socket into the epoll set. Where the kernel has no memory or no watch left for it
// (epoll(7), max_user_watches), it is tried again.
func (l *loop) resume(a *acceptor) {
	if a.in {
		return
	}
	errno := l.ctl(l.epfd, unix.EPOLL_CTL_ADD, a.fd, unix.EPOLLIN|unix.EPOLLEXCLUSIVE, token{id: a.id})
	if errno != 0 && errno != unix.EEXIST {
		if !a.unheard {
			a.unheard = true
			a.socket.unheardSince.Store(int64(l.now))
			a.socket.unheard.Add(1)
		}
		l.retryLater(a, fmt.Errorf("cannot watch listener %q for connections: %w; raise fs.epoll.max_user_watches if that is used up", a.ln.Name, errno))
		return
	}
	a.in, a.retryAt = true, 0
	if a.unheard {
		a.unheard, a.pause = false, 0
		a.socket.unheard.Add(-1)
	}
}

func (l *loop) pause(a *acceptor) {
	if a.in {
		l.ctl(l.epfd, unix.EPOLL_CTL_DEL, a.fd, 0, token{})
		a.in = false
	}
}

// retryLater leaves one listening socket alone for a while that cannot be served, and reports why. The others
// go on.
func (l *loop) retryLater(a *acceptor, why error) {
	l.pause(a)
	a.pause = min(max(2*a.pause, acceptPause), maxAcceptPause)
	a.retryAt = l.now + a.pause
	if l.retryAt == 0 || a.retryAt < l.retryAt {
		l.retryAt = a.retryAt
	}
	if !a.unheard {
		a.socket.failed(l.now)
	}
	l.p.acceptError(a.ln, why)
}

// retryAcceptors tries the listening sockets again that could not be served.
func (l *loop) retryAcceptors() {
	l.retryAt = 0
	for _, a := range l.accepts {
		switch {
		case a == nil || a.retryAt == 0:
		case a.retryAt <= l.now && l.resumeAt == 0:
			a.retryAt = 0
			l.resume(a)
		case l.retryAt == 0 || a.retryAt < l.retryAt:
			l.retryAt = max(a.retryAt, l.resumeAt)
		}
	}
}

// unwatch accepts what waits in the socket's queue and takes it out of the epoll set. It may be closed then.
func (l *loop) unwatch(s *socket) {
	for i, a := range l.accepts {
		if a == nil || a.socket != s {
			continue
		}
		l.pause(a)
		a.queued = false // it may have had an event in this round
		l.accepts[i] = nil
		for l.p.counted() < l.p.maxSessions.Load() {
			if !l.acceptOne(a) {
				break
			}
		}
	}
}

// acceptPending serves the listening sockets that had an event.
func (l *loop) acceptPending() {
	for i, a := range l.pending {
		l.pending[i] = nil
		if a.queued {
			a.queued = false
			l.accept(a)
		}
	}
	l.pending = l.pending[:0]
}

// accept takes connections off the queue, as many as the last rounds suggest.
func (l *loop) accept(a *acceptor) {
	for n := 0; n < a.batch; n++ {
		if l.p.counted() >= l.p.maxSessions.Load() {
			l.p.limitReached()
			l.pauseAccepts(true)
			return
		}
		if !l.acceptOne(a) {
			a.batch = 1
			return
		}
	}
	a.batch = min(a.batch*2, maxAcceptBatch)
}

// acceptOne takes one connection off the queue; false when there is none or lb cannot.
func (l *loop) acceptOne(a *acceptor) bool {
	if l.p.sessions.Add(1)-l.p.handedOff.Load() > l.p.maxSessions.Load() {
		// the last place went to another loop
		l.p.sessions.Add(-1)
		return false
	}
	fd, errno := accept(a.fd, &l.rsa)
	switch errno {
	case 0:
	case unix.EAGAIN:
		l.p.sessions.Add(-1)
		a.accepted()
		return false
	case unix.ECONNABORTED, unix.EPROTO, unix.ENETDOWN, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.ENONET,
		unix.EHOSTUNREACH, unix.EOPNOTSUPP, unix.ENETUNREACH, unix.EPERM:
		l.p.sessions.Add(-1)
		if a.faults++; a.faults < acceptFaults {
			return true // this one's fault, not the listener's (accept(2))
		}
		l.retryLater(a, fmt.Errorf("cannot accept on listener %q: %w, %d times in a row", a.ln.Name, errno, a.faults))
		return false
	case unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		if fd = l.p.acceptFailed(a, errno, &l.rsa); fd < 0 {
			l.p.sessions.Add(-1)
			a.socket.failed(l.now)
			l.pauseAccepts(false)
			return false
		}
	default:
		l.p.sessions.Add(-1)
		l.retryLater(a, fmt.Errorf("cannot accept on listener %q: %w", a.ln.Name, errno))
		return false
	}
	a.accepted()
	c := accepted{fd: fd, unix: l.rsa.Addr.Family == unix.AF_UNIX, client: peerAddr(&l.rsa), listener: a.ln}
	a.ln.active.Add(1)
	if other := l.lessLoaded(); other != nil {
		other.sessions.Add(1) // until it counts for itself, so that a burst spreads
		other.post(message{conn: c})
		return true
	}
	l.open(c)
	return true
}

// accepted notes that the socket serves.
func (a *acceptor) accepted() {
	a.faults, a.pause = 0, 0
	a.socket.served()
}

// countSessions tells the other loops how many sessions this one has. A session that was handed over costs it
// nothing and does not count.
func (l *loop) countSessions() { l.sessions.Store(int64(l.table.used - l.away)) }

// lessLoaded gives the loop that should have the next session when this one has clearly more; nil as a rule.
func (l *loop) lessLoaded() *loop {
	mine := l.sessions.Load()
	if mine < handOverAt {
		return nil
	}
	for _, other := range l.p.loops {
		if n := other.sessions.Load(); mine > n+n/4+handOverAt {
			return other
		}
	}
	return nil
}

// pauseAccepts takes all listeners out of the epoll set for a while, so that a queue that cannot be served
// does not spin the loop. full says that the reason is max_sessions.
func (l *loop) pauseAccepts(full bool) {
	for _, a := range l.accepts {
		if a != nil {
			l.pause(a)
		}
	}
	l.resumeAt, l.full = l.now+acceptPause, full
	if full {
		l.resumeAt = l.now + fullPause
		l.waitsForRoom.Store(true)
		l.tryResume() // sessions may have ended before they could know
	}
}

// tryResume ends the pause when it is over, or when there is room again for a good number of sessions.
func (l *loop) tryResume() {
	if l.now < l.resumeAt && (!l.full || !l.p.hasRoom(l.p.counted())) {
		return
	}
	l.resumeAt = 0
	l.waitsForRoom.Store(false)
	l.p.restoreReserve()
	for _, a := range l.accepts {
		if a != nil && a.retryAt == 0 {
			l.resume(a)
		}
	}
}
