package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// accessQueue is how many entries wait at most: at 100 000 sessions a second, those of 80 ms.
	accessQueue = 8192
	// accessGather is how long entries gather before they are written, so that a busy lb wakes the writer at
	// most 20 times a second.
	accessGather = 50 * time.Millisecond
	// accessChunk is about how many bytes one write has.
	accessChunk = 64 << 10
)

// AccessLog writes one line a session. Make it with OpenAccessLog. A nil AccessLog is one that is off: all
// its methods do nothing. Safe for concurrent use.
type AccessLog struct {
	// OnError, if set, is called when lines could not be written; they count as dropped. Set it before the
	// first Record. It runs on the goroutine that writes.
	OnError func(error)

	*batchWriter
	out    io.Writer
	file   *output // out where it is one; nil in tests
	format func(*Entry, []byte) []byte

	dropped atomic.Uint64

	mu      sync.Mutex
	filling []Entry         // its capacity is fixed
	earlier []byte          // lines of another process, to be written before
	over    chan<- struct{} // ends a pause; nil when there is none
	closed  bool

	writing []Entry // owned by the goroutine
	line    []byte  // owned by the goroutine; between batches, what it was kept from writing
	// owned by the goroutine: what was written last is the beginning of a line that was dropped
	torn bool
}

// OpenAccessLog opens the access log that cfg, which must be valid, describes; nil if it is off. The caller
// owes a Close.
func OpenAccessLog(cfg Config) (*AccessLog, error) { return OpenAccessLogFrom(cfg, nil) }

// OpenAccessLogFrom is OpenAccessLog for one that goes on in the file that another process returned from
// File, whatever its path leads to now; nil for none. The file stays the caller's.
func OpenAccessLogFrom(cfg Config, inherited *os.File) (*AccessLog, error) {
	if cfg.Access == "off" || cfg.Access == "" {
		return nil, nil
	}
	file, err := openOutput(cfg.Access, inherited)
	if err != nil {
		return nil, fmt.Errorf("cannot open log.access: %w", err)
	}
	a := newAccessLog(file, cfg.AccessFormat)
	a.file = file
	go a.run()
	return a, nil
}

func newAccessLog(out io.Writer, format string) *AccessLog {
	a := &AccessLog{
		out:     out,
		format:  (*Entry).appendText,
		filling: make([]Entry, 0, accessQueue),
		writing: make([]Entry, 0, accessQueue),
		line:    make([]byte, 0, accessChunk+1024),
	}
	if format == "json" {
		a.format = (*Entry).appendJSON
	}
	a.batchWriter = newBatchWriter(accessGather, a.writeBatch)
	return a
}

// Record queues a copy of e. It never waits for the output and allocates nothing (BenchmarkRecord): event
// loops call it. What does not fit is dropped.
func (a *AccessLog) Record(e *Entry) {
	if a == nil {
		return
	}
	a.mu.Lock()
	n := len(a.filling)
	if n == cap(a.filling) || a.closed {
		a.mu.Unlock()
		a.dropped.Add(1)
		return
	}
	a.filling = append(a.filling, *e)
	a.mu.Unlock()
	if n == 0 {
		a.begin()
	}
}

// Dropped counts the lines that were dropped because the output is too slow, failed or is closed.
func (a *AccessLog) Dropped() uint64 {
	if a == nil {
		return 0
	}
	return a.dropped.Load()
}

// File returns a duplicate of the log's file for OpenAccessLogFrom, which the caller closes; nil for stdout
// and stderr.
func (a *AccessLog) File() (*os.File, error) {
	if a == nil || a.file == nil {
		return nil, nil
	}
	return a.file.copy()
}

// Reopen opens the file again by its path, for after a log rotation has renamed it. If that fails, the old
// file stays in use. For stdout and stderr it does nothing.
func (a *AccessLog) Reopen() error {
	if a == nil || a.file == nil {
		return nil
	}
	return a.file.reopen()
}

