package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"reflect"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/supervisor"
)

// findWorkers returns the workers of a pool, or an error if it has none.
func (d *daemon) findWorkers(pool string) (*workerPool, error) {
	if w := d.workersOf(pool); w != nil {
		return w, nil
	}
	return nil, api.Refuse(http.StatusNotFound, "lb runs no workers for pool %q", pool)
}

// reportOutcome reports the outcome of an order to the workers to the event log, and returns it for the
// caller of the API.
func (d *daemon) reportOutcome(w *workerPool, subject, what, by string, err error) error {
	switch {
	case err == nil:
		d.report(slog.LevelInfo, api.Event{Kind: "workers", Subject: subject, Text: what + ", by " + by}, "workers "+what, "pool", w.Name, "of", subject, "by", by)
	case errors.Is(err, supervisor.ErrStopped):
		err = errStopping
	case errors.Is(err, supervisor.ErrNoSlot):
		err = api.Refuse(http.StatusNotFound, "%v", err)
	case errors.Is(err, supervisor.ErrBusy), errors.Is(err, supervisor.ErrSlotStopped), errors.Is(err, supervisor.ErrNoPrevious), errors.Is(err, supervisor.ErrNothingDone):
	default:
		d.report(slog.LevelError, api.Event{Kind: "workers", Subject: subject, Text: "not " + what + ": " + err.Error()},
			"workers not "+what, "pool", w.Name, "of", subject, "by", by, "error", err)
	}
	return err
}

// Restart replaces workers of a pool by ones of the current config.
func (d *daemon) Restart(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) (warnings []string, err error) {
	return d.edited(pool), d.rollout(ctx, pool, r, progress, by, "restarted", (*supervisor.Pool).Restart)
}

// edited returns a warning if the config file has another table for a pool's workers than the config that
// runs.
func (d *daemon) edited(pool string) (warnings []string) {
	running := d.view.Load().cfg.Pool(pool)
	if running == nil || running.Workers == nil {
		return nil
	}
	onDisk, err := config.Load(d.origin.path)
	if err != nil {
		return []string{"the config file has faults now (lb check names them); the workers are of the config that runs"}
	}
	if now := onDisk.Pool(pool); now == nil || now.Workers == nil || !reflect.DeepEqual(workersConfig(onDisk, now), workersConfig(d.view.Load().cfg, running)) {
		return []string{fmt.Sprintf("the config file has changed since it was loaded: the workers are of pools.%s.workers as it was then; lb reload makes the new one hold", pool)}
	}
	return nil
}

// Rollback replaces workers of a pool by ones of what worked before.
func (d *daemon) Rollback(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) (warnings []string, err error) {
	return nil, d.rollout(ctx, pool, r, progress, by, "rolled back", (*supervisor.Pool).Rollback)
}

type rolloutFunc = func(p *supervisor.Pool, ctx context.Context, o supervisor.RestartOptions) error

// rollout restarts workers, in the background if the request is not to wait for the outcome.
func (d *daemon) rollout(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by, what string, restart rolloutFunc) error {
	w, err := d.findWorkers(pool)
	if err != nil {
		return err
	}
	leave, err := d.upgrades.gate.enter("a restart of the workers of pool " + pool)
	if err != nil {
		return err
	}
	o := supervisor.DefaultRestartOptions()
	o.Timeout = r.Bound()
	subject := w.Name
	if r.Slot != nil {
		o.Slot = *r.Slot
		subject = fmt.Sprintf("%s/%d", w.Name, o.Slot)
	}
	if r.Surge != 0 {
		o.Surge = r.Surge
	}
	if !r.NoWait {
		defer leave()
		o.Progress = func(p supervisor.Progress) { progress(restartStep(p)) }
		return d.reportOutcome(w, subject, what, by, restart(w.Pool, ctx, o))
	}
	begun := make(chan api.RestartStep, 1) // the first step
	o.Progress = func(p supervisor.Progress) {
		select {
		case begun <- restartStep(p):
		default:
		}
	}
	ended := make(chan error, 1)
	if !d.runUnlessStopping(func() {
		defer leave()
		ended <- d.reportOutcome(w, subject, what, by, restart(w.Pool, d.background.ctx, o))
	}) {
		leave()
		return errStopping
	}
	select {
	case step := <-begun:
		progress(step)
		return nil
	case err := <-ended:
		return err
	}
}

func restartStep(p supervisor.Progress) api.RestartStep {
	return api.RestartStep{Step: p.Step, Slot: &p.Slot, PID: p.PID, Done: p.Done, Total: p.Total, Error: p.Reason}
}

