package backends_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
)

// servingPool is a pool of w1 and w2 that has served, and what it has told of its changes since.
func servingPool(t *testing.T) (p *backends.Pool, w1, w2 *backends.Backend, told func() string) {
	t.Helper()
	policy, err := balancer.New("leastconn")
	if err != nil {
		t.Fatal(err)
	}
	p = backends.NewPool("app", backends.DefaultConfig(), policy)
	var lines []string
	w1, err1 := p.Add(member("w1"), backends.HealthUp)
	w2, err2 := p.Add(member("w2"), backends.HealthUp)
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	p.OnChange = func(c backends.Change) {
		lines = append(lines, fmt.Sprintf("%s %s %s→%s", c.Backend, c.Field, c.From, c.To))
	}
	b, err := acquire(p, &backends.Request{})
	if err != nil {
		t.Fatal(err)
	}
	p.Release(b)
	return p, w1, w2, func() string { return strings.Join(lines, ", ") }
}

func member(name string) backends.BackendConfig {
	c := backends.DefaultBackendConfig()
	c.Name, c.Address = name, "unix:@"+name
	return c
}

func names(p *backends.Pool) (all []string) {
	for _, b := range p.Backends() {
		all = append(all, b.Name)
	}
	return all
}

func TestReplaceMembers_AddsRemovesConfiguresAndOrdersInOneStep(t *testing.T) {
	p, w1, w2, told := servingPool(t)
	w3, err := p.NewBackend(member("w3"), backends.HealthUp)
	if err != nil {
		t.Fatal(err)
	}
	if p.Get("w3") != nil || told() != "" {
		t.Errorf("NewBackend: got %v, %q; want no member and no change", names(p), told())
	}
	cfg := *p.Config()
	cfg.MaxConns = 7
	heavy := member("w1")
	heavy.Weight = 300
	p.ReplaceMembers(cfg, nil, []backends.Member{{Backend: w3, Config: member("w3")}, {Backend: w1, Config: heavy}}, "reload")
	if got := names(p); !slices.Equal(got, []string{"w3", "w1"}) {
		t.Errorf("members: got %q; want w3, w1", got)
	}
	if !w2.Removed() || w1.Weight() != 300 || w1.MaxConns() != 7 || w3.MaxConns() != 7 || !w3.Offered() || w2.Offered() {
		t.Errorf("got removed %v, weight %d, max_conns %d and %d; want w2 removed, 300, 7 and 7", w2.Removed(), w1.Weight(), w1.MaxConns(), w3.MaxConns())
	}
	if want := "w2 removed unix:@w2→, w1 max_conns 0→7, w3 added →unix:@w3, w1 weight 100→300"; told() != want {
		t.Errorf("changes: got %q; want %q", told(), want)
	}
}

func TestReplaceMembers_ReplacesTheOnlyBackendWithoutAMomentOfNone(t *testing.T) {
	p, w1, w2, _ := servingPool(t)
	if err := p.Remove(w2, "test"); err != nil {
		t.Fatal(err)
	}
	stop, done := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				done <- nil
				return
			default:
			}
			b, err := acquire(p, &backends.Request{})
			if err != nil {
				done <- err
				return
			}
			p.Release(b)
		}
	}()
	old := w1
	for i := range 500 {
		cfg := member("w1")
		cfg.Address = fmt.Sprintf("unix:@w1-%d", i)
		b, err := p.NewBackend(cfg, backends.HealthUp)
		if err != nil {
			t.Fatal(err)
		}
		p.ReplaceMembers(*p.Config(), nil, []backends.Member{{Backend: b, Config: cfg}}, "reload")
		if !old.Removed() || p.Get("w1") != b {
			t.Fatalf("w1: got %v, removed %v; want the new one, and the old one removed", p.Get("w1"), old.Removed())
		}
		old = b
	}
	close(stop)
	if err := <-done; err != nil {
		t.Errorf("Acquire while the backend is replaced: got %v; want a backend each time", err)
	}
}

func TestReplaceMembers_KeepsWhatWasSetWhereTheConfigHasNotChanged(t *testing.T) {
	p, w1, w2, told := servingPool(t)
	if err := errors.Join(p.SetWeight(w1, 10, ""), p.SetMaxConns(w1, 5, ""), p.SetWeight(w2, 20, "")); err != nil {
		t.Fatal(err)
	}
	p.SetAdmin(w1, backends.AdminDrain, "")
	before := told()
	other := member("w2")
	other.Weight = 50
	p.ReplaceMembers(*p.Config(), nil, []backends.Member{{Backend: w1, Config: member("w1")}, {Backend: w2, Config: other}}, "reload")
	if w1.Weight() != 10 || w1.MaxConns() != 5 || w1.Admin() != backends.AdminDrain || w2.Weight() != 50 {
		t.Errorf("got %d, %d, %v and %d; want 10, 5, drain, and the config's 50", w1.Weight(), w1.MaxConns(), w1.Admin(), w2.Weight())
	}
	if got, want := strings.TrimPrefix(told(), before), ", w2 weight 20→50"; got != want {
		t.Errorf("changes: got %q; want %q", got, want)
	}
}

func TestReplaceMembers_ChangesThePolicy(t *testing.T) {
	p, w1, w2, _ := servingPool(t)
	policy, err := balancer.New("roundrobin")
	if err != nil {
		t.Fatal(err)
	}
	cfg := *p.Config()
	cfg.Balance = "roundrobin"
	same := []backends.Member{{Backend: w1, Config: member("w1")}, {Backend: w2, Config: member("w2")}}
	p.ReplaceMembers(cfg, policy, same, "reload")
	got := map[string]int{}
	for range 10 {
		// never released: leastconn would do the same, so look at the name too
		b, err := acquire(p, &backends.Request{})
		if err != nil {
			t.Fatal(err)
		}
		got[b.Name]++
	}
	if p.Config().Balance != "roundrobin" || got["w1"] != 5 || got["w2"] != 5 {
		t.Errorf("got %q with %v; want roundrobin with 5 each", p.Config().Balance, got)
	}
	cfg.Balance = "nonsense"
	p.ReplaceMembers(cfg, nil, same, "reload")
	if got := p.Config().Balance; got != "roundrobin" {
		t.Errorf("balance without a policy: got %q; want what it was", got)
	}
}
