package supervisor

import (
	"context"
	"slices"
)

// run runs what is posted, until the pool has ended.
func (p *Pool) run() {
	defer close(p.ended)
	p.settle()
	for range p.wake {
		p.mu.Lock()
		batch := p.inbox
		p.inbox = nil
		p.mu.Unlock()
		p.quiet = false
		for _, f := range batch {
			f()
		}
		if !p.quiet || len(batch) > 1 {
			p.settle()
		}
		if p.freezing != nil && !p.park() || p.ending && len(p.workers) == 0 {
			break
		}
	}
	if p.ticker != nil {
		p.ticker.Stop()
	}
	p.mu.Lock()
	p.closed = true
	p.inbox = nil
	p.mu.Unlock()
}

// settle writes down and publishes what a batch of events led to, and then answers those who wait for it.
func (p *Pool) settle() {
	type answer struct {
		to  *waiter
		err error
	}
	var answers []answer
	for again := true; again; { // a check may take a restart on, and that may be what another one waits for
		again = false
		for i, wt := range p.waiters {
			if done, err := wt.check(); done {
				p.waiters = slices.Delete(p.waiters, i, i+1)
				answers = append(answers, answer{wt, err})
				again = true
				break
			}
		}
	}
	p.saveRecord()
	p.publish()
	for _, a := range answers {
		a.to.done <- a.err
	}
}

// post has the pool's goroutine run f, soon. It never blocks. It reports whether there is such a goroutine.
func (p *Pool) post(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.inbox = append(p.inbox, f)
	select {
	case p.wake <- struct{}{}:
	default:
	}
	return true
}

// waiter waits until check says that it is done. check runs on the pool's goroutine, after each batch of
// events.
type waiter struct {
	check func() (done bool, err error)
	done  chan error // holds one
}

// await has the pool's goroutine run first, and returns what check comes to. If ctx is done before, it runs
// abort there and returns ctx's error. The error is ErrStopped when the pool has ended.
func (p *Pool) await(ctx context.Context, first func() error, check func() (bool, error), abort func()) error {
	wt := &waiter{check: check, done: make(chan error, 1)}
	ok := p.post(func() {
		if err := first(); err != nil {
			wt.done <- err
			return
		}
		p.waiters = append(p.waiters, wt)
	})
	if !ok {
		return ErrStopped
	}
	select {
	case err := <-wt.done:
		return err
	case <-p.ended:
		select {
		case err := <-wt.done:
			return err
		default:
			return ErrStopped
		}
	case <-ctx.Done():
	}
	stopped := make(chan error, 1)
	p.post(func() {
		for i, x := range p.waiters {
			if x == wt {
				p.waiters = slices.Delete(p.waiters, i, i+1)
				if abort != nil {
					abort()
				}
				stopped <- context.Cause(ctx)
				return
			}
		}
		select {
		case err := <-wt.done: // it was done after all
			stopped <- err
		default:
			stopped <- context.Cause(ctx)
		}
	})
	select {
	case err := <-stopped:
		return err
	case <-p.ended:
		return ErrStopped
	}
}

// now is a check for await that passes at once.
func now() (bool, error) { return true, nil }
