package backends_test

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
)

// livePool makes a pool of n backends b0, b1, … that are up, with the default config as set changes it.
func livePool(t testing.TB, n int, set func(*backends.Config)) *backends.Pool {
	t.Helper()
	cfg := backends.DefaultConfig()
	if set != nil {
		set(&cfg)
	}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	policy, err := balancer.New(cfg.Balance)
	if err != nil {
		t.Fatal(err)
	}
	p := backends.NewPool("p", cfg, policy)
	for i := range n {
		addBackend(t, p, fmt.Sprintf("b%d", i), backends.HealthUp, nil)
	}
	return p
}

func addBackend(t testing.TB, p *backends.Pool, name string, health backends.HealthState, set func(*backends.BackendConfig)) *backends.Backend {
	t.Helper()
	cfg := backends.DefaultBackendConfig()
	cfg.Name, cfg.Address = name, "unix:/"+name
	if set != nil {
		set(&cfg)
	}
	b, err := p.Add(cfg, health)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func isBackup(c *backends.BackendConfig) { c.Backup = true }

// changesOf has p's changes written down as "backend field from→to: reason".
func changesOf(p *backends.Pool) *[]string {
	var changes []string
	p.OnChange = func(c backends.Change) {
		changes = append(changes, fmt.Sprintf("%s %s %s→%s: %s", c.Backend, c.Field, c.From, c.To, c.Reason))
	}
	return &changes
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// Of what OnChange hears of a backend each change begins where the one before ended, and the last is how the
// backend is.
func TestOnChange_TellsInOrder(t *testing.T) {
	p := livePool(t, 2, nil)
	last := map[string]string{}
	for _, b := range p.Backends() {
		last[b.Name+" health"], last[b.Name+" admin"], last[b.Name+" weight"] = "up", "ready", "100"
	}
	p.OnChange = func(c backends.Change) { // one at a time: without a lock, -race would tell
		key := c.Backend + " " + c.Field
		if last[key] != c.From {
			t.Errorf("%s was told as %q, and then as changed from %q", key, last[key], c.From)
		}
		last[key] = c.To
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 1000 {
				b := p.Backends()[i%2]
				p.SetHealth(b, backends.HealthState(1+(i/2+g)%2), "test")
				p.SetAdmin(b, backends.AdminState((i/3+g)%3), "test")
				must(t, p.SetWeight(b, (i/5+g)%4, "test"))
			}
		})
	}
	wg.Wait()
	for _, b := range p.Backends() {
		for field, is := range map[string]string{"health": b.Health().String(), "admin": b.Admin().String(), "weight": fmt.Sprint(b.Weight())} {
			if told := last[b.Name+" "+field]; told != is {
				t.Errorf("%s of %s was last told as %q; it is %q", field, b.Name, told, is)
			}
		}
	}
}

func TestOnChange_MayCallThePool(t *testing.T) {
	p := livePool(t, 2, nil)
	var told []string
	p.OnChange = func(c backends.Change) {
		told = append(told, c.Field+" "+c.To)
		if c.Field == "health" {
			p.SetAdmin(p.Get(c.Backend), backends.AdminDrain, "it went down")
		}
	}
	p.SetHealth(p.Get("b0"), backends.HealthDown, "test")
	if want := []string{"health down", "admin drain"}; !slices.Equal(told, want) {
		t.Errorf("got %q; want %q", told, want)
	}
}

