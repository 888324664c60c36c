package logs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

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

// waitWritten waits until the queue is empty and what was in it is in the file.
func waitWritten(t *testing.T, q *lineQueue) {
	t.Helper()
	if err := q.flushNow(t.Context()); err != nil {
		t.Fatal(err)
	}
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

func TestLogger_StuckReaderCostsNoTimeAndNotTheLastLines(t *testing.T) {
	w := newStuckWriter()
	q := newLineQueue(w)
	q.mark = func(lost uint64) []byte { return fmt.Appendf(nil, "dropped %d\n", lost) }
	go q.run()
	line := []byte(strings.Repeat("x", 1023) + "\n")
	q.Write(line)
	<-w.entered // the writer hangs with the first line; from here on, maxQueued and a backlog fit
	for range (maxQueued+maxBacklog)/len(line) + 4 {
		q.Write(line)
	}
	q.Write([]byte("FATAL\n"))
	close(w.free)
	if err := q.close(t.Context()); err != nil {
		t.Fatal(err)
	}
	lines := w.lines()
	if got := lines[len(lines)-1]; got != "FATAL" {
		t.Errorf("last line: got %q; want FATAL", got)
	}
	if got := lines[1+maxQueued/len(line)]; got != "dropped 5" || q.dropped.Load() != 5 {
		t.Errorf("behind what was queued: got %q, %d counted; want 5 told as dropped there", got, q.dropped.Load())
	}
}

// failingWriter fails until it is mended, and takes the beginning of what it is given.
type failingWriter struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	takes  int
	mended bool
}

func (w *failingWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.mended {
		return w.buf.Write(p)
	}
	n := min(w.takes, len(p))
	w.takes -= n
	w.buf.Write(p[:n])
	return n, unix.ENOSPC
}

func TestLogger_FullDiskLosesNoLineThatFitsInto(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, n := range []int{100, 20_000} { // fewer than a backlog has, and more
			w := &failingWriter{takes: 12} // a line and a half
			q := newLineQueue(w)
			q.mark = func(lost uint64) []byte { return fmt.Appendf(nil, "dropped %d\n", lost) }
			go q.run()
			for i := range n {
				fmt.Fprintf(q, "%07d\n", i)
				if i%50 == 0 {
					synctest.Wait()
				}
			}
			synctest.Wait()
			w.mu.Lock()
			w.mended = true
			w.mu.Unlock()
			time.Sleep(retryEvery + time.Millisecond) // no other line comes
			synctest.Wait()
			next, dropped := 0, uint64(0)
			for _, line := range strings.Split(strings.TrimSuffix(w.buf.String(), "\n"), "\n") {
				var lost, i int
				if _, err := fmt.Sscanf(line, "dropped %d", &lost); err == nil {
					next, dropped = next+lost, dropped+uint64(lost)
				} else if fmt.Sscanf(line, "%d", &i); len(line) == 7 && i == next {
					next++
				} else if len(line) == 7 || dropped > 0 {
					t.Fatalf("of %d: got line %q; want %d", n, line, next)
				}
			}
			if next != n || dropped != q.dropped.Load() || (dropped > 0) != (n > 10_000) {
				t.Errorf("of %d: got %d told of, %d of them as dropped, %d counted; want all", n, next, dropped, q.dropped.Load())
			}
			if err := q.close(t.Context()); err != nil {
				t.Error(err)
			}
		}
	})
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
	for _, format := range []string{"text", "json"} {
		l, path := newLogger(t, func(c *Config) { c.Format = format })
		l.queue.mu.Lock()
		l.queue.backlog.lost = 7
		l.queue.mu.Unlock()
		l.Info("next")
		closeLog(t, l)
		if got := readFile(t, path); strings.Index(got, "dropped here") > strings.Index(got, "next") || !strings.Contains(got, "lines=7") && !strings.Contains(got, `"lines":7`) {
			t.Errorf("log: got %q; want a line that tells 7 dropped ones, in their place", got)
		}
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
