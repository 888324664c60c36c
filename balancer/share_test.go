package balancer

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

// weightVectors calls f with weights of every kind: few and many, equal, close, far apart.
func weightVectors(f func(rng *rand.Rand, weights []int)) {
	for _, weights := range [][]int{{100, 5}, {1, 1000}, {1000, 999}, {100, 100, 5}, {7, 3, 1}, {90, 10}, {1, 1, 1, 1, 1, 1, 1, 1000}} {
		f(rand.New(rand.NewPCG(1, 2)), weights)
	}
	for seed := range uint64(100) {
		rng := rand.New(rand.NewPCG(seed, 3))
		weights := make([]int, 2+rng.IntN(7))
		for i := range weights {
			weights[i] = []int{100, 1 + rng.IntN(10), 1 + rng.IntN(backends.MaxWeight)}[rng.IntN(3)]
		}
		f(rng, weights)
	}
}

// tally counts connections by backend.
type tally struct {
	weights []int
	counts  []int64
	total   int64
}

func newTally(weights []int) *tally {
	return &tally{weights: weights, counts: make([]int64, len(weights))}
}

func (c *tally) add(b *backends.Backend) {
	c.counts[b.Index()]++
	c.total++
}

// off returns by how many connections the count that is furthest from its share is off.
func (c *tally) off() float64 {
	sum, off := 0, 0.0
	for _, w := range c.weights {
		sum += w
	}
	for i, w := range c.weights {
		off = max(off, math.Abs(float64(c.counts[i])-float64(c.total)*float64(w)/float64(sum)))
	}
	return off
}

// allowed is the larger of one connection and that part of all.
func (c *tally) allowed(part float64) float64 { return max(1, part*float64(c.total)) + 1e-6 }

func gcd(a, b int) int {
	for b != 0 {
		a, b = b, a%b
	}
	return a
}

func TestPolicies_OneConnectionAtATimeGoesByWeight(t *testing.T) {
	for _, tc := range []struct {
		policy string
		part   float64
	}{{"leastconn", 0}, {"roundrobin", 0.02}, {"random", 0.02}} {
		weightVectors(func(rng *rand.Rand, weights []int) {
			p := newPool(t, seededPolicy(t, tc.policy, rng), len(weights), 0, weights...)
			c := newTally(weights)
			for range 2000 {
				b := acquire(t, p)
				c.add(b)
				p.Release(b)
				if tc.part == 0 && c.off() > c.allowed(0) {
					t.Fatalf("leastconn, weights %v: got %v of %d; want each within one connection of its share", weights, c.counts, c.total)
				}
			}
			if c.off() > c.allowed(tc.part) {
				t.Errorf("%s, weights %v: got %v of %d; want each within %v of its share", tc.policy, weights, c.counts, c.total, tc.part)
			}
		})
	}
}

func TestLeastConn_HeldConnectionsAreExactAtEveryMoment(t *testing.T) {
	weightVectors(func(_ *rand.Rand, weights []int) {
		p := newPool(t, new(LeastConn), len(weights), 0, weights...)
		c := newTally(weights)
		for range 2000 {
			c.add(acquire(t, p))
			if c.off() > c.allowed(0) {
				t.Fatalf("weights %v: got %v held; want each within one connection of its share", weights, c.counts)
			}
		}
	})
}

// Connections that are held as the weights are leave every load equal, so the short ones beside them go by
// weight.
func TestLeastConn_ShortConnectionsBesideHeldOnesGoByWeight(t *testing.T) {
	weightVectors(func(rng *rand.Rand, weights []int) {
		sum, divisor := 0, 0
		for _, w := range weights {
			sum, divisor = sum+w, gcd(divisor, w)
		}
		if sum/divisor > 4000 {
			return
		}
		p := newPool(t, new(LeastConn), len(weights), 0, weights...)
		for range sum / divisor {
			acquire(t, p)
		}
		short := newTally(weights)
		for range 600 {
			b := acquire(t, p)
			short.add(b)
			p.Release(b)
			if short.off() > short.allowed(0) {
				t.Fatalf("weights %v, %d held: got %v of %d short ones; want each within one connection of its share", weights, sum/divisor, short.counts, short.total)
			}
		}
	})
}