func TestRemove_TakesNothingNewAndKeepsItsSlots(t *testing.T) {
	p := livePool(t, 1, nil)
	changes := changesOf(p)
	b := p.Get("b0")
	for range 3 {
		if _, err := acquire(p, &backends.Request{}); err != nil {
			t.Fatal(err)
		}
	}
	must(t, p.Remove(b, "reload"))
	if _, err := acquire(p, &backends.Request{}); !errors.Is(err, backends.ErrNoneUp) {
		t.Errorf("Acquire of an empty pool: got %v; want %v", err, backends.ErrNoneUp)
	}
	if p.Get("b0") != nil || len(p.Backends()) != 0 || !b.Removed() || b.Selectable() || b.Offered() {
		t.Errorf("the removed backend is still one")
	}
	// the name is free
	again := addBackend(t, p, "b0", backends.HealthUp, func(c *backends.BackendConfig) { c.Address = "unix:/other" })
	for n := int64(2); n >= 0; n-- {
		p.Release(b)
		if b.Active() != n {
			t.Errorf("active after a release: got %d; want %d", b.Active(), n)
		}
	}
	if again.Active() != 0 {
		t.Errorf("the new backend of that name has %d; want 0", again.Active())
	}
	if got, err := acquire(p, &backends.Request{}); got != again {
		t.Errorf("Acquire: got %v, %v; want the new backend of that name", got, err)
	}
	if want := []string{"b0 removed unix:/b0→: reload", "b0 added →unix:/other: "}; !slices.Equal(*changes, want) {
		t.Errorf("changes: got %q; want %q", *changes, want)
	}

	if p.SetHealth(b, backends.HealthDown, "late") || p.SetAdmin(b, backends.AdminDrain, "late") {
		t.Error("the removed backend changed its state")
	}
	for what, err := range map[string]error{
		"Remove":      p.Remove(b, "late"),
		"SetWeight":   p.SetWeight(b, 7, "late"),
		"SetMaxConns": p.SetMaxConns(b, 7, "late"),
	} {
		if !errors.Is(err, backends.ErrUnknown) {
			t.Errorf("%s of a removed backend: got %v; want %v", what, err, backends.ErrUnknown)
		}
	}
}

// A backend that is removed and added again is the same: what it has counts for its limit and for its load.
func TestAdd_KeepsTheConnectionsOfARemovedBackend(t *testing.T) {
	for _, again := range []struct {
		name string
		add  func(p *backends.Pool) *backends.Backend
	}{
		{"Add", func(p *backends.Pool) *backends.Backend { return addBackend(t, p, "b0", backends.HealthUp, nil) }},
		{"ReplaceMembers", func(p *backends.Pool) *backends.Backend {
			cfg := backends.DefaultBackendConfig()
			cfg.Name, cfg.Address = "b0", "unix:/b0"
			b, err := p.NewBackend(cfg, backends.HealthUp)
			must(t, err)
			p.ReplaceMembers(*p.Config(), nil, []backends.Member{{Backend: b, Config: cfg}}, "reload")
			return b
		}},
	} {
		p := livePool(t, 1, func(c *backends.Config) { c.MaxConns, c.QueueSize = 2, 0 })
		b := p.Get("b0")
		p.SetAdmin(b, backends.AdminDrain, "test")
		p.SetAdmin(b, backends.AdminReady, "test")
		for range 2 {
			if _, err := acquire(p, &backends.Request{}); err != nil {
				t.Fatal(err)
			}
		}
		p.SetAdmin(b, backends.AdminMaint, "test")
		must(t, p.Remove(b, "test"))
		back := again.add(p)
		if back.Active() != 2 || back.Admin() != backends.AdminReady || back.Removed() {
			t.Errorf("%s: got %d connections, %v, removed %v; want the 2 that it has, ready, a member", again.name, back.Active(), back.Admin(), back.Removed())
		}
		if _, err := acquire(p, &backends.Request{}); !errors.Is(err, backends.ErrSaturated) {
			t.Errorf("%s: got %v of a backend at its limit; want %v", again.name, err, backends.ErrSaturated)
		}
		p.Release(b)
		if got, err := acquire(p, &backends.Request{}); err != nil || got != back {
			t.Errorf("%s: after a release: got %v, %v; want it", again.name, got, err)
		}
		p.Release(back)
		p.Release(back)
		must(t, p.Remove(back, "test"))
		if fresh := addBackend(t, p, "b0", backends.HealthUp, nil); fresh == back {
			t.Errorf("%s: a backend that was removed without connections came back as the old one", again.name)
		}
	}
}

