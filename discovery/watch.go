package discovery

import (
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"
)

const (
	// minTTL and maxTTL bound the time from one look-up to the next, whatever the TTL is.
	minTTL = time.Second
	maxTTL = time.Minute
	// retryFirst is how soon a look-up that failed is tried again; it doubles up to retryMost.
	retryFirst = time.Second
	retryMost  = 3 * time.Second
	// applyAgain is how soon an answer that Apply could not use in full is offered to it again.
	applyAgain = 300 * time.Millisecond
)

// Watcher keeps the backends of one source up to date. Make it with its fields set and call Run.
type Watcher struct {
	// LookUp asks for the backends; known are those of the last answer.
	LookUp func(ctx context.Context, known []Backend) (Answer, error)
	// Changed has the source looked up at once; nil if nothing but time says when to.
	Changed <-chan struct{}
	// Apply makes what a sound answer lists the backends of the pool. If it returns false, it has not used
	// all of it and wants to be called again soon.
	Apply func(found []Backend) (done bool)
	// Stale reports that no sound answer comes, since when, and why; and with a nil error that they come
	// again. It is called once for each turn.
	Stale func(since time.Time, err error)

	mu     sync.Mutex
	status Status // guarded by mu
	known  []Backend
}

// Status is what is known of a source at one moment.
type Status struct {
	// Checked is when the last sound answer came; zero before the first.
	Checked time.Time
	// StaleSince is when answers began to fail; zero if the last one was sound.
	StaleSince time.Time
	// Error is why the last look-up failed; nil if it did not.
	Error error
}

// Status returns how the look-ups go. It may be called at any time.
func (w *Watcher) Status() Status {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.status
}

// Run looks the source up at once, and again whenever the answer has become old, until ctx is done. known are
// the backends that the pool has of the source.
func (w *Watcher) Run(ctx context.Context, known []Backend) {
	w.known = known
	failures, done := 0, true
	timer := time.NewTimer(0)
	defer timer.Stop()
	for next := time.Now(); ; {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-w.Changed:
			next = time.Time{}
		}
		now := time.Now()
		if !now.Before(next) {
			a, err := w.LookUp(ctx, w.known)
			now = time.Now()
			if ctx.Err() != nil {
				return
			}
			if err != nil {
				next = now.Add(min(retryFirst<<min(failures, 4), retryMost))
				failures++
			} else {
				failures = 0
				w.known = a.Backends
				ttl := min(max(a.TTL, minTTL), maxTTL)
				next = now.Add(ttl - rand.N(ttl/10))
				done = w.Apply(slices.Clone(a.Backends))
				err = a.Partial
			}
			w.note(now, err)
		} else {
			done = w.Apply(slices.Clone(w.known))
		}
		wait := next.Sub(now)
		if !done {
			wait = min(wait, applyAgain)
		}
		timer.Reset(max(wait, 0))
	}
}

// note keeps how a look-up went, and reports a turn.
func (w *Watcher) note(now time.Time, err error) {
	w.mu.Lock()
	before := w.status
	w.status.Error = err
	switch {
	case err == nil:
		w.status.Checked, w.status.StaleSince = now, time.Time{}
	case before.StaleSince.IsZero():
		w.status.StaleSince = now
	}
	w.mu.Unlock()
	if (err != nil) != !before.StaleSince.IsZero() {
		w.Stale(now, err)
	}
}
