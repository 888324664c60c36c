package fairness

import (
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/273ebdf9/lb/bench/load"
)

const millisecond = time.Millisecond

// scene is a contender with two workers in a case of 100 ms.
func scene(event Event) *contender {
	c := &Case{Name: "x", Event: event}
	c.Shape.Duration = 100 * millisecond
	return &contender{stage: &stage{options: &Options{Workers: 2}, kase: c}}
}

// answer is a request that worker n served.
func answer(n int, began, begin, end time.Duration) load.Outcome {
	return load.Outcome{Intended: began, Began: began, Begin: begin, End: end, Done: end, Worker: n, PID: 1}
}

func TestIdleWhileQueued(t *testing.T) {
	f := func(want float64, event happening, p *contender, outcomes ...load.Outcome) {
		t.Helper()
		got, ok := idleWhileQueued(p, outcomes, event)
		if !ok || math.Abs(got-want) > 1e-9 {
			t.Errorf("got %v, %v; want %v", got, ok, want)
		}
	}
	// Both on worker 0: the second one waits, but for its transit, while worker 1 is idle.
	f(0.38, happening{}, scene(NoEvent), answer(0, 0, 0, 40*millisecond), answer(0, 0, 40*millisecond, 80*millisecond))
	// Each has a worker.
	f(0, happening{}, scene(NoEvent), answer(0, 0, 0, 40*millisecond), answer(1, 0, 0, 40*millisecond))
	// Three at once: the third waits while both work.
	f(0, happening{}, scene(NoEvent), answer(0, 0, 0, 40*millisecond), answer(1, 0, 0, 40*millisecond), answer(1, 0, 40*millisecond, 50*millisecond))
	// Worker 1 is stuck: nobody is idle.
	f(0, happening{at: 0}, scene(Stick), answer(0, 0, 0, 40*millisecond), answer(0, 0, 40*millisecond, 80*millisecond))
	if _, ok := idleWhileQueued(scene(NoEvent), []load.Outcome{{Worker: -1, Done: millisecond}}, happening{}); ok {
		t.Error("got a figure of answers that do not tell when they were worked on; want none")
	}
}

func TestCell_TellsWhatWasSentToTheDead(t *testing.T) {
	p := scene(Stick)
	p.kase.Shape.Duration = 4 * time.Second
	hung := func(at time.Duration) load.Outcome {
		return load.Outcome{Intended: at, Began: at, Done: at + time.Second, Failure: load.Hung, Worker: -1}
	}
	var c Cell
	c.fill(p, &load.Result{Lag: hdrhistogram.New(1, 1000, 3), Outcomes: []load.Outcome{
		hung(900 * millisecond), // before the stop: it had it already
		hung(1200 * millisecond),
		answer(0, 1300*millisecond, 1300*millisecond, 1301*millisecond),
		hung(1000*millisecond + Detection + 500*millisecond),
		answer(0, 3*time.Second, 3*time.Second, 3001*millisecond),
	}}, happening{at: time.Second})
	if c.LastSent != Detection+500*millisecond || c.After != 1 || c.AfterOf != 2 || c.Failed[load.Hung] != 3 || c.Answered != 2 {
		t.Errorf("got %+v; want the last one late, and 1 of 2 after the detection", c)
	}
	if c.Latency.Max < 990*millisecond {
		t.Errorf("got the maximum %v; want what hung in it", c.Latency.Max)
	}
	if c.Shares[0] != 1 || c.Shares[1] != 0 {
		t.Errorf("got the shares %v; want all of worker 0", c.Shares)
	}
}

func TestOptions_HandOffFollowsTheWorker(t *testing.T) {
	f := func(o Options, mode string, playable ...string) {
		t.Helper()
		if got := o.handoff(); got != mode {
			t.Errorf("%q: got the mode %q; want %q", o.Command, got, mode)
		}
		var got []string
		for _, name := range []string{ContenderHandoff, ContenderHandoffOne, ContenderNodeCluster} {
			if o.unable(name, &Case{}) == "" {
				got = append(got, name)
			}
		}
		if !slices.Equal(got, playable) {
			t.Errorf("%q: got %q that can be compared; want %q", o.Command, got, playable)
		}
	}
	both := []string{ContenderHandoff, ContenderHandoffOne}
	f(Options{}, "lb", both...)
	f(Options{Command: []string{"/usr/bin/node", "app.js", "{port}"}}, "node", append(both, ContenderNodeCluster)...)
	f(Options{Command: []string{"./app"}}, "")
	f(Options{Command: []string{"./app"}, Handoff: "lb"}, "lb", both...)
	f(Options{Command: []string{"./app", "{socket}"}, Handoff: "lb"}, "lb")
}

func TestOptions_ComparesWhatMakesSense(t *testing.T) {
	f := func(o Options, name string, want bool) {
		t.Helper()
		if got := o.Compares(name); got != want {
			t.Errorf("%s: got %v; want %v", name, got, want)
		}
	}
	f(Options{}, ContenderHandoff, true)
	f(Options{}, ContenderHandoffOne, false) // it is the same but for one setting
	f(Options{Contenders: []string{ContenderHandoffOne}}, ContenderHandoffOne, true)
	f(Options{}, ContenderNodeCluster, false)
	f(Options{Command: []string{"node"}}, ContenderNodeCluster, true)
	f(Options{}, ContenderTarget, false)
}

// row is a row with one cell.
func cellOf(contender string, p99 time.Duration, after, of int) *Cell {
	h := newHistogram()
	h.RecordValue(p99.Microseconds())
	return &Cell{
		Contender: contender, Requests: 10, Answered: 10, latencies: h, Latency: latencyOf(h), After: after, AfterOf: of, BalancerCPU: 10,
	}
}

