package admin

import (
	"slices"
	"sync"
)

// ring remembers the last items of an endless row, numbered from 1, and wakes those who follow. Nobody who
// reads can hold up who adds: each reader has its own place, and what was overwritten before it came there is
// lost to it, and counted. Make it with a size. Safe for concurrent use.
type ring[T any] struct {
	size int

	mu    sync.Mutex
	items []T           // in order, from index from on
	from  int           // of the oldest
	last  uint64        // number of the youngest; 0 before the first
	wake  chan struct{} // closed when the next is added; nil while nobody waits
}

// add adds items; number, if not nil, is called with each and its number before it is seen.
func (r *ring[T]) add(number func(*T, uint64), items ...T) {
	if len(items) == 0 {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if skip := len(items) - r.size; skip > 0 { // they would be overwritten at once
		r.last += uint64(skip)
		items = items[skip:]
	}
	for i := range items {
		r.last++
		if number != nil {
			number(&items[i], r.last)
		}
		r.addLocked(items[i])
	}
	if r.wake != nil {
		close(r.wake)
		r.wake = nil
	}
}

func (r *ring[T]) addLocked(item T) {
	if len(r.items) < r.size {
		r.items = append(r.items, item)
		return
	}
	r.items[r.from] = item
	r.from = (r.from + 1) % r.size
}

// oldestLocked is the number before that of the oldest item.
func (r *ring[T]) oldestLocked() uint64 { return r.last - uint64(len(r.items)) }

func (r *ring[T]) atLocked(n uint64) *T {
	return &r.items[(r.from+int(n-1-r.oldestLocked()))%len(r.items)]
}

// after returns up to most items behind number n, the oldest first, the number of the last of them, and how
// many before them were overwritten. Where there is none, wake is closed when there is.
func (r *ring[T]) after(n uint64, most int) (items []T, upTo, missed uint64, wake <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if n >= r.last {
		if r.wake == nil {
			r.wake = make(chan struct{})
		}
		return nil, n, 0, r.wake
	}
	if oldest := r.oldestLocked(); n < oldest {
		missed, n = oldest-n, oldest
	}
	for len(items) < most && n < r.last {
		n++
		items = append(items, *r.atLocked(n))
	}
	return items, n, missed, nil
}

// begin returns the number behind which the last items are that match counts; a nil match counts each.
func (r *ring[T]) begin(last uint64, match func(*T) bool) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := r.last
	for found := uint64(0); n > r.oldestLocked() && found < last; n-- {
		if match == nil || match(r.atLocked(n)) {
			found++
		}
	}
	return n
}

// save returns what is remembered, and the number of the last.
func (r *ring[T]) save() (items []T, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Concat(r.items[r.from:], r.items[:r.from]), r.last
}

// restore goes on from what save returned; what was added before is forgotten.
func (r *ring[T]) restore(items []T, last uint64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.items = slices.Clone(items[max(0, len(items)-r.size):])
	r.from, r.last = 0, max(last, uint64(len(r.items)))
}
