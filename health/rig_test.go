package health

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// anyPolicy is a pool's policy where nobody chooses.
type anyPolicy struct{}

func (anyPolicy) Pick(*backends.Request) *backends.Backend { return nil }
func (anyPolicy) Update(*backends.Backend)                 {}
func (anyPolicy) Reset([]*backends.Backend)                {}

// rig is a pool of backends b0, b1, … under a Checker whose probes are answered by the test.
type rig struct {
	*Checker
	t     *testing.T
	pool  *backends.Pool
	b     []*backends.Backend
	start time.Time
	stop  func() // ends Run and waits for it

	mu      sync.Mutex
	answer  func(b *backends.Backend, p *plan) result
	probes  []string // "1s b0"
	changes []string // "1s b0 health up→down: reason"
}

// cfg is the default without jitter, so that times are exact.
func exact(change func(c *Config)) Config {
	c := DefaultConfig()
	c.Jitter = 0
	if change != nil {
		change(&c)
	}
	return c
}

func newPool(t *testing.T, health backends.HealthState, addresses ...string) *backends.Pool {
	t.Helper()
	return newPoolOf(t, func(*backends.Config) {}, health, addresses...)
}

func newPoolOf(t *testing.T, change func(c *backends.Config), health backends.HealthState, addresses ...string) *backends.Pool {
	t.Helper()
	cfg := backends.DefaultConfig()
	change(&cfg)
	pool := backends.NewPool("p", cfg, anyPolicy{})
	for i, address := range addresses {
		c := backends.DefaultBackendConfig()
		c.Name, c.Address = fmt.Sprintf("b%d", i), address
		if _, err := pool.Add(c, health); err != nil {
			t.Fatal(err)
		}
	}
	return pool
}

// newRig makes a rig of n backends that does not run yet. Every probe is a success until the test says
// otherwise.
func newRig(t *testing.T, cfg Config, n int) *rig {
	t.Helper()
	addresses := make([]string, n)
	for i := range addresses {
		addresses[i] = fmt.Sprintf("unix:@health-rig-%d", i)
	}
	pool := newPool(t, cfg.InitialHealth(), addresses...)
	checker, err := NewChecker(pool, cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{Checker: checker, t: t, pool: pool, b: pool.Backends(), start: time.Now()}
	r.answers(success("ok"))
	checker.probe = r.probed
	pool.OnChange = r.changed
	return r
}

// run starts the Checker; it ends with the test.
func (r *rig) run() {
	ctx, cancel := context.WithCancel(r.t.Context())
	ended := make(chan struct{})
	go runTo(ctx, r.Checker, ended)
	r.stop = func() { cancel(); <-ended }
	r.t.Cleanup(r.stop)
}

func runTo(ctx context.Context, c *Checker, ended chan<- struct{}) {
	defer close(ended)
	c.Run(ctx)
}

func (r *rig) answers(found result) {
	r.respond(func(*backends.Backend, *plan) result { return found })
}

func (r *rig) respond(answer func(b *backends.Backend, p *plan) result) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.answer = answer
}

func (r *rig) probed(_ context.Context, p *plan, b *backends.Backend) result {
	r.mu.Lock()
	r.probes = append(r.probes, fmt.Sprintf("%v %s", time.Since(r.start), b.Name))
	answer := r.answer
	r.mu.Unlock()
	return answer(b, p)
}

func (r *rig) changed(c backends.Change) {
	if c.Field == "added" || c.Field == "removed" {
		return // the test's own doing
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.changes = append(r.changes, fmt.Sprintf("%v %s %s %s→%s: %s", time.Since(r.start), c.Backend, c.Field, c.From, c.To, c.Reason))
}

// wantChanges compares what the pool told since the last call.
func (r *rig) wantChanges(want ...string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := r.changes; len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
		r.t.Errorf("changes: got %q; want %q", got, want)
	}
	r.changes = nil
}

// wantProbes compares the probes since the last call.
func (r *rig) wantProbes(want ...string) {
	r.t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	if got := r.probes; len(got)+len(want) > 0 && !reflect.DeepEqual(got, want) {
		r.t.Errorf("probes: got %q; want %q", got, want)
	}
	r.probes = nil
}

func (r *rig) forgetProbes() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.probes = nil
}

func (r *rig) wantHealth(b *backends.Backend, want backends.HealthState) {
	r.t.Helper()
	if got := b.Health(); got != want {
		r.t.Errorf("health of %s: got %v (%s); want %v", b.Name, got, b.Reason(), want)
	}
}
