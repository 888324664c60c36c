package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"
	"slices"
	"strconv"
	"time"
)

// Options says what [Compare] does.
type Options struct {
	Programs Programs
	// Contenders are compared in this order in the first round, and each later round begins with another of
	// them.
	Contenders []Contender
	Cases      []Case
	// Rounds is how often each case is measured for each contender; at least 1.
	Rounds int
	// Duration is how long each load lasts, in whole seconds; at least 1 s.
	Duration time.Duration
	// WarmUp is how long the same kind of load runs unmeasured before; 0 means none.
	WarmUp time.Duration
	// Settle is how long idle sessions are left alone before they are measured; IdleFor is how long they are
	// measured.
	Settle, IdleFor time.Duration
	// Backends is the number of workers behind the balancers; at least 1.
	Backends int
	// Progress is called before each measurement with a line about it; nil is allowed.
	Progress func(line string)
}

// DefaultOptions returns options for a full comparison, without programs and contenders.
func DefaultOptions() Options {
	return Options{
		Cases: AllCases(), Rounds: 5, Duration: 2 * time.Second, WarmUp: 300 * time.Millisecond,
		Settle: 500 * time.Millisecond, IdleFor: 2 * time.Second, Backends: 2,
	}
}

// Validate returns all faults of the options.
func (o Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(len(o.Contenders) > 0, "contenders: at least one is needed")
	check(len(o.Cases) > 0, "cases: at least one is needed")
	check(o.Rounds >= 1, "rounds: at least 1 is needed, not %d", o.Rounds)
	check(o.Backends >= 1, "backends: at least 1 is needed, not %d", o.Backends)
	check(o.Duration >= time.Second && o.Duration%time.Second == 0, "duration: whole seconds are needed, at least 1s, not %v", o.Duration)
	check(o.WarmUp >= 0 && o.Settle >= 0, "warm-up and settle: negative")
	seen := make(map[string]bool)
	for _, contender := range o.Contenders {
		check(!seen[contender.Name], "contenders: %q is there twice", contender.Name)
		seen[contender.Name] = true
	}
	for _, c := range o.Cases {
		check(!c.Idle || o.IdleFor > 0, "idle time: must be above 0, not %v", o.IdleFor)
		// A balancer has two descriptors per session, and this program one.
		check(fileLimit() >= uint64(2*c.Conns+500), "case %s: %d connections need a limit of %d open files, but it is %d; raise it with ulimit -Hn",
			c.Name, c.Conns, 2*c.Conns+500, fileLimit())
	}
	return errors.Join(errs...)
}

