package fleet

import (
	"bytes"
	_ "embed"
	"fmt"
	"html"
	"io"
	"time"

	"github.com/273ebdf9/lb/bench"
	"github.com/273ebdf9/lb/internal/plot"
)

//go:embed report.css
var style string

var header = []string{"policy", "max/mean", "worst", "had to wait", "p99 wait", "longest wait", "writes/s", "broken", "retries"}

// row returns the cells of a run.
func (r *Result) row() []string {
	return []string{
		string(r.Config.Policy), bench.Number(r.Imbalance, 3), bench.Number(r.WorstImbalance, 2), bench.Number(100*r.Waited, 1) + " %",
		duration(r.WaitP99), duration(r.WaitMax), bench.Number(r.Writes, 0), fmt.Sprint(r.Broken), fmt.Sprint(r.Retries),
	}
}

func duration(d time.Duration) string {
	if d >= 100*time.Millisecond {
		return bench.Number(d.Seconds(), 2) + " s"
	}
	return bench.Number(float64(d)/float64(time.Millisecond), 1) + " ms"
}

// facts says what a case has.
func (c *Case) facts() string {
	x := &c.Config
	text := fmt.Sprintf("%s, %s, %s connections a second, %v on average, %v of the places in use, counts %v old at most, %v of virtual time",
		bench.Count(x.Fronts, "front"), bench.Count(x.Backends, "host"), bench.Number(x.Rate, 0), x.Hold, x.Load, x.Age, x.Time)
	if x.Event != NoEvent {
		text += "; " + string(x.Event)
	}
	return text
}

var sourceHeader = []string{"hosts", "clients", "other host from a second front", "max/mean clients", "moved: a tenth down", "moved: a tenth removed", "moved: one at half weight"}

func (r *SourceResult) row() []string {
	percent := func(x float64) string { return bench.Number(100*x, 2) + " %" }
	return []string{fmt.Sprint(r.Backends), fmt.Sprint(r.Clients), fmt.Sprint(r.Disagree), bench.Number(r.Imbalance, 3),
		percent(r.MovedDown), percent(r.MovedGone), percent(r.MovedWeight)}
}

// WriteText writes the tables.
func (st *Study) WriteText(w io.Writer) error {
	for i := range st.Cases {
		c := &st.Cases[i]
		fmt.Fprintf(w, "%s: %s\n  (%s)\n", c.Name, c.Why, c.facts())
		t := bench.Table{Header: header}
		for _, r := range st.Results[i] {
			t.Add(r.row()...)
		}
		if err := t.Write(w); err != nil {
			return err
		}
		fmt.Fprintln(w)
	}
	fmt.Fprintln(w, "source: where each client goes")
	t := bench.Table{Header: sourceHeader}
	for i := range st.Source {
		t.Add(st.Source[i].row()...)
	}
	if err := t.Write(w); err != nil {
		return err
	}
	_, err := fmt.Fprintf(w, "\nseed %d, took %.1f s\n", st.Seed, st.Took.Seconds())
	return err
}

var colors = []string{"#111827", "#dc2626", "#ea580c", "#ca8a04", "#16a34a", "#2563eb", "#7c3aed", "#9ca3af", "#d1d5db"}

// chart shows the imbalance over time.
func (st *Study) chart(i int) (string, error) {
	chart := &plot.Chart{
		Kind: plot.Line, Title: "The most loaded host in terms of the mean, over time.",
		X: plot.Axis{Label: "seconds"}, Y: plot.Axis{Label: "max/mean", Log: true},
	}
	for j, r := range st.Results[i] {
		s := plot.Series{Name: string(r.Config.Policy), Color: colors[j%len(colors)], Strong: r.Config.Policy == Local}
		every := max(len(r.Timeline)/200, 1)
		for k := 0; k < len(r.Timeline); k += every {
			m := &r.Timeline[k]
			s.Points = append(s.Points, [2]float64{m.At.Seconds(), m.Imbalance})
		}
		chart.Series = append(chart.Series, s)
	}
	return chart.JSON()
}

// WriteHTML writes the report as one page that needs nothing beside it.
func (st *Study) WriteHTML(w io.Writer) error {
	var p bytes.Buffer
	fmt.Fprintf(&p, "<!DOCTYPE html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n"+
		"<title>lb over many hosts</title>\n<style>%s%s</style>\n<h1>lb over many hosts, simulated</h1>\n"+
		"<p>Seed %d, in virtual time; it took %s s. The same seed gives the same figures. What follows from them: docs/fleet.md of lb.</p>\n",
		plot.Style, style, st.Seed, bench.Number(st.Took.Seconds(), 1))
	for i := range st.Cases {
		c := &st.Cases[i]
		fmt.Fprintf(&p, "<h2>%s</h2>\n<p>%s (%s).</p>\n", html.EscapeString(c.Name), html.EscapeString(c.Why), html.EscapeString(c.facts()))
		table(&p, header, len(st.Results[i]), func(j int) []string { return st.Results[i][j].row() })
		text, err := st.chart(i)
		if err != nil {
			return fmt.Errorf("cannot draw case %q: %w", c.Name, err)
		}
		fmt.Fprintf(&p, "<figure><div data-plot=\"%s\"></div></figure>\n", html.EscapeString(text))
	}
	p.WriteString("<h2>source</h2>\n<p>Where lb's own policy <code>source</code> sends each client, and how many go elsewhere after a change.</p>\n")
	table(&p, sourceHeader, len(st.Source), func(j int) []string { return st.Source[j].row() })
	fmt.Fprintf(&p, "<script>%s</script>\n</html>\n", plot.Script)
	_, err := w.Write(p.Bytes())
	return err
}

func table(p *bytes.Buffer, header []string, rows int, row func(int) []string) {
	p.WriteString("<table>\n<tr>")
	for _, name := range header {
		fmt.Fprintf(p, "<th>%s</th>", html.EscapeString(name))
	}
	p.WriteString("</tr>\n")
	for i := range rows {
		p.WriteString("<tr>")
		for _, cell := range row(i) {
			fmt.Fprintf(p, "<td>%s</td>", html.EscapeString(cell))
		}
		p.WriteString("</tr>\n")
	}
	p.WriteString("</table>\n")
}
