package proxy

// Hot path of new connections: who is chosen for a connection, and what becomes of it where that one cannot
// be had. How the connection gets there is the deliverer's: connect.go and relay.go, or handover.go and
// channel.go. BenchmarkConnect and `make bench` hold the cost.
//
// A deliverer's part of the agreement: deliver is called with a slot acquired. It either takes the connection
// on (the slot is the session's until close), or leaves nothing behind and calls undelivered.

import (
	"math"
	"net/netip"

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

// open makes a session of an accepted connection, and has a backend chosen for it.
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
	l.countSessions()
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
	l.choose(s)
}

// choose has backends that the pool chooses take the connection, until one does or is about to, or there is
// none left, or it has to wait for one.
func (l *loop) choose(s *session) {
	for {
		l.req.Client, l.req.Tried = s.client.Addr(), s.tried()
		w := l.waiter()
		w.Session = s.ref().pack()
		b, err := s.pool.Acquire(&l.req, w)
		if err != nil {
			l.noBackend(s, w, err)
			return
		}
		if !l.take(s, b) {
			return
		}
	}
}

// take gives the session a slot of b, which the pool has chosen and acquired, and has the connection
// delivered there. It reports whether to choose another backend.
func (l *loop) take(s *session, b *backends.Backend) bool {
	s.backend, s.chosen = b, l.now
	if ch := channelOf(b); ch != nil {
		return l.handOver(s, ch)
	}
	return l.deliver(s, b)
}

// undelivered gives the slot of a backend back that could not be had, and reports whether to choose another;
// if not, the session has ended. The deliverer has nothing of the backend any more.
func (l *loop) undelivered(s *session, why backends.ConnectError, errno unix.Errno) bool {
	b := s.backend
	s.backend = nil
	w := l.table.wait(s)
	w.tried = append(w.tried, b)
	if s.retries < math.MaxUint8 {
		s.retries++
	}
	s.busy = s.busy || why == backends.ConnectSaturated
	s.short = why == backends.ConnectResource
	streak := b.ConnectFailed(why)
	s.pool.ReleaseUntaken(b)
	if l.p.OnConnectFailure != nil {
		l.p.OnConnectFailure(b, why, streak)
	}
	if s.short {
		l.p.Stats.ConnectShortages.Add(1)
		if l.p.OnShortage != nil {
			l.p.OnShortage(b, errno)
		}
	}
	if l.now >= s.budget+s.pool.Config().ConnectTimeout {
		s.end = termConnectLate
		l.close(s, false)
		return false
	}
	if s.short && errno != unix.EADDRNOTAVAIL && (errno != unix.EAGAIN || b.Address.IsUnix()) {
		// No descriptor, watch or memory of lb's own: the next backend would fail the same way. Ports another
		// may have.
		s.end = s.endedBy('R')
		l.close(s, false)
		return false
	}
	return true
}
