package main

import (
	"context"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// resolveEvery is how often backends that are named by host are looked up again.
const resolveEvery = 30 * time.Second

// resolveNames looks up the host names of backends, at once and then again and again, off the loops. A failure keeps
// the last address. It returns at once when no backend needs it.
func (d *daemon) resolveNames() {
	tick := time.NewTicker(resolveEvery)
	defer tick.Stop()
	failed := map[*backends.Backend]bool{}
	for {
		named := false
		for _, pool := range d.pools {
			for _, b := range pool.Backends() {
				if !b.Address.IsHostName() {
					continue
				}
				named = true
				ctx, cancel := context.WithTimeout(d.background, 10*time.Second)
				err := b.Resolve(ctx)
				cancel()
				if (err != nil) != failed[b] && d.background.Err() == nil {
					if err != nil {
						d.log.Warn("a host name cannot be resolved; its last address stays", "error", err)
					} else {
						d.log.Info("a host name is resolved again", "backend", pool.Name+"/"+b.Name)
					}
				}
				failed[b] = err != nil
			}
		}
		if !named {
			return
		}
		select {
		case <-tick.C:
		case <-d.background.Done():
			return
		}
	}
}