// verdict judges a case of these cells.
func verdict(kase string, cells ...*Cell) Verdict {
	r := &Report{Cases: []Case{{Name: kase}}, Timeout: time.Second, Detection: Detection}
	for _, c := range cells {
		c.Case = kase
		r.Cells = append(r.Cells, c)
		r.Contenders = append(r.Contenders, ContenderInfo{Name: c.Contender})
	}
	r.conclude()
	return r.Verdicts[0]
}

func TestVerdict_GoalsAndLosses(t *testing.T) {
	f := func(v Verdict, outcome string, wants ...string) {
		t.Helper()
		text := strings.Join(v.Texts, "\n")
		var outcomes []string
		for _, goal := range v.Goals {
			outcomes = append(outcomes, goal.Outcome)
		}
		if got := strings.Join(outcomes, ", "); got != outcome {
			t.Errorf("got %+v; want %q", v.Goals, outcome)
		}
		for _, want := range wants {
			if !strings.Contains(text, want) {
				t.Errorf("no %q in:\n%s", want, text)
			}
		}
	}
	f(verdict(CaseHeavy, cellOf(ContenderLB, 40*millisecond, 0, 0), cellOf(ContenderReusePort, 100*millisecond, 0, 0)), "met", "0.40 of it")
	f(verdict(CaseHeavy, cellOf(ContenderLB, 60*millisecond, 0, 0), cellOf(ContenderReusePort, 100*millisecond, 0, 0), cellOf(ContenderNginx, 30*millisecond, 0, 0)),
		"missed", "lb loses against nginx, whose p99 is 30.0 ms: 0.50 of that.", "lb 10 µs, SO_REUSEPORT 10 µs, nginx 10 µs")
	f(verdict(CaseStuck, cellOf(ContenderLB, 40*millisecond, 0, 50), cellOf(ContenderReusePort, 2*time.Second, 5, 50)), "met", "0 of 50", "5 of 50 (10.0 %) with SO_REUSEPORT", ">1000 ms")
	f(verdict(CaseStuck, cellOf(ContenderLB, 40*millisecond, 1, 50), cellOf(ContenderReusePort, 2*time.Second, 5, 50)), "missed")
	hasty := cellOf(ContenderHandoff, 40*millisecond, 0, 50)
	hasty.LastSent = 200 * millisecond
	f(verdict(CaseStuck, cellOf(ContenderHandoff, 40*millisecond, 0, 50)), "met", "0 of 50 (0.0 %) with lb's hand-off; none that began after")
	f(verdict(CaseStuck, hasty), "missed", "the last of all began 0.20 s after the stop")
	f(verdict(CaseHeavy, cellOf(ContenderLB, 60*millisecond, 0, 0), cellOf(ContenderHandoff, 40*millisecond, 0, 0), cellOf(ContenderReusePort, 100*millisecond, 0, 0)),
		"missed, met", "0.60 of it", "p99 is 40.0 ms with lb's hand-off")
	late := cellOf(ContenderLB, 40*millisecond, 0, 0)
	late.Invalid = "could not keep the schedule"
	v := verdict(CaseFew, late, cellOf(ContenderReusePort, 100*millisecond, 0, 0))
	f(v, "not judged", "NOT VALID for lb")
	if text := strings.Join(v.Texts, "\n"); strings.Contains(text, "p99 is") {
		t.Errorf("got %s; want no comparison of figures that do not count", text)
	}
	broken := &Cell{Contender: ContenderLB, Broken: "it does not start"}
	f(verdict(CaseEven, broken, cellOf(ContenderReusePort, millisecond, 0, 0)), "", "lb was not measured")
}

func TestOptions_ValidateSaysWhatIsWrong(t *testing.T) {
	f := func(change func(*Options), want string) {
		t.Helper()
		o := tiny(t, CaseEven)
		change(&o)
		if err := o.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want %q", err, want)
		}
	}
	f(func(o *Options) { o.Workers = 1 }, "workers: 1 is not within 2..64")
	f(func(o *Options) { o.Contenders = []string{"envoy"} }, `there is no "envoy"; there are reuseport`)
	f(func(o *Options) { o.Contenders = []string{ContenderTarget} }, "--target ADDR")
	f(func(o *Options) { o.Timeout = 0 }, "timeout: 0s")
	f(func(o *Options) { o.Path = "work" }, "path:")
	f(func(o *Options) { o.Command = []string{"{socket}", "{port}"} }, "cannot both be used")
	f(func(o *Options) { o.Handoff = "node" }, "the flag is for --worker")
	f(func(o *Options) { o.Command, o.Handoff = []string{"app"}, "go" }, `"go" is not lb or node`)
	o := tiny(t, CaseWeights, CaseEven)
	o.Contenders = []string{ContenderReusePort, ContenderNginx}
	if err := o.Unplayable(); err != nil {
		t.Errorf("even: got %v; want something to measure", err)
	}
	o.Cases = o.Cases[:1]
	if err := o.Unplayable(); err == nil || !strings.Contains(err.Error(), "reuseport in weights: it knows no weights; nginx in weights: it, or its stream module, is not installed") {
		t.Errorf("weights: got %v; want why each contender cannot", err)
	}
	if _, err := Cases([]string{"tea"}, Budget{Workers: 2, Duration: time.Second}); err == nil || !strings.Contains(err.Error(), `no case "tea"; there are even, few`) {
		t.Errorf("got %v; want the known cases", err)
	}
}
