package admin

import (
	"net/http"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

const (
	// historyEvery is how long an interval of the history is, historyPoints how many are kept: ten minutes.
	historyEvery  = 10 * time.Second
	historyPoints = 60
	// latencyPoints are the intervals of the last minute, whose distributions are kept.
	latencyPoints = 6
	// historyBackends is how many backends have a history. Each takes about 3 KB, so that it is 6 MB at most
	// (TestHistory_MemoryIsBounded).
	historyBackends = 2048
)

const buckets = len(backends.HistogramSnapshot{}.Counts)

// history remembers what backends did. Safe for concurrent use.
type history struct {
	mu      sync.Mutex
	started time.Time // of the interval that runs
	backend map[historyKey]*backendHistory
}

type historyKey struct{ pool, series string }

// backendHistory is the history of a backend or a slot. The point of interval n is at n modulo the length.
type backendHistory struct {
	points    [historyPoints]historyPoint
	latencies [latencyPoints]latencies
	n         int // intervals so far
	seen      bool

	connections, errors uint64 // at the end of the last interval
	before              latencyCounts
}

type historyPoint struct {
	active, connections, errors uint32
	p99                         float32
}

// latencies are the distributions of an interval.
type latencies struct{ firstByte, session [buckets]uint32 }

// latencyCounts are the distributions so far.
type latencyCounts struct{ firstByte, session [buckets]uint64 }

// run samples until one of the channels is closed.
func (h *history) run(src *Sources, done, frozen <-chan struct{}) {
	tick := time.NewTicker(historyEvery)
	defer tick.Stop()
	h.sample(src.pools(), time.Now())
	for {
		select {
		case now := <-tick.C:
			h.sample(src.pools(), now)
		case <-done:
			return
		case <-frozen:
			return
		}
	}
}

// sample ends an interval. The first look at a backend only notes where its counters are.
func (h *history) sample(pools []*backends.Pool, now time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.started = now
	if h.backend == nil {
		h.backend = map[historyKey]*backendHistory{}
	}
	for _, p := range pools {
		all := p.Series()
		for i := range all {
			s := &all[i]
			key := historyKey{p.Name, s.Name}
			b := h.backend[key]
			if b == nil {
				if len(h.backend) >= historyBackends {
					continue
				}
				b = new(backendHistory)
				h.backend[key] = b
				b.note(s)
				continue
			}
			b.add(s)
		}
	}
	for key, b := range h.backend {
		if !b.seen {
			delete(h.backend, key)
		}
		b.seen = false
	}
}

// note notes where the counters are.
func (b *backendHistory) note(s *backends.Series) {
	b.seen = true
	b.connections, b.errors = s.Totals.Connections, errorsOf(&s.Totals)
	b.before = latencyCounts{s.Totals.FirstByteTime.Counts, s.Totals.SessionTime.Counts}
}

func errorsOf(t *backends.Totals) (n uint64) {
	for _, x := range t.ConnectErrors {
		n += x
	}
	return n
}

// add ends an interval.
func (b *backendHistory) add(s *backends.Series) {
	l := &b.latencies[b.n%latencyPoints]
	var first backends.HistogramSnapshot
	for i := range buckets {
		l.firstByte[i] = uint32(since(b.before.firstByte[i], s.Totals.FirstByteTime.Counts[i]))
		l.session[i] = uint32(since(b.before.session[i], s.Totals.SessionTime.Counts[i]))
		first.Counts[i] = uint64(l.firstByte[i])
	}
	b.points[b.n%historyPoints] = historyPoint{
		active:      uint32(max(s.Active, 0)),
		connections: uint32(since(b.connections, s.Totals.Connections)),
		errors:      uint32(since(b.errors, errorsOf(&s.Totals))),
		p99:         float32(first.Quantile(0.99).Seconds()),
	}
	b.n++
	b.note(s)
}

// since is how much a counter has grown. One that has come down is another one of the name, and began with 0.
func since(before, now uint64) uint64 {
	if now < before {
		return now
	}
	return now - before
}

// lastMinute returns the distributions of the last minute, or a little more: whole intervals, and the one
// that runs.
func (b *backendHistory) lastMinute(s *backends.Series) (firstByte, session backends.HistogramSnapshot) {
	for i := range buckets {
		firstByte.Counts[i] = since(b.before.firstByte[i], s.Totals.FirstByteTime.Counts[i])
		session.Counts[i] = since(b.before.session[i], s.Totals.SessionTime.Counts[i])
		for k := range min(b.n, latencyPoints) {
			firstByte.Counts[i] += uint64(b.latencies[k].firstByte[i])
			session.Counts[i] += uint64(b.latencies[k].session[i])
		}
	}
	return firstByte, session
}

// fill fills in the latencies of the last minute of a pool and its backends.
func (h *history) fill(p *backends.Pool, st *api.PoolStatus) {
	h.mu.Lock()
	defer h.mu.Unlock()
	type pair struct{ firstByte, session *api.Latency }
	of := map[string]pair{}
	var firstBytes, sessions backends.HistogramSnapshot
	all := p.Series()
	for i := range all {
		b := h.backend[historyKey{p.Name, all[i].Name}]
		if b == nil {
			continue
		}
		firstByte, session := b.lastMinute(&all[i])
		for k := range buckets {
			firstBytes.Counts[k] += firstByte.Counts[k]
			sessions.Counts[k] += session.Counts[k]
		}
		of[all[i].Name] = pair{latencyOf(&firstByte), latencyOf(&session)}
	}
	st.FirstByte, st.Session = latencyOf(&firstBytes), latencyOf(&sessions)
	series := make(map[string]string, len(st.Backends))
	for _, b := range p.Backends() {
		series[b.Name] = p.SeriesOf(b)
	}
	for i := range st.Backends {
		x := of[series[st.Backends[i].Name]]
		st.Backends[i].FirstByte, st.Backends[i].Session = x.firstByte, x.session
	}
}

// latencyOf returns nil for nothing.
func latencyOf(h *backends.HistogramSnapshot) *api.Latency {
	n := h.Count()
	if n == 0 {
		return nil
	}
	return &api.Latency{Count: n, P50: h.Quantile(0.5).Seconds(), P99: h.Quantile(0.99).Seconds()}
}

// status is the history as the API has it; pool empty is every pool.
func (h *history) status(pools []*backends.Pool, pool string) api.History {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := api.History{Interval: historyEvery.Seconds(), Until: h.started, Backends: []api.BackendHistory{}}
	for _, p := range pools {
		if pool != "" && p.Name != pool {
			continue
		}
		seen := map[string]bool{}
		for _, b := range p.Backends() {
			name := p.SeriesOf(b)
			x := h.backend[historyKey{p.Name, name}]
			if x == nil || seen[name] {
				continue
			}
			seen[name] = true
			bh := api.BackendHistory{Pool: p.Name, Name: name, Active: []int64{}, Connections: []uint64{}, Errors: []uint64{}, FirstByteP99: []float64{}}
			for n := max(0, x.n-historyPoints); n < x.n; n++ {
				at := &x.points[n%historyPoints]
				bh.Active = append(bh.Active, int64(at.active))
				bh.Connections = append(bh.Connections, uint64(at.connections))
				bh.Errors = append(bh.Errors, uint64(at.errors))
				bh.FirstByteP99 = append(bh.FirstByteP99, float64(at.p99))
			}
			st.Backends = append(st.Backends, bh)
		}
	}
	return st
}

func (s *Server) getHistory(r *http.Request) (any, error) {
	pool := r.URL.Query().Get("pool")
	if pool != "" {
		if _, err := s.findPool(pool); err != nil {
			return nil, err
		}
	}
	return s.history.status(s.src.pools(), pool), nil
}
