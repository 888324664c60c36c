// Package proxy accepts clients and carries bytes: listeners, event loops, sessions.
//
// A [Proxy] runs a few loops. Each loop is one goroutine with one epoll set, and owns the sessions in it: one
// small struct a session, no goroutine, no lock. All loops share the listening sockets. What comes from
// outside reaches a loop through its inbox. Follow one connection: accept.go → connect.go → relay.go →
// loop.close.
//
// The package never chooses a backend (backends.Pool.Acquire does), never judges health (it reports failed
// connects through OnConnectFailure), never logs (it reports through func fields), and never resolves a name
// on a loop.
package proxy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

// ErrStopped is what a Proxy that was stopped answers.
var ErrStopped = errors.New("the proxy is stopped")

// Stats count what concerns no listener and no backend. Safe for concurrent use.
type Stats struct {
	Pipes        atomic.Int64  // pipes open now
	PipesDenied  atomic.Uint64 // transfers that were copied for want of a pipe
	RingsLost    atomic.Uint64 // loops that gave up their io_uring
	SplicedBytes atomic.Uint64
	AcceptErrors atomic.Uint64 // times that a listener was not served for a moment, because of an error
	LimitReached atomic.Uint64 // times that newcomers had to wait at max_sessions
	// times that the kernel dropped messages about handed-off connections; lb asked it anew
	EndsLost    atomic.Uint64
	ShedClients atomic.Uint64 // clients closed at once as no descriptor was left for them
	Shortages   atomic.Uint64 // times that a session had to wait for memory of the kernel

	// connects that failed for want of descriptors, watches, memory or ports of lb's own
	ConnectShortages atomic.Uint64
}

// Proxy carries connections. Make it with New, set the func fields, Start it, add listeners, Stop it.
type Proxy struct {
	// OnSession, if set, is told of each session that has ended. It runs on a loop: it must not block nor
	// keep the record, which is used again.
	OnSession func(*Record)
	// OnConnectFailure, if set, is told of each failed connect and of how many there were in a row. It runs
	// on a loop and must not block.
	OnConnectFailure func(b *backends.Backend, why backends.ConnectError, streak uint32)
	// OnAcceptError, if set, is called when a listener is not served for a moment, because of an error. It
	// runs on a loop and must not block.
	OnAcceptError func(ln *Listener, err error)
	// OnShortage, if set, is called when a connect fails for want of descriptors, watches, memory or ports of
	// lb's own, which is no fault of the backend. It runs on a loop and must not block.
	OnShortage func(b *backends.Backend, err error)
	// OnUntaken, if set, is told of a worker that has not taken a connection within handoff_timeout. It runs
	// on a loop and must not block.
	OnUntaken func(b *backends.Backend)
	// OnLimit, if set, is told when max_sessions is reached, once until it was left again. It must not block.
	OnLimit func(max int64)

	// OnRingLost, if set, is told that the kernel refuses an io_uring that a loop had: the loop goes on with
	// plain system calls. It runs on the loop and must not block.
	OnRingLost func(err error)

	// OnChannel, if set, is told of what a worker says over its hand-off channel. It runs on a loop and must
	// not block.
	OnChannel func(b *backends.Backend, event ChannelEvent, text string)

	Stats Stats

	handed     handedTable
	heard      heard          // of loops[0]
	channels   atomic.Int32   // opened so far
	compare    chan struct{}  // see askForEnds
	comparing  sync.WaitGroup // compareEnds
	noMoreEnds chan struct{}  // closed to end it

	noRing      error     // why a loop has no io_uring; set by New
	epoch       time.Time // monotonic; all times in sessions count from here
	loops       []*loop
	cfg         Config
	maxSessions atomic.Int64
	sessions    atomic.Int64
	handedOff   atomic.Int64 // of sessions: taken by workers, so that lb holds no descriptor for them
	atLimit     atomic.Bool
	reserve     atomic.Int32 // a spare fd, see acceptFailed; -1 while it is used
	backlogs    backlogs
	running     sync.WaitGroup

	mu        sync.Mutex
	endings   *sockdiag.Ends // guarded by mu until it is set; nil: nobody has asked, or noEndings
	diag      *sockdiag.Conn // set with endings
	noEndings error          // guarded by mu; why the kernel does not tell when connections end
	listeners []*Listener    // guarded by mu
	activated []Activated    // guarded by mu; handed over by the service manager, and not taken yet
	inherited []*inherited   // guarded by mu; listening sockets of the process before, and not taken yet
	started   bool           // guarded by mu; before that the loops' state is of whoever holds mu
	stopped   bool           // guarded by mu
	loopsEnd  bool           // guarded by mu; nothing can be asked of a loop any more
	freezing  *freezing      // guarded by mu, which Freeze holds until Thaw
	drained   chan struct{}
}

