package api

import "time"

// EventQuery chooses events. The zero value is all that lb remembers.
type EventQuery struct {
	After  uint64 // only those with a greater ID
	Last   int    // only so many of the last ones; 0 is no limit, negative is none
	Follow bool   // and those to come
}

// Event is one change of state, as `lb events` shows it.
type Event struct {
	ID      uint64    `json:"id"` // counts up by one
	Time    time.Time `json:"time"`
	Level   string    `json:"level"` // "info", "warn" or "error"
	Kind    string    `json:"kind"`  // "health", "admin", "weight", "reload", …
	Subject string    `json:"subject"`
	Text    string    `json:"text"`
	// Dropped is how many events before this one a follower missed because he was too slow. Only in answers
	// to him.
	Dropped uint64 `json:"dropped,omitempty"`
}
