package daemon

import (
	"log/slog"
	"os"
	"slices"

	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/supervisor"
)

// endLeftovers ends the workers that an lb that was killed has left in pools which cfg does not have: they
// were renamed or removed while no lb ran. It does not wait for them. The caller holds changing, or is alone.
func (d *daemon) endLeftovers(cfg *config.Config) {
	path := cfg.Admin.EffectiveRunDir()
	if d.runDir == nil { // no pool has workers
		if _, err := os.Lstat(path); path == "" || err != nil {
			return
		}
		dir, err := supervisor.OpenDir(path)
		if err != nil {
			d.log.Warn("cannot look for workers that an lb before has left", "error", err)
			return
		}
		d.runDir = dir
	}
	dir := d.runDir
	for _, name := range dir.Leftovers(func(name string) bool {
		return slices.ContainsFunc(d.workers, func(w *workerPool) bool { return w.Name == name })
	}) {
		d.log.Warn("ending the workers of a pool that the config does not have any more; an lb before has left them", "pool", name)
		hooks := supervisor.Hooks{Changed: func(c supervisor.Change) {
			d.log.Info("worker "+c.To, "pool", c.Pool, "slot", c.Slot, "pid", c.PID, "from", c.From, "reason", c.Reason)
		}}
		d.running.Go(func() {
			if err := dir.EndLeftovers(d.background, name, hooks); err != nil {
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