// Compare measures every contender under every case in every round. It works in a temporary directory of its
// own, and when it returns, none of the processes that it started is left, and the directory is gone. If ctx
// ends, it returns early with the error of ctx. A contender that fails a measurement is not an error but an
// invalid sample; one that does not start is.
func Compare(ctx context.Context, o Options) (report *Report, err error) {
	if err := o.Validate(); err != nil {
		return nil, fmt.Errorf("cannot compare: %w", err)
	}
	dir, err := os.MkdirTemp("", "lb-bench-")
	if err != nil {
		return nil, fmt.Errorf("cannot create work directory: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	backends, err := StartBackends(ctx, o.Programs, dir, o.Backends)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, backends.Stop()) }()

	c := &comparison{options: o, dir: dir, backends: backends}
	report = &Report{
		Machine: ReadMachine(), Programs: o.Programs.Versions(ctx), Started: time.Now(),
		Rounds: o.Rounds, Duration: o.Duration, Cases: o.Cases,
	}
	for _, contender := range o.Contenders {
		report.Contenders = append(report.Contenders, ContenderInfo{contender.Name, contender.Kind})
	}
	for round := range o.Rounds {
		samples, err := c.round(ctx, round)
		report.Samples = append(report.Samples, samples...)
		if err != nil {
			return nil, err
		}
	}
	return report, nil
}

// comparison is a running Compare.
type comparison struct {
	options  Options
	dir      string
	backends *Backends
}

// round measures all cases once. The cases under load share their processes; the idle case gets fresh ones,
// because memory that earlier load made a process take, and keep for itself, would hide what a session needs.
func (c *comparison) round(ctx context.Context, round int) (samples []Sample, err error) {
	contenders := rotate(c.options.Contenders, round)
	loaded := slices.DeleteFunc(slices.Clone(c.options.Cases), func(k Case) bool { return k.Idle })
	idle := slices.DeleteFunc(slices.Clone(c.options.Cases), func(k Case) bool { return !k.Idle })

	var running []*Running
	stop := func() error {
		var errs []error
		for _, contender := range running {
			errs = append(errs, contender.Stop())
		}
		running = nil
		return errors.Join(errs...)
	}
	defer func() { err = errors.Join(err, stop()) }()
	if len(loaded) > 0 {
		for _, contender := range contenders {
			started, err := c.start(ctx, contender)
			if err != nil {
				return samples, err
			}
			running = append(running, started)
		}
	}
	for _, kase := range loaded {
		for _, contender := range running {
			sample, err := c.measure(ctx, round, contender, kase, c.measureLoad)
			if err != nil {
				return samples, err
			}
			samples = append(samples, sample)
		}
	}
	if err := stop(); err != nil {
		return samples, err
	}
	for _, kase := range idle {
		for _, contender := range contenders {
			if contender.Command == nil {
				continue // a reference has no sessions of its own
			}
			started, err := c.start(ctx, contender)
			if err != nil {
				return samples, err
			}
			sample, err := c.measure(ctx, round, started, kase, c.measureIdle)
			if err := errors.Join(err, started.Stop()); err != nil {
				return samples, err
			}
			samples = append(samples, sample)
		}
	}
	return samples, nil
}

// start starts a contender in an empty directory and waits until it passes a request through.
func (c *comparison) start(ctx context.Context, contender Contender) (*Running, error) {
	home, err := os.MkdirTemp(c.dir, "contender-")
	if err != nil {
		return nil, fmt.Errorf("cannot create directory for %s: %w", contender.Name, err)
	}
	if contender.Command == nil {
		return &Running{Contender: contender, Addr: c.backends.Direct}, nil
	}
	return Launch(ctx, contender, home, c.backends.List, func(ctx context.Context, r *Running) error {
		// A balancer that does not know its backends yet may accept and send nothing.
		ctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		return Probe(ctx, r.Addr, "/small")
	})
}

// rotate returns the contenders beginning with another one in each round, so that none of them is always the
// first, or always behind the same other.
func rotate(contenders []Contender, round int) []Contender {
	n := round % len(contenders)
	return slices.Concat(contenders[n:], contenders[:n])
}

// measure takes one sample. What goes wrong with the contender makes the sample invalid; an error is the end
// of the comparison.
func (c *comparison) measure(ctx context.Context, round int, contender *Running, kase Case,
	take func(context.Context, *Running, Case, *Sample) error,
) (Sample, error) {
	if c.options.Progress != nil {
		c.options.Progress("round " + strconv.Itoa(round+1) + "/" + strconv.Itoa(c.options.Rounds) + ": " + kase.Name + " " + contender.Name)
	}
	sample := Sample{Round: round, Case: kase.Name, Contender: contender.Name, Kind: contender.Kind}
	err := take(ctx, contender, kase, &sample)
	if ctx.Err() != nil {
		return Sample{}, ctx.Err()
	}
	if ended := c.backends.Exited(); ended != nil {
		return Sample{}, fmt.Errorf("cannot go on: %w", ended)
	}
	if err != nil && contender.Process != nil {
		err = contender.Process.explain(err)
	}
	if err != nil {
		sample.Invalid = err.Error()
	}
	return sample, nil
}

// measureLoad loads the contender with wrk and reads what it cost.
func (c *comparison) measureLoad(ctx context.Context, contender *Running, kase Case, s *Sample) error {
	o := c.options
	if err := WarmUp(ctx, contender.Addr, kase.Path, kase.Conns, kase.NewConn, o.WarmUp); err != nil {
		return err
	}
	pids, err := contender.PIDs()
	if err != nil {
		return err
	}
	workers, err := contender.WorkerPIDs()
	if err == nil && workers == nil {
		workers, err = c.backends.PIDs()
	}
	if err != nil {
		return err
	}
	before, err := readMeter(pids, workers)
	if err != nil {
		return err
	}
	load, err := RunWrk(ctx, Wrk{
		Path: o.Programs.Wrk, URL: "http://" + contender.Addr + kase.Path, Conns: kase.Conns, NewConn: kase.NewConn,
		Duration: o.Duration, Dir: c.dir,
	})
	if err != nil {
		return err
	}
	used, err := readMeter(pids, workers)
	if err != nil {
		return err
	}
	if now, err := contender.PIDs(); err != nil {
		return err
	} else if !slices.Equal(now, pids) {
		return fmt.Errorf("cannot add up CPU time: processes changed from %v to %v", pids, now)
	}
	used = used.sub(before)

	s.Requests, s.Rate, s.P50, s.P99 = load.Requests, load.Rate, load.P50, load.P99
	s.Others = used.others(load.CPU)
	if n := float64(load.Requests); n > 0 {
		s.CPU = microseconds(used.contender.Total) / n
		s.StatCPU = microseconds(used.contender.User+used.contender.System) / n
		s.Switches = float64(used.contender.Switches) / n
		s.BackendCPU = microseconds(used.backends.Total) / n
		s.MachineCPU = microseconds(used.machine) / n
	}
	if stat := used.contender.User + used.contender.System; stat > 0 {
		s.UserShare = float64(used.contender.User) / float64(stat)
	}
	if failed := load.Failures(); failed != "" {
		return errors.New(failed)
	}
	return nil
}

// touchSessions is how many sessions a fresh contender serves before its memory is first read, so that what
// it allocates once, for the first of them, is not divided among the idle ones.
const touchSessions = 16

// measureIdle holds sessions open and reads what they cost.
func (c *comparison) measureIdle(ctx context.Context, contender *Running, kase Case, s *Sample) error {
	pids, err := contender.PIDs()
	if err != nil {
		return err
	}
	fresh, err := steadyFDs(ctx, pids)
	if err != nil {
		return err
	}
	if err := WarmUp(ctx, contender.Addr, kase.Path, touchSessions, true, c.options.WarmUp/10); err != nil {
		return err
	}
	if err := awaitFDs(ctx, pids, fresh); err != nil {
		return err
	}
	memory, fds, err := readHeld(pids)
	if err != nil {
		return err
	}
	sessions, err := OpenSessions(ctx, contender.Addr, kase.Path, kase.Conns)
	if err != nil {
		return err
	}
	defer sessions.Close()
	if err := wait(ctx, c.options.Settle); err != nil {
		return err
	}
	before, err := readMeter(pids, nil)
	if err != nil {
		return err
	}
	if err := wait(ctx, c.options.IdleFor); err != nil {
		return err
	}
	used, err := readMeter(pids, nil)
	if err != nil {
		return err
	}
	used = used.sub(before)
	memoryNow, fdsNow, err := readHeld(pids)
	if err != nil {
		return err
	}
	if now, err := contender.PIDs(); err != nil {
		return err
	} else if !slices.Equal(now, pids) {
		return fmt.Errorf("cannot add up memory: processes changed from %v to %v", pids, now)
	}
	// What a contender held is known only if it held all of them.
	if err := sessions.Check(ctx); err != nil {
		return err
	}
	n := float64(kase.Conns)
	s.IdleMemory = (float64(memoryNow.User()) - float64(memory.User())) / n
	s.IdleFDs = float64(fdsNow-fds) / n
	s.IdleCPU = microseconds(used.contender.Total) / used.took.Seconds()
	s.Others = used.others(0)
	return nil
}

// steadyFDs counts descriptors once their number stands still: just after the start, the connections that
// asked whether the contender is ready may not be closed yet.
func steadyFDs(ctx context.Context, pids []int) (int, error) {
	const still = 10 // looks in a row, 10 ms apart
	last, same := -1, 0
	for range 500 {
		n, err := CountFDs(pids)
		if err != nil {
			return 0, err
		}
		if n != last {
			last, same = n, 0
		}
		if same++; same == still {
			return n, nil
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			return 0, err
		}
	}
	return 0, fmt.Errorf("cannot count descriptors: their number does not stand still")
}

// awaitFDs waits until the processes have no more than n descriptors: a balancer sees the end of a connection
// later than the client does. Those that a contender keeps for later use are no reason to wait for long.
func awaitFDs(ctx context.Context, pids []int, n int) error {
	limit := time.Now().Add(5 * time.Second)
	for {
		fds, err := CountFDs(pids)
		if err != nil || fds <= n || time.Now().After(limit) {
			return err
		}
		if err := wait(ctx, 10*time.Millisecond); err != nil {
			return err
		}
	}
}

func readHeld(pids []int) (Memory, int, error) {
	memory, err := ReadMemory(pids)
	if err != nil {
		return Memory{}, 0, err
	}
	fds, err := CountFDs(pids)
	return memory, fds, err
}

// meter is a reading of everything that is timed around a load.
type meter struct {
	contender, backends CPU
	machine             time.Duration
	at                  time.Time
	took                time.Duration // of a difference
}

func readMeter(contender, backends []int) (meter, error) {
	machine, err := MachineBusy()
	if err != nil {
		return meter{}, err
	}
	b, err := ReadCPU(backends)
	if err != nil {
		return meter{}, err
	}
	p, err := ReadCPU(contender)
	return meter{contender: p, backends: b, machine: machine, at: time.Now()}, err
}

func (m meter) sub(before meter) meter {
	return meter{
		contender: m.contender.Sub(before.contender), backends: m.backends.Sub(before.backends),
		machine: m.machine - before.machine, at: m.at, took: m.at.Sub(before.at),
	}
}

// others returns which share of the machine's CPUs went to none of those whose time is known.
func (m meter) others(load time.Duration) float64 {
	rest := m.machine - m.contender.Total - m.backends.Total - load
	return max(0, rest.Seconds()/m.took.Seconds()/float64(runtime.NumCPU()))
}

func microseconds(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// wait waits for d, or returns the error of ctx.
func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
