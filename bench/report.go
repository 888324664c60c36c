package bench

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// ContenderInfo names a contender in a report.
type ContenderInfo struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
}

// Machine is where a report was made.
type Machine struct {
	CPU    string `json:"cpu"`
	CPUs   int    `json:"cpus"`
	Kernel string `json:"kernel"`
	Go     string `json:"go"`
}

// ReadMachine describes this machine. What it cannot find out is empty.
func ReadMachine() Machine {
	m := Machine{CPUs: runtime.NumCPU(), Go: runtime.Version()}
	var name unix.Utsname
	if unix.Uname(&name) == nil {
		m.Kernel = unix.ByteSliceToString(name.Release[:])
	}
	if b, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		m.CPU = parseCPUModel(string(b))
	}
	return m
}

func parseCPUModel(cpuinfo string) string {
	for line := range strings.Lines(cpuinfo) {
		if name, value, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(name) == "model name" {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// Report is the outcome of a comparison.
type Report struct {
	Machine Machine `json:"machine"`
	// Programs are the versions of the programs that took part.
	Programs   []string        `json:"programs"`
	Started    time.Time       `json:"started"`
	Rounds     int             `json:"rounds"`
	Duration   time.Duration   `json:"duration_ns"`
	Contenders []ContenderInfo `json:"contenders"`
	Cases      []Case          `json:"cases"`
	// Samples are in the order in which they were measured.
	Samples []Sample `json:"samples"`
}

// Series returns one number of each round of a contender under a case, with NaN for a round whose sample is
// missing or invalid.
func (r *Report) Series(kase, contender string, value func(Sample) float64) []float64 {
	series := make([]float64, r.Rounds)
	for i := range series {
		series[i] = math.NaN()
	}
	for _, s := range r.Samples {
		if s.Case == kase && s.Contender == contender && s.Invalid == "" {
			series[s.Round] = value(s)
		}
	}
	return series
}

// BestRival returns, for each round, the least number of all rivals under a case; NaN where no rival has a
// valid one.
func (r *Report) BestRival(kase string, value func(Sample) float64) []float64 {
	var all [][]float64
	for _, contender := range r.Contenders {
		if contender.Kind == KindRival {
			all = append(all, r.Series(kase, contender.Name, value))
		}
	}
	best := Least(all...)
	for len(best) < r.Rounds {
		best = append(best, math.NaN())
	}
	return best
}

// Ratio returns a contender's number relative to the best rival's: taken round by round, then summarized.
func (r *Report) Ratio(kase, contender string, value func(Sample) float64) Summary {
	return Summarize(Ratios(r.Series(kase, contender, value), r.BestRival(kase, value)))
}

// Invalid counts the samples that do not count.
func (r *Report) Invalid() int {
	n := 0
	for _, s := range r.Samples {
		if s.Invalid != "" {
			n++
		}
	}
	return n
}

// Cost returns the number that lb is held to under the case: CPU per request, or memory of an idle session.
func (c Case) Cost(s Sample) float64 {
	if c.Idle {
		return s.IdleMemory
	}
	return s.CPU
}

// Verdict is how a build of lb did against one goal.
type Verdict struct {
	Case      string
	Contender string
	Measure   string
	Limit     float64
	// Least means that Limit is the lowest number that meets the goal; otherwise it is the highest.
	Least bool
	// Got is judged by its median; it is NaN throughout if there is nothing to judge.
	Got Summary
	// Digits is how many digits after the point Got and Limit deserve.
	Digits int
}

// Met reports whether the goal is met.
func (v Verdict) Met() bool {
	if v.Least {
		return v.Got.Median >= v.Limit
	}
	return v.Got.Median <= v.Limit
}

// Goal returns the limit with its direction, such as "<= 0.85".
func (v Verdict) Goal() string {
	direction := "<= "
	if v.Least {
		direction = ">= "
	}
	return direction + Number(v.Limit, v.Digits)
}

// String returns "met", "missed", or "not measured".
func (v Verdict) String() string {
	switch {
	case math.IsNaN(v.Got.Median):
		return "not measured"
	case v.Met():
		return "met"
	}
	return "missed"
}

// Verdicts holds every build of lb to every goal of the cases that were run.
func (r *Report) Verdicts() []Verdict {
	var verdicts []Verdict
	for _, kase := range r.Cases {
		for _, contender := range r.Contenders {
			goal := kase.Goal
			switch contender.Kind {
			case KindLB:
			case KindHandoff:
				goal = kase.HandoffGoal
				verdicts = append(verdicts, r.handoffVerdicts(kase, contender.Name)...)
			default:
				continue
			}
			if goal > 0 {
				verdicts = append(verdicts, Verdict{
					Case: kase.Name, Contender: contender.Name, Measure: "CPU per request, of the best rival's",
					Limit: goal, Got: r.Ratio(kase.Name, contender.Name, kase.Cost), Digits: 2,
				})
			}
			if kase.Idle {
				memory := Summarize(r.Series(kase.Name, contender.Name, kase.Cost))
				fds := Summarize(r.Series(kase.Name, contender.Name, func(s Sample) float64 { return math.Round(s.IdleFDs*100) / 100 }))
				verdicts = append(verdicts,
					Verdict{Case: kase.Name, Contender: contender.Name, Measure: "bytes of user memory per session", Limit: IdleMemoryGoal, Got: memory},
					Verdict{Case: kase.Name, Contender: contender.Name, Measure: "file descriptors per session", Limit: IdleFDsGoal, Got: fds, Digits: 2})
			}
		}
	}
	return verdicts
}

// handoffVerdicts holds lb that hands sockets over to the goals that only it has.
func (r *Report) handoffVerdicts(kase Case, contender string) (verdicts []Verdict) {
	if kase.HandoffCPU > 0 {
		verdicts = append(verdicts, Verdict{
			Case: kase.Name, Contender: contender, Measure: "CPU per request, µs",
			Limit: kase.HandoffCPU, Got: Summarize(r.Series(kase.Name, contender, kase.Cost)), Digits: 2,
		})
	}
	if kase.HandoffRate > 0 {
		verdicts = append(verdicts, Verdict{
			Case: kase.Name, Contender: contender, Measure: "requests/s, of those without a balancer",
			Limit: kase.HandoffRate, Least: true, Got: r.OfReference(kase.Name, contender), Digits: 2,
		})
	}
	return verdicts
}

// OfReference returns a contender's requests per second relative to the reference's: taken round by round,
// then summarized.
func (r *Report) OfReference(kase, contender string) Summary {
	rate := func(s Sample) float64 { return s.Rate }
	for _, reference := range r.Contenders {
		if reference.Kind == KindReference {
			return Summarize(Ratios(r.Series(kase, contender, rate), r.Series(kase, reference.Name, rate)))
		}
	}
	return Summarize(nil)
}

// WriteJSON writes the report with every sample.
func (r *Report) WriteJSON(w io.Writer) error {
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	return out.Encode(r)
}

// WriteText writes the report for readers: a table per case, then lb against its goals.
func (r *Report) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "%d × %s, Linux %s, %s\n", r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, strings.Join(r.Programs, ", "))
	fmt.Fprintf(w, "%d rounds, %v of load each, contenders interleaved; medians, and least..greatest\n", r.Rounds, r.Duration)
	for _, kase := range r.Cases {
		fmt.Fprintf(w, "\n%s: %s, %d connections\n", kase.Name, kase.Title, kase.Conns)
		table := r.loadTable(kase)
		if kase.Idle {
			table = r.idleTable(kase)
		}
		if err := table.Write(w); err != nil {
			return err
		}
	}
	fmt.Fprint(w, "\nCPU µs and switches are the balancer's alone, per request. \"of best\" is relative to the best rival in the same\n",
		"round (CPU per request; memory when idle), \"of direct\" to requests/s without a balancer. \"machine\" is the CPU time of the whole\n",
		"machine per request: balancer, backends, load and all else. \"others\" is CPU used by neither contender, backends nor load: interrupts and\n",
		"programs that disturbed; above 10% the round is doubtful. User memory is Pss_Anon + Pss_Shmem + SwapPss.\n")
	if err := r.writeBuilds(w); err != nil {
		return err
	}
	return r.writeVerdicts(w)
}

// median returns the median of one number of a contender under a case.
func (r *Report) median(kase Case, contender ContenderInfo, value func(Sample) float64) float64 {
	return Summarize(r.Series(kase.Name, contender.Name, value)).Median
}

func (r *Report) loadTable(kase Case) *Table {
	t := &Table{Header: []string{"contender", "requests/s", "p50 ms", "p99 ms", "CPU µs", "least..greatest", "user", "switches", "backends µs", "machine µs", "others", "of best", "least..greatest", "of direct"}}
	for _, contender := range r.Contenders {
		m := func(value func(Sample) float64) float64 { return r.median(kase, contender, value) }
		ms := func(d time.Duration) float64 { return microseconds(d) / 1000 }
		cpu := Summarize(r.Series(kase.Name, contender.Name, kase.Cost))
		ratio := r.Ratio(kase.Name, contender.Name, kase.Cost)
		cells := []string{
			contender.Name,
			Number(m(func(s Sample) float64 { return s.Rate }), 0),
			Number(m(func(s Sample) float64 { return ms(s.P50) }), 2),
			Number(m(func(s Sample) float64 { return ms(s.P99) }), 2),
			Number(cpu.Median, 1), cpu.spread(1),
			Percent(m(func(s Sample) float64 { return s.UserShare })),
			Number(m(func(s Sample) float64 { return s.Switches }), 2),
			Number(m(func(s Sample) float64 { return s.BackendCPU }), 1),
			Number(m(func(s Sample) float64 { return s.MachineCPU }), 1),
			Percent(m(func(s Sample) float64 { return s.Others })),
			Number(ratio.Median, 2), ratio.spread(2),
			Number(r.OfReference(kase.Name, contender.Name).Median, 2),
		}
		if contender.Kind == KindReference {
			for _, i := range []int{4, 5, 6, 7, 11, 12} {
				cells[i] = "-"
			}
		}
		t.AddNoted(r.note(kase, contender), cells...)
	}
	return t
}

func (r *Report) idleTable(kase Case) *Table {
	t := &Table{Header: []string{"contender", "bytes/session", "least..greatest", "fds/session", "CPU µs/s", "of best", "least..greatest"}}
	for _, contender := range r.Contenders {
		if contender.Kind == KindReference {
			continue
		}
		memory := Summarize(r.Series(kase.Name, contender.Name, kase.Cost))
		ratio := r.Ratio(kase.Name, contender.Name, kase.Cost)
		t.AddNoted(r.note(kase, contender),
			contender.Name,
			Number(memory.Median, 0), memory.spread(0),
			Number(r.median(kase, contender, func(s Sample) float64 { return s.IdleFDs }), 2),
			Number(r.median(kase, contender, func(s Sample) float64 { return s.IdleCPU }), 0),
			Number(ratio.Median, 2), ratio.spread(2))
	}
	return t
}

// note says how many rounds of a contender were invalid, and why the first was.
func (r *Report) note(kase Case, contender ContenderInfo) string {
	n, why := 0, ""
	for _, s := range r.Samples {
		if s.Case == kase.Name && s.Contender == contender.Name && s.Invalid != "" {
			if n++; n == 1 {
				why = strings.Join(strings.Fields(s.Invalid), " ")
			}
		}
	}
	if n == 0 {
		return ""
	}
	return fmt.Sprintf("INVALID in %d of %d rounds: %s", n, r.Rounds, why)
}

// writeBuilds compares further builds of lb with the first one, if there are any.
func (r *Report) writeBuilds(w io.Writer) error {
	var builds []string
	for _, contender := range r.Contenders {
		if contender.Kind == KindLB || contender.Kind == KindPlain {
			builds = append(builds, contender.Name)
		}
	}
	if len(builds) < 2 {
		return nil
	}
	fmt.Fprintf(w, "\nbuilds of lb, relative to %s in the same round\n", builds[0])
	t := &Table{Header: []string{"case", "build", "ratio", "least..greatest"}, Left: 2}
	for _, kase := range r.Cases {
		base := r.Series(kase.Name, builds[0], kase.Cost)
		for _, build := range builds[1:] {
			s := Summarize(Ratios(r.Series(kase.Name, build, kase.Cost), base))
			t.Add(kase.Name, build, Number(s.Median, 3), s.spread(3))
		}
	}
	return t.Write(w)
}

func (r *Report) writeVerdicts(w io.Writer) error {
	verdicts := r.Verdicts()
	if len(verdicts) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nlb against its goals")
	t := &Table{Header: []string{"case", "build", "measure", "goal", "got", "least..greatest", "verdict"}, Left: 3}
	for _, v := range verdicts {
		t.Add(v.Case, v.Contender, v.Measure, v.Goal(), Number(v.Got.Median, v.Digits), v.Got.spread(v.Digits), v.String())
	}
	return t.Write(w)
}

// Percent formats a share of 1, or as "-" if there is no number.
func Percent(v float64) string {
	if math.IsNaN(v) {
		return "-"
	}
	return Number(v*100, 0) + "%"
}
