package balancer

import (
	"math/rand/v2"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

func TestRoundRobin_IsSmooth(t *testing.T) {
	p := newPool(t, new(RoundRobin), 3, 0, 5, 1, 1)
	got := ""
	for range 14 {
		got += acquire(t, p).Name[1:]
	}
	if want := "00102000010200"; got != want {
		t.Errorf("weights 5, 1, 1: got %s; want %s, as nginx", got, want)
	}
}

// TestRoundRobin_AgreesWithNginx holds the groups and tournaments against nginx's loop over all backends,
// over random histories of full backends and of changes of weight.
func TestRoundRobin_AgreesWithNginx(t *testing.T) {
	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 6))
		n := 1 + rng.IntN(20)
		weights := someWeights(rng, n)
		p := newPool(t, new(RoundRobin), n, 1+rng.IntN(5), weights...)
		current := make([]int64, n)
		var held []*backends.Backend
		for step := range 500 {
			if len(held) > 0 && rng.IntN(2) == 0 {
				i := rng.IntN(len(held))
				p.Release(held[i])
				held = append(held[:i], held[i+1:]...)
			}
			var sum, offered int64
			best := -1
			for i, b := range p.Backends() {
				offered += b.EffectiveWeight()
				if !b.Eligible() {
					continue
				}
				current[i] += b.EffectiveWeight()
				sum += b.EffectiveWeight()
				if best < 0 || current[i] > current[best] {
					best = i
				}
			}
			got, err := tryAcquire(p, &backends.Request{})
			if best < 0 {
				if err == nil {
					t.Fatalf("seed %d, step %d: got %s; want none", seed, step, got.Name)
				}
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			if want := p.Backends()[best]; got != want {
				t.Fatalf("seed %d, step %d: got %s; want %s", seed, step, got.Name, want.Name)
			}
			current[best] -= sum
			held = append(held, got)
			if i := rng.IntN(n); rng.IntN(20) == 0 { // up only: what is owed is not cut then
				if err := p.SetWeight(p.Backends()[i], min(p.Backends()[i].Weight()+100, 1000), "test"); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func TestRoundRobin_NoDebtsOfOldWeights(t *testing.T) {
	p := newPool(t, new(RoundRobin), 3, 0, 1, 1, 1000)
	for range 501 {
		p.Release(acquire(t, p))
	}
	p.SetHealth(p.Backends()[2], backends.HealthDown, "test")
	run, longest, last := 0, 0, (*backends.Backend)(nil)
	for range 100 {
		b := acquire(t, p)
		if b != last {
			run, last = 0, b
		}
		run++
		longest = max(longest, run)
		p.Release(b)
	}
	if longest > 3 {
		t.Errorf("two backends of weight 1, after one of 1000 has gone: %d picks in a row of one; want turns", longest)
	}
}
