package api

import (
	"net/url"
	"strconv"
	"time"
)

// SessionFilter chooses sessions; an empty field admits all.
type SessionFilter struct {
	ID      string
	Pool    string
	Backend string        // with Pool
	Older   time.Duration // running for at least this long
}

// SessionStatus is one running session.
type SessionStatus struct {
	ID       string    `json:"id"` // for kill; unique while lb runs
	Client   string    `json:"client"`
	Listener string    `json:"listener"`
	Pool     string    `json:"pool"`
	Backend  string    `json:"backend"` // empty while it waits for one
	State    string    `json:"state"`   // "header", "queued", "connecting", "relaying"
	Started  time.Time `json:"started"`
	Age      float64   `json:"age_seconds"`
	Idle     float64   `json:"idle_seconds"` // since the last byte
	BytesIn  uint64    `json:"bytes_in"`
	BytesOut uint64    `json:"bytes_out"`
}

// SessionList is the answer of GET /v1/sessions.
type SessionList struct {
	// Sessions are the oldest first; Total is how many there are, which may be more.
	Sessions []SessionStatus `json:"sessions"`
	Total    int             `json:"total"`
}

// KillRequest is the body of POST /v1/sessions/kill: which sessions to close, by at least one of ID, Pool and
// Backend. Durations are written as "30s".
type KillRequest struct {
	ID      string `json:"id,omitempty"`
	Pool    string `json:"pool,omitempty"`
	Backend string `json:"backend,omitempty"` // with Pool
	Older   string `json:"older,omitempty"`
	// Over is the time over which the closing is spread; empty is at once.
	Over string `json:"over,omitempty"`
}

// KillResult is the answer of POST /v1/sessions/kill.
type KillResult struct {
	Killed int `json:"killed"`
}

// query is a filter as the query of GET /v1/sessions.
func (f *SessionFilter) query(limit int) string {
	q := url.Values{}
	for key, v := range map[string]string{"id": f.ID, "pool": f.Pool, "backend": f.Backend} {
		if v != "" {
			q.Set(key, v)
		}
	}
	if f.Older > 0 {
		q.Set("older", f.Older.String())
	}
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	return q.Encode()
}
