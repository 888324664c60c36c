package fairness

import (
	"bytes"
	"fmt"
	"html/template"
	"image/color"
	"math"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	_ "gonum.org/v1/plot/vg/vgsvg" // the format "svg" of WriterTo
)

// colours are the peers', the same in every plot; dark enough on white, and apart from each other for the colour-blind
// (Okabe and Ito, "Color Universal Design").
var colours = map[string]color.Color{
	PeerReusePort: color.RGBA{0xd5, 0x5e, 0x00, 0xff},
	PeerPrefork:   color.RGBA{0xe6, 0x9f, 0x00, 0xff},
	PeerLB:        color.RGBA{0x00, 0x72, 0xb2, 0xff},
	PeerHAProxy:   color.RGBA{0x00, 0x9e, 0x73, 0xff},
	PeerNginx:     color.RGBA{0xcc, 0x79, 0xa7, 0xff},
	PeerTarget:    color.RGBA{0x33, 0x33, 0x33, 0xff},
}

const (
	plotWidth  = 15 * vg.Centimeter
	plotHeight = 8 * vg.Centimeter
)

// svg draws a plot as an element of HTML.
func svg(p *plot.Plot) (template.HTML, error) {
	canvas, err := p.WriterTo(plotWidth, plotHeight, "svg")
	if err != nil {
		return "", fmt.Errorf("cannot draw plot: %w", err)
	}
	var b bytes.Buffer
	if _, err := canvas.WriteTo(&b); err != nil {
		return "", fmt.Errorf("cannot draw plot: %w", err)
	}
	// What stands before the element is for files of their own.
	return template.HTML(b.Bytes()[max(0, bytes.Index(b.Bytes(), []byte("<svg"))):]), nil
}

func newPlot(x, y string) *plot.Plot {
	p := plot.New()
	p.X.Label.Text, p.Y.Label.Text = x, y
	p.Legend.Top = true
	p.Legend.Left = true
	p.Legend.XOffs, p.Legend.YOffs = vg.Points(6), -vg.Points(4)
	p.Add(plotter.NewGrid())
	return p
}

// line adds a peer's line to a plot, and to its legend.
func line(p *plot.Plot, peer string, points plotter.XYs, step bool) error {
	l, err := plotter.NewLine(points)
	if err != nil {
		return fmt.Errorf("cannot draw line of %s: %w", peer, err)
	}
	l.Color, l.Width = colours[peer], vg.Points(1.5)
	if peer == PeerLB {
		l.Width = vg.Points(2.5)
	}
	if step {
		l.StepStyle = plotter.PostStep
	}
	p.Add(l)
	p.Legend.Add(peer, l)
	return nil
}

// latencyPlot shows the latency by percentile, both in logarithms: the tail is where peers differ.
func (r *Report) latencyPlot(c *Case) (template.HTML, error) {
	p := newPlot("percentile", "latency, ms")
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.Y.Tick.Marker = plot.LogTicks{Prec: -1}
	var ticks plot.ConstantTicks
	for _, q := range []float64{0, 50, 90, 99, 99.9} {
		ticks = append(ticks, plot.Tick{Value: rarity(q), Label: strconv.FormatFloat(q, 'g', -1, 64)})
	}
	p.X.Tick.Marker = ticks
	for _, row := range r.rowsOf(c) {
		var points plotter.XYs
		for _, at := range row.Percentiles {
			if rarity(at[0]) <= float64(row.Answered)+1 { // beyond that there is nothing to tell
				points = append(points, plotter.XY{X: rarity(at[0]), Y: max(at[1], 0.01)})
			}
		}
		if len(points) < 2 {
			continue
		}
		if err := line(p, row.Peer, points, false); err != nil {
			return "", err
		}
	}
	p.Y.Max *= 1.5
	return svg(p)
}

// rarity is one in how many is beyond a percentile.
func rarity(q float64) float64 { return 1 / (1 - math.Min(q, 99.999)/100) }

// sharePlot shows the part of each worker: a group of bars for each.
func (r *Report) sharePlot(c *Case) (template.HTML, error) {
	p := newPlot("worker", "part of the answers, %")
	p.Legend.Left, p.Legend.XOffs = false, -vg.Points(6)
	var rows []*Row
	workers := 0
	for _, row := range r.rowsOf(c) {
		if len(row.Shares) > 0 {
			rows = append(rows, row)
			workers = max(workers, len(row.Shares))
		}
	}
	if len(rows) == 0 {
		return "", nil
	}
	width := plotWidth * 0.8 / vg.Length(workers*(len(rows)+1))
	most := 0.0
	for i, row := range rows {
		values := make(plotter.Values, len(row.Shares))
		for j, s := range row.Shares {
			values[j] = 100 * s
			most = math.Max(most, values[j])
		}
		bars, err := plotter.NewBarChart(values, width)
		if err != nil {
			return "", fmt.Errorf("cannot draw bars of %s: %w", row.Peer, err)
		}
		bars.Color, bars.LineStyle.Width = colours[row.Peer], 0
		bars.Offset = width * (vg.Length(i) - vg.Length(len(rows)-1)/2)
		p.Add(bars)
		p.Legend.Add(row.Peer, bars)
	}
	p.Y.Max = most * 1.4 // room for the legend
	names := make([]string, workers)
	for i := range names {
		names[i] = strconv.Itoa(i)
	}
	p.NominalX(names...)
	p.X.Min, p.X.Max = -0.5, float64(workers)-0.5
	return svg(p)
}

// failurePlot shows when requests failed or hung; "" if none did.
func (r *Report) failurePlot(c *Case) (template.HTML, error) {
	p := newPlot("seconds since the beginning of the load", "failed or hung, a second")
	some := false
	for _, row := range r.rowsOf(c) {
		var points plotter.XYs
		for i, b := range row.Timeline {
			n := float64(b.Failed+b.Hung) / float64(max(1, len(row.cells))) / binWidth.Seconds()
			some = some || n > 0
			points = append(points, plotter.XY{X: float64(i) * binWidth.Seconds(), Y: n})
		}
		if len(points) < 2 {
			continue
		}
		if err := line(p, row.Peer, points, true); err != nil {
			return "", err
		}
	}
	if !some {
		return "", nil
	}
	p.Y.Max *= 1.4
	return svg(p)
}
