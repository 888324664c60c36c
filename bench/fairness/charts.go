package fairness

import (
	"math"
	"slices"
	"strconv"

	"github.com/273ebdf9/lb/internal/plot"
)

func newSeries(contender string) plot.Series {
	k := kindOf(contender)
	return plot.Series{Name: contender, Color: k.color, Strong: k.subject}
}

// latencyChart shows the latency by percentile, both in logarithms: the tail is where contenders differ. It
// returns nil if nothing was answered.
func (r *Report) latencyChart(c *Case) *plot.Chart {
	chart := &plot.Chart{
		Kind: plot.Line, Title: "Latency by percentile, from the intended beginning; a hung request counts as the time-out.",
		X: plot.Axis{Label: "percentile", Log: true}, Y: plot.Axis{Label: "latency, ms", Log: true},
	}
	for _, q := range []float64{0, 50, 90, 99, 99.9} {
		chart.X.Ticks = append(chart.X.Ticks, plot.Tick{Value: rarity(q), Label: strconv.FormatFloat(q, 'g', -1, 64)})
	}
	for _, row := range r.rowsOf(c) {
		s := newSeries(row.Contender)
		for _, at := range row.Percentiles {
			if rarity(at[0]) <= float64(row.Answered)+1 { // beyond that there is nothing to tell
				s.Points = append(s.Points, [2]float64{rarity(at[0]), max(at[1], 0.01)})
			}
		}
		if len(s.Points) > 1 {
			chart.Series = append(chart.Series, s)
		}
	}
	return orNil(chart)
}

// rarity returns how many requests there are to one beyond the percentile.
func rarity(q float64) float64 { return 1 / (1 - math.Min(q, 99.999)/100) }

// shareChart shows the part of each worker. It returns nil if the answers do not tell who gave them.
func (r *Report) shareChart(c *Case) *plot.Chart {
	chart := &plot.Chart{
		Kind: plot.Bars, Title: "Part of the answers by worker.",
		X: plot.Axis{Label: "worker"}, Y: plot.Axis{Label: "part of the answers, %"},
	}
	for _, row := range r.rowsOf(c) {
		s := newSeries(row.Contender)
		for worker, share := range row.Shares {
			s.Points = append(s.Points, [2]float64{float64(worker), 100 * share})
			if worker == len(chart.Groups) {
				chart.Groups = append(chart.Groups, strconv.Itoa(worker))
			}
		}
		if len(s.Points) > 0 {
			chart.Series = append(chart.Series, s)
		}
	}
	return orNil(chart)
}

// failureChart shows when requests failed or hung. It returns nil if none did.
func (r *Report) failureChart(c *Case) *plot.Chart {
	chart := &plot.Chart{
		Kind: plot.Steps, Title: "Requests that failed or hung, by the moment at which that was known.",
		X: plot.Axis{Label: "seconds since the beginning of the load"}, Y: plot.Axis{Label: "failed or hung, a second"},
	}
	for _, row := range r.rowsOf(c) {
		if !slices.ContainsFunc(row.Timeline, func(b Bin) bool { return b.Failed+b.Hung > 0 }) {
			continue
		}
		s := newSeries(row.Contender)
		for i, b := range row.Timeline {
			n := float64(b.Failed+b.Hung) / float64(max(1, len(row.cells))) / binWidth.Seconds()
			s.Points = append(s.Points, [2]float64{float64(i) * binWidth.Seconds(), n})
		}
		chart.Series = append(chart.Series, s)
	}
	return orNil(chart)
}

func orNil(chart *plot.Chart) *plot.Chart {
	if len(chart.Series) == 0 {
		return nil
	}
	return chart
}
