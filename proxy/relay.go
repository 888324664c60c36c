package proxy

// Hot path: every byte goes through here. BenchmarkRelay holds its cost and its allocations.

import (
	"time"

	"github.com/valyala/bytebufferpool"
	"golang.org/x/sys/unix"
)

const (
	// scratchSize is the buffer that a loop reads into; what one read fills, one write takes.
	scratchSize = 64 << 10
	// turnBytes is what a direction may carry before others get their turn.
	turnBytes = 1 << 20
	// roundBytes is what all directions together may carry in a round before those that carry much have to
	// wait for their turns (runReady).
	roundBytes = 2 << 20
	// spliceAt is what one read must bring for its direction to switch to splice.
	spliceAt = 16 << 10
	// spliceWorth is what a readable event must bring for its direction to stay with splice.
	spliceWorth = 16 << 10
)

// relayLimits are a loop's own copy of the limits above, so that a test reaches every path with few bytes.
type relayLimits struct {
	turnBytes   int
	roundBytes  int
	spliceAt    int
	spliceWorth int
	batchFrom   int
	lastWords   time.Duration
	backendTail time.Duration
}

// pump carries what can be carried now in the direction that reads from end src. It may end the session: it
// says whether the session lives on.
//
// The invariant that makes edge-triggered events safe: when pump returns with the session alive, either src
// has been read to the end (an event will come when there is more), or the direction is blocked on its
// destination (EPOLLOUT is armed), or it has its place in loop.ready.
func (l *loop) pump(s *session, src int) bool {
	d := &s.dirs[src]
	from, to := &s.ends[src], &s.ends[1-src]
	if l.moved >= l.limits.roundBytes && (d.full > 0 || d.flags&dirSplicing != 0) {
		l.later(s, src)
		return true
	}
	if d.blocked() && !l.flush(s, src) {
		return s.phase != phaseFree
	}
	if d.flags&(dirEOF|dirBroken) != 0 {
		return true
	}
	for turn := 0; from.flags&endReadable != 0; {
		if turn >= l.limits.turnBytes || turn > 0 && l.moved >= l.limits.roundBytes {
			l.later(s, src)
			return true
		}
		if d.flags&dirSplicing != 0 {
			n, alive, more := l.pumpSplice(s, src, turn)
			if !more {
				return alive
			}
			turn += n
			continue
		}
		n, errno := recv(from.fd, l.scratch)
		if errno != 0 || n == 0 {
			return l.nothingRead(s, src, errno)
		}
		turn += n
		l.received(s, src, n, n == len(l.scratch))
		w, errno := send(to.fd, l.scratch[:n], s.holdBack(src, n < len(l.scratch)))
		l.sent(s, src, l.scratch[:n], w, errno)
		if alive, more := l.proceed(s, src, n < len(l.scratch), errno); !more {
			return alive
		}
	}
	return true
}

// nothingRead handles a read of end src that brought no bytes: an error, or with errno 0 the end of the
// stream. It says whether the session lives on.
func (l *loop) nothingRead(s *session, src int, errno unix.Errno) bool {
	switch errno {
	case 0:
		return l.readEOF(s, src)
	case unix.EAGAIN:
		s.ends[src].flags &^= endReadable
		s.letGo(src)
		return true
	case unix.ENOMEM, unix.ENOBUFS:
		s.letGo(src)
		return l.short(s)
	}
	return l.readFailed(s, src)
}

// holdBack returns the flag for a send of what a read from end src has brought: MSG_MORE if the FIN or the
// hang-up behind it was seen, so that TCP sends the bytes and the FIN in one segment. That is a fifth of what
// a new connection costs (docs/decisions.md, "the last bytes leave with the FIN"). What is held back goes
// with the coming shutdown, or by letGo if none comes; the kernel itself would send it after 200 ms (tcp(7)).
func (s *session) holdBack(src int, short bool) int {
	d, from := &s.dirs[src], s.ends[src].flags
	d.flags &^= dirHeld
	if !short || from&(endHalfClosed|endHungUp) == 0 || from&(endUrgent|endFailed) != 0 || s.isUnix(1-src) {
		return 0
	}
	d.flags |= dirHeld
	return unix.MSG_MORE
}

// letGo sends what holdBack has held back: no shutdown follows.
func (s *session) letGo(src int) {
	if d := &s.dirs[src]; d.flags&dirHeld != 0 {
		d.flags &^= dirHeld
		push(s.ends[1-src].fd)
	}
}

// received takes in that n bytes were read from end src, and filled the buffer when full is set.
func (l *loop) received(s *session, src, n int, full bool) {
	d := &s.dirs[src]
	l.moved += n
	s.active = l.now
	s.lastFrom = uint8(src)
	if d.bytes == 0 {
		l.firstBytes(s, src)
	}
	d.full = 0
	if full {
		d.full = 1
	}
	if n >= l.limits.spliceAt && d.flags&dirCopies == 0 {
		d.flags |= dirSplicing
	}
}

