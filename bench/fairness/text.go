package fairness

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/273ebdf9/lb/bench"
	"github.com/273ebdf9/lb/bench/load"
)

// WriteText writes the report for a terminal: a table and a verdict for each case.
func (r *Report) WriteText(w io.Writer) error {
	fmt.Fprintf(w, "%d × %s, Linux %s; %s\n", r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, strings.Join(r.Programs, ", "))
	how := "one after the other"
	if r.Together {
		how = "at the same time"
	}
	fmt.Fprintf(w, "%d workers each, %s, contenders %s; seed %d; took %v\n", r.Workers, bench.Count(r.Rounds, "round"), how, r.Seed, r.Took.Round(time.Second))
	figures, verdict := r.checkText()
	fmt.Fprintf(w, "load generator against a known law, %s: %s: %s\n", r.Check.Law, figures, verdict)
	if r.Repeated > 0 {
		fmt.Fprintf(w, "measurements made anew, for the load generator could not keep its schedule: %d\n", r.Repeated)
	}
	for i := range r.Cases {
		c := &r.Cases[i]
		fmt.Fprintf(w, "\n%s: %s; %s\n", c.Name, c.Title, c.load())
		if err := r.table(c).Write(w); err != nil {
			return err
		}
		for _, text := range r.absent(c) {
			fmt.Fprintf(w, "  %s\n", text)
		}
		r.writeVerdict(w, c)
	}
	_, err := fmt.Fprintf(w, "\n%s\n", r.Legend())
	return err
}

// Legend explains the columns.
func (r *Report) Legend() string {
	return fmt.Sprintf(`p50 to max: latency in ms from the moment at which the request was to begin; a hung one counts as the time-out of %v.
share: least..greatest part of the answers a worker gave. max/mean: the greatest against an equal one. idle: part of the time in
which a request waited and another worker had nothing to do. last: from the worker's stop or death to the last connection sent
to it that was not answered. CPU in µs a request. lag: how late the load generator was itself, p99 in ms; above 5, and above a fifth of p99, the row is not valid.`, r.Timeout)
}

// absent says which contenders do not play the case, and why.
func (r *Report) absent(c *Case) (texts []string) {
	for _, contender := range r.Contenders {
		if why := contender.Unable[c.Name]; why != "" {
			texts = append(texts, contender.Name+" does not take part: "+why)
		}
	}
	return texts
}

// checkText tells how the load generator did against a law that is known, and whether it is good enough.
func (r *Report) checkText() (figures, verdict string) {
	var parts []string
	for _, q := range r.Check.Quantiles {
		parts = append(parts, fmt.Sprintf("p%g %.1f ms of %.1f (%+.1f %%)", q.Q*100, ms(q.Measured), ms(q.Known), 100*q.Error()))
	}
	verdict = "good"
	switch {
	case r.Check.Behind != "":
		verdict = "NOT GOOD: it " + r.Check.Behind
	case !r.Check.OK():
		verdict = "NOT GOOD: more than 2 % off, for this machine is too busy or too slow"
	}
	return strings.Join(parts, ", "), verdict
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// load says what load a case has.
func (c *Case) load() string {
	var parts []string
	s := &c.Shape
	switch {
	case s.Rate == 0 && s.NewConn:
		parts = append(parts, fmt.Sprintf("closed loop, %d clients, new connections", s.Conns))
	case s.Rate == 0:
		parts = append(parts, fmt.Sprintf("closed loop, %d kept connections", s.Conns))
	case s.Conns > 0:
		parts = append(parts, fmt.Sprintf("%.0f requests/s over %d kept connections", s.Rate, s.Conns))
	default:
		parts = append(parts, fmt.Sprintf("%.0f requests/s, new connections", s.Rate))
	}
	parts = append(parts, c.Law, fmt.Sprintf("%.1f s", s.Duration.Seconds()))
	return strings.Join(parts, ", ")
}

// Header are the names of the columns.
func (r *Report) Header() []string {
	return []string{"contender", "requests", "share", "max/mean", "idle", "p50", "p90", "p99", "p99.9", "max", "failed", "last", "CPU balancer", "workers", "lag"}
}

func (r *Report) table(c *Case) *bench.Table {
	t := &bench.Table{Header: r.Header()}
	for _, row := range r.rowsOf(c) {
		cells, note := r.rowText(c, row)
		t.AddNoted(note, cells...)
	}
	return t
}

// rowText are the cells of a row, and what must be said of it.
func (r *Report) rowText(c *Case, row *Row) (cells []string, note string) {
	switch {
	case row.Broken != "" && len(row.cells) == 0:
		return []string{row.Contender}, "COULD NOT BE MEASURED: " + oneLine(row.Broken)
	case row.Broken != "":
		note = "COULD NOT BE MEASURED in every round: " + oneLine(row.Broken)
	case row.Invalid != "":
		note = "NOT VALID: " + row.Invalid
	}
	share, maxMean, idle, last, balancer := "-", "-", "-", "-", "-"
	if len(row.Shares) > 0 {
		share = fmt.Sprintf("%.0f..%.0f%%", 100*slices.Min(row.Shares), 100*slices.Max(row.Shares))
		maxMean = bench.Number(row.MaxMean, 2)
	}
	if row.Idle != nil {
		idle = bench.Percent(*row.Idle)
	}
	if c.Event == Stick || c.Event == Kill {
		last = seconds(row.LastSent)
	}
	if row.BalancerCPU > 0 {
		balancer = bench.Number(row.BalancerCPU, 0)
	}
	return []string{
		row.Contender, strconv.Itoa(row.Requests), share, maxMean, idle,
		r.cell(row.Latency.P50), r.cell(row.Latency.P90), r.cell(row.Latency.P99), r.cell(row.Latency.P999), r.cell(row.Latency.Max),
		failed(row.Failed), last, balancer, bench.Number(row.WorkerCPU, 0), bench.Number(ms(row.LagP99), 1),
	}, note
}

// cell is a latency in a table, whose unit is in the legend.
func (r *Report) cell(d time.Duration) string { return strings.TrimSuffix(r.millis(d), " ms") }

// failed lists the failures by kind.
func failed(counts map[load.Failure]int) string {
	var parts []string
	for _, f := range load.Failures() {
		if n := counts[f]; n > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n, f))
		}
	}
	if len(parts) == 0 {
		return "0"
	}
	return strings.Join(parts, ", ")
}

func (r *Report) writeVerdict(w io.Writer, c *Case) {
	for _, v := range r.Verdicts {
		if v.Case != c.Name {
			continue
		}
		for _, text := range v.Texts {
			fmt.Fprintf(w, "  > %s\n", text)
		}
		for _, goal := range v.Goals {
			fmt.Fprintf(w, "  > Goal: %s: %s.\n", goal.Text, goal.Outcome)
		}
	}
}