// Each of a number of clients opens a connection, holds it for some time, and opens the next.
func TestLeastConn_ClientsInALoopGoByWeight(t *testing.T) {
	weightVectors(func(rng *rand.Rand, weights []int) {
		p := newPool(t, new(LeastConn), len(weights), 0, weights...)
		c := newTally(weights)
		var open []*backends.Backend
		for range 1 + rng.IntN(100) {
			open = append(open, acquire(t, p))
		}
		for range 10000 {
			i := rng.IntN(len(open))
			p.Release(open[i])
			open[i] = acquire(t, p)
			c.add(open[i])
		}
		if c.off() > c.allowed(0.02) {
			t.Errorf("weights %v, %d clients: got %v of %d; want each within 2 %% of its share", weights, len(open), c.counts, c.total)
		}
	})
}

// Whichever connections are held, no backend has a whole connection more than another would have with one
// more.
func TestLeastConn_NoTwoAreTwoConnectionsApartInAMix(t *testing.T) {
	weightVectors(func(rng *rand.Rand, weights []int) {
		p := newPool(t, new(LeastConn), len(weights), 0, weights...)
		held := rng.Float64()
		for range 1000 {
			b := acquire(t, p)
			for i, x := range p.Backends() {
				for j, y := range p.Backends() {
					if (x.Active()-1)*int64(weights[j]) >= (y.Active()+1)*int64(weights[i]) {
						t.Fatalf("weights %v: backend %d has %d and backend %d has %d", weights, i, x.Active(), j, y.Active())
					}
				}
			}
			if rng.Float64() > held {
				p.Release(b)
			}
		}
	})
}

func TestPolicies_ChangedWeightHoldsFromTheNextConnectionOn(t *testing.T) {
	for _, name := range []string{"leastconn", "roundrobin", "random"} {
		for _, change := range [][2][]int{{{100, 5}, {5, 100}}, {{5, 100}, {100, 100}}, {{100, 100, 100}, {100, 1, 10}}} {
			t.Run(fmt.Sprint(name, change), func(t *testing.T) {
				rng := rand.New(rand.NewPCG(4, 5))
				p := newPool(t, seededPolicy(t, name, rng), len(change[0]), 0, change[0]...)
				short := func(weights []int, part float64) {
					t.Helper()
					c := newTally(weights)
					for range 600 {
						b := acquire(t, p)
						c.add(b)
						p.Release(b)
					}
					if c.off() > max(c.allowed(part), 2) {
						// what the old weights owed is paid under the new ones
						t.Errorf("got %v of %d; want weights %v", c.counts, c.total, weights)
					}
				}
				part := 0.0
				if name == "random" {
					part = 0.02
				}
				short(change[0], part)
				for i, b := range p.Backends() {
					if err := p.SetWeight(b, change[1][i], "test"); err != nil {
						t.Fatal(err)
					}
				}
				short(change[1], part)
			})
		}
	}
}

// A weight that changes with every connection, as in a slow start or by an agent, starves nobody.
func TestLeastConn_RestlessWeightsStarveNobody(t *testing.T) {
	p := newPool(t, new(LeastConn), 3, 0, 100, 100, 10)
	c := newTally([]int{100, 100, 10})
	for i := range 2100 {
		if err := p.SetWeight(p.Backends()[0], 100+i%2, "test"); err != nil {
			t.Fatal(err)
		}
		b := acquire(t, p)
		c.add(b)
		p.Release(b)
	}
	if c.off() > c.allowed(0.02) {
		t.Errorf("got %v of %d; want each within 2 %% of its share", c.counts, c.total)
	}
}
