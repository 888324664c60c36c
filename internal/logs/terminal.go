package logs

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/printable"
)

// forPeople reports whether what is written to f is read by a person at once: it is a terminal that knows
// colours, and NO_COLOR is not set.
func forPeople(f *os.File) bool {
	if os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" || os.Getenv("TERM") == "" {
		return false
	}
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	is := false
	raw.Control(func(fd uintptr) {
		_, err := unix.IoctlGetTermios(int(fd), unix.TCGETS)
		is = err == nil
	})
	return is
}

// Colours of the terminal's own palette (ECMA-48, SGR).
const (
	reset  = "\x1b[0m"
	dim    = "\x1b[2m"
	bold   = "\x1b[1m"
	red    = "\x1b[31m"
	yellow = "\x1b[33m"
)

// workerColours are for the names of workers; red and yellow are left for what is wrong.
var workerColours = [...]string{"\x1b[36m", "\x1b[32m", "\x1b[35m", "\x1b[34m", "\x1b[96m", "\x1b[92m", "\x1b[95m", "\x1b[94m"}

// subjects are the keys that say what a line is about, those that say it best first.
var subjects = [...]string{"worker", "backend", "listener", "pool"}

// terminalHandler is a slog.Handler for lines that a person reads at a terminal:
//
//	08:45:40.571 app/1      | Serving HTTP on 127.0.0.1
//	08:45:42.522 jobs/w1    warning: backend health changed: up → down: connection refused  held=2ms  left=0/1
//
// What a line is about comes first, and has a worker's own colour. Text from outside is escaped.
type terminalHandler struct {
	w       io.Writer // takes a whole line with each write
	level   slog.Leveler
	prefix  string // of keys: the open groups
	written []slog.Attr
	zone    *time.Location
}

func (h *terminalHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.level.Level()
}

func (h *terminalHandler) WithGroup(name string) slog.Handler {
	c := *h
	c.prefix += name + "."
	return &c
}

func (h *terminalHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	c := *h
	c.written = append([]slog.Attr(nil), h.written...)
	for _, a := range attrs {
		c.written = appendFlat(c.written, h.prefix, a)
	}
	return &c
}

// appendFlat appends an attribute, or those of a group with the group's name before their own.
func appendFlat(to []slog.Attr, prefix string, a slog.Attr) []slog.Attr {
	a.Value = a.Value.Resolve()
	if a.Value.Kind() != slog.KindGroup {
		if a.Equal(slog.Attr{}) {
			return to
		}
		a.Key = prefix + a.Key
		return append(to, a)
	}
	if a.Key != "" {
		prefix += a.Key + "."
	}
	for _, in := range a.Value.Group() {
		to = appendFlat(to, prefix, in)
	}
	return to
}

// subjectWidth is how wide the column of what lines are about is; what is longer moves the rest of its line.
const subjectWidth = 10

// Handle writes a record as a line.
func (h *terminalHandler) Handle(_ context.Context, r slog.Record) error {
	attrs := append([]slog.Attr(nil), h.written...)
	r.Attrs(func(a slog.Attr) bool {
		attrs = appendFlat(attrs, h.prefix, a)
		return true
	})
	// take returns the value of a key, which is then not written again.
	take := func(key string) string {
		for i, a := range attrs {
			if a.Key == key {
				attrs = append(attrs[:i:i], attrs[i+1:]...)
				return printable.Text(strings.ReplaceAll(a.Value.String(), "\t", "    "))
			}
		}
		return ""
	}
	var subject, key string
	for _, key = range subjects {
		if subject = take(key); subject != "" {
			break
		}
	}
	var b strings.Builder
	b.WriteString(dim + r.Time.In(h.zone).Format("15:04:05.000") + reset + " ")
	b.WriteString(subjectColour(key, subject) + subject + reset + strings.Repeat(" ", max(0, subjectWidth-len([]rune(subject)))) + " ")

	if key == "worker" && r.Message == WorkerSays {
		take("pid")
		b.WriteString(dim + "|" + reset + " " + take("text"))
	} else {
		b.WriteString("  " + levelColour(r.Level) + levelWord(r.Level) + printable.Text(r.Message) + reset)
		switch from, to := take("from"), take("to"); {
		case from != "" && to != "":
			b.WriteString(": " + from + " → " + to)
		case from != "" || to != "":
			b.WriteString(": " + from + to)
		}
		for _, key := range [...]string{"reason", "error"} {
			if why := take(key); why != "" {
				b.WriteString(": " + why)
			}
		}
		if by := take("by"); by != "" {
			b.WriteString(", by " + by)
		}
	}
	for _, a := range attrs {
		if v := printable.Text(a.Value.String()); v != "" {
			if strings.ContainsAny(v, " \"=") {
				v = strconv.Quote(v)
			}
			fmt.Fprintf(&b, "  %s%s=%s%s", dim, printable.Text(a.Key), v, reset)
		}
	}
	b.WriteByte('\n')
	_, err := io.WriteString(h.w, b.String())
	return err
}

// WorkerSays is the message of a line that a worker wrote, which is in the attribute "text".
const WorkerSays = "worker says"

// levelWord says for those who do not see the colour what is wrong.
func levelWord(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return "error: "
	case level >= slog.LevelWarn:
		return "warning: "
	}
	return ""
}

func levelColour(level slog.Level) string {
	switch {
	case level >= slog.LevelError:
		return red
	case level >= slog.LevelWarn:
		return yellow
	case level < slog.LevelInfo:
		return dim
	}
	return ""
}

// subjectColour returns a worker's own colour: neighbours in a pool have different ones, and the backends of
// a slot have the slot's.
func subjectColour(key, subject string) string {
	pool, slot, _ := strings.Cut(subject, "/")
	if key == "backend" {
		before, _, isWorker := strings.Cut(slot, ".")
		if !isWorker {
			return bold
		}
		slot = before
	}
	n, err := strconv.Atoi(slot)
	if err != nil || n < 0 {
		return bold
	}
	for _, c := range []byte(pool) {
		n += int(c)
	}
	return workerColours[n%len(workerColours)]
}
