package backends

// Hot path: one Acquire and one Release a connection. BenchmarkPick in package balancer holds their cost and
// that they allocate nothing.

import (
	"errors"
	"net/netip"
	"slices"
)

var (
	// ErrNoneUp means that no backend of the pool is selectable.
	ErrNoneUp = errors.New("no backend is selectable")
	// ErrSaturated means that backends are selectable, but each is at its max_conns or was tried by this
	// connection.
	ErrSaturated = errors.New("every selectable backend is full or was tried")
	// ErrQueued means that the connection waits; its Waiter's Grant will be called.
	ErrQueued = errors.New("the connection waits for a backend")
	// ErrQueueFull means that the connection would have to wait, and queue_size connections do already.
	ErrQueueFull = errors.New("the queue is full; see queue_size")
)

// Request describes the connection that needs a backend.
type Request struct {
	// Client is the client's address; the zero value on a Unix listener.
	Client netip.Addr
	// Tried holds the backends that this connection could not reach. A policy never picks one of them.
	Tried []*Backend
}

// Policy orders a pool's backends. The pool calls it with its mutex held: no method may block, call the pool,
// or be called from elsewhere. Implementations are in package balancer.
type Policy interface {
	// Pick returns a backend that is Eligible and not in req.Tried, or nil if there is none. It does not
	// acquire.
	Pick(req *Request) *Backend
	// Update is called when b's active count, weight, limit or state may have changed.
	Update(b *Backend)
	// Reset replaces the members, of which each has its Index set. The policy may keep the slice and must not
	// change it.
	Reset(members []*Backend)
}

// Acquire chooses a backend for a new connection and takes one of its slots: the caller owes exactly one
// Release. When every backend that the connection has not tried is at its max_conns, or none is selectable
// and when_all_down is "queue", it puts w at the end of the queue and returns ErrQueued; the caller then
// waits for w.Grant, or ends the wait with Leave. Other errors are ErrNoneUp, ErrQueueFull, and ErrSaturated
// when every selectable backend was tried or queue_size is 0; then w is not used. Acquire does not keep req.
func (p *Pool) Acquire(req *Request, w *Waiter) (*Backend, error) {
	p.mu.Lock()
	// A newcomer overtakes no waiter: whatever is free here is of no use to those who wait (see queue).
	p.served = true
	b := p.policy.Pick(req)
	if b == nil { // in a function of its own, so that most connections meet no defer
		return p.acquireElseAndUnlock(req, w)
	}
	b.take()
	p.policy.Update(b)
	p.mu.Unlock()
	return b, nil
}

// acquireElseAndUnlock ends an Acquire for which the policy has no backend.
func (p *Pool) acquireElseAndUnlock(req *Request, w *Waiter) (*Backend, error) {
	defer p.mu.Unlock()
	b := p.pickElseLocked(req)
	if b == nil {
		return nil, p.enqueueLocked(req, w)
	}
	p.takeLocked(b)
	return b, nil
}

// Release returns a slot of b that Acquire took. The slot goes to the oldest connection that waits for one.
func (p *Pool) Release(b *Backend) {
	p.mu.Lock()
	if b.active.Add(-1) < 0 {
		p.mu.Unlock()
		panic("BUG: backends: slot released twice")
	}
	if p.queue.head == nil && !b.removed.Load() {
		p.policy.Update(b)
		p.mu.Unlock()
		return
	}
	p.roomAndUnlock(b)
}

// roomAndUnlock ends a critical section in which b may have got room: the policy hears of it, and those who
// wait.
func (p *Pool) roomAndUnlock(b *Backend) {
	if b.removed.Load() {
		p.departLocked(b)
	} else {
		p.policy.Update(b)
	}
	if p.queue.head == nil {
		p.mu.Unlock()
		return
	}
	p.grantAndUnlock(b)
}

// grantAndUnlock grants b's free slots to the connections that wait for them.
func (p *Pool) grantAndUnlock(b *Backend) {
	var granted grants
	p.grantLocked(b, &granted)
	p.mu.Unlock()
	granted.call()
}

// pickLocked returns the backend for a connection, or nil.
func (p *Pool) pickLocked(req *Request) *Backend {
	p.served = true
	if b := p.policy.Pick(req); b != nil {
		return b
	}
	return p.pickElseLocked(req)
}

// pickElseLocked returns the least loaded backup, or nil, for a connection that has tried every backend that
// the pool offers: they may be down, and health does not know yet.
func (p *Pool) pickElseLocked(req *Request) *Backend {
	if len(req.Tried) == 0 {
		return nil
	}
	if _, untried := p.offeredLocked(req); untried {
		return nil
	}
	var best *Backend
	for _, b := range p.Backends() {
		if b.offered.Load() || !b.Selectable() || !b.hasRoom() || slices.Contains(req.Tried, b) {
			continue
		}
		if best == nil || (b.Active()+1)*best.EffectiveWeight() < (best.Active()+1)*b.EffectiveWeight() {
			best = b
		}
	}
	return best
}

// offeredLocked reports whether a backend is offered, free or not, and whether one is that the connection has
// not tried.
func (p *Pool) offeredLocked(req *Request) (offered, untried bool) {
	for _, b := range p.Backends() {
		if b.offered.Load() {
			offered = true
			if !slices.Contains(req.Tried, b) {
				return true, true
			}
		}
	}
	return offered, false
}

// takeLocked takes a slot of b, and updates the policy.
func (p *Pool) takeLocked(b *Backend) {
	b.take()
	p.policy.Update(b)
}

// take takes a slot of b. The caller holds the pool's mutex and updates the policy. It is small enough to be
// inlined.
func (b *Backend) take() {
	b.active.Add(1)
	if b.window.Load() > 0 {
		b.untaken.Add(1)
	}
}
