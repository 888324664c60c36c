package supervisor

import (
	"context"
	"fmt"
	"math"
	"time"
)

const (
	// forgetAfter is how long a worker must be up for its slot to forget its deaths.
	forgetAfter = 30 * time.Second
	// backoffCap is the longest wait between two starts.
	backoffCap = 30 * time.Second
	// failedAfter is how many quick deaths in a row make a slot show as failed.
	failedAfter = 5
)

// slot is a place for one worker. Its number never changes. It belongs to the pool's goroutine.
type slot struct {
	number  int
	wanted  bool              // it shall have a worker
	stopped bool              // by hand
	removed bool              // scaled away
	current *worker           // the slot's own: waiting, starting or serving; nil if none
	next    *worker           // shall replace it; nil if none
	release *Release          // what its workers run
	deaths  int               // quick ones in a row
	starts  uint64            // how many workers were started
	exits   map[string]uint64 // how many have ended, by why
	cpu     time.Duration     // of those that have ended
	last    Exit              // the last worker's end
}

// Exit is how a worker ended.
type Exit struct {
	Time   time.Time `json:"time"`
	PID    int       `json:"pid"`
	Reason string    `json:"reason"`          // "exit status 1", "signal: killed"
	Fault  string    `json:"fault,omitempty"` // the first line of a crash in its output
	Lines  []string  `json:"lines,omitempty"` // the last lines of its output
}

// grow adds slots until there are n, and removes those above.
func (p *Pool) grow(n int) {
	for len(p.slots) < n {
		p.slots = append(p.slots, &slot{number: len(p.slots), wanted: true, release: p.release})
	}
	for _, s := range p.slots[n:] {
		s.wanted, s.removed = false, true
		p.retire(s, fmt.Sprintf("scaled to %d", n))
	}
	p.slots = p.slots[:n:n]
}

// retire ends the slot's workers gracefully. They finish what they have while another one may already run.
func (p *Pool) retire(s *slot, reason string) {
	for _, w := range []*worker{s.next, s.current} {
		if w != nil {
			p.fire(w, retire, reason)
		}
	}
	s.current = nil
}

// newWorker adds a worker to s that will run r.
func (p *Pool) newWorker(s *slot, r *Release) *worker {
	w := &worker{slot: s, release: r, since: time.Now(), spread: 2*p.random() - 1, trial: p.trial}
	p.workers = append(p.workers, w)
	return w
}

// plan makes the next worker of s, which starts after delay, at the address end; nil: a new address.
func (p *Pool) plan(s *slot, delay time.Duration, end *endpoint, reason string) {
	w := p.newWorker(s, s.release)
	w.delay, w.end = delay, end
	s.current = w
	p.enter(w, waiting, reason)
}

// replace plans the next worker of s while w, its current one until now, finishes.
func (p *Pool) replace(w *worker, reason string) {
	s := w.slot
	if s.current != w {
		return
	}
	s.current = nil
	if s.wanted && !p.ending {
		p.plan(s, p.backoff(s, w), nil, reason)
	}
}

// join starts a worker that shall replace s's own.
func (p *Pool) join(s *slot, r *Release, reason string) *attempt {
	a := &attempt{slot: s}
	w := p.newWorker(s, r)
	w.attempt, a.worker = a, w
	s.next = w
	p.enter(w, joining, reason)
	p.report(w, waiting)
	p.start(w, reason)
	return a
}

// promote makes w the current worker of its slot, and retires the one before.
func (p *Pool) promote(w *worker) {
	s := w.slot
	old := s.current
	s.current, s.next, s.release = w, nil, w.release
	s.deaths = 0
	w.decide(nil)
	if old != nil {
		p.fire(old, retire, "replaced")
	}
}

// served records that w's release works, if none is known to.
func (p *Pool) served(w *worker) {
	if p.good == nil {
		p.good = w.release.pinned(w.dir)
	}
}

// ended records how w ended.
func (s *slot) ended(w *worker) {
	s.last = Exit{Time: time.Now(), PID: w.pid(), Reason: w.reason}
	if w.out != nil {
		s.last.Lines, s.last.Fault = w.out.lines(), w.out.fault()
	}
}

// forgetSoon clears the slot's count of deaths once w has been up for forgetAfter.
func (p *Pool) forgetSoon(w *worker) {
	if w.slot.deaths == 0 {
		return
	}
	time.AfterFunc(max(0, forgetAfter-time.Since(w.upSince)), func() {
		p.post(func() {
			if w.slot.current == w {
				w.slot.deaths = 0
			}
		})
	})
}

// backoff counts a death of w, the current worker of s, and returns how long its successor has to wait.
func (p *Pool) backoff(s *slot, w *worker) time.Duration {
	if w.started.IsZero() || w.orphan {
		return 0
	}
	if !w.upSince.IsZero() && time.Since(w.upSince) >= forgetAfter { // the timer may be a moment late
		s.deaths = 0
	}
	s.deaths++
	return backoff(s.deaths, p.random())
}

