package balancer

import (
	"cmp"
	"math"
	"slices"

	"github.com/273ebdf9/lb/backends"
)

// maglevSize is the number of places of a Maglev table, a prime. A weight counts to 1/65537 of the sum.
const maglevSize = 65537

// maglev is the lookup table of Eisenbud et al., Maglev: A Fast and Reliable Software Network Load Balancer
// (NSDI 2016), section 3.4: each backend has a permutation of the places, which comes from its name alone,
// and the backends take turns at claiming the next place of theirs that is free, until none is. The parts are
// nearly exact, and a change of one backend moves few places of the others.
//
// It holds a backend's index for each place. It is empty if no backend has weight.
type maglev []uint16

// claimant is a backend while the table is filled.
type claimant struct {
	index        uint16
	name         string
	weight       int
	credit       int
	offset, skip uint // the last place claimed, and the way to the next
}

// newMaglev fills a table for members with those weights; a weight of 0 has no part. It may use the memory of
// an old table.
func newMaglev(old maglev, members []*backends.Backend, weights []int) maglev {
	var claimants []claimant
	largest := 0
	for i, b := range members[:min(len(members), math.MaxUint16)] {
		if weights[i] == 0 {
			continue
		}
		h := b.NameKey()
		claimants = append(claimants, claimant{
			index: uint16(i), name: b.Name, weight: weights[i],
			offset: uint(h>>32) % maglevSize, skip: uint(h&math.MaxUint32)%(maglevSize-1) + 1,
		})
		largest = max(largest, weights[i])
	}
	if len(claimants) == 0 {
		return old[:0]
	}
	// The order of the turns must not depend on when a backend was added.
	slices.SortFunc(claimants, func(a, b claimant) int { return cmp.Compare(a.name, b.name) })

	table := slices.Grow(old[:0], maglevSize)[:maglevSize]
	var taken [maglevSize/64 + 1]uint64 // small enough for the first-level cache, which the table is not
	for left := maglevSize; ; {
		for i := range claimants {
			c := &claimants[i]
			if c.credit += c.weight; c.credit < largest {
				continue
			}
			c.credit -= largest
			at := c.offset
			for taken[at/64]&(1<<(at%64)) != 0 {
				if at += c.skip; at >= maglevSize {
					at -= maglevSize
				}
			}
			c.offset = at
			taken[at/64] |= 1 << (at % 64)
			table[at] = c.index
			if left--; left == 0 {
				return table
			}
		}
	}
}

func (m maglev) empty() bool { return len(m) == 0 }

// slot returns the place of a key.
func (m maglev) slot(key uint64) int { return int(key % maglevSize) }
