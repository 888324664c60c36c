package eventually_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/internal/eventually"
)

func TestWithin(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		after := func(d time.Duration) func() bool { return func() bool { return time.Since(start) >= d } }
		if !eventually.Within(time.Second, after(500*time.Millisecond)) || time.Since(start) > 501*time.Millisecond {
			t.Errorf("got false or late, after %v; want true after 500ms", time.Since(start))
		}
		start = time.Now()
		if eventually.Within(time.Second, func() bool { return false }) || time.Since(start) > 1010*time.Millisecond {
			t.Errorf("got true or late, after %v; want false after a second", time.Since(start))
		}
		if !eventually.Within(0, func() bool { return true }) {
			t.Error("got false; want one look at least")
		}
	})
}

func TestReceive(t *testing.T) {
	c := make(chan int)
	go func() { c <- 7 }()
	if got := eventually.Receive(t, "a number", c); got != 7 {
		t.Errorf("got %d; want 7", got)
	}
}
