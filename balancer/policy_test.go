package balancer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

var policyNames = []string{"leastconn", "random", "roundrobin", "source", "first"}

func newPolicy(t testing.TB, name string) backends.Policy {
	t.Helper()
	policy, err := New(name)
	if err != nil {
		t.Fatal(err)
	}
	return policy
}

// seededPolicy is newPolicy with the randomness of rng.
func seededPolicy(t testing.TB, name string, rng *rand.Rand) backends.Policy {
	t.Helper()
	policy := newPolicy(t, name)
	if r, ok := policy.(*Random); ok {
		r.draw = rng.Int64N
	}
	return policy
}

// someClient gives one of 2^32 addresses.
func someClient(rng *rand.Rand) netip.Addr {
	var a [4]byte
	binary.BigEndian.PutUint32(a[:], rng.Uint32())
	return netip.AddrFrom4(a)
}

// someWeights gives n weights within 1..1000, of which some are equal.
func someWeights(rng *rand.Rand, n int) []int {
	weights := make([]int, n)
	for i := range weights {
		if rng.IntN(2) == 0 {
			weights[i] = 100
		} else {
			weights[i] = 1 + rng.IntN(backends.MaxWeight)
		}
	}
	return weights
}

// traffic opens and closes connections in random order.
type traffic struct {
	t    testing.TB
	rng  *rand.Rand
	pool *backends.Pool
	held []*backends.Backend
}

// open opens a connection.
func (c *traffic) open() *backends.Backend {
	c.t.Helper()
	b, err := tryAcquire(c.pool, &backends.Request{Client: someClient(c.rng)})
	if err != nil {
		c.t.Fatal(err)
	}
	c.held = append(c.held, b)
	return b
}

// close closes a connection, any of those that are open.
func (c *traffic) close() {
	i, last := c.rng.IntN(len(c.held)), len(c.held)-1
	c.pool.Release(c.held[i])
	c.held[i] = c.held[last]
	c.held = c.held[:last]
}

// shares makes n picks while about so many connections are open, and gives each backend's part of the picks.
func (c *traffic) shares(n, open int) map[*backends.Backend]float64 {
	c.t.Helper()
	shares := map[*backends.Backend]float64{}
	for picked := 0; picked < n; {
		if c.rng.IntN(2*open) < len(c.held) {
			c.close()
			continue
		}
		shares[c.open()] += 1 / float64(n)
		picked++
	}
	return shares
}

func TestPolicies_ShareFollowsWeights(t *testing.T) {
	for _, name := range []string{"leastconn", "random", "roundrobin", "source"} {
		for seed := range uint64(5) {
			rng := rand.New(rand.NewPCG(seed, 1))
			weights := someWeights(rng, 2+rng.IntN(15))
			p := newPool(t, seededPolicy(t, name, rng), len(weights), 0, weights...)
			c := traffic{t: t, rng: rng, pool: p}
			for range 2000 {
				c.open()
			}
			shares := c.shares(10_000, 2000)
			sum := 0
			for _, w := range weights {
				sum += w
			}
			for i, b := range p.Backends() {
				want := float64(weights[i]) / float64(sum)
				if got := shares[b]; math.Abs(got-want) > 0.02 {
					t.Errorf("%s, seed %d: weight %d of %d has a share of %.4f of the picks; want %.4f ± 0.02", name, seed, weights[i], sum, got, want)
				}
			}
		}
	}
}

func TestFirst_FillsInOrder(t *testing.T) {
	const limit = 20
	rng := rand.New(rand.NewPCG(1, 2))
	p := newPool(t, new(First), 100, limit)
	c := traffic{t: t, rng: rng, pool: p}
	for range 10_000 {
		if rng.IntN(2*800) < len(c.held) {
			c.close()
			continue
		}
		b := c.open()
		for _, before := range p.Backends()[:slices.Index(p.Backends(), b)] {
			if before.Active() < limit {
				t.Fatalf("picked %s while %s has %d of %d", b.Name, before.Name, before.Active(), limit)
			}
		}
	}
}

// TestPolicies_PickWhomTheyMay holds every policy, over random histories of a pool, against what a policy
// promises: it gives an eligible backend that was not tried, if and only if there is one.
func TestPolicies_PickWhomTheyMay(t *testing.T) {
	for _, name := range policyNames {
		seeds := uint64(15)
		if name == "source" {
			seeds = 1 // a change of weight costs a millisecond or two
		}
		for seed := range seeds {
			rng := rand.New(rand.NewPCG(seed, 3))
			p := newPool(t, seededPolicy(t, name, rng), 1+rng.IntN(80), 1+rng.IntN(4))
			c := traffic{t: t, rng: rng, pool: p}
			for step := range 300 {
				change(t, rng, p, step)
				if len(c.held) > 0 && rng.IntN(3) == 0 {
					c.close()
				}
				if rng.IntN(50) == 0 {
					replacePolicy(p, name, seededPolicy(t, name, rng))
				}
				req := backends.Request{Client: someClient(rng)}
				for _, b := range p.Backends() {
					if rng.IntN(4) == 0 {
						req.Tried = append(req.Tried, b)
					}
				}
				if rng.IntN(2) == 0 {
					req.Tried = nil
				}
				may := map[*backends.Backend]bool{}
				for _, b := range p.Backends() {
					if b.Eligible() && !slices.Contains(req.Tried, b) {
						may[b] = true
					}
				}
				got, err := tryAcquire(p, &req)
				switch {
				case err == nil && !may[got]:
					t.Fatalf("%s, seed %d, step %d: got backend %s, which is not eligible or was tried", name, seed, step, got.Name)
				case err != nil && len(may) > 0:
					t.Fatalf("%s, seed %d, step %d: got %v; want one of %d backends", name, seed, step, err, len(may))
				case err == nil:
					c.held = append(c.held, got)
				}
			}
		}
	}
}

