package fairness

import (
	"fmt"
	"math"
	"strings"
	"time"

	"github.com/273ebdf9/lb/bench"
)

// Verdict says in plain words how lb did in a case, also where it loses.
type Verdict struct {
	Case  string   `json:"case"`
	Texts []string `json:"texts"`
	// Goal is what lb is to reach against SO_REUSEPORT; "" where there is none, or one of the two did not
	// take part.
	Goal string `json:"goal,omitempty"`
	// Outcome is "met", "missed", or "not judged" where the figures do not count.
	Outcome string `json:"outcome,omitempty"`
}

// hold notes a goal and whether it is met.
func (v *Verdict) hold(goal string, judged, met bool) {
	v.Goal, v.Outcome = goal, "not judged"
	switch {
	case judged && met:
		v.Outcome = "met"
	case judged:
		v.Outcome = "missed"
	}
}

// titles are the contenders' names in sentences.
var titles = map[string]string{
	ContenderReusePort: "SO_REUSEPORT", ContenderPrefork: "a shared listener", ContenderLB: "lb", ContenderHAProxy: "haproxy", ContenderNginx: "nginx",
	ContenderTarget: "the address that was named",
}

// judge makes the verdict of one case.
func (r *Report) judge(c *Case) Verdict {
	v := Verdict{Case: c.Name}
	say := func(format string, args ...any) { v.Texts = append(v.Texts, fmt.Sprintf(format, args...)) }
	lb := r.Row(c.Name, ContenderLB)
	if lb == nil || lb.Broken != "" {
		say("lb was not measured, so there is nothing to say about it.")
		return v
	}
	var late []string
	for _, row := range r.rowsOf(c) {
		switch {
		case row.Broken != "":
			say("%s could not be measured: %s", titles[row.Contender], oneLine(row.Broken))
		case row.Invalid != "":
			late = append(late, titles[row.Contender])
		}
	}
	if len(late) > 0 {
		say("NOT VALID for %s: the load generator could not keep its schedule. Let the machine be quieter, or lower --rate.", strings.Join(late, ", "))
	}
	reuse := r.Row(c.Name, ContenderReusePort)
	if reuse != nil && reuse.Broken != "" {
		reuse = nil
	}
	switch c.Name {
	case CaseStuck:
		r.judgeStuck(&v, lb, reuse, say)
	case CaseKilled, CaseRestart:
		r.judgeLosses(c, say)
	case CaseScale:
		say("After the scale-up the busiest worker has %s.", r.list(c, func(row *Row) string {
			return fmt.Sprintf("%.2f times its part with %s", row.MaxMean, titles[row.Contender])
		}))
	case CaseWeights:
		say("The half with the weight 90 got %s.", r.list(c, func(row *Row) string {
			return fmt.Sprintf("%.1f %% with %s", 100*firstHalf(row.Shares), titles[row.Contender])
		}))
		if reuse == nil {
			say("SO_REUSEPORT and a shared listener have no weights.")
		}
	}
	r.judgeTail(&v, c, lb, reuse, say)
	r.judgeCost(c, lb, say)
	return v
}

func oneLine(s string) string { return strings.Join(strings.Fields(s), " ") }

// rowsOf are the rows of a case, in the order of the contenders.
func (r *Report) rowsOf(c *Case) (rows []*Row) {
	for _, row := range r.Rows {
		if row.Case == c.Name {
			rows = append(rows, row)
		}
	}
	return rows
}

// list joins what is to say of each contender whose figures count.
func (r *Report) list(c *Case, text func(*Row) string) string {
	var parts []string
	for _, row := range r.rowsOf(c) {
		if len(row.Shares) > 0 {
			parts = append(parts, text(row))
		}
	}
	if len(parts) == 0 {
		return "an unknown part, for the answers do not tell which worker gave them"
	}
	return strings.Join(parts, ", ")
}

func firstHalf(shares []float64) (sum float64) {
	for i, s := range shares {
		if i*2/len(shares) == 0 {
			sum += s
		}
	}
	return sum
}

