package proxy

// Hot path of new connections in hand-off mode: how a session's client goes to a worker, and what lb knows of
// it then.

import (
	"math"
	"net/netip"
	"os"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

func (h *handed) setTaken(now time.Duration) { h.taken.Store(int64(now)) }

// takenAt returns when the worker took the connection; 0 before.
func (h *handed) takenAt() time.Duration { return time.Duration(h.taken.Load()) }

// handOver gives the session's client to the worker behind ch, one of whose slots it has. It says whether to
// try another backend.
func (l *loop) handOver(s *session, ch *Channel) bool {
	x := &s.ends[client]
	cookie, err := unix.GetsockoptUint64(int(x.fd), unix.SOL_SOCKET, unix.SO_COOKIE)
	if err != nil {
		s.end = s.endedBy('R')
		l.close(s, true)
		return false
	}
	if x.flags&endRegistered != 0 {
		// it waited. The worker's copy would keep it in the set after lb's is closed (epoll(7))
		l.ctl(l.epfd, unix.EPOLL_CTL_DEL, x.fd, 0, token{})
		x.flags &^= endRegistered
	}
	h := &handed{cookie: cookie, fd: -1, since: l.now, loop: l, ref: s.ref(), listener: s.listener}
	if s.forwarded != nil && s.forwarded.peer != s.client {
		h.client = s.client
	}
	// Known before it is given: its end may be told at once.
	l.p.handed.add(h)
	fd := x.fd
	x.fd = -1
	l.table.wait(s).handed, s.phase = h, phaseHandedOff
	l.away++
	l.countSessions()
	waits, errno := ch.give(h, fd, l.now)
	if errno != 0 {
		l.p.handed.remove(h)
		x.fd, s.wait.handed, s.phase = fd, nil, phaseConnecting
		l.away--
		l.countSessions()
		why := backends.ConnectRefused
		switch errno {
		case unix.EAGAIN, unix.ETOOMANYREFS, unix.ENOBUFS, unix.ENOMEM:
			// Too many descriptors are on their way (unix(7)), or the kernel has no memory for the message:
			// as a full backlog, which is not the worker's fault and passes.
			why = backends.ConnectSaturated
		}
		return l.undelivered(s, why, errno)
	}
	if waits {
		l.wheel.arm(s, l.now+s.windowPatience())
	} else {
		l.wheel.arm(s, l.now+s.pool.Config().HandoffTimeout)
	}
	return false
}

// windowPatience is how long a worker with a full window may take nothing until what waits for it goes to
// others that have room: a part of handoff_timeout, after which it is down.
func (s *session) windowPatience() time.Duration { return s.pool.Config().HandoffTimeout / 10 }

// untakenTooLong handles a worker that has not taken the session's connection within handoff_timeout: it is
// down, and all that it has not taken goes to others.
func (l *loop) untakenTooLong(s *session) {
	h, b := s.wait.handed, s.backend
	if h.takenAt() != 0 {
		return
	}
	switch given, tookAt := h.givenAt(); {
	case given == 0 && l.now < tookAt+s.windowPatience():
		l.wheel.arm(s, tookAt+s.windowPatience())
		return
	case given == 0 && !l.otherHasRoom(s):
		l.wheel.arm(s, l.now+s.windowPatience())
		return
	case given == 0:
		if h.channel.stopWaiting(h) {
			l.giveAgain(h)
		} else { // given, or taken back, in this moment
			l.wheel.arm(s, l.now+s.windowPatience())
		}
		return
	case l.now < given+s.pool.Config().HandoffTimeout:
		l.wheel.arm(s, given+s.pool.Config().HandoffTimeout)
		return
	}
	b.ConnectErrors[backends.ConnectTimeout].Add(1)
	if l.p.OnUntaken != nil {
		l.p.OnUntaken(b)
	}
	h.channel.retract("")
}

// givenAt returns when the worker was given the connection; 0 while it waits. tookAt is when the worker took
// another last.
func (h *handed) givenAt() (given, tookAt time.Duration) {
	h.channel.mu.Lock()
	defer h.channel.mu.Unlock()
	return h.given, h.channel.tookAt
}

// otherHasRoom reports whether a worker but the session's own could be given it now.
func (l *loop) otherHasRoom(s *session) bool {
	for _, b := range s.pool.Backends() {
		if ch := channelOf(b); ch != nil && b != s.backend && b.Eligible() && ch.hasRoom() && !slices.Contains(s.tried(), b) {
			return true
		}
	}
	return false
}

// giveAgain gives a connection that its worker has not taken to another one. If its session has ended
// meanwhile, the connection is closed.
func (l *loop) giveAgain(h *handed) {
	s := l.table.find(h.ref)
	if s == nil || s.handed() != h {
		if h.fd >= 0 {
			closeFD(h.fd)
			h.fd = -1
		}
		return
	}
	b := s.backend
	l.p.handed.remove(h)
	l.wheel.cancel(s)
	s.ends[client].fd, h.fd = h.fd, -1
	s.wait.handed, s.backend, s.phase = nil, nil, phaseConnecting
	l.away--
	l.countSessions()
	s.wait.tried = append(s.wait.tried, b)
	if s.retries < math.MaxUint8 {
		s.retries++
	}
	s.busy = true // it may be tried again, when all others are: it was not refused
	s.budget = l.now
	s.pool.ReleaseUntaken(b)
	l.choose(s)
}

// release gives the session's slot back. A connection that was handed over goes on if a worker has it.
func (l *loop) release(s *session) {
	h := s.handed()
	if h == nil {
		s.pool.ReleaseUntaken(s.backend)
		return
	}
	l.away--
	l.p.handed.remove(h)
	ch := h.channel
	ch.mu.Lock()
	untaken := h.takenAt() == 0
	h.gone = true // the worker may take it yet
	ch.mu.Unlock()
	if untaken {
		s.pool.ReleaseUntaken(s.backend)
	} else {
		l.p.handedOff.Add(-1)
		s.pool.Release(s.backend)
	}
}

// handedEnded handles what the kernel said of connections of this loop.
func (l *loop) handedEnded(ends []handedEnd) {
	for i := range ends {
		e := &ends[i]
		s := l.table.find(e.h.ref)
		if s == nil || s.handed() != e.h {
			continue
		}
		s.dirs[client].bytes, s.dirs[backend].bytes = e.received, e.sent
		s.count()
		if s.end == (Termination{}) {
			s.end = termHandedOff
			if e.h.takenAt() == 0 {
				s.end = termUntaken
			}
		}
		l.close(s, false)
	}
}

// handedEnd is the end of a connection.
type handedEnd struct {
	h              *handed
	received, sent uint64
}

// loopbackPair makes a TCP connection of lb with itself. A program takes it for a client's; a Unix socket has
// no address, which some do not expect.
func loopbackPair() (near, far int32, err error) {
	listening, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(listening)
	if err := unix.Bind(listening, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		return -1, -1, err
	}
	if err := unix.Listen(listening, 1); err != nil {
		return -1, -1, err
	}
	sa, err := unix.Getsockname(listening)
	if err != nil {
		return -1, -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, -1, err
	}
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return -1, -1, err
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return -1, -1, err
	}
	for { // somebody else may connect to the port in between
		n, peer, err := unix.Accept4(listening, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		if err != nil {
			unix.Close(fd)
			return -1, -1, err
		}
		if p, ok := peer.(*unix.SockaddrInet4); ok && *p == *self.(*unix.SockaddrInet4) {
			unix.SetNonblock(fd, true)
			return int32(fd), int32(n), nil
		}
		unix.Close(n)
	}
}

// untouched reports whether nobody has read from a TCP connection or written to it, so that another worker
// may have it.
func untouched(fd int32) bool {
	info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil || info.Bytes_sent > 0 {
		return false
	}
	unread, err := unix.IoctlGetInt(int(fd), unix.SIOCINQ)
	if err != nil {
		return false
	}
	received := info.Bytes_received
	if info.State == unix.BPF_TCP_CLOSE_WAIT && received > 0 {
		received-- // the kernel counts the FIN
	}
	return uint64(unread) == received
}

func cookieOf(fd int32) (uint64, error) { return sockdiag.Cookie(int(fd)) }

// destroy ends handed-off connections as if a reset had come, and returns how many there were, and the first
// error: it needs CAP_NET_ADMIN.
func (p *Proxy) destroy(cookies map[uint64]bool) (n int, err error) {
	if len(cookies) == 0 {
		return 0, nil
	}

	conn, err := sockdiag.Dial()
	if err != nil {
		return 0, err
	}
	defer conn.Close()
	type socket struct {
		local, remote netip.AddrPort
		cookie        uint64
	}
	var found []socket
	for port := range p.handed.portsNow() {
		if err := conn.Sockets(port, func(s *sockdiag.Socket) {
			if cookies[s.Cookie] {
				found = append(found, socket{s.Local, s.Remote, s.Cookie})
			}
		}); err != nil {
			return n, err
		}
	}
	for _, s := range found {
		if err := conn.Destroy(s.local, s.remote, s.cookie); err == nil {
			n++
		} else if err != sockdiag.ErrNotFound {
			return n, os.NewSyscallError("SOCK_DESTROY", err)
		}
	}
	return n, nil
}
