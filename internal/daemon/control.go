package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
)

// change makes one change under the lock, and remembers it: changes are made one at a time, and none during a
// reload. The warnings are about a change that was made.
func (d *daemon) change(do func() error) (warnings []string, err error) {
	leave, err := d.upgrades.gate.enter("a change")
	if err != nil {
		return nil, err
	}
	defer leave()
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.stopping.begun.Load() {
		return nil, errStopping
	}
	if err := do(); err != nil {
		return nil, err
	}
	return d.memory.save(d.log), nil
}

// changeBackend makes a change of one backend. do gets what is remembered of the backend and its
// configuration, and may change the former.
func (d *daemon) changeBackend(b *backends.Backend, do func(r *state.Backend, bc backends.BackendConfig) error) (warnings []string, err error) {
	return d.change(func() error {
		if b.Removed() || d.view.Load().pool(b.Pool().Name) != b.Pool() {
			return api.Refuse(http.StatusNotFound, "pool %q has no backend %q any more", b.Pool().Name, b.Name)
		}
		r, bc := d.record(b)
		if err := do(r, bc); err != nil {
			return err
		}
		d.put(*r)
		return nil
	})
}

// record returns a copy of what is remembered of b, and b's configuration.
func (d *daemon) record(b *backends.Backend) (*state.Backend, backends.BackendConfig) {
	r := state.Backend{Pool: b.Pool().Name, Name: b.Name, Address: b.Address.String()}
	slot, isWorker := d.slotOf(b)
	if isWorker { // what the operator wants of it holds for the next one too
		r.Name, r.Address = slotPrefix+strconv.Itoa(slot), ""
	}
	all := d.memory.all()
	if known := all.Backend(r.Pool, r.Name); known != nil {
		r = *known
	}
	if isWorker {
		return &r, workerBackendConfig()
	}
	if r.Added {
		return &r, addedConfig(&r)
	}
	bc, _ := d.configured(r.Pool, r.Name)
	return &r, bc
}

// configured returns a backend's configuration in the config, or as its pool has discovered it.
func (d *daemon) configured(pool, name string) (bc backends.BackendConfig, ok bool) {
	if pc := d.view.Load().cfg.Pool(pool); pc != nil {
		if i := slices.IndexFunc(pc.Backends, func(bc backends.BackendConfig) bool { return bc.EffectiveName() == name }); i >= 0 {
			return pc.Backends[i], true
		}
	}
	if f, ok := d.discoveries.get(pool, name); ok {
		return discoveredConfig(f), true
	}
	return bc, false
}

// put replaces what is remembered of a backend.
func (d *daemon) put(r state.Backend) {
	d.memory.putBackend(r)
	if w := d.workersOf(r.Pool); w != nil {
		all := d.memory.all()
		w.remember(&all)
	}
}

// changedInt returns what to remember of a number that was set to value.
func changedInt(configured, value int) state.Int {
	if configured == value {
		return state.Int{}
	}
	return state.Int{Changed: true, Configured: configured, Value: value}
}

// SetWeight changes the weight of a backend; package backends says which weights there are.
func (d *daemon) SetWeight(b *backends.Backend, to api.WeightChange, by string) (warnings []string, err error) {
	return d.changeBackend(b, func(r *state.Backend, bc backends.BackendConfig) error {
		weight, err := weightOf(to, bc.Weight)
		if err != nil {
			return err
		}
		if err := b.Pool().SetWeight(b, weight, "by "+by); err != nil {
			return err
		}
		r.Weight = changedInt(bc.Weight, weight)
		return nil
	})
}

func weightOf(to api.WeightChange, configured int) (int, error) {
	if to.Percent != nil {
		return backends.PercentOf(configured, *to.Percent)
	}
	return *to.Weight, nil
}

// SetAdmin changes the admin state of a backend.
func (d *daemon) SetAdmin(b *backends.Backend, to backends.AdminState, by string) (warnings []string, err error) {
	return d.changeBackend(b, func(r *state.Backend, _ backends.BackendConfig) error {
		b.Pool().SetAdmin(b, to, "by "+by)
		if r.Admin = to.String(); to == backends.AdminReady {
			r.Admin = ""
		}
		return nil
	})
}

