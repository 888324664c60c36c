package daemon

import (
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/discovery"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/proxy"
)

// plan is a change from what runs to another config. Making it does everything that can fail, and changes
// nothing: daemon.plan makes it, prepare opens sockets, commit changes. daemon.changing is held from the one
// to the other.
type plan struct {
	d          *daemon
	old        *view
	cfg        *config.Config
	reason     string
	remembered state.Changes // what holds on
	kept       []string      // of these, a line each
	dropped    []string      // and of those that hold no more
	pools      []*plannedPool
	specs      []proxy.ListenerSpec
	transition *proxy.Transition
	found      findings                // what pools have discovered, of those that have looked anew
	takeOver   func(*workerPool) error // gives new workers what they were before; nil: they are new
	starts     []func()                // after commit, what begins to run with the change
	// after commit: those whose workers are to be restarted for the new config
	restart      []*workerPool
	room         config.Room // set by prepare
	unremembered []string    // warns that the state file could not be written; set by commit
}

// plannedPool is what becomes of a pool.
type plannedPool struct {
	cfg     *config.Pool
	pool    *backends.Pool
	checker *health.Checker // of a pool that is new, else nil
	policy  backends.Policy // nil: stays
	members []backends.Member
	added   []*backends.Backend // of members
	found   []discovery.Backend // what members have of its discover
	workers *workerPool         // nil: it has no workers
	new     bool                // the workers are new
}

// plan works out how to get from what runs to cfg, what is remembered, and what pools have found.
func (d *daemon) plan(cfg *config.Config, remembered state.Changes, found findings, reason string) (*plan, error) {
	p := &plan{d: d, old: d.view.Load(), cfg: cfg, found: found, reason: reason}
	p.remembered, p.kept, p.dropped = reconcile(remembered, cfg)
	for i := range cfg.Pools {
		pp, err := p.planPool(&cfg.Pools[i])
		if err != nil {
			return nil, err
		}
		p.pools = append(p.pools, pp)
	}
	for i := range cfg.Listeners {
		spec, err := p.planListener(&cfg.Listeners[i])
		if err != nil {
			return nil, err
		}
		p.specs = append(p.specs, spec)
	}
	return p, nil
}

func (p *plan) planPool(cfg *config.Pool) (*plannedPool, error) {
	pp := &plannedPool{cfg: cfg, pool: p.old.pool(cfg.Name)}
	var err error
	if pp.pool == nil || pp.pool.Config().Balance != cfg.Balance {
		if pp.policy, err = balancer.New(cfg.Balance); err != nil {
			return nil, err
		}
	}
	if pp.pool == nil {
		pool := backends.NewPool(cfg.Name, cfg.Config, pp.policy)
		pool.Self = &p.d.self
		if !p.d.upgrades.takingOver { // else its changes are not reported until it is as it was
			pool.OnChange = func(c backends.Change) { p.d.backendChanged(pool, c) }
		}
		if pp.checker, err = health.NewChecker(pool, cfg.Health); err != nil {
			return nil, err
		}
		pp.checker.ConfiguredWeight = (*backends.Backend).ConfiguredWeight
		pp.checker.SetMaxConns = pool.SetMaxConns
		pp.checker.Sockets = p.d.queues.sockets
		pp.checker.DialChannel = p.d.dialChannel
		pp.pool, pp.policy = pool, nil
	}
	for _, bc := range wantedBackends(cfg, &p.remembered) {
		b := pp.pool.Get(bc.EffectiveName())
		if addr, err := backends.ParseAddress(bc.Address); err != nil {
			return nil, err
		} else if b == nil || b.Address != addr {
			if b, err = pp.pool.NewBackend(bc, cfg.Health.InitialHealth()); err != nil {
				return nil, err
			}
			pp.added = append(pp.added, b)
		}
		pp.members = append(pp.members, backends.Member{Backend: b, Config: bc})
	}
	if err := p.planDiscovered(pp); err != nil {
		return nil, err
	}
	if cfg.Workers != nil {
		pp.workers = p.old.checkers[pp.pool].workers
		pp.new = pp.workers == nil
		if pp.new && p.d.workers.has(cfg.Name) {
			return nil, fmt.Errorf("pool %q had workers before, and they have not ended yet: try again later", cfg.Name)
		}
	}
	return pp, nil
}

// wantedBackends returns the backends of the config without those that the operator removed, and then those
// that the operator added.
func wantedBackends(cfg *config.Pool, remembered *state.Changes) []backends.BackendConfig {
	var wanted []backends.BackendConfig
	for _, bc := range cfg.Backends {
		if r := remembered.Backend(cfg.Name, bc.EffectiveName()); r == nil || !r.Removed {
			wanted = append(wanted, bc)
		}
	}
	for i := range remembered.Backends {
		if r := &remembered.Backends[i]; r.Pool == cfg.Name && r.Added {
			wanted = append(wanted, addedConfig(r))
		}
	}
	return wanted
}

