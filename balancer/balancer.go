// Package balancer chooses the backend of a new connection.
//
// Each policy is a [backends.Policy]: the pool calls it with its mutex held, so a policy needs no lock, starts no
// goroutine, and never blocks. A policy sees backends only; it never dials and never acquires: the pool takes the slot
// in the same critical section, which is what makes the choice exact over many loops.
package balancer

import (
	"fmt"

	"github.com/273ebdf9/lb/backends"
)

// New makes the policy of that name, with no backends yet: "leastconn".
func New(name string) (backends.Policy, error) {
	switch name {
	case "leastconn":
		return new(LeastConn), nil
	default:
		return nil, fmt.Errorf("cannot make policy %q: there is no such policy", name)
	}
}
