package bench

import (
	"fmt"
	"math"
	"slices"
	"testing"
)

func TestSummarize(t *testing.T) {
	f := func(values []float64, median, low, high float64) {
		t.Helper()
		given := slices.Clone(values)
		got := Summarize(values)
		if got != (Summary{median, low, high}) {
			t.Errorf("Summarize(%v): got %v; want %v", values, got, Summary{median, low, high})
		}
		if fmt.Sprint(given) != fmt.Sprint(values) {
			t.Errorf("Summarize changed %v to %v", given, values)
		}
	}
	f([]float64{7}, 7, 7, 7)
	f([]float64{9, 1, 5}, 5, 1, 9)
	f([]float64{4, 1, 3, 2}, 2.5, 1, 4)
	f([]float64{math.NaN(), 2, math.NaN(), 1, 3}, 2, 1, 3)

	none := Summarize([]float64{math.NaN()})
	if !math.IsNaN(none.Median) || !math.IsNaN(none.Min) || !math.IsNaN(none.Max) {
		t.Errorf("got %v of nothing; want NaN", none)
	}
}

func TestRatios_OfEachRound(t *testing.T) {
	got := Ratios([]float64{1, 2, math.NaN(), 4, 5}, []float64{2, math.NaN(), 1, 0, 5})
	if want := "[0.5 NaN NaN NaN 1]"; fmt.Sprint(got) != want {
		t.Errorf("got %v; want %v", got, want)
	}
}

func TestLeast_LeavesOutNaN(t *testing.T) {
	nan := math.NaN()
	got := Least([]float64{3, nan, nan, 1}, []float64{2, 5, nan}, []float64{4, 6, nan, nan})
	if want := "[2 5 NaN 1]"; fmt.Sprint(got) != want {
		t.Errorf("got %v; want %v", got, want)
	}
}

// The median of ratios is not the ratio of medians: a round in which the whole machine was slow must not
// count more.
func ExampleRatios() {
	lb := []float64{8, 80, 9}
	best := []float64{10, 100, 10}
	fmt.Println(Summarize(Ratios(lb, best)).Median)
	// Output: 0.8
}
