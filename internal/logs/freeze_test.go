package logs

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

// canceled returns a context that is done.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// overExec gives a Queued as another process reads it.
func overExec(t *testing.T, q Queued) (back Queued) {
	t.Helper()
	b, err := json.Marshal(q)
	if err == nil {
		err = json.Unmarshal(b, &back)
	}
	if err != nil {
		t.Fatal(err)
	}
	return back
}

// stuckPipe is a pipe that nobody reads yet, in each way that an output can be one.
func stuckPipe(t *testing.T, kind string) (out func() *output, r *os.File) {
	t.Helper()
	if kind == "fifo" {
		path := filepath.Join(t.TempDir(), "fifo")
		if err := unix.Mkfifo(path, 0o600); err != nil {
			t.Fatal(err)
		}
		r, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { r.Close() })
		return func() *output {
			o, err := openOutput(path, nil)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { o.close() })
			return o
		}, r
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil { // one that waits, as standard streams are
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	t.Cleanup(func() { r.Close() })
	return func() *output {
		f, err := duplicate(w)
		if err != nil {
			t.Fatal(err)
		}
		o := new(output)
		o.use(f)
		o.noNow = kind == "old kernel"
		t.Cleanup(func() { o.close() })
		return o
	}, r
}

var pipeKinds = []string{"pipe", "old kernel", "fifo"}

// retries reads n lines of text, and checks that their last but third fields count up.
func wantCounting(t *testing.T, r *os.File, n int) {
	t.Helper()
	lines := bufio.NewReader(r)
	for i := range n {
		line, err := lines.ReadString('\n')
		if err != nil || !strings.HasPrefix(line, "127.0.0.1:40312 [") || !strings.Contains(line, fmt.Sprintf("/%d 0/0 512\n", i)) {
			t.Fatalf("line %d: got %q, %v; want that one, whole", i, line, err)
		}
	}
	if lines.Buffered() > 0 {
		t.Errorf("behind the last line: got %d bytes; want none", lines.Buffered())
	}
}

func record(a *AccessLog, from, to int) {
	for i := from; i < to; i++ {
		e := entry
		e.Retries = i
		a.Record(&e)
	}
}

func TestAccessLog_LosesAndDoublesNothingOverAnExec(t *testing.T) {
	for _, kind := range pipeKinds {
		for _, thaw := range []bool{false, true} {
			out, r := stuckPipe(t, kind)
			a := newAccessLog(out(), "text")
			go a.run()
			record(a, 0, 3000) // some 300 KB, and the pipe takes 64
			flushing, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if err := a.Flush(flushing); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("Flush into a full %s: got %v; want its time to be over", kind, err)
			}
			cancel()
			record(a, 3000, 3100)
			a.dropped.Add(7)
			q, err := a.Freeze(canceled())
			if err != nil {
				t.Fatal(err)
			}
			if len(q.Lines) < 100_000 || q.Dropped != 7 {
				t.Errorf("frozen: got %d bytes, %d dropped; want what the %s did not take, and 7", len(q.Lines), q.Dropped, kind)
			}
			next := a
			if thaw {
				a.Thaw()
			} else {
				next = newAccessLog(out(), "text")
				go next.run()
				next.Requeue(overExec(t, q))
			}
			record(next, 3100, 3200)
			wantCounting(t, r, 3200)
			closeLog(t, next)
			if next.Dropped() != 7 {
				t.Errorf("dropped: got %d; want the 7 of before", next.Dropped())
			}
			if next != a {
				// The process of before is gone; here it must not write any more.
				a.line, a.filling = nil, nil
				closeLog(t, a)
			}
		}
	}
}

