// Package fairness measures how ways to spread connections over worker processes fare: SO_REUSEPORT, a
// listener that the workers inherit, lb, haproxy and nginx, with the same workers and the same load,
// interleaved in one run, in the cases that tell them apart: few connections, heavy-tailed service times, a
// slow, a stuck and a killed worker, a restart, a scale-up.
//
// [Run] does all of it and returns a [Report], which can be written as text, as JSON and as a page of HTML.
// The load is of package bench/load; processes, what they cost, and tables are of package bench.
//
// A way to spread is a [Contender]. The contenders of a case are started anew, all together, and loaded with
// the same plan one after the other, in an order that rotates, or all at once where [Options.Together] is
// set: that is as fair, for every contender sees the same moments of the machine, and quicker, but they take
// CPU from each other.
//
// Run owns what it starts. When it returns, no process, socket or directory of it is left.
package fairness

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/273ebdf9/lb/bench"
	"github.com/273ebdf9/lb/bench/load"
)

// Options say what is compared.
type Options struct {
	// Self is how to run the benchmark's own worker and lb: this program.
	Self Self
	// Programs are haproxy and nginx; an empty path leaves one out.
	Programs bench.Programs
	// Command is the user's own worker, in the form of lb's [pools.NAME.workers]; empty is the benchmark's.
	Command []string
	// Handoff is how lb hands accepted sockets over to the user's own worker, "lb" or "node" as in lb's
	// config; "" is "node" for a program that Node runs, else not at all. The benchmark's own worker takes
	// "lb".
	Handoff string
	// Target is an address of the user's own that is compared too; "" is none. Rounds of it have no events.
	Target string
	// Path is what is requested; "" is "/".
	Path string
	// Contenders are the names of those that are compared; empty is all that can be.
	Contenders []string
	// Cases are run in this order.
	Cases []Case
	// Workers is how many workers each contender has, at least 2.
	Workers int
	// Burn has the benchmark's workers spend their service times as CPU time, instead of sleeping.
	Burn bool
	// Rounds is how often each case is run, each time with other arrivals.
	Rounds int
	// Timeout is how long a request may take until it counts as hung.
	Timeout time.Duration
	// Together loads all contenders at the same time.
	Together bool
	// Repeats is how many measurements of a run may be made anew, with the same plan, because the load
	// generator could not keep its schedule. With Together there are none.
	Repeats int
	// Seed decides all that chance decides.
	Seed uint64
	// CheckRequests is with how many requests the load generator is checked before; 0 is as many as are
	// needed.
	CheckRequests int
	// CommandLine is how to repeat the run, for the report.
	CommandLine []string
	// Version is lb's.
	Version string
	// Dir is where the run makes its work directory; "" is the system's directory for temporary files.
	Dir string
	// Progress is told what is measured; nil is allowed. Calls do not overlap.
	Progress func(Progress)
}

// Self is how this program plays other parts.
type Self struct {
	// LB is the path of lb.
	LB string
	// Worker are the words that run the benchmark's own worker: the program [load.Serve] with what WorkerArgs
	// adds.
	Worker []string
	// Exec are the words before a command that is to find LISTEN_PID in its environment, see [Exec].
	Exec []string
}

// Progress is how far a run is.
type Progress struct {
	// Done of Total measurements are made; What is made now.
	Done, Total int
	What        string
	// Left is about how long the rest takes.
	Left time.Duration
}

// Validate returns all faults of the options.
func (o *Options) Validate() error {
	var errs []error
	check := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	check(o.Workers >= 2 && o.Workers <= 64, "workers: %d is not within 2..64", o.Workers)
	check(o.Rounds >= 1 && o.Rounds <= 100, "rounds: %d is not within 1..100", o.Rounds)
	check(o.Timeout >= 100*time.Millisecond && o.Timeout <= time.Minute, "timeout: %v is not within 100ms..1m", o.Timeout)
	check(o.Repeats >= 0, "repeats: %d is negative", o.Repeats)
	check(len(o.Cases) > 0, "cases: at least one is needed")
	check(o.Path == "" || strings.HasPrefix(o.Path, "/") && !strings.ContainsAny(o.Path, " \r\n"), "path: %q is not the path of a request, such as /work", o.Path)
	for i := range o.Cases {
		if err := o.Cases[i].Shape.Validate(); err != nil {
			errs = append(errs, fmt.Errorf("case %s: %w", o.Cases[i].Name, err))
		}
	}
	for _, name := range o.Contenders {
		check(slices.Contains(ContenderNames(), name), "contenders: there is no %q; there are %s", name, strings.Join(ContenderNames(), ", "))
		check(name != ContenderTarget || o.Target != "", "contenders: %s needs an address of your own: --target ADDR", ContenderTarget)
	}
	check(o.Handoff == "" || o.Handoff == "lb" || o.Handoff == "node", "handoff: %q is not lb or node", o.Handoff)
	check(o.Handoff == "" || len(o.Command) > 0, "handoff: the benchmark's own worker knows how to take sockets; the flag is for --worker")
	if len(o.Command) > 0 {
		socket, port := holds(o.Command, "{socket}"), holds(o.Command, "{port}")
		check(!(socket && port), "worker: {socket} and {port} cannot both be used: a worker listens in one place")
	}
	return errors.Join(errs...)
}

