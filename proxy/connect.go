package proxy

// Hot path of new connections. BenchmarkConnect and `make bench` hold its cost.

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// accepted is a client connection that has no session yet.
type accepted struct {
	fd       int32
	unix     bool
	client   netip.AddrPort
	listener *Listener
}

// open makes a session of an accepted connection and connects it to a backend.
func (l *loop) open(c accepted) {
	s := l.table.take()
	s.listener, s.client = c.listener, c.client
	s.ends[client].fd, s.ends[backend].fd = c.fd, -1
	if c.unix {
		s.ends[client].flags = endUnix
	}
	s.start, s.active, s.lastFrom = l.now, l.now, backend // the client is to speak
	s.phase = phaseConnecting
	l.opened++
	s.id = l.opened*uint64(len(l.p.loops)) + uint64(l.id)
	l.sessions.Store(int64(l.table.used))
	set := c.listener.settings.Load()
	if set.cfg.AcceptProxy {
		l.awaitHeader(s, set)
	} else if l.admit(s, set) {
		l.begin(s, set)
	}
}

// begin looks for a backend for a session that was let in.
func (l *loop) begin(s *session, set *settings) {
	s.phase = phaseConnecting
	s.pool = set.route(s.client.Addr())
	s.budget = l.now
	if l.p.backlogs.waiting.Load() > 0 && l.p.backlogs.busy(s.pool) {
		l.waitForBacklog(s) // behind those who have waited longer
		return
	}
	l.connect(s)
}

// connect tries backends until one takes the connection or is on its way, or there is none left, or it has to wait for
// one in the pool's queue.
func (l *loop) connect(s *session) {
	for {
		l.req.Client, l.req.Tried = s.client.Addr(), s.tried
		w := l.waiter()
		w.Session = s.ref().pack()
		b, err := s.pool.Acquire(&l.req, w)
		if err != nil {
			l.noBackend(s, w, err)
			return
		}
		if !l.attempt(s, b) {
			return
		}
	}
}

// attempt dials b, one of whose slots the session has been given. It says whether to try another backend.
func (l *loop) attempt(s *session, b *backends.Backend) bool {
	s.backend, s.chosen = b, l.now
	why, errno := l.dial(s, b)
	switch errno {
	case 0:
		l.established(s)
		return false
	case unix.EINPROGRESS:
		l.wheel.arm(s, l.connectDeadline(s))
		return false
	}
	return l.connectFailed(s, why)
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
	case unix.EADDRNOTAVAIL, unix.EMFILE, unix.ENFILE, unix.ENOBUFS, unix.ENOMEM:
		return backends.ConnectResource
	}
	return backends.ConnectOther
}

// connectFailed gives the backend's slot back and says whether to try another; if not, the session has ended.
func (l *loop) connectFailed(s *session, why backends.ConnectError) bool {
	b := s.backend
	noSocket := s.ends[backend].fd < 0
	if x := &s.ends[backend]; x.fd >= 0 {
		if x.flags&endRegistered != 0 { // a fork under way may keep the socket alive for a moment, and its events with it
			l.ctl(l.epfd, unix.EPOLL_CTL_DEL, x.fd, 0, token{})
		}
		closeFD(x.fd)
	}
	s.ends[backend] = end{fd: -1}
	s.backend = nil
	s.tried = append(s.tried, b)
	if s.retries < math.MaxUint8 {
		s.retries++
	}
	s.busy = s.busy || why == backends.ConnectSaturated
	streak := b.ConnectFailed(why)
	s.pool.Release(b)
	if l.p.OnConnectFailure != nil {
		l.p.OnConnectFailure(b, why, streak)
	}
	if l.now >= s.budget+s.pool.Config().ConnectTimeout {
		s.end = termConnectLate
		l.close(s, false)
		return false
	}
	if why == backends.ConnectResource && (noSocket || b.Address.IsUnix()) {
		// No descriptor or memory of our own: the next backend would fail the same way.
		s.end = s.endedBy('R')
		l.close(s, false)
		return false
	}
	return true
}

// connectDeadline is when to give the current attempt up: at the end of the connect budget, or at half of what is
// left of it while there is another backend to try.
func (l *loop) connectDeadline(s *session) time.Duration {
	end := s.budget + s.pool.Config().ConnectTimeout
	if n, _ := s.pool.Selectable(); n > len(s.tried)+1 {
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
		if l.connectFailed(s, connectError(unix.AF_INET, errno)) {
			l.connect(s)
		}
		return
	}
	s.note(backend, mask)
	l.established(s)
}

// connectTimeout handles an attempt that took too long.
func (l *loop) connectTimeout(s *session) {
	if l.connectFailed(s, backends.ConnectTimeout) {
		l.connect(s)
	}
}

// established starts the relay.
func (l *loop) established(s *session) {
	s.phase = phaseRelaying
	s.connected = l.now
	s.active = l.now
	s.backend.Connected(l.now - s.chosen)
	s.listener.Counters.Connections.Add(1)
	cfg := s.pool.Config()
	if cfg.MaxSessionAge > 0 {
		s.expires = l.now + jitter(cfg.MaxSessionAge)
	}
	l.armIdle(s)
	if cfg.SendProxy != "" && !l.sendHeader(s, cfg.SendProxy) {
		return
	}
	if s.ends[client].flags&endRegistered == 0 {
		// Most clients speak first and their bytes are here by now: carry them before the sockets are registered,
		// so that registering reports nothing.
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
