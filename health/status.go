package health

import (
	"slices"
	"time"
)

// Outcome is the result of one probe, heartbeat or missed heartbeat. The zero value is None.
type Outcome uint8

const (
	None    Outcome = iota // there was none yet
	Success                // it answered as it should
	Failure                // it did not
	// it says nothing, and the counts stay: a full backlog, or lb itself was out of something
	Inconclusive
)

var outcomeNames = [...]string{"none", "success", "failure", "inconclusive"}

// String returns the outcome's name in the API and the logs.
func (o Outcome) String() string { return outcomeNames[o] }

// parseOutcome returns the outcome of that name, or None.
func parseOutcome(name string) Outcome {
	return Outcome(max(0, slices.Index(outcomeNames[:], name)))
}

// Status describes a backend's signs of life, for display. It is a plain value.
type Status struct {
	// Type is the type of watching, as in Config; "connect" where "accept" sees no more than that.
	Type string
	// Last is when the last probe started, or the last heartbeat came or was missed; zero before the first.
	Last time.Time
	// Duration is how long that probe took; 0 for a heartbeat.
	Duration time.Duration
	// Outcome is its result.
	Outcome Outcome
	// Reason says it in words: "http status 503, want 200-399".
	Reason string
	// Shortage says that the probe could not be made, as lb itself was out of something.
	Shortage bool
	// Successes and Failures are how many came in a row; one of them is 0. What is inconclusive does not end
	// a row.
	Successes, Failures int
	// Next is when the next probe is due, or the next heartbeat at the latest; zero when nothing is.
	Next time.Time
	// Awaiting says that the backend waits for its worker's word, see Checker.Starting and Checker.Offline;
	// nothing is probed.
	Awaiting bool
	// Paused says that the admin state is maint; nothing is probed.
	Paused bool
	// Passive says that failed connects of clients took the backend down.
	Passive bool
	// Mute says that its worker was ready, and has sent no heartbeat since.
	Mute bool
}

// Saved is the counts of one backend, for a new binary that goes on with them. It is plain data. A field that
// is missing in JSON is as before the first sign of life; an unknown one is ignored. The pool carries the
// health state itself.
type Saved struct {
	Backend string `json:"backend"`        // its name in the pool
	Type    string `json:"type,omitempty"` // of watching, as Config.Type; empty is the same

	Reason string `json:"reason,omitempty"` // why the health last changed
	Silent bool   `json:"silent,omitempty"` // it is down, and only because heartbeats were missed

	Successes int  `json:"successes,omitempty"`
	Failures  int  `json:"failures,omitempty"`
	Fresh     bool `json:"fresh,omitempty"` // nothing has decided yet: the next probe does, alone
	Awaiting  bool `json:"held,omitempty"`
	Paused    bool `json:"paused,omitempty"`
	Passive   bool `json:"passive,omitempty"`
	Mute      bool `json:"mute,omitempty"`

	AgentDown bool `json:"agent_down,omitempty"` // the last health word of its agent was not "up"
	// the admin state that its agent set; "ready" or empty if none
	AgentAdmin string `json:"agent_admin,omitempty"`

	Next time.Time `json:"next,omitzero"` // zero when nothing is due

	// What Status shows of the last sign.
	Last     time.Time     `json:"last,omitzero"`
	Duration time.Duration `json:"duration,omitempty"`
	Outcome  string        `json:"outcome,omitempty"`
	Said     string        `json:"said,omitempty"`
}
