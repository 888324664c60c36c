package backends

import (
	"errors"
	"testing"
)

func TestPercentOf_RoundsOnceAndTakesNoBackendOut(t *testing.T) {
	for _, tc := range []struct{ configured, percent, want int }{
		{100, 50, 50}, {100, 0, 0}, {0, 100, 0}, {0, 1 << 40, 0}, {3, 50, 2}, {10, 1, 1}, {10, 4, 1}, {10, 15, 2}, {1000, 100, 1000}, {1, 100000, 1000},
	} {
		if got, err := PercentOf(tc.configured, tc.percent); err != nil || got != tc.want {
			t.Errorf("%d%% of %d: got %d, %v; want %d", tc.percent, tc.configured, got, err, tc.want)
		}
	}
	for _, tc := range []struct{ configured, percent int }{{100, -1}, {0, -1}, {100, 1001}, {1, 100051}, {1000, 1 << 62}} {
		if got, err := PercentOf(tc.configured, tc.percent); !errors.Is(err, ErrRange) {
			t.Errorf("%d%% of %d: got %d, %v; want ErrRange", tc.percent, tc.configured, got, err)
		}
	}
}
