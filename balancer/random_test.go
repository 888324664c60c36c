package balancer

import (
	"math"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

// TestRandom_DrawsTwoByWeight goes through all that can be drawn. One backend has no load and the others have
// much, so it is picked whenever it is among the two.
func TestRandom_DrawsTwoByWeight(t *testing.T) {
	weights := []int{1, 2, 5, 3}
	const sum = 1 + 2 + 5 + 3
	for idle, w := range weights {
		r := new(Random)
		p := newPool(t, r, len(weights), 0, weights...)
		for range 100 {
			if _, err := tryAcquire(p, &backends.Request{Tried: p.Backends()[idle : idle+1]}); err != nil {
				t.Fatal(err)
			}
		}
		// The first is it, or the first is another and the second is it.
		want := float64(w) / sum
		for i, first := range weights {
			if i != idle {
				want += float64(first) / sum * float64(w) / float64(sum-first)
			}
		}
		got := 0.0
		for x := range int64(sum) {
			rest := int64(1) // until the second draw says of how much it is
			for y := int64(0); y < rest; y++ {
				draws := 0
				r.draw = func(n int64) int64 {
					if draws++; draws == 1 {
						return x * backends.WeightScale
					}
					rest = n / backends.WeightScale
					return y * backends.WeightScale
				}
				if r.Pick(&backends.Request{}) == p.Backends()[idle] {
					got += 1.0 / sum / float64(rest)
				}
			}
		}
		if math.Abs(got-want) > 1e-9 {
			t.Errorf("weights %v: number %d is among the two with probability %.6f; want %.6f", weights, idle, got, want)
		}
	}
}
