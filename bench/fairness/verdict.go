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
	// Goals are what lb is to reach, in each of the ways to run it that took part.
	Goals []Goal `json:"goals,omitempty"`
}

// Goal is something that lb is to reach.
type Goal struct {
	Text string `json:"text"`
	// Outcome is "met", "missed", or "not judged" where the figures do not count.
	Outcome string `json:"outcome"`
}

// say adds a sentence.
func (v *Verdict) say(format string, args ...any) {
	v.Texts = append(v.Texts, fmt.Sprintf(format, args...))
}

// hold adds a goal and whether it is met.
func (v *Verdict) hold(text string, judged, met bool) {
	outcome := "not judged"
	switch {
	case judged && met:
		outcome = "met"
	case judged:
		outcome = "missed"
	}
	v.Goals = append(v.Goals, Goal{text, outcome})
}

// judge makes the verdict of one case.
func (r *Report) judge(c *Case) Verdict {
	v := Verdict{Case: c.Name}
	var subjects []*Row
	for _, row := range r.rowsOf(c) {
		if kindOf(row.Contender).subject && row.Broken == "" {
			subjects = append(subjects, row)
		}
	}
	if len(subjects) == 0 {
		v.say("lb was not measured, so there is nothing to say about it.")
		return v
	}
	var late []string
	for _, row := range r.rowsOf(c) {
		switch {
		case row.Broken != "":
			v.say("%s could not be measured: %s", row.title(), oneLine(row.Broken))
		case row.Invalid != "":
			late = append(late, row.title())
		}
	}
	if len(late) > 0 {
		v.say("NOT VALID for %s: the load generator could not keep its schedule. Let the machine be quieter, or lower --rate.", strings.Join(late, ", "))
	}
	reuse := r.Row(c.Name, ContenderReusePort)
	if reuse != nil && reuse.Broken != "" {
		reuse = nil
	}
	switch c.Name {
	case CaseStuck:
		r.judgeStuck(&v, c, subjects, reuse)
	case CaseKilled, CaseRestart:
		r.judgeLosses(&v, c)
	case CaseScale:
		v.say("After the scale-up the busiest worker has %s.", r.list(c, func(row *Row) string {
			return fmt.Sprintf("%.2f times its part with %s", row.MaxMean, row.title())
		}))
	case CaseWeights:
		v.say("The half with the weight 90 got %s.", r.list(c, func(row *Row) string {
			return fmt.Sprintf("%.1f %% with %s", 100*firstHalf(row.Shares), row.title())
		}))
		if reuse == nil {
			v.say("SO_REUSEPORT and a shared listener have no weights.")
		}
	}
	for _, subject := range subjects {
		r.judgeTail(&v, c, subject, reuse)
	}
	r.judgeCost(&v, c)
	return v
}

// title returns the contender's name in a sentence.
func (r *Row) title() string { return kindOf(r.Contender).title }

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

// judgeStuck says for whom requests failed or hung, and for how long.
func (r *Report) judgeStuck(v *Verdict, c *Case, subjects []*Row, reuse *Row) {
	v.say("A worker is stuck from the stop on. Of the requests that began more than %s later, so many failed or hung:", seconds(r.Detection))
	for _, row := range r.rowsOf(c) {
		if row.Broken != "" || row.Invalid != "" && !kindOf(row.Contender).subject {
			continue
		}
		last := "none that began after the stop did"
		if row.LastSent > 0 {
			last = fmt.Sprintf("the last of all began %s after the stop", seconds(row.LastSent))
		}
		v.say("%d of %d (%s) with %s; %s.", row.After, row.AfterOf, percent(row.After, row.AfterOf), row.title(), last)
	}
	for _, row := range subjects {
		// That the load generator was late changes no count.
		if row.Contender != ContenderLB {
			v.hold("no request that begins after the stop fails or hangs with "+row.title(), row.AfterOf > 0, row.LastSent == 0)
		} else if reuse != nil {
			v.hold("no request fails or hangs with lb once the stuck worker is found", row.AfterOf > 0, row.After == 0)
		}
	}
}

// judgeLosses says how many requests were lost.
func (r *Report) judgeLosses(v *Verdict, c *Case) {
	var parts []string
	for _, row := range r.rowsOf(c) {
		if row.Broken == "" {
			parts = append(parts, fmt.Sprintf("%d of %d with %s", row.Failures(), row.Requests, row.title()))
		}
	}
	v.say("Requests lost: %s.", strings.Join(parts, ", "))
	for _, row := range r.rowsOf(c) {
		for _, cell := range row.cells {
			if cell.EventLate {
				v.say("With %s the restart was not over when the load ended.", row.title())
				break
			}
		}
	}
}

// judgeTail compares the 99th percentile of one way to run lb with the others'.
func (r *Report) judgeTail(v *Verdict, c *Case, subject, reuse *Row) {
	goal := reuse != nil && (c.Name == CaseHeavy || c.Name == CaseFew)
	half := "p99 is at most half of SO_REUSEPORT's with " + subject.title()
	comparable := subject.counts() && reuse != nil && reuse.counts()
	if goal && !comparable {
		v.hold(half, false, false)
	}
	if !subject.counts() {
		return
	}
	if comparable {
		ratio := p99Ratio(subject, reuse)
		v.say("p99 is %s with %s and %s with SO_REUSEPORT: %.2f of it.",
			r.millis(subject.Latency.P99), subject.title(), r.millis(reuse.Latency.P99), ratio)
		if goal {
			v.hold(half, true, ratio <= 0.5)
		}
	}
	for _, row := range r.rowsOf(c) {
		if kindOf(row.Contender).subject || !row.counts() {
			continue
		}
		// A p99 of some hundred requests is hardly known better than to a fifth.
		if ratio := p99Ratio(row, subject); ratio < 0.8 {
			v.say("%s loses against %s, whose p99 is %s: %.2f of that.", subject.title(), row.title(), r.millis(row.Latency.P99), ratio)
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

// judgeCost says what the way through a balancer costs, and what it costs together with the workers.
func (r *Report) judgeCost(v *Verdict, c *Case) {
	var hop, together []string
	for _, row := range r.rowsOf(c) {
		if row.Broken != "" {
			continue
		}
		if row.BalancerCPU > 0 {
			hop = append(hop, fmt.Sprintf("%s %.0f µs", row.title(), row.BalancerCPU))
		} else if row.Contender == ContenderReusePort {
			hop = append(hop, row.title()+" nothing")
		}
		if row.WorkerCPU > 0 {
			together = append(together, fmt.Sprintf("%s %.0f µs", row.title(), row.BalancerCPU+row.WorkerCPU))
		}
	}
	v.say("The hop costs CPU, a request: %s.", strings.Join(hop, ", "))
	if len(together) > 1 {
		v.say("With the workers' CPU it is: %s.", strings.Join(together, ", "))
	}
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
