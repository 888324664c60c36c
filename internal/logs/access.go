package logs

import (
	"context"
	"fmt"
	"io"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// accessQueue is how many entries wait at most: at 100 000 sessions a second, those of 80 ms.
	accessQueue = 8192
	// accessGather is how long entries gather before they are written, so that a busy lb wakes the writer at most
	// 20 times a second.
	accessGather = 50 * time.Millisecond
	// accessChunk is about how many bytes one write has.
	accessChunk = 64 << 10
)

// AccessLog writes one line a session. Make it with OpenAccessLog. A nil AccessLog is one that is off: all its methods
// do nothing. Safe for concurrent use.
type AccessLog struct {
	// OnError, if set, is told when lines could not be written; they count as dropped. Set it before the first
	// Record. It runs on the goroutine that writes.
	OnError func(error)

	batchWriter
	out    io.Writer
	file   *output // out where it is one; nil in tests
	format func(*Entry, []byte) []byte

	dropped atomic.Uint64

	mu      sync.Mutex
	filling []Entry // its capacity is fixed
	closed  bool

	writing []Entry // owned by the goroutine
	line    []byte  // owned by the goroutine
}

// OpenAccessLog opens the access log that cfg, which must be valid, describes; nil if it is off. The caller owes a Close.
func OpenAccessLog(cfg Config) (*AccessLog, error) {
	if cfg.Access == "off" || cfg.Access == "" {
		return nil, nil
	}
	file, err := openOutput(cfg.Access)
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

// Record queues a copy of e. It never waits for the output and allocates nothing (BenchmarkRecord): event loops call
// it. What does not fit is dropped.
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

// Reopen opens the file anew by its path, for after it was renamed by a log rotation. If that fails, the old file
// stays in use. For stdout and stderr it does nothing.
func (a *AccessLog) Reopen() error {
	if a == nil || a.file == nil {
		return nil
	}
	return a.file.reopen()
}

// Close writes what is queued and closes the file. It gives up when ctx is done, with ctx's error; the goroutine that
// writes is then left to the end of the process. Later records are dropped.
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

// writeBatch swaps the queue out and writes it, in chunks of whole lines.
func (a *AccessLog) writeBatch() {
	a.mu.Lock()
	a.filling, a.writing = a.writing[:0], a.filling
	a.mu.Unlock()
	lines := 0
	for i := range a.writing {
		a.line = a.format(&a.writing[i], a.line)
		lines++
		if len(a.line) >= accessChunk {
			a.writeLines(lines)
			lines = 0
		}
	}
	a.writeLines(lines)
}

func (a *AccessLog) writeLines(lines int) {
	if lines == 0 {
		return
	}
	_, err := a.out.Write(a.line)
	a.line = a.line[:0]
	if err != nil {
		a.dropped.Add(uint64(lines))
		if a.OnError != nil {
			a.OnError(fmt.Errorf("cannot write access log: %w", err))
		}
	}
}