// pool returns the planned pool of that name, or nil.
func (p *plan) pool(name string) *backends.Pool {
	for _, pp := range p.pools {
		if pp.pool.Name == name {
			return pp.pool
		}
	}
	return nil
}

func (p *plan) planListener(cfg *config.Listener) (proxy.ListenerSpec, error) {
	spec := proxy.ListenerSpec{Name: cfg.Name, Config: cfg.ListenerConfig}
	if r := p.remembered.Listener(cfg.Name); r != nil {
		spec.Config.MaxConns = r.MaxConns.Value
	}
	if len(cfg.Split) == 0 {
		if spec.Pool = p.pool(cfg.Pool); spec.Pool == nil {
			return spec, fmt.Errorf("cannot set up listener %q: there is no pool %q", cfg.Name, cfg.Pool)
		}
		return spec, nil
	}
	weights := splitWeights(cfg, &p.remembered)
	if ln := p.d.listener(cfg.Name); ln != nil && ln.Split() != nil && ln.Config().SplitBy == cfg.SplitBy &&
		reflect.DeepEqual(ln.Split().Weights(), weights) && p.same(ln.Split().Pools()) {
		spec.Split = ln.Split() // so that the turn goes on
		return spec, nil
	}
	var err error
	spec.Split, err = backends.NewSplit(weights, cfg.SplitBy == "client", p.pool)
	return spec, err
}

// same reports whether all of the pools go on.
func (p *plan) same(pools []*backends.Pool) bool {
	return !slices.ContainsFunc(pools, func(x *backends.Pool) bool { return p.pool(x.Name) != x })
}

// prepare opens the sockets. found are the addresses of new host names; a backend's that is missing is looked
// up again later. When prepare fails, nothing has changed.
func (p *plan) prepare(found resolved) error {
	room, err := p.cfg.Room()
	if err != nil {
		return err
	}
	p.room = room
	for _, pp := range p.pools {
		found.use(pp.added)
	}
	err = p.prepareWorkers()
	if err == nil {
		p.transition, err = p.d.proxy.Prepare(p.specs, found.binds)
		err = p.d.explainInUse(err, p.specs)
	}
	if err != nil {
		for _, pp := range p.pools {
			if pp.new && pp.workers != nil {
				pp.workers.Discard()
			}
		}
	}
	return err
}

// prepareWorkers makes the workers of pools that have them from now on.
func (p *plan) prepareWorkers() (err error) {
	for _, pp := range p.pools {
		if !pp.new {
			continue
		}
		dir, err := p.d.workers.dir(p.cfg.Admin.EffectiveRunDir())
		if err != nil {
			return err
		}
		checker := pp.checker
		if checker == nil {
			checker = p.old.checkers[pp.pool].Checker
		}
		w, err := p.d.newWorkerPool(p.cfg, pp.cfg, pp.pool, checker, dir)
		if err != nil {
			return err
		}
		if r := p.remembered.WorkersOf(pp.cfg.Name); r != nil {
			count := -1
			if r.Count.Changed {
				count = r.Count.Value
			}
			w.Remember(count, r.Stopped)
		}
		if p.takeOver != nil {
			if err := p.takeOver(w); err != nil {
				return err
			}
		}
		if err := w.Prepare(); err != nil {
			return err
		}
		pp.workers = w
	}
	return nil
}

// commit makes the change. Pools come first, so that each is ready when a listener sends connections to it;
// the pools that nothing leads to any more go last.
func (p *plan) commit() {
	v := &view{cfg: p.cfg, checkers: map[*backends.Pool]watcher{}}
	for pool, w := range p.old.checkers {
		v.checkers[pool] = w
	}
	for _, pp := range p.pools {
		v.pools = append(v.pools, pp.pool)
		if pp.checker != nil {
			w := p.d.newWatcher(pp.checker)
			v.checkers[pp.pool] = w
			p.start(func() { p.d.background.run(w.run) })
		}
		w := v.checkers[pp.pool]
		w.workers = pp.workers
		v.checkers[pp.pool] = w
	}
	p.d.view.Store(v)
	p.d.proxy.Reserve(p.room.Reserved) // it fits: see prepare
	for _, pp := range p.pools {
		pp.commit(v.checkers[pp.pool], p)
		p.commitWorkers(pp)
	}
	p.commitDiscovery()
	p.transition.Commit()
	p.d.self.Set(p.d.ownAddresses())
	for _, pool := range p.old.pools {
		if !slices.Contains(v.pools, pool) {
			p.d.background.run(func() { p.d.retire(pool) })
		}
	}
	p.d.memory.replace(p.remembered, p.cfg.Admin.StateFile)
	if !p.d.upgrades.takingOver { // else sessions wait, and the file is as it should be or cannot be written
		p.unremembered = p.d.memory.save(p.d.log)
	}
	p.d.names.wake()
}

