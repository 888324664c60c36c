package bench

import (
	"math"
	"slices"
)

// Summary is the middle and the range of some numbers. All three are NaN if there were none.
type Summary struct {
	Median, Min, Max float64
}

// Summarize returns the median, the least and the greatest of values, leaving out NaN. It does not change
// values.
func Summarize(values []float64) Summary {
	sorted := make([]float64, 0, len(values))
	for _, v := range values {
		if !math.IsNaN(v) {
			sorted = append(sorted, v)
		}
	}
	n := len(sorted)
	if n == 0 {
		return Summary{math.NaN(), math.NaN(), math.NaN()}
	}
	slices.Sort(sorted)
	// The mean of the two in the middle, which for an odd number are the same.
	return Summary{Median: (sorted[(n-1)/2] + sorted[n/2]) / 2, Min: sorted[0], Max: sorted[n-1]}
}

// Ratios returns values[i] / base[i] for each i. Where either is NaN or base is not above zero, the ratio is
// NaN.
func Ratios(values, base []float64) []float64 {
	ratios := make([]float64, min(len(values), len(base)))
	for i := range ratios {
		ratios[i] = math.NaN()
		if base[i] > 0 {
			ratios[i] = values[i] / base[i]
		}
	}
	return ratios
}

// Least returns, for each i, the least of the i-th numbers of all series, leaving out NaN; it is NaN where
// there are none. The result is as long as the longest series.
func Least(series ...[]float64) []float64 {
	var least []float64
	for _, one := range series {
		for i, v := range one {
			if i == len(least) {
				least = append(least, math.NaN())
			}
			if math.IsNaN(least[i]) || v < least[i] {
				least[i] = v
			}
		}
	}
	return least
}
