// Package health turns heartbeats, probes and connect failures into health states.
//
// A [Checker] watches the backends of one pool. Signs of life come from three sides: probes that it sends
// itself, heartbeats that workers push ([Checker.Beat]), and the failed connects of clients
// ([Checker.ConnectFailed]). A run of equal signs, rise or fall long, changes the health state of a backend.
// The Checker calls [backends.Pool.SetHealth] once for each change, with the reason, or
// [backends.Pool.SetSilent] for a backend that is down only because it shows no sign of life. A probe that
// fails because lb itself is out of something, or stood still, changes no state.
//
// Ownership: each watched backend has one goroutine, which waits for the time of its next probe and makes it.
// [Checker.Run] starts them and waits for all of them. One mutex a backend guards what is counted, and is
// held for counting only. The package never probes on a caller's goroutine and logs nothing.
package health

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

// probeFunc looks at a backend once.
type probeFunc func(context.Context, *plan, *backends.Backend) result

// Checker watches the backends of one pool. All methods are safe for concurrent use, and may be called from
// the pool's OnChange.
type Checker struct {
	// ConfiguredWeight returns the weight that an agent's percentage is of. Nil: the weight that the backend
	// had when it was added. Set it before Run.
	ConfiguredWeight func(b *backends.Backend) int
	// SetMaxConns does what an agent's maxconn:N asks for; 0 is no limit. Nil: the word is only reported. Set
	// it before Run.
	SetMaxConns func(b *backends.Backend, n int, reason string) error

	// Sockets says whether a process has accepted a connection. Nil: the kernel refuses to say, and "accept"
	// sees no more than "connect". Set it before Run.
	Sockets *sockdiag.Conn

	// DialChannel gives a worker to which sockets are handed over a connection of lb's own, and returns lb's
	// end of it once the worker has taken it. It is for backends that have a Channel. The error is ErrBusy
	// where the time was over and the worker has taken others meanwhile. Set it before Run.
	DialChannel func(ctx context.Context, b *backends.Backend) (net.Conn, error)

	pool        *backends.Pool
	probe       probeFunc      // nil: each watch has a prober. For tests
	random      func() float64 // 0 <= x < 1
	passiveFall atomic.Uint32  // of the plan, for ConnectFailed

	mu      sync.Mutex
	plan    *plan
	watches map[*backends.Backend]*watch
	ctx     context.Context // of Run; nil before and after
	running sync.WaitGroup
}

// NewChecker makes a Checker for the members that pool has now; Add and Remove follow later changes. It takes
// their health states as they are: give Config.InitialHealth to Pool.Add. The error is cfg's, as Validate has
// it.
func NewChecker(pool *backends.Pool, cfg Config) (*Checker, error) {
	p, err := cfg.plan()
	if err != nil {
		return nil, fmt.Errorf("cannot watch pool %q: %w", pool.Name, err)
	}
	c := &Checker{pool: pool, random: rand.Float64, plan: p, watches: map[*backends.Backend]*watch{}}
	c.passiveFall.Store(uint32(min(p.PassiveFall, math.MaxUint32)))
	for _, b := range pool.Backends() {
		c.Add(b)
	}
	return c, nil
}

// Run probes until ctx is done, and returns when no probe is under way any more. The first probes come at
// once, many of them a few milliseconds apart. Once it has returned it can be called again. It then goes on
// where it stopped, and makes a probe that was cut off again.
func (c *Checker) Run(ctx context.Context) {
	c.mu.Lock()
	c.ctx = ctx
	for _, w := range c.watches {
		c.startLocked(w, len(c.watches))
	}
	c.mu.Unlock()

	<-ctx.Done()
	c.mu.Lock()
	c.ctx = nil // Add starts no more
	c.mu.Unlock()
	c.running.Wait()
}

// firstProbeGap is the average distance between the first probes of many backends, up to one interval in all.
const firstProbeGap = 2 * time.Millisecond

