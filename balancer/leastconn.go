package balancer

// Hot path: one Pick and two Updates a connection. BenchmarkPick holds its cost and its allocations.

import (
	"slices"

	"github.com/273ebdf9/lb/backends"
)

// LeastConn picks the backend with the smallest (active+1)/weight, exactly; ties go to the one picked longest ago.
//
// It is a tournament: a binary tree whose leaves are the backends and whose inner nodes hold the better of their two
// children, so that the root is the pick and a change costs one path of log2(n) comparisons. The zero value is ready.
type LeastConn struct {
	members []*backends.Backend
	keys    []leastKey // by backend index
	tree    []int32    // tree[1] is the root; leaves start at len(members); -1 is nobody
	picks   uint64
}

// leastKey is what a backend is compared by. weight 0 means not eligible.
type leastKey struct {
	load   int64 // active + 1
	weight int64
	last   uint64 // number of the pick that chose it last
}

// Reset implements backends.Policy.
func (l *LeastConn) Reset(members []*backends.Backend) {
	keys := make([]leastKey, len(members))
	for i, b := range members {
		for j, old := range l.members { // keep the rotation of those who stay
			if old == b {
				keys[i].last = l.keys[j].last
			}
		}
	}
	l.members, l.keys = members, keys
	n := len(members)
	l.tree = make([]int32, max(2*n, 2))
	l.tree[1] = -1
	for i, b := range members {
		l.load(b)
		l.tree[n+i] = int32(i)
	}
	for i := n - 1; i >= 1; i-- {
		l.tree[i] = l.better(l.tree[2*i], l.tree[2*i+1])
	}
}

// load reads b's key anew.
func (l *LeastConn) load(b *backends.Backend) {
	k := &l.keys[b.Index()]
	k.load = b.Active() + 1
	k.weight = weightOf(b)
}

// better gives the one of two backends that goes first.
func (l *LeastConn) better(i, j int32) int32 {
	if i < 0 {
		return j
	}
	if j < 0 {
		return i
	}
	a, b := &l.keys[i], &l.keys[j]
	if a.weight == 0 {
		return j
	}
	if b.weight == 0 {
		return i
	}
	// (a.load / a.weight) < (b.load / b.weight), without dividing. Loads stay below 2^31 and weights below 2^20.
	x, y := a.load*b.weight, b.load*a.weight
	if x < y || x == y && a.last <= b.last {
		return i
	}
	return j
}

// Update implements backends.Policy.
func (l *LeastConn) Update(b *backends.Backend) {
	l.load(b)
	n := len(l.members)
	for i := (n + b.Index()) / 2; i >= 1; i /= 2 {
		l.tree[i] = l.better(l.tree[2*i], l.tree[2*i+1])
	}
}

// Pick implements backends.Policy.
func (l *LeastConn) Pick(req *backends.Request) *backends.Backend {
	best := l.tree[1]
	if len(req.Tried) > 0 {
		best = l.pickUntried(req.Tried)
	}
	if best < 0 || l.keys[best].weight == 0 {
		return nil
	}
	l.picks++
	l.keys[best].last = l.picks
	return l.members[best]
}

// pickUntried looks at all; it runs only for a connection that has failed to connect once.
func (l *LeastConn) pickUntried(tried []*backends.Backend) int32 {
	best := int32(-1)
	for i, b := range l.members {
		if !slices.Contains(tried, b) {
			best = l.better(best, int32(i))
		}
	}
	return best
}
