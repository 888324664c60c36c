package proxy

import (
	"net"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// SetRelayLimits makes the relay change its ways early; call it between New and Start.
func (p *Proxy) SetRelayLimits(scratch, turn, spliceAt, spliceWorth, pipe int) {
	for _, l := range p.loops {
		l.scratch = make([]byte, scratch)
		l.limits.turnBytes, l.limits.spliceAt, l.limits.spliceWorth = turn, spliceAt, spliceWorth
		l.pipes.size = pipe
	}
}

// BatchAll has the loops carry in a batch even what comes alone; call it between New and Start.
func (p *Proxy) BatchAll() {
	for _, l := range p.loops {
		l.limits.batchFrom = 1
	}
}

// Holdings are what the sessions of a proxy hold for destinations that do not take it.
type Holdings struct {
	Sessions int
	Armed    int // timers
	Buffers  int
	Buffered int // bytes in buffers
	Reserved int // capacity of the buffers
	Pipes    int // with sessions, full or empty
	Piped    int // bytes in pipes
	Idle     int // pipes with nobody
	Broken   int // directions whose destination takes nothing any more
	Failed   int // ends that have failed, of sessions that go on for the other end's sake
	HalfOpen int // sessions of which one side has ended
}

// Holdings asks every loop.
func (p *Proxy) Holdings() Holdings {
	var h Holdings
	for _, l := range p.loops {
		l.call(func(l *loop) {
			h.Idle += len(l.pipes.idle)
			h.Armed += l.wheel.armed
			l.table.each(func(s *session) {
				h.Sessions++
				if s.halfOpen {
					h.HalfOpen++
				}
				for i := range s.dirs {
					if s.ends[i].flags&endFailed != 0 {
						h.Failed++
					}
					d := &s.dirs[i]
					if d.buffered != nil {
						h.Buffers++
						h.Buffered += len(d.buffered.B) - int(d.off)
						h.Reserved += cap(d.buffered.B)
					}
					if d.flags&dirBroken != 0 {
						h.Broken++
					}
					if d.pipe != nil {
						h.Pipes++
						h.Piped += int(d.piped)
					}
				}
			})
		})
	}
	return h
}

// ShrinkBuffers gives both sockets of every session small buffers.
func (p *Proxy) ShrinkBuffers(unixBytes, tcpBytes int) {
	p.onLoops(func(l *loop) {
		l.table.each(func(s *session) {
			for e := range s.ends {
				n := tcpBytes
				if s.isUnix(e) {
					n = unixBytes
				}
				if fd := int(s.ends[e].fd); fd >= 0 {
					unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, n)
					unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, n)
				}
			}
		})
	})
}

// Abandon ends a frozen proxy as an exec does: its sockets stay open, and nobody hears of its sessions.
func (p *Proxy) Abandon() {
	for _, l := range p.loops {
		l.quit = true
		l.table.each(func(s *session) {
			for i := range s.dirs {
				d := &s.dirs[i]
				l.dropBuffered(d)
				if d.pipe != nil {
					p.Stats.Pipes.Add(-1)
				}
			}
		})
	}
	p.stopped = true
	p.Thaw()
	p.running.Wait()
	for _, l := range p.loops {
		l.closeFDs()
	}
	closeFD(p.reserve.Load())
}

// HasReserve says whether the reserve descriptor is there.
func (p *Proxy) HasReserve() bool { return p.reserve.Load() >= 0 }

// LoopSessions is how many sessions each loop has.
func (p *Proxy) LoopSessions() []int {
	var n []int
	for _, l := range p.loops {
		l.call(func(l *loop) { n = append(n, l.table.used) })
	}
	return n
}

// InjectStaleEvents makes every loop see an epoll event for both ends of every slot in use, as of the tenant
// before.
func (p *Proxy) InjectStaleEvents(mask uint32) {
	for _, l := range p.loops {
		l.call(func(l *loop) {
			for slot := range int32(len(l.table.chunks) * tableChunk) {
				gen := l.table.at(slot).gen
				for e := range int32(2) {
					l.dispatch(&unix.EpollEvent{Events: mask, Fd: slot<<1 | e, Pad: gen - 1})
				}
			}
		})
	}
}

// BytesBeforeDeadlines has the only loop judge its deadlines, after prepare has run while the loop sees
// nothing. It returns how many bytes were carried by then.
func (p *Proxy) BytesBeforeDeadlines(prepare func()) (bytes uint64) {
	p.loops[0].call(func(l *loop) {
		prepare()
		l.expire(func(*session) {})
		l.table.each(func(s *session) { bytes += s.dirs[client].bytes + s.dirs[backend].bytes })
	})
	return bytes
}

// BatchInTwo has the only loop carry what has come from the given ends of its sessions by the end of prepare
// in one batch, with meanwhile between the receives and the sends.
func (p *Proxy) BatchInTwo(prepare, meanwhile func(), ends ...int) {
	p.loops[0].call(func(l *loop) {
		l.runBatch()
		prepare()
		l.table.each(func(s *session) {
			for _, e := range ends {
				unix.Poll([]unix.PollFd{{Fd: s.ends[e].fd, Events: unix.POLLIN}}, 5000)
				s.ends[e].flags |= endReadable
				l.addToBatch(s, e)
			}
		})
		l.receiveBatch()
		meanwhile()
		l.sendBatch()
		l.finishBatch()
	})
}

