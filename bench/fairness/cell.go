package fairness

import (
	"cmp"
	"slices"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/273ebdf9/lb/bench/load"
)

// Cell is what one contender did in one case in one round.
type Cell struct {
	Case      string `json:"case"`
	Contender string `json:"contender"`
	Round     int    `json:"round"`
	// Digest names the arrivals and service times, see [load.Plan.Digest].
	Digest string `json:"digest"`

	// Broken says why there is nothing to see; Invalid why the figures do not count, though they are there.
	Broken  string `json:"broken,omitempty"`
	Invalid string `json:"invalid,omitempty"`

	Requests int                  `json:"requests"`
	Answered int                  `json:"answered"`
	Failed   map[load.Failure]int `json:"failed"`
	Latency  Latency              `json:"latency"`
	// Shares are the parts of the answers that each worker gave; absent where the answers do not tell who
	// gave them. After a scale-up they are of the requests since the new connections were opened.
	Shares []float64 `json:"shares,omitempty"`
	// Idle is the part of the time in which a request waited for a worker, and another worker had nothing to
	// do.
	Idle *float64 `json:"idle_while_queued,omitempty"`
	// EventAt is when the event happened, EventTook how long it took; EventLate that it was not over when the
	// load was.
	EventAt   time.Duration `json:"event_at_ns,omitempty"`
	EventTook time.Duration `json:"event_took_ns,omitempty"`
	EventLate bool          `json:"event_late,omitempty"`
	// LastSent is the time from the worker's death, or stop, to the last connection that was sent to it; 0 if
	// none was.
	LastSent time.Duration `json:"last_sent_ns,omitempty"`
	// After is how many requests failed or hung that began more than Detection after the event; AfterOf of
	// how many.
	After   int `json:"failed_after_detection"`
	AfterOf int `json:"after_detection"`
	// BalancerCPU and WorkerCPU are CPU time per answered request, in microseconds.
	BalancerCPU float64 `json:"balancer_cpu_us"`
	WorkerCPU   float64 `json:"worker_cpu_us"`
	// LagP99 is the load generator's own.
	LagP99 time.Duration `json:"lag_p99_ns"`
	// Timeline counts what ended in each piece of time.
	Timeline []Bin `json:"timeline"`

	latencies *hdrhistogram.Histogram // in microseconds; a hung request counts as the time-out
}

// Latency are quantiles of the latency.
type Latency struct {
	P50  time.Duration `json:"p50_ns"`
	P90  time.Duration `json:"p90_ns"`
	P99  time.Duration `json:"p99_ns"`
	P999 time.Duration `json:"p999_ns"`
	Max  time.Duration `json:"max_ns"`
}

func latencyOf(h *hdrhistogram.Histogram) Latency {
	at := func(q float64) time.Duration { return time.Duration(h.ValueAtQuantile(q)) * time.Microsecond }
	return Latency{P50: at(50), P90: at(90), P99: at(99), P999: at(99.9), Max: time.Duration(h.Max()) * time.Microsecond}
}

// binWidth is how long a piece of a timeline is.
const binWidth = 100 * time.Millisecond

// Bin is one piece of a timeline.
type Bin struct {
	Answered int `json:"answered"`
	Hung     int `json:"hung"`
	Failed   int `json:"failed"` // in any other way
}

// Failures is how many requests failed in whatever way.
func (c *Cell) Failures() int { return c.Requests - c.Answered }

// counts says whether the figures count.
func (c *Cell) counts() bool { return c.Broken == "" && c.Invalid == "" }

// newHistogram counts microseconds up to an hour to three digits.
func newHistogram() *hdrhistogram.Histogram {
	return hdrhistogram.New(1, time.Hour.Microseconds(), 3)
}

// fill works the outcomes out.
func (c *Cell) fill(p *contender, r *load.Result, event happening) {
	c.Requests, c.LagP99, c.Invalid = len(r.Outcomes), r.LagP99(), r.Behind()
	c.Failed = make(map[load.Failure]int)
	c.EventAt, c.EventTook, c.EventLate = event.at, event.took, event.late
	c.latencies = newHistogram()
	counts, known := make([]int, p.options.Workers), 0
	for i := range r.Outcomes {
		o := &r.Outcomes[i]
		c.note(o)
		if death := p.kase.Event == Stick || p.kase.Event == Kill; death && event.at > 0 && o.Began > event.at {
			if o.Failure != "" {
				c.LastSent = max(c.LastSent, o.Began-event.at)
			}
			if o.Began > event.at+Detection {
				c.AfterOf++
				if o.Failure != "" {
					c.After++
				}
			}
		}
		if o.Failure == "" && o.Worker >= 0 && o.Worker < len(counts) && o.Intended >= p.kase.Shape.LateAt {
			counts[o.Worker]++
			known++
		}
	}
	c.Latency = latencyOf(c.latencies)
	if known == 0 {
		return
	}
	for _, n := range counts {
		c.Shares = append(c.Shares, float64(n)/float64(known))
	}
	if idle, ok := idleWhileQueued(p, r.Outcomes, event); ok {
		c.Idle = &idle
	}
}

// note counts one outcome.
func (c *Cell) note(o *load.Outcome) {
	at := int(o.Done / binWidth)
	for len(c.Timeline) <= at {
		c.Timeline = append(c.Timeline, Bin{})
	}
	switch o.Failure {
	case "":
		c.Answered++
		c.Timeline[at].Answered++
	case load.Hung:
		c.Failed[o.Failure]++
		c.Timeline[at].Hung++
	default:
		c.Failed[o.Failure]++
		c.Timeline[at].Failed++
		return // it has no latency
	}
	c.latencies.RecordValue(o.Latency().Microseconds())
}

// transit is how long a request may be on its way before it counts as waiting.
const transit = 2 * time.Millisecond

// idleWhileQueued is the part of the load's time in which a request waited although a worker was idle. It
// needs to know when the workers worked; without that it says false.
func idleWhileQueued(p *contender, outcomes []load.Outcome, event happening) (float64, bool) {
	type change struct {
		at            time.Duration
		waiting, idle int
	}
	alive := p.workers()
	var changes []change
	span := func(from, to time.Duration, waiting, idle int) {
		if to > from {
			changes = append(changes, change{from, waiting, idle}, change{to, -waiting, -idle})
		}
	}
	timed := false
	for i := range outcomes {
		o := &outcomes[i]
		until := o.Done
		if o.End > 0 {
			timed = true
			until = o.Begin
			span(o.Begin, o.End, 0, -1)
		}
		from := o.Began
		if p.kase.Shape.Conns > 0 {
			from = o.Intended // it waits behind the last one on its connection
		}
		span(from+transit, until, 1, 0)
	}
	if !timed {
		return 0, false
	}
	switch p.kase.Event {
	case Stick:
		changes = append(changes, change{event.at, 0, -1})
	case ScaleOut:
		changes = append(changes, change{event.at + event.took, 0, p.options.Workers - alive})
	}
	end := p.kase.Shape.Duration
	changes = append(changes, change{at: end})
	slices.SortFunc(changes, func(a, b change) int { return cmp.Compare(a.at, b.at) })
	var wasted, last time.Duration
	waiting, idle := 0, alive
	for _, ch := range changes {
		at := min(max(ch.at, 0), end)
		if waiting > 0 && idle > 0 {
			wasted += at - last
		}
		last = at
		waiting += ch.waiting
		idle += ch.idle
	}
	return float64(wasted) / float64(end), true
}
