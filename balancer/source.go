package balancer

// Hot path. BenchmarkPick holds its cost and its allocations; BenchmarkSource_Build holds what a change of
// the weights or of the membership costs.

import (
	"slices"

	"github.com/273ebdf9/lb/backends"
)

const (
	// boundFloor is how many connections a backend may always have: a share of very few says little, and the
	// few connections of a single client should go to one backend.
	boundFloor = 8
	// maxWalk bounds the way to a backend that is offered. Where so few are, least connections is as good.
	maxWalk = 256
)

// Source picks the same backend for the same client address, and changes as few as possible of these pairs
// when a backend goes, returns, or changes its weight: a Maglev table (see maglev) of all members. Clients of
// one that is out (down, in drain, in maint) go to the next on the table, each by its own address, and come
// back when it does.
//
// A backend that is full, or that has more than 5/4 of its share of the connections (bounded load: Mirrokni,
// Thorup, Zadimoghaddam, Consistent Hashing with Bounded Loads, 2016), gets no more: the pick is by least
// connections then. So it is for a client without an address. The zero value is ready.
type Source struct {
	least   LeastConn
	members []*backends.Backend
	table   maglev
	built   []int // the weights that the table was built for, by backend index
	stale   bool  // it has to be built again

	loads  []load // by backend index
	active int64  // sum of the loads
	weight int64
}

// load is what a backend adds to its pool's connections and weight while it is offered.
type load struct{ active, weight int64 }

// Reset implements backends.Policy.
func (s *Source) Reset(members []*backends.Backend) {
	s.least.Reset(members)
	s.members, s.stale = members, true
	s.built = make([]int, len(members))
	s.loads = make([]load, len(members))
	s.active, s.weight = 0, 0
	for _, b := range members {
		s.count(b)
	}
}

// Update implements backends.Policy.
func (s *Source) Update(b *backends.Backend) {
	s.least.Update(b)
	s.count(b)
	if s.built[b.Index()] != b.Weight() {
		s.stale = true
	}
}

// count keeps the sums of the loads.
func (s *Source) count(b *backends.Backend) {
	var now load
	if b.Offered() {
		now = load{b.Active(), b.EffectiveWeight()}
	}
	old := &s.loads[b.Index()]
	s.active += now.active - old.active
	s.weight += now.weight - old.weight
	*old = now
}

// Pick implements backends.Policy.
func (s *Source) Pick(req *backends.Request) *backends.Backend {
	key, ok := req.ClientKey()
	if ok {
		if b := s.home(key); b != nil && b.Eligible() && s.withinBound(b) && (len(req.Tried) == 0 || !slices.Contains(req.Tried, b)) {
			return b
		}
	}
	return s.least.Pick(req)
}

// home returns the first backend at or after the key's place that is offered.
func (s *Source) home(key uint64) *backends.Backend {
	if s.stale {
		s.build()
	}
	if s.table.empty() {
		return nil
	}
	at := s.table.slot(key)
	for range maxWalk {
		if b := s.members[s.table[at]]; b.Offered() {
			return b
		}
		if at++; at == len(s.table) {
			at = 0
		}
	}
	return nil
}

func (s *Source) build() {
	for i, b := range s.members {
		s.built[i] = b.Weight()
	}
	s.table = newMaglev(s.table, s.members, s.built)
	s.stale = false
}

// withinBound reports whether b may have one more connection: with it, at most 5/4 of its share, rounded up,
// of all connections and this one.
func (s *Source) withinBound(b *backends.Backend) bool {
	l := &s.loads[b.Index()]
	return l.active < boundFloor || 4*l.active*s.weight < 5*(s.active+1)*l.weight
}
