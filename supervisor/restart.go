package supervisor

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// AllSlots is every slot of a pool, as RestartOptions.Slot.
const AllSlots = -1

// RestartOptions say how a restart goes. Take DefaultRestartOptions and change it.
type RestartOptions struct {
	// Slot is the one to restart; AllSlots (default) is all, but for those stopped by hand.
	Slot int
	// Surge is how many successors are started at once, after the first; below 1: all of them. Default 1.
	Surge int
	// Timeout bounds the whole restart; 0 (default) is no limit beyond each worker's start_timeout.
	Timeout time.Duration
	// Wait has a restart that is under way end first, instead of ErrBusy. If it was one to the same
	// configuration, and all workers are of it then, nothing is left to be done.
	Wait bool
	// Progress, if set, is told of each step, on the pool's goroutine; it must not block.
	Progress func(Progress)
}

// DefaultRestartOptions restart all slots, one by one.
func DefaultRestartOptions() RestartOptions { return RestartOptions{Slot: AllSlots, Surge: 1} }

// Progress is one step of a restart.
type Progress struct {
	Slot   int
	Step   string // "started", "replaced" or "failed"
	PID    int    // of the new worker
	Done   int    // how many slots are replaced
	Total  int    // of how many
	Reason string // of a failure
}

// attempt is one try to replace a slot's worker. It belongs to the pool's goroutine.
type attempt struct {
	slot    *slot
	worker  *worker
	decided bool
	err     error
	lines   []string // the last output of the one that failed
}

// rollout is a restart under way.
type rollout struct {
	options RestartOptions
	release *Release
	left    []*slot
	flying  []*attempt
	done    int
	total   int
}

// Restart replaces the workers by ones of the current configuration, with the directory followed anew: the
// first one alone, as the canary, then the others. Each successor is ready, and lives for a second, before it
// takes over; the one before it then finishes what it has, which Restart does not wait for.
//
// When a successor fails, or ctx is done, those under way are ended, the workers that were not replaced yet
// stay, and the error, which wraps ErrRestart or ctx's, has its reason and its last output. Rollback takes
// those back that were replaced. ErrBusy: another one is under way.
func (p *Pool) Restart(ctx context.Context, o RestartOptions) error {
	return p.runRollout(ctx, o, func() (*Release, []*slot, error) { return p.wanted, nil, nil })
}

// Rollback restarts all slots with the command, environment and directory that last worked before those of
// now. Where some workers are of others than what last worked for all, after a Restart that failed half-way
// for example, it takes these back to that, and the others stay. ErrNoPrevious: there is nothing to go back
// to. ErrNothingDone: the last Restart, of all slots or of one, failed before it had replaced a worker, so
// that going further back would take away what works. What it came to stays until the next Restart.
func (p *Pool) Rollback(ctx context.Context, o RestartOptions) error {
	o.Slot = AllSlots
	return p.runRollout(ctx, o, func() (*Release, []*slot, error) {
		switch strays := p.strays(); {
		case len(strays) > 0:
			return p.good, strays, nil
		case p.failed:
			return nil, nil, ErrNothingDone
		case p.previous == nil:
			return nil, nil, ErrNoPrevious
		}
		return p.previous, nil, nil
	})
}

// ResumeRestart goes on with a restart or a rollback that the end of an lb before has interrupted, for the
// slots that were left. It reports whether there was one, and returns as Restart does. It forgets a restart
// to a configuration that has changed since.
func (p *Pool) ResumeRestart(ctx context.Context) (resumed bool, err error) {
	var left *savedRollout
	err = p.await(ctx, func() error {
		left, p.interrupted = p.interrupted, nil
		return nil
	}, now, nil)
	if left == nil || err != nil {
		return false, err
	}
	o := RestartOptions{Slot: left.Slot, Surge: left.Surge, Wait: true}
	return true, p.runRollout(ctx, o, func() (*Release, []*slot, error) {
		slots := []*slot{}
		for _, n := range left.Left {
			if n < len(p.slots) && p.slots[n].wanted {
				slots = append(slots, p.slots[n])
			}
		}
		if left.Release.same(p.wanted) {
			return p.wanted, slots, nil
		}
		return left.Release, slots, nil
	})
}

// strays returns the slots whose workers were not made from what last worked for all.
func (p *Pool) strays() (strays []*slot) {
	if p.good == nil {
		return nil
	}
	unpinned := p.good.pinned("")
	for _, s := range p.slots {
		w := s.current
		if w == nil || !s.wanted {
			continue
		}
		if !w.release.pinned("").same(unpinned) || w.state != waiting && w.dir != "" && w.dir != p.good.Pin {
			strays = append(strays, s)
		}
	}
	return strays
}

