// Package clock reads the clock that goes on over an exec and that all processes of a host share.
package clock

import (
	"time"

	"golang.org/x/sys/unix"
)

// Monotonic reads CLOCK_MONOTONIC (clock_gettime(2)).
func Monotonic() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic("BUG: clock: cannot read CLOCK_MONOTONIC: " + err.Error())
	}
	return time.Duration(ts.Nano())
}
