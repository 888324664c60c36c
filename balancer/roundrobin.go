package balancer

// Hot path. BenchmarkPick holds its cost and its allocations.

import (
	"slices"

	"github.com/273ebdf9/lb/backends"
)

// RoundRobin picks in turn, each backend in proportion to its weight and as evenly spread as that can be: the
// smooth weighted round robin of nginx (src/stream/ngx_stream_upstream_round_robin.c). Weights 5, 1, 1 give a
// a b a c a a. Each pick owes every eligible backend its weight more, and goes to the one owed most, who pays
// the sum of these weights. The zero value is ready.
//
// nginx looks at every backend for a pick. Here, those of one weight are a group: a pick owes all of them the
// same, so that their order among themselves stays, and a tournament keeps it (see LeastConn). A pick costs a
// step for each different weight and log2(n) for the one that pays; when a backend's weight changes, or
// whether it is offered, the next pick makes the groups again.
type RoundRobin struct {
	members []*backends.Backend
	turns   []turn  // by backend index
	places  []int32 // backend indices, group by group
	groups  []group
	tree    []int32 // the tournaments of the groups, one after the other
	picks   int64   // since the groups were made
	sum     int64   // of the eligible weights
	stale   bool    // the groups have to be made again
}

// maxPicks keeps weight × picks, of an effective weight below 2^20, within 63 bits.
const maxPicks = 1 << 40

// turn is a backend's account.
type turn struct {
	weight   int64 // of its group
	owed     int64 // while eligible, without the weight × RoundRobin.picks that its group is owed beside
	eligible bool
	offered  bool // when the groups were made
	group    int32
	place    int32 // in its group
}

// group is the backends of one weight: places[from:to]. Its tournament is tree[2*from:2*to], as that of
// LeastConn.
type group struct {
	weight   int64
	from, to int32
}

// Reset implements backends.Policy.
func (r *RoundRobin) Reset(members []*backends.Backend) {
	r.settle()
	turns := make([]turn, len(members))
	for i, b := range members {
		if j := slices.Index(r.members, b); j >= 0 { // who stays keeps its account
			turns[i].owed = r.turns[j].owed
		}
	}
	r.members, r.turns, r.stale = members, turns, true
}

// Update implements backends.Policy.
func (r *RoundRobin) Update(b *backends.Backend) {
	if r.stale {
		return
	}
	t := &r.turns[b.Index()]
	switch eligible := b.Eligible(); {
	case b.EffectiveWeight() != t.weight || b.Offered() != t.offered:
		r.settle()
		r.stale = true
		return
	case eligible == t.eligible:
		return
	case t.eligible:
		t.eligible = false
		t.owed += t.weight * r.picks
		r.sum -= t.weight
	default:
		t.eligible = true
		t.owed -= t.weight * r.picks
		r.sum += t.weight
	}
	r.replay(t)
}

// settle makes the accounts independent of the groups.
func (r *RoundRobin) settle() {
	for i := range r.turns {
		if t := &r.turns[i]; t.eligible {
			t.eligible = false
			t.owed += t.weight * r.picks
		}
	}
}

// regroup makes the groups, of settled accounts.
func (r *RoundRobin) regroup() {
	r.places, r.groups = r.places[:0], r.groups[:0]
	r.sum, r.picks, r.stale = 0, 0, false
	bound := int64(0)
	for i, b := range r.members {
		r.places = append(r.places, int32(i))
		t := &r.turns[i]
		t.weight, t.offered, t.eligible = b.EffectiveWeight(), b.Offered(), b.Eligible()
		if t.eligible {
			r.sum += t.weight
		}
		if t.offered {
			bound += t.weight
		}
	}
	for i := range r.turns {
		// When a large weight has gone, what was owed under it would be paid back in many picks of one
		// backend in a row.
		r.turns[i].owed = min(max(r.turns[i].owed, -bound), bound)
	}
	slices.SortStableFunc(r.places, func(i, j int32) int { return int(r.turns[i].weight - r.turns[j].weight) })
	r.tree = slices.Grow(r.tree[:0], 2*len(r.places))[:2*len(r.places)]
	for from := 0; from < len(r.places); {
		weight := r.turns[r.places[from]].weight
		to := from
		for ; to < len(r.places) && r.turns[r.places[to]].weight == weight; to++ {
			t := &r.turns[r.places[to]]
			t.group, t.place = int32(len(r.groups)), int32(to-from)
		}
		g := group{weight: weight, from: int32(from), to: int32(to)}
		r.groups = append(r.groups, g)
		tree, n := r.tournament(&g)
		copy(tree[n:], r.places[from:to])
		for i := n - 1; i >= 1; i-- {
			tree[i] = r.better(tree[2*i], tree[2*i+1])
		}
		from = to
	}
}

// tournament returns a group's tree, whose root is 1 and whose leaves begin at n.
func (r *RoundRobin) tournament(g *group) (tree []int32, n int) {
	return r.tree[2*g.from : 2*g.to], int(g.to - g.from)
}

// better returns the one of two backends of a group that goes first.
func (r *RoundRobin) better(i, j int32) int32 {
	a, b := &r.turns[i], &r.turns[j]
	if !b.eligible || a.eligible && (a.owed > b.owed || a.owed == b.owed && i < j) {
		return i
	}
	return j
}

// replay brings the tournament of t's group up to t's account.
func (r *RoundRobin) replay(t *turn) {
	tree, n := r.tournament(&r.groups[t.group])
	for i := (n + int(t.place)) / 2; i >= 1; i /= 2 {
		tree[i] = r.better(tree[2*i], tree[2*i+1])
	}
}

// Pick implements backends.Policy.
func (r *RoundRobin) Pick(req *backends.Request) *backends.Backend {
	if r.picks == maxPicks {
		r.settle()
		r.stale = true
	}
	if r.stale {
		r.regroup()
	}
	best := int32(-1)
	if len(req.Tried) > 0 {
		best = r.untried(req.Tried)
	} else {
		for i := range r.groups {
			g := &r.groups[i]
			best = r.first(best, r.tree[2*g.from+1])
		}
	}
	if best < 0 {
		return nil
	}
	r.picks++
	t := &r.turns[best]
	t.owed -= r.sum
	r.replay(t)
	return r.members[best]
}

// first returns the one of two backends, of any groups, that goes first; -1 is none.
func (r *RoundRobin) first(i, j int32) int32 {
	b := &r.turns[j]
	if !b.eligible {
		return i
	}
	if i < 0 {
		return j
	}
	a := &r.turns[i]
	x, y := a.owed+a.weight*(r.picks+1), b.owed+b.weight*(r.picks+1)
	if x > y || x == y && i < j {
		return i
	}
	return j
}

// untried returns the backend that goes first and was not tried. It looks at all backends; it runs only for a
// connection that has failed to connect once.
func (r *RoundRobin) untried(tried []*backends.Backend) int32 {
	best := int32(-1)
	for i, b := range r.members {
		if !slices.Contains(tried, b) {
			best = r.first(best, int32(i))
		}
	}
	return best
}
