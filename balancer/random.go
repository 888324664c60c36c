package balancer

// Hot path. BenchmarkPick holds its cost and its allocations.

import (
	"math"
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
	parts   []part // by backend index
	// sums[i] is the sum of the lowbit(i) weights that end with weight i-1; sums[0] is unused. There are a
	// power of two of them; those beyond the last member are beyond every point.
	sums  []int64
	total int64
	round float64 // 1/total
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
	r.sums = make([]int64, 1<<bits.Len(uint(len(members))))
	for i := len(members) + 1; i < len(r.sums); i++ {
		r.sums[i] = math.MaxInt64
	}
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
	for i++; i <= len(r.members); i += i & -i {
		r.sums[i] += d
	}
}

// at returns the backend on which point x of 0..total-1 lies, and the sum of the weights before it.
func (r *Random) at(x int64) (i int, before int64) {
	before = x
	for step := len(r.sums) / 2; step > 0; step /= 2 {
		// No branch: which way it goes cannot be foretold.
		next, rest := i+step, x-r.sums[i+step]
		if rest >= 0 {
			i = next
		}
		if rest >= 0 {
			x = rest
		}
	}
	return i, before - x
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
	u := uint64(0)
	if r.draw == nil {
		u = rand.Uint64()
	}
	x, u := r.number(u, r.total)
	i, before := r.at(x)
	a := &r.parts[i]
	rest := r.total - a.weight
	if rest == 0 {
		return r.members[i]
	}
	if x, _ = r.number(u, rest); x >= before { // beyond the first one's part of the line
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

// number returns a number of 0..n-1 made of random bits, and the bits that are left: u/2^64 is a point of the
// line 0..1, in which part of n it lies is the number, and where in that part is as random again. Weights of
// a pool add up to less than 2^28, so two numbers favour some by at most 2^-8 of a part.
func (r *Random) number(u uint64, n int64) (number int64, left uint64) {
	if r.draw != nil {
		return r.draw(n), 0
	}
	hi, lo := bits.Mul64(u, uint64(n))
	return int64(hi), lo
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
