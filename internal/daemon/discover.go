package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/discovery"
)

// findings are the backends that pools have discovered, by pool.
type findings map[string][]discovery.Backend

// discoveries is what the pools with discover have found, and who looks. The zero value has none, and starts
// nothing. It is changed with daemon.changing held.
type discoveries struct {
	mu     sync.Mutex
	pools  map[string]*discovered // guarded by mu
	keeper *keeper                // guarded by mu; nil before the first pool
}

// discovered is one pool of discoveries. It is replaced when the config of the pool's discover changes.
type discovered struct {
	pool    string
	cfg     discovery.PoolConfig
	found   []discovery.Backend // guarded by discoveries.mu; replaced, never changed in place
	watcher *discovery.Watcher
	ctx     context.Context
	stop    context.CancelFunc
	changed chan struct{}   // holds one: the source has something new
	refused map[string]bool // by the watcher's goroutine alone: addresses that are lb itself
}

// get returns a discovered backend by its name.
func (x *discoveries) get(pool, name string) (discovery.Backend, bool) {
	for _, f := range x.of(pool) {
		if f.EffectiveName() == name {
			return f, true
		}
	}
	return discovery.Backend{}, false
}

// of returns what a pool has found.
func (x *discoveries) of(pool string) []discovery.Backend {
	x.mu.Lock()
	defer x.mu.Unlock()
	if p := x.pools[pool]; p != nil {
		return p.found
	}
	return nil
}

// entry returns the pool's entry, or nil.
func (x *discoveries) entry(pool string) *discovered {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.pools[pool]
}

// all returns what all pools have found.
func (x *discoveries) all() findings {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.pools) == 0 {
		return nil
	}
	all := findings{}
	for name, p := range x.pools {
		all[name] = p.found
	}
	return all
}

// discoveredConfig returns the configuration of a discovered backend.
func discoveredConfig(f discovery.Backend) backends.BackendConfig {
	bc := backends.DefaultBackendConfig()
	bc.Name, bc.Address, bc.Weight, bc.Backup = f.Name, f.Address, f.Weight, f.Backup
	return bc
}

// lookUpNew looks up what the pools of cfg have to discover that do not look there already, all at once. What
// cannot be looked up now is as it was: as known has it, or as the pool has it. No lock but changing may be
// held: it takes up to resolveTimeout.
func (d *daemon) lookUpNew(cfg *config.Config, known findings) findings {
	found := maps.Clone(known)
	if found == nil {
		found = findings{}
	}
	var mu sync.Mutex
	var lookups sync.WaitGroup
	for i := range cfg.Pools {
		p := &cfg.Pools[i]
		if e := d.discoveries.entry(p.Name); p.Discover == "" || e != nil && reflect.DeepEqual(e.cfg, p.PoolConfig) {
			continue
		}
		lookUp := d.lookUpOf(p)
		patience := resolveTimeout
		if found[p.Name] != nil {
			patience = resolveTimeout / 3 // it can begin without
		}
		lookups.Go(func() {
			ctx, cancel := context.WithTimeout(d.background.ctx, patience)
			defer cancel()
			a, err := lookUp(ctx, nil)
			if err != nil {
				return // the watcher looks again, and reports
			}
			list := d.withoutLoops(cfg, p.Name, a.Backends, func(address string, err error) {})
			mu.Lock()
			defer mu.Unlock()
			found[p.Name] = list
		})
	}
	lookups.Wait()
	return found
}

// planDiscovered adds the discovered backends to the members of a planned pool. A backend of the config, or
// that the operator added, goes before one of the same name or address.
func (p *plan) planDiscovered(pp *plannedPool) error {
	if pp.cfg.Discover == "" {
		return nil
	}
	var ok bool
	if pp.found, ok = p.found[pp.cfg.Name]; !ok {
		pp.found = p.d.discoveries.of(pp.cfg.Name)
	}
	taken := map[string]bool{}
	for _, m := range pp.members {
		taken[m.Backend.Name], taken[m.Backend.Address.String()] = true, true
	}
	initial := pp.cfg.Health.InitialHealth()
	if pp.cfg.Health.Type != "none" && slices.ContainsFunc(pp.pool.Backends(), (*backends.Backend).Selectable) {
		initial = backends.HealthDown // until its first probe: the others serve meanwhile
	}
	for _, f := range pp.found {
		name := f.EffectiveName()
		if r := p.remembered.Backend(pp.cfg.Name, name); taken[name] || taken[f.Address] || r != nil && r.Removed {
			continue
		}
		taken[name], taken[f.Address] = true, true
		bc := discoveredConfig(f)
		b := pp.pool.Get(name)
		if b == nil || b.Address.String() != f.Address {
			var err error
			if b, err = pp.pool.NewBackend(bc, initial); err != nil {
				return err
			}
			b.SetSockaddr(backends.SockaddrOf(f.At))
			pp.added = append(pp.added, b)
		}
		pp.members = append(pp.members, backends.Member{Backend: b, Config: bc, Discovered: true})
	}
	return nil
}

