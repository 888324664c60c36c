package balancer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

// newPool makes a pool of n backends that are up, with the given weights (100 where none is given).
func newPool(t testing.TB, policy backends.Policy, n int, maxConns int, weights ...int) *backends.Pool {
	t.Helper()
	cfg := backends.DefaultConfig()
	cfg.MaxConns = maxConns
	p := backends.NewPool("p", cfg, policy)
	for i := range n {
		bc := backends.DefaultBackendConfig()
		bc.Name, bc.Address = fmt.Sprintf("b%d", i), fmt.Sprintf("unix:/b%d", i)
		if i < len(weights) {
			bc.Weight = weights[i]
		}
		if _, err := p.Add(bc, backends.HealthUp); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// replacePolicy has the pool choose by another policy, as a reload does.
func replacePolicy(p *backends.Pool, name string, policy backends.Policy) {
	cfg := *p.Config()
	cfg.Balance = name
	var members []backends.Member
	for _, b := range p.Backends() {
		members = append(members, backends.Member{Backend: b, Config: backends.BackendConfig{
			Name: b.Name, Address: b.Address.String(), Weight: b.ConfiguredWeight(), Backup: b.Backup(),
		}})
	}
	p.ReplaceMembers(cfg, policy, members, "reload")
}

// tryAcquire asks for a backend for a connection that does not wait: the error is ErrSaturated if it would
// have to.
func tryAcquire(p *backends.Pool, req *backends.Request) (*backends.Backend, error) {
	granted := make(chan *backends.Backend, 1)
	w := backends.Waiter{Grant: func(_ *backends.Waiter, b *backends.Backend) { granted <- b }}
	b, err := p.Acquire(req, &w)
	switch {
	case !errors.Is(err, backends.ErrQueued):
	case p.Leave(&w):
		err = backends.ErrSaturated
	default: // it was granted a slot meanwhile
		b, err = <-granted, nil
	}
	return b, err
}

func acquire(t testing.TB, p *backends.Pool) *backends.Backend {
	t.Helper()
	b, err := tryAcquire(p, &backends.Request{})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestLeastConn_BurstIsExact(t *testing.T) {
	for _, tc := range []struct {
		weights []int
		conns   int
		want    []int64
	}{
		{[]int{100, 100, 100, 100, 100, 100, 100, 100}, 400, []int64{50, 50, 50, 50, 50, 50, 50, 50}},
		{[]int{1, 3}, 400, []int64{100, 300}},
		{[]int{90, 10}, 1000, []int64{900, 100}},
		{[]int{0, 7}, 10, []int64{0, 10}},
	} {
		p := newPool(t, new(LeastConn), len(tc.weights), 0, tc.weights...)
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range tc.conns / 8 {
					tryAcquire(p, &backends.Request{})
				}
			})
		}
		wg.Wait()
		for range tc.conns % 8 {
			acquire(t, p)
		}
		for i, b := range p.Backends() {
			if b.Active() != tc.want[i] {
				t.Errorf("weights %v: backend %d has %d; want %d", tc.weights, i, b.Active(), tc.want[i])
			}
		}
	}
}

// A plain scan of all backends, over random histories, agrees that no other one was a whole connection less
// loaded.
func TestLeastConn_PicksNobodyAWholeConnectionAboveAnother(t *testing.T) {
	for seed := range uint64(200) {
		rng := rand.New(rand.NewPCG(seed, 1))
		n := 1 + rng.IntN(17)
		p := newPool(t, new(LeastConn), n, rng.IntN(3)*4)
		var held []*backends.Backend
		for step := range 300 {
			b := p.Backends()[rng.IntN(n)]
			switch rng.IntN(6) {
			case 0:
				if err := p.SetWeight(b, rng.IntN(5)*50, "test"); err != nil {
					t.Fatal(err)
				}
			case 1:
				p.SetHealth(b, backends.HealthState(1+rng.IntN(2)), "test")
			case 2:
				if len(held) > 0 {
					i := rng.IntN(len(held))
					p.Release(held[i])
					held[i] = held[len(held)-1]
					held = held[:len(held)-1]
				}
			default:
				next := -1.0 // the least load, with one connection more
				for _, b := range p.Backends() {
					if k := float64(b.Active()+1) / float64(b.EffectiveWeight()); b.Eligible() && (next < 0 || k < next) {
						next = k
					}
				}
				got, err := tryAcquire(p, &backends.Request{})
				if (err != nil) != (next < 0) {
					t.Fatalf("seed %d step %d: got error %v; the scan says least %v", seed, step, err, next)
				}
				if err != nil {
					continue
				}
				if k := float64(got.Active()-1) / float64(got.EffectiveWeight()); k >= next {
					t.Fatalf("seed %d step %d: got a backend at %v, a whole connection above another, which would be at %v", seed, step, k, next)
				}
				held = append(held, got)
			}
		}
	}
}

func TestLeastConn_TiesRotate(t *testing.T) {
	p := newPool(t, new(LeastConn), 5, 0)
	seen := map[string]int{}
	for range 10 {
		b := acquire(t, p)
		seen[b.Name]++
		p.Release(b)
	}
	for name, n := range seen {
		if n != 2 {
			t.Errorf("backend %s was picked %d times of 10 with no load; want 2 each over 5", name, n)
		}
	}
}
