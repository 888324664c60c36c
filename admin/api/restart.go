package api

import "time"

// RestartRequest is the body of POST …/restart and …/rollback; it may be absent.
type RestartRequest struct {
	// Slot is the one to restart; absent is all. A rollback is always of all.
	Slot *int `json:"slot,omitempty"`
	// Surge is how many successors are started at once, after the first; 0 is one, negative is all.
	Surge int `json:"surge,omitempty"`
	// Timeout bounds the whole restart, such as "5m"; empty is without end.
	Timeout string `json:"timeout,omitempty"`
	// NoWait answers when the restart has begun.
	NoWait bool `json:"no_wait,omitempty"`
}

// Bound returns Timeout as a duration; 0 is none. The server has checked that Timeout is one.
func (r *RestartRequest) Bound() time.Duration {
	d, _ := time.ParseDuration(r.Timeout)
	return d
}

// RestartStep is one step of a restart, a line of its answer. The last line is a step "done" or "failed"
// without a slot.
type RestartStep struct {
	// Step is "started", "replaced" or "failed" of the slot's successor; or of the whole restart "begun"
	// (with no_wait), "done" or "failed".
	Step string `json:"step"`
	Slot *int   `json:"slot,omitempty"`
	PID  int    `json:"pid,omitempty"`
	// Done of Total slots are replaced.
	Done  int `json:"done"`
	Total int `json:"total"`
	// Error is why it failed, with the last output of the worker that did.
	Error string `json:"error,omitempty"`
	// Warned is of the last line.
	Warned
}