// change changes something in p.
func change(t *testing.T, rng *rand.Rand, p *backends.Pool, step int) {
	t.Helper()
	var err error
	members := p.Backends()
	if len(members) == 0 {
		_, err = p.Add(config(fmt.Sprintf("n%d", step), 100), backends.HealthUp)
	} else {
		switch b := members[rng.IntN(len(members))]; rng.IntN(8) {
		case 0:
			err = p.SetWeight(b, rng.IntN(4)*rng.IntN(300), "test")
		case 1, 2:
			p.SetHealth(b, backends.HealthState(rng.IntN(3)), "test")
		case 3:
			p.SetAdmin(b, backends.AdminState(rng.IntN(3)), "test")
		case 4:
			err = p.SetMaxConns(b, rng.IntN(5), "test")
		case 5:
			_, err = p.Add(config(fmt.Sprintf("n%d", step), 50*rng.IntN(4)), backends.HealthUp)
		case 6:
			err = p.Remove(b, "test")
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

func config(name string, weight int) backends.BackendConfig {
	c := backends.DefaultBackendConfig()
	c.Name, c.Address, c.Weight = name, "unix:/"+name, weight
	return c
}

func TestPolicies_NeverExceedMaxConns(t *testing.T) {
	const limit = 3
	for _, name := range policyNames {
		p := newPool(t, newPolicy(t, name), 5, limit, 10, 1000, 1, 500, 100)
		var wg sync.WaitGroup
		for g := range uint64(8) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(g, 4))
				var held []*backends.Backend
				for range 3000 {
					if rng.IntN(2) == 0 && len(held) > 0 {
						p.Release(held[0])
						held = held[1:]
						continue
					}
					b, err := tryAcquire(p, &backends.Request{Client: someClient(rng)})
					if err != nil {
						continue
					}
					if n := b.Active(); n > limit {
						t.Errorf("%s: backend %s has %d; want at most %d", name, b.Name, n, limit)
					}
					held = append(held, b)
				}
				for _, b := range held {
					p.Release(b)
				}
			})
		}
		wg.Wait()
		if n := p.Active(); n != 0 {
			t.Errorf("%s: after all releases: active %d; want 0", name, n)
		}
	}
}

func TestPolicies_TriedIsNeverPicked(t *testing.T) {
	for _, name := range policyNames {
		p := newPool(t, newPolicy(t, name), 4, 10)
		req := backends.Request{Client: netip.MustParseAddr("192.0.2.7")}
		for range 4 {
			b, err := tryAcquire(p, &req)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if slices.Contains(req.Tried, b) {
				t.Fatalf("%s: got %s, which was tried", name, b.Name)
			}
			p.Release(b)
			req.Tried = append(req.Tried, b)
		}
		if _, err := tryAcquire(p, &req); !errors.Is(err, backends.ErrSaturated) {
			t.Errorf("%s: after all were tried: got %v; want %v", name, err, backends.ErrSaturated)
		}
	}
}

// A backup gets nothing while another backend is up, and everything when none is.
func TestPolicies_BackupIsForWhenNoOtherIsUp(t *testing.T) {
	for _, name := range policyNames {
		rng := rand.New(rand.NewPCG(1, 5))
		p := newPool(t, seededPolicy(t, name, rng), 3, 1000)
		backups := map[*backends.Backend]bool{}
		for _, n := range []string{"x", "y"} {
			c := config(n, 100)
			c.Backup = true
			b, err := p.Add(c, backends.HealthUp)
			if err != nil {
				t.Fatal(err)
			}
			backups[b] = true
		}
		c := traffic{t: t, rng: rng, pool: p}
		holds := func(when string, want bool) {
			t.Helper()
			for range 50 {
				if b := c.open(); backups[b] != want {
					t.Fatalf("%s, %s: got backend %s", name, when, b.Name)
				}
			}
		}
		others := p.Backends()[:3]
		holds("all up", false)
		p.SetHealth(others[0], backends.HealthDown, "test")
		p.SetAdmin(others[1], backends.AdminDrain, "test")
		holds("one up", false)
		if err := p.SetWeight(others[2], 0, "test"); err != nil {
			t.Fatal(err)
		}
		holds("none selectable", true)
		p.SetHealth(others[0], backends.HealthUp, "test")
		holds("one up again", false)
	}
}

// A new policy starts from the connections that there are.
func TestPolicies_NewOneCountsWhatIsThere(t *testing.T) {
	p := newPool(t, new(First), 2, 10)
	for range 10 {
		acquire(t, p)
	}
	replacePolicy(p, "leastconn", new(LeastConn))
	for range 10 {
		if b := acquire(t, p); b.Name != "b1" {
			t.Fatalf("got %s; want b1, which had none", b.Name)
		}
	}
	if got := p.Config().Balance; got != "leastconn" {
		t.Errorf("Config().Balance: got %q; want the new policy's name", got)
	}
}
