package proxy

// How a direction, and with it a session, comes to its end. Every error of a socket leads here.
//
// What lb has taken from one side it delivers to the other before it tells of the end: a FIN after the last
// byte, and a reset only when the other side's kernel has acknowledged every byte, as a reset discards what
// it has not (tcp(7)).

import (
	"time"

	"github.com/valyala/bytebufferpool"
	"golang.org/x/sys/unix"
)

const (
	// lastWordsTimeout is how long an end that takes nothing any more may be silent before the session ends:
	// it may have shut its reading side and still be about to answer.
	lastWordsTimeout = 2 * time.Second
	// backendTailTimeout is how long a backend may take nothing of what is left of a client that is gone.
	// What is left of a backend that is gone has half_closed_timeout: a client may be slow by intent.
	backendTailTimeout = 10 * time.Second
	// A destination that has not acknowledged everything is looked at after minSettlePause, then after the
	// double, up to maxSettlePause: the kernel has no event for it.
	minSettlePause = wheelTick
	maxSettlePause = 256 * time.Millisecond
	// shortagePause is when a call is made again for which the kernel had no memory, and shortageTimeout how
	// long nothing may move for that reason.
	shortagePause   = 2 * wheelTick
	shortageTimeout = 10 * time.Second
)

// readEOF handles the end of a direction's bytes, all of which are out.
func (l *loop) readEOF(s *session, src int) bool {
	d, other := &s.dirs[src], &s.dirs[1-src]
	s.ends[src].flags &^= endReadable
	d.flags |= dirEOF
	if other.flags&dirEOF != 0 {
		s.end = termNormal
		l.close(s, false)
		return false
	}
	if src == backend && s.ends[backend].flags&endHungUp != 0 && s.isUnix(backend) {
		return l.closeMirrored(s)
	}
	if other.flags&dirBroken != 0 {
		return l.settle(s, src)
	}
	if shutdownWrite(s.ends[1-src].fd) != 0 { // the destination is gone
		return l.writeFailed(s, src)
	}
	d.flags &^= dirHeld
	s.halfOpen = true
	l.armIdle(s)
	return true
}

// closeMirrored ends a session whose Unix backend has closed both ways, all of its bytes being out: nobody
// will read what the client sends. The client is closed as the backend was, at once. What is held back for
// the FIN goes before the close, which resets a client whose bytes have come meanwhile.
func (l *loop) closeMirrored(s *session) bool {
	d := &s.dirs[client]
	if d.blocked() || d.flags&dirBroken != 0 || s.ends[client].flags&endReadable != 0 && inQueue(s.ends[client].fd) > 0 {
		s.endsWith(termBackendReset)
		return l.settle(s, backend)
	}
	if s.dirs[backend].flags&dirHeld != 0 {
		shutdownWrite(s.ends[client].fd)
	}
	s.end = termNormal
	l.close(s, false)
	return false
}

// readFailed handles an error of the source, ECONNRESET as a rule, behind its last byte: the other end gets a
// reset too.
func (l *loop) readFailed(s *session, src int) bool {
	s.endsWith(resetBy(src))
	s.ends[src].flags |= endFailed
	return l.settle(s, src)
}

// writeFailed handles a destination that takes nothing any more (EPIPE, ECONNRESET). What it said before
// still goes to the other side; then both get a reset.
func (l *loop) writeFailed(s *session, src int) bool {
	d, back := &s.dirs[src], &s.dirs[1-src]
	s.endsWith(resetBy(1 - src))
	if !s.isUnix(1 - src) { // a Unix socket may have shut its reading side alone
		s.ends[1-src].flags |= endFailed
	}
	l.breakOff(d)
	if back.flags&dirEOF != 0 {
		return l.settle(s, 1-src)
	}
	s.ends[1-src].flags |= endReadable // whatever it said is there by now, and the end or the error behind it
	l.armIdle(s)
	if back.blocked() {
		return true
	}
	return l.pump(s, 1-src)
}

// breakOff drops what a direction holds for a destination that takes nothing any more.
func (l *loop) breakOff(d *direction) {
	d.flags |= dirBroken
	l.dropBuffered(d)
	if d.pipe != nil {
		l.pipes.discard(d.pipe, &l.p.Stats)
		d.pipe, d.piped = nil, 0
	}
}

// settle ends a session whose source src has nothing more to say, and whose other direction is over: with a
// reset, once the destination has acknowledged every byte. It says whether the session lives on until then.
func (l *loop) settle(s *session, src int) bool {
	if other := &s.dirs[1-src]; other.flags&dirBroken == 0 || other.blocked() {
		l.breakOff(other)
	}
	s.dirs[src].flags |= dirEOF | dirSettling
	s.ends[src].flags &^= endReadable
	s.letGo(src)
	left := s.unacknowledged(1 - src)
	if left == 0 {
		l.close(s, true)
		return false
	}
	w := l.table.wait(s)
	if left != w.unacked {
		w.unacked, w.pause, s.active = left, 0, l.now
	}
	w.pause = min(max(2*w.pause, minSettlePause), maxSettlePause)
	w.recheck = l.now + w.pause
	s.halfOpen = true
	l.armIdle(s)
	return true
}

