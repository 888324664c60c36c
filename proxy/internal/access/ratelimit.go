package access

// Hot path of new connections. BenchmarkRateLimiter holds its cost.

import (
	"math"
	"sync/atomic"
	"time"
)

// Pace is a rate with a burst, as the generic cell rate algorithm has it (ITU-T I.371, Annex A, virtual
// scheduling): a token bucket whose whole state is one time, when the next connection would be due at an even
// pace. The zero value is no limit.
type Pace struct {
	interval time.Duration // between two connections at an even pace; 0 is no limit
	ahead    time.Duration // how far the due time may run ahead of now: interval × burst
}

const (
	MaxRate  = 1e6   // connections a second; above it the interval would be too coarse
	MinRate  = 0.001 // one in 1000 s
	MaxBurst = 1e6   // with MinRate, ahead is 31 years: far from overflow
)

// NewPace is perSecond connections a second, and burst at once after a pause. perSecond 0 is no limit; burst
// 0 is what comes in one second, at least 1. The interval is rounded up to whole nanoseconds, so the rate is
// never exceeded, and missed by at most 0.1 % at a million a second, 0.001 % at 10 000.
func NewPace(perSecond float64, burst int) Pace {
	if perSecond <= 0 {
		return Pace{}
	}
	if burst == 0 {
		burst = int(math.Ceil(perSecond))
	}
	interval := time.Duration(math.Ceil(float64(time.Second) / perSecond))
	return Pace{interval: interval, ahead: interval * time.Duration(burst)}
}

// take is the due time after one more connection, and whether the pace lets it in; if not, the due time is
// unchanged.
func (p Pace) take(due, now time.Duration) (time.Duration, bool) {
	next := max(due, now) + p.interval
	if p.interval > 0 && next > now+p.ahead {
		return due, false
	}
	return next, true
}

// RateLimiter holds all loops together to one rate, exactly: what a loop takes, no other can. A nil one lets
// everything in. Safe for concurrent use, without a lock.
type RateLimiter struct {
	pace Pace
	due  atomic.Int64 // a time.Duration since the same moment as now; see pace
}

// NewRateLimiter limits to perSecond new connections a second, with burst at once after a pause, as NewPace
// has it. perSecond 0 gives nil: no limit.
func NewRateLimiter(perSecond float64, burst int) *RateLimiter {
	if perSecond <= 0 {
		return nil
	}
	return &RateLimiter{pace: NewPace(perSecond, burst)}
}

// Take says whether one more connection may come in now, and counts it if so. A refused one costs nothing.
// now counts from any fixed moment; that loops are a little apart, or late, only makes the late one stricter.
func (r *RateLimiter) Take(now time.Duration) bool {
	if r == nil {
		return true
	}
	for {
		due := r.due.Load()
		next, ok := r.pace.take(time.Duration(due), now)
		if !ok {
			return false
		}
		if r.due.CompareAndSwap(due, int64(next)) {
			return true
		}
	}
}

// Debt is how far the connections so far are ahead of the even pace: 0 after a pause. With it a limiter goes
// on in another process, or with another rate after a reload.
func (r *RateLimiter) Debt(now time.Duration) time.Duration {
	if r == nil {
		return 0
	}
	return max(time.Duration(r.due.Load())-now, 0)
}

// SetDebt takes over the debt of another limiter, as far as this one's burst reaches.
func (r *RateLimiter) SetDebt(debt, now time.Duration) {
	if r == nil {
		return
	}
	r.due.Store(int64(now + max(min(debt, r.pace.ahead), 0)))
}
