package fairness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/273ebdf9/lb/bench/load"
)

// The load that the client is checked with before a run.
const (
	checkLaw      = "exponential:100ms"
	checkRequests = 500
	checkRate     = 400
)

// Run runs every case in every round for every contender that can play it. A contender that cannot be started
// or measured is no error but a broken cell; a worker of the user's own that cannot be run is one, before
// anything is measured, and so is that there is nothing to measure. If ctx ends, Run returns early with the
// error of ctx.
func Run(ctx context.Context, o Options) (report *Report, err error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("cannot compare: %w", err)
	}
	if err := cmp.Or(o.Unplayable(), o.findCommand()); err != nil {
		return nil, fmt.Errorf("cannot compare: %w", err)
	}
	dir, err := os.MkdirTemp(o.Dir, "lb-bench-")
	if err != nil {
		return nil, fmt.Errorf("cannot create work directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	r := &run{options: &o, dir: dir, report: newReport(ctx, &o)}
	for i := range o.Cases {
		r.total += o.Rounds * len(r.able(&o.Cases[i]))
	}
	if err := r.try(ctx); err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	r.say("the load generator against itself")
	if r.report.Check, err = load.CheckQuietly(ctx, load.MustLaw(checkLaw), cmp.Or(o.CheckRequests, checkRequests), checkRate, o.Seed); err != nil {
		return nil, err
	}
	for round := range o.Rounds {
		for i := range o.Cases {
			if err := r.play(ctx, round, &o.Cases[i]); err != nil {
				return nil, err
			}
		}
	}
	r.report.Took = time.Since(r.report.Started)
	r.report.conclude()
	return r.report, nil
}

// run is a running Run.
type run struct {
	options *Options
	dir     string
	report  *Report
	scenes  int

	mu          sync.Mutex // guards the fields below, the calls of Progress, and the report's cells
	done, total int
	began       time.Time // of the first case
}

func (r *run) say(what string) {
	if r.options.Progress == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	p := Progress{Done: r.done, Total: r.total, What: what}
	if r.done > 0 {
		p.Left = time.Since(r.began) / time.Duration(r.done) * time.Duration(r.total-r.done)
	}
	r.options.Progress(p)
}

// able are the contenders that can play a case.
func (r *run) able(c *Case) []string {
	return slices.DeleteFunc(slices.Clone(r.options.contenders()), func(name string) bool { return r.options.unable(name, c) != "" })
}

// play runs one case in one round: all contenders are started, loaded and stopped.
func (r *run) play(ctx context.Context, round int, c *Case) error {
	names := r.able(c)
	if len(names) == 0 {
		return nil
	}
	if r.began.IsZero() {
		r.began = time.Now()
	}
	// Every round has its arrivals, and every contender the same ones.
	plan := load.NewPlan(c.Shape, r.options.Seed+uint64(round))
	n := round % len(names)
	names = slices.Concat(names[n:], names[:n])

	r.scenes++
	contenders := make([]*contender, len(names))
	cells := make([]*Cell, len(names))
	start := func(i int) {
		cells[i] = &Cell{Case: c.Name, Contender: names[i], Round: round, Digest: plan.Digest()}
		s := &stage{options: r.options, kase: c, home: filepath.Join(r.dir, fmt.Sprintf("%d-%s", r.scenes, names[i])), meter: newMeter()}
		var err error
		if err = os.Mkdir(s.home, 0o700); err == nil {
			contenders[i], err = startContender(ctx, s, names[i])
		}
		if err != nil {
			contenders[i], cells[i].Broken = nil, err.Error()
		}
	}
	each(len(names), start)
	measure := func(i int) {
		if !r.options.Together {
			r.say(c.Name + ": " + names[i])
		}
		if contenders[i] != nil {
			if err := contenders[i].measure(ctx, plan, cells[i]); err != nil {
				cells[i].Broken = err.Error()
			}
		}
		r.mu.Lock()
		r.done++
		r.mu.Unlock()
	}
	if r.options.Together {
		r.say(c.Name + ": all contenders")
		each(len(names), measure)
	} else {
		for i := range names {
			measure(i)
			if cells[i].Broken != "" || cells[i].Invalid == "" || r.report.Repeated == r.options.Repeats {
				continue
			}
			// Whatever disturbed the machine may be over.
			r.report.Repeated++
			r.scenes++
			if err := contenders[i].stop(); err != nil {
				contenders[i], cells[i].Broken = nil, err.Error()
				continue
			}
			r.done--
			start(i)
			measure(i)
		}
	}
	errs := make([]error, len(names))
	each(len(names), func(i int) {
		if contenders[i] != nil {
			errs[i] = contenders[i].stop()
		}
	})
	if err := ctx.Err(); err != nil {
		return err
	}
	for i, err := range errs {
		if err != nil && cells[i].Broken == "" {
			cells[i].Broken = err.Error()
		}
	}
	r.report.Cells = append(r.report.Cells, cells...)
	return nil
}

// each calls f for 0 to n-1 at the same time, and waits for all.
func each(n int, f func(i int)) {
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { f(i) })
	}
	all.Wait()
}

// measure loads the contender and works out what it did.
func (p *contender) measure(ctx context.Context, plan *load.Plan, c *Cell) error {
	metering, stopMeter := context.WithCancel(ctx)
	var others sync.WaitGroup
	defer others.Wait()
	defer stopMeter()
	hop := p.hopMeter()
	others.Go(func() { p.meter.run(metering) })
	others.Go(func() { hop.run(metering) })
	workers, balancer := p.meter.read(), hop.read()

	acting, stopActing := context.WithCancel(ctx)
	defer stopActing()
	var event happening
	var acted sync.WaitGroup
	target := load.Target{Address: p.addr, Path: p.options.Path, Timeout: p.options.Timeout}
	result, err := load.Run(ctx, plan, target, func(elapsed func() time.Duration) {
		if p.kase.Event != NoEvent {
			acted.Go(func() { event = p.act(acting, elapsed) })
		}
	})
	stopActing() // the load is over: what is not done by now is too late to matter
	acted.Wait()
	if err != nil {
		return fmt.Errorf("cannot load %s: %w", p.name, err)
	}
	if p.balancer != nil {
		if err := p.balancer.Process.Exited(); err != nil {
			return err
		}
	}
	if len(result.Outcomes) == 0 {
		return errors.New("no request fell into its load: raise the rate or the duration")
	}
	if event.err != nil {
		return fmt.Errorf("cannot make %q happen: %w", p.kase.Event, event.err)
	}
	c.fill(p, result, event)
	if n := float64(c.Answered); n > 0 {
		c.WorkerCPU = microseconds(p.meter.read()-workers) / n
		c.BalancerCPU = microseconds(hop.read()-balancer) / n
	}
	return nil
}

// happening is how an event went.
type happening struct {
	at, took time.Duration // since the beginning of the load
	late     bool          // it was not done when the load ended
	err      error
}

// act waits for the moment of the event and makes it happen.
func (p *contender) act(ctx context.Context, elapsed func() time.Duration) (h happening) {
	timer := time.NewTimer(p.kase.EventAt - elapsed())
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
		return h
	}
	h.at = elapsed()
	h.err = p.happen(ctx)
	if p.kase.Event == Stick || p.kase.Event == Kill {
		h.at = elapsed() // finding the process took a while
	}
	h.took = elapsed() - h.at
	if ctx.Err() != nil {
		h.late, h.err = true, nil
	}
	return h
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }
