package admin

import (
	"log/slog"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// Sources are where a Server takes its facts from. Every function is called on the goroutine of a request, possibly
// by several at once, and must be quick. A nil function is one that has nothing to tell.
type Sources struct {
	// Pools are the pools, in the order in which to show them.
	Pools func() []*backends.Pool
	// Listeners are the listeners, in the order in which to show them.
	Listeners func() []ListenerStatus
	// Process is the process as a whole.
	Process func() ProcessStatus
	// Probe is the last health probe of a backend; the zero value where there was none.
	Probe func(*backends.Backend) ProbeStatus
	// Workers are the workers of a pool; nil where lb runs none.
	Workers func(pool string) *WorkersStatus
	// Log is told of faults of the HTTP servers themselves; nil is silence.
	Log *slog.Logger
}

// ListenerStatus is one listener at one moment.
type ListenerStatus struct {
	Name string `json:"name"`
	// Addresses are what it listens on, as bound: a port 0 of the config is the port that the kernel chose.
	Addresses []string `json:"addresses"`
	// Pool is the name of the pool that serves it; empty with a split.
	Pool string `json:"pool"`
	// Split are the weights by name of the pool, where it is divided among several.
	Split map[string]int `json:"split,omitempty"`
	// Active is how many sessions it has now. MaxConns is their limit; 0 is none.
	Active   int64 `json:"active"`
	MaxConns int   `json:"max_conns"`
	// Connections counts the clients that were accepted.
	Connections uint64 `json:"connections"`
	// Rate is the new ones a second, over the last seconds; the Server fills it in. It is null for the first who asks.
	Rate *float64 `json:"connections_per_second"`
	// BytesIn counts bytes from clients, BytesOut bytes to them.
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// Refused counts the clients that were closed before a backend was chosen, by reason: rules, limits, PROXY header.
	Refused map[string]uint64 `json:"refused"`
}

// ProcessStatus is the lb process at one moment.
type ProcessStatus struct {
	// Version is lb's version; Revision is the commit it was built from, empty where that is not known.
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	// PID is the process id; the Server fills it in.
	PID int `json:"pid"`
	// Started is when lb started.
	Started time.Time `json:"started"`
	// Uptime is the seconds since Started; the Server fills it in.
	Uptime float64 `json:"uptime_seconds"`
	// Stopping says that it has been told to stop: it accepts nobody, and its sessions may finish.
	Stopping bool `json:"stopping"`
	// Sessions is how many sessions there are, over all listeners; MaxSessions is how many there may be.
	Sessions    int64 `json:"sessions"`
	MaxSessions int64 `json:"max_sessions"`
	// SessionLimitReached counts how often MaxSessions stopped the accepting.
	SessionLimitReached uint64 `json:"session_limit_reached"`
	// AcceptErrors counts failed accepts by reason. A reason that can occur is there from the start, with 0, so that
	// a rate over it has a beginning.
	AcceptErrors map[string]uint64 `json:"accept_errors"`
	// Pipes is how many pipes for splice(2) are open, in use or pooled; SplicedBytes counts what went through them.
	Pipes        int64  `json:"pipes"`
	SplicedBytes uint64 `json:"spliced_bytes"`
	// AccessLogDropped counts the lines that the access log had to drop.
	AccessLogDropped uint64 `json:"access_log_dropped"`
	// Upgrades counts those that succeeded since the start, UpgradeSessions the sessions that they carried over, and
	// UpgradeStandstill is how many seconds the last one took; 0 before the first.
	Upgrades          uint64  `json:"upgrades"`
	UpgradeSessions   uint64  `json:"upgrade_sessions"`
	UpgradeStandstill float64 `json:"upgrade_standstill_seconds"`
}

// ProbeStatus is the last health probe of a backend. The zero value is no probe yet.
type ProbeStatus struct {
	// Time is when the probe ended.
	Time time.Time `json:"time"`
	// OK says whether it succeeded; Error is why not.
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	// Duration is how many seconds it took.
	Duration float64 `json:"duration_seconds"`
}
