package balancer

// Hot path. BenchmarkPick holds its cost and its allocations.

import (
	"math/bits"
	"slices"

	"github.com/273ebdf9/lb/backends"
)

// First picks the first backend in the order of the config that has a free slot, so that as few as possible
// are in use. It needs a max_conns on each. Of weights it knows only 0. A backend that starts slowly is
// filled to the same part of its max_conns first, and beyond that only when all others are full. The zero
// value is ready.
type First struct {
	members  []*backends.Backend
	eligible bitset // backends with a free slot
	free     bitset // the same without those that start slowly and hold their part
}

// bitset is a set of backend indices.
type bitset []uint64

func (s bitset) put(i int, in bool) {
	if in {
		s[i/64] |= 1 << (i % 64)
	} else {
		s[i/64] &^= 1 << (i % 64)
	}
}

// Reset implements backends.Policy.
func (f *First) Reset(members []*backends.Backend) {
	words := (len(members) + 63) / 64
	f.members, f.free, f.eligible = members, make(bitset, words), make(bitset, words)
	for _, b := range members {
		f.Update(b)
	}
}

// Update implements backends.Policy.
func (f *First) Update(b *backends.Backend) {
	eligible := b.Eligible()
	f.eligible.put(b.Index(), eligible)
	// active < max_conns × effective/full weight
	full := int64(b.Weight()) * backends.WeightScale
	f.free.put(b.Index(), eligible && (b.EffectiveWeight() == full || b.Active()*full < int64(b.MaxConns())*b.EffectiveWeight()))
}

// Pick implements backends.Policy.
func (f *First) Pick(req *backends.Request) *backends.Backend {
	if b := f.first(f.free, req.Tried); b != nil {
		return b
	}
	return f.first(f.eligible, req.Tried)
}

// first returns the first member of a set that was not tried.
func (f *First) first(set bitset, tried []*backends.Backend) *backends.Backend {
	for i, word := range set {
		for ; word != 0; word &= word - 1 {
			if b := f.members[i*64+bits.TrailingZeros64(word)]; len(tried) == 0 || !slices.Contains(tried, b) {
				return b
			}
		}
	}
	return nil
}
