package backends

import (
	"fmt"
	"slices"
)

// Values of handoff.
const (
	HandoffOff  = "off"
	HandoffLB   = "lb"
	HandoffNode = "node"
)

// maxWindow is the largest handoff_window: a worker's channel holds that many descriptors.
const maxWindow = 64

// HandsOff reports whether accepted sockets go to the workers.
func (c *Config) HandsOff() bool { return c.Handoff == HandoffLB || c.Handoff == HandoffNode }

// checkHandoff finds the faults of the handoff keys themselves.
func (c *Config) checkHandoff() (errs []error) {
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if known := []string{HandoffOff, HandoffLB, HandoffNode}; !slices.Contains(known, c.Handoff) {
		fault("handoff: unknown value %q; write one of %q", c.Handoff, known)
		return errs
	}
	if c.HandoffWindow < 1 || c.HandoffWindow > maxWindow {
		fault("handoff_window: %d is not within 1..%d", c.HandoffWindow, maxWindow)
	}
	errs = append(errs, CheckDuration("handoff_timeout", c.HandoffTimeout, false))
	return errs
}
