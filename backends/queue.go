package backends

import (
	"net/netip"
	"slices"
	"sync/atomic"
	"time"
)

// Waiter is a connection's place in a pool's queue. It belongs to the pool from the call of Acquire that
// returned ErrQueued until the call of Grant, or until Leave returned true. Then it can be used again.
type Waiter struct {
	// Session identifies the connection to its owner; the pool does not read it.
	Session uint64
	// Grant is called once, with a slot of b that is already taken: the owner owes one Release. It is called
	// with no lock held, on the goroutine that freed the slot, and must not block. It may use w again.
	Grant func(w *Waiter, b *Backend)
	// Since is when the connection began to wait. Acquire sets it; for Requeue its caller does.
	Since time.Time

	client netip.Addr
	tried  []*Backend // a copy

	// Guarded by the pool's mutex while queued; then of the goroutine that calls Grant.
	queued     bool
	prev, next *Waiter
	granted    *Backend
}

// QueueCounters count what became of the connections that had to wait. They only grow.
type QueueCounters struct {
	Queued   atomic.Uint64 // had to wait
	Rejected atomic.Uint64 // did not, because the queue was full
	Timeouts atomic.Uint64 // waited for queue_timeout; counted by those who call Leave
	Wait     Histogram     // how long those waited that were granted a slot; observed by those who wait
}

// queue is a pool's queue: the connections that have waited longest come first. The pool's mutex guards it.
//
// Whatever makes a slot free or a backend offered grants in the same critical section. So, whenever the mutex
// is free, every waiter has tried each backend that is eligible, and a newcomer that finds a free slot takes
// it from no waiter.
type queue struct {
	head, tail *Waiter
}

// QueueLen returns how many connections wait at this moment.
func (p *Pool) QueueLen() int { return int(p.waiting.Load()) }

// OldestWait returns how long the connection has waited that is served next; 0 if none waits.
func (p *Pool) OldestWait() time.Duration {
	if p.waiting.Load() == 0 {
		return 0
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.queue.head == nil {
		return 0
	}
	return time.Since(p.queue.head.Since)
}

// Leave ends the wait of w. It returns true if w was still queued; its place is free then. False means that a
// grant is on its way or has come: the caller must wait for it and release what it gets.
func (p *Pool) Leave(w *Waiter) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !w.queued {
		return false
	}
	p.dequeueLocked(w)
	return true
}

// enqueueLocked puts w at the end of the queue and returns ErrQueued, or returns why it cannot.
func (p *Pool) enqueueLocked(req *Request, w *Waiter) error {
	cfg := p.Config()
	offered, untried := p.offeredLocked(req)
	switch {
	case !offered && (cfg.WhenAllDown != whenQueue || cfg.QueueSize == 0):
		return ErrNoneUp
	case offered && (!untried || cfg.QueueSize == 0):
		return ErrSaturated
	case p.waiting.Load() >= int64(cfg.QueueSize):
		p.Queue.Rejected.Add(1)
		return ErrQueueFull
	case w.queued:
		panic("BUG: backends: waiter is queued already")
	}
	w.client, w.tried = req.Client, w.tried[:0]
	if offered { // else a backend that comes up is worth another try
		w.tried = append(w.tried, req.Tried...)
	}
	w.Since = time.Now()
	p.appendLocked(w)
	p.Queue.Queued.Add(1)
	return ErrQueued
}

func (p *Pool) appendLocked(w *Waiter) {
	w.queued, w.prev, w.next = true, p.queue.tail, nil
	if w.prev == nil {
		p.queue.head = w
	} else {
		w.prev.next = w
	}
	p.queue.tail = w
	p.waiting.Add(1)
}

func (p *Pool) dequeueLocked(w *Waiter) {
	if w.prev == nil {
		p.queue.head = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		p.queue.tail = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.queued, w.prev, w.next = false, nil, nil
	p.waiting.Add(-1)
}

// grantLocked grants the free slots of b to the oldest waiters that have not tried it.
func (p *Pool) grantLocked(b *Backend, granted *grants) {
	if !b.offered.Load() {
		// A backup may be of use to a connection that has tried all others: pickLocked knows.
		if b.backup.Load() && b.Selectable() {
			p.grantAllLocked(granted)
		}
		return
	}
	for w := p.queue.head; w != nil && b.hasRoom(); {
		next := w.next
		if !slices.Contains(w.tried, b) {
			p.grantToLocked(w, b, granted)
		}
		w = next
	}
}

// grantAllLocked grants the free slots of all backends to the oldest waiters, by the policy.
func (p *Pool) grantAllLocked(granted *grants) {
	var req Request
	for w := p.queue.head; w != nil; {
		next := w.next
		req.Client, req.Tried = w.client, w.tried
		if b := p.pickLocked(&req); b != nil {
			p.grantToLocked(w, b, granted)
		} else if len(w.tried) == 0 {
			return // nothing is free
		}
		w = next
	}
}

func (p *Pool) grantToLocked(w *Waiter, b *Backend, granted *grants) {
	p.takeLocked(b)
	p.dequeueLocked(w)
	granted.add(w, b)
}

// forgive lets the waiters try b again, which has come up.
func (q *queue) forgive(b *Backend) {
	for w := q.head; w != nil; w = w.next {
		w.tried = slices.DeleteFunc(w.tried, func(x *Backend) bool { return x == b })
	}
}

// grants holds the waiters that have left the queue and whose Grant is called once the mutex is free, the
// oldest first.
type grants struct {
	head, tail *Waiter
}

func (g *grants) add(w *Waiter, b *Backend) {
	w.granted = b
	if g.tail == nil {
		g.head = w
	} else {
		g.tail.next = w
	}
	g.tail = w
}

func (g *grants) call() {
	for w := g.head; w != nil; {
		next, b := w.next, w.granted
		w.next, w.granted = nil, nil
		w.Grant(w, b) // w is its owner's from here on
		w = next
	}
}
