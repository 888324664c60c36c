package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/supervisor"
)

// workerName is the form of the names of workers' backends; nobody else's may have it.
var workerName = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// fleetOf is the workers of a pool; nil for none.
func (d *daemon) fleetOf(pool string) *fleet {
	v := d.view.Load()
	if p := v.pool(pool); p != nil {
		return v.checkers[p].fleet
	}
	return nil
}

// slotOf is the slot of the worker that b stands for.
func (d *daemon) slotOf(b *backends.Backend) (slot int, ok bool) {
	if f := d.fleetOf(b.Pool().Name); f != nil {
		return f.slotOf(b)
	}
	return 0, false
}

// findFleet finds the workers of a pool, or says that there are none.
func (d *daemon) findFleet(pool string) (*fleet, error) {
	if f := d.fleetOf(pool); f != nil {
		return f, nil
	}
	return nil, api.Refuse(http.StatusNotFound, "lb runs no workers for pool %q", pool)
}

// told makes the outcome of an order to the workers one for the event log, and for the caller of the API.
func (d *daemon) told(f *fleet, subject, what, by string, err error) error {
	switch {
	case err == nil:
		d.tell(slog.LevelInfo, api.Event{Kind: "workers", Subject: subject, Text: what + ": by " + by}, "workers "+what, "pool", f.Name, "of", subject, "by", by)
	case errors.Is(err, supervisor.ErrStopped):
		err = errStopping
	case errors.Is(err, supervisor.ErrNoSlot):
		err = api.Refuse(http.StatusNotFound, "%v", err)
	case errors.Is(err, supervisor.ErrBusy), errors.Is(err, supervisor.ErrSlotStopped), errors.Is(err, supervisor.ErrNoPrevious), errors.Is(err, supervisor.ErrNothingDone):
	default:
		d.tell(slog.LevelError, api.Event{Kind: "workers", Subject: subject, Text: "not " + what + ": " + err.Error()},
			"workers not "+what, "pool", f.Name, "of", subject, "by", by, "error", err)
	}
	return err
}

// Restart replaces workers of a pool by ones of the current config.
func (d *daemon) Restart(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) error {
	return d.roll(ctx, pool, r, progress, by, "restarted", (*supervisor.Pool).Restart)
}

// Rollback replaces workers of a pool by ones of what worked before.
func (d *daemon) Rollback(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) error {
	return d.roll(ctx, pool, r, progress, by, "rolled back", (*supervisor.Pool).Rollback)
}

type rollFunc = func(p *supervisor.Pool, ctx context.Context, o supervisor.RestartOptions) error

