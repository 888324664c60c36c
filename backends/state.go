package backends

import (
	"fmt"
	"time"
)

// AdminState is what the operator wants of a backend. The zero value is AdminReady.
type AdminState uint8

const (
	AdminReady AdminState = iota // takes new connections
	AdminDrain                   // finishes what it has, takes nothing new
	AdminMaint                   // off: takes nothing new, is not probed
)

var adminNames = [...]string{"ready", "drain", "maint"}

// String returns the state's name in the API, the metrics and the logs.
func (s AdminState) String() string { return adminNames[s] }

// ParseAdminState reads "ready", "drain" or "maint".
func ParseAdminState(s string) (AdminState, error) {
	for i, name := range adminNames {
		if s == name {
			return AdminState(i), nil
		}
	}
	return 0, fmt.Errorf("cannot parse admin state %q: write ready, drain or maint", s)
}

// HealthState is what lb sees of a backend. The zero value is HealthStarting.
type HealthState uint8

const (
	HealthStarting HealthState = iota // not known yet: takes nothing
	HealthUp                          // answers
	HealthDown                        // does not
)

var healthNames = [...]string{"starting", "up", "down"}

// String returns the state's name in the API, the metrics and the logs.
func (s HealthState) String() string { return healthNames[s] }

// Change is one change of a backend's state or weight, for Pool.OnChange.
type Change struct {
	Time    time.Time
	Pool    string
	Backend string
	// "health", "admin", "weight", "max_conns", "backup", "last_resort", "probe", "added" or "removed"
	Field  string
	From   string
	To     string
	Reason string        // why, in words: a probe's error, an operator's command
	Lasted time.Duration // how long From had stood; 0 where that has no meaning
	Left   int           // how many backends of the pool are selectable now
	Total  int           // of how many
}