// sent takes in how a send of data, which was read from end src, ended: n bytes were taken, or none for the
// reason errno. What may be taken later is buffered.
func (l *loop) sent(s *session, src int, data []byte, n int, errno unix.Errno) {
	if errno != 0 {
		n = 0
	}
	d := &s.dirs[src]
	l.delivered(s, d, n)
	if n < len(data) && !isFatal(errno) {
		d.buffered = bytebufferpool.Get()
		d.buffered.B = append(d.buffered.B[:0], data[n:]...)
		d.off = 0
	}
}

// proceed does what follows a read from end src, short or not, and the send of what it brought. more reports
// whether the direction may go on, and alive, if not, whether the session lives.
func (l *loop) proceed(s *session, src int, short bool, errno unix.Errno) (alive, more bool) {
	d := &s.dirs[src]
	from := &s.ends[src]
	if isFatal(errno) {
		return l.writeFailed(s, src), false
	}
	drained := short && from.emptied()
	if d.buffered != nil {
		return l.blockedBy(s, 1-src, errno), false
	}
	if drained {
		return l.readEOF(s, src), false
	}
	return true, true
}

// emptied takes in that a read was short, which has emptied the queue. It reports whether the stream ends
// here. An error or urgent data may be behind it yet, and where the end's hang-up was seen, on a Unix socket,
// too: it may hide an error (a close with unread bytes shows it a moment later), and a read stops behind a
// message with descriptors (unix(7)). Then the end is read on.
func (x *end) emptied() (ended bool) {
	if x.flags&(endUrgent|endFailed) != 0 {
		return false
	}
	if x.flags&(endHalfClosed|endHungUp) == 0 {
		x.flags &^= endReadable
	}
	return x.flags&endHalfClosed != 0 && x.flags&(endHungUp|endUnix) == 0
}

// isFatal reports whether a send that ended with errno will never succeed on this socket.
func isFatal(errno unix.Errno) bool {
	return errno != 0 && errno != unix.EAGAIN && errno != unix.ENOBUFS && errno != unix.ENOMEM
}

// firstBytes notes when the first bytes of src came: by the round's clock, so that it costs no call. A
// session that an upgrade carried over between the two has lost the first stamp, and is not counted.
func (l *loop) firstBytes(s *session, src int) {
	switch {
	case src == client:
		if s.asked == 0 {
			s.asked = l.now
		}
	case s.answered:
	default:
		s.answered = true
		from := s.asked
		if from == 0 {
			from = s.connected // the backend speaks first
		}
		if s.asked != 0 || s.dirs[client].bytes == 0 {
			s.backend.FirstByteTime.Observe(l.now - from)
		}
	}
}

// delivered counts n bytes that the destination took.
func (l *loop) delivered(s *session, d *direction, n int) {
	d.bytes += uint64(n)
	if !s.dirty && n > 0 {
		s.dirty = true
		l.dirty = append(l.dirty, s.ref())
	}
}

// flush writes what is held for the destination of the direction. It says whether the direction is free to
// read on; if not, it is blocked or the session has ended.
func (l *loop) flush(s *session, src int) bool {
	d := &s.dirs[src]
	to := &s.ends[1-src]
	for d.buffered != nil {
		n, errno := send(to.fd, d.buffered.B[d.off:], 0)
		if errno != 0 {
			if errno == unix.EAGAIN || errno == unix.ENOBUFS || errno == unix.ENOMEM {
				l.blockedBy(s, 1-src, errno)
			} else {
				l.writeFailed(s, src)
			}
			return false
		}
		s.active = l.now
		l.delivered(s, d, n)
		if d.off += int32(n); int(d.off) == len(d.buffered.B) {
			l.dropBuffered(d)
		}
	}
	for d.piped > 0 {
		if !l.drainPipe(s, src) {
			return false
		}
	}
	l.disarmOut(s, 1-src)
	return true
}

// dropBuffered gives the buffer back. A loop's buffers are all of one size class, so the pool keeps them.
func (l *loop) dropBuffered(d *direction) {
	if d.buffered != nil {
		bytebufferpool.Put(d.buffered)
		d.buffered, d.off = nil, 0
	}
}

