package access

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

func TestRateLimiter_BurstThenEvenPace(t *testing.T) {
	r := NewRateLimiter(10, 3)
	now := time.Minute
	f := func(step time.Duration, want bool) {
		t.Helper()
		now += step
		if got := r.Take(now); got != want {
			t.Errorf("at %v: got %v; want %v", now-time.Minute, got, want)
		}
	}
	for range 3 {
		f(0, true)
	}
	f(0, false)
	f(99*time.Millisecond, false)
	f(time.Millisecond, true)
	f(0, false)
	f(100*time.Millisecond, true)
	f(250*time.Millisecond, true)
	f(0, true)
	f(49*time.Millisecond, false)
	f(time.Millisecond, true)
	// After a long pause there is one burst, not all that was missed.
	f(time.Hour, true)
	f(0, true)
	f(0, true)
	f(0, false)
}

func TestRateLimiter_Defaults(t *testing.T) {
	f := func(rate float64, burst, want int) {
		t.Helper()
		r := NewRateLimiter(rate, burst)
		got := 0
		for got <= want && r.Take(time.Second) {
			got++
		}
		if got != want {
			t.Errorf("rate %v, burst %d: got %d at once; want %d", rate, burst, got, want)
		}
	}
	f(10, 0, 10)
	f(2.5, 0, 3)
	f(0.1, 0, 1)
	f(10, 1, 1)
	f(10, 25, 25)
	f(MaxRate, 0, MaxRate)
	f(MinRate, MaxBurst, MaxBurst)

	r := NewRateLimiter(0, 5)
	for range 100 {
		if !r.Take(0) {
			t.Fatal("no limit: refused")
		}
	}
	if r.Debt(0) != 0 {
		t.Error("no limit: has a debt")
	}
	r.SetDebt(time.Second, 0)
}

// TestRateLimiter_FractionalRates: what comes in within a long time is the rate, never more.
func TestRateLimiter_FractionalRates(t *testing.T) {
	for _, rate := range []float64{0.25, 1, 3, 7.5, 1000.0 / 3, 12345, 999_999} {
		r := NewRateLimiter(rate, 1)
		span := time.Duration(max(20, 20_000/rate) / max(rate/1000, 1) * float64(time.Second))
		step := max(time.Duration(float64(time.Second)/rate/3), 1)
		admitted := 0
		for now := time.Duration(0); now < span; now += step {
			if r.Take(now) {
				admitted++
			}
		}
		most := 1 + rate*span.Seconds()
		if got := float64(admitted); got > most || got < most*0.7-2 {
			t.Errorf("rate %v: got %d in %v; want at most %.0f, and not far below", rate, admitted, span, most)
		}
	}
}

// TestRateLimiter_NeverExceedsAnyWindow holds GCRA against its definition: in any window of w there are at
// most burst + rate·w.
func TestRateLimiter_NeverExceedsAnyWindow(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	for range 50 {
		rate, burst := 1+rng.Float64()*100, 1+rng.IntN(20)
		r := NewRateLimiter(rate, burst)
		var admitted []time.Duration
		now := time.Duration(0)
		for range 2000 {
			now += time.Duration(rng.ExpFloat64() * float64(time.Second) / rate / 2)
			if r.Take(now) {
				admitted = append(admitted, now)
			}
		}
		for i := range admitted {
			for j := i; j < len(admitted); j++ {
				if n, most := float64(j-i+1), float64(burst)+rate*(admitted[j]-admitted[i]).Seconds(); n > most+1e-6 {
					t.Fatalf("rate %v burst %d: got %v within %v; want at most %v", rate, burst, n, admitted[j]-admitted[i], most)
				}
			}
		}
	}
}

// TestRateLimiter_ExactOverLoops has loops take at the same moment, so often that one lost update would show.
func TestRateLimiter_ExactOverLoops(t *testing.T) {
	const burst = 500_000
	r := NewRateLimiter(5, burst)
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			mine := 0
			for range burst {
				if r.Take(time.Hour) {
					mine++
				}
			}
			admitted.Add(int64(mine))
		})
	}
	wg.Wait()
	if got := admitted.Load(); got != burst {
		t.Errorf("got %d; want %d", got, burst)
	}
}

func TestRateLimiter_DebtGoesOnElsewhere(t *testing.T) {
	old := NewRateLimiter(10, 10)
	now := time.Hour
	for range 7 {
		old.Take(now)
	}
	if got, want := old.Debt(now), 700*time.Millisecond; got != want {
		t.Errorf("debt: got %v; want %v", got, want)
	}
	if got := old.Debt(now + time.Second); got != 0 {
		t.Errorf("debt later: got %v; want 0", got)
	}
	f := func(rate float64, burst int, debt time.Duration, want int) {
		t.Helper()
		r := NewRateLimiter(rate, burst)
		const then = time.Second // another process has another epoch
		r.SetDebt(debt, then)
		got := 0
		for r.Take(then) {
			got++
		}
		if got != want {
			t.Errorf("rate %v, burst %d, debt %v: got %d at once; want %d", rate, burst, debt, got, want)
		}
	}
	f(10, 10, old.Debt(now), 3)
	f(10, 5, old.Debt(now), 0)
	f(10, 5, -time.Second, 5)
	f(100, 100, old.Debt(now), 30)
	r := NewRateLimiter(10, 5)
	r.SetDebt(1<<62, time.Second)
	if !r.Take(time.Second + 100*time.Millisecond) {
		t.Error("a huge debt blocks for longer than the burst")
	}
}

func BenchmarkRateLimiter(b *testing.B) {
	for _, refuse := range []bool{false, true} {
		b.Run(fmt.Sprintf("refuse=%v", refuse), func(b *testing.B) {
			r := NewRateLimiter(MaxRate, 1)
			b.ReportAllocs()
			b.RunParallel(func(pb *testing.PB) {
				now := time.Duration(0)
				for pb.Next() {
					r.Take(now)
					if !refuse {
						now += time.Millisecond
					}
				}
			})
		})
	}
}