// The ends of a session.
const (
	ClientEnd  = client
	BackendEnd = backend
)

// TimeoutPrecision is how much later than its deadline a timeout may come.
const TimeoutPrecision = wheelTick + 10*time.Millisecond

// DenyPipes makes every loop do without pipes; call it between New and Start.
func (p *Proxy) DenyPipes() {
	for _, l := range p.loops {
		l.pipes.open = maxPipes
	}
}

// BackendEvent makes the only session see one epoll event of its backend's socket, after prepare has run
// while the loop sees nothing.
func (p *Proxy) BackendEvent(mask uint32, prepare func()) { p.event(backend, mask, prepare) }

// ClientEvent is the same for its client's socket.
func (p *Proxy) ClientEvent(mask uint32, prepare func()) { p.event(client, mask, prepare) }

// event waits until the socket shows mask: TCP may need a moment for what prepare has sent.
func (p *Proxy) event(e int, mask uint32, prepare func()) {
	for _, l := range p.loops {
		l.call(func(l *loop) {
			l.table.each(func(s *session) {
				prepare()
				fds := []unix.PollFd{{Fd: s.ends[e].fd, Events: int16(mask)}}
				for uint32(fds[0].Revents)&mask != mask {
					unix.Poll(fds, 0)
				}
				t := s.token(e)
				l.dispatch(&unix.EpollEvent{Events: mask, Fd: t.id, Pad: t.gen})
				l.runBatch()
			})
		})
	}
}

// UnreadOfClient returns how many bytes the only session's client has sent that lb has not read. It is called
// on the only loop.
func (p *Proxy) UnreadOfClient() (n int) {
	p.loops[0].table.each(func(s *session) { n = inQueue(s.ends[client].fd) })
	return n
}

// NotSent returns how many bytes TCP holds back on the sockets of all sessions (tcp(7), TCP_INFO).
func (p *Proxy) NotSent() (n uint32) {
	p.onLoops(func(l *loop) {
		l.table.each(func(s *session) {
			for e := range s.ends {
				if info, err := unix.GetsockoptTCPInfo(int(s.ends[e].fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
					n += info.Notsent_bytes
				}
			}
		})
	})
	return n
}

// UnwatchWithAcceptPending takes every listening socket out of the only loop in a round in which it had an
// event, runs then, and returns when the round is over.
func (p *Proxy) UnwatchWithAcceptPending(then func()) {
	l := p.loops[0]
	l.call(func(l *loop) {
		for _, a := range l.accepts {
			l.dispatch(&unix.EpollEvent{Events: unix.EPOLLIN, Fd: a.id})
			l.unwatch(a.socket)
		}
		then()
	})
	l.call(func(*loop) {})
}

// AcceptWhileFull has the only loop accept at a moment when all places are taken, and says whether it did.
func (p *Proxy) AcceptWhileFull(connect func()) (accepted bool) {
	p.loops[0].call(func(l *loop) {
		connect()
		p.sessions.Add(p.maxSessions.Load())
		accepted = l.acceptOne(l.accepts[0])
		p.sessions.Add(-p.maxSessions.Load())
	})
	return accepted
}

// SetEndTimeouts bounds how long an end that refuses to read may be silent, and how long a backend may leave
// alone what is left of a client; call it between New and Start.
func (p *Proxy) SetEndTimeouts(lastWords, backendTail time.Duration) {
	for _, l := range p.loops {
		l.limits.lastWords, l.limits.backendTail = lastWords, backendTail
	}
}

// BreakEpoll has every epoll_ctl that op is for fail, as where fs.epoll.max_user_watches is used up, until
// restore is called. What was asked for before goes on.
func (p *Proxy) BreakEpoll(ops ...int) (restore func()) {
	set := func(ctl func(int32, int, int32, uint32, token) unix.Errno) {
		for _, l := range p.loops {
			l.call(func(l *loop) { l.ctl = ctl })
		}
	}
	set(func(epfd int32, op int, fd int32, mask uint32, data token) unix.Errno {
		if slices.Contains(ops, op) {
			return unix.ENOSPC
		}
		return epollCtl(epfd, op, fd, mask, data)
	})
	return func() { set(epollCtl) }
}

// MaxStallGrace is the longest time that deadlines are not judged after a standstill.
const MaxStallGrace = maxStallGrace

// Backlogged is how many connections wait for a backlog.
func (p *Proxy) Backlogged() int { return int(p.backlogs.waiting.Load()) }

// FDs are the descriptors of the listener's sockets.
func (ln *Listener) FDs() (fds []int) {
	for _, s := range *ln.sockets.Load() {
		fds = append(fds, int(s.fd))
	}
	return fds
}

// Probing reports whether b's worker has a probe that it has not taken.
func Probing(b *backends.Backend) bool {
	ch := channelOf(b)
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return ch.probe != nil && ch.probe.given != 0
}

// Unacknowledged returns how many bytes that were written to a TCP connection its other side has not
// acknowledged.
func Unacknowledged(conn net.Conn) int {
	raw, err := conn.(*net.TCPConn).SyscallConn()
	if err != nil {
		return 0
	}
	n := 0
	raw.Control(func(fd uintptr) { n = outQueue(int32(fd)) })
	return n
}