// startLocked starts w, one of n that start now.
func (c *Checker) startLocked(w *watch, n int) {
	ctx, stop := context.WithCancel(c.ctx)
	w.stop = stop
	w.mu.Lock()
	var spread time.Duration
	if w.plan.Jitter > 0 {
		spread = min(time.Duration(n-1)*firstProbeGap, w.plan.Interval)
	}
	w.evidence.begin(w.plan, time.Now(), time.Duration(c.random()*float64(spread)))
	w.mu.Unlock()
	c.running.Go(func() {
		w.emit()
		w.run(ctx)
	})
}

// Add watches one more member of the pool; nothing changes for one that is watched already. Its first probe
// comes at once.
func (c *Checker) Add(b *backends.Backend) { c.add(b, false) }

// AddAwaiting is Add for a backend whose worker has said nothing yet: it waits for that word, as after
// Starting.
func (c *Checker) AddAwaiting(b *backends.Backend) { c.add(b, true) }

func (c *Checker) add(b *backends.Backend, awaiting bool) {
	if b.Pool() != c.pool {
		panic("BUG: health: backend of another pool")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches[b] != nil {
		return
	}
	w := &watch{checker: c, backend: b, weight: b.Weight(), kick: make(chan struct{}, 1), plan: c.plan, reported: b.Health()}
	w.evidence.health, w.evidence.awaiting = w.reported, awaiting
	c.watches[b] = w
	if c.ctx != nil {
		c.startLocked(w, 1)
	}
}

// Remove stops watching b, and cuts off a probe under way. It does not wait for its end; Run does.
func (c *Checker) Remove(b *backends.Backend) {
	c.mu.Lock()
	defer c.mu.Unlock()
	w := c.watches[b]
	if w == nil {
		return
	}
	delete(c.watches, b)
	w.mu.Lock()
	w.removed = true
	w.mu.Unlock()
	if w.stop != nil {
		w.stop()
	}
}

// Update goes on under another configuration. States, counts and holds stay; a shorter interval holds from
// now on. The error is cfg's, as Validate returns it; then nothing has changed.
func (c *Checker) Update(cfg Config) error {
	p, err := cfg.plan()
	if err != nil {
		return fmt.Errorf("cannot watch pool %q: %w", c.pool.Name, err)
	}
	c.mu.Lock()
	c.plan = p
	c.passiveFall.Store(uint32(min(p.PassiveFall, math.MaxUint32)))
	watches := make([]*watch, 0, len(c.watches))
	for _, w := range c.watches {
		watches = append(watches, w)
		w.mu.Lock()
		if old := w.plan; w.evidence.begun { // else begin will schedule
			w.evidence.replan(old, p, time.Now())
		}
		w.plan = p
		w.mu.Unlock()
	}
	c.mu.Unlock()
	for _, w := range watches {
		w.emit()
		w.wake()
	}
	return nil
}

// ConnectFailed notes that a connect of a client to b failed, the streak-th in a row, as
// Backend.ConnectFailed counts them. At passive_fall of them b goes down at once. It is made for the event
// loops: below that it is three atomic loads (BenchmarkConnectFailed), and at it two mutexes, held elsewhere
// for counting only, and Pool.SetHealth.
func (c *Checker) ConnectFailed(b *backends.Backend, why backends.ConnectError, streak uint32) {
	limit := c.passiveFall.Load()
	if limit == 0 || streak < limit || b.Health() != backends.HealthUp ||
		why == backends.ConnectSaturated || why == backends.ConnectResource {
		return
	}
	reason := why.String()
	if why == backends.ConnectUntrusted {
		reason += ": " + b.Refusal()
	}
	c.change(b, func(r *evidence, p *plan, now time.Time) { r.connectFailed(p, now, reason, streak) })
}

// Untaken notes that b's worker has not taken a connection that it was given within that time
// (handoff_timeout). b goes down at once, and shows no sign of life: as long as no backend is better, the
// pool offers it nevertheless. It may be called on a loop.
func (c *Checker) Untaken(b *backends.Backend, within time.Duration) {
	reason := fmt.Sprintf("it has not taken a connection for %v (handoff_timeout)", within)
	c.change(b, func(r *evidence, p *plan, now time.Time) { r.unreached(p, now, reason, true) })
}

// Broken notes that b's worker cannot be given connections any more. It may be called on a loop.
func (c *Checker) Broken(b *backends.Backend, reason string) {
	c.change(b, func(r *evidence, p *plan, now time.Time) { r.unreached(p, now, reason, false) })
}

// Beat notes a heartbeat (WATCHDOG=1) of b's worker. It counts with type "notify" only, and not while b is
// held by Starting or Offline. It never blocks.
func (c *Checker) Beat(b *backends.Backend) {
	c.change(b, func(r *evidence, p *plan, now time.Time) { r.beat(p, now, b.Admin()) })
}

// Starting notes that b's worker was started: b gets no connection and is not probed until Ready.
func (c *Checker) Starting(b *backends.Backend, reason string) {
	c.change(b, func(r *evidence, _ *plan, _ time.Time) { r.hold(backends.HealthStarting, reason) })
}

// Ready notes that b's worker takes connections (READY=1): b is up at once, and the first probe after that
// decides alone.
func (c *Checker) Ready(b *backends.Backend, reason string) {
	c.change(b, func(r *evidence, p *plan, now time.Time) { r.ready(p, now, reason) })
}

// Offline notes that b's worker takes no more connections (STOPPING=1, or its death): b is down at once, and
// no probe or heartbeat brings it back, only Starting or Ready.
func (c *Checker) Offline(b *backends.Backend, reason string) {
	c.change(b, func(r *evidence, _ *plan, _ time.Time) { r.hold(backends.HealthDown, reason) })
}

// AdminChanged notes that b's admin state has changed, so that a backend back from maint is probed at once.
// Without the call that is seen within an interval.
func (c *Checker) AdminChanged(b *backends.Backend) {
	c.change(b, func(r *evidence, p *plan, now time.Time) { r.adminChanged(p, now, b.Admin()) })
}

// change applies news to b's evidence, if b is watched.
func (c *Checker) change(b *backends.Backend, news func(r *evidence, p *plan, now time.Time)) {
	if w := c.get(b); w != nil {
		w.change(news)
	}
}

func (c *Checker) get(b *backends.Backend) *watch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watches[b]
}

