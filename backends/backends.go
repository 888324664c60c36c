// Package backends is the domain of lb: pools, the backends in them, and which of them gets a new connection.
//
// A [Pool] owns its backends' slots: every connection acquires one before it dials and releases it exactly
// once, so that a burst over many loops cannot pile onto one backend and max_conns is never exceeded. What a
// backend is worth (weight, admin state, health state) changes while connections run; [Backend.Selectable] is
// the one place where the two states become a yes or a no.
//
// Ownership: a Pool's mutex guards its membership, its policy and its wait queue. What a reader outside may
// look at (active count, weight, states, counters) is atomic, written only through Pool and Backend methods.
// The package starts no goroutine but a timer's while a backend starts slowly, does no network I/O but
// [Backend.Resolve], and never calls a hook with its mutex held.
package backends
