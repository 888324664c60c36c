package api

import "time"

// ReloadRequest is the body of POST /v1/reload; it may be absent.
type ReloadRequest struct {
	DryRun bool `json:"dry_run,omitempty"`
}

// StopRequest is the body of POST /v1/stop; it may be absent. With Now, sessions are closed at once.
type StopRequest struct {
	Now bool `json:"now,omitempty"`
}

// StopResult is the answer of POST /v1/stop.
type StopResult struct {
	Stopping bool `json:"stopping"`
	PID      int  `json:"pid"` // of the process that stops
}

// LogLevelChange is the body of PUT /v1/log-level, and the answer.
type LogLevelChange struct {
	Level string `json:"level"` // "debug", "info", "warn" or "error"
}

// ReloadResult is what a reload did, or with dry_run would do.
type ReloadResult struct {
	DryRun bool `json:"dry_run"`
	// Changes are the differences, one a line: "pools.app.backends.w1.weight: 100 → 50".
	Changes []string `json:"changes"`
	// Warnings are what is legal and probably wrong in the new config.
	Warnings []string `json:"warnings"`
	// Kept are run-time changes that stand against the config, one a line.
	Kept []string `json:"kept,omitempty"`
}

// ReloadStatus is how the last reload ended.
type ReloadStatus struct {
	// Loaded is when the config that runs was read.
	Loaded time.Time `json:"loaded"`
	// Tried is when a reload was last asked for; the zero time before the first. Error is why it was refused;
	// empty: it was not.
	Tried time.Time `json:"tried,omitzero"`
	Error string    `json:"error,omitempty"`
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
	// LastReload is how the last reload ended; null before lb has read a config.
	LastReload *ReloadStatus `json:"last_reload,omitempty"`
	// Sessions is how many sessions there are, over all listeners, HandedOff how many of them workers have
	// taken, and MaxSessions how many others there may be.
	Sessions    int64 `json:"sessions"`
	HandedOff   int64 `json:"handed_off_sessions"`
	MaxSessions int64 `json:"max_sessions"`
	// Batching is "on" where small exchanges go in batches through an io_uring, and "off", with the reason,
	// where they do not; empty from an lb that has no batches.
	Batching string `json:"batching,omitempty"`
	// SessionLimitReached counts how often MaxSessions stopped the accepting.
	SessionLimitReached uint64 `json:"session_limit_reached"`
	// AcceptErrors counts failed accepts by reason. A reason that can occur is there from the start, with 0,
	// so that a rate over it has a beginning.
	AcceptErrors map[string]uint64 `json:"accept_errors"`
	// Pipes is how many pipes for splice(2) are open, in use or pooled; SplicedBytes counts what went through
	// them.
	Pipes        int64  `json:"pipes"`
	SplicedBytes uint64 `json:"spliced_bytes"`
	// HandoffEndsLost counts the times that the kernel dropped what it had to tell of handed-off connections
	// that ended. lb asked it again, and missed none.
	HandoffEndsLost uint64 `json:"handoff_ends_lost"`
	// AccessLogDropped counts the lines that the access log had to drop.
	AccessLogDropped uint64 `json:"access_log_dropped"`
	// LogDropped counts the lines of the event log, and of workers in it, that were dropped because what
	// takes them is too slow, full or closed. A line in their place says so.
	LogDropped uint64 `json:"log_dropped"`
	// Upgrades counts those that succeeded since the start, UpgradeSessions the sessions that they carried
	// over, and UpgradeStandstill is how many seconds the last one took; 0 before the first.
	Upgrades          uint64  `json:"upgrades"`
	UpgradeSessions   uint64  `json:"upgrade_sessions"`
	UpgradeStandstill float64 `json:"upgrade_standstill_seconds"`
}

// Status is the whole state of lb, as GET /v1/status gives it. Names of fields in JSON stay; new ones come.
type Status struct {
	ProcessStatus
	Listeners []ListenerStatus `json:"listeners"`
	Pools     []PoolStatus     `json:"pools"`
}
