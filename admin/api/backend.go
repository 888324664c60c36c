package api

import "time"

// WeightChange is the body of PUT …/weight: one of the two.
type WeightChange struct {
	// Weight is 0..1000; Percent is of the configured weight.
	Weight  *int `json:"weight,omitempty"`
	Percent *int `json:"percent,omitempty"`
}

// AdminChange is the body of PUT …/admin.
type AdminChange struct {
	State string `json:"state"` // "ready", "drain" or "maint"
}

// MaxConnsChange is the body of PUT …/max_conns.
type MaxConnsChange struct {
	MaxConns *int `json:"max_conns"` // 0 is no limit
}

// NewBackend is a backend to add while lb runs. Weight nil is the default.
type NewBackend struct {
	Name     string `json:"name"`
	Address  string `json:"address"`
	Weight   *int   `json:"weight,omitempty"`
	MaxConns int    `json:"max_conns,omitempty"`
	Backup   bool   `json:"backup,omitempty"`
}

// ProbeStatus is the last health probe of a backend. The zero value is no probe yet.
type ProbeStatus struct {
	// Type is the type of the probe, as in the config; "connect" where "accept" saw no more than that.
	Type string `json:"type"`
	// Time is when the probe ended.
	Time time.Time `json:"time"`
	// OK says whether it succeeded; Error is why not.
	OK    bool   `json:"ok"`
	Error string `json:"error,omitempty"`
	// Duration is how many seconds it took.
	Duration float64 `json:"duration_seconds"`
}

// AcceptQueue is the queue of a listening socket, in which connections wait until a process accepts them.
type AcceptQueue struct {
	// Waiting is how many connections wait.
	Waiting int `json:"waiting"`
	// Limit is how many may: the backlog of listen(2).
	Limit int `json:"limit"`
}

// BackendStatus is one backend at one moment.
type BackendStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Admin is what the operator wants: "ready", "drain" or "maint". Health is what lb sees: "starting", "up"
	// or "down".
	Admin  string `json:"admin"`
	Health string `json:"health"`
	// Since is when Admin or Health last changed, Reason why; the reason is empty before the first change.
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
	// Selectable says whether it may be given new connections, max_conns aside.
	Selectable bool `json:"selectable"`
	// LastResort says that it is given them nevertheless: its heartbeat has stopped, and no backend of the
	// pool is selectable.
	LastResort bool `json:"last_resort"`
	// Backup says that it is only for when no other is selectable.
	Backup bool `json:"backup"`
	// Weight is 0..1000, ConfiguredWeight what the config says.
	Weight           int `json:"weight"`
	ConfiguredWeight int `json:"configured_weight"`
	// Share is its part, 0..1, of the weights of the backends that the pool offers at this moment, a slow
	// start included; 0 if it is not one.
	Share float64 `json:"share"`
	// Active is how many slots it has given out: sessions, and connects under way. MaxConns is their limit; 0
	// is none.
	Active   int64 `json:"active"`
	MaxConns int   `json:"max_conns"`
	// Connections counts the established ones. Rate is those a second, over the last seconds; the Server
	// fills it in. It is null for the first who asks.
	Connections uint64   `json:"connections"`
	Rate        *float64 `json:"connections_per_second"`
	// BytesIn counts bytes from clients, BytesOut bytes to them.
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// ConnectErrors counts failed connects by reason: "refused", "saturated", "timeout", "unreachable",
	// "resource", "other".
	ConnectErrors map[string]uint64 `json:"connect_errors"`
	// ConnectP50 and ConnectP99 are quantiles of the seconds that a connect took, over all since the backend
	// was added; 0 before the first.
	ConnectP50 float64 `json:"connect_p50_seconds"`
	ConnectP99 float64 `json:"connect_p99_seconds"`
	// FirstByte is the time from a client's first byte to the backend's, Session that of whole sessions, in
	// the last minute; null where there was none. Those of a worker are its slot's. The Server fills them in.
	FirstByte *Latency `json:"first_byte"`
	Session   *Latency `json:"session"`
	// LastProbe is null before the first probe.
	LastProbe *ProbeStatus `json:"last_probe"`
	// Handoff says that the backend is given accepted sockets; its address is a name then.
	Handoff bool `json:"handoff"`
	// AcceptQueue is the queue of its listening socket; null where lb cannot see it: on another host, say.
	// With Handoff it is what it was given and has not taken, and handoff_window.
	AcceptQueue *AcceptQueue `json:"accept_queue"`
	// Warned warns of the change that this answers.
	Warned
}
