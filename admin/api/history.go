package api

import "time"

// History is the answer of GET /v1/history: what backends did in the last ten minutes.
type History struct {
	// Interval is how many seconds a point stands for. Until is when the last point ended.
	Interval float64   `json:"interval_seconds"`
	Until    time.Time `json:"until"`
	// Backends are the backends and slots that lb remembers. A slot's history goes on over deploys.
	Backends []BackendHistory `json:"backends"`
}

// BackendHistory is what one backend, or one slot of workers, did. The lists are of one length, the oldest
// point first, and the last one ended at History.Until.
type BackendHistory struct {
	Pool string `json:"pool"`
	// Name is the backend's, or the number of the slot.
	Name string `json:"name"`
	// Active is how many slots it had given out at the end of each interval.
	Active []int64 `json:"active"`
	// Connections counts those that were established in each interval, Errors those that failed.
	Connections []uint64 `json:"connections"`
	Errors      []uint64 `json:"errors"`
	// FirstByteP99 is the quantile of the seconds to the first byte in each interval; 0 where there was none.
	FirstByteP99 []float64 `json:"first_byte_p99_seconds"`
}

// Latency is how long something took in the last minute.
type Latency struct {
	Count uint64 `json:"count"`
	// P50 and P99 are quantiles, in seconds.
	P50 float64 `json:"p50_seconds"`
	P99 float64 `json:"p99_seconds"`
}

// ClientStatus is one source address with running sessions.
type ClientStatus struct {
	// Address is the client's, without the port; "unix" for all on Unix sockets.
	Address  string `json:"address"`
	Sessions int    `json:"sessions"`
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// Rate is the bytes a second, both ways, since somebody asked before; null for the first who asks.
	Rate *float64 `json:"bytes_per_second"`
	// Oldest is how many seconds its oldest session has run.
	Oldest float64 `json:"oldest_seconds"`
}

// ClientList is the answer of GET /v1/clients.
type ClientList struct {
	// Clients are those with the most sessions first; Total is how many there are, which may be more.
	Clients []ClientStatus `json:"clients"`
	Total   int            `json:"total"`
}
