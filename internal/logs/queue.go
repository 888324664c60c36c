package logs

import (
	"context"
	"errors"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

// batchWriter is the goroutine behind a queue: it sleeps until a batch begins, lets it gather, and has it
// written.
type batchWriter struct {
	gather time.Duration // how long a batch gathers before it is written; 0 is not at all
	write  func()        // writes the batch; what a pause kept it from stays for the next time

	wake    chan struct{}      // holds one element when a batch began
	flush   chan chan struct{} // to write now, and close it then
	pauses  chan *pause        // to rest
	quit    chan struct{}      // closed to write what there is and end
	done    chan struct{}      // closed at the end
	once    sync.Once
	pausing atomic.Bool // a write that waits for its reader gives up
}

// pause is a time in which the goroutine touches nothing.
type pause struct {
	begun chan struct{} // closed by the goroutine
	over  chan struct{} // closed by who asked for it
}

func newBatchWriter(gather time.Duration, write func()) *batchWriter {
	return &batchWriter{
		gather: gather, write: write,
		wake: make(chan struct{}, 1), flush: make(chan chan struct{}), pauses: make(chan *pause),
		quit: make(chan struct{}), done: make(chan struct{}),
	}
}

// begin wakes the goroutine for a batch that began. It never blocks.
func (w *batchWriter) begin() {
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// run writes batches until close. While nothing is logged it has no timer running.
func (w *batchWriter) run() {
	defer close(w.done)
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	gathering := false
	for {
		select {
		case <-w.wake:
			if !gathering && w.gather > 0 {
				gathering = true
				timer.Reset(w.gather)
				continue
			}
			if gathering {
				continue
			}
		case <-timer.C:
			gathering = false
		case written := <-w.flush:
			w.write()
			close(written)
			continue
		case r := <-w.pauses:
			close(r.begun)
			select {
			case <-r.over:
			case <-w.quit:
			}
			continue
		case <-w.quit:
			w.write()
			return
		}
		w.write()
	}
}

// close ends run after a last write, and waits for that until ctx is done.
func (w *batchWriter) close(ctx context.Context) error {
	w.pausing.Store(false)
	w.once.Do(func() { close(w.quit) })
	select {
	case <-w.done:
		return nil
	default:
	}
	select {
	case <-w.done:
		return nil
	case <-ctx.Done():
		w.pausing.Store(true) // so that it ends soon, unless it is a disk that it waits for
		return ctx.Err()
	}
}

// flushNow has everything written that is queued, and waits for that until ctx is done.
func (w *batchWriter) flushNow(ctx context.Context) error {
	written := make(chan struct{})
	select {
	case w.flush <- written:
	case <-w.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-written:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// holdPatience is how long a write may take that does not wait for a reader: a disk's.
const holdPatience = 2 * time.Second

// errBusy: a write does not end.
var errBusy = errors.New("a write to the log does not end")

// pause writes what can be written until ctx is done, and pauses the goroutine. The caller ends that
// by closing over; it is nil when the goroutine has ended.
func (w *batchWriter) pause(ctx context.Context) (over chan<- struct{}, err error) {
	w.flushNow(ctx) // what it leaves is the caller's to take
	w.pausing.Store(true)
	late := time.NewTimer(holdPatience)
	defer late.Stop()
	r := &pause{begun: make(chan struct{}), over: make(chan struct{})}
	select {
	case w.pauses <- r:
		<-r.begun
		return r.over, nil
	case <-w.done:
		return nil, nil
	case <-late.C:
		w.pausing.Store(false)
		return nil, errBusy
	}
}

// resume ends a pause.
func (w *batchWriter) resume(over chan<- struct{}) {
	w.pausing.Store(false)
	close(over)
	w.begin()
}

// writeUnless writes p to out, and ends with errPaused if w is held meanwhile, where out can.
func (w *batchWriter) writeUnless(out io.Writer, p []byte) (int, error) {
	if o, ok := out.(*output); ok {
		return o.writeUnless(&w.pausing, p)
	}
	return out.Write(p)
}

// Queued is what a log had not written when it came to rest, for the log of another process. It is plain
// data.
type Queued struct {
	// Lines are as they were to be written. The first may be the end of one whose beginning was.
	Lines []byte `json:"lines,omitempty"`
	// Dropped counts lines that were dropped: of an access log all of them, of an event log those of which it
	// has not reported.
	Dropped uint64 `json:"dropped,omitempty"`
}

// maxQueued is how many bytes of events wait at most. An event has some 200.
const maxQueued = 1 << 20

// lineQueue is an io.Writer that never blocks: lines wait in memory until the goroutine has written them.
// What does not fit, or cannot be written, goes to a backlog: the last lines are kept, and a line in the
// place of those that were dropped says how many there were.
type lineQueue struct {
	*batchWriter
	out     io.Writer
	mark    func(lost uint64) []byte // the line that says so
	dropped atomic.Uint64            // all that were

	mu      sync.Mutex
	filling []byte
	backlog backlog // of lines behind filling
	retry   *time.Timer

	writing []byte // owned by the goroutine, as all below
	left    []byte // the part of writing that is not written
	marking uint64 // left is a mark, of so many lines
	began   bool   // left begins in the middle of a line
}

func newLineQueue(out io.Writer) *lineQueue {
	q := &lineQueue{out: out}
	q.batchWriter = newBatchWriter(0, q.writeBatch)
	return q
}

// Write queues one line; it always succeeds.
func (q *lineQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	first := len(q.filling) == 0 && q.backlog.empty()
	if !q.backlog.empty() || len(q.filling)+len(line) > maxQueued {
		q.dropped.Add(q.backlog.add(line))
	} else {
		q.filling = append(q.filling, line...)
	}
	q.mu.Unlock()
	if first {
		q.begin()
	}
	return len(line), nil
}

func (q *lineQueue) writeBatch() {
	for q.next() {
		n, err := q.writeUnless(q.out, q.left)
		torn := n > 0 && q.left[n-1] != '\n' || n == 0 && q.began
		q.left, q.began = q.left[n:], torn
		switch {
		case errors.Is(err, errPaused):
			return
		case err != nil:
			q.failed(torn)
			return
		}
		q.written()
	}
}

// next makes left what is to be written next, and reports whether there is something.
func (q *lineQueue) next() bool {
	if len(q.left) > 0 {
		return true
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	b := &q.backlog
	switch {
	case len(q.filling) > 0:
		q.filling, q.writing = q.writing[:0], q.filling
		q.left, q.began = q.writing, false
	case b.lost > 0:
		q.marking, q.left, q.began = b.lost, q.markLine(), false
	case len(b.lines) > 0:
		q.left, q.began = b.lines, b.part
		b.lines, b.part = nil, false
	default:
		return false
	}
	return true
}

// markLine returns the line that says what the backlog dropped.
func (q *lineQueue) markLine() []byte {
	line := q.mark(q.backlog.lost)
	if q.backlog.torn {
		line = append([]byte{'\n'}, line...)
	}
	return line
}

// written notes that left is written.
func (q *lineQueue) written() {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.marking > 0 {
		q.backlog.lost -= q.marking
		q.backlog.torn = false
		q.marking = 0
	}
}

// failed keeps what could not be written: there is nowhere to tell of it yet. It is tried again with the next
// line, and each second.
func (q *lineQueue) failed(torn bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b := &q.backlog
	if q.marking > 0 {
		b.torn = b.torn || torn
		q.marking = 0
	} else {
		// What is left is older than filling, and that than the backlog.
		rest := slices.Concat(q.left, q.filling)
		q.filling = q.filling[:0]
		q.dropped.Add(b.unwritten(rest, torn))
	}
	q.left, q.began = nil, false
	if q.retry == nil {
		q.retry = time.AfterFunc(retryEvery, func() {
			q.mu.Lock()
			q.retry = nil
			q.mu.Unlock()
			q.begin()
		})
	}
}

// queued returns what is not written. The goroutine is paused.
func (q *lineQueue) queued() Queued {
	q.mu.Lock()
	defer q.mu.Unlock()
	lines := slices.Concat(q.left, q.filling)
	if q.backlog.lost > 0 && q.marking == 0 {
		lines = append(lines, q.markLine()...)
	}
	return Queued{Lines: append(lines, q.backlog.lines...)}
}

// requeue puts what another process had queued before everything else.
func (q *lineQueue) requeue(x Queued) {
	if x.Dropped > 0 { // of an lb that reported them later
		x.Lines = append(slices.Clone(x.Lines), q.mark(x.Dropped)...)
	}
	q.mu.Lock()
	q.filling = slices.Concat(x.Lines, q.filling)
	q.mu.Unlock()
	q.begin()
}
