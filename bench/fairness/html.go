package fairness

import (
	_ "embed"
	"fmt"
	"html/template"
	"io"
	"time"

	"github.com/273ebdf9/lb/bench"
)

//go:embed report.html
var pageText string

// page is what the template of the report is filled with.
type page struct {
	*Report
	How   string
	Scale float64
	Cases []pageCase
}

// pageCase is the part of one case.
type pageCase struct {
	*Case
	Load    string
	Rows    []pageRow
	Verdict *Verdict
	Absent  []string
	// Latency, Shares and Failures are plots; the last is empty where nothing failed.
	Latency, Shares, Failures template.HTML
}

// pageRow is one row of a table.
type pageRow struct {
	*Row
	Cells []string
	Note  string
}

// WriteHTML writes the report as one page that needs nothing beside it: tables, verdicts, plots as SVG, and all that one
// must know to judge and repeat the run.
func (r *Report) WriteHTML(w io.Writer) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"seconds": func(d time.Duration) string { return bench.Number(d.Seconds(), 2) },
		"ms":      func(d time.Duration) string { return bench.Number(ms(d), 1) },
		"percent": func(v float64) string { return fmt.Sprintf("%+.1f", 100*v) },
		"times":   func(a, b float64) float64 { return a * b },
	}).Parse(pageText)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	p := page{Report: r, How: "one after the other"}
	if r.Together {
		p.How = "at the same time"
	}
	for i := range r.Cases {
		c, err := r.pageCase(&r.Cases[i])
		if err != nil {
			return err
		}
		p.Cases = append(p.Cases, c)
	}
	if err := t.Execute(w, p); err != nil {
		return fmt.Errorf("cannot write page: %w", err)
	}
	return nil
}

func (r *Report) pageCase(c *Case) (pageCase, error) {
	p := pageCase{Case: c, Load: c.load()}
	for _, row := range r.rowsOf(c) {
		cells, note := r.rowText(c, row)
		p.Rows = append(p.Rows, pageRow{row, cells, note})
	}
	for i := range r.Verdicts {
		if r.Verdicts[i].Case == c.Name {
			p.Verdict = &r.Verdicts[i]
		}
	}
	for _, peer := range r.Peers {
		if why := peer.Unable[c.Name]; why != "" {
			p.Absent = append(p.Absent, peer.Name+" is not there: "+why)
		}
	}
	var err error
	for _, draw := range []struct {
		to   *template.HTML
		plot func(*Case) (template.HTML, error)
	}{{&p.Latency, r.latencyPlot}, {&p.Shares, r.sharePlot}, {&p.Failures, r.failurePlot}} {
		if *draw.to, err = draw.plot(c); err != nil {
			return p, fmt.Errorf("case %s: %w", c.Name, err)
		}
	}
	return p, nil
}
