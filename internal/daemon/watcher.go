package daemon

import (
	"context"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/health"
)

// watcher is a pool's checker, which runs until stop, and its workers.
type watcher struct {
	*health.Checker
	ctx     context.Context
	stop    context.CancelFunc
	done    chan struct{} // closed when it does not run any more
	workers *workerPool   // nil: none
}

func (d *daemon) newWatcher(c *health.Checker) watcher {
	w := watcher{Checker: c, done: make(chan struct{})}
	w.ctx, w.stop = context.WithCancel(d.background.ctx)
	return w
}

// run is the watcher's goroutine.
func (w watcher) run() {
	defer close(w.done)
	w.Run(w.ctx)
}

// haltCheckers ends the probes of all pools, and waits for those under way to be cut off.
func (d *daemon) haltCheckers() {
	checkers := d.view.Load().checkers
	for _, w := range checkers {
		w.stop()
	}
	for _, w := range checkers {
		<-w.done
	}
}

// runCheckers goes on with them. The caller holds changing.
func (d *daemon) runCheckers() {
	old := d.view.Load()
	v := &view{cfg: old.cfg, pools: old.pools, checkers: map[*backends.Pool]watcher{}}
	for pool, w := range old.checkers {
		next := d.newWatcher(w.Checker)
		next.workers = w.workers
		v.checkers[pool] = next
		d.background.run(next.run)
	}
	d.view.Store(v)
}
