// Package fleet simulates many lbs in front of many backends, in virtual time: how evenly each way of
// choosing spreads connections when no front sees what the others do.
//
// A front is an lb that clients connect to; an outer balancer spreads clients over fronts at random. A
// backend is a host's pool, with a weight and as many places to serve at once. Connections come as a Poisson
// process; how long they take is log-normal, and exponential in tests. A backend without a free place has
// them wait in its queue, first come first served.
//
// A run depends on its Config alone: the same Config gives the same Result.
package fleet

import (
	"errors"
	"fmt"
	"time"
)

// Policy is how a front chooses.
type Policy string

// The policies. All but Exact, Random and RoundRobin go by the front's idea of a backend's connections.
const (
	// Local has the fewest connections of this front alone, as an lb without a cluster.
	Local Policy = "local"
	// TwoChoices is the better of two backends drawn by weight, by this front's own connections.
	TwoChoices Policy = "two choices"
	// Published has the fewest by what the backend's host published last, and what this front has added or
	// ended since.
	Published Policy = "published"
	// Scaled is Published, with this front's own changes taken for those of every front.
	Scaled Policy = "published, scaled"
	// Shared has the fewest by this front's own connections and its part of what was published: with F
	// fronts each sets right an F-th of what is uneven.
	Shared Policy = "published, shared"
	// PublishedTwo is the better of two backends drawn by weight, by published counts.
	PublishedTwo Policy = "published, two"
	// Exact has the fewest of all, at this moment: nobody can know that, it is what the others are held to.
	Exact Policy = "exact"
	// Random draws by weight.
	Random Policy = "random"
	// RoundRobin takes turns by weight.
	RoundRobin Policy = "roundrobin"
)

// Policies are all policies, in the order of a report.
var Policies = []Policy{Exact, Published, Scaled, Shared, PublishedTwo, Local, TwoChoices, RoundRobin, Random}

// Event is what happens in a run.
type Event string

// The events. The zero value is a quiet run.
const (
	NoEvent Event = ""
	// TenthDies kills every tenth backend at a third of the run, and has them back at two thirds.
	TenthDies Event = "a tenth of the hosts dies"
	// FrontsRestart ends every session of every front at half of the run. Their clients come back within a
	// second.
	FrontsRestart Event = "all fronts restart"
)

// Config is one run.
type Config struct {
	Seed     uint64
	Fronts   int
	Backends int
	// Hold is how long a connection takes on average. The places follow from it, Rate and Load: every third
	// backend has weight 2 and twice the places of the others.
	Hold time.Duration
	// Rate is how many connections come a second, at all fronts together.
	Rate float64
	// Load is how much of all places is in use on average, 0..1.
	Load float64
	// Spread is the sigma of the log-normal law of how long connections take. 0 means exponential.
	Spread float64
	Policy Policy
	// Age is how often a host looks at its count and publishes it, where it has changed by a twentieth.
	Age time.Duration
	// Time is how long the run is, in virtual time. The first fifth of it is not counted.
	Time  time.Duration
	Event Event
	// Detect is how long a front takes to see that a backend has died. Until then it tries it, and then
	// another one.
	Detect time.Duration
}

// Validate reports what no run can be made of.
func (c *Config) Validate() error {
	switch {
	case c.Fronts < 1 || c.Backends < 1:
		return errors.New("fronts and backends must be 1 or more")
	case c.Rate <= 0 || c.Load <= 0 || c.Load >= 1:
		return fmt.Errorf("a rate of %v and a load of %v: the rate must be above 0, the load between 0 and 1", c.Rate, c.Load)
	case c.Time < time.Second || c.Hold <= 0 || c.Spread < 0:
		return errors.New("a run takes a second or more, a connection more than 0, and the spread is 0 or more")
	case c.published() && c.Age <= 0:
		return fmt.Errorf("policy %q needs an age above 0", c.Policy)
	}
	return nil
}

// published reports whether the policy goes by published counts.
func (c *Config) published() bool {
	switch c.Policy {
	case Published, Scaled, Shared, PublishedTwo:
		return true
	}
	return false
}

// Result is what came of a run. Times are virtual.
type Result struct {
	Config Config
	// Connections were begun; Served have ended after they were served.
	Connections, Served int64
	// Imbalance is the load of the most loaded backend, by its weight, in terms of the mean: over the time of
	// the run, and at the worst moment.
	Imbalance, WorstImbalance float64
	// Waits are how long connections wait for a place: the median, p99 and the longest.
	WaitP50, WaitP99, WaitMax time.Duration
	// Waited is the part of connections that found no free place.
	Waited float64
	// Writes are how often hosts published, a second.
	Writes float64
	// Retries are picks of a backend that had died; Broken are connections that ended with it or their front.
	Retries, Broken int64
	// Timeline is the imbalance at each tenth of a second that counts, and the part of backends' queues.
	Timeline []Moment
}

// Moment is a point of the timeline.
type Moment struct {
	At        time.Duration
	Imbalance float64
	Queued    int // connections that wait
}
