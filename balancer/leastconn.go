package balancer

// Hot path: one Pick and two Updates a connection. BenchmarkPick holds its cost and its allocations.

import (
	"cmp"
	"slices"

	"github.com/273ebdf9/lb/backends"
)

// LeastConn picks the backend with the fewest connections for its weight. Backends tie when no two of them
// are a whole connection apart: active/weight of the one is below (active+1)/weight of the other, both ways.
// Backends of one weight tie when they have equally many; idle backends tie whatever their weights. Ties go
// by smooth weighted round robin, so that weights hold for connections that come one at a time as they do for
// held ones. The zero value is ready.
//
// Backends of one weight are a group. Inside a group a tournament orders them by connections, and then by the
// time of their last pick: a binary tree whose inner nodes hold the better of their two children, so that the
// root goes first and a change costs one path of log2(n) comparisons. A pick looks at the first of each
// group. The groups are made again by the first pick after a weight has changed.
type LeastConn struct {
	members []*backends.Backend
	keys    []leastKey // by backend index
	places  []int32    // backend indices, group by group
	groups  []leastGroup
	tree    []int32 // the tournaments of the groups, one after the other
	leaders []int32 // by group: the first of each group for this pick; -1 is none
	picks   uint64
	stale   bool // the groups have to be made again
}

// maxBehind bounds how many connections in a row a group that was passed over for its load gets once it ties
// again.
const maxBehind = 10

// leastKey is what a backend is compared by.
type leastKey struct {
	active   int64
	last     uint64  // number of the pick that chose it last
	weight   int64   // of its group
	behind   float64 // its part of what its group is behind; valid while the groups are stale
	group    int32
	place    int32 // in its group
	eligible bool
}

// leastGroup is the backends of one weight: places[from:to]. Its tournament is tree[2*from:2*to]: the root is
// number 1, and the leaves begin at to-from.
type leastGroup struct {
	weight   int64
	from, to int32
	eligible int32 // how many of it are
	// behind is by how many connections the group is behind its share, or ahead if negative: each pick adds
	// its share of one, and the group that it goes to pays one.
	behind float64
}

// Reset implements backends.Policy.
func (l *LeastConn) Reset(members []*backends.Backend) {
	l.settle()
	keys := make([]leastKey, len(members))
	for i, b := range members {
		if j := slices.Index(l.members, b); j >= 0 { // a member that stays keeps its turn
			keys[i].last, keys[i].behind = l.keys[j].last, l.keys[j].behind
		}
	}
	l.members, l.keys, l.stale = members, keys, true
}

// Update implements backends.Policy.
func (l *LeastConn) Update(b *backends.Backend) {
	if l.stale {
		return
	}
	k := &l.keys[b.Index()]
	if b.EffectiveWeight() != k.weight {
		l.settle()
		return
	}
	k.active = b.Active()
	g := &l.groups[k.group]
	if eligible := b.Eligible(); eligible != k.eligible {
		k.eligible = eligible
		if eligible {
			g.eligible++
		} else {
			g.eligible--
		}
	}
	tree, n := l.tournament(g)
	for i := (n + int(k.place)) / 2; i >= 1; i /= 2 {
		tree[i] = l.better(tree[2*i], tree[2*i+1])
	}
}

// settle divides what the groups are behind among their members, so that other groups can be made of them.
// Members take turns, so the one picked longest ago is furthest behind, and each of n is 1/n of a connection
// behind the next.
func (l *LeastConn) settle() {
	if l.stale {
		return
	}
	l.stale = true
	for i := range l.groups {
		g := &l.groups[i]
		places := l.places[g.from:g.to]
		slices.SortStableFunc(places, func(i, j int32) int { return cmp.Compare(l.keys[i].last, l.keys[j].last) })
		n := float64(len(places))
		for turn, j := range places {
			l.keys[j].behind = (g.behind + (n-1)/2 - float64(turn)) / n
		}
	}
}

