package admin

import (
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

const (
	// rateWindow is over how long a rate is taken; rateGap is how long at least.
	rateWindow = 10 * time.Second
	rateGap    = 400 * time.Millisecond
)

// rates tells new connections a second. It counts only when it is asked, and takes the rate since it was
// asked before, within rateWindow: an lb that nobody looks at does nothing for it. Safe for concurrent use.
type rates struct {
	mu      sync.Mutex
	samples []rateSample // rateGap apart, the oldest first
}

// rateSample is what the counters were at one moment.
type rateSample struct {
	time      time.Time
	backends  map[string]uint64 // by POOL/BACKEND, which means the same to an lb that takes over
	listeners map[string]uint64
}

// rateName names a backend in a rateSample.
func rateName(b *backends.Backend) string { return b.Pool().Name + "/" + b.Name }

// reference takes a sample if the last one is old enough, and returns the one to compare with; nil is none
// yet.
func (r *rates) reference(src *Sources) *rateSample {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	for len(r.samples) > 0 && now.Sub(r.samples[0].time) > rateWindow {
		r.samples = r.samples[1:]
	}
	if n := len(r.samples); n == 0 || now.Sub(r.samples[n-1].time) >= rateGap {
		r.samples = append(r.samples, takeSample(src, now))
	}
	if oldest := &r.samples[0]; now.Sub(oldest.time) >= rateGap {
		return oldest
	}
	return nil
}

// save gives the samples, for restore in another process.
func (r *rates) save() []SavedConnectionCount {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []SavedConnectionCount
	for _, x := range r.samples {
		all = append(all, SavedConnectionCount{Time: x.time, Backends: x.backends, Listeners: x.listeners})
	}
	return all
}

// restore takes up samples of another process. One of the future is of a clock that was set back.
func (r *rates) restore(saved []SavedConnectionCount) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.samples = nil
	for _, x := range saved {
		if x.Time.Before(time.Now()) {
			r.samples = append(r.samples, rateSample{time: x.Time, backends: x.Backends, listeners: x.Listeners})
		}
	}
}

func takeSample(src *Sources, now time.Time) rateSample {
	x := rateSample{time: now, backends: map[string]uint64{}, listeners: map[string]uint64{}}
	for _, p := range src.pools() {
		for _, b := range p.Backends() {
			x.backends[rateName(b)] = b.Counters.Connections.Load()
		}
	}
	for _, l := range src.listeners() {
		x.listeners[l.Name] = l.Connections
	}
	return x
}

// rate is the growth a second since the sample. What was not there then is new: it began with 0, and so did
// what has come down since, for it is another one of the name.
func (x *rateSample) rate(before, now uint64) *float64 {
	if x == nil {
		return nil
	}
	if now < before {
		before = 0
	}
	v := float64(now-before) / time.Since(x.time).Seconds()
	return &v
}

func (x *rateSample) backend(b *backends.Backend, st *api.BackendStatus) {
	if x != nil {
		st.Rate = x.rate(x.backends[rateName(b)], st.Connections)
	}
}

func (x *rateSample) listener(st *api.ListenerStatus) {
	if x != nil {
		st.Rate = x.rate(x.listeners[st.Name], st.Connections)
	}
}

func (x *rateSample) pool(p *backends.Pool, st *api.PoolStatus) {
	if x == nil {
		return
	}
	for i := range st.Backends {
		b := &st.Backends[i]
		b.Rate = x.rate(x.backends[p.Name+"/"+b.Name], b.Connections)
	}
}

func (r *rates) ofBackend(src *Sources, b *backends.Backend, st *api.BackendStatus) {
	r.reference(src).backend(b, st)
}

func (r *rates) ofListener(src *Sources, st *api.ListenerStatus) { r.reference(src).listener(st) }

func (r *rates) ofPool(src *Sources, p *backends.Pool, st *api.PoolStatus) {
	r.reference(src).pool(p, st)
}

// ofAll fills in every rate of a status.
func (r *rates) ofAll(src *Sources, st *api.Status) {
	x := r.reference(src)
	for i := range st.Listeners {
		x.listener(&st.Listeners[i])
	}
	for _, p := range src.pools() {
		for i := range st.Pools {
			if st.Pools[i].Name == p.Name {
				x.pool(p, &st.Pools[i])
			}
		}
	}
}
