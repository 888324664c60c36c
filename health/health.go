// Package health turns heartbeats, probes and connect failures into health states.
//
// A [Checker] watches the backends of one pool. Signs of life come from three sides: probes that it sends itself,
// heartbeats that workers push ([Checker.Beat]), and the failed connects of clients ([Checker.ConnectFailed]). A run of
// equal signs, rise or fall long, changes the health state of a backend; [backends.Pool.SetHealth] is called once for
// each change, with the reason, and the pool tells everybody else. A backend that is down only because its heartbeat has
// stopped is told to the pool as such, [backends.Pool.SetSilent].
//
// Ownership: each watched backend has one goroutine, which waits for the time of its next probe and makes it;
// [Checker.Run] starts them and waits for all of them. What is counted lies behind one mutex a backend, held for
// counting only. The package never probes on a caller's goroutine and logs nothing.
package health

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

// probeFunc looks at a backend once.
type probeFunc func(context.Context, *plan, *backends.Backend) result

// Checker watches the backends of one pool. All methods are safe for concurrent use, and may be called from the pool's
// OnChange.
type Checker struct {
	// ConfiguredWeight gives the weight that an agent's percentage is of. Nil: the weight that the backend had when it
	// was added. Set it before Run.
	ConfiguredWeight func(b *backends.Backend) int
	// SetMaxConns does what an agent's maxconn:N asks for; 0 is no limit. Nil: the word is only reported. Set it before Run.
	SetMaxConns func(b *backends.Backend, n int, reason string) error

	// Sockets tells whether a process has accepted a connection. Nil: the kernel refuses to tell, and "accept" is no more
	// than "connect". Set it before Run.
	Sockets *sockdiag.Conn

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

// NewChecker makes a Checker for the members that pool has now; Add and Remove follow later changes. It takes their
// health states as they are: give Config.InitialHealth to Pool.Add. The error is cfg's, as Validate has it.
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

// Run probes until ctx is done, and returns when no probe is under way any more. The first probes come at once, many of
// them a few milliseconds apart. After it has returned it can be called again, and goes on where it stopped: a probe that
// was cut off is made anew.
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

// firstProbeGap is how far apart the first probes of many backends are on average, up to one interval in all.
const firstProbeGap = 2 * time.Millisecond

// startLocked runs w, one of n that start now.
func (c *Checker) startLocked(w *watch, n int) {
	ctx, stop := context.WithCancel(c.ctx)
	w.stop = stop
	w.mu.Lock()
	var spread time.Duration
	if w.plan.Jitter > 0 {
		spread = min(time.Duration(n-1)*firstProbeGap, w.plan.Interval)
	}
	w.record.begin(w.plan, time.Now(), time.Duration(c.random()*float64(spread)))
	w.mu.Unlock()
	c.running.Go(func() {
		w.tell()
		w.run(ctx)
	})
}

// Add watches one more member of the pool; nothing changes for one that is watched already. Its first probe comes at once.
func (c *Checker) Add(b *backends.Backend) { c.add(b, false) }

// AddHeld is Add for a backend whose worker has said nothing yet: it is held as by Starting, from the first moment on.
func (c *Checker) AddHeld(b *backends.Backend) { c.add(b, true) }

func (c *Checker) add(b *backends.Backend, held bool) {
	if b.Pool() != c.pool {
		panic("BUG: health: backend of another pool")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.watches[b] != nil {
		return
	}
	w := &watch{checker: c, backend: b, weight: b.Weight(), kick: make(chan struct{}, 1), plan: c.plan, told: b.Health()}
	w.record.health, w.record.held = w.told, held
	c.watches[b] = w
	if c.ctx != nil {
		c.startLocked(w, 1)
	}
}

// Remove forgets b, and cuts off a probe under way. It does not wait for that; Run does.
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

// Update goes on under another configuration. States, counts and holds stay; a shorter interval holds from now on. The
// error is cfg's, as Validate has it, and nothing has changed then.
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
		if old := w.plan; w.record.begun { // else begin will schedule
			w.record.replan(old, p, time.Now())
		}
		w.plan = p
		w.mu.Unlock()
	}
	c.mu.Unlock()
	for _, w := range watches {
		w.tell()
		w.wake()
	}
	return nil
}

