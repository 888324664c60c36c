package backends

import (
	"errors"
	"fmt"
)

// ErrRange: a weight or a limit is out of its range. What wraps it names the value and the range.
var ErrRange = errors.New("not within")

// CheckWeight returns an error that wraps ErrRange unless weight is within 0..MaxWeight.
func CheckWeight(weight int) error {
	if weight < 0 || weight > MaxWeight {
		return fmt.Errorf("weight: %d is %w 0..%d", weight, ErrRange, MaxWeight)
	}
	return nil
}

// PercentOf returns that percentage of a configured weight, rounded to the nearest. A percentage above 0
// never makes 0 of a weight above 0, so that it takes no backend out. The error wraps ErrRange.
func PercentOf(configured, percent int) (weight int, err error) {
	w := (int64(configured)*min(int64(percent), 1<<40) + 50) / 100
	if w == 0 && percent > 0 && configured > 0 {
		w = 1
	}
	if percent < 0 || w > MaxWeight {
		return 0, fmt.Errorf("percent: %d%% of the configured weight %d is %w 0..%d", percent, configured, ErrRange, MaxWeight)
	}
	return int(w), nil
}
