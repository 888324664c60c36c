package fairness

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"encoding/base64"
	"fmt"
	"html"
	"io"
	"strings"

	"github.com/273ebdf9/lb/bench"
	"github.com/273ebdf9/lb/internal/plot"
)

//go:embed report.css
var reportStyle string

// WriteHTML writes the report as one page that needs nothing beside it: tables, verdicts, plots, and all that
// a reader must know to judge and repeat the run. The tables can be read without a script; the plots need
// one. The page's content security policy allows nothing but its own style and its own script.
func (r *Report) WriteHTML(w io.Writer) error {
	var p page
	style := plot.Style + reportStyle
	p.add(`<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src '%s'; script-src '%s'">
<meta name="viewport" content="width=device-width">
<title>lb bench</title>
<style>%s</style>
`, sourceHash(style), sourceHash(plot.Script), raw(style))
	r.addHead(&p)
	for i := range r.Cases {
		if err := r.addCase(&p, &r.Cases[i]); err != nil {
			return fmt.Errorf("cannot write case %s: %w", r.Cases[i].Name, err)
		}
	}
	p.add("<h2>How to read it</h2>\n<p class=\"legend-text\">%s</p>\n", r.Legend())
	p.add("<p>Method and limits: docs/benchmarks.md of lb.</p>\n<script>%s</script>\n</html>\n", raw(plot.Script))
	if _, err := w.Write(p.Bytes()); err != nil {
		return fmt.Errorf("cannot write page: %w", err)
	}
	return nil
}

// addHead adds what holds for the whole run.
func (r *Report) addHead(p *page) {
	how := "one after the other"
	if r.Together {
		how = "at the same time"
	}
	p.add("<h1>lb bench</h1>\n<p>%s, the same workers and the same load for each contender, %s.</p>\n<dl>\n",
		bench.Count(r.Workers, "worker"), bench.Count(r.Rounds, "round")+", contenders loaded "+how)
	p.term("Repeat it", "%s (seed %d)", code(r.CommandText()), r.Seed)
	p.term("Machine", "%d × %s, Linux %s, %s", r.Machine.CPUs, r.Machine.CPU, r.Machine.Kernel, r.Machine.Go)
	p.term("Versions", "%s", strings.Join(r.Programs, ", "))
	p.term("When", "%s, took %s s", r.Started.UTC().Format("2006-01-02 15:04:05 UTC"), bench.Number(r.Took.Seconds(), 0))
	if len(r.Worker) > 0 {
		p.term("Worker", "%s", code(strings.Join(r.Worker, " ")))
	}
	class := "met"
	if !r.Check.OK() {
		class = "missed"
	}
	figures, verdict := r.checkText()
	p.term("Load generator against a known law", `%s, %d requests: %s: <span class="%s">%s</span>`,
		r.Check.Law, r.Check.Requests, figures, class, verdict)
	if r.Repeated > 0 {
		p.term("Repeated", "%s: the load generator could not keep its schedule", bench.Count(r.Repeated, "measurement"))
	}
	p.add("</dl>\n<h2>Contenders</h2>\n<dl>\n")
	for _, c := range r.Contenders {
		p.term(c.Name, "%s", c.About)
	}
	p.add("</dl>\n")
}

// addCase adds the table, the verdict and the plots of one case.
func (r *Report) addCase(p *page, c *Case) error {
	p.add("<h2 id=\"%s\">%s: %s</h2>\n<p>%s", c.Name, c.Name, c.Title, c.load())
	if c.Event != NoEvent {
		p.add("; it happens at %s s", bench.Number(c.EventAt.Seconds(), 2))
	}
	p.add(".</p>\n<div class=\"scroll\"><table>\n<tr>")
	for _, name := range r.Header() {
		p.add("<th>%s</th>", name)
	}
	p.add("</tr>\n")
	for _, row := range r.rowsOf(c) {
		class := ""
		if kindOf(row.Contender).subject {
			class = "lb"
		}
		p.add("<tr class=\"%s\">", class)
		cells, note := r.rowText(c, row)
		for _, cell := range cells {
			p.add("<td>%s</td>", cell)
		}
		p.add("</tr>\n")
		if note != "" {
			p.add("<tr class=\"note\"><td></td><td colspan=\"%d\">%s</td></tr>\n", len(r.Header())-1, note)
		}
	}
	p.add("</table></div>\n")
	for _, text := range r.absent(c) {
		p.add("<p>%s.</p>\n", text)
	}
	p.add("<ul>\n")
	for _, v := range r.Verdicts {
		if v.Case != c.Name {
			continue
		}
		for _, text := range v.Texts {
			p.add("<li>%s</li>\n", text)
		}
		for _, goal := range v.Goals {
			p.add("<li>Goal: %s: <span class=\"%s\">%s</span>.</li>\n", goal.Text, goal.Outcome, goal.Outcome)
		}
	}
	p.add("</ul>\n<div class=\"plots\">\n")
	for _, chart := range []*plot.Chart{r.latencyChart(c), r.shareChart(c), r.failureChart(c)} {
		if chart == nil {
			continue
		}
		text, err := chart.JSON()
		if err != nil {
			return err
		}
		p.add("<figure><div data-plot=\"%s\"></div><figcaption>%s</figcaption></figure>\n", text, chart.Title)
	}
	p.add("</div>\n")
	return nil
}

// page is a page of HTML in the making. The template packages of the standard library would add 2.5 MB to lb,
// since with them the linker keeps every exported method of the program.
type page struct{ bytes.Buffer }

// raw is text that is HTML already.
type raw string

// code is text set as code.
func code(text string) raw { return raw("<code>" + html.EscapeString(text) + "</code>") }

// add adds formatted HTML. It escapes the arguments that are strings, unless they are raw.
func (p *page) add(format string, args ...any) {
	for i, arg := range args {
		if text, ok := arg.(string); ok {
			args[i] = html.EscapeString(text)
		}
	}
	fmt.Fprintf(p, format, args...)
}

// term adds a term of a list, and what is to say of it.
func (p *page) term(name, format string, args ...any) {
	p.add("<dt>%s</dt><dd>", name)
	p.add(format, args...)
	p.add("</dd>\n")
}

// sourceHash names an inline script or style in a content security policy (CSP Level 3, 2.3.1).
func sourceHash(text string) raw {
	sum := sha256.Sum256([]byte(text))
	return raw("sha256-" + base64.StdEncoding.EncodeToString(sum[:]))
}
