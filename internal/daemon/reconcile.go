package daemon

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/state"
)

// restore sets a backend's weight, limit and admin state to those that are remembered.
func restore(b *backends.Backend, r state.Backend, reason string) {
	if r.Weight.Changed {
		b.Pool().SetWeight(b, r.Weight.Value, reason)
	}
	if r.MaxConns.Changed {
		b.Pool().SetMaxConns(b, r.MaxConns.Value, reason)
	}
	if to, err := backends.ParseAdminState(r.Admin); err == nil {
		b.Pool().SetAdmin(b, to, reason)
	}
}

// reconcile finds out which remembered changes hold under a config: those whose value the config has as it
// had when the change was made. It returns these, a line for each, and a line for each of the others, for
// which the config wins.
func reconcile(changes state.Changes, cfg *config.Config) (holds state.Changes, kept, dropped []string) {
	r := reconciler{cfg: cfg}
	for _, b := range changes.Backends {
		r.backend(b)
	}
	for _, s := range changes.Splits {
		r.split(s)
	}
	for _, l := range changes.Listeners {
		r.listener(l)
	}
	for _, w := range changes.Workers {
		r.workers(w)
	}
	return r.holds, r.kept, r.dropped
}

type reconciler struct {
	cfg           *config.Config
	holds         state.Changes
	kept, dropped []string
}

func (r *reconciler) keep(format string, args ...any) {
	r.kept = append(r.kept, fmt.Sprintf(format, args...))
}

func (r *reconciler) drop(format string, args ...any) {
	r.dropped = append(r.dropped, fmt.Sprintf(format, args...))
}

// number returns n if it holds at path, where the config has configured, and else nothing.
func (r *reconciler) number(path string, n state.Int, configured int) state.Int {
	switch {
	case !n.Changed:
	case n.Configured == configured:
		r.keep("%s: %d, set at run time, stands; the config has %d", path, n.Value, configured)
		return n
	default:
		r.drop("%s: the config's %d wins over %d, which was set at run time when the config had %d", path, configured, n.Value, n.Configured)
	}
	return state.Int{}
}

func (r *reconciler) backend(b state.Backend) {
	path := "pools." + b.Pool + ".backends." + b.Name
	pool := r.cfg.Pool(b.Pool)
	if pool == nil {
		r.drop("%s: the config has no pool %q any more", path, b.Pool)
		return
	}
	if strings.HasPrefix(b.Name, slotPrefix) {
		if pool.Workers == nil {
			r.drop("%s: the config has no workers in pool %q any more", path, b.Pool)
			return
		}
		r.fields(path, b, workerBackendConfig(), pool)
		return
	}
	i := slices.IndexFunc(pool.Backends, func(bc backends.BackendConfig) bool { return bc.EffectiveName() == b.Name })
	if b.Added {
		r.added(path, b, i >= 0, pool)
		return
	}
	if i < 0 && pool.Discover != "" { // it may not be listed now, and be listed again
		r.discovered(path, b, pool)
		return
	}
	if i < 0 {
		r.drop("%s: the config has it no more", path)
		return
	}
	bc := pool.Backends[i]
	if !sameAddress(bc.Address, b.Address) {
		r.drop("%s: what was changed at run time is forgotten: the config has another address, %s instead of %s", path, bc.Address, b.Address)
		return
	}
	if b.Removed {
		if ownOf(bc) != b.Own {
			r.drop("%s: it is back: it was removed at run time, and the config has changed since", path)
			return
		}
		r.keep("%s: removed at run time; the config has it", path)
		r.holds.Backends = append(r.holds.Backends, b)
		return
	}
	r.fields(path, b, bc, pool)
}

// added is about a backend that the operator added.
func (r *reconciler) added(path string, b state.Backend, inConfig bool, pool *config.Pool) {
	if inConfig {
		r.drop("%s: the config's wins over the one that was added at run time", path)
		return
	}
	bc := addedConfig(&b)
	check := backends.DefaultConfig()
	check.Backends = []backends.BackendConfig{bc}
	if err := check.Validate(); err != nil {
		r.drop("%s: what was added at run time is no valid backend: %v", path, err)
		return
	}
	r.keep("%s: added at run time (%s)", path, b.Address)
	r.fields(path, b, bc, pool)
}

// discovered is about a backend that the pool discovers. What the operator set holds over every change of the
// list: it was not set against a value of the config.
func (r *reconciler) discovered(path string, b state.Backend, pool *config.Pool) {
	if b.Removed {
		r.keep("%s: removed at run time; %s may list it", path, pool.Discover)
		r.holds.Backends = append(r.holds.Backends, b)
		return
	}
	bc := backends.BackendConfig{Weight: b.Weight.Configured, MaxConns: b.MaxConns.Configured}
	r.fields(path, b, bc, pool)
}

