// Package eventually lets a test wait for what happens on another goroutine or in another process and cannot
// be waited for otherwise. Where there is a channel or an event, wait for that instead.
package eventually

import (
	"testing"
	"time"
)

const (
	// Patience is how long True waits. It is for a machine that is busy: a test that passes waits for as long
	// as it must.
	Patience = time.Minute
	// interval is the time between two looks.
	interval = time.Millisecond
)

// True waits until ok returns true. After Patience it fails the test and ends it: what says what ok waits
// for, as in "the worker is up".
func True(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !Within(Patience, ok) {
		t.Fatalf("%s: not so after %v", what, Patience)
	}
}

// NoError waits until check returns nil. After Patience it fails the test with check's last error, and ends
// it.
func NoError(t testing.TB, check func() error) {
	t.Helper()
	var err error
	if !Within(Patience, func() bool { err = check(); return err == nil }) {
		t.Fatalf("after %v: %v", Patience, err)
	}
}

// Within waits until ok returns true, and reports whether it did so within d. It calls ok once at least.
func Within(d time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(d); !ok(); time.Sleep(interval) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// Receive returns what comes from c. After Patience it fails the test and ends it.
func Receive[T any](t testing.TB, what string, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(Patience):
		t.Fatalf("%s: not so after %v", what, Patience)
	}
	return v
}