func (r *Report) judgeStuck(v *Verdict, lb, reuse *Row, say func(string, ...any)) {
	line := func(row *Row) string {
		if row.LastSent == 0 {
			return "none was sent to it"
		}
		return fmt.Sprintf("the last one was sent to it %s after it stopped", seconds(row.LastSent))
	}
	say("With lb %d of %d requests that began more than %s after the stop failed or hung; %s.", lb.After, lb.AfterOf, seconds(r.Detection), line(lb))
	if reuse != nil {
		say("With SO_REUSEPORT it is %d of %d (%s), for as long as the worker is stuck.", reuse.After, reuse.AfterOf, percent(reuse.After, reuse.AfterOf))
		// That the load generator was late changes no count.
		v.hold("no request fails or hangs with lb once the stuck worker is found", lb.AfterOf > 0, lb.After == 0)
	}
	for _, name := range []string{ContenderPrefork, ContenderHAProxy, ContenderNginx} {
		if row := r.Row(CaseStuck, name); row != nil && row.counts() {
			say("With %s it is %d of %d (%s); %s.", titles[name], row.After, row.AfterOf, percent(row.After, row.AfterOf), line(row))
		}
	}
}

func (r *Report) judgeLosses(c *Case, say func(string, ...any)) {
	var parts []string
	for _, row := range r.rowsOf(c) {
		if row.Broken == "" {
			parts = append(parts, fmt.Sprintf("%d of %d with %s", row.Failures(), row.Requests, titles[row.Contender]))
		}
	}
	say("Requests lost: %s.", strings.Join(parts, ", "))
	for _, row := range r.rowsOf(c) {
		for _, cell := range row.cells {
			if cell.EventLate {
				say("With %s the restart was not over when the load ended.", titles[row.Contender])
				break
			}
		}
	}
}

// judgeTail compares the 99th percentiles.
func (r *Report) judgeTail(v *Verdict, c *Case, lb, reuse *Row, say func(string, ...any)) {
	goal := reuse != nil && (c.Name == CaseHeavy || c.Name == CaseFew)
	const half = "p99 is at most half of SO_REUSEPORT's"
	if goal {
		v.hold(half, false, false)
	}
	if !lb.counts() {
		return
	}
	if reuse != nil && reuse.counts() {
		ratio := p99Ratio(lb, reuse)
		say("p99 is %s with lb and %s with SO_REUSEPORT: %.2f of it.", r.millis(lb.Latency.P99), r.millis(reuse.Latency.P99), ratio)
		if goal {
			v.hold(half, true, ratio <= 0.5)
		}
	}
	for _, row := range r.rowsOf(c) {
		if row.Contender == ContenderLB || !row.counts() {
			continue
		}
		// A p99 of some hundred requests is hardly known better than to a fifth.
		if ratio := p99Ratio(row, lb); ratio < 0.8 {
			say("lb loses against %s, whose p99 is %s: %.2f of lb's.", titles[row.Contender], r.millis(row.Latency.P99), ratio)
		}
	}
}

// p99Ratio is the median over the rounds of one p99 against the other's.
func p99Ratio(a, b *Row) float64 {
	series := func(row *Row) (values []float64) {
		for _, c := range row.cells {
			if c.counts() {
				for len(values) < c.Round {
					values = append(values, math.NaN())
				}
				values = append(values, float64(c.Latency.P99))
			}
		}
		return values
	}
	return bench.Summarize(bench.Ratios(series(a), series(b))).Median
}

// judgeCost says what the way through a balancer costs.
func (r *Report) judgeCost(c *Case, lb *Row, say func(string, ...any)) {
	var rivals []string
	for _, name := range []string{ContenderHAProxy, ContenderNginx} {
		if row := r.Row(c.Name, name); row != nil && row.Broken == "" && row.BalancerCPU > 0 {
			rivals = append(rivals, fmt.Sprintf("%s %.0f µs", titles[name], row.BalancerCPU))
		}
	}
	also := ""
	if len(rivals) > 0 {
		also = ", " + strings.Join(rivals, ", ")
	}
	direct := ""
	if row := r.Row(c.Name, ContenderReusePort); row != nil && row.Broken == "" {
		direct = ", SO_REUSEPORT nothing"
	}
	say("The hop costs CPU, a request: lb %.0f µs%s%s.", lb.BalancerCPU, also, direct)
}

// millis formats a latency; one that reaches the time-out is at least that.
func (r *Report) millis(d time.Duration) string {
	more := ""
	if d >= r.Timeout {
		d, more = r.Timeout, ">"
	}
	digits := 1
	if d >= 100*time.Millisecond {
		digits = 0
	}
	return more + bench.Number(float64(d)/float64(time.Millisecond), digits) + " ms"
}

func seconds(d time.Duration) string {
	return bench.Number(d.Seconds(), 2) + " s"
}

func percent(n, of int) string {
	if of == 0 {
		return "-"
	}
	return bench.Number(100*float64(n)/float64(of), 1) + " %"
}