// rolloutFor restarts the workers whose command, environment or directory a reload has changed, one pool
// after the other.
func (d *daemon) rolloutFor(ctx context.Context, pools []*workerPool, by string) error {
	o := supervisor.DefaultRestartOptions()
	o.Wait = true // an lb restart may be under way
	var errs []error
	for _, w := range pools {
		if err := d.reportOutcome(w, w.Name, "restarted", "reload by "+by, w.Restart(ctx, o)); err != nil {
			errs = append(errs, fmt.Errorf("the config is reloaded, but the workers that are not replaced go on as they were: %w", err))
		}
	}
	return errors.Join(errs...)
}

// resumeRollout goes on with a rollout that the end of an lb before has interrupted, and reports workers that
// are not of the config.
func (d *daemon) resumeRollout(w *workerPool) {
	resumed, err := w.ResumeRestart(d.background.ctx)
	if resumed {
		d.reportOutcome(w, w.Name, "restarted", "the lb before, which was killed in the middle of it", err)
	}
	if err == nil && d.background.ctx.Err() == nil && w.Status().Stale {
		d.report(slog.LevelWarn, api.Event{Kind: "workers", Subject: w.Name, Text: "not all workers run the command, environment and directory of the config; lb reload restarts them"},
			"not all workers run the command, environment and directory of the config; lb reload restarts them", "pool", w.Name)
	}
}

// Scale changes how many workers a pool has, and returns when new ones are ready.
func (d *daemon) Scale(ctx context.Context, pool string, count int, by string) error {
	w, err := d.findWorkers(pool)
	if err != nil {
		return err
	}
	leave, err := d.upgrades.gate.enter("a scaling of pool " + pool)
	if err != nil {
		return err
	}
	defer leave()
	if err := d.reportOutcome(w, w.Name, fmt.Sprintf("scaled to %d", count), by, w.Scale(ctx, count)); err != nil {
		return err
	}
	d.rememberWorkers(pool)
	return nil
}

// scaleByOne is what SIGTTIN and SIGTTOU ask for. They cannot say which pool, so there must be one with
// workers only. What comes of it is logged.
func (d *daemon) scaleByOne(delta int, sig os.Signal) error {
	var only *workerPool
	n := 0
	for _, w := range d.view.Load().checkers {
		if w.workers != nil {
			only = w.workers
			n++
		}
	}
	if n != 1 {
		d.log.Warn("a signal to scale by one is for an lb with one pool of workers; use lb scale", "signal", sig.String(), "pools_with_workers", n)
		return nil
	}
	count := only.Count() + delta
	if count < 1 {
		d.log.Warn("a signal does not scale to no worker at all; use lb scale", "signal", sig.String(), "pool", only.Name)
		return nil
	}
	return d.Scale(d.background.ctx, only.Name, count, "signal "+sig.String())
}

// StopWorker ends a slot's worker for good, and returns when it has ended.
func (d *daemon) StopWorker(ctx context.Context, pool string, slot int, by string) error {
	w, err := d.findWorkers(pool)
	if err != nil {
		return err
	}
	leave, err := d.upgrades.gate.enter("a stop of a worker of pool " + pool)
	if err != nil {
		return err
	}
	defer leave()
	if err := d.reportOutcome(w, fmt.Sprintf("%s/%d", pool, slot), "stopped", by, w.StopSlot(ctx, slot)); err != nil {
		return err
	}
	d.rememberWorkers(pool)
	return nil
}

// StartWorker starts a worker in a slot, and returns when it is ready.
func (d *daemon) StartWorker(ctx context.Context, pool string, slot int, by string) error {
	w, err := d.findWorkers(pool)
	if err != nil {
		return err
	}
	leave, err := d.upgrades.gate.enter("a start of a worker of pool " + pool)
	if err != nil {
		return err
	}
	defer leave()
	if err := d.reportOutcome(w, fmt.Sprintf("%s/%d", pool, slot), "started", by, w.StartSlot(ctx, slot)); err != nil {
		return err
	}
	d.rememberWorkers(pool)
	return nil
}

// rememberWorkers remembers how many workers a pool has, and which slots were stopped by hand.
func (d *daemon) rememberWorkers(pool string) {
	d.changing.Lock()
	defer d.changing.Unlock()
	w, cfg := d.workersOf(pool), d.view.Load().cfg.Pool(pool)
	if w == nil || cfg.Workers == nil { // a reload has taken them away
		return
	}
	count, stopped := w.Slots()
	r := state.Workers{Pool: pool, Stopped: stopped}
	if count != cfg.Workers.EffectiveCount() {
		r.Count = state.Int{Changed: true, Configured: cfg.Workers.Count, Value: count}
	}
	d.memory.putWorkers(r)
	d.memory.save(d.log)
}