// roll restarts workers, in the background if nobody waits for the outcome.
func (d *daemon) roll(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by, what string, roll rollFunc) error {
	f, err := d.findFleet(pool)
	if err != nil {
		return err
	}
	leave, err := d.gate.enter("a restart of the workers of pool " + pool)
	if err != nil {
		return err
	}
	o := supervisor.DefaultRestartOptions()
	o.Timeout = r.Bound()
	subject := f.Name
	if r.Slot != nil {
		o.Slot = *r.Slot
		subject = fmt.Sprintf("%s/%d", f.Name, o.Slot)
	}
	if r.Surge != 0 {
		o.Surge = r.Surge
	}
	if !r.NoWait {
		defer leave()
		o.Progress = func(p supervisor.Progress) { progress(restartStep(p)) }
		return d.told(f, subject, what, by, roll(f.Pool, ctx, o))
	}
	begun := make(chan api.RestartStep, 1) // the first step
	o.Progress = func(p supervisor.Progress) {
		select {
		case begun <- restartStep(p):
		default:
		}
	}
	ended := make(chan error, 1)
	if !d.goWorkers(func() {
		defer leave()
		ended <- d.told(f, subject, what, by, roll(f.Pool, d.background, o))
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

// goWorkers runs f as one of the daemon's goroutines, unless the daemon is stopping.
func (d *daemon) goWorkers(f func()) bool {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.stopping {
		return false
	}
	d.running.Go(f)
	return true
}

func restartStep(p supervisor.Progress) api.RestartStep {
	return api.RestartStep{Step: p.Step, Slot: &p.Slot, PID: p.PID, Done: p.Done, Total: p.Total, Error: p.Reason}
}

// restartFor restarts the workers whose command, environment or directory a reload has changed, one pool after the other.
func (d *daemon) restartFor(ctx context.Context, fleets []*fleet, by string) error {
	o := supervisor.DefaultRestartOptions()
	o.Wait = true // somebody's lb restart may be under way
	var errs []error
	for _, f := range fleets {
		if err := d.told(f, f.Name, "restarted", "reload by "+by, f.Restart(ctx, o)); err != nil {
			errs = append(errs, fmt.Errorf("the config is reloaded, but the workers that are not replaced go on as they were: %w", err))
		}
	}
	return errors.Join(errs...)
}

// Scale changes how many workers a pool has, and returns when new ones are ready.
func (d *daemon) Scale(ctx context.Context, pool string, count int, by string) error {
	f, err := d.findFleet(pool)
	if err != nil {
		return err
	}
	leave, err := d.gate.enter("a scaling of pool " + pool)
	if err != nil {
		return err
	}
	defer leave()
	return d.told(f, f.Name, fmt.Sprintf("scaled to %d", count), by, f.Scale(ctx, count))
}

// scaleByOne is what SIGTTIN and SIGTTOU ask for. They cannot say which pool, so there must be one with workers only.
// What comes of it is logged.
func (d *daemon) scaleByOne(delta int, sig os.Signal) error {
	var only *fleet
	n := 0
	for _, w := range d.view.Load().checkers {
		if w.fleet != nil {
			only = w.fleet
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
	return d.Scale(d.background, only.Name, count, "signal "+sig.String())
}

// StopWorker ends a slot's worker for good, and returns when it has ended.
func (d *daemon) StopWorker(ctx context.Context, pool string, slot int, by string) error {
	f, err := d.findFleet(pool)
	if err != nil {
		return err
	}
	leave, err := d.gate.enter("a stop of a worker of pool " + pool)
	if err != nil {
		return err
	}
	defer leave()
	return d.told(f, fmt.Sprintf("%s/%d", pool, slot), "stopped", by, f.StopSlot(ctx, slot))
}

// StartWorker starts a worker in a slot, and returns when it is ready.
func (d *daemon) StartWorker(ctx context.Context, pool string, slot int, by string) error {
	f, err := d.findFleet(pool)
	if err != nil {
		return err
	}
	leave, err := d.gate.enter("a start of a worker of pool " + pool)
	if err != nil {
		return err
	}
	defer leave()
	return d.told(f, fmt.Sprintf("%s/%d", pool, slot), "started", by, f.StartSlot(ctx, slot))
}

// workersStatus is what the control API shows of a pool's workers; nil for a pool without.
func (d *daemon) workersStatus(pool string) *api.WorkersStatus {
	f := d.fleetOf(pool)
	if f == nil {
		return nil
	}
	st, counts := f.Status(), f.Counters()
	n := counts.Notify
	ws := &api.WorkersStatus{
		Count: len(st.Slots), Restarting: st.Restarting, Done: st.Done, Total: st.Total, Stale: st.Stale, Strays: st.Strays, CanRollback: st.CanRollback,
		RecordError: st.RecordError, OutputLines: counts.Lines, OutputDropped: counts.Dropped,
		Notifications: map[string]uint64{
			"taken":          n.Received - min(n.Received, n.Unknown+n.Garbage+n.TooLong),
			"unknown_sender": n.Unknown, "garbage": n.Garbage, "too_long": n.TooLong,
		},
	}
	for i := range st.Slots {
		s := &st.Slots[i]
		slot := api.SlotStatus{WorkerStatus: workerStatus(&s.WorkerStatus), Restarts: s.Starts - min(s.Starts, 1), QuickDeaths: s.Deaths}
		if s.Next != nil {
			next := workerStatus(s.Next)
			slot.Next = &next
		}
		if !s.Last.Time.IsZero() {
			slot.LastExit = &api.WorkerExit{Time: s.Last.Time, PID: s.Last.PID, Reason: s.Last.Reason, Lines: append([]string{}, s.Last.Lines...)}
		}
		ws.Slots = append(ws.Slots, slot)
	}
	for i := range st.Retired {
		ws.Retired = append(ws.Retired, workerStatus(&st.Retired[i]))
	}
	return ws
}

func workerStatus(w *supervisor.WorkerStatus) api.WorkerStatus {
	when := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		return &t
	}
	return api.WorkerStatus{
		Slot: w.Slot, State: w.State, Since: w.Since, Reason: w.Reason, PID: w.PID, Started: when(w.Started), Up: when(w.UpSince), Due: when(w.Due),
		Text: w.Text, Backend: w.Backend.Name, Dir: w.Dir, Command: w.Command,
	}
}