// ConnectFailed tells that a connect of a client to b failed, the streak-th in a row, as Backend.ConnectFailed counts
// them. At passive_fall of them b goes down at once. It is made for the event loops: below that it is three atomic loads
// (BenchmarkConnectFailed), and at it two mutexes, held elsewhere for counting only, and Pool.SetHealth.
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
	c.change(b, func(r *record, p *plan, now time.Time) { r.connectFailed(p, now, reason, streak) })
}

// Beat tells of a heartbeat (WATCHDOG=1) of b's worker. It counts with type "notify" only, and not while b is held by
// Starting or Offline. It never blocks.
func (c *Checker) Beat(b *backends.Backend) {
	c.change(b, func(r *record, p *plan, now time.Time) { r.beat(p, now, b.Admin()) })
}

// Starting tells that b's worker has been started: b takes nothing and is not probed until Ready.
func (c *Checker) Starting(b *backends.Backend, reason string) {
	c.change(b, func(r *record, _ *plan, _ time.Time) { r.hold(backends.HealthStarting, reason) })
}

// Ready tells that b's worker takes connections (READY=1): b is up at once, and the first probe after that decides alone.
func (c *Checker) Ready(b *backends.Backend, reason string) {
	c.change(b, func(r *record, p *plan, now time.Time) { r.ready(p, now, reason) })
}

// Offline tells that b's worker takes no more connections (STOPPING=1, or its death): b is down at once and no probe or
// heartbeat brings it back, only Starting or Ready.
func (c *Checker) Offline(b *backends.Backend, reason string) {
	c.change(b, func(r *record, _ *plan, _ time.Time) { r.hold(backends.HealthDown, reason) })
}

// AdminChanged tells that b's admin state has changed, so that a backend back from maint is probed at once. Without
// the call that is seen within an interval.
func (c *Checker) AdminChanged(b *backends.Backend) {
	c.change(b, func(r *record, p *plan, now time.Time) { r.adminChanged(p, now, b.Admin()) })
}

// change brings news to b's record; one that is not watched has none.
func (c *Checker) change(b *backends.Backend, news func(r *record, p *plan, now time.Time)) {
	if w := c.get(b); w != nil {
		w.change(news)
	}
}

func (c *Checker) get(b *backends.Backend) *watch {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.watches[b]
}

// Status is what is known of b; the zero value if it is not watched.
func (c *Checker) Status(b *backends.Backend) Status {
	w := c.get(b)
	if w == nil {
		return Status{}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.record.status(w.plan)
}

// Export gives the counts of all that is watched, in the pool's order, for Import in another process. Nothing stops: what
// comes in later is not in it, so that it is best called when Run has returned.
func (c *Checker) Export() []Saved {
	var all []Saved
	for _, b := range c.pool.Backends() {
		if w := c.get(b); w != nil {
			w.mu.Lock()
			all = append(all, w.record.save(b.Name, w.plan))
			w.mu.Unlock()
		}
	}
	return all
}

// Import goes on with counts of Export. Call it before Run, with the pool's health states already as they were, and silent
// where they were (Pool.SetSilent): it tells the pool nothing. A backend that is not in saved starts anew; one that is no
// longer watched is left out.
func (c *Checker) Import(saved []Saved) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for b, w := range c.watches {
		i := slices.IndexFunc(saved, func(s Saved) bool { return s.Backend == b.Name })
		if i >= 0 {
			w.mu.Lock()
			w.record.restore(saved[i], w.plan, b.Health())
			w.told, w.silent = w.record.health, w.record.silent
			w.mu.Unlock()
		}
	}
}
