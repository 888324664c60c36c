package daemon

import (
	"fmt"
	"log/slog"
	"strconv"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/cluster"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/discovery"
	"github.com/273ebdf9/lb/internal/build"
)

// joinCluster makes lb's part in the cluster of cfg, if it has one. Nothing runs yet.
func (d *daemon) joinCluster(cfg *config.Config) (err error) {
	if cfg.Cluster == nil {
		return nil
	}
	if d.cluster, err = cluster.New(*cfg.Cluster); err != nil {
		return err
	}
	d.cluster.Published = d.published
	d.cluster.Changed = d.clusterChanged
	d.cluster.Refused = func(key string, err error) {
		name := strconv.QuoteToASCII(shortText(key, 200))
		d.report(slog.LevelWarn, api.Event{Kind: "cluster", Subject: "lb", Text: fmt.Sprintf("does not use %s of etcd, nothing has changed: %v", name, err)},
			"a value of etcd is not used", "key", name, "error", err)
	}
	d.cluster.Unpublished = func(err error) {
		if err == nil {
			d.report(slog.LevelInfo, api.Event{Kind: "cluster", Subject: "lb", Text: "etcd has what this lb publishes"}, "etcd has what this lb publishes")
			return
		}
		d.report(slog.LevelWarn, api.Event{Kind: "cluster", Subject: "lb", Text: fmt.Sprintf("etcd does not take what this lb publishes: %v", err)},
			"etcd does not take what this lb publishes", "error", err)
	}
	return nil
}

// startCluster begins to speak with etcd.
func (d *daemon) startCluster() {
	if d.cluster != nil {
		d.background.run(func() { d.cluster.Run(d.background.ctx) })
	}
}

// shortText returns at most n bytes of s.
func shortText(s string, n int) string {
	if len(s) > n {
		return s[:n] + "…"
	}
	return s
}

// clusterChanged has the pools look at what the hosts publish now.
func (d *daemon) clusterChanged() {
	d.discoveries.mu.Lock()
	defer d.discoveries.mu.Unlock()
	for _, e := range d.discoveries.pools {
		if e.cfg.Discover != discovery.Etcd {
			continue
		}
		select {
		case e.changed <- struct{}{}:
		default: // it is about to
		}
	}
}

// published returns what this lb publishes.
func (d *daemon) published() ([]cluster.Entry, cluster.Member) {
	v, stops := d.view.Load(), d.stopping.begun.Load()
	var all []cluster.Entry
	for i := range v.cfg.Listeners {
		l := &v.cfg.Listeners[i]
		pool := v.pool(l.Pool)
		if l.Publish == "" || pool == nil {
			continue
		}
		e := cluster.Entry{Pool: l.Pool, Listener: l.Name, Address: l.Publish, Connections: pool.Active(), Draining: stops}
		for _, b := range pool.Backends() {
			if b.Selectable() {
				e.Up, e.Weight = e.Up+1, e.Weight+b.Weight()
			}
		}
		all = append(all, e)
	}
	return all, cluster.Member{Version: build.Version(), Started: d.origin.started, Sessions: d.proxy.Sessions()}
}