// regroup makes the groups of settled accounts.
func (l *LeastConn) regroup() {
	l.places, l.groups, l.stale = l.places[:0], l.groups[:0], false
	for i, b := range l.members {
		k := &l.keys[i]
		k.weight, k.active, k.eligible = b.EffectiveWeight(), b.Active(), b.Eligible()
		l.places = append(l.places, int32(i))
	}
	// The heaviest first: it goes first where another is due as soon.
	slices.SortStableFunc(l.places, func(i, j int32) int { return int(l.keys[j].weight - l.keys[i].weight) })
	l.tree = slices.Grow(l.tree[:0], 2*len(l.places))[:2*len(l.places)]
	for from := 0; from < len(l.places); {
		g := leastGroup{weight: l.keys[l.places[from]].weight, from: int32(from)}
		to := from
		for ; to < len(l.places) && l.keys[l.places[to]].weight == g.weight; to++ {
			k := &l.keys[l.places[to]]
			k.group, k.place = int32(len(l.groups)), int32(to-from)
			g.behind += k.behind
			if k.eligible {
				g.eligible++
			}
		}
		g.to = int32(to)
		tree, n := l.tournament(&g)
		copy(tree[n:], l.places[from:to])
		for i := n - 1; i >= 1; i-- {
			tree[i] = l.better(tree[2*i], tree[2*i+1])
		}
		l.groups = append(l.groups, g)
		from = to
	}
	l.leaders = slices.Grow(l.leaders[:0], len(l.groups))[:len(l.groups)]
}

// tournament returns a group's tree, whose root is number 1 and whose leaves begin at n.
func (l *LeastConn) tournament(g *leastGroup) (tree []int32, n int) {
	return l.tree[2*g.from : 2*g.to], int(g.to - g.from)
}

// better returns the one of two backends of a group that goes first.
func (l *LeastConn) better(i, j int32) int32 {
	a, b := &l.keys[i], &l.keys[j]
	if !b.eligible || a.eligible && (a.active < b.active || a.active == b.active && a.last <= b.last) {
		return i
	}
	return j
}

// Pick implements backends.Policy.
func (l *LeastConn) Pick(req *backends.Request) *backends.Backend {
	if l.stale {
		l.regroup()
	}
	best := int32(-1)
	switch {
	case len(req.Tried) > 0:
		l.leadUntried(req.Tried)
		best = l.among()
	case len(l.groups) == 1:
		best = l.tree[1]
	default:
		for i := range l.groups {
			l.leaders[i] = l.tree[2*l.groups[i].from+1]
		}
		best = l.among()
	}
	if best < 0 || !l.keys[best].eligible || l.keys[best].weight == 0 {
		return nil
	}
	l.picks++
	l.keys[best].last = l.picks
	return l.members[best]
}

// among picks one of the groups' leaders, or -1 if none is eligible: of those that tie with the least loaded,
// by the rule of Tijdeman, The Chairman Assignment Problem (1980), which keeps every account within one
// connection.
func (l *LeastConn) among() int32 {
	// The smallest (active+1)/weight. Products stay below 2^51: a count is below 2^31, a weight at most 2^20.
	next, weight := int64(0), int64(0)
	sum, n := int64(0), 0
	for i, j := range l.leaders {
		if j < 0 || !l.keys[j].eligible {
			continue
		}
		g := &l.groups[i]
		n++
		sum += g.weight * int64(g.eligible)
		if a := l.keys[j].active + 1; weight == 0 || a*weight < next*g.weight {
			next, weight = a, g.weight
		}
	}
	if weight == 0 {
		return -1
	}
	early := 1 / max(float64(2*n-2), 1) // a group that is behind by less waits
	best, bestDue, bestEarly := -1, 0.0, true
	for i, j := range l.leaders {
		if j < 0 || !l.keys[j].eligible {
			continue
		}
		g := &l.groups[i]
		share := float64(g.weight*int64(g.eligible)) / float64(sum)
		g.behind = min(g.behind+share, maxBehind)
		if l.keys[j].active*weight >= next*g.weight {
			continue
		}
		due, tooEarly := (1-early-g.behind)/share, g.behind < early
		if best < 0 || bestEarly && !tooEarly || bestEarly == tooEarly && due < bestDue {
			best, bestDue, bestEarly = i, due, tooEarly
		}
	}
	g := &l.groups[best]
	g.behind = max(g.behind-1, -maxBehind)
	return l.leaders[best]
}

// leadUntried sets the leaders to the first backends that were not tried. It looks at all backends, and runs
// only for a connection that has failed to connect once.
func (l *LeastConn) leadUntried(tried []*backends.Backend) {
	for i := range l.leaders {
		l.leaders[i] = -1
	}
	for i, b := range l.members {
		leader := &l.leaders[l.keys[i].group]
		switch {
		case slices.Contains(tried, b):
		case *leader < 0:
			*leader = int32(i)
		default:
			*leader = l.better(*leader, int32(i))
		}
	}
}
