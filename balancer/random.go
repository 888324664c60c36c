package balancer

// Hot path. BenchmarkPick holds its cost and its allocations.

import (
	"math/rand/v2"

	"github.com/273ebdf9/lb/backends"
)

// Random draws two different backends at random, by weight, and picks the one with the smaller (active+1)/weight: the
// power of two choices (Mitzenmacher, 2001). The zero value is ready.
//
// The weights stand in a Fenwick tree (1994), so that a draw and a change cost log2(n) steps.
type Random struct {
	members []*backends.Backend
	weights []int64 // by backend index; 0 is not eligible
	sums    []int64 // sums[i] is the sum of the lowbit(i) weights that end with weight i-1; sums[0] is unused
	total   int64
	draw    func(n int64) int64 // 0 <= draw(n) < n; nil: rand.Int64N. For tests
}

// Reset implements backends.Policy.
func (r *Random) Reset(members []*backends.Backend) {
	r.members = members
	r.weights = make([]int64, len(members))
	r.sums = make([]int64, len(members)+1)
	r.total = 0
	for _, b := range members {
		r.Update(b)
	}
}

// Update implements backends.Policy.
func (r *Random) Update(b *backends.Backend) { r.set(b.Index(), weightOf(b)) }

func (r *Random) set(i int, weight int64) {
	d := weight - r.weights[i]
	if d == 0 {
		return
	}
	r.weights[i] = weight
	r.total += d
	for i++; i < len(r.sums); i += i & -i {
		r.sums[i] += d
	}
}

// at gives the backend on which point x of 0..total-1 lies, and the sum of the weights before it.
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
	for _, b := range req.Tried { // they count nothing for this pick
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

// has says whether b is a member: one that was tried may have been removed since.
func (r *Random) has(b *backends.Backend) bool {
	i := b.Index()
	return i < len(r.members) && r.members[i] == b
}

func (r *Random) pick() *backends.Backend {
	if r.total == 0 {
		return nil
	}
	draw := r.draw
	if draw == nil {
		draw = rand.Int64N
	}
	i, before := r.at(draw(r.total))
	a := r.members[i]
	rest := r.total - r.weights[i]
	if rest == 0 {
		return a
	}
	x := draw(rest)
	if x >= before { // beyond the first one's part of the line
		x += r.weights[i]
	}
	j, _ := r.at(x)
	b := r.members[j]
	if (b.Active()+1)*r.weights[i] < (a.Active()+1)*r.weights[j] {
		return b
	}
	return a
}
