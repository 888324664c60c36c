package balancer

import (
	"math/rand/v2"
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// Half-way through its slow start, one of two backends of equal weight has a third of the connections.
func TestPolicies_SlowStartHoldsConnectionsBack(t *testing.T) {
	for _, name := range policyNames {
		synctest.Test(t, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 8))
			cfg := backends.DefaultConfig()
			cfg.SlowStart = 10 * time.Second
			cfg.MaxConns = 1000
			p := backends.NewPool("p", cfg, seededPolicy(t, name, rng))
			for _, n := range []string{"slow", "other"} {
				if _, err := p.Add(config(n, 100), backends.HealthUp); err != nil {
					t.Fatal(err)
				}
			}
			p.Release(acquire(t, p))
			slow := p.Get("slow")
			p.SetHealth(slow, backends.HealthDown, "killed")
			p.SetHealth(slow, backends.HealthUp, "restarted")
			time.Sleep(5 * time.Second)
			synctest.Wait()
			c := traffic{t: t, rng: rng, pool: p}
			for range 900 {
				c.open()
			}
			least, most := int64(290), int64(310)
			switch name {
			case "source":
				most = 380 // 5/4 of the share
			case "first":
				least, most = 500, 500 // half of max_conns, then the next
			}
			if n := slow.Active(); n < least || n > most {
				t.Errorf("%s: got %d of 900; want %d to %d", name, n, least, most)
			}
			if name == "first" {
				for range 700 { // all others are full: beyond that
					c.open()
				}
				if n := slow.Active(); n != 600 {
					t.Errorf("first, the other full: got %d; want 600", n)
				}
			}
		})
	}
}
