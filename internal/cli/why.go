package cli

import (
	"fmt"
	"io"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

func newWhyCommand() *cobra.Command {
	c := new(caller)
	return c.flags(&cobra.Command{
		Use:   "why POOL[/BACKEND]",
		Short: "Say what is wrong with a backend, a worker or a pool, and what to do",
		Long: "Say what is wrong with a backend, a worker (POOL/SLOT) or all of a pool: the cause, what to do about it, and what that rests on.\n\n" +
			"lb only looks; nothing is changed or sent to a backend.",
		Example:           "  lb why app/w1\n  lb why app/0     # the worker of slot 0\n  lb why app",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.complete(first(completeSubjects)),
		RunE:              c.action(showWhy),
	})
}

// completeSubjects are pools, and their backends.
func completeSubjects(st *api.Status) []string {
	return append(completePools(st), completeBackends(st)...)
}

func showWhy(c *call) error {
	pool, backend, named := strings.Cut(c.args[0], "/")
	if pool == "" || named && backend == "" {
		return usage("%q is neither POOL nor POOL/BACKEND", c.args[0])
	}
	ctx, cancel := c.soon()
	defer cancel()
	text, now := "", time.Now()
	switch {
	case c.json:
		var err error
		if text, err = indented(c.WhyJSON(ctx, pool, backend)); err != nil {
			return err
		}
	case backend != "":
		d, err := c.Why(ctx, pool, backend)
		if err != nil {
			return err
		}
		text = renderDiagnosis(d, now, coloured(c.out), true)
	default:
		p, err := c.WhyPool(ctx, pool)
		if err != nil {
			return err
		}
		text = renderPoolDiagnosis(p, now, coloured(c.out))
	}
	_, err := io.WriteString(c.out, text)
	return err
}

func renderPoolDiagnosis(p *api.PoolDiagnosis, now time.Time, colour bool) string {
	var b strings.Builder
	fmt.Fprintf(&b, "pool %s: %s\n", printable.Text(p.Pool), printable.Text(p.Headline))
	fine := 0
	for i := range p.Backends {
		d := &p.Backends[i]
		if d.Cause == api.CauseNone {
			fine++
			continue
		}
		b.WriteString("\n" + renderDiagnosis(d, now, colour, false))
	}
	if fine > 0 {
		fmt.Fprintf(&b, "\nNothing is wrong with %s.\n", count(fine, "backend"))
	}
	return b.String()
}

// renderDiagnosis is the headline, what to do, and, if all is asked for, what they rest on.
func renderDiagnosis(d *api.Diagnosis, now time.Time, colour, all bool) string {
	var b strings.Builder
	headline := cell{text: d.Headline, colour: red}
	if d.Cause == api.CauseNone {
		headline.colour = green
	}
	fmt.Fprintf(&b, "%s: %s\n", printable.Text(d.Subject), headline.render(0, false, colour))
	for _, also := range d.Also {
		fmt.Fprintf(&b, "  also: %s\n", printable.Text(also))
	}
	for _, do := range d.Do {
		fmt.Fprintf(&b, "  do: %s\n", printable.Text(do))
	}
	if !all {
		return b.String()
	}
	width := 0
	for _, f := range d.Facts {
		width = max(width, utf8.RuneCountInString(f.Name))
	}
	b.WriteString("\n")
	for _, f := range d.Facts {
		name := cell{text: f.Name}
		fmt.Fprintf(&b, "  %s  %s\n", name.render(width, false, false), printable.Text(f.Text))
	}
	if len(d.History) > 0 {
		b.WriteString("\nWhat happened:\n")
	}
	for _, e := range d.History {
		fmt.Fprintf(&b, "  %s ago  %s: %s\n", padLeft(shortDuration(now.Sub(e.Time)), 7), printable.Text(e.Subject), printable.Text(e.Text))
	}
	return b.String()
}

func padLeft(text string, width int) string {
	return strings.Repeat(" ", max(0, width-utf8.RuneCountInString(text))) + text
}