// Its last connection may end between NewBackend and ReplaceMembers.
func TestReplaceMembers_TakesABackendBackWhoseLastConnectionHasJustEnded(t *testing.T) {
	p := livePool(t, 1, nil)
	b, err := acquire(p, &backends.Request{})
	must(t, err)
	must(t, p.Remove(b, "test"))
	cfg := backends.DefaultBackendConfig()
	cfg.Name, cfg.Address = "b0", "unix:/b0"
	back, err := p.NewBackend(cfg, backends.HealthUp)
	must(t, err)
	p.Release(b)
	p.ReplaceMembers(*p.Config(), nil, []backends.Member{{Backend: back, Config: cfg}}, "reload")
	if got, err := acquire(p, &backends.Request{}); err != nil || got != back {
		t.Errorf("got %v, %v; want the backend", got, err)
	}
}

func TestReplaceMembers_LimitReachesBackendsWithoutALimitOfTheirOwn(t *testing.T) {
	p := livePool(t, 2, func(c *backends.Config) { c.MaxConns = 5 })
	own := addBackend(t, p, "own", backends.HealthUp, func(c *backends.BackendConfig) { c.MaxConns = 9 })
	must(t, p.SetMaxConns(p.Get("b1"), 1, "operator"))
	must(t, p.SetMaxConns(own, 2, "operator"))
	changes := changesOf(p)

	cfg := *p.Config()
	cfg.QueueSize = 7
	reload(p, cfg, nil) // nothing new about max_conns
	if p.Get("b1").MaxConns() != 1 || p.Config().QueueSize != 7 {
		t.Errorf("got max_conns %d, queue_size %d; want what the operator set, and 7", p.Get("b1").MaxConns(), p.Config().QueueSize)
	}
	cfg.MaxConns, cfg.Balance = 8, "first"
	reload(p, cfg, nil)
	if got := []int{p.Get("b0").MaxConns(), p.Get("b1").MaxConns(), own.MaxConns()}; !slices.Equal(got, []int{8, 8, 2}) {
		t.Errorf("max_conns: got %v; want 8, 8, and 2 for the one with a limit of its own", got)
	}
	if p.Config().Balance != "leastconn" {
		t.Errorf("Balance: got %q; want that of the policy that the pool has", p.Config().Balance)
	}
	if want := []string{"b0 max_conns 5→8: reload", "b1 max_conns 1→8: reload"}; !slices.Equal(*changes, want) {
		t.Errorf("changes: got %q; want %q", *changes, want)
	}
}

func TestReplaceMembers_ChangesWhatTheConfigChanged(t *testing.T) {
	p := livePool(t, 2, func(c *backends.Config) { c.MaxConns = 5 })
	b := p.Get("b0")
	must(t, p.SetWeight(b, 10, "operator"))
	must(t, p.SetMaxConns(b, 1, "operator"))
	changes := changesOf(p)
	change := func(set func(*backends.BackendConfig)) {
		reload(p, *p.Config(), func(c *backends.BackendConfig) {
			if c.Name == b.Name {
				set(c)
			}
		})
	}
	change(func(c *backends.BackendConfig) { c.Backup = true })
	if b.Weight() != 10 || b.MaxConns() != 1 || !b.Backup() || b.ConfiguredWeight() != 100 || b.Offered() {
		t.Errorf("weight %d of %d, max_conns %d, backup %v; want what the operator set, and a backup", b.Weight(), b.ConfiguredWeight(), b.MaxConns(), b.Backup())
	}
	change(func(c *backends.BackendConfig) { c.Weight, c.MaxConns, c.Backup = 50, 3, false })
	change(func(c *backends.BackendConfig) { c.MaxConns = 0 })
	want := []string{
		"b0 backup false→true: reload",
		"b0 weight 10→50: reload", "b0 max_conns 1→3: reload", "b0 backup true→false: reload",
		"b0 max_conns 3→5: reload",
	}
	if !slices.Equal(*changes, want) {
		t.Errorf("changes: got %q; want %q", *changes, want)
	}
	if b.ConfiguredWeight() != 50 || !b.Offered() {
		t.Errorf("configured weight %d, offered %v; want 50 and true", b.ConfiguredWeight(), b.Offered())
	}
}

