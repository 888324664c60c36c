package api

import "time"

// PoolStatus is one pool at one moment.
type PoolStatus struct {
	Name string `json:"name"`
	// Balance is the name of its policy.
	Balance string `json:"balance"`
	// Handoff is how accepted sockets go to its workers: "lb" or "node"; "off" where lb carries the bytes.
	Handoff string `json:"handoff"`
	// Active is how many slots its backends have given out.
	Active int64 `json:"active"`
	// Selectable is how many of its backends may be given new connections.
	Selectable int `json:"selectable"`
	// FirstByte and Session are the latencies of the last minute, as BackendStatus has them, over all.
	FirstByte *Latency        `json:"first_byte,omitempty"`
	Session   *Latency        `json:"session,omitempty"`
	Queue     QueueStatus     `json:"queue"`
	Backends  []BackendStatus `json:"backends"`
	// Workers are the processes that lb runs for the pool; absent where it runs none.
	Workers *WorkersStatus `json:"workers,omitempty"`
	// Discovery is where the pool finds backends beside those of the config; absent where it does not.
	Discovery *DiscoveryStatus `json:"discovery,omitempty"`
	// Warned warns of the change that this answers.
	Warned
}

// DiscoveryStatus is what is known of a pool's discover.
type DiscoveryStatus struct {
	// Source is the pool's discover.
	Source string `json:"source"`
	// Backends is how many backends are known from there.
	Backends int `json:"backends"`
	// Checked is when the last sound answer came; absent before the first.
	Checked time.Time `json:"checked,omitzero"`
	// StaleSince is when answers began to fail; absent if the last one was sound. The backends that are known
	// stay meanwhile.
	StaleSince time.Time `json:"stale_since,omitzero"`
	// Error is why the last look-up failed; absent if it did not.
	Error string `json:"error,omitempty"`
}

// QueueStatus is a pool's queue at one moment.
type QueueStatus struct {
	// Length is how many connections wait, Size how many may.
	Length int `json:"length"`
	Size   int `json:"size"`
	// OldestWait is how many seconds the one has waited that is served next; 0 if none waits.
	OldestWait float64 `json:"oldest_wait_seconds"`
	// Queued counts those that had to wait, Rejected those that found the queue full, Timeouts those that
	// waited in vain.
	Queued   uint64 `json:"queued"`
	Rejected uint64 `json:"rejected"`
	Timeouts uint64 `json:"timeouts"`
}
