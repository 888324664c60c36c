package supervisor

import (
	"context"
	"strings"
	"time"
)

// leftoverPatience bounds how long workers of a pool that is no more may take to end.
const leftoverPatience = 30 * time.Second

// Leftovers returns the names of the pools, but for those in known, of which an lb that was killed has left a
// record: they were renamed, or removed from the config, while no lb ran.
func (d *Dir) Leftovers(known func(name string) bool) (names []string) {
	f, err := d.entries().Open(".")
	if err != nil {
		return nil
	}
	defer f.Close()
	entries, _ := f.Readdirnames(-1)
	for _, entry := range entries {
		if name, ok := strings.CutSuffix(entry, ".json"); ok && name != "" && !known(name) {
			names = append(names, name)
		}
	}
	return names
}

// EndLeftovers ends the workers that an lb that was killed has left in a pool that is no more, as a stop
// would, and removes the pool's files. hooks may be the zero value. It returns when all have ended, or
// sooner, having killed them, when ctx is done.
func (d *Dir) EndLeftovers(ctx context.Context, name string, hooks Hooks) error {
	cfg := DefaultConfig()
	cfg.Command, cfg.Count = []string{"none"}, 1
	p, err := NewPool(name, cfg, d)
	if err != nil {
		return err
	}
	p.Hooks = hooks
	rec := p.readRecord()
	if rec == nil { // of another boot, for example: then its pids are others'
		d.entries().Remove(p.recordName())
		home, err := d.entries().OpenRoot(name)
		if err != nil {
			return nil
		}
		p.home.Store(home)
		p.sweep()
		p.removeEntry(notifyName)
		home.Close()
		d.entries().Remove(name)
		return nil
	}
	// Their user reaches the notify socket no more, which is of no use to them now.
	if err := p.Prepare(); err != nil {
		return err
	}
	p.ending = true
	for i := range rec.Workers { // none has a slot: all are retired
		rec.Workers[i].Removed, rec.Workers[i].Role, rec.Workers[i].Recycling = true, "", false
	}
	rec.Slots, rec.Rollout, rec.Configured = nil, nil, cfg.Count
	p.begin(rec, true)
	p.running.Go(p.receiver.Run)
	ctx, cancel := context.WithTimeout(ctx, leftoverPatience)
	defer cancel()
	p.Stop(ctx)
	return nil
}