// pumpSplice fills a pipe from the source and empties it into the destination; turn is what has come in this
// turn before. n is how much came now; more reports whether pump may go on, and alive, if not, whether the
// session lives.
func (l *loop) pumpSplice(s *session, src, turn int) (n int, alive, more bool) {
	d := &s.dirs[src]
	from := &s.ends[src]
	if d.pipe == nil {
		d.pipe = l.pipes.get(&l.p.Stats)
		if d.pipe == nil {
			l.p.Stats.PipesDenied.Add(1)
			d.flags &^= dirSplicing
			d.full = 0
			return 0, true, true
		}
	}
	n, errno := splice(from.fd, d.pipe.w, d.pipe.size, 0)
	switch {
	case errno == unix.EAGAIN:
		l.returnPipe(d)
		s.letGo(src)
		urgent := from.flags&endUrgent != 0 // splice does not pass the urgent mark: read on from there
		if !urgent {
			from.flags &^= endReadable
		}
		if urgent || turn > 0 && turn < l.limits.spliceWorth {
			d.flags &^= dirSplicing
			d.full = 0
		}
		return 0, true, true
	case errno == unix.EINVAL || errno == unix.ENOSYS || errno == unix.ENOMEM || errno == unix.ENOBUFS:
		l.returnPipe(d) // this kind of socket cannot, or there is no memory: copy
		d.flags &^= dirSplicing
		d.full = 0
		if errno == unix.EINVAL || errno == unix.ENOSYS {
			d.flags |= dirCopies
		}
		return 0, true, true
	case errno != 0: // a read after it would take the end for a clean one, as the error is told once
		l.returnPipe(d)
		return 0, l.readFailed(s, src), false
	case n == 0: // the end of the stream, or urgent data with a FIN behind it: a read tells them apart
		l.returnPipe(d)
		d.flags &^= dirSplicing
		d.full = 0
		return 0, true, true
	}
	l.moved += n
	s.active = l.now
	s.lastFrom = uint8(src)
	d.piped = int32(n)
	l.p.Stats.SplicedBytes.Add(uint64(n))
	for d.piped > 0 {
		if !l.drainPipe(s, src) {
			return n, s.phase != phaseFree, false
		}
	}
	return n, true, true
}

// drainPipe moves bytes from the pipe to the destination once. It says whether to go on; if not, the
// direction is blocked or the session has ended.
func (l *loop) drainPipe(s *session, src int) bool {
	d := &s.dirs[src]
	n, errno := splice(d.pipe.r, s.ends[1-src].fd, int(d.piped), 0)
	switch {
	case errno == unix.EAGAIN:
		l.blockedBy(s, 1-src, errno)
		return false
	case errno == unix.EPIPE || errno == unix.ECONNRESET:
		l.writeFailed(s, src)
		return false
	case errno != 0 || n == 0: // not by splice: send what is in the pipe
		return l.unpipe(s, src) && l.flush(s, src)
	}
	s.active = l.now
	l.delivered(s, d, n)
	if d.piped -= int32(n); d.piped == 0 && d.flags&dirSplicing == 0 {
		l.returnPipe(d)
	}
	return true
}

// returnPipe gives an empty pipe back to the pool.
func (l *loop) returnPipe(d *direction) {
	if d.pipe != nil {
		l.pipes.put(d.pipe, &l.p.Stats)
		d.pipe = nil
	}
}

// later gives the direction its next turn after the other events of this round.
func (l *loop) later(s *session, src int) {
	d := &s.dirs[src]
	if d.flags&dirQueued == 0 {
		d.flags |= dirQueued
		l.ready = append(l.ready, readyRef{s.ref(), int32(src)})
	}
}

// blockedBy has the direction to end e wait: for an event when the end takes bytes again, or, where the
// kernel had no memory for them, for a moment. It says whether the session lives on.
func (l *loop) blockedBy(s *session, e int, errno unix.Errno) bool {
	if errno == unix.ENOBUFS || errno == unix.ENOMEM {
		return l.short(s)
	}
	return l.armOut(s, e)
}

// armOut asks for an event when the end takes bytes again. It says whether the session lives on: without the
// event it would hang.
func (l *loop) armOut(s *session, e int) bool {
	x := &s.ends[e]
	if x.flags&endArmedOut != 0 {
		return true
	}
	x.flags |= endArmedOut
	if x.flags&endRegistered == 0 { // register will see the flag
		return true
	}
	if errno := l.ctl(l.epfd, unix.EPOLL_CTL_MOD, x.fd, sessionEvents|unix.EPOLLOUT, s.token(e)); errno != 0 {
		x.flags &^= endArmedOut
		return l.short(s)
	}
	return true
}

// disarmOut takes EPOLLOUT back on a Unix socket, which fires it at each read of the peer. TCP fires it only
// after a write was refused, so there it stays.
func (l *loop) disarmOut(s *session, e int) {
	x := &s.ends[e]
	if x.flags&endArmedOut != 0 && s.isUnix(e) {
		x.flags &^= endArmedOut
		l.ctl(l.epfd, unix.EPOLL_CTL_MOD, x.fd, sessionEvents, s.token(e))
	}
}

// isUnix says whether the end is a Unix socket.
func (s *session) isUnix(e int) bool { return s.ends[e].flags&endUnix != 0 }
