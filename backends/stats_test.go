package backends_test

import (
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

func TestHistogram_CountsEachDurationInItsBucket(t *testing.T) {
	var h backends.Histogram
	bound := backends.HistogramSnapshot{}.Bound
	for i := range 31 {
		h.Observe(bound(i) - 1) // the last of bucket i
		h.Observe(bound(i))     // the first of the next
	}
	s := h.Snapshot()
	for i, n := range s.Counts {
		want := uint64(2)
		if i == 0 || i == 31 {
			want = 1
		}
		if n != want {
			t.Errorf("bucket %d: got %d; want %d", i, n, want)
		}
	}
	if s.Count() != 62 || bound(0) != 65536*time.Nanosecond || bound(31) != 0 {
		t.Errorf("histogram: got %d counted, first bound %v, last %v; want 62, 65.536µs, none", s.Count(), bound(0), bound(31))
	}
}

func TestHistogram_NegativeIsNothing(t *testing.T) {
	var h backends.Histogram
	h.Observe(-time.Second)
	if s := h.Snapshot(); s.Counts[0] != 1 || s.Sum != 0 {
		t.Errorf("negative duration: got %d in the first bucket, sum %v; want 1, 0", s.Counts[0], s.Sum)
	}
}

func TestHistogram_QuantileIsWithinItsBucket(t *testing.T) {
	if q := (backends.HistogramSnapshot{}).Quantile(0.5); q != 0 {
		t.Errorf("quantile of nothing: got %v; want 0", q)
	}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 50 {
		var h backends.Histogram
		var all []time.Duration
		var sum time.Duration
		for range 1 + rnd.IntN(500) {
			d := time.Duration(rnd.ExpFloat64() * float64(time.Duration(1)<<rnd.IntN(38)))
			h.Observe(d)
			all, sum = append(all, d), sum+d
		}
		slices.Sort(all)
		s := h.Snapshot()
		if s.Sum != sum {
			t.Fatalf("sum: got %v; want %v", s.Sum, sum)
		}
		last := time.Duration(0)
		for _, q := range []float64{0, 0.1, 0.5, 0.9, 0.99, 1} {
			exact := all[min(int(q*float64(len(all))), len(all)-1)]
			// Bounds double, so an estimate is off by a factor of two at most; and the ranks may differ by
			// one.
			low, high := all[max(int(q*float64(len(all)))-1, 0)]/2, max(2*exact, 65536)
			if got := s.Quantile(q); got > high || got < last || low > 65536 && got < low {
				t.Fatalf("quantile %v of %d: got %v; want about %v", q, len(all), got, exact)
			} else {
				last = got
			}
		}
	}
}

func TestHistogram_QuantileIsLinearWithinItsBucket(t *testing.T) {
	var h backends.Histogram
	low := backends.HistogramSnapshot{}.Bound(3)
	for range 4 {
		h.Observe(low)
	}
	for q, want := range map[float64]time.Duration{0.25: low + low/4, 0.5: low + low/2, 1: 2 * low} {
		if got := h.Snapshot().Quantile(q); got != want {
			t.Errorf("quantile %v: got %v; want %v", q, got, want)
		}
	}
}

func TestHistogram_MayBeObservedByManyAtOnce(t *testing.T) {
	var h backends.Histogram
	var running sync.WaitGroup
	for range 8 {
		running.Go(func() {
			for i := range 1000 {
				h.Observe(time.Duration(i) * time.Microsecond)
			}
		})
	}
	running.Wait()
	if s := h.Snapshot(); s.Count() != 8000 || s.Sum != 8*999*1000/2*time.Microsecond {
		t.Errorf("got %d counted, sum %v; want 8000, %v", s.Count(), s.Sum, 8*999*1000/2*time.Microsecond)
	}
}

func TestConnectError_EveryReasonHasALabel(t *testing.T) {
	seen := map[string]bool{}
	for i := range backends.NumConnectErrors {
		label := backends.ConnectError(i).String()
		if label == "" || seen[label] {
			t.Errorf("reason %d: got label %q; want one of its own", i, label)
		}
		seen[label] = true
	}
}
