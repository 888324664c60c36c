package health

import (
	"testing"
	"time"
)

// Only of a worker that was seen to be ready, and not to beat, may it be said that it never has: also by a
// new binary, and not of what an older one has written down without a word of it.
func TestStatus_MuteIsOneThatNeverBeat(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(notify), 3)
		r.run()
		want := func(when string, mute ...bool) {
			t.Helper()
			for i, b := range r.b {
				if got := r.Status(b).Mute; got != mute[i] {
					t.Errorf("%s: mute of b%d: got %v; want %v", when, i, got, mute[i])
				}
			}
		}
		want("at the start", false, false, false)
		r.Ready(r.b[0], "READY=1")
		r.Ready(r.b[1], "READY=1")
		at(time.Second)
		r.Beat(r.b[1])
		at(20 * time.Second)
		want("20 s after", true, false, false)

		r.stop()
		next := newRig(t, exact(notify), 3)
		next.Import(r.Export())
		if !next.Status(next.b[0]).Mute || next.Status(next.b[1]).Mute || next.Status(next.b[2]).Mute {
			t.Error("in a new binary: got others; want b0 alone to be mute")
		}
	})
}