// fields is about the values of a backend that is configured as bc.
func (r *reconciler) fields(path string, b state.Backend, bc backends.BackendConfig, pool *config.Pool) {
	b.Weight = r.number(path+".weight", b.Weight, bc.Weight)
	b.MaxConns = r.number(path+".max_conns", b.MaxConns, configuredMaxConns(bc, &pool.Config))
	if to, err := backends.ParseAdminState(b.Admin); err != nil || to == backends.AdminReady {
		b.Admin = ""
	} else {
		r.keep("%s: %s, set at run time", path, b.Admin)
	}
	if b.Weight.Value < 0 || b.Weight.Value > backends.MaxWeight || b.MaxConns.Value < 0 {
		r.drop("%s: what was changed at run time is out of range", path)
		b.Weight, b.MaxConns = state.Int{}, state.Int{}
	}
	if !b.Empty() {
		r.holds.Backends = append(r.holds.Backends, b)
	}
}

func (r *reconciler) split(s state.Split) {
	path := "listeners." + s.Listener + ".split"
	l := r.cfg.Listener(s.Listener)
	if l == nil || len(l.Split) == 0 {
		r.drop("%s: the config has it no more", path)
		return
	}
	holds := state.Split{Listener: s.Listener, Weights: map[string]state.Int{}}
	weights := maps.Clone(l.Split)
	var kept, dropped reconciler
	for _, pool := range slices.Sorted(maps.Keys(s.Weights)) {
		configured, ok := l.Split[pool]
		if !ok {
			dropped.drop("%s.%s: the config has it no more", path, pool)
			continue
		}
		if n := kept.number(path+"."+pool, s.Weights[pool], configured); n.Changed {
			holds.Weights[pool] = n
			weights[pool] = n.Value
		}
	}
	r.dropped = append(append(r.dropped, dropped.dropped...), kept.dropped...)
	if len(holds.Weights) == 0 {
		return
	}
	if err := backends.ValidateSplit(weights); err != nil {
		r.drop("%s: the config's weights win over those that were set at run time, which together make no split: %s", path, strings.ReplaceAll(err.Error(), "\n", "; "))
		return
	}
	r.kept = append(r.kept, kept.kept...)
	r.holds.Splits = append(r.holds.Splits, holds)
}

func (r *reconciler) listener(l state.Listener) {
	path := "listeners." + l.Name + ".max_conns"
	cfg := r.cfg.Listener(l.Name)
	if cfg == nil {
		r.drop("%s: the config has no such listener any more", path)
		return
	}
	if n := r.number(path, l.MaxConns, cfg.MaxConns); n.Changed && n.Value >= 0 {
		r.holds.Listeners = append(r.holds.Listeners, state.Listener{Name: l.Name, MaxConns: n})
	}
}

func (r *reconciler) workers(w state.Workers) {
	path := "pools." + w.Pool + ".workers"
	pool := r.cfg.Pool(w.Pool)
	if pool == nil || pool.Workers == nil {
		r.drop("%s: the config has no workers in pool %q any more", path, w.Pool)
		return
	}
	w.Count = r.number(path+".count", w.Count, pool.Workers.Count)
	count := pool.Workers.EffectiveCount()
	if w.Count.Changed {
		count = w.Count.Value
	}
	if w.Stopped = slices.DeleteFunc(slices.Clone(w.Stopped), func(n int) bool { return n < 0 || n >= count }); len(w.Stopped) > 0 {
		r.keep("%s: stopped by hand: %s", path, strings.Trim(fmt.Sprint(w.Stopped), "[]"))
	}
	if !w.Empty() {
		r.holds.Workers = append(r.holds.Workers, w)
	}
}

// splitWeights returns the weights of a listener's split, with those that the operator changed.
func splitWeights(cfg *config.Listener, remembered *state.Changes) map[string]int {
	weights := maps.Clone(cfg.Split)
	if s := remembered.Split(cfg.Name); s != nil {
		for pool, n := range s.Weights {
			if n.Changed {
				weights[pool] = n.Value
			}
		}
	}
	return weights
}

// configuredMaxConns returns a backend's limit in the config: its own or the pool's.
func configuredMaxConns(bc backends.BackendConfig, pool *backends.Config) int {
	if bc.MaxConns != 0 {
		return bc.MaxConns
	}
	return pool.MaxConns
}

// addedConfig returns the configuration of a backend that the operator added.
func addedConfig(b *state.Backend) backends.BackendConfig {
	bc := backends.DefaultBackendConfig()
	if b.Name != b.Address {
		bc.Name = b.Name
	}
	bc.Address, bc.Weight, bc.MaxConns, bc.Backup = b.Address, b.Own.Weight, b.Own.MaxConns, b.Own.Backup
	return bc
}

// ownOf returns what the state remembers of a configuration.
func ownOf(bc backends.BackendConfig) state.Own {
	return state.Own{Weight: bc.Weight, MaxConns: bc.MaxConns, Backup: bc.Backup}
}

// sameAddress reports whether two addresses that may be spelled differently are one.
func sameAddress(a, b string) bool {
	x, err1 := backends.ParseAddress(a)
	y, err2 := backends.ParseAddress(b)
	return err1 == nil && err2 == nil && x == y
}