// Status returns what is known of b, or the zero value if it is not watched.
func (c *Checker) Status(b *backends.Backend) Status {
	w := c.get(b)
	if w == nil {
		return Status{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.evidence.status(w.plan)
}

// Export returns the counts of all watched backends, in the pool's order, for Import in another process.
// Nothing stops: what comes in later is not in it, so that it is best called when Run has returned.
func (c *Checker) Export() []Saved {
	var all []Saved
	for _, b := range c.pool.Backends() {
		if w := c.get(b); w != nil {
			w.mu.Lock()
			all = append(all, w.evidence.save(b.Name, w.plan))
			w.mu.Unlock()
		}
	}
	return all
}

// Import goes on with counts of Export. Call it before Run, with the pool's health states already as they
// were, and silent where they were (Pool.SetSilent): it changes nothing in the pool. A backend that is not in
// saved starts from the beginning; one that is no longer watched is left out.
func (c *Checker) Import(saved []Saved) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b, w := range c.watches {
		i := slices.IndexFunc(saved, func(s Saved) bool { return s.Backend == b.Name })
		if i >= 0 {
			w.mu.Lock()
			w.evidence.restore(saved[i], w.plan, b.Health())
			w.reported, w.silent = w.evidence.health, w.evidence.silent
			w.mu.Unlock()
		}
	}
}
