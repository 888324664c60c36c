// Package balancer chooses the backend of a new connection.
//
// Each policy is a [backends.Policy]: the pool calls it with its mutex held, so a policy needs no lock,
// starts no goroutine, and never blocks. A policy sees backends only; it never dials and never acquires: the
// pool takes the slot in the same critical section, which is what makes the choice exact over many loops.
package balancer

import (
	"fmt"

	"github.com/273ebdf9/lb/backends"
)

// New returns the policy of that name, with no backends yet: "leastconn", "random", "roundrobin", "source" or
// "first".
func New(name string) (backends.Policy, error) {
	switch name {
	case "leastconn":
		return new(LeastConn), nil
	case "random":
		return new(Random), nil
	case "roundrobin":
		return new(RoundRobin), nil
	case "source":
		return new(Source), nil
	case "first":
		return new(First), nil
	default:
		return nil, fmt.Errorf("cannot make policy %q: there is no such policy", name)
	}
}

// weightOf returns the weight by which a policy counts b: 0 while b is not eligible.
func weightOf(b *backends.Backend) int64 {
	if !b.Eligible() {
		return 0
	}
	return b.EffectiveWeight()
}