func TestSetMaxConns_LowerLimitLetsNobodyIn(t *testing.T) {
	p := livePool(t, 1, nil)
	b := p.Get("b0")
	for range 4 {
		if _, err := acquire(p, &backends.Request{}); err != nil {
			t.Fatal(err)
		}
	}
	must(t, p.SetMaxConns(b, 3, "test"))
	for range 2 {
		if _, err := acquire(p, &backends.Request{}); !errors.Is(err, backends.ErrSaturated) {
			t.Errorf("with %d of %d: got %v; want %v", b.Active(), b.MaxConns(), err, backends.ErrSaturated)
		}
		p.Release(b)
	}
	if _, err := acquire(p, &backends.Request{}); err != nil {
		t.Errorf("below the limit: got %v; want a slot", err)
	}
	if err := p.SetMaxConns(b, -1, "test"); err == nil || b.MaxConns() != 3 {
		t.Errorf("SetMaxConns of -1: got %v; want an error, and no change", err)
	}
}

func TestWhenAllDown_RejectQueueAny(t *testing.T) {
	for mode, want := range map[string]error{"reject": backends.ErrNoneUp, "queue": backends.ErrQueued, "any": nil} {
		p := livePool(t, 3, func(c *backends.Config) { c.WhenAllDown = mode })
		for _, b := range p.Backends() {
			p.SetHealth(b, backends.HealthDown, "test")
		}
		p.SetAdmin(p.Get("b0"), backends.AdminDrain, "test")
		must(t, p.SetWeight(p.Get("b1"), 0, "test"))
		w := &backends.Waiter{Grant: func(w *backends.Waiter, b *backends.Backend) { w.Session = uint64(b.ID) }}
		b, err := p.Acquire(&backends.Request{}, w)
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v; want %v", mode, err, want)
		}
		if mode == "any" && b != p.Get("b2") {
			t.Errorf("any: got %v; want b2, which is neither in drain nor without weight", b)
		}
		p.SetHealth(p.Get("b2"), backends.HealthUp, "test")
		if granted := w.Session == uint64(p.Get("b2").ID); granted != (mode == "queue") {
			t.Errorf("%s: b2 came up: granted %v", mode, granted)
		}
		cfg := *p.Config()
		cfg.WhenAllDown = "any"
		reload(p, cfg, nil)
		p.SetHealth(p.Get("b2"), backends.HealthDown, "test")
		if _, err := acquire(p, &backends.Request{}); err != nil {
			t.Errorf("%s, then any: got %v; want a backend", mode, err)
		}
	}
}

func TestSetSilent_IsOfferedWhileNobodyIsSelectable(t *testing.T) {
	p := livePool(t, 2, nil)
	var told []string
	p.OnChange = func(c backends.Change) { told = append(told, c.Backend+" "+c.Field+" "+c.To) }
	b0, b1 := p.Get("b0"), p.Get("b1")
	x := addBackend(t, p, "x", backends.HealthUp, func(c *backends.BackendConfig) { c.Backup = true })
	p.SetSilent(b0, "no heartbeat")
	p.SetSilent(b1, "no heartbeat")
	if b, err := acquire(p, &backends.Request{}); b != x {
		t.Errorf("with a backup: got %v, %v; want the backup", b, err)
	}
	p.SetHealth(x, backends.HealthDown, "refused")
	if b, err := acquire(p, &backends.Request{}); err != nil || b == x {
		t.Errorf("nobody selectable: got %v, %v; want b0 or b1", b, err)
	}
	p.SetAdmin(b0, backends.AdminDrain, "test")
	if !p.SetHealth(b1, backends.HealthUp, "back") || b0.Offered() || b1.LastResort() {
		t.Error("b1 is back: got b0 offered, or b1 a last resort; want neither")
	}
	p.SetSilent(b1, "no heartbeat")
	p.SetHealth(b1, backends.HealthDown, "has ended")
	if b, err := acquire(p, &backends.Request{}); !errors.Is(err, backends.ErrNoneUp) {
		t.Errorf("b1 is known to be down: got %v, %v; want %v", b, err, backends.ErrNoneUp)
	}
	want := []string{"x added unix:/x", "b0 health down", "b1 health down", "x health down", "b0 last_resort true", "b1 last_resort true",
		"b0 admin drain", "b0 last_resort false", "b1 health up", "b1 last_resort false", "b1 health down", "b1 last_resort true", "b1 last_resort false"}
	if !slices.Equal(told, want) {
		t.Errorf("changes: got\n%q\nwant\n%q", told, want)
	}
}