// unacknowledged returns how many bytes of those that end e was sent its kernel has not acknowledged (tcp(7),
// SIOCOUTQ); 0 for a Unix socket, whose bytes are with the peer at once, and for an end that is gone.
func (s *session) unacknowledged(e int) int {
	if s.isUnix(e) || s.ends[e].flags&endFailed != 0 {
		return 0
	}
	return outQueue(s.ends[e].fd)
}

// settling reports whether the session only waits for an acknowledgement, and which direction's.
func (s *session) settling() (src int, ok bool) {
	for src := range s.dirs {
		if s.dirs[src].flags&dirSettling != 0 {
			return src, true
		}
	}
	return 0, false
}

// settlingEvent handles an event while the session only waits for the acknowledgement of what src had said.
func (l *loop) settlingEvent(s *session, src, e int, mask uint32) {
	if e != src && mask&(unix.EPOLLERR|unix.EPOLLHUP) != 0 {
		l.close(s, true)
	}
}

// endLimit is idleLimit for a session that is about to end, where limit is the configured one.
func (l *loop) endLimit(s *session, limit time.Duration) time.Duration {
	for src := range s.dirs {
		d := &s.dirs[src]
		left := d.blocked() || d.flags&dirSettling != 0
		switch {
		case left && src == client:
			limit = shorter(limit, l.limits.backendTail)
		case !left && s.dirs[1-src].flags&dirBroken != 0 && d.flags&dirEOF == 0:
			limit = shorter(limit, l.limits.lastWords)
		}
	}
	return limit
}

// shorter is the shorter of two times, of which 0 is for ever.
func shorter(a, b time.Duration) time.Duration {
	if a == 0 || b < a {
		return b
	}
	return a
}

// timedOutEnding ends a session whose end took too long.
func (l *loop) timedOutEnding(s *session) {
	if _, ok := s.settling(); !ok {
		for src := range s.dirs {
			if s.dirs[1-src].flags&dirBroken != 0 && !s.dirs[src].blocked() {
				l.settle(s, src)
				return
			}
		}
	}
	l.close(s, true)
}

// endsWith notes why the session ends. What came first holds.
func (s *session) endsWith(t Termination) {
	if s.end == (Termination{}) {
		s.end = t
	}
}

// resetBy is the termination of a session that is reset by end e.
func resetBy(e int) Termination {
	if e == client {
		return termClientReset
	}
	return termBackendReset
}

// short has the session try again in a moment what it could not do for want of kernel memory. It says whether
// the session lives on: not when nothing has moved for shortageTimeout.
func (l *loop) short(s *session) bool {
	w := l.table.wait(s)
	if w.shortSince == 0 || s.active > w.shortSince {
		w.shortSince = l.now
		l.p.Stats.Shortages.Add(1)
	}
	if l.now-w.shortSince > shortageTimeout {
		s.endsWith(s.endedBy('R'))
		l.close(s, true)
		return false
	}
	w.recheck = l.now + shortagePause
	l.armIdle(s)
	return true
}

// look does what a session wanted to be looked at for.
func (l *loop) look(s *session) {
	s.wait.recheck = 0
	if src, ok := s.settling(); ok {
		l.settle(s, src)
		return
	}
	for src := range s.dirs {
		if (s.dirs[src].blocked() || s.ends[src].flags&endReadable != 0) && !l.pump(s, src) {
			return
		}
	}
	l.armIdle(s)
}

// unpipe takes what is in the direction's pipe into a buffer, for a destination that splice(2) cannot write
// to. It says whether the session lives on.
func (l *loop) unpipe(s *session, src int) bool {
	d := &s.dirs[src]
	d.buffered, d.off = bytebufferpool.Get(), 0
	buf := make([]byte, d.piped)
	for got := 0; got < len(buf); {
		n, err := unix.Read(int(d.pipe.r), buf[got:])
		if n <= 0 && err != unix.EINTR {
			s.endsWith(s.endedBy('R'))
			l.close(s, true)
			return false
		}
		got += max(n, 0)
	}
	d.buffered.B = append(d.buffered.B[:0], buf...)
	l.pipes.discard(d.pipe, &l.p.Stats)
	d.pipe, d.piped = nil, 0
	d.flags = d.flags&^dirSplicing | dirCopies
	d.full = 0
	return true
}
