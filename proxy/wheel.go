package proxy

// Hot path: a session arms one timer; most are moved or cancelled, few expire. BenchmarkWheel holds its cost.

import (
	"math"
	"math/bits"
	"time"
)

const (
	wheelTick  = 16 * time.Millisecond // how exact timeouts are
	wheelSlots = 4096                  // 65 s; a later deadline waits in its slot for further turns
)

// timer is a session's place in its loop's wheel. The zero value is not armed.
type timer struct {
	next, prev *session
	tick       int64 // the deadline, in ticks since the proxy's epoch; 0 is not armed
}

// wheel holds the timers of one loop (Varghese and Lauck, 1987, scheme 6). Only its loop touches it.
type wheel struct {
	slots    [wheelSlots]*session
	occupied [wheelSlots / 64]uint64
	now      int64 // the last tick that was expired
	earliest int64 // no timer is due before this tick; math.MaxInt64 when none is armed
	armed    int
}

func newWheel() *wheel { return &wheel{earliest: math.MaxInt64} }

// tickAfter is the first tick at which a deadline of d (since the epoch) has passed.
func tickAfter(d time.Duration) int64 { return int64((d + wheelTick - 1) / wheelTick) }

// arm sets s's timer to expire at the deadline, moving it if it was armed.
func (w *wheel) arm(s *session, deadline time.Duration) {
	tick := max(tickAfter(deadline), w.now+1)
	if s.timer.tick == tick {
		return
	}
	w.cancel(s)
	s.timer.tick = tick
	i := tick % wheelSlots
	head := w.slots[i]
	s.timer.next = head
	if head != nil {
		head.timer.prev = s
	}
	w.slots[i] = s
	w.occupied[i/64] |= 1 << (i % 64)
	w.earliest = min(w.earliest, tick)
	w.armed++
}

// cancel disarms s's timer; no-op when it is not armed.
func (w *wheel) cancel(s *session) {
	if s.timer.tick == 0 {
		return
	}
	i := s.timer.tick % wheelSlots
	if s.timer.prev != nil {
		s.timer.prev.timer.next = s.timer.next
	} else {
		w.slots[i] = s.timer.next
		if s.timer.next == nil {
			w.occupied[i/64] &^= 1 << (i % 64)
		}
	}
	if s.timer.next != nil {
		s.timer.next.timer.prev = s.timer.prev
	}
	s.timer = timer{}
	if w.armed--; w.armed == 0 {
		w.earliest = math.MaxInt64
	}
}

// never is a deadline that does not come.
const never = time.Duration(math.MaxInt64)

// due is when a slot wants to be looked at; never when no timer is armed.
func (w *wheel) due() time.Duration {
	if w.earliest == math.MaxInt64 {
		return never
	}
	return time.Duration(w.earliest) * wheelTick
}

// expire disarms every timer whose deadline has passed and calls fire for each, which may arm and cancel at
// will.
func (w *wheel) expire(now time.Duration, fire func(*session)) {
	tick := int64(now / wheelTick)
	if tick < w.earliest {
		w.now = tick
		return
	}
	from := max(w.now+1, tick-wheelSlots+1)
	w.now = tick
	for t := from; t <= tick; t++ {
		s := w.slots[t%wheelSlots]
		for s != nil {
			next := s.timer.next
			if s.timer.tick <= tick {
				w.cancel(s)
				fire(s)
				// fire may have changed the list; start over, there is nothing due left before this point.
				next = w.slots[t%wheelSlots]
				for next != nil && next.timer.tick > tick {
					next = next.timer.next
				}
			}
			s = next
		}
	}
	w.findEarliest()
}

// findEarliest looks for the next occupied slot after now.
func (w *wheel) findEarliest() {
	w.earliest = math.MaxInt64
	if w.armed == 0 {
		return
	}
	start := (w.now + 1) % wheelSlots
	for step := int64(0); step < wheelSlots; {
		i := (start + step) % wheelSlots
		if word := w.occupied[i/64] >> (i % 64); word != 0 {
			w.earliest = w.now + 1 + step + int64(bits.TrailingZeros64(word))
			return
		}
		step += 64 - i%64
	}
}
