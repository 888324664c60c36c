package logs

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// openTerminal opens a terminal of its own: who writes to tty is read at screen.
func openTerminal(t *testing.T) (screen, tty *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { screen.Close() })
	n, err := unix.IoctlGetUint32(int(screen.Fd()), unix.TIOCGPTN)
	if err == nil {
		err = unix.IoctlSetPointerInt(int(screen.Fd()), unix.TIOCSPTLCK, 0)
	}
	if err == nil {
		tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	}
	if err != nil {
		t.Fatal(err)
	}
	return screen, tty
}

var escapes = regexp.MustCompile("\x1b\\[[0-9;]*m")

func TestTerminal_LinesAreForPeople(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(&terminalHandler{w: &out, level: slog.LevelInfo, zone: time.UTC})
	for _, x := range []struct {
		log  func()
		want string
	}{
		{func() { log.Info(WorkerSays, "worker", "app/1", "pid", 77, "text", "at\tmain.go:7") }, "app/1      | at    main.go:7"},
		{func() { log.Info(WorkerSays, "worker", "app/1", "pid", 77, "text", "", "cut", true) }, "app/1      |   cut=true"},
		{func() {
			log.Warn("backend health changed", "backend", "jobs/w1", "from", "up", "to", "down", "reason", "connection refused", "left", "0/1")
		}, "jobs/w1      warning: backend health changed: up → down: connection refused  left=0/1"},
		{func() {
			log.Info("backend weight changed", "backend", "a-pool-of-a-long-name/w1", "from", "50", "to", "5", "reason", "by root")
		}, "a-pool-of-a-long-name/w1   backend weight changed: 50 → 5: by root"},
		{func() { log.Info("workers restarted", "pool", "app", "of", "app", "by", "root") }, "app          workers restarted, by root  of=app"},
		{func() { log.Error("cannot write", "error", errors.New("disk full"), "path", "/a b") }, "             error: cannot write: disk full  path=\"/a b\""},
		{func() { log.With("a", 1).WithGroup("g").With("b", 2).Info("x", slog.Group("h", "c", 3)) }, "             x  a=1  g.b=2  g.h.c=3"},
		{func() { log.Debug("nobody sees it") }, ""},
	} {
		out.Reset()
		x.log()
		got := strings.TrimSuffix(escapes.ReplaceAllString(out.String(), ""), "\n")
		if got != "" {
			got = got[len("15:04:05.000 "):]
		}
		if got != x.want {
			t.Errorf("got %q; want %q", got, x.want)
		}
	}
}

func TestTerminal_TextFromOutsideIsOnlyText(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(&terminalHandler{w: &out, level: slog.LevelInfo, zone: time.UTC})
	const hostile = "a\x1b[2J\u202e\u009b\nb"
	log.Info(WorkerSays, "worker", hostile, "text", hostile)
	log.Info(hostile, "backend", hostile, "from", hostile, "to", hostile, "reason", hostile, "error", hostile, "by", hostile, hostile, hostile)
	text := escapes.ReplaceAllString(out.String(), "")
	if strings.ContainsAny(text, "\x1b\u202e\u009b") || strings.Count(text, "\n") != 2 {
		t.Errorf("got %q; want two lines, and escapes as text", text)
	}
}

func TestTerminal_WorkersHaveColoursOfTheirOwn(t *testing.T) {
	if a, b := subjectColour("worker", "app/0"), subjectColour("worker", "app/1"); a == b {
		t.Errorf("workers of neighbouring slots: got %q for both; want different colours", a)
	}
	if a, b := subjectColour("worker", "app/3"), subjectColour("backend", "app/3.17"); a != b {
		t.Errorf("a worker and its backend: got %q and %q; want the same colour", a, b)
	}
	if got := subjectColour("backend", "app/w1"); got != bold {
		t.Errorf("a backend that is no worker: got %q; want no colour", got)
	}
}

// TestTerminal_IsForPeopleAlone writes the same line to a terminal, with and without NO_COLOR, and to a pipe.
func TestTerminal_IsForPeopleAlone(t *testing.T) {
	t.Setenv("TERM", "xterm")
	for _, x := range []struct {
		name, noColor, format string
		pipe                  bool
		want                  string
	}{
		{name: "terminal", want: bold + "app/w1" + reset},
		{name: "terminal, NO_COLOR", noColor: "1", want: `level=INFO msg=hello backend=app/w1`},
		{name: "terminal, json", format: "json", want: `"msg":"hello","backend":"app/w1"`},
		{name: "pipe", pipe: true, want: `level=INFO msg=hello backend=app/w1`},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Setenv("NO_COLOR", x.noColor)
			var r, w *os.File
			if x.pipe {
				var err error
				if r, w, err = os.Pipe(); err != nil {
					t.Fatal(err)
				}
				defer r.Close()
			} else {
				r, w = openTerminal(t)
			}
			stderr := os.Stderr
			os.Stderr = w
			cfg := DefaultConfig()
			if x.format != "" {
				cfg.Format = x.format
			}
			l, err := New(cfg)
			os.Stderr = stderr
			if err != nil {
				t.Fatal(err)
			}
			l.Info("hello", "backend", "app/w1")
			l.Close(t.Context())
			line := make([]byte, 1000)
			n, err := r.Read(line)
			w.Close()
			if err != nil || !strings.Contains(string(line[:n]), x.want) {
				t.Errorf("got %q, %v; want %q in it", line[:n], err, x.want)
			}
		})
	}
}
