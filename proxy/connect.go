package proxy

// Hot path of new connections. BenchmarkConnect and `make bench` hold its cost.

import (
	"math/rand/v2"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// deliver connects the session to b. It reports whether to choose another backend.
func (l *loop) deliver(s *session, b *backends.Backend) bool {
	why, errno := l.dial(s, b)
	switch errno {
	case 0:
		l.established(s)
		return false
	case unix.EINPROGRESS:
		l.wheel.arm(s, l.connectDeadline(s))
		return false
	}
	l.hangUp(s)
	return l.undelivered(s, why, errno)
}

// dial starts the connection to b.
func (l *loop) dial(s *session, b *backends.Backend) (backends.ConnectError, unix.Errno) {
	sa := b.Sockaddr()
	if sa == nil { // a host name that was never resolved
		return backends.ConnectUnreachable, unix.EHOSTUNREACH
	}
	fd, errno := dialSocket(sa.Family)
	if errno != 0 {
		return backends.ConnectResource, errno
	}
	s.ends[backend] = end{fd: fd}
	if sa.Family == unix.AF_UNIX {
		s.ends[backend].flags = endUnix
	} else {
		unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		setTCP(int(fd), &s.pool.Config().TCPConfig)
	}
	errno = b.Connect(fd)
	if (errno == 0 || errno == unix.EINPROGRESS) && sa.Family != unix.AF_UNIX && localAddr(fd) == peerAddr(&sa.Any) {
		// Nobody listens there: the kernel chose that very port for this end, and it has met itself.
		resetOnClose(fd)
		return backends.ConnectRefused, unix.ECONNREFUSED
	}
	if errno == unix.EINPROGRESS {
		// Both ends are watched meanwhile: the client may go.
		if errno := l.register(s, client, sessionEvents); errno != 0 {
			return backends.ConnectResource, errno
		}
		if errno := l.register(s, backend, sessionEvents|unix.EPOLLOUT); errno != 0 {
			return backends.ConnectResource, errno
		}
	}
	return connectError(sa.Family, errno), errno
}

// register puts an end into the epoll set.
func (l *loop) register(s *session, e int, mask uint32) unix.Errno {
	x := &s.ends[e]
	if x.flags&endRegistered != 0 {
		return 0
	}
	errno := l.ctl(l.epfd, unix.EPOLL_CTL_ADD, x.fd, mask, s.token(e))
	if errno == 0 {
		x.flags |= endRegistered
		if mask&unix.EPOLLOUT != 0 {
			x.flags |= endArmedOut
		}
	}
	return errno
}

// connectError classifies why connect(2) failed.
func connectError(family int, errno unix.Errno) backends.ConnectError {
	switch errno {
	case unix.ECONNREFUSED, unix.ENOENT, unix.ECONNRESET:
		return backends.ConnectRefused
	case unix.EAGAIN: // for TCP: no free local port
		if family == unix.AF_UNIX {
			return backends.ConnectSaturated
		}
		return backends.ConnectResource
	case unix.ETIMEDOUT:
		return backends.ConnectTimeout
	case backends.ErrUntrusted:
		return backends.ConnectUntrusted
	case unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EACCES, unix.EPERM, unix.ENETDOWN, unix.EHOSTDOWN:
		return backends.ConnectUnreachable
	case unix.EADDRNOTAVAIL, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM, unix.ENOSPC:
		return backends.ConnectResource
	}
	return backends.ConnectOther
}

// hangUp closes the socket to a backend that could not be had.
func (l *loop) hangUp(s *session) {
	if x := &s.ends[backend]; x.fd >= 0 {
		if x.flags&endRegistered != 0 {
			// a fork under way may keep the socket alive for a moment, and its events with it
			l.ctl(l.epfd, unix.EPOLL_CTL_DEL, x.fd, 0, token{})
		}
		closeFD(x.fd)
	}
	s.ends[backend] = end{fd: -1}
}

// connectDeadline is when to give the current attempt up: at the end of the connect budget, or at half of
// what is left of it while there is another backend to try.
func (l *loop) connectDeadline(s *session) time.Duration {
	end := s.budget + s.pool.Config().ConnectTimeout
	if n, _ := s.pool.Selectable(); n > len(s.tried())+1 {
		return l.now + (end-l.now)/2
	}
	return end
}

// connectEvent handles an event while the connect is in progress.
func (l *loop) connectEvent(s *session, e int, mask uint32) {
	if e == client {
		s.note(client, mask)
		// Reset, or a Unix socket that was closed: nobody to connect for, unless it said something before.
		if mask&(unix.EPOLLERR|unix.EPOLLHUP) != 0 && s.clientGone() {
			s.end = termClientGone
			l.close(s, true)
		}
		return
	}
	if mask&(unix.EPOLLOUT|unix.EPOLLERR|unix.EPOLLHUP) == 0 {
		return
	}
	fd := s.ends[backend].fd
	if errno := socketError(fd); errno != 0 {
		l.wheel.cancel(s)
		l.hangUp(s)
		if l.undelivered(s, connectError(unix.AF_INET, errno), errno) {
			l.choose(s)
		}
		return
	}
	s.note(backend, mask)
	l.established(s)
}

// connectTimeout handles an attempt that took too long.
func (l *loop) connectTimeout(s *session) {
	l.hangUp(s)
	if l.undelivered(s, backends.ConnectTimeout, unix.ETIMEDOUT) {
		l.choose(s)
	}
}

// established starts the relay.
func (l *loop) established(s *session) {
	l.table.endWait(s)
	s.phase = phaseRelaying
	s.connected = l.now
	s.active = l.now
	s.backend.Connected(l.now - s.chosen)
	s.listener.Counters.Connections.Add(1)
	if !s.dirty { // countDirty has what is only for sessions that live for a while
		s.dirty = true
		l.dirty = append(l.dirty, s.ref())
	}
	cfg := s.pool.Config()
	if cfg.MaxSessionAge > 0 {
		s.expires = l.now + jitter(cfg.MaxSessionAge)
	}
	l.armIdle(s)
	if cfg.SendProxy != "" && !l.sendHeader(s, cfg.SendProxy) {
		return
	}
	if s.ends[client].flags&endRegistered == 0 {
		// Most clients speak first and their bytes are here by now: carry them before the sockets are
		// registered, so that registering reports nothing.
		s.ends[client].flags |= endReadable
		if !l.pump(s, client) {
			return
		}
	} else if s.ends[client].flags&endReadable != 0 && !l.pump(s, client) {
		return
	}
	mask := uint32(sessionEvents)
	if s.ends[backend].flags&endArmedOut != 0 {
		mask |= unix.EPOLLOUT
	}
	errno := l.register(s, backend, mask)
	if errno == 0 {
		mask = sessionEvents
		if s.ends[client].flags&endArmedOut != 0 {
			mask |= unix.EPOLLOUT
		}
		errno = l.register(s, client, mask)
	}
	if errno != 0 { // a clean end would pretend that nothing is missing
		s.end = s.endedBy('R')
		l.close(s, true)
		return
	}
	if s.ends[backend].flags&endReadable != 0 {
		l.pump(s, backend)
	}
}

// jitter spreads d by up to a tenth either way.
func jitter(d time.Duration) time.Duration {
	return d + time.Duration((rand.Float64()-0.5)/5*float64(d))
}
