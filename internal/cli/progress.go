package cli

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/clipperhouse/displaywidth"
	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

// progressEvery is how often a command that waits says on a terminal how far it is, and after how long for
// the first time.
const progressEvery = time.Second

// progress has a line on the terminal say how far a command is, until the caller calls stop, which erases the
// line. now returns the line; empty leaves it as it is. Where the output is no terminal, or JSON, nothing is
// asked and nothing written.
func (c *call) progress(now func(ctx context.Context) string) (stop func()) {
	return c.progressOf(now, nil)
}

// showsProgress reports whether progress writes anything.
func (c *call) showsProgress() bool {
	return !c.json && terminal(c.out) && os.Getenv("TERM") != "dumb"
}

// progressOf is progress that draws also at once when changed says that there is something new.
func (c *call) progressOf(now func(ctx context.Context) string, changed <-chan struct{}) (stop func()) {
	if !c.showsProgress() {
		return func() {}
	}
	ctx, cancel := context.WithCancel(c.ctx)
	var drawing sync.WaitGroup
	drawing.Go(func() { drawProgress(ctx, c.out, now, changed) })
	return sync.OnceFunc(func() {
		cancel()
		drawing.Wait()
	})
}

// drawProgress draws until ctx is done, and erases what it has drawn.
func drawProgress(ctx context.Context, w io.Writer, now func(ctx context.Context) string, changed <-chan struct{}) {
	tick := time.NewTicker(progressEvery)
	defer tick.Stop()
	for drawn := false; ; {
		select {
		case <-tick.C:
		case <-changed:
		case <-ctx.Done():
			if drawn {
				io.WriteString(w, eraseLine)
			}
			return
		}
		if line := now(ctx); line != "" && ctx.Err() == nil {
			io.WriteString(w, eraseLine+cutColumns(line, columns(w)-1))
			drawn = true
		}
	}
}

// columns returns how wide a terminal is; 80 where that is not known.
func columns(w io.Writer) int {
	if f, ok := w.(*os.File); ok {
		if size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil && size.Col > 0 {
			return int(size.Col)
		}
	}
	return 80
}

// cutColumns cuts a text to so many columns of a terminal: a line that wraps cannot be erased.
func cutColumns(text string, width int) string {
	if displaywidth.String(text) <= width {
		return text
	}
	return displaywidth.TruncateString(text, max(1, width), "…")
}

// leaving says how many sessions a backend still has.
func (c *call) leaving(pool, backend string) func(context.Context) string {
	return func(ctx context.Context) string {
		return printable.Text(pool+"/"+backend) + ": " + c.left(ctx, api.SessionFilter{Pool: pool, Backend: backend})
	}
}

// left says how many sessions a filter admits, as "3 sessions left, oldest 41s".
func (c *call) left(ctx context.Context, f api.SessionFilter) string {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	list, err := c.Sessions(ctx, f, 1)
	switch {
	case err != nil:
		return "no answer from lb" // the command itself says why, if it stays so
	case len(list.Sessions) == 0:
		return "no sessions left"
	}
	return fmt.Sprintf("%s left, oldest %s", count(list.Total, "session"), shortDuration(seconds(list.Sessions[0].Age)))
}

// coming says what keeps a backend from being given connections.
func (c *call) coming(pool, backend string) func(context.Context) string {
	return func(ctx context.Context) string {
		b, err := c.Backend(ctx, pool, backend)
		if err != nil {
			return ""
		}
		return fmt.Sprintf("%s is %s for %s%s", printable.Text(pool+"/"+backend), b.Health, shortDuration(time.Since(b.Since)), because(why(b)))
	}
}

// killing says how many of the sessions that are closed over a time are left: those that a filter admitted
// when the closing began.
func (c *call) killing(f api.SessionFilter, over time.Duration) func(context.Context) string {
	start := time.Now()
	return func(ctx context.Context) string {
		took := time.Since(start)
		f := f
		f.Older += took
		line := c.left(ctx, f)
		if rest := over - took; rest > 0 {
			line += fmt.Sprintf("; the last closes in %s", shortDuration(rest))
		}
		return line
	}
}

// scaling says how many workers of a pool are up, and what those that are not do.
func (c *call) scaling(pool string) func(context.Context) string {
	return func(ctx context.Context) string {
		st, err := c.Workers(ctx, pool)
		if err != nil {
			return ""
		}
		return scaleLine(pool, st, time.Now())
	}
}

func scaleLine(pool string, st *api.WorkersStatus, now time.Time) string {
	up, rest := 0, []string(nil)
	for i := range st.Slots {
		s := &st.Slots[i]
		if s.State == "up" {
			up++
			continue
		}
		text := fmt.Sprintf("%d %s", s.Slot, s.State)
		if !s.Since.IsZero() {
			text += " for " + shortDuration(now.Sub(s.Since))
		}
		rest = append(rest, text)
	}
	line := fmt.Sprintf("%s: %d of %s up", printable.Text(pool), up, count(st.Count, "worker"))
	if len(rest) > 0 {
		line += "; slot " + strings.Join(rest, ", ")
	}
	return printable.Text(line)
}