func TestLogger_LosesAndDoublesNothingOverAnExec(t *testing.T) {
	for _, kind := range pipeKinds {
		for _, thaw := range []bool{false, true} {
			out, r := stuckPipe(t, kind)
			logger := func() *Logger {
				o := out()
				l := &Logger{out: o, queue: newLineQueue(o)}
				l.queue.mark = func(n uint64) []byte { return fmt.Appendf(nil, "dropped %d\n", n) }
				go l.queue.run()
				return l
			}
			const n = 5000
			l := logger()
			log := func(l *Logger, from, to int) {
				for i := from; i < to; i++ {
					fmt.Fprintf(l.queue, "line %d of many that are rather long than short\n", i)
				}
			}
			log(l, 0, n)
			l.queue.mu.Lock()
			l.queue.backlog.lost = 3
			l.queue.mu.Unlock()
			q, err := l.Freeze(canceled())
			if err != nil {
				t.Fatal(err)
			}
			if len(q.Lines) < 100_000 || !bytes.HasSuffix(q.Lines, []byte("dropped 3\n")) {
				t.Errorf("frozen: got %d bytes; want what the %s did not take, and 3 told as dropped", len(q.Lines), kind)
			}
			next := l
			if thaw {
				l.Thaw()
			} else {
				next = logger()
				next.Requeue(overExec(t, q))
			}
			log(next, n, n+100)
			told := 0
			lines := bufio.NewReader(r)
			for i := 0; i < n+100 || told == 0; {
				line, err := lines.ReadString('\n')
				switch {
				case line == "dropped 3\n":
					told++
				case err != nil || line != fmt.Sprintf("line %d of many that are rather long than short\n", i):
					t.Fatalf("line %d: got %q, %v; want that one, whole", i, line, err)
				default:
					i++
				}
			}
			if err := next.Flush(t.Context()); err != nil || told != 1 {
				t.Errorf("after all: got %v, drops told %d times; want nil, once", err, told)
			}
			closeLog(t, next)
			if next != l {
				// The process of before is gone; here it must not write any more.
				l.queue.left, l.queue.filling = nil, nil
				closeLog(t, l)
			}
		}
	}
}

func TestAccessLog_FlushDoesNotWaitForMore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var w countingWriter
		a := newAccessLog(&w, "text")
		go a.run()
		record(a, 0, 10)
		start := time.Now()
		if err := a.Flush(t.Context()); err != nil || w.lines.Load() != 10 || time.Since(start) != 0 {
			t.Errorf("Flush: got %v, %d lines, after %v; want 10 at once", err, w.lines.Load(), time.Since(start))
		}
		closeLog(t, a)
	})
}

func TestAccessLog_FreezeWritesWhatItCan(t *testing.T) {
	cfg := DefaultConfig()
	cfg.Access = filepath.Join(t.TempDir(), "access.log")
	a, err := OpenAccessLog(cfg)
	if err != nil {
		t.Fatal(err)
	}
	record(a, 0, 10)
	if q, err := a.Freeze(t.Context()); err != nil || len(q.Lines) != 0 {
		t.Errorf("Freeze: got %q, %v; want nothing left", q.Lines, err)
	}
	if n := strings.Count(readFile(t, cfg.Access), "\n"); n != 10 {
		t.Errorf("file: got %d lines; want 10", n)
	}
	record(a, 10, 20)
	closeLog(t, a) // a stop while it is frozen
	if n := strings.Count(readFile(t, cfg.Access), "\n"); n != 20 {
		t.Errorf("file after Close: got %d lines; want 20", n)
	}
	a.Thaw()
}

func TestAccessLog_FreezeOfAWriteThatDoesNotEndChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newStuckWriter()
		a := newAccessLog(w, "text")
		go a.run()
		record(a, 0, 1)
		time.Sleep(accessGather)
		<-w.entered
		if _, err := a.Freeze(canceled()); !errors.Is(err, errBusy) {
			t.Errorf("Freeze: got %v; want errBusy", err)
		}
		if a.pausing.Load() {
			t.Error("after a Freeze that failed: got it held; want it going on")
		}
		close(w.free)
		record(a, 1, 2)
		closeLog(t, a)
		if got := len(w.lines()); got != 2 {
			t.Errorf("lines: got %d; want 2", got)
		}
	})
}

func TestAccessLog_ThatIsOffFreezesToo(t *testing.T) {
	var a *AccessLog
	if q, err := a.Freeze(t.Context()); err != nil || q.Lines != nil {
		t.Errorf("Freeze: got %+v, %v; want nothing", q, err)
	}
	a.Requeue(Queued{Lines: []byte("x\n")})
	a.Thaw()
	if err := a.Flush(t.Context()); err != nil {
		t.Errorf("Flush: got %v; want nil", err)
	}
}