// New makes a proxy. It opens what the loops need and starts nothing.
func New(cfg Config) (*Proxy, error) {
	p := &Proxy{
		cfg: cfg, epoch: time.Now(), drained: make(chan struct{}, 1),
		compare: make(chan struct{}, 1), noMoreEnds: make(chan struct{}),
	}
	limit, _, err := SessionLimit(&cfg, defaultReserve)
	if err != nil {
		return nil, err
	}
	if n := int64(cfg.MaxSessions); n > limit {
		return nil, fmt.Errorf("cannot hold %d sessions: RLIMIT_NOFILE allows %d; raise it (ulimit -n, LimitNOFILE=) or lower proxy.max_sessions", n, limit)
	} else if n > 0 {
		limit = n
	}
	p.maxSessions.Store(limit)
	for i := range loops(&cfg) {
		l, err := newLoop(p, i)
		if err != nil {
			for _, l := range p.loops {
				l.closeFDs()
			}
			return nil, fmt.Errorf("cannot make event loop %d: %w", i, err)
		}
		p.loops = append(p.loops, l)
	}
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("cannot open the reserve descriptor: %w", err)
	}
	p.reserve.Store(int32(fd))
	return p, nil
}

// since is the time since the epoch; never 0 or negative after Start.
func (p *Proxy) since() time.Duration { return time.Since(p.epoch) }

// Loops is the number of event loops.
func (p *Proxy) Loops() int { return len(p.loops) }

// Batching reports whether the loops began with batches through an io_uring. If not, err says why; it is nil
// where the config has them off.
func (p *Proxy) Batching() (on bool, err error) {
	return p.cfg.Batching != BatchingOff && p.noRing == nil, p.noRing
}

// ringLost reports that a loop has given its ring up.
func (p *Proxy) ringLost(errno unix.Errno) {
	p.Stats.RingsLost.Add(1)
	if p.OnRingLost != nil {
		p.OnRingLost(fmt.Errorf("io_uring_enter: %w", errno))
	}
}

// Sessions is how many sessions there are now.
func (p *Proxy) Sessions() int64 { return p.sessions.Load() }

// HandedOff returns how many sessions workers have taken. max_sessions does not count those.
func (p *Proxy) HandedOff() int64 { return p.handedOff.Load() }

// counted returns how many sessions hold descriptors of lb, which max_sessions counts.
func (p *Proxy) counted() int64 { return p.sessions.Load() - p.handedOff.Load() }

// countHandedOff counts one more session that a worker has taken, which leaves room for another one.
func (p *Proxy) countHandedOff() {
	p.handedOff.Add(1)
	p.wakeForRoom()
}

// MaxSessions is how many there may be beside those that were handed off.
func (p *Proxy) MaxSessions() int64 { return p.maxSessions.Load() }

// Listeners are the open listeners.
func (p *Proxy) Listeners() []*Listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.listeners)
}

// Start starts the loops. GOMAXPROCS must be above their number by then: a loop that waits may keep its
// processor, and the rest of the program needs one (rest).
func (p *Proxy) Start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, x := range p.inherited {
		closeFD(int32(x.FD))
	}
	p.inherited = nil
	p.started = true
	if p.endings != nil {
		p.startComparing() // of what has ended before lb listened
	}
	for _, l := range p.loops {
		p.running.Add(1)
		go p.runLoop(l)
	}
}

func (p *Proxy) runLoop(l *loop) {
	defer p.running.Done()
	l.run()
}

