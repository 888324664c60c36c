package health

import (
	"time"

	"github.com/273ebdf9/lb/backends"
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

// Status is what is known of a backend's signs of life, for display. It is a plain value.
type Status struct {
	// Type is the type of watching, as in Config.
	Type string
	// Last is when the last probe started, or the last heartbeat came or was missed; zero before the first.
	Last time.Time
	// Duration is how long that probe took; 0 for a heartbeat.
	Duration time.Duration
	// Outcome is what it found.
	Outcome Outcome
	// Reason says so in words: "http status 503, want 200-399".
	Reason string
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
// data. The health state itself is the pool's to carry.
type Saved struct {
	Backend             string // its name in the pool
	Successes, Failures int
	Fresh               bool // nothing has decided yet: the next probe does, alone
	Held                bool
	Passive             bool
	AgentDown           bool                // the last health word of its agent was not "up"
	AgentAdmin          backends.AdminState // the admin state that its agent set; ready if none
	Next                time.Time           // zero when nothing is due
}
