package daemon

import (
	"context"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// resolveEvery is how often backends that are named by host are looked up again.
const resolveEvery = 30 * time.Second

// resolveNames looks up the host names of backends, at once and then again and again, off the loops. A failure keeps
// the last address.
func (d *daemon) resolveNames() {
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	failed := map[*backends.Backend]bool{}
	for {
		failed = d.resolveAll(failed)
		select {
		case <-tick.C:
		case <-d.resolve:
		case <-d.background.Done():
			return
		}
	}
}

// wakeResolver has the host names looked up now.
func (d *daemon) wakeResolver() {
	select {
	case d.resolve <- struct{}{}:
	default: // it is about to be
	}
}

// resolveAll looks up every host name once. It tells of those that fail and had not failed before, and the other way
// round, and gives those that failed.
func (d *daemon) resolveAll(failed map[*backends.Backend]bool) map[*backends.Backend]bool {
	failing := map[*backends.Backend]bool{}
	for _, pool := range d.view.Load().pools {
		for _, b := range pool.Backends() {
			if !b.Address.IsHostName() {
				continue
			}
			ctx, cancel := context.WithTimeout(d.background, 10*time.Second)
			err := b.Resolve(ctx)
			cancel()
			if d.background.Err() != nil {
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
