package fleet

import (
	"math"
	"time"
)

// end is when a connection ends.
type end struct {
	at             time.Duration
	backend, front int32
	epoch          int32 // of the backend
	frontEpoch     int32
}

// ends is a heap of ends. Package container/heap would box each of millions.
type ends []end

func (h *ends) push(e end) {
	*h = append(*h, e)
	a := *h
	for i := len(a) - 1; i > 0; {
		up := (i - 1) / 2
		if a[up].at <= e.at {
			break
		}
		a[i], a[up] = a[up], a[i]
		i = up
	}
}

func (h *ends) pop() end {
	a := *h
	first, last := a[0], a[len(a)-1]
	a = a[:len(a)-1]
	*h = a
	for i := 0; len(a) > 0; {
		a[i] = last
		down := 2*i + 1
		if down >= len(a) {
			break
		}
		if down+1 < len(a) && a[down+1].at < a[down].at {
			down++
		}
		if last.at <= a[down].at {
			break
		}
		a[i], a[down] = a[down], last
		i = down
	}
	return first
}

// histogram counts times, 50 a decade from a microsecond.
type histogram struct {
	n, zero int64
	counts  [500]int64
	most    time.Duration
}

func (h *histogram) add(d time.Duration) {
	h.n++
	h.most = max(h.most, d)
	if d < time.Microsecond {
		h.zero++
		return
	}
	h.counts[min(int(50*math.Log10(float64(d)/float64(time.Microsecond))), len(h.counts)-1)]++
}

// quantile is the middle of the class that the q-th part of all is in; 0 for no wait.
func (h *histogram) quantile(q float64) time.Duration {
	left := int64(q*float64(h.n)) - h.zero
	if left < 0 {
		return 0
	}
	for i, n := range h.counts {
		if left -= n; left < 0 {
			return time.Duration(float64(time.Microsecond) * math.Pow(10, (float64(i)+0.5)/50))
		}
	}
	return h.most
}
