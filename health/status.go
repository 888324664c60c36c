package health

import (
	"slices"
	"time"
)

// Outcome is what one probe, heartbeat or missed heartbeat said of a backend. The zero value is None.
type Outcome uint8

const (
	None         Outcome = iota // nothing looked at it yet
	Success                     // it answered as it should
	Failure                     // it did not
	Inconclusive                // it cannot be told, and the counts stay: a full backlog, or lb itself was out of something
)

var outcomeNames = [...]string{"none", "success", "failure", "inconclusive"}

// String is the outcome's name in the API and the logs.
func (o Outcome) String() string { return outcomeNames[o] }

// parseOutcome reads what String wrote; None if it is not known.
func parseOutcome(name string) Outcome {
	return Outcome(max(0, slices.Index(outcomeNames[:], name)))
}

// Status is what is known of a backend's signs of life, for display. It is a plain value.
type Status struct {
	// Type is the type of watching, as in Config; "connect" where "accept" sees no more than that.
	Type string
	// Last is when the last probe started, or the last heartbeat came or was missed; zero before the first.
	Last time.Time
	// Duration is how long that probe took; 0 for a heartbeat.
	Duration time.Duration
	// Outcome is what it found.
	Outcome Outcome
	// Reason says so in words: "http status 503, want 200-399".
	Reason string
	// Shortage says that the probe could not be made, as lb itself was out of something.
	Shortage bool
	// Successes and Failures are how many came in a row; one of them is 0. What is inconclusive does not end a row.
	Successes, Failures int
	// Next is when the next probe is due, or the next heartbeat at the latest; zero when nothing is.
	Next time.Time
	// Held says that the backend waits for its worker's word, see Checker.Starting and Checker.Offline; nothing is probed.
	Held bool
	// Paused says that the admin state is maint; nothing is probed.
	Paused bool
	// Passive says that failed connects of clients took the backend down.
	Passive bool
}

// Saved is what a new binary needs to know to go on with the counts of one backend where this one stopped. It is plain
// data: what is missing in JSON is as it is before the first sign of life, and what another version has besides is passed
// over. The health state itself is the pool's to carry.
type Saved struct {
	Backend string `json:"backend"`        // its name in the pool
	Type    string `json:"type,omitempty"` // of watching, as Config.Type; empty is the same

	Reason string `json:"reason,omitempty"` // why the health last changed
	Silent bool   `json:"silent,omitempty"` // it is down, and only because heartbeats were missed

	Successes int  `json:"successes,omitempty"`
	Failures  int  `json:"failures,omitempty"`
	Fresh     bool `json:"fresh,omitempty"` // nothing has decided yet: the next probe does, alone
	Held      bool `json:"held,omitempty"`
	Paused    bool `json:"paused,omitempty"`
	Passive   bool `json:"passive,omitempty"`

	AgentDown  bool   `json:"agent_down,omitempty"`  // the last health word of its agent was not "up"
	AgentAdmin string `json:"agent_admin,omitempty"` // the admin state that its agent set; "ready" or empty if none

	Next time.Time `json:"next,omitzero"` // zero when nothing is due

	// What Status shows of the last sign.
	Last     time.Time     `json:"last,omitzero"`
	Duration time.Duration `json:"duration,omitempty"`
	Outcome  string        `json:"outcome,omitempty"`
	Said     string        `json:"said,omitempty"`
}