func holds(words []string, what string) bool {
	return slices.ContainsFunc(words, func(w string) bool { return strings.Contains(w, what) })
}

// Event is what happens in the midst of a case.
type Event string

// The events of the cases.
const (
	NoEvent  Event = ""
	Stick    Event = "stick"    // SIGSTOP to one worker
	Kill     Event = "kill"     // SIGKILL to one worker
	Restart  Event = "restart"  // all workers are replaced
	ScaleOut Event = "scaleout" // as many workers again join
)

// victim is the worker that is slow, stuck or killed.
const victim = 1

// Case is one situation that the contenders are put in.
type Case struct {
	// Name selects the case; Title says in words what it is.
	Name  string `json:"name"`
	Title string `json:"title"`
	// Shape is the load.
	Shape load.Shape `json:"load"`
	// Event happens at EventAt.
	Event   Event         `json:"event,omitempty"`
	EventAt time.Duration `json:"event_at_ns,omitempty"`
	// Slow is the factor of the one slow worker; 0 is none.
	Slow float64 `json:"slow,omitempty"`
	// Weights are those of the first half of the workers and of the second; zero for no weights.
	Weights [2]int `json:"weights"`
	// Law is the shape's, in words.
	Law string `json:"law"`
}

// Names of the cases.
const (
	CaseEven    = "even"
	CaseFew     = "few"
	CaseHeavy   = "heavy"
	CaseSlow    = "slow"
	CaseStuck   = "stuck"
	CaseKilled  = "killed"
	CaseRestart = "restart"
	CaseScale   = "scale"
	CaseWeights = "weights"
)

// CaseNames are all of them, in their order.
func CaseNames() []string {
	return []string{CaseEven, CaseFew, CaseHeavy, CaseSlow, CaseStuck, CaseKilled, CaseRestart, CaseScale, CaseWeights}
}

// Budget is what the cases have to fit in.
type Budget struct {
	Workers  int
	Duration time.Duration // of a case's load
	// Rate is requests a second instead of the case's own; 0 is a load that keeps half of the workers busy,
	// more or less.
	Rate float64
	// Law of the service times, instead of the case's own; "" is that.
	Law string
	// Closed makes a closed loop of the cases that name no connections of their own; KeepAlive keeps their
	// connections.
	Closed, KeepAlive bool
}

// Cases returns the cases of the names, which must be known.
func Cases(names []string, b Budget) ([]Case, error) {
	var cases []Case
	for _, name := range names {
		c, err := b.named(name)
		if err != nil {
			return nil, err
		}
		cases = append(cases, c)
	}
	return cases, nil
}

// named makes one case. What load it has is a part of how busy the workers would be if it were spread evenly.
func (b Budget) named(name string) (Case, error) {
	c := Case{Name: name}
	law, busy := "constant:40ms", 0.5
	switch name {
	case CaseEven:
		c.Title = "even load"
		law = "exponential:40ms"
	case CaseFew:
		c.Title = "as many kept connections as workers"
		c.Shape.Conns = b.Workers
	case CaseHeavy:
		c.Title = "heavy-tailed service times"
		law, busy = "pareto:5ms,1s,1.2", 0.4
	case CaseSlow:
		c.Title = "one worker is ten times as slow"
		c.Slow, busy = 10, 0.4
	case CaseStuck:
		c.Title = "one worker gets stuck (SIGSTOP)"
		c.Event, busy = Stick, 0.4
	case CaseKilled:
		c.Title = "one worker is killed"
		c.Event = Kill
	case CaseRestart:
		c.Title = "all workers are restarted under load"
		c.Event = Restart
	case CaseScale:
		c.Title = "connections that last, and twice the workers in the midst"
		c.Event, busy = ScaleOut, 0.3
		c.Shape.Conns = 8 * b.Workers
		c.Shape.Late = c.Shape.Conns / 2
	case CaseWeights:
		c.Title = "weights 90:10 for the two halves of the workers"
		c.Weights, busy = [2]int{90, 10}, 0.3
	default:
		return Case{}, fmt.Errorf("there is no case %q; there are %s", name, strings.Join(CaseNames(), ", "))
	}
	if b.Law != "" {
		law = b.Law
	}
	parsed, err := load.ParseLaw(law)
	if err != nil {
		return Case{}, err
	}
	if parsed.Mean() <= 0 && b.Rate == 0 {
		return Case{}, fmt.Errorf("law %q has the mean 0, of which no rate follows: name one", law)
	}
	c.Law, c.Shape.Law, c.Shape.Duration = law, parsed, b.Duration
	if c.Event != NoEvent {
		c.EventAt = b.Duration / 3
	}
	if c.Event == Restart {
		c.EventAt = b.Duration / 6 // it takes a while
	}
	if c.Shape.Late > 0 {
		c.Shape.LateAt = b.Duration / 2
	}
	c.Shape.Rate = b.Rate
	if b.Rate == 0 {
		c.Shape.Rate = busy * float64(b.Workers) / parsed.Mean().Seconds()
	}
	if c.Shape.Conns > 0 {
		return c, nil
	}
	if b.Closed {
		c.Shape.Rate = 0
	}
	if b.Closed || b.KeepAlive {
		c.Shape.Conns, c.Shape.NewConn = 2*b.Workers, !b.KeepAlive
	}
	return c, nil
}