// runRollout restarts workers. pick says to what, on the pool's goroutine, and which slots; nil: as o says.
func (p *Pool) runRollout(ctx context.Context, o RestartOptions, pick func() (*Release, []*slot, error)) error {
	if o.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, o.Timeout, fmt.Errorf("not done after %v: %w", o.Timeout, context.DeadlineExceeded))
		defer cancel()
	}
	var r *rollout
	var awaited *Release // of the restart that is under way
	err := p.await(ctx, func() (err error) {
		if o.Wait && p.rollout != nil && !p.ending {
			awaited = p.rollout.release
			return nil
		}
		r, err = p.beginRollout(o, pick)
		return err
	}, func() (done bool, err error) {
		if r == nil {
			if p.rollout != nil && !p.ending {
				return false, nil
			}
			if awaited == p.wanted && !p.stale() {
				return true, nil
			}
			if r, err = p.beginRollout(o, pick); err != nil {
				return true, err
			}
		}
		return p.step(r)
	}, func() {
		if r != nil {
			p.endRollout(r, "the restart was cut off")
		}
	})
	if err != nil {
		return fmt.Errorf("cannot restart pool %q: %w", p.Name, err)
	}
	return nil
}

// beginRollout begins a restart; step starts the first successor.
func (p *Pool) beginRollout(o RestartOptions, pick func() (*Release, []*slot, error)) (*rollout, error) {
	if p.ending {
		return nil, ErrStopped
	}
	if p.rollout != nil {
		return nil, ErrBusy
	}
	release, only, err := pick()
	if err != nil {
		return nil, err
	}
	r := &rollout{options: o, release: release}
	if o.Slot != AllSlots {
		s, err := p.slotAt(o.Slot)
		if err != nil {
			return nil, err
		}
		if s.stopped {
			return nil, ErrSlotStopped
		}
		r.left = []*slot{s}
	} else if r.left = only; only == nil {
		for _, s := range p.slots {
			if s.wanted {
				r.left = append(r.left, s)
			}
		}
	}
	r.total = len(r.left)
	if p.recycling != nil && !p.recycling.decided { // it would be in the way, and is done by the restart
		p.fire(p.recycling.worker, retire, "a restart begins")
	}
	p.recycling = nil
	p.rollout = r
	return r, nil
}

// step starts what a restart can start now, and reports whether the restart has ended.
func (p *Pool) step(r *rollout) (bool, error) {
	if p.ending {
		p.endRollout(r, "lb stops")
		return true, ErrStopped
	}
	for i := 0; i < len(r.flying); i++ {
		a := r.flying[i]
		switch {
		case !a.decided:
			continue
		case a.err != nil && !a.slot.wanted: // stopped or scaled away meanwhile: no fault of the successor
			r.total--
			r.flying = slices.Delete(r.flying, i, i+1)
			i--
			continue
		case a.err != nil:
			p.progress(r, a, "failed", a.err.Error())
			p.endRollout(r, "another one of the restart failed")
			if p.good != nil && r.done == 0 {
				// the directory may lead to what failed: crashes come back with what worked
				p.pin()
			}
			stay := ""
			switch {
			case len(p.strays()) > 0:
				stay = " (these stay; a rollback takes them back)"
			case r.done > 0:
				stay = " (these stay, and are of the same command, environment and directory as the others)"
			}
			err := fmt.Errorf("%w after %d of %d%s: %w", ErrRestart, r.done, r.total, stay, a.err)
			for _, line := range a.lines {
				err = fmt.Errorf("%w\n  %s", err, line)
			}
			return true, err
		}
		r.done++
		p.progress(r, a, "replaced", "")
		r.flying = slices.Delete(r.flying, i, i+1)
		i--
	}
	limit := r.options.Surge
	if limit < 1 {
		limit = len(p.slots)
	}
	if r.done == 0 {
		limit = 1 // the canary
	}
	for len(r.left) > 0 && len(r.flying) < limit {
		s := r.left[0]
		r.left = r.left[1:]
		if !s.wanted { // stopped or scaled away meanwhile
			r.total--
			continue
		}
		a := p.join(s, r.release, "restart")
		r.flying = append(r.flying, a)
		p.progress(r, a, "started", "")
	}
	if len(r.left) > 0 || len(r.flying) > 0 {
		return false, nil
	}
	p.completed(r)
	return true, nil
}

func (p *Pool) progress(r *rollout, a *attempt, step, reason string) {
	if r.options.Progress != nil {
		r.options.Progress(Progress{Slot: a.slot.number, Step: step, PID: a.worker.pid(), Done: r.done, Total: r.total, Reason: reason})
	}
}

// endRollout ends a restart and the successors that it has started.
func (p *Pool) endRollout(r *rollout, reason string) {
	if p.rollout != r {
		return
	}
	p.rollout = nil
	if r.release == p.wanted && !p.ending {
		p.failed = true
	}
	for _, a := range r.flying {
		if !a.decided {
			p.fire(a.worker, retire, reason)
		}
	}
}

