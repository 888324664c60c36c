package proxy

import (
	"net/netip"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

// Recount counts the connections that b's worker was handed by an lb that was killed: those of the sockets,
// given by their inodes, that belong to the listeners. They are sessions from now on, which begin in this
// moment. It returns how many. The listeners may be prepared and not committed yet. The error says why they
// cannot be seen.
func (p *Proxy) Recount(b *backends.Backend, sockets map[uint32]bool) (int, error) {
	if err := p.watchEnds(); err != nil {
		return 0, err
	}
	if ch := channelOf(b); ch != nil {
		ch.mu.Lock()
		ch.takeOverNode()
		ch.mu.Unlock()
	}
	type found struct {
		cookie uint64
		client netip.AddrPort
		ln     *Listener
	}
	var all []found
	for port, ln := range p.handed.portsNow() {
		err := p.diag.Sockets(port, func(s *sockdiag.Socket) {
			if s.Inode != 0 && sockets[s.Inode] {
				client := netip.AddrPortFrom(s.Remote.Addr().Unmap(), s.Remote.Port())
				all = append(all, found{s.Cookie, client, ln})
			}
		})
		if err != nil {
			return 0, err
		}
	}
	next := 0
	p.onLoops(func(l *loop) {
		for ; next*len(p.loops) < len(all)*(l.id+1); next++ {
			x := &all[next]
			l.takeOverHanded(b, x.cookie, x.client, x.ln)
		}
	})
	p.askForEnds() // of those that have ended meanwhile nobody has told
	return len(all), nil
}

// takeOverHanded makes a session of a connection that b's worker has.
func (l *loop) takeOverHanded(b *backends.Backend, cookie uint64, peer netip.AddrPort, ln *Listener) {
	l.now = l.p.since()
	s := l.table.take()
	s.listener, s.pool, s.backend, s.client = ln, b.Pool(), b, peer
	s.ends[client].fd, s.ends[backend].fd = -1, -1
	s.start, s.active, s.chosen = l.now, l.now, l.now
	s.phase = phaseHandedOff
	l.opened++
	s.id = l.opened*uint64(len(l.p.loops)) + uint64(l.id)
	ch := channelOf(b)
	if ch == nil { // it can be given none, and has these
		ch = l.p.newChannel(b)
		b.Channel = ch
	}
	h := &handed{channel: ch, cookie: cookie, fd: -1, since: l.now, given: l.now, loop: l, ref: s.ref(), listener: ln}
	h.setTaken(max(l.now, 1))
	l.table.wait(s).handed = h
	l.p.handed.add(h)
	b.Pool().Retake(b)
	ln.active.Add(1)
	l.p.sessions.Add(1)
	l.p.handedOff.Add(1)
	l.away++
	l.countSessions()
}