// commitDiscovery begins to look for the backends of pools that discover them from now on, and ends it for
// those that do not any more.
func (p *plan) commitDiscovery() {
	x := &p.d.discoveries
	x.mu.Lock()
	defer x.mu.Unlock()
	old := x.pools
	x.pools = nil
	for _, pp := range p.pools {
		if pp.cfg.Discover == "" {
			continue
		}
		if x.pools == nil {
			x.pools = map[string]*discovered{}
		}
		pp.moveTargets()
		e := old[pp.cfg.Name]
		if e == nil || !reflect.DeepEqual(e.cfg, pp.cfg.PoolConfig) {
			e = p.d.newDiscovered(pp.cfg)
			p.start(func() { p.d.background.run(func() { e.watcher.Run(e.ctx, pp.found) }) })
		}
		e.found = pp.found
		x.pools[pp.cfg.Name] = e
	}
	for name, e := range old {
		if x.pools[name] != e {
			e.stop()
		}
	}
	if len(x.pools) == 0 && x.keeper == nil {
		return
	}
	if x.keeper == nil {
		k := newKeeper(p.d)
		x.keeper = k
		p.start(func() { p.d.background.run(func() { k.run(p.d.background.ctx) }) })
	}
	x.keeper.wake()
}

// moveTargets has connections go where the targets of a service are now.
func (pp *plannedPool) moveTargets() {
	for _, f := range pp.found {
		if b := pp.pool.Get(f.EffectiveName()); b != nil && b.Address.IsHostName() {
			if sa := b.Sockaddr(); sa == nil || sa.AddrPort() != f.At {
				b.SetSockaddr(backends.SockaddrOf(f.At))
			}
		}
	}
}

// lookUpOf returns how a pool's discover is looked up, as discovery.Watcher.LookUp.
func (d *daemon) lookUpOf(cfg *config.Pool) func(ctx context.Context, known []discovery.Backend) (discovery.Answer, error) {
	name, limit := cfg.Name, cfg.DiscoverMax
	if cfg.Discover == discovery.Etcd {
		return func(ctx context.Context, _ []discovery.Backend) (discovery.Answer, error) {
			ctx, cancel := context.WithTimeout(ctx, resolveTimeout/2)
			defer cancel()
			return d.cluster.LookUp(ctx, name, limit)
		}
	}
	src, err := discovery.ParseSource(cfg.Discover)
	if err != nil {
		panic("BUG: lb: a checked discover is refused: " + err.Error())
	}
	r := &discovery.Resolver{Servers: cfg.Resolver}
	return func(ctx context.Context, known []discovery.Backend) (discovery.Answer, error) {
		return r.LookUp(ctx, src, known, limit)
	}
}

// newDiscovered makes the entry and the watcher of a pool. Nothing runs yet.
func (d *daemon) newDiscovered(cfg *config.Pool) *discovered {
	e := &discovered{pool: cfg.Name, cfg: cfg.PoolConfig, changed: make(chan struct{}, 1), refused: map[string]bool{}}
	e.ctx, e.stop = context.WithCancel(d.background.ctx)
	e.watcher = &discovery.Watcher{
		LookUp:  d.lookUpOf(cfg),
		Changed: e.changed,
		Apply:   func(found []discovery.Backend) bool { return d.applyFound(e, found) },
		Stale:   func(_ time.Time, err error) { d.reportStale(e, err) },
	}
	return e
}

