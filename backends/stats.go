package backends

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// ConnectError is why a connection to a backend could not be made; it is the reason label of
// lb_backend_connect_errors_total.
type ConnectError uint8

const (
	ConnectRefused     ConnectError = iota // ECONNREFUSED, ENOENT: nothing listens
	ConnectSaturated                       // EAGAIN from a Unix socket: its backlog is full
	ConnectTimeout                         // no answer within connect_timeout
	ConnectUnreachable                     // no route, no permission, name not resolved
	ConnectResource                        // lb itself was out of fds, ports or memory
	ConnectOther
	ConnectUntrusted // lb refused to connect: see Target.Refusal

	NumConnectErrors = int(ConnectUntrusted) + 1
)

var connectErrorNames = [NumConnectErrors]string{"refused", "saturated", "timeout", "unreachable", "resource", "other", "untrusted"}

// String returns the reason label.
func (e ConnectError) String() string { return connectErrorNames[e] }

// Counters count what a backend or a listener has carried. They only grow. Safe for concurrent use: a loop
// adds, a reader loads.
type Counters struct {
	Connections atomic.Uint64 // connections established
	BytesIn     atomic.Uint64 // bytes from clients
	BytesOut    atomic.Uint64 // bytes to clients
}

// Histogram counts durations in buckets whose bounds double from 64 µs; the zero value is ready. It is
// lock-free and fixed in size, so that loops can add to it and an upgrade can carry it. Safe for concurrent
// use.
type Histogram struct {
	counts [histogramBuckets]atomic.Uint64
	sum    atomic.Uint64 // nanoseconds
}

const (
	histogramBuckets = 32
	histogramShift   = 16 // the first bound is 2^16 ns = 65.536 µs
)

// Observe counts d; a negative d counts as 0.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	i := bits.Len64(uint64(d) >> histogramShift)
	h.counts[min(i, histogramBuckets-1)].Add(1)
	h.sum.Add(uint64(d))
}

// HistogramSnapshot is a Histogram at one moment.
type HistogramSnapshot struct {
	Counts [histogramBuckets]uint64 // not cumulative
	Sum    time.Duration
}

// Snapshot reads the histogram. Counts taken while others add may be off by those.
func (h *Histogram) Snapshot() HistogramSnapshot {
	var s HistogramSnapshot
	for i := range h.counts {
		s.Counts[i] = h.counts[i].Load()
	}
	s.Sum = time.Duration(h.sum.Load())
	return s
}

// Bound returns the upper bound of bucket i, exclusive; it is 0 for the last bucket, which has none.
func (HistogramSnapshot) Bound(i int) time.Duration {
	if i >= histogramBuckets-1 {
		return 0
	}
	return time.Duration(1) << (histogramShift + i)
}

// Count returns how many durations were counted.
func (s HistogramSnapshot) Count() uint64 {
	var n uint64
	for _, c := range s.Counts {
		n += c
	}
	return n
}

// Quantile estimates the q-quantile (0..1), linear within its bucket; 0 when nothing was counted.
func (s HistogramSnapshot) Quantile(q float64) time.Duration {
	total := s.Count()
	if total == 0 {
		return 0
	}
	rank := q * float64(total)
	var seen float64
	for i, c := range s.Counts {
		if c == 0 || seen+float64(c) < rank {
			seen += float64(c)
			continue
		}
		var low time.Duration
		if i > 0 {
			low = s.Bound(i - 1)
		}
		high := s.Bound(i)
		if high == 0 {
			return low
		}
		return low + time.Duration((rank-seen)/float64(c)*float64(high-low))
	}
	return s.Bound(histogramBuckets - 2)
}