// completed ends a restart that has worked. Only a restart of all slots changes what counts as good.
func (p *Pool) completed(r *rollout) {
	p.rollout, p.failed = nil, false
	if r.options.Slot != AllSlots {
		return
	}
	p.release = r.release
	for _, s := range p.slots {
		if s.current == nil { // stopped by hand: the next start is of the new one
			s.release = r.release
		}
	}
	good := r.release
	for _, s := range p.slots {
		if s.current != nil {
			good = r.release.pinned(s.current.dir)
			break
		}
	}
	if p.good == nil || good.same(p.good) {
		p.good = good
		return
	}
	p.previous, p.good = p.good, good
}

// pin has all slots that run what last worked stay with it, wherever its directory leads now.
func (p *Pool) pin() {
	unpinned := p.good.pinned("")
	for _, s := range p.slots {
		if s.release.same(unpinned) {
			s.release = p.good
		}
	}
	if p.release.same(unpinned) {
		p.release = p.good
	}
}

// Update goes on under another configuration. Timeouts and limits hold at once; a changed count scales. It
// reports whether the workers that run are of another command, environment or directory than cfg's, so that a
// Restart is due; until then whatever is started is still of the old ones. The error is cfg's, as Validate
// has it, and nothing has changed then.
func (p *Pool) Update(cfg Config) (restart bool, err error) {
	if err := cfg.Validate(); err != nil {
		return false, fmt.Errorf("cannot run workers of pool %q: %w", p.Name, err)
	}
	err = p.await(context.Background(), func() error {
		old := p.cfg
		p.cfg, p.wanted = cfg, cfg.release()
		p.schedule()
		restart = !p.release.pinned("").same(p.wanted) || p.stale()
		if cfg.Count != old.Count && !p.ending {
			before := len(p.slots)
			p.grow(cfg.EffectiveCount())
			for _, s := range p.slots[min(before, len(p.slots)):] {
				p.plan(s, 0, nil, "the count has changed")
			}
		}
		return nil
	}, now, nil)
	return restart, err
}

// stale reports whether a slot runs anything but what the configuration says.
func (p *Pool) stale() bool {
	for _, s := range p.slots {
		w := s.current
		if w != nil && (!w.release.pinned("").same(p.wanted) || w.watchdog != nil && *w.watchdog != p.cfg.Watchdog) {
			return true
		}
	}
	return false
}

// recycleAgain is how long after one that failed the next one is tried.
const recycleAgain = 30 * time.Second

// schedule runs tick after Pool.every.
func (p *Pool) schedule() {
	if p.ticker != nil {
		p.ticker.Stop()
	}
	p.ticker = time.AfterFunc(p.every, func() { p.post(p.tick) })
}

// tick does what is done once a second. A record that could not be written is tried again after it.
func (p *Pool) tick() {
	defer p.schedule()
	if p.ending {
		return
	}
	before := p.changes
	p.heal()
	p.measure()
	p.recycle()
	p.quiet = p.changes == before && len(p.faults) == 0
}

// recycle looks for a worker that is due to be recycled. One at a time is; the next look begins at the slot
// after it.
func (p *Pool) recycle() {
	if a := p.recycling; a != nil {
		if !a.decided {
			return
		}
		if a.err != nil {
			p.recycleAt = time.Now().Add(recycleAgain)
		}
		p.recycling = nil
	}
	if p.rollout != nil || time.Now().Before(p.recycleAt) {
		return
	}
	for i := range p.slots {
		s := p.slots[(p.nextSlot+i)%len(p.slots)]
		if reason := p.ripe(s); reason != "" {
			p.nextSlot = s.number + 1
			p.recycling = p.join(s, s.release, reason)
			return
		}
	}
}

// ripe returns why s's worker is to be recycled; empty if it is not.
func (p *Pool) ripe(s *slot) string {
	w, c := s.current, p.cfg.Recycle
	if w == nil || w.state != up || s.next != nil {
		return ""
	}
	part := 1 + c.Jitter*w.spread
	if c.Age > 0 && time.Since(w.upSince) >= time.Duration(float64(c.Age)*part) {
		return fmt.Sprintf("recycled: up for %v", time.Since(w.upSince).Round(time.Second))
	}
	if reason := p.overweight(w); reason != "" {
		return reason
	}
	if c.Conns > 0 && p.Hooks.Connections != nil {
		n := p.Hooks.Connections(w.end.backend)
		if n < w.conns { // the front counts from 0 again
			w.conns = 0
		}
		if n -= w.conns; float64(n) >= float64(c.Conns)*part {
			return fmt.Sprintf("recycled: had %d connections", n)
		}
	}
	return ""
}
