package logs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

func newLogger(t testing.TB, change func(*Config)) (l *Logger, path string) {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Output = filepath.Join(t.TempDir(), "lb.log")
	change(&cfg)
	l, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return l, cfg.Output
}

func TestLogger_WritesTheFormatOfTheConfig(t *testing.T) {
	l, path := newLogger(t, func(c *Config) { c.Format = "json" })
	l.Info("backend is down", "backend", "w1")
	closeLog(t, l)
	var line struct{ Level, Msg, Backend string }
	if err := json.Unmarshal([]byte(readFile(t, path)), &line); err != nil || line.Msg != "backend is down" || line.Backend != "w1" || line.Level != "INFO" {
		t.Errorf("line in JSON: got %+v, %v; want the event", line, err)
	}

	l, path = newLogger(t, func(*Config) {})
	l.Info("backend is down", "backend", "w1")
	closeLog(t, l)
	if got := readFile(t, path); !strings.HasSuffix(got, "level=INFO msg=\"backend is down\" backend=w1\n") {
		t.Errorf("line in text: got %q; want the event", got)
	}
}

func TestLogger_LevelChangesWhileItRuns(t *testing.T) {
	l, path := newLogger(t, func(c *Config) { c.Level = "warn" })
	l.Info("one")
	l.Warn("two")
	l.SetLevel(slog.LevelInfo)
	l.Info("three")
	closeLog(t, l)
	got := readFile(t, path)
	if strings.Contains(got, "one") || !strings.Contains(got, "two") || !strings.Contains(got, "three") {
		t.Errorf("log: got %q; want two and three", got)
	}
}

func TestLogger_ReopenFollowsARotation(t *testing.T) {
	l, path := newLogger(t, func(*Config) {})
	l.Info("before")
	// Only what was written before the rename is in the old file: the queue is written first.
	waitWritten(t, l.queue)
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); err != nil {
		t.Fatal(err)
	}
	l.Info("after")
	closeLog(t, l)
	if old, now := readFile(t, path+".1"), readFile(t, path); !strings.Contains(old, "before") || strings.Contains(old, "after") || !strings.Contains(now, "after") {
		t.Errorf("files: got %q and %q; want before in the old one and after in the new one", old, now)
	}
}

// waitWritten waits until the queue is empty and what was in it is in the file, by having the queue write itself.
func waitWritten(t *testing.T, q *lineQueue) {
	t.Helper()
	done := make(chan struct{})
	old := q.onDrop
	q.mu.Lock()
	q.dropped, q.onDrop = 1, func(uint64) { close(done) } // told behind the write
	q.mu.Unlock()
	q.begin()
	<-done
	q.onDrop = old
}

func TestLogger_FailedReopenKeepsTheOldFile(t *testing.T) {
	l, path := newLogger(t, func(*Config) {})
	dir := filepath.Dir(path)
	if err := os.Rename(dir, dir+".away"); err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir + ".away")
	if err := l.Reopen(); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Reopen without the folder: got %v; want os.ErrNotExist", err)
	}
	l.Info("still here")
	closeLog(t, l)
	if got := readFile(t, filepath.Join(dir+".away", filepath.Base(path))); !strings.Contains(got, "still here") {
		t.Errorf("old file: got %q; want the line", got)
	}
}

func TestNew_ErrorNamesTheKeyAndTheFile(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Output, cfg.Access = "/nonexistent/lb.log", "/nonexistent/access.log"
	if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), "log.output") || !strings.Contains(err.Error(), cfg.Output) {
		t.Errorf("New: got %v; want an error with log.output and the path", err)
	}
	if _, err := OpenAccessLog(cfg); err == nil || !strings.Contains(err.Error(), "log.access") || !strings.Contains(err.Error(), cfg.Access) {
		t.Errorf("OpenAccessLog: got %v; want an error with log.access and the path", err)
	}
}

func TestNew_FIFOWithoutAReaderIsAnErrorAndNoHang(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Output = filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(cfg.Output, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(cfg); !errors.Is(err, unix.ENXIO) {
		t.Errorf("New: got %v; want ENXIO", err)
	}
}

// stuckWriter blocks in Write until it is freed, and remembers what came.
type stuckWriter struct {
	entered chan struct{} // one element for each Write that began
	free    chan struct{} // closed to let everything through

	mu  sync.Mutex
	buf bytes.Buffer
}

func newStuckWriter() *stuckWriter {
	return &stuckWriter{entered: make(chan struct{}, 1000), free: make(chan struct{})}
}

func (w *stuckWriter) Write(p []byte) (int, error) {
	w.entered <- struct{}{}
	<-w.free
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.Write(p)
}

func (w *stuckWriter) lines() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return strings.Split(strings.TrimSuffix(w.buf.String(), "\n"), "\n")
}

func TestLogger_StuckReaderCostsLinesAndNoTime(t *testing.T) {
	w := newStuckWriter()
	q := newLineQueue(w)
	var told uint64
	q.onDrop = func(lines uint64) { told += lines }
	go q.run()
	line := []byte(strings.Repeat("x", 1023) + "\n")
	q.Write(line)
	<-w.entered // the writer hangs with the first line; from here on, maxQueued fits
	for range maxQueued/len(line) + 5 {
		q.Write(line)
	}
	close(w.free)
	if err := q.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := len(w.lines()), 1+maxQueued/len(line); got != want || told != 5 {
		t.Errorf("lines written and dropped: got %d and %d; want %d and 5", got, told, want)
	}
}

func TestLogger_CloseGivesUpOnAStuckReader(t *testing.T) {
	w := newStuckWriter()
	q := newLineQueue(w)
	go q.run()
	q.Write([]byte("line\n"))
	<-w.entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := q.close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("close: got %v; want context.Canceled", err)
	}
	close(w.free)
	<-q.done
}

func TestLogger_DropsAreTold(t *testing.T) {
	l, path := newLogger(t, func(*Config) {})
	l.queue.mu.Lock()
	l.queue.dropped = 7
	l.queue.mu.Unlock()
	l.Info("next")
	closeLog(t, l)
	if got := readFile(t, path); !strings.Contains(got, "lines=7") {
		t.Errorf("log: got %q; want a line that tells 7 dropped ones", got)
	}
}

// orphanVariable makes this test binary a process that logs to stdout and stderr after their reader is gone.
const orphanVariable = "LB_LOGS_TEST_ORPHAN"

func logIntoNothing() {
	cfg := DefaultConfig()
	cfg.Access = "stdout"
	l, err := New(cfg)
	if err != nil {
		os.Exit(3)
	}
	a, err := OpenAccessLog(cfg)
	if err != nil {
		os.Exit(4)
	}
	failed := 0
	a.OnError = func(error) { failed++ }
	bufio.NewReader(os.Stdin).ReadByte() // the reader is gone when this ends
	l.Info("into nothing")
	a.Record(&Entry{})
	l.Close(context.Background())
	a.Close(context.Background())
	if failed == 0 || a.Dropped() != 1 {
		os.Exit(5)
	}
	os.Exit(0)
}

func TestLogger_DeathOfItsReaderIsSurvived(t *testing.T) {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), orphanVariable+"=1", "GORACE=atexit_sleep_ms=0")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	r.Close()
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Errorf("process whose stdout and stderr nobody reads: got %v; want it to live on", err)
	}
}

func BenchmarkLogger(b *testing.B) {
	l, _ := newLogger(b, func(c *Config) { c.Output = os.DevNull })
	defer closeLog(b, l)
	b.ReportAllocs()
	for b.Loop() {
		l.Info("backend is down", "pool", "app", "backend", "w1")
	}
}