// backoff returns the wait after a number of quick deaths in a row. random, 0 <= random < 1, spreads it.
func backoff(deaths int, random float64) time.Duration {
	if deaths <= 1 {
		return 0
	}
	d := math.Min(float64(time.Second)*math.Pow(1.5, float64(deaths-2)), float64(backoffCap))
	return time.Duration(d * (0.8 + 0.4*random))
}

// slotAt returns the slot of that number.
func (p *Pool) slotAt(number int) (*slot, error) {
	if number < 0 || number >= len(p.slots) {
		return nil, fmt.Errorf("cannot find slot %d of pool %q: %w; it has 0 to %d", number, p.Name, ErrNoSlot, len(p.slots)-1)
	}
	return p.slots[number], nil
}

// Scale changes the number of slots: new ones are started, the ones with the highest numbers finish what they
// have and go. It returns when the new ones have been ready. When one of them ends before that, or ctx is
// over, they go again, and the error returns why. The number stays until the config's count changes.
func (p *Pool) Scale(ctx context.Context, count int) error {
	if count < 0 || count > maxCount {
		return fmt.Errorf("cannot scale pool %q to %d workers: not within 0..%d", p.Name, count, maxCount)
	}
	var added []*slot
	before := 0
	undo := func() {
		for _, s := range added {
			if s.removed { // another one has scaled meanwhile
				return
			}
		}
		if len(added) > 0 && len(p.slots) == count {
			p.grow(before)
		}
	}
	first := func() error {
		if p.ending {
			return ErrStopped
		}
		if p.rollout != nil {
			return ErrBusy
		}
		before = len(p.slots)
		p.grow(count)
		for _, s := range p.slots[min(before, count):] {
			p.plan(s, 0, nil, fmt.Sprintf("scaled to %d", count))
			added = append(added, s)
		}
		return nil
	}
	return p.await(ctx, first, func() (bool, error) {
		for _, s := range added {
			if s.removed || s.stopped {
				continue
			}
			if s.deaths > 0 {
				err := fmt.Errorf("cannot scale pool %q, which has %d workers as before: worker %d ended: %s", p.Name, before, s.number, s.last.describe())
				undo()
				return true, err
			}
			if s.current == nil || s.current.state != up && s.current.state != silent {
				return false, nil
			}
		}
		return true, nil
	}, undo)
}

// describe returns how the worker ended, with its last lines.
func (e *Exit) describe() string {
	text := e.Reason
	for _, line := range e.Lines {
		text += "\n  " + line
	}
	return text
}

// Count returns the number of slots.
func (p *Pool) Count() int { return len(p.Status().Slots) }

// Slots returns the number of slots, and those that were stopped by hand. It waits for the pool's goroutine.
func (p *Pool) Slots() (count int, stopped []int) {
	p.await(context.Background(), func() error {
		count = len(p.slots)
		for _, s := range p.slots {
			if s.stopped {
				stopped = append(stopped, s.number)
			}
		}
		return nil
	}, now, nil)
	return count, stopped
}

// StopSlot ends the slot's worker gracefully, and starts none there until StartSlot, even if lb is started
// anew. It returns when its process has ended.
func (p *Pool) StopSlot(ctx context.Context, number int) error {
	var s *slot
	return p.await(ctx, func() (err error) {
		if s, err = p.slotAt(number); err != nil {
			return err
		}
		s.wanted, s.stopped = false, true
		p.retire(s, "stopped by hand")
		return nil
	}, func() (bool, error) {
		for _, w := range p.workers {
			if w.slot == s && !s.wanted {
				return false, nil
			}
		}
		return true, nil
	}, nil)
}

// StartSlot starts the slot's worker, at once if it waits for its time after crashes, and returns when it is
// ready. Nothing changes for one that runs.
func (p *Pool) StartSlot(ctx context.Context, number int) error {
	var s *slot
	deaths := 0
	return p.await(ctx, func() (err error) {
		if s, err = p.slotAt(number); err != nil {
			return err
		}
		if p.ending {
			return ErrStopped
		}
		s.wanted, s.stopped = true, false
		switch {
		case s.current == nil:
			s.deaths = 0
			p.plan(s, 0, nil, "started by hand")
		case s.current.state == waiting:
			s.deaths = 0
			p.fire(s.current, due, "started by hand")
		}
		deaths = s.deaths
		return nil
	}, func() (bool, error) {
		switch {
		case s.removed || s.stopped:
			return true, fmt.Errorf("cannot start worker %d of pool %q: %w", number, p.Name, ErrSlotStopped)
		case s.deaths > deaths:
			return true, fmt.Errorf("cannot start worker %d of pool %q: it ended: %s", number, p.Name, s.last.describe())
		}
		return s.current != nil && (s.current.state == up || s.current.state == silent), nil
	}, nil)
}
