package logs

import (
	"context"
	"io"
	"sync"
	"time"
)

// batchWriter is the goroutine behind a queue: it sleeps until a batch begins, lets it gather, and has it written.
type batchWriter struct {
	gather time.Duration // how long a batch gathers before it is written; 0 is not at all
	write  func()        // writes the batch

	wake chan struct{} // holds one element when a batch began
	quit chan struct{} // closed to write what there is and end
	done chan struct{} // closed at the end
	once sync.Once
}

func newBatchWriter(gather time.Duration, write func()) batchWriter {
	return batchWriter{
		gather: gather, write: write,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
}

// begin tells that a batch began. It never blocks.
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
	for {
		select {
		case <-w.wake:
		case <-w.quit:
			w.write()
			return
		}
		if w.gather > 0 {
			timer.Reset(w.gather)
			select {
			case <-timer.C:
			case <-w.quit:
				timer.Stop()
			}
		}
		w.write()
	}
}

// close ends run after a last write, and waits for that until ctx is done.
func (w *batchWriter) close(ctx context.Context) error {
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
		return ctx.Err()
	}
}

// maxQueued is how many bytes of events wait at most. An event has some 200.
const maxQueued = 1 << 20

// lineQueue is an io.Writer that never blocks: lines wait in memory until the goroutine has written them.
type lineQueue struct {
	batchWriter
	out    io.Writer
	onDrop func(lines uint64) // told of lines that did not fit, once there is room again

	mu      sync.Mutex
	filling []byte
	dropped uint64

	writing []byte // owned by the goroutine
}

func newLineQueue(out io.Writer) *lineQueue {
	q := &lineQueue{out: out}
	q.batchWriter = newBatchWriter(0, q.writeBatch)
	return q
}

// Write queues one line; it always succeeds.
func (q *lineQueue) Write(line []byte) (int, error) {
	q.mu.Lock()
	first := len(q.filling) == 0
	if len(q.filling)+len(line) > maxQueued {
		q.dropped++
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
	for {
		q.mu.Lock()
		q.filling, q.writing = q.writing[:0], q.filling
		dropped := q.dropped
		q.dropped = 0
		q.mu.Unlock()
		if len(q.writing) == 0 && dropped == 0 {
			return
		}
		q.out.Write(q.writing) // there is nowhere to tell that a log cannot be written
		if dropped > 0 {
			q.onDrop(dropped)
		}
	}
}
