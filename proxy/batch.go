package proxy

// Hot path: receives and sends of a round in two system calls. `make bench` holds what it saves.

import (
	"errors"
	"fmt"
	"io/fs"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/uring"
)

const (
	// batchSize is the most directions that a batch carries.
	batchSize = 64
	// batchBuffer is what a direction may carry in a batch. What fills it goes on by splice(2) (spliceAt).
	batchBuffer = 16 << 10
	// batchFrom is the fewest directions that are worth a batch; fewer are carried by plain system calls.
	batchFrom = 4
)

// batch holds the directions of a round that have something to read and nothing else to do. Their receives go
// to the kernel in one system call, and then their sends in another. That saves preemption more than calls:
// each send wakes its reader, which preempts the loop; in a batch that happens once, after the last send
// (docs/decisions.md, "small exchanges of a round go in batches through a ring").
//
// What must stay true:
//
//   - A direction is in it once: it holds what one wait for events has reported (dispatchAll).
//   - Nothing is in flight when runBatch returns: a freeze, or a close, never meets a batch that is under way.
//   - No session is closed between the first receive and the last send: the descriptor in an operation is
//     its session's until the operation is done.
//   - What was read, sent and left is noted for the whole batch before the first session may end or go on: a
//     session's other direction may be in the same batch, and whatever ends one carries the other on.
type batch struct {
	ring    *uring.Ring // nil: there are no batches
	buffers [][]byte    // not of Go's heap; the i-th item's
	free    func()
	items   []batchItem
	results []uring.Result
}

// batchItem is a direction in a batch: what end src of a session has sent.
type batchItem struct {
	ref   sessionRef
	src   int32
	n     int32 // bytes that were received; 0 as long as there are none
	errno unix.Errno
	flags int  // of the send
	sent  bool // something was received, and a send was tried
}

// openBatch makes the ring. Where the kernel refuses one, it fails if the config demands it, and notes why if
// not.
func (l *loop) openBatch() error {
	b := &l.batch
	if l.p.cfg.Batching == BatchingOff {
		return nil
	}
	ring, err := uring.New(batchSize)
	if err == nil {
		if b.buffers, b.free, err = uring.Buffers(batchSize, batchBuffer); err != nil {
			ring.Close()
		}
	}
	if err != nil {
		l.p.noRing = err
		if l.p.cfg.Batching == BatchingOn {
			return fmt.Errorf("batching = %q: %w; %s, or write \"auto\"", BatchingOn, err, RingAdvice(err))
		}
		return nil
	}
	b.ring = ring
	b.items = make([]batchItem, 0, batchSize)
	b.results = make([]uring.Result, batchSize)
	return nil
}

// TryBatching returns nil if this process may use an io_uring as the loops do, and else why it may not.
func TryBatching() error {
	ring, err := uring.New(batchSize)
	if err != nil {
		return err
	}
	ring.Close()
	return nil
}

// CheckHost finds what the config needs and this host has not. The error's text starts with the key.
func (c *Config) CheckHost() error {
	if c.Batching != BatchingOn {
		return nil
	}
	if err := TryBatching(); err != nil {
		return fmt.Errorf("batching: lb cannot start with \"on\": %w; %s, or write \"auto\"", err, RingAdvice(err))
	}
	return nil
}

// RingAdvice returns what an operator can do about an error of TryBatching.
func RingAdvice(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "set kernel.io_uring_disabled to 0, and let the sandbox allow io_uring_setup and io_uring_enter"
	case errors.Is(err, unix.ENOMEM), errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return "raise the limits on memory and descriptors"
	}
	return "use Linux 5.18 or later, or a sandbox that allows io_uring"
}

// close gives the ring and the buffers back.
func (b *batch) close() {
	if b.ring != nil {
		b.ring.Close()
	}
	if b.free != nil {
		b.free()
	}
	*b = batch{}
}

// plain reports whether the direction from end src has something to read, and nothing that keeps it from
// being carried in a batch.
func (l *loop) plain(s *session, src int) bool {
	d := &s.dirs[src]
	return s.phase == phaseRelaying && s.ends[src].flags&endReadable != 0 && !d.blocked() && d.full == 0 &&
		d.flags&(dirSplicing|dirEOF|dirBroken|dirSettling) == 0
}

