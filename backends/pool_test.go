package backends_test

import (
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// acquire asks for a backend for a connection that does not wait: the error is ErrSaturated if it would have
// to.
func acquire(p *backends.Pool, req *backends.Request) (*backends.Backend, error) {
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

// reload gives the pool other settings and the same members, of which change changes the configuration, as a
// reload does.
func reload(p *backends.Pool, cfg backends.Config, change func(*backends.BackendConfig)) {
	var members []backends.Member
	for _, b := range p.Backends() {
		c := b.ConfigNow()
		if change != nil {
			change(&c)
		}
		members = append(members, backends.Member{Backend: b, Config: c})
	}
	p.ReplaceMembers(cfg, nil, members, "reload")
}

func TestPool_AddFindsAndCounts(t *testing.T) {
	p := livePool(t, 3, nil)
	if p.Get("b1") != p.Backends()[1] || p.Get("nobody") != nil {
		t.Error("Get: got a wrong backend")
	}
	if p.Get("b1").Pool() != p {
		t.Error("a backend does not know its pool")
	}
	ids := map[uint32]bool{}
	for _, b := range p.Backends() {
		ids[b.ID] = true
	}
	if len(ids) != 3 {
		t.Errorf("ids: got %v; want three", ids)
	}
	p.SetHealth(p.Get("b0"), backends.HealthDown, "test")
	if n, total := p.Selectable(); n != 2 || total != 3 {
		t.Errorf("selectable: got %d of %d; want 2 of 3", n, total)
	}
	cfg := backends.DefaultBackendConfig()
	cfg.Name, cfg.Address = "b1", "unix:/other"
	if _, err := p.Add(cfg, backends.HealthUp); err == nil || !strings.Contains(err.Error(), "the name is taken") {
		t.Errorf("Add of a name that is taken: got %v", err)
	}
	cfg.Address = "nonsense"
	if _, err := p.Add(cfg, backends.HealthUp); err == nil {
		t.Error("Add of an address that does not parse: got no error")
	}
	if len(p.Backends()) != 3 {
		t.Errorf("members after failed Adds: got %d; want 3", len(p.Backends()))
	}
}

func TestPool_StatesDecideWhoIsSelectable(t *testing.T) {
	for _, admin := range []backends.AdminState{backends.AdminReady, backends.AdminDrain, backends.AdminMaint} {
		for _, health := range []backends.HealthState{backends.HealthStarting, backends.HealthUp, backends.HealthDown} {
			for _, weight := range []int{0, 1} {
				p := livePool(t, 0, nil)
				b := addBackend(t, p, "b", health, func(c *backends.BackendConfig) { c.Weight = weight })
				p.SetAdmin(b, admin, "test")
				want := admin == backends.AdminReady && health == backends.HealthUp && weight > 0
				if b.Selectable() != want || b.Eligible() != want {
					t.Errorf("%v, %v, weight %d: got selectable %v, eligible %v; want %v", admin, health, weight, b.Selectable(), b.Eligible(), want)
				}
				got, err := acquire(p, &backends.Request{})
				if (got == b) != want || !want && !errors.Is(err, backends.ErrNoneUp) {
					t.Errorf("%v, %v, weight %d: Acquire gave %v, %v", admin, health, weight, got, err)
				}
			}
		}
	}
}

func TestPool_AcquireTellsFullFromDown(t *testing.T) {
	p := livePool(t, 2, func(c *backends.Config) { c.MaxConns = 1 })
	for range 2 {
		if _, err := acquire(p, &backends.Request{}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := acquire(p, &backends.Request{}); !errors.Is(err, backends.ErrSaturated) {
		t.Errorf("all full: got %v; want ErrSaturated", err)
	}
	p.Release(p.Get("b1"))
	if b, err := acquire(p, &backends.Request{}); b != p.Get("b1") {
		t.Errorf("one free: got %v, %v; want b1", b, err)
	}
	p.Release(p.Get("b0"))
	if _, err := acquire(p, &backends.Request{Tried: []*backends.Backend{p.Get("b0")}}); !errors.Is(err, backends.ErrSaturated) {
		t.Errorf("the free one was tried: got %v; want ErrSaturated", err)
	}
}

func TestPool_MaxConnsIsNeverExceeded(t *testing.T) {
	const limit = 7
	p := livePool(t, 3, func(c *backends.Config) { c.MaxConns = limit })
	var running sync.WaitGroup
	var most atomic.Int64
	for range 16 {
		running.Go(func() {
			for range 2000 {
				b, err := acquire(p, &backends.Request{})
				if err != nil {
					continue
				}
				if n := b.Active(); n > most.Load() {
					most.Store(n)
				}
				p.Release(b)
			}
		})
	}
	running.Wait()
	if most.Load() > limit {
		t.Errorf("connections of one backend at once: got %d; want at most %d", most.Load(), limit)
	}
	if p.Active() != 0 {
		t.Errorf("slots left: got %d; want 0", p.Active())
	}
}

func TestPool_ReleaseWithoutAcquirePanics(t *testing.T) {
	p := livePool(t, 1, nil)
	defer func() {
		if r := recover(); r == nil || !strings.HasPrefix(r.(string), "BUG: ") {
			t.Errorf("got %v; want a panic that says BUG", r)
		}
		if _, err := acquire(p, &backends.Request{}); err != nil { // the mutex is free
			t.Error(err)
		}
	}()
	p.Release(p.Get("b0"))
}

func TestPool_ChangesAreToldOnce(t *testing.T) {
	p := livePool(t, 2, nil)
	told := changesOf(p)
	b := p.Get("b0")
	if !p.SetHealth(b, backends.HealthDown, "probe: refused") || p.SetHealth(b, backends.HealthDown, "again") {
		t.Error("SetHealth: got a wrong answer")
	}
	if !p.SetAdmin(b, backends.AdminDrain, "operator") || p.SetAdmin(b, backends.AdminDrain, "again") {
		t.Error("SetAdmin: got a wrong answer")
	}
	must(t, p.SetWeight(b, 7, "operator"))
	must(t, p.SetWeight(b, 7, "again"))
	want := "b0 health up→down: probe: refused, b0 admin ready→drain: operator, b0 weight 100→7: operator"
	if got := strings.Join(*told, ", "); got != want {
		t.Errorf("changes told:\n got %s\nwant %s", got, want)
	}
	if b.Reason() != "operator" || time.Since(b.Since()) > time.Minute {
		t.Errorf("last change: got %q at %v; want operator, now", b.Reason(), b.Since())
	}
	for _, weight := range []int{-1, 1001} {
		if err := p.SetWeight(b, weight, "operator"); err == nil || b.Weight() != 7 {
			t.Errorf("SetWeight(%d): got %v, weight %d; want an error and 7", weight, err, b.Weight())
		}
	}
}

func TestBackend_FailuresInARow(t *testing.T) {
	p := livePool(t, 1, nil)
	b := p.Get("b0")
	for _, step := range []struct {
		why  backends.ConnectError
		want uint32
	}{
		{backends.ConnectRefused, 1},
		{backends.ConnectSaturated, 1}, // busy, not gone
		{backends.ConnectTimeout, 2},
		{backends.ConnectResource, 2}, // lb's own
		{backends.ConnectUnreachable, 3},
		{backends.ConnectOther, 4},
	} {
		if got := b.ConnectFailed(step.why); got != step.want {
			t.Errorf("after %v: got %d in a row; want %d", step.why, got, step.want)
		}
		if b.ConnectErrors[step.why].Load() != 1 {
			t.Errorf("%v: counted %d; want 1", step.why, b.ConnectErrors[step.why].Load())
		}
	}
	b.Connected(time.Millisecond)
	if got := b.ConnectFailed(backends.ConnectRefused); got != 1 {
		t.Errorf("after a success: got %d in a row; want 1", got)
	}
	if b.Counters.Connections.Load() != 1 || b.ConnectTime.Snapshot().Sum != time.Millisecond {
		t.Errorf("a success: got %d connections in %v; want 1 in 1ms", b.Counters.Connections.Load(), b.ConnectTime.Snapshot().Sum)
	}
}

func TestAdminState_NamesAreRead(t *testing.T) {
	for _, s := range []backends.AdminState{backends.AdminReady, backends.AdminDrain, backends.AdminMaint} {
		if got, err := backends.ParseAdminState(s.String()); got != s || err != nil {
			t.Errorf("%v: got %v, %v", s, got, err)
		}
	}
	if _, err := backends.ParseAdminState("off"); err == nil || !strings.Contains(err.Error(), "ready, drain or maint") {
		t.Errorf("off: got %v; want an error that says what to write", err)
	}
}
