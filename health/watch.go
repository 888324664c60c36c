package health

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// watch keeps one backend's record: its goroutine (run) waits for what is due and probes, anybody may bring news in
// between.
//
// The mutex is held for counting only: never over a probe, and never over a call of the pool, whose OnChange may call
// the Checker again.
type watch struct {
	checker *Checker
	backend *backends.Backend
	weight  int                // the backend's when it was added
	kick    chan struct{}      // holds one: what is due has changed
	stop    context.CancelFunc // ends run; nil before it runs; guarded by checker.mu
	probe   probeFunc          // of run

	mu      sync.Mutex
	plan    *plan
	record  record
	removed bool
	told    backends.HealthState // what the pool has been told
	silent  bool                 // and whether as SetSilent
	stale   bool                 // the watch before this one may have told the pool something else since
	telling bool                 // somebody is in tell's loop
}

// standstill is by how much a timer of lb must be late for lb itself to have stood still: stopped, paused, or without a CPU.
// What was due meanwhile is judged by what comes after.
const standstill = 100 * time.Millisecond

func stoodStill(d time.Duration) string {
	return fmt.Sprintf("lb stood still for %v", d.Round(time.Millisecond))
}

// run waits and probes until ctx is done.
func (w *watch) run(ctx context.Context) {
	prober := prober{sockets: w.checker.Sockets}
	defer prober.close()
	if w.probe = w.checker.probe; w.probe == nil {
		w.probe = prober.probe
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil { // select would take what is due after a probe that was cut off
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
	return w.record.next
}

// tick does what is due, if anything.
func (w *watch) tick(ctx context.Context) {
	w.mu.Lock()
	p := w.plan
	probe := w.record.due(p, time.Now(), w.backend.Admin())
	epoch := w.record.epoch
	w.mu.Unlock()
	w.tell()
	if !probe {
		return
	}
	start := time.Now()
	found := w.probe(ctx, p, w.backend)
	if ctx.Err() != nil {
		return // it was cut off, which says nothing
	}
	if late := time.Since(start) - p.Timeout; found.outcome == Failure && (found.timeout || found.hung) && late > standstill {
		// What came meanwhile was not read in time. That is not the backend's fault.
		found = result{outcome: Inconclusive, reason: stoodStill(late)}
	}
	w.report(epoch, start, found)
}

// report takes in what a probe found that started at start, unless the world has changed since.
func (w *watch) report(epoch uint64, start time.Time, found result) {
	if found.agent != nil && w.current(epoch) {
		found.reason += w.obey(found.agent)
	}
	w.mu.Lock()
	short := w.record.short
	if w.record.epoch == epoch && !w.removed {
		// By the admin state as it is now: it may have changed during the probe, or by the agent's own word.
		w.record.observe(w.backend.Admin())
		weighed, final := w.record.heed(found)
		w.record.probed(w.plan, start, time.Now(), weighed, final, w.jitter)
	}
	changed, now := w.record.short != short, w.record.short
	w.mu.Unlock()
	w.tell()
	if changed {
		w.checker.pool.ReportProbe(w.backend, !now, found.reason)
	}
}

func (w *watch) current(epoch uint64) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.record.epoch == epoch && !w.removed
}

// jitter shortens an interval by up to the plan's part of it. Called with mu held.
func (w *watch) jitter(d time.Duration) time.Duration {
	return d - time.Duration(float64(d)*w.plan.Jitter*w.checker.random())
}

// change brings news to the record, from any goroutine, and tells the pool what came of it.
func (w *watch) change(news func(r *record, p *plan, now time.Time)) {
	w.mu.Lock()
	news(&w.record, w.plan, time.Now())
	w.mu.Unlock()
	w.tell()
	w.wake()
}

// wake has run look at the clock again.
func (w *watch) wake() {
	select {
	case w.kick <- struct{}{}:
	default: // it will
	}
}

// tell brings the pool to the record's health. One caller at a time does it, in order, for all: another returns at once,
// and its change is told by the first.
func (w *watch) tell() {
	if w.tellPool() {
		// It was removed meanwhile, and may have had the last word over a watch that was added since.
		if next := w.checker.get(w.backend); next != nil {
			next.mu.Lock()
			next.stale = true
			next.mu.Unlock()
			next.tell()
		}
	}
}

// tellPool is tell; late says that w was removed while it told the pool.
func (w *watch) tellPool() (late bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.telling {
		return false
	}
	w.telling = true
	for (w.told != w.record.health || w.silent != w.record.silent || w.stale) && !w.removed {
		w.told, w.silent, w.stale = w.record.health, w.record.silent, false
		to, silent, reason := w.told, w.silent, w.record.reason
		w.mu.Unlock()
		if silent {
			w.checker.pool.SetSilent(w.backend, reason)
		} else {
			w.checker.pool.SetHealth(w.backend, to, reason)
		}
		w.mu.Lock()
		late = w.removed
	}
	w.telling = false
	return late
}

// obey does what an agent's line asks for beside health, and gives what is to be added to the reason.
//
// An admin state of the operator stands: the agent's words change a backend that is ready, or that the agent itself
// took out. HAProxy lets "ready" undo either, so that a drain by hand lasts until the agent's next line.
func (w *watch) obey(a *agentLine) (remarks string) {
	c, b := w.checker, w.backend
	if a.admin != nil {
		w.mu.Lock()
		is := b.Admin()
		mine := is == backends.AdminReady || is == w.record.agentAdmin
		if mine {
			w.record.agentAdmin = *a.admin
		} else {
			w.record.agentAdmin = backends.AdminReady
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