// Stop closes the listeners, after accepting what waited in their queues, and waits until the sessions have
// ended. When ctx is done, it closes those that are left. It gives how many it closed. The loops have ended
// when it returns.
func (p *Proxy) Stop(ctx context.Context) (killed int64, err error) {
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		return 0, ErrStopped
	}
	p.stopped = true
	for _, ln := range p.listeners {
		p.closeSockets(*ln.sockets.Load())
	}
	p.mu.Unlock()

	for p.sessions.Load() > 0 {
		select {
		case <-p.drained:
			continue
		case <-ctx.Done():
		}
		killed = p.sessions.Load()
		break
	}
	for _, l := range p.loops {
		l.call(func(l *loop) {
			l.table.each(func(s *session) {
				s.end = s.endedBy('K')
				l.close(s, false)
			})
		})
	}
	p.mu.Lock()
	p.loopsEnd = true
	p.mu.Unlock()
	// Not before: a session that is closed may free a slot for one of another loop.
	for _, l := range p.loops {
		l.post(message{do: func(l *loop) { l.quit = true }})
	}
	p.running.Wait()
	p.closeEnds()
	for _, l := range p.loops {
		l.returnGrants()
		// Not by the loop itself: it may end before post has written to wakefd.
		l.closeFDs()
	}
	if fd := p.reserve.Load(); fd >= 0 {
		closeFD(fd)
	}
	return killed, nil
}

// sessionEnded counts a session out.
func (p *Proxy) sessionEnded() {
	n := p.sessions.Add(-1)
	if n == 0 {
		select {
		case p.drained <- struct{}{}:
		default:
		}
	}
	p.wakeForRoom()
	if limit := p.maxSessions.Load(); p.atLimit.Load() && p.counted() < limit-limit/16 {
		p.atLimit.Store(false)
	}
}

// wakeForRoom has the loops accept again that wait for room, if there is some.
func (p *Proxy) wakeForRoom() {
	if !p.hasRoom(p.counted()) {
		return
	}
	for _, l := range p.loops {
		if l.waitsForRoom.Load() && l.waitsForRoom.CompareAndSwap(true, false) {
			l.post(message{do: (*loop).tryResume})
		}
	}
}

// hasRoom says whether so few sessions are left, after max_sessions was reached, that it is worth to accept
// again.
func (p *Proxy) hasRoom(sessions int64) bool {
	limit := p.maxSessions.Load()
	return limit-sessions > limit/64
}

// limitReached tells of max_sessions, once until a sixteenth of them has ended.
func (p *Proxy) limitReached() {
	p.Stats.LimitReached.Add(1)
	if p.atLimit.CompareAndSwap(false, true) && p.OnLimit != nil {
		p.OnLimit(p.maxSessions.Load())
	}
}

// acceptFailed handles accept(2) without descriptors or memory. With the reserve descriptor it takes one
// client and closes it, so that this one hears at once that it has to try again; the others wait in the
// kernel's queue. It gives the client, with its address in rsa, if there are descriptors again; else -1.
func (p *Proxy) acceptFailed(a *acceptor, errno unix.Errno, rsa *unix.RawSockaddrAny) (client int32) {
	p.acceptError(a.ln, fmt.Errorf("cannot accept on listener %q: %w; raise RLIMIT_NOFILE or lower proxy.max_sessions", a.ln.Name, errno))
	if errno != unix.EMFILE && errno != unix.ENFILE {
		return -1
	}
	fd := p.reserve.Swap(-1)
	if fd < 0 {
		return -1 // another loop is using it
	}
	closeFD(fd)
	c, errno := accept(a.fd, rsa)
	p.restoreReserve()
	if errno != 0 {
		return -1
	}
	if p.reserve.Load() >= 0 {
		return c
	}
	resetOnClose(c)
	closeFD(c)
	p.Stats.ShedClients.Add(1)
	p.restoreReserve()
	return -1
}

// acceptError counts and reports that a listener is not served for a moment.
func (p *Proxy) acceptError(ln *Listener, err error) {
	p.Stats.AcceptErrors.Add(1)
	if p.OnAcceptError != nil {
		p.OnAcceptError(ln, err)
	}
}

// NotAccepting returns the names of the listeners of which no loop has been able to accept for a second,
// because of an error: they are tried again until it is over. Having max_sessions is no error.
func (p *Proxy) NotAccepting() (names []string) {
	now := p.since()
	for _, ln := range p.Listeners() {
		if slices.ContainsFunc(*ln.sockets.Load(), func(s *socket) bool { return s.deaf(now, len(p.loops)) }) {
			names = append(names, ln.Name)
		}
	}
	return names
}

// restoreReserve opens the reserve descriptor where it was used. Another loop may have taken its place
// meanwhile; then the next call tries again.
func (p *Proxy) restoreReserve() {
	if p.reserve.Load() >= 0 {
		return
	}
	if fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC); err == nil && !p.reserve.CompareAndSwap(-1, int32(fd)) {
		unix.Close(fd)
	}
}