// Backends that refuse are up until somebody notices: a connection that has tried them all may have a backup.
func TestBackup_TakesAConnectionThatHasTriedAllOthers(t *testing.T) {
	p := livePool(t, 2, nil)
	x := addBackend(t, p, "x", backends.HealthUp, func(c *backends.BackendConfig) { c.Backup, c.MaxConns = true, 1 })
	req := backends.Request{Tried: slices.Clone(p.Backends()[:1])}
	if b, err := acquire(p, &req); b != p.Get("b1") {
		t.Fatalf("b0 tried: got %v, %v; want b1", b, err)
	}
	req.Tried = slices.Clone(p.Backends()[:2])
	if b, err := acquire(p, &req); b != x {
		t.Errorf("b0 and b1 tried: got %v, %v; want the backup", b, err)
	}
	if b, err := acquire(p, &req); !errors.Is(err, backends.ErrSaturated) {
		t.Errorf("b0 and b1 tried, the backup full: got %v, %v; want %v", b, err, backends.ErrSaturated)
	}
}

func TestConfig_FaultsOfLimitsAndPolicies(t *testing.T) {
	for _, tc := range []struct {
		set  func(*backends.Config)
		want string
	}{
		{func(c *backends.Config) {}, ""},
		{func(c *backends.Config) { c.Balance = "best" }, `balance: unknown policy "best"; write one of ["leastconn" "random" "roundrobin" "source" "first"]`},
		{func(c *backends.Config) { c.Balance = "first" }, `max_conns: missing; "first" fills one backend after the other, so each needs a limit: here, or its own`},
		{func(c *backends.Config) { c.Balance, c.MaxConns = "first", 1 }, ""},
		{func(c *backends.Config) {
			c.Balance = "first"
			c.Backends = []backends.BackendConfig{{Address: "unix:/a", MaxConns: 1}}
		}, ""},
		{func(c *backends.Config) { c.QueueSize = -1 }, "queue_size: -1 is negative; write 0 for no queue"},
		{func(c *backends.Config) { c.QueueTimeout = 0 }, `queue_timeout: must be more than 0; write a duration such as "5s"`},
		{func(c *backends.Config) { c.SlowStart = 5 }, `slow_start: 5ns is below 1ms; a bare number counts nanoseconds: write "5s" for seconds`},
		{func(c *backends.Config) { c.WhenAllDown = "panic" }, `when_all_down: unknown value "panic"; write one of ["reject" "queue" "any"]`},
		{func(c *backends.Config) { c.WhenAllDown, c.QueueSize = "queue", 0 }, `when_all_down: "queue" needs a queue_size above 0`},
		{func(c *backends.Config) { c.MaxConns = 1 << 31 }, "max_conns: 2147483648 is not within 0..2147483647; write 0 for no limit"},
	} {
		cfg := backends.DefaultConfig()
		tc.set(&cfg)
		got := ""
		if err := cfg.Validate(); err != nil {
			got = err.Error()
		}
		if got != tc.want {
			t.Errorf("got %s; want %s", got, tc.want)
		}
	}
}
