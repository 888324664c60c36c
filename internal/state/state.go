// Package state writes down what lb must not forget, and reads it back: the operator's changes in the state
// file, and later the snapshot that a new binary takes over in an upgrade.
//
// A state is a header and a list of records; codec.go has the form and the rules by which an older or a newer
// lb reads it, values.go what a payload is made of. changes.go are the records of the state file, file.go
// writes it so that a crash at any moment leaves the old or the new one. The package starts no goroutine and
// believes no byte that it reads.
//
// # For the snapshot of an upgrade
//
// Take kinds from KindSnapshot up, one for each thing that is written down (a listener, a pool, a session, a
// freeze's time), and encode each with an Encoder as changes.go does. The state file and the snapshot
// differ in their Purpose, so that neither is taken for the other. A snapshot is read from a memfd with
// ReadLimited and a larger limit. What an older lb must understand has a kind without Optional: it refuses
// the state then, which is what a pre-flight wants to know.
package state

import "errors"

var (
	// ErrDamaged: what was read is no state: it was cut off, changed, or something else from the start.
	ErrDamaged = errors.New("the state is damaged")
	// ErrNewer: a newer lb wrote it, with something in it that this one must not ignore.
	ErrNewer = errors.New("the state was written by a newer lb")
	// ErrPurpose: it is a state, but of another purpose.
	ErrPurpose = errors.New("the state has another purpose")
	// ErrTooLarge: it is above the limit.
	ErrTooLarge = errors.New("the state is too large")
)
