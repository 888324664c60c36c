package balancer

// Hot path. BenchmarkPick holds its cost and its allocations.

import (
	"math/bits"
	"math/rand/v2"
	"slices"

	"github.com/273ebdf9/lb/backends"
)

// Random draws two different backends at random, by weight, and picks the less loaded: the power of two
// choices (Mitzenmacher, 2001). When the two tie, as LeastConn has it, it picks the one that is further
// behind its share, so that weights hold for connections that come one at a time. The zero value is ready.
//
// The weights stand in a Fenwick tree (1994), so that a draw and a change cost log2(n) steps.
type Random struct {
	members []*backends.Backend
	parts   []part  // by backend index
	sums    []int64 // sums[i] is the sum of the lowbit(i) weights that end with weight i-1; sums[0] is unused
	total   int64
	round   float64 // 1/total
	// the sum of round over all picks: the turn of a backend that has exactly its share
	now  float64
	draw func(n int64) int64 // 0 <= draw(n) < n; nil: number draws itself. For tests
}

// part is a backend's part of the line that is drawn from.
type part struct {
	weight int64   // 0 is not eligible
	step   float64 // 1/weight
	turn   float64 // the sum of step over its picks
}

// Reset implements backends.Policy.
func (r *Random) Reset(members []*backends.Backend) {
	parts := make([]part, len(members))
	for i, b := range members {
		parts[i].turn = r.now
		if j := slices.Index(r.members, b); j >= 0 { // a member that stays keeps its turn
			parts[i].turn = r.parts[j].turn
		}
	}
	r.members, r.parts = members, parts
	r.sums = make([]int64, len(members)+1)
	r.total = 0
	for _, b := range members {
		r.Update(b)
	}
}

// Update implements backends.Policy.
func (r *Random) Update(b *backends.Backend) { r.set(b.Index(), weightOf(b)) }

func (r *Random) set(i int, weight int64) {
	p := &r.parts[i]
	d := weight - p.weight
	if d == 0 {
		return
	}
	p.weight, p.step = weight, 1/float64(weight)
	r.total += d
	r.round = 1 / float64(r.total)
	for i++; i < len(r.sums); i += i & -i {
		r.sums[i] += d
	}
}

// at returns the backend on which point x of 0..total-1 lies, and the sum of the weights before it.
func (r *Random) at(x int64) (i int, before int64) {
	step := 1
	for step*2 < len(r.sums) {
		step *= 2
	}
	for ; step > 0; step /= 2 {
		if next := i + step; next < len(r.sums) && before+r.sums[next] <= x {
			i, before = next, before+r.sums[next]
		}
	}
	return i, before
}

// Pick implements backends.Policy.
func (r *Random) Pick(req *backends.Request) *backends.Backend {
	for _, b := range req.Tried { // they do not count for this pick
		if r.has(b) {
			r.set(b.Index(), 0)
		}
	}
	b := r.pick()
	for _, b := range req.Tried {
		if r.has(b) {
			r.Update(b)
		}
	}
	return b
}

// has reports whether b is a member: one that was tried may have been removed since.
func (r *Random) has(b *backends.Backend) bool {
	i := b.Index()
	return i < len(r.members) && r.members[i] == b
}

func (r *Random) pick() *backends.Backend {
	if r.total == 0 {
		return nil
	}
	i, before := r.at(r.number(r.total))
	a := &r.parts[i]
	rest := r.total - a.weight
	if rest == 0 {
		return r.members[i]
	}
	x := r.number(rest)
	if x >= before { // beyond the first one's part of the line
		x += a.weight
	}
	if j, _ := r.at(x); r.before(j, i) {
		i, a = j, &r.parts[j]
	}
	// A backend that was passed over for its load, or was out, is behind by no more than one connection.
	a.turn = max(a.turn, r.now-a.step) + a.step
	r.now += r.round
	return r.members[i]
}

// number returns a random number of 0..n-1. It favours some by at most n/2^64.
func (r *Random) number(n int64) int64 {
	if r.draw != nil {
		return r.draw(n)
	}
	hi, _ := bits.Mul64(rand.Uint64(), uint64(n))
	return int64(hi)
}

// before reports whether backend i is less loaded than j by a whole connection, or ties with it and has its
// turn first.
func (r *Random) before(i, j int) bool {
	a, b := &r.parts[i], &r.parts[j]
	x, y := r.members[i].Active(), r.members[j].Active()
	switch {
	case x*b.weight >= (y+1)*a.weight:
		return false
	case y*a.weight >= (x+1)*b.weight:
		return true
	}
	// In the middle of its round, so that a small weight does not wait for the end of its first.
	return max(a.turn, r.now-a.step)+a.step/2 < max(b.turn, r.now-b.step)+b.step/2
}