// start runs f, or keeps it for begin while nothing may run.
func (p *plan) start(f func()) {
	if p.d.upgrades.takingOver {
		p.starts = append(p.starts, f)
	} else {
		f()
	}
}

// begin starts what was kept.
func (p *plan) begin() {
	for _, f := range p.starts {
		f()
	}
}

// commitWorkers starts the workers of a pool that has them from now on, changes those that it had, and ends
// those that it has no more.
func (p *plan) commitWorkers(pp *plannedPool) {
	if old := p.old.checkers[pp.pool].workers; old != nil && pp.workers == nil {
		p.d.background.run(func() { p.d.endWorkers(old) })
	}
	if pp.workers == nil {
		return
	}
	pp.workers.remember(&p.remembered)
	if pp.new {
		p.d.workers.add(pp.workers)
		p.start(func() {
			if err := pp.workers.Start(); err != nil {
				panic("BUG: lb: prepared workers cannot be started: " + err.Error())
			}
			p.d.background.run(func() { p.d.resumeRollout(pp.workers) })
		})
		return
	}
	if (p.workersChanged(pp) || pp.stale()) && pp.workers.update(p.cfg, pp.cfg) {
		p.restart = append(p.restart, pp.workers)
	}
}

// workersChanged reports whether the config of a pool's workers is another one than before.
func (p *plan) workersChanged(pp *plannedPool) bool {
	return !reflect.DeepEqual(workersConfig(p.old.cfg, p.old.cfg.Pool(pp.cfg.Name)), workersConfig(p.cfg, pp.cfg))
}

// stale reports whether the pool goes on with workers that are not of the config that runs: a rollout has
// failed, or they were rolled back, or an lb that was killed has started them from another config.
func (pp *plannedPool) stale() bool { return pp.workers != nil && !pp.new && pp.workers.Status().Stale }

// staleWorkers returns a line for each pool whose workers would be restarted although their config stays.
func (p *plan) staleWorkers() (lines []string) {
	for _, pp := range p.pools {
		if pp.stale() && !p.workersChanged(pp) {
			lines = append(lines, fmt.Sprintf("pools.%s.workers: not all run the command, environment and directory of the config", pp.cfg.Name))
		}
	}
	return lines
}

func (pp *plannedPool) commit(w watcher, p *plan) {
	before := pp.pool.Backends()
	replace := func(workers []backends.Member) {
		pp.pool.ReplaceMembers(pp.cfg.Config, pp.policy, slices.Concat(pp.members, workers), p.reason)
	}
	if pp.workers != nil {
		pp.workers.replaceMembers(replace)
	} else {
		replace(nil)
	}
	for _, b := range before {
		if b.Removed() {
			w.Remove(b)
		}
	}
	for _, b := range pp.added {
		if r := p.remembered.Backend(b.Pool().Name, b.Name); r != nil {
			restore(b, *r, "remembered")
		}
		w.Add(b)
	}
	old := p.old.cfg.Pool(pp.cfg.Name)
	if pp.checker == nil && (old == nil || !reflect.DeepEqual(old.Health, pp.cfg.Health)) {
		if err := w.Update(pp.cfg.Health); err != nil {
			panic("BUG: lb: a checked health config is refused: " + err.Error())
		}
	}
}

// retire ends a removed pool once no connection can be on its way to one of its backends. Its sessions go on;
// with the last of them the pool is forgotten.
func (d *daemon) retire(pool *backends.Pool) {
	cfg := *pool.Config()
	underway := time.NewTimer(cfg.QueueTimeout + cfg.ConnectTimeout)
	defer underway.Stop()
	select {
	case <-underway.C:
	case <-d.background.ctx.Done():
		return
	}
	if f := d.view.Load().checkers[pool].workers; f != nil {
		d.endWorkers(f)
	}
	d.changing.Lock()
	defer d.changing.Unlock()
	pool.ReplaceMembers(cfg, nil, nil, "the pool is not in the config any more")
	old := d.view.Load()
	v := &view{cfg: old.cfg, pools: old.pools, checkers: map[*backends.Pool]watcher{}}
	for other, w := range old.checkers {
		if other != pool {
			v.checkers[other] = w
		}
	}
	old.checkers[pool].stop()
	d.view.Store(v)
}
