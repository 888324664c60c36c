package daemon

import (
	"maps"
	"slices"
	"sync/atomic"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/proxy"
)

// routing is where connections go: the listeners of the proxy, the pools behind them, and what is known of
// their backends.
type routing struct {
	view    atomic.Pointer[view] // what runs; replaced with daemon.changing held
	proxy   *proxy.Proxy
	self    backends.Self // where lb itself listens: no backend leads there
	names   resolver
	closing closing // sessions of backends that went down
	queues  acceptQueues
}

// view is what runs at one moment. It is never changed in place: loops and requests read it while it is
// replaced.
type view struct {
	cfg   *config.Config   // what holds: of keys that need a restart, the values of the start
	pools []*backends.Pool // in the order of the config
	// of these, and of removed pools to which connections are still on their way
	checkers map[*backends.Pool]watcher
}

// pool returns the pool of that name, or nil.
func (v *view) pool(name string) *backends.Pool {
	for _, p := range v.pools {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// workersOf returns the workers of a pool; nil for none.
func (r *routing) workersOf(pool string) *workerPool {
	v := r.view.Load()
	if p := v.pool(pool); p != nil {
		return v.checkers[p].workers
	}
	return nil
}

// slotOf returns the slot of the worker that b stands for.
func (r *routing) slotOf(b *backends.Backend) (slot int, ok bool) {
	if w := r.workersOf(b.Pool().Name); w != nil {
		return w.slotOf(b)
	}
	return 0, false
}

// listener returns the running listener of that name, or nil.
func (r *routing) listener(name string) *proxy.Listener {
	for _, ln := range r.proxy.Listeners() {
		if ln.Name == name {
			return ln
		}
	}
	return nil
}

// poolNames returns the names of the pools that a listener sends connections to.
func poolNames(ln *proxy.Listener) []string {
	if split := ln.Split(); split != nil {
		return slices.Sorted(maps.Keys(split.Weights()))
	}
	return []string{ln.Pool().Name}
}
