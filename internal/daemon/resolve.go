package daemon

import (
	"context"
	"sync"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/proxy"
)

// resolveEvery is how often backends that are named by host are looked up again.
const resolveEvery = 30 * time.Second

// resolveTimeout is how long a reload, or an added backend, waits for the addresses of host names.
const resolveTimeout = 5 * time.Second

// resolved is what the host names of a config were resolved to.
type resolved struct {
	backends map[backends.Address]*backends.RawSockaddr
	binds    proxy.BindAddresses
	pools    findings // of pools that discover backends, and did not or elsewhere
}

// resolveNew looks up the host names of a config that do not run yet, all at once. A backend's name that
// cannot be looked up is missing: the resolver tries it again. A listener's is an error when its socket is
// opened. No lock may be held: it takes up to resolveTimeout.
func (d *daemon) resolveNew(cfg *config.Config, remembered *state.Changes) resolved {
	ctx, cancel := context.WithTimeout(d.background.ctx, resolveTimeout)
	defer cancel()
	running := map[backends.Address]bool{}
	for _, pool := range d.view.Load().pools {
		for _, b := range pool.Backends() {
			running[b.Address] = true
		}
	}
	var mu sync.Mutex
	found := resolved{backends: map[backends.Address]*backends.RawSockaddr{}}
	var lookups sync.WaitGroup
	lookups.Go(func() {
		var binds []string
		for i := range cfg.Listeners {
			binds = append(binds, cfg.Listeners[i].Bind...)
		}
		found.binds = d.proxy.LookUpBinds(binds)
	})
	for i := range cfg.Pools {
		for _, bc := range wantedBackends(&cfg.Pools[i], remembered) {
			addr, err := backends.ParseAddress(bc.Address)
			if err != nil || !addr.IsHostName() || running[addr] {
				continue
			}
			running[addr] = true // one look-up is enough
			lookups.Go(func() {
				if sa, err := addr.Resolve(ctx); err == nil {
					mu.Lock()
					defer mu.Unlock()
					found.backends[addr] = sa
				}
			})
		}
	}
	lookups.Wait()
	return found
}

// use gives backends that are named by host their addresses.
func (r resolved) use(added []*backends.Backend) {
	for _, b := range added {
		if sa := r.backends[b.Address]; sa != nil {
			b.SetSockaddr(sa)
		}
	}
}

// resolver looks up the host names of backends again and again, off the loops.
type resolver struct {
	awake chan struct{} // holds one: look them up now
}

func newResolver() resolver { return resolver{awake: make(chan struct{}, 1)} }

// run looks up the host names of all backends, at once and then again and again, until ctx is done. A failure
// keeps the last address.
func (r *resolver) run(ctx context.Context, d *daemon) {
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	failed := map[*backends.Backend]bool{}
	for {
		failed = d.resolveAll(ctx, failed)
		select {
		case <-tick.C:
		case <-r.awake:
		case <-ctx.Done():
			return
		}
	}
}

// wake has the host names looked up now.
func (r *resolver) wake() {
	select {
	case r.awake <- struct{}{}:
	default: // they are about to be
	}
}

// resolveAll looks up every host name of the pools once, but for those of discovered backends. It logs the
// backends whose look-up fails and had not failed before, and the other way round, and returns those whose
// look-up failed.
func (d *daemon) resolveAll(ctx context.Context, failed map[*backends.Backend]bool) map[*backends.Backend]bool {
	failing := map[*backends.Backend]bool{}
	for _, pool := range d.view.Load().pools {
		for _, b := range pool.Backends() {
			if !b.Address.IsHostName() {
				continue
			}
			if _, ok := d.discoveries.get(pool.Name, b.Name); ok {
				continue
			}
			lookup, cancel := context.WithTimeout(ctx, 10*time.Second)
			err := b.Resolve(lookup)
			cancel()
			if ctx.Err() != nil {
				return failing
			}
			switch {
			case err != nil && !failed[b]:
				d.log.Warn("a host name cannot be resolved; its last address stays", "error", err)
			case err == nil && failed[b]:
				d.log.Info("a host name is resolved again", "backend", pool.Name+"/"+b.Name)
			}
			if err != nil {
				failing[b] = true
			}
		}
	}
	return failing
}
