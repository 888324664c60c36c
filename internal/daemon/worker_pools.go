package daemon

import (
	"context"
	"log/slog"
	"os"
	"slices"
	"sync"

	"github.com/273ebdf9/lb/supervisor"
)

// workerPools is all workers that lb has started, and what they share: the run-time directory, and the wait
// for processes that they leave behind. Safe for concurrent use.
type workerPools struct {
	mu     sync.Mutex
	runDir *supervisor.Dir // guarded by mu; nil before the first workers
	all    []*workerPool   // guarded by mu: also those that the config does not have any more, until they end
	reaper reaper          // guarded by mu
}

// dir returns the run-time directory, which it opens at path the first time.
func (p *workerPools) dir(path string) (*supervisor.Dir, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runDir != nil {
		return p.runDir, nil
	}
	dir, err := supervisor.OpenDir(path)
	if err == nil {
		p.runDir = dir
	}
	return dir, err
}

// setDir takes over a run-time directory that the code before has opened.
func (p *workerPools) setDir(dir *supervisor.Dir) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.runDir = dir
}

// openDir returns the run-time directory, or nil before the first workers.
func (p *workerPools) openDir() *supervisor.Dir {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.runDir
}

// list returns the worker pools that have not ended.
func (p *workerPools) list() []*workerPool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.all)
}

// has reports whether a pool of that name has workers that have not ended.
func (p *workerPools) has(name string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.ContainsFunc(p.all, func(w *workerPool) bool { return w.Name == name })
}

func (p *workerPools) add(w *workerPool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = append(p.all, w)
}

func (p *workerPools) remove(w *workerPool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.all = slices.DeleteFunc(p.all, func(x *workerPool) bool { return x == w })
}

// settled tells the run-time directory that all workers of the code before are known.
func (p *workerPools) settled() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runDir != nil {
		p.runDir.Settled()
	}
}

// close kills what workers have left behind, once all of them have ended, and gives the run-time directory
// up.
func (p *workerPools) close(log *slog.Logger) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.runDir != nil {
		if n := p.runDir.KillOrphans(); n > 0 {
			log.Warn("workers have left processes in the background, which were killed: run their programs in the foreground", "processes", n)
		}
		p.runDir.Close()
	}
}

// reaper waits for processes that nobody else waits for: what workers leave behind when they end becomes a
// child of lb. The zero value does not run.
type reaper struct {
	stop context.CancelFunc // nil: it does not run
	done chan struct{}
}

// reap begins to take the exit statuses of such processes, until stopReaping, or until lb stops.
func (p *workerPools) reap(b *background) {
	ctx, stop := context.WithCancel(b.ctx)
	done := make(chan struct{})
	p.mu.Lock()
	p.reaper = reaper{stop: stop, done: done}
	p.mu.Unlock()
	b.run(func() {
		defer close(done)
		supervisor.Reap(ctx, p.watch)
	})
}

// watch reports whether a process is a worker, whose pool waits for it.
func (p *workerPools) watch(pid int) bool {
	return slices.ContainsFunc(p.list(), func(w *workerPool) bool { return w.Has(pid) })
}

// stopReaping ends reap and waits for it. It reports whether there was something to end.
func (p *workerPools) stopReaping() bool {
	p.mu.Lock()
	r := p.reaper
	p.reaper = reaper{}
	p.mu.Unlock()
	if r.stop == nil {
		return false
	}
	r.stop()
	<-r.done
	return true
}

// endWorkers ends the workers of a pool that has none any more. Those of an lb that stops end with it.
func (d *daemon) endWorkers(w *workerPool) {
	w.stop(d.stopping.patience)
	d.workers.remove(w)
}

// endLeftovers ends the workers that an lb that was killed has left in pools which the config does not have:
// they were renamed or removed while no lb ran. It does not wait for them.
func (d *daemon) endLeftovers() {
	dir := d.workers.openDir()
	if dir == nil { // no pool has workers
		path := d.view.Load().cfg.Admin.EffectiveRunDir()
		if _, err := os.Lstat(path); path == "" || err != nil {
			return
		}
		var err error
		if dir, err = d.workers.dir(path); err != nil {
			d.log.Warn("cannot look for workers that an lb before has left", "error", err)
			return
		}
	}
	for _, name := range dir.Leftovers(d.workers.has) {
		d.log.Warn("ending the workers of a pool that the config does not have any more; an lb before has left them", "pool", name)
		hooks := supervisor.Hooks{Changed: func(c supervisor.Change) {
			d.log.Info("worker "+c.To, "pool", c.Pool, "slot", c.Slot, "pid", c.PID, "from", c.From, "reason", c.Reason)
		}}
		d.background.run(func() {
			if err := dir.EndLeftovers(d.background.ctx, name, hooks); err != nil {
				d.log.Error("cannot end the workers of a pool that is no more", "pool", name, "error", err)
			}
		})
	}
}

// fault logs what the supervisor cannot do for a pool's workers, and that it can again.
func (w *workerPool) fault(what string, err error) {
	if err == nil {
		w.d.log.Info("works again", "what", what, "pool", w.Name)
		return
	}
	w.d.repeats.Log(slog.LevelError, "workers' "+what+" "+w.Name, "lb cannot look after its workers as it should, and tries again",
		"what", what, "pool", w.Name, "error", err)
}