// addToBatch has the direction carried when the events of this wait are handled.
func (l *loop) addToBatch(s *session, src int) {
	b := &l.batch
	b.items = append(b.items, batchItem{ref: s.ref(), src: int32(src)})
	if len(b.items) == batchSize {
		l.runBatch()
	}
}

// runBatch carries what is in the batch, and empties it.
func (l *loop) runBatch() {
	b := &l.batch
	if len(b.items) == 0 {
		return
	}
	if len(b.items) >= l.limits.batchFrom {
		l.receiveBatch()
		l.sendBatch()
	}
	l.finishBatch()
}

// receiveBatch reads for every item whose direction is still plain: an event of the other end may have
// changed it since.
func (l *loop) receiveBatch() {
	b := &l.batch
	for i := range b.items {
		item := &b.items[i]
		item.errno = uring.NotDone
		b.results[i] = uring.Result{Errno: uring.NotDone}
		if s := l.table.find(item.ref); s != nil && l.plain(s, int(item.src)) {
			b.ring.Recv(s.ends[item.src].fd, b.buffers[i], i)
		}
	}
	l.doBatch()
	for i := range b.items {
		item := &b.items[i]
		item.n, item.errno = b.results[i].N, b.results[i].Errno
		if item.errno == unix.EAGAIN {
			l.table.find(item.ref).ends[item.src].flags &^= endReadable
		}
	}
}

// sendBatch sends what receiveBatch has read, and notes for each item how that ended.
func (l *loop) sendBatch() {
	b := &l.batch
	for i := range b.items {
		item := &b.items[i]
		if item.errno != 0 || item.n == 0 {
			continue
		}
		s := l.table.find(item.ref)
		src := int(item.src)
		l.received(s, src, int(item.n), int(item.n) == batchBuffer)
		b.results[i] = uring.Result{Errno: uring.NotDone}
		item.flags = s.holdBack(src, item.n < batchBuffer)
		if b.ring != nil {
			b.ring.Send(s.ends[1-src].fd, b.buffers[i][:item.n], item.flags, i)
		}
		item.sent = true
	}
	l.doBatch()
	for i := range b.items {
		item := &b.items[i]
		if !item.sent {
			continue
		}
		s, data := l.table.find(item.ref), b.buffers[i][:item.n]
		n, errno := int(b.results[i].N), b.results[i].Errno
		if errno == uring.NotDone {
			n, errno = send(s.ends[1-item.src].fd, data, item.flags)
		}
		l.sent(s, int(item.src), data, n, errno)
		item.errno = errno
		if item.n < batchBuffer {
			s.ends[item.src].emptied()
		}
	}
}

// doBatch has the kernel do what was added to the ring. A ring that the kernel refuses is given up.
func (l *loop) doBatch() {
	b := &l.batch
	if b.ring == nil {
		return
	}
	if errno := b.ring.Do(b.results); errno != 0 {
		b.ring.Close()
		b.ring = nil // the buffers stay: the batch that is under way needs them
		l.p.ringLost(errno)
	}
}

// finishBatch does what follows from the receives and sends, and empties the batch. A session may end here,
// or be carried on by its other direction's item. Errors of a receive come first: the kernel tells them once,
// and whoever reads after one takes it for the end of the stream.
func (l *loop) finishBatch() {
	b := &l.batch
	for i := range b.items {
		item := &b.items[i]
		if s := l.table.find(item.ref); s != nil && item.readFailed() {
			l.readFailed(s, int(item.src))
		}
	}
	for i := range b.items {
		l.finishItem(&b.items[i])
	}
	b.items = b.items[:0]
}

// readFailed reports whether the item's receive has brought the socket's error.
func (item *batchItem) readFailed() bool {
	if item.sent {
		return false
	}
	switch item.errno {
	case 0, uring.NotDone, unix.EAGAIN, unix.ENOMEM, unix.ENOBUFS:
		return false
	}
	return true
}

// finishItem goes on with an item's direction as it is by now. What the ring has not done, pump does.
func (l *loop) finishItem(item *batchItem) {
	s := l.table.find(item.ref)
	if s == nil || s.phase != phaseRelaying {
		return
	}
	src := int(item.src)
	switch d := &s.dirs[src]; {
	case d.flags&(dirEOF|dirBroken) != 0: // it has ended with an item before
	case item.sent && isFatal(item.errno):
		l.writeFailed(s, src)
	case item.sent && d.buffered != nil:
		l.blockedBy(s, 1-src, item.errno)
	default:
		l.pump(s, src)
	}
}