// SetMaxConns changes the limit of a backend.
func (d *daemon) SetMaxConns(b *backends.Backend, n int, by string) (warnings []string, err error) {
	return d.changeBackend(b, func(r *state.Backend, bc backends.BackendConfig) error {
		if err := b.Pool().SetMaxConns(b, n, "by "+by); err != nil {
			return err
		}
		r.MaxConns = changedInt(configuredMaxConns(bc, b.Pool().Config()), n)
		return nil
	})
}

// AddBackend adds a backend that the config does not have, or one that it has and that was removed.
func (d *daemon) AddBackend(p *backends.Pool, nb api.NewBackend, by string) (warnings []string, err error) {
	bc := backends.BackendConfig{Name: nb.Name, Address: nb.Address, Weight: backends.DefaultWeight, MaxConns: nb.MaxConns, Backup: nb.Backup}
	if nb.Weight != nil {
		bc.Weight = *nb.Weight
	}
	pool, name := p.Name, bc.EffectiveName()
	sa, err := d.resolveAdded(pool, bc.Address) // before the lock: it may take a while
	if err != nil {
		return nil, err
	}
	return d.change(func() error {
		if d.view.Load().pool(pool) != p {
			return api.Refuse(http.StatusNotFound, "there is no pool %q any more", pool)
		}
		if err := d.addable(p, bc); err != nil {
			return err
		}
		r := state.Backend{Pool: pool, Name: name, Address: bc.Address}
		own, inConfig := d.configured(pool, name)
		switch {
		case inConfig && !sameAddress(own.Address, bc.Address):
			return fmt.Errorf("the config has a backend %s/%s at %s, which was removed at run time; choose another name", pool, name, own.Address)
		case inConfig:
			r.Address = own.Address
			if nb.Weight != nil {
				r.Weight = changedInt(own.Weight, bc.Weight)
			}
			if nb.MaxConns != 0 {
				r.MaxConns = changedInt(configuredMaxConns(own, p.Config()), nb.MaxConns)
			}
			bc = own
		default:
			r.Added, r.Own = true, ownOf(bc)
		}
		if err := d.join(p, bc, r, sa, by); err != nil {
			return err
		}
		d.put(r)
		return nil
	})
}

// addable returns an error if a new backend cannot be added.
func (d *daemon) addable(p *backends.Pool, bc backends.BackendConfig) error {
	check := *p.Config()
	check.Backends = []backends.BackendConfig{bc}
	if err := check.Validate(); err != nil {
		return api.Refuse(http.StatusBadRequest, "cannot add the backend: %s", strings.ReplaceAll(err.Error(), "backends[0].", ""))
	}
	if d.workersOf(p.Name) != nil && supervisor.IsBackendName(bc.EffectiveName()) {
		return api.Refuse(http.StatusBadRequest, "%q has the form of a worker's name; choose another", bc.EffectiveName())
	}
	if p.Get(bc.EffectiveName()) != nil {
		return fmt.Errorf("pool %q has a backend %q already", p.Name, bc.EffectiveName())
	}
	return nil
}

// resolveAdded looks up the address of a backend that is to be added; nil where it names no host. It refuses
// one that is lb itself.
func (d *daemon) resolveAdded(pool, address string) (*backends.RawSockaddr, error) {
	addr, err := backends.ParseAddress(address)
	if err != nil { // addable reports what is wrong with it
		return nil, nil
	}
	ctx, cancel := context.WithTimeout(d.background.ctx, resolveTimeout)
	defer cancel()
	if err := d.view.Load().cfg.RefuseLoop(ctx, pool, addr); err != nil {
		return nil, api.Refuse(http.StatusBadRequest, "cannot add the backend: %v", err)
	}
	if !addr.IsHostName() {
		return nil, nil
	}
	return addr.Resolve(ctx)
}

// join makes a new backend a member, with what is remembered of it.
func (d *daemon) join(p *backends.Pool, bc backends.BackendConfig, r state.Backend, sa *backends.RawSockaddr, by string) error {
	v := d.view.Load()
	b, err := p.Add(bc, v.cfg.Pool(p.Name).Health.InitialHealth())
	if err != nil {
		return err
	}
	if sa != nil {
		b.SetSockaddr(sa)
	}
	restore(b, r, "by "+by)
	v.checkers[p].Add(b)
	return nil
}

