package health

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// watch keeps one backend's evidence. Its goroutine, run, waits for what is due and probes. Other goroutines
// may bring news in between.
//
// The mutex is held for counting only: never during a probe, and never during a call of the pool, whose
// OnChange may call the Checker.
type watch struct {
	checker *Checker
	backend *backends.Backend
	weight  int                // the backend's when it was added
	kick    chan struct{}      // holds one: what is due has changed
	stop    context.CancelFunc // ends run; nil before it runs; guarded by checker.mu
	probe   probeFunc          // of run

	mu       sync.Mutex
	plan     *plan
	evidence evidence
	removed  bool
	reported backends.HealthState // what the pool knows
	silent   bool                 // and whether as SetSilent
	stale    bool                 // the watch before this one may have changed the pool since
	emitting bool                 // a goroutine is in emit's loop
}

// standstill is how late a timer must be for lb itself to have stood still: stopped, paused, or without a
// CPU. What was due meanwhile is judged by what comes after.
const standstill = 100 * time.Millisecond

func stoodStill(d time.Duration) string {
	return fmt.Sprintf("lb stood still for %v", d.Round(time.Millisecond))
}

// run waits for what is due, and probes, until ctx is done.
func (w *watch) run(ctx context.Context) {
	prober := prober{sockets: w.checker.Sockets, channel: w.checker.DialChannel}
	defer prober.close()
	if w.probe = w.checker.probe; w.probe == nil {
		w.probe = prober.probe
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil { // after a probe that was cut off, select could take what is due
		var due <-chan time.Time
		if at := w.next(); !at.IsZero() {
			timer.Reset(time.Until(at))
			due = timer.C
		}
		select {
		case <-ctx.Done():
			return
		case <-w.kick:
		case <-due:
			w.tick(ctx)
		}
	}
}

func (w *watch) next() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.evidence.next
}

// tick does what is due.
func (w *watch) tick(ctx context.Context) {
	w.mu.Lock()
	p := w.plan
	probe := w.evidence.due(p, time.Now(), w.backend.Admin())
	epoch := w.evidence.epoch
	w.mu.Unlock()
	w.emit()
	if !probe {
		return
	}
	start := time.Now()
	found := w.probe(ctx, p, w.backend)
	if ctx.Err() != nil {
		return // it was cut off, which says nothing
	}
	if late := time.Since(start) - p.Timeout; found.outcome == Failure && (found.timeout || found.hung) && late > standstill {
		// What came meanwhile was not read in time, which is not the backend's fault.
		found = result{outcome: Inconclusive, reason: stoodStill(late)}
	}
	w.report(epoch, start, found)
}

// report counts the result of a probe that started at start, unless what it looked at has changed since.
func (w *watch) report(epoch uint64, start time.Time, found result) {
	if found.agent != nil && w.current(epoch) {
		found.reason += w.applyAgent(found.agent)
	}
	w.mu.Lock()
	short := w.evidence.short
	if w.evidence.epoch == epoch && !w.removed {
		// The admin state may have changed during the probe, or by the agent's own word.
		w.evidence.observe(w.backend.Admin())
		weighed, final := w.evidence.weighAgent(found)
		w.evidence.probed(w.plan, start, time.Now(), weighed, final, w.jitter)
	}
	changed, now := w.evidence.short != short, w.evidence.short
	w.mu.Unlock()
	w.emit()
	if changed {
		w.checker.pool.ReportProbe(w.backend, !now, found.reason)
	}
}

func (w *watch) current(epoch uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.evidence.epoch == epoch && !w.removed
}

// jitter shortens an interval by up to the plan's part of it. Called with mu held.
func (w *watch) jitter(d time.Duration) time.Duration {
	return d - time.Duration(float64(d)*w.plan.Jitter*w.checker.random())
}

// change applies news to the evidence, from any goroutine, and brings the pool up to date.
func (w *watch) change(news func(r *evidence, p *plan, now time.Time)) {
	w.mu.Lock()
	news(&w.evidence, w.plan, time.Now())
	w.mu.Unlock()
	w.emit()
	w.wake()
}

// wake makes run look at the clock again.
func (w *watch) wake() {
	select {
	case w.kick <- struct{}{}:
	default: // it will do so
	}
}

// emit brings the pool to the evidence's health. One caller at a time does it for all, in order: another one
// returns at once, and the first emits its change.
func (w *watch) emit() {
	if w.reportHealth() {
		// w was removed meanwhile, and may have overwritten what a watch has set that was added since.
		if next := w.checker.get(w.backend); next != nil {
			next.mu.Lock()
			next.stale = true
			next.mu.Unlock()
			next.emit()
		}
	}
}

// reportHealth does the work of emit. late means that w was removed while it changed the pool.
func (w *watch) reportHealth() (late bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.emitting {
		return false
	}
	w.emitting = true
	for (w.reported != w.evidence.health || w.silent != w.evidence.silent || w.stale) && !w.removed {
		w.reported, w.silent, w.stale = w.evidence.health, w.evidence.silent, false
		to, silent, reason := w.reported, w.silent, w.evidence.reason
		w.mu.Unlock()
		if silent {
			w.checker.pool.SetSilent(w.backend, reason)
		} else {
			w.checker.pool.SetHealth(w.backend, to, reason)
		}
		w.mu.Lock()
		late = w.removed
	}
	w.emitting = false
	return late
}

// applyAgent does what an agent's line asks for beside health. It returns what to add to the reason.
//
// The operator's admin state stays: the agent changes a backend that is ready, or that the agent itself took
// out. In HAProxy "ready" undoes either, so that a drain by hand lasts until the agent's next line.
func (w *watch) applyAgent(a *agentLine) (remarks string) {
	c, b := w.checker, w.backend
	if a.admin != nil {
		w.mu.Lock()
		is := b.Admin()
		mine := is == backends.AdminReady || is == w.evidence.agentAdmin
		if mine {
			w.evidence.agentAdmin = *a.admin
		} else {
			w.evidence.agentAdmin = backends.AdminReady
		}
		w.mu.Unlock()
		if mine {
			c.pool.SetAdmin(b, *a.admin, a.String())
		} else {
			remarks += "; the operator's " + is.String() + " stands"
		}
	}
	if a.percent != nil {
		configured := w.weight
		if c.ConfiguredWeight != nil {
			configured = c.ConfiguredWeight(b)
		}
		if err := c.pool.SetWeight(b, a.weight(configured), a.String()); err != nil {
			remarks += "; " + err.Error()
		}
	}
	if a.maxConn != nil {
		if c.SetMaxConns == nil {
			remarks += "; maxconn is not supported"
		} else if err := c.SetMaxConns(b, *a.maxConn, a.String()); err != nil {
			remarks += "; " + err.Error()
		}
	}
	return remarks
}
