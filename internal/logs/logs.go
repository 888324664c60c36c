// Package logs writes lb's logs: events, and one line a session if the config wants them.
//
// A [Logger] is package slog's logger with a level that can change while lb runs and files that can be
// reopened. On a terminal its lines are for people: coloured, and short (terminal.go). A [Throttle] folds
// errors that repeat into one line with a count. An [AccessLog] takes an [Entry] from each session that ends.
//
// Nothing here makes its caller wait for a disk or for whoever reads a pipe: lines go to a bounded queue, one
// goroutine for each Logger and AccessLog writes them, and what does not fit is dropped and counted. Close
// waits until everything is written. The package never reads a config file, catches no signal, and never ends
// the process.
//
// # The access log
//
// In text, a line is HAProxy's tcplog (its configuration manual, §8.2.2), so that what reads that reads this,
// and one field more:
//
//	127.0.0.1:40312 [21/Sep/2026:08:12:33.123] web app/w1 0/1/1250 4210 -- 3/3/2/1/0 0/0 512
//
//	client           address and port; [address]:port for IPv6; "unix:0" for a client on a Unix socket
//	[time]           when it was accepted, local time
//	listener
//	pool/backend     the backend it was carried to, or tried at last; "<NOSRV>" when there was none
//	Tw/Tc/Tt         milliseconds waited in the pool's queue, until the backend connection was established, and from
//	                 accept to the end; -1 for what it did not come to
//	bytes            to the client
//	termination      two letters: who or what ended the session, and in which phase; "--" is the normal end
//	a/b/c/d/retries  sessions at this moment, this one included: of the process, the listener, the pool, the backend;
//	                 and how many backends were tried in vain
//	0/0              HAProxy's positions in its queues; always 0
//	bytes            from the client
//
// In JSON, a line is one object with the same facts; seconds have microseconds, and null is what it did not
// come to:
//
//	{"time":"2026-09-21T08:12:33.123456+02:00","client":"127.0.0.1:40312","listener":"web","pool":"app","backend":"w1",
//	"queue_seconds":0.000000,"connect_seconds":0.001123,"session_seconds":1.250417,"bytes_in":512,"bytes_out":4210,
//	"termination":"--","sessions":3,"listener_active":3,"pool_active":2,"backend_active":1,"retries":0}
package logs

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/273ebdf9/lb/internal/printable"
)

// Logger is the log of events. Make it with New. Safe for concurrent use.
type Logger struct {
	*slog.Logger
	level slog.LevelVar
	out   *output
	queue *lineQueue
	over  atomic.Pointer[chan<- struct{}] // ends a pause; nil when there is none
}

// New opens the log that cfg, which must be valid, describes. The caller owes a Close.
func New(cfg Config) (*Logger, error) { return NewFrom(cfg, nil) }

// NewFrom is New for a log that goes on in the file that another process returned from File, whatever its
// path leads to now; nil for none. The file stays the caller's.
func NewFrom(cfg Config, file *os.File) (*Logger, error) {
	out, err := openOutput(cfg.Output, file)
	if err != nil {
		return nil, fmt.Errorf("cannot open log.output: %w", err)
	}
	l := &Logger{out: out, queue: newLineQueue(out)}
	l.level.Set(cfg.SlogLevel())
	options := &slog.HandlerOptions{Level: &l.level}
	people := forPeople(out.file)
	handler := func(w io.Writer) slog.Handler {
		switch {
		case cfg.Format == "json":
			return slog.NewJSONHandler(printable.JSONWriter(w), options)
		case people:
			return &terminalHandler{w: w, level: &l.level, zone: time.Local}
		}
		return slog.NewTextHandler(printable.LinesWriter(w), options)
	}
	l.Logger = slog.New(handler(l.queue))
	l.queue.mark = func(lost uint64) []byte {
		var line bytes.Buffer
		record := slog.NewRecord(time.Now(), slog.LevelWarn, "lines of the log were dropped here: what takes them is full or too slow", 0)
		record.AddAttrs(slog.Uint64("lines", lost))
		handler(&line).Handle(context.Background(), record) // a buffer cannot fail
		return line.Bytes()
	}
	go l.queue.run()
	return l, nil
}

// Dropped counts the lines that were dropped because what takes them is too slow, full or closed.
func (l *Logger) Dropped() uint64 { return l.queue.dropped.Load() }

// Level is the least level that is written.
func (l *Logger) Level() slog.Level { return l.level.Level() }

// SetLevel changes the least level that is written, from now on.
func (l *Logger) SetLevel(level slog.Level) { l.level.Set(level) }

// File returns a duplicate of the log's file for NewFrom, which the caller closes; nil for stdout and stderr.
func (l *Logger) File() (*os.File, error) { return l.out.copy() }

// Reopen opens the file again by its path, for after a log rotation has renamed it. If that fails, the old
// file stays in use. For stdout and stderr it does nothing.
func (l *Logger) Reopen() error { return l.out.reopen() }

// Flush writes what is queued now. It gives up when ctx is done, with ctx's error; what is left is written
// later.
func (l *Logger) Flush(ctx context.Context) error {
	if err := l.queue.flushNow(ctx); err != nil {
		return fmt.Errorf("cannot flush the log: %w", err)
	}
	return nil
}

// Freeze writes what is queued until ctx is done, and then pauses the log. It returns what it could not
// write, to the byte. Lines logged later wait for Thaw. It is the last before an exec; the new process goes
// on with Requeue. An error says that a write does not end, and the log is as before.
func (l *Logger) Freeze(ctx context.Context) (Queued, error) {
	over, err := l.queue.pause(ctx)
	if err != nil {
		return Queued{}, fmt.Errorf("cannot freeze the log: %w", err)
	}
	l.over.Store(&over)
	return l.queue.queued(), nil
}

// Thaw goes on after a Freeze, and writes also what that returned.
func (l *Logger) Thaw() {
	if over := l.over.Swap(nil); over != nil && *over != nil {
		l.queue.resume(*over)
	}
}

// Requeue takes over what the log of another process had not written. It is written before everything that is
// still queued.
func (l *Logger) Requeue(q Queued) { l.queue.requeue(q) }

// Close writes what is queued and closes the file. It gives up when ctx is done, with ctx's error; the
// goroutine that writes is then left to the end of the process. Lines logged later are dropped.
func (l *Logger) Close(ctx context.Context) error {
	if err := l.queue.close(ctx); err != nil {
		return fmt.Errorf("cannot flush the log: %w", err)
	}
	return l.out.close()
}
