package fairness

import (
	"context"
	"encoding/json"
	"io"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/273ebdf9/lb/bench"
	"github.com/273ebdf9/lb/bench/load"
)

// Report is the outcome of a run.
type Report struct {
	Machine bench.Machine `json:"machine"`
	// Programs are the versions of what took part; Command is the command line that repeats the run.
	Programs []string `json:"programs"`
	Command  []string `json:"command"`
	Seed     uint64   `json:"seed"`

	Started  time.Time     `json:"started"`
	Took     time.Duration `json:"took_ns"`
	Workers  int           `json:"workers"`
	Worker   []string      `json:"worker,omitempty"` // the user's own
	Burn     bool          `json:"burn,omitempty"`
	Rounds   int           `json:"rounds"`
	Together bool          `json:"together"`
	Timeout  time.Duration `json:"timeout_ns"`
	// Detection is how long lb may take to find a stuck worker.
	Detection time.Duration `json:"detection_ns"`

	// Repeated is how many measurements were made anew because the load generator could not keep its
	// schedule.
	Repeated int `json:"repeated"`

	// Check is the load generator against itself.
	Check      *load.Checked   `json:"check"`
	Cases      []Case          `json:"cases"`
	Contenders []ContenderInfo `json:"contenders"`
	// Cells are in the order in which they were measured.
	Cells []*Cell `json:"cells"`
	// Rows are the rounds of each case and contender, taken together.
	Rows     []*Row    `json:"rows"`
	Verdicts []Verdict `json:"verdicts"`
}

// ContenderInfo says what a contender is.
type ContenderInfo struct {
	Name  string `json:"name"`
	About string `json:"about"`
	// Unable says, by case, why it did not take part.
	Unable map[string]string `json:"unable,omitempty"`
}

func newReport(ctx context.Context, o *Options) *Report {
	r := &Report{
		Machine: bench.ReadMachine(), Programs: append([]string{"lb " + o.Version}, o.Programs.Versions(ctx)...),
		Command: o.CommandLine, Seed: o.Seed, Started: time.Now(),
		Workers: o.Workers, Worker: o.Command, Burn: o.Burn, Rounds: o.Rounds, Together: o.Together, Timeout: o.Timeout,
		Detection: Detection, Cases: o.Cases,
	}
	for _, name := range ContenderNames() {
		if !o.Compares(name) {
			continue
		}
		info := ContenderInfo{Name: name, About: kindOf(name).about}
		for i := range o.Cases {
			if why := o.unable(name, &o.Cases[i]); why != "" {
				if info.Unable == nil {
					info.Unable = make(map[string]string)
				}
				info.Unable[o.Cases[i].Name] = why
			}
		}
		r.Contenders = append(r.Contenders, info)
	}
	return r
}

// Row is what one contender did in one case, over all rounds.
type Row struct {
	Case      string `json:"case"`
	Contender string `json:"contender"`
	// Invalid says why rounds do not count, Broken why there were none; the first of them.
	Invalid string `json:"invalid,omitempty"`
	Broken  string `json:"broken,omitempty"`

	Requests int                  `json:"requests"`
	Answered int                  `json:"answered"`
	Failed   map[load.Failure]int `json:"failed"`
	// Latency is of all rounds' requests together.
	Latency Latency `json:"latency"`
	// Shares are the means over the rounds; MaxMean is the greatest share against an equal one, the median
	// over the rounds.
	Shares  []float64 `json:"shares,omitempty"`
	MaxMean float64   `json:"max_mean,omitempty"`
	// Idle is the median over the rounds; nil where it is not known.
	Idle *float64 `json:"idle_while_queued,omitempty"`
	// LastSent is the greatest over the rounds; After and AfterOf are sums.
	LastSent time.Duration `json:"last_sent_ns"`
	After    int           `json:"failed_after_detection"`
	AfterOf  int           `json:"after_detection"`
	// BalancerCPU and WorkerCPU are medians, in microseconds a request.
	BalancerCPU float64 `json:"balancer_cpu_us"`
	WorkerCPU   float64 `json:"worker_cpu_us"`
	// LagP99 is the greatest.
	LagP99 time.Duration `json:"lag_p99_ns"`
	// Percentiles is the latency by percentile: pairs of a percentile and milliseconds.
	Percentiles [][2]float64 `json:"percentiles"`
	// Timeline is the sum over the rounds, in pieces of 100 ms.
	Timeline []Bin `json:"timeline"`

	cells []*Cell
}

// Failures is how many requests failed in whatever way.
func (r *Row) Failures() int { return r.Requests - r.Answered }

// counts says whether the figures count.
func (r *Row) counts() bool { return r.Broken == "" && r.Invalid == "" }