// Flush writes what is queued now. It gives up when ctx is done, with ctx's error; what is left is written
// later.
func (a *AccessLog) Flush(ctx context.Context) error {
	if a == nil {
		return nil
	}
	if err := a.flushNow(ctx); err != nil {
		return fmt.Errorf("cannot flush the access log: %w", err)
	}
	return nil
}

// Freeze writes what is queued until ctx is done, and then pauses the log. It returns what it could not
// write, to the byte. Later records wait for Thaw. It is called when nobody records any more, and before an
// exec; the new process goes on with Requeue. An error says that a write does not end, and the log is as
// before.
func (a *AccessLog) Freeze(ctx context.Context) (Queued, error) {
	if a == nil {
		return Queued{}, nil
	}
	over, err := a.pause(ctx)
	if err != nil {
		return Queued{}, fmt.Errorf("cannot freeze the access log: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.over = over
	var lines []byte
	if a.torn {
		lines = append(lines, '\n')
	}
	lines = append(append(lines, a.line...), a.earlier...)
	for i := range a.filling {
		lines = a.format(&a.filling[i], lines)
	}
	return Queued{Lines: lines, Dropped: a.dropped.Load()}, nil
}

// Thaw goes on after a Freeze, and writes also what that returned.
func (a *AccessLog) Thaw() {
	if a == nil {
		return
	}
	a.mu.Lock()
	over := a.over
	a.over = nil
	a.mu.Unlock()
	if over != nil {
		a.resume(over)
	}
}

// Requeue takes over what the log of another process had not written, to be written before everything else.
// The lines have that one's form. It is called before the first Record. A log that is off drops them.
func (a *AccessLog) Requeue(q Queued) {
	if a == nil {
		return
	}
	a.dropped.Add(q.Dropped)
	a.mu.Lock()
	a.earlier = append(a.earlier, q.Lines...)
	a.mu.Unlock()
	a.begin()
}

// Close writes what is queued and closes the file. It gives up when ctx is done, with ctx's error; the
// goroutine that writes is then left to the end of the process. Later records are dropped.
func (a *AccessLog) Close(ctx context.Context) error {
	if a == nil {
		return nil
	}
	a.mu.Lock()
	a.closed = true
	a.mu.Unlock()
	if err := a.close(ctx); err != nil {
		return fmt.Errorf("cannot flush the access log: %w", err)
	}
	if a.file == nil {
		return nil
	}
	return a.file.close()
}

// writeBatch swaps the queue out and writes it, in chunks of whole lines, behind what a rest kept from being
// written.
func (a *AccessLog) writeBatch() {
	a.mu.Lock()
	a.filling, a.writing = a.writing[:0], a.filling
	a.line, a.earlier = append(a.line, a.earlier...), nil
	a.mu.Unlock()
	unfinished := false
	for i := range a.writing {
		a.line = a.format(&a.writing[i], a.line)
		if len(a.line) >= accessChunk && !unfinished {
			a.writeLines()
			unfinished = len(a.line) > 0
		}
	}
	if !unfinished {
		a.writeLines()
	}
}

// writeLines writes a.line. What a pause keeps it from writing stays there. What an error keeps it from
// writing is dropped; if that tears a line, the next write ends the torn one first, so that two lines never
// become one.
func (a *AccessLog) writeLines() {
	if len(a.line) == 0 {
		return
	}
	if a.torn {
		a.torn = false
		a.line = slices.Insert(a.line, 0, '\n')
	}
	n, err := a.writeUnless(a.out, a.line)
	if errors.Is(err, errPaused) {
		a.line = append(a.line[:0], a.line[n:]...)
		return
	}
	if err != nil {
		lost := a.line[n:]
		if n > 0 {
			a.torn = a.line[n-1] != '\n'
		} else if lost[0] == '\n' { // it was to end a torn line, which no session's is
			a.torn, lost = true, lost[1:]
		}
		a.dropped.Add(uint64(bytes.Count(lost, newline)))
		if a.OnError != nil {
			a.OnError(fmt.Errorf("cannot write access log: %w", err))
		}
	}
	a.line = a.line[:0]
}

var newline = []byte{'\n'}