// RemoveBackend takes a backend out of its pool.
func (d *daemon) RemoveBackend(b *backends.Backend, by string) (warnings []string, err error) {
	return d.change(func() error {
		if slot, ok := d.slotOf(b); ok {
			pool := b.Pool().Name
			return fmt.Errorf("%s/%s is the worker of slot %d: lb stop %s/%d ends it, lb scale %s -1 takes the last slot away", pool, b.Name, slot, pool, slot, pool)
		}
		r, bc := d.record(b)
		if err := b.Pool().Remove(b, "by "+by); err != nil {
			return err
		}
		d.view.Load().checkers[b.Pool()].Remove(b)
		gone := state.Backend{Pool: r.Pool, Name: r.Name, Address: r.Address}
		if !r.Added {
			gone.Removed, gone.Own = true, ownOf(bc)
		}
		d.put(gone)
		return nil
	})
}

// SetSplit changes weights of a listener's split.
func (d *daemon) SetSplit(listener string, weights map[string]int, by string) (now map[string]int, warnings []string, err error) {
	warnings, err = d.change(func() error {
		ln, cfg, err := d.findListener(listener)
		if err != nil {
			return err
		}
		split := ln.Split()
		if split == nil {
			return fmt.Errorf("listener %q has no split: all of its connections go to pool %q; give it a split in the config", listener, ln.Pool().Name)
		}
		before := split.Weights()
		if err := split.SetWeights(weights); err != nil {
			return api.Refuse(http.StatusBadRequest, "%v", err)
		}
		now = split.Weights()
		changed := state.Split{Listener: listener, Weights: map[string]state.Int{}}
		for pool, n := range now {
			if c := changedInt(cfg.Split[pool], n); c.Changed {
				changed.Weights[pool] = c
			}
		}
		d.memory.putSplit(changed)
		d.report(slog.LevelInfo, api.Event{Kind: "split", Subject: listener, Text: fmt.Sprintf("split %s → %s, by %s", splitText(before), splitText(now), by)},
			"split changed", "listener", listener, "from", splitText(before), "to", splitText(now), "by", by)
		return nil
	})
	return now, warnings, err
}

// splitText is blue=90 green=10, as lb split takes it.
func splitText(weights map[string]int) string {
	var words []string
	for _, pool := range slices.Sorted(maps.Keys(weights)) {
		words = append(words, pool+"="+strconv.Itoa(weights[pool]))
	}
	return strings.Join(words, " ")
}

// findListener finds a running listener and how the config has it.
func (d *daemon) findListener(name string) (*proxy.Listener, *config.Listener, error) {
	ln, cfg := d.listener(name), d.view.Load().cfg.Listener(name)
	if ln == nil || cfg == nil {
		return nil, nil, api.Refuse(http.StatusNotFound, "there is no listener %q", name)
	}
	return ln, cfg, nil
}

// SetListenerMaxConns changes how many sessions a listener may have.
func (d *daemon) SetListenerMaxConns(listener string, n int, by string) (warnings []string, err error) {
	return d.change(func() error {
		ln, cfg, err := d.findListener(listener)
		if err != nil {
			return err
		}
		if err := backends.CheckMaxConns(n, "for no limit"); err != nil {
			return err
		}
		before := ln.MaxConns()
		ln.SetMaxConns(n)
		d.memory.putListener(state.Listener{Name: listener, MaxConns: changedInt(cfg.MaxConns, n)})
		d.report(slog.LevelInfo, api.Event{Kind: "max_conns", Subject: listener, Text: fmt.Sprintf("max_conns %d → %d, by %s", before, n, by)},
			"listener max_conns changed", "listener", listener, "from", before, "to", n, "by", by)
		return nil
	})
}

// Stop begins a stop, as SIGTERM does, or with now as SIGINT.
func (d *daemon) Stop(now bool, by string) {
	d.report(slog.LevelInfo, api.Event{Kind: "stop", Subject: "lb", Text: "told to stop, by " + by}, "told to stop", "now", now, "by", by)
	if now {
		d.signals.send(syscall.SIGINT)
	} else {
		d.signals.send(syscall.SIGTERM)
	}
}

// SetLogLevel changes the least level of the event log.
func (d *daemon) SetLogLevel(level slog.Level, by string) {
	name := strings.ToLower(level.String())
	// Before the level may be too high for this line.
	d.report(slog.LevelInfo, api.Event{Kind: "log-level", Subject: "lb", Text: "log level " + name + ", by " + by}, "log level changed", "to", name, "by", by)
	d.events.SetLevel(level)
}
