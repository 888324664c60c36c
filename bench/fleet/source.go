package fleet

import (
	"fmt"
	"math/rand/v2"
	"net/netip"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
)

// SourceResult is how the policy "source" divides clients, and how many it sends elsewhere after a change.
type SourceResult struct {
	Backends, Clients int
	// Disagree are clients that a second front, which knows the backends in another order, sends elsewhere.
	Disagree int
	// Imbalance is the most clients of a backend for its weight, in terms of the mean.
	Imbalance float64
	// MovedDown are the parts of clients that moved when a tenth of the backends went down; only those of
	// the tenth have to. MovedGone is the same where they left the list, and MovedWeight where one backend
	// got half of its weight.
	MovedDown, MovedGone, MovedWeight float64
}

func sourceSizes(quick bool) []int {
	if quick {
		return []int{8, 100}
	}
	return []int{8, 100, 1000, 10_000}
}

const sourceClients = 100_000

// RunSource has lb's own policy "source" choose for 100 000 clients, in pools of these sizes.
func RunSource(seed uint64, sizes []int) ([]SourceResult, error) {
	var results []SourceResult
	for _, n := range sizes {
		r, err := runSource(seed, n)
		if err != nil {
			return nil, err
		}
		results = append(results, r)
	}
	return results, nil
}

func runSource(seed uint64, n int) (SourceResult, error) {
	rnd := rand.New(rand.NewPCG(seed, uint64(n)))
	clients := make([]netip.Addr, sourceClients)
	for i := range clients {
		clients[i] = netip.AddrFrom4([4]byte{byte(1 + rnd.IntN(222)), byte(rnd.IntN(256)), byte(rnd.IntN(256)), byte(1 + rnd.IntN(254))})
	}
	r := SourceResult{Backends: n, Clients: len(clients)}
	names := make([]int, n)
	for i := range names {
		names[i] = i
	}
	pool, err := sourcePool(names)
	if err != nil {
		return r, err
	}
	first, err := picks(pool, clients)
	if err != nil {
		return r, err
	}
	counts, sum := map[string]float64{}, 0.0
	for _, name := range first {
		counts[name]++
	}
	for _, b := range pool.Backends() {
		r.Imbalance = max(r.Imbalance, counts[b.Name]/float64(b.Weight()))
		sum += float64(b.Weight())
	}
	r.Imbalance *= sum / float64(len(clients))

	other, err := sourcePool(rnd.Perm(n))
	if err != nil {
		return r, err
	}
	second, err := picks(other, clients)
	if err != nil {
		return r, err
	}
	for i := range clients {
		if first[i] != second[i] {
			r.Disagree++
		}
	}

	moved := func(change func(*backends.Pool) error) (part float64, err error) {
		pool, err := sourcePool(names)
		if err != nil {
			return 0, err
		}
		if err := change(pool); err != nil {
			return 0, err
		}
		now, err := picks(pool, clients)
		n := 0
		for i := range now {
			if now[i] != first[i] {
				n++
			}
		}
		return float64(n) / float64(len(clients)), err
	}
	if r.MovedDown, err = moved(func(p *backends.Pool) error {
		for i, b := range p.Backends() {
			if i%10 == 0 {
				p.SetHealth(b, backends.HealthDown, "simulated")
			}
		}
		return nil
	}); err != nil {
		return r, err
	}
	var left []int
	for i := range names {
		if i%10 != 0 {
			left = append(left, i)
		}
	}
	if r.MovedGone, err = moved(func(p *backends.Pool) error { return fillSourcePool(p, left) }); err != nil {
		return r, err
	}
	r.MovedWeight, err = moved(func(p *backends.Pool) error {
		b := p.Backends()[0]
		return p.SetWeight(b, b.Weight()/2, "simulated")
	})
	return r, err
}

func sourcePool(order []int) (*backends.Pool, error) {
	p := backends.NewPool("app", backends.DefaultConfig(), new(balancer.Source))
	return p, fillSourcePool(p, order)
}

// fillSourcePool has the pool be of the backends with these numbers. Those that it has stay.
func fillSourcePool(p *backends.Pool, order []int) error {
	var members []backends.Member
	for _, i := range order {
		cfg := backends.DefaultBackendConfig()
		cfg.Name, cfg.Address = fmt.Sprintf("host%d", i), fmt.Sprintf("10.%d.%d.%d:80", i>>16, i>>8&255, i&255)
		if i%3 == 2 {
			cfg.Weight *= 2
		}
		b := p.Get(cfg.Name)
		if b == nil {
			var err error
			if b, err = p.NewBackend(cfg, backends.HealthUp); err != nil {
				return err
			}
		}
		members = append(members, backends.Member{Backend: b, Config: cfg})
	}
	p.ReplaceMembers(backends.DefaultConfig(), nil, members, "simulated")
	return nil
}

// picks is the name of the backend of each client.
func picks(p *backends.Pool, clients []netip.Addr) ([]string, error) {
	names := make([]string, len(clients))
	for i, client := range clients {
		b, err := p.Acquire(&backends.Request{Client: client}, nil)
		if err != nil {
			return nil, fmt.Errorf("no backend for %v: %w", client, err)
		}
		names[i] = b.Name
		p.ReleaseUntaken(b)
	}
	return names, nil
}