// Row returns the row of a case and contender, or nil.
func (r *Report) Row(kase, contender string) *Row {
	for _, row := range r.Rows {
		if row.Case == kase && row.Contender == contender {
			return row
		}
	}
	return nil
}

// Broken counts the cells that could not be measured, Invalid those whose figures do not count.
func (r *Report) Broken() (n int) {
	for _, c := range r.Cells {
		if c.Broken != "" {
			n++
		}
	}
	return n
}

// Invalid counts the cells whose figures do not count, though there are some.
func (r *Report) Invalid() (n int) {
	for _, c := range r.Cells {
		if c.Broken == "" && c.Invalid != "" {
			n++
		}
	}
	return n
}

// conclude makes rows and verdicts of the cells.
func (r *Report) conclude() {
	for i := range r.Cases {
		for _, contender := range r.Contenders {
			var cells []*Cell
			for _, c := range r.Cells {
				if c.Case == r.Cases[i].Name && c.Contender == contender.Name {
					cells = append(cells, c)
				}
			}
			if len(cells) > 0 {
				r.Rows = append(r.Rows, newRow(cells))
			}
		}
	}
	for i := range r.Cases {
		r.Verdicts = append(r.Verdicts, r.judge(&r.Cases[i]))
	}
}

// newRow takes the rounds together.
func newRow(cells []*Cell) *Row {
	row := &Row{Case: cells[0].Case, Contender: cells[0].Contender, Failed: make(map[load.Failure]int)}
	var maxMean, idle, balancer, workers []float64
	all, counted := newHistogram(), 0
	for _, c := range cells {
		if c.Broken != "" {
			row.Broken = c.Broken
			continue
		}
		if c.Invalid != "" && row.Invalid == "" {
			row.Invalid = c.Invalid
		}
		row.cells = append(row.cells, c)
		row.Requests += c.Requests
		row.Answered += c.Answered
		for f, n := range c.Failed {
			row.Failed[f] += n
		}
		all.Merge(c.latencies)
		row.LastSent = max(row.LastSent, c.LastSent)
		row.After += c.After
		row.AfterOf += c.AfterOf
		row.LagP99 = max(row.LagP99, c.LagP99)
		balancer, workers = append(balancer, c.BalancerCPU), append(workers, c.WorkerCPU)
		if len(c.Shares) > 0 {
			if row.Shares == nil {
				row.Shares = make([]float64, len(c.Shares))
			}
			for i, s := range c.Shares {
				row.Shares[i] += s
			}
			counted++
			maxMean = append(maxMean, slices.Max(c.Shares)*float64(len(c.Shares)))
		}
		if c.Idle != nil {
			idle = append(idle, *c.Idle)
		}
		for i, b := range c.Timeline {
			if i == len(row.Timeline) {
				row.Timeline = append(row.Timeline, Bin{})
			}
			row.Timeline[i].Answered += b.Answered
			row.Timeline[i].Failed += b.Failed
			row.Timeline[i].Hung += b.Hung
		}
	}
	for i := range row.Shares {
		row.Shares[i] /= float64(counted)
	}
	row.Latency = latencyOf(all)
	row.MaxMean = orZero(bench.Summarize(maxMean).Median)
	row.BalancerCPU, row.WorkerCPU = orZero(bench.Summarize(balancer).Median), orZero(bench.Summarize(workers).Median)
	if len(idle) > 0 {
		median := bench.Summarize(idle).Median
		row.Idle = &median
	}
	for _, q := range percentiles {
		row.Percentiles = append(row.Percentiles, [2]float64{q, float64(all.ValueAtQuantile(q)) / 1000})
	}
	return row
}

// percentiles are those of a row.
var percentiles = []float64{0, 10, 20, 30, 40, 50, 60, 70, 75, 80, 85, 90, 92, 94, 95, 96, 97, 98, 98.5, 99, 99.3, 99.5, 99.7, 99.8, 99.9, 99.95, 99.99}

func orZero(v float64) float64 {
	if math.IsNaN(v) {
		return 0
	}
	return v
}

// WriteJSON writes the report with every cell.
func (r *Report) WriteJSON(w io.Writer) error {
	out := json.NewEncoder(w)
	out.SetIndent("", "  ")
	out.SetEscapeHTML(false)
	return out.Encode(r)
}

// CommandText is the command line as one would type it.
func (r *Report) CommandText() string {
	var words []string
	for _, w := range r.Command {
		if w == "" || strings.ContainsAny(w, " \t\n\"'$`\\*?<>|&;(){}") {
			w = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
		words = append(words, w)
	}
	return strings.Join(words, " ")
}
