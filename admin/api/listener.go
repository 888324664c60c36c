package api

// SplitChange is the body of PUT …/split. A pool that the body does not name keeps its weight.
type SplitChange struct {
	Weights map[string]int `json:"weights"`
}

// SplitResult is the answer of PUT …/split.
type SplitResult struct {
	SplitChange
	Warned
}

// MaxConnsResult is the answer of PUT …/max_conns of a listener.
type MaxConnsResult struct {
	MaxConnsChange
	Warned
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
	// Rate is the new ones a second, over the last seconds; the Server fills it in. It is null for the first
	// who asks.
	Rate *float64 `json:"connections_per_second"`
	// BytesIn counts bytes from clients, BytesOut bytes to them.
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// Refused counts the clients that were closed before a backend was chosen, by reason: rules, limits,
	// PROXY header.
	Refused map[string]uint64 `json:"refused"`
}
