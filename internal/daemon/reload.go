package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/state"
)

// Reload reads the config file again and applies the differences, all or none. With dryRun it returns them
// only, and opens no socket. Sessions are not touched.
func (d *daemon) Reload(ctx context.Context, dryRun bool, by string) (api.ReloadResult, error) {
	leave, err := d.upgrades.gate.enter("a reload")
	if err != nil {
		return api.ReloadResult{}, err
	}
	defer leave()
	result, restart, err := d.reloadAndReport(ctx, dryRun, by)
	if err != nil {
		return result, err
	}
	return result, d.rolloutFor(ctx, restart, by)
}

// reloadAndReport reloads, but for the restarts of workers, which are not made under the lock: it returns
// those that are due.
func (d *daemon) reloadAndReport(ctx context.Context, dryRun bool, by string) (api.ReloadResult, []*workerPool, error) {
	cfg, found, err := d.loadAndLock(dryRun)
	defer d.changing.Unlock()
	if !dryRun && !d.stopping.begun.Load() {
		d.service.reloading()
		defer d.service.ready()
	}
	result, restart := newReloadResult(dryRun), []*workerPool(nil)
	if err == nil {
		result, restart, err = d.reloadLocked(ctx, cfg, dryRun, by, found)
	}
	switch {
	case dryRun:
	case err != nil:
		d.reloads.refused(err)
		d.report(slog.LevelError, api.Event{Kind: "reload", Subject: "lb", Text: "cannot reload, everything stays as it was: " + err.Error()},
			"cannot reload: everything stays as it was", "by", by, "error", err)
	default:
		d.reloads.applied()
		d.report(slog.LevelInfo, api.Event{Kind: "reload", Subject: "lb", Text: fmt.Sprintf("reloaded, %s, by %s", count(len(result.Changes), "change"), by)},
			"reloaded", "by", by, "changes", len(result.Changes), "warnings", len(result.Warnings), "kept", len(result.Kept),
			"what", strings.Join(shortened(result.Changes, 20), "; "))
		for _, w := range result.Warnings {
			d.log.Warn("reload", "warning", w)
		}
	}
	return result, restart, err
}

// loadAndLock loads the config, looks up its host names unless for a dry run, and takes daemon.changing. The
// look-ups, which take seconds where a name server is down, are made before: nobody waits for them. Of two
// reloads the last one to read the file wins, so loadAndLock begins again if the file is another one by the
// time that it has the lock. The lock is held after an error too.
func (d *daemon) loadAndLock(dryRun bool) (cfg *config.Config, found resolved, err error) {
	for range maxLoads {
		if cfg, err = config.Load(d.origin.path); err == nil && !dryRun {
			found = d.resolveNew(cfg, &state.Changes{})
			found.pools = d.lookUpNew(cfg, nil)
		}
		d.changing.Lock()
		if err != nil {
			return nil, found, err
		}
		if cfg.Unchanged(d.origin.path) {
			return cfg, found, nil
		}
		d.changing.Unlock()
	}
	d.changing.Lock()
	return nil, found, fmt.Errorf("the config file %q changes again and again while lb reads it; reload when it is written", d.origin.path)
}

// maxLoads is how often a reload reads a config file that somebody writes meanwhile.
const maxLoads = 10

func newReloadResult(dryRun bool) api.ReloadResult {
	return api.ReloadResult{DryRun: dryRun, Changes: []string{}, Warnings: []string{}}
}

// reloadLocked is reloadAndReport without the report.
func (d *daemon) reloadLocked(ctx context.Context, cfg *config.Config, dryRun bool, by string, found resolved) (api.ReloadResult, []*workerPool, error) {
	result := newReloadResult(dryRun)
	if d.stopping.begun.Load() {
		return result, nil, errStopping
	}
	if err := ctx.Err(); err != nil { // the caller has gone
		return result, nil, err
	}
	old := d.view.Load().cfg
	effective := untilRestart(old, cfg)
	for _, c := range config.Diff(effective, cfg) {
		needs := " needs a restart"
		if c.Path == "proxy.batching" {
			needs = " needs an upgrade in place (lb upgrade) or a restart"
		}
		result.Warnings = append(result.Warnings, c.String()+needs)
	}
	for _, w := range cfg.Warnings {
		result.Warnings = append(result.Warnings, w.String())
	}
	for _, c := range config.Diff(old, effective) {
		result.Changes = append(result.Changes, c.String())
	}
	if room, err := effective.Room(); err == nil && room.Warning != "" {
		result.Warnings = append(result.Warnings, room.Warning)
	}
	p, err := d.plan(effective, d.memory.all(), found.pools, "reload by "+by)
	if err != nil {
		return result, nil, err
	}
	result.Changes = append(result.Changes, p.staleWorkers()...)
	result.Kept = p.kept
	result.Warnings = append(result.Warnings, p.dropped...)
	if dryRun {
		return result, nil, nil
	}
	if err := p.prepare(found); err != nil {
		return result, nil, err
	}
	p.commit()
	result.Warnings = append(result.Warnings, p.unremembered...)
	if effective.Log.Level != old.Log.Level {
		d.events.SetLevel(effective.Log.SlogLevel())
	}
	return result, p.restart, nil
}

// untilRestart is cfg with those values of old that only a restart can change. An upgrade changes
// proxy.batching, too (snapshot.config).
func untilRestart(old, cfg *config.Config) *config.Config {
	effective := *cfg
	effective.Proxy.Loops, effective.Proxy.MaxSessions = old.Proxy.Loops, old.Proxy.MaxSessions
	effective.Proxy.Batching = old.Proxy.Batching
	effective.Admin = old.Admin
	effective.Cluster = old.Cluster
	effective.Admin.StateFile = cfg.Admin.StateFile
	effective.Log = old.Log
	effective.Log.Level = cfg.Log.Level
	return &effective
}

// shortened returns at most n of the lines, and then how many more there are.
func shortened(lines []string, n int) []string {
	if len(lines) <= n {
		return lines
	}
	return append(lines[:n:n], count(len(lines)-n, "more change"))
}

// reloads knows how the last reload ended. Safe for concurrent use.
type reloads struct {
	mu   sync.Mutex
	last api.ReloadStatus
}

func (r *reloads) applied() {
	now := time.Now()
	r.set(api.ReloadStatus{Loaded: now, Tried: now})
}

func (r *reloads) refused(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last.Tried, r.last.Error = time.Now(), err.Error()
}

// set is for what another process, or a start, has read.
func (r *reloads) set(st api.ReloadStatus) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.last = st
}

// status returns nil before a config was read.
func (r *reloads) status() *api.ReloadStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.last.Loaded.IsZero() {
		return nil
	}
	st := r.last
	return &st
}