// applyFound makes what a sound answer lists the backends of its pool, beside those of the config. Those that
// it does not list any more finish their connections. If all that could take connections are among these,
// they stay until another one can: applyFound returns false then, to be called again.
func (d *daemon) applyFound(e *discovered, found []discovery.Backend) (done bool) {
	found = d.withoutLoops(d.view.Load().cfg, e.pool, found, func(address string, err error) {
		if !e.refused[address] {
			e.refused[address] = true
			d.report(slog.LevelWarn, api.Event{Kind: "discovery", Subject: e.pool, Text: fmt.Sprintf("left out what %s lists: %v", e.cfg.Discover, err)},
				"left out a discovered backend", "pool", e.pool, "source", e.cfg.Discover, "error", err)
		}
	})
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.stopping.begun.Load() || d.discoveries.entry(e.pool) != e {
		return true
	}
	v := d.view.Load()
	pool := v.pool(e.pool)
	found, done = keepLast(pool, e.found, found)
	if slices.Equal(found, e.found) {
		return done
	}
	p := &plan{d: d, old: v, cfg: v.cfg, remembered: d.memory.all(), found: findings{e.pool: found}, reason: e.cfg.Discover}
	pp, err := p.planPool(v.cfg.Pool(e.pool))
	if err != nil {
		panic("BUG: lb: a checked backend is refused: " + err.Error())
	}
	pp.commit(v.checkers[pool], p)
	pp.moveTargets()
	d.discoveries.mu.Lock()
	e.found = found
	d.discoveries.keeper.wake()
	d.discoveries.mu.Unlock()
	return done
}

// keepLast adds those of before to found that found does not list, if they alone can take connections.
func keepLast(pool *backends.Pool, before, found []discovery.Backend) (all []discovery.Backend, done bool) {
	listed, leaving := map[string]bool{}, map[string]discovery.Backend{}
	for _, f := range found {
		listed[f.EffectiveName()] = true
	}
	for _, f := range before {
		if name := f.EffectiveName(); !listed[name] {
			leaving[name] = f
		}
	}
	var last []discovery.Backend
	for _, b := range pool.Backends() {
		f, leaves := leaving[b.Name]
		switch {
		case !b.Selectable():
		case !leaves:
			return found, true
		default:
			last = append(last, f)
		}
	}
	if len(last) == 0 {
		return found, true
	}
	all = slices.Concat(found, last)
	slices.SortFunc(all, func(x, y discovery.Backend) int { return strings.Compare(x.EffectiveName(), y.EffectiveName()) })
	return all, false
}

// withoutLoops returns those of found that are not lb itself, and reports the others. It asks only about
// those that the pool does not have yet.
func (d *daemon) withoutLoops(cfg *config.Config, pool string, found []discovery.Backend, refused func(address string, err error)) []discovery.Backend {
	known := map[netip.AddrPort]bool{}
	for _, f := range d.discoveries.of(pool) {
		known[f.At] = true
	}
	ctx, cancel := context.WithTimeout(d.background.ctx, resolveTimeout)
	defer cancel()
	return slices.DeleteFunc(slices.Clone(found), func(f discovery.Backend) bool {
		if known[f.At] {
			return false
		}
		err := cfg.RefuseLoop(ctx, pool, backends.Address{Host: f.At.Addr().String(), Port: f.At.Port()})
		if err != nil {
			refused(f.Address, err)
		}
		return err != nil
	})
}

// reportStale reports that a pool's source gives no sound answer, or, with a nil error, that it does again.
func (d *daemon) reportStale(e *discovered, err error) {
	n := len(d.discoveries.of(e.pool))
	if err == nil {
		d.report(slog.LevelInfo, api.Event{Kind: "discovery", Subject: e.pool, Text: e.cfg.Discover + " gives sound answers again"},
			"discovery works again", "pool", e.pool, "source", e.cfg.Discover)
		return
	}
	err = oneLine(err)
	d.report(slog.LevelWarn, api.Event{Kind: "discovery", Subject: e.pool, Text: fmt.Sprintf("%s gives no sound answer, %s stay: %v", e.cfg.Discover, count(n, "known backend"), err)},
		"discovery fails; the backends that are known stay", "pool", e.pool, "source", e.cfg.Discover, "backends", n, "error", err)
}

// oneLine returns an error of several without the line ends between them.
func oneLine(err error) error { return errors.New(strings.ReplaceAll(err.Error(), "\n", "; ")) }

// discoveryStatus returns what is known of a pool's discover; nil for a pool without.
func (d *daemon) discoveryStatus(pool string) *api.DiscoveryStatus {
	e := d.discoveries.entry(pool)
	if e == nil {
		return nil
	}
	w := e.watcher.Status()
	st := &api.DiscoveryStatus{Source: e.cfg.Discover, Backends: len(d.discoveries.of(pool)), Checked: w.Checked, StaleSince: w.StaleSince}
	if w.Error != nil {
		st.Error = oneLine(w.Error).Error()
	}
	return st
}
