// Package daemon is a running lb: it builds the proxy, the pools, their health checks and workers from a
// config, and wires them. It applies reloads and what the control API asks for, remembers changes made at run
// time, attends to signals, and carries all of it over an upgrade (upgrade_*.go).
//
// Run owns every goroutine and waits for them. The package prints nothing for people; internal/cli does.
package daemon

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/cluster"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/build"
	"github.com/273ebdf9/lb/internal/sockdiag"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
)

// daemon is a running lb: its parts, each with the lock that guards its own fields.
//
// Locks are taken in this order, and nobody waits for an earlier one while holding a later one:
//
//  1. upgrades.gate: what the operator asked for is inside until it is done; an upgrade waits until it is empty.
//  2. changing: one change at a time. Its holder may wait for a supervisor's goroutine, and for the loops.
//  3. workerPool.mu, which the supervisor's goroutine takes in its hooks.
//  4. The mutex of a backends.Pool. Its OnChange runs on loops too, and takes none of those above.
//  5. memory.mu, discoveries.mu, workerPools.mu, closing.mu, upgrades.deferred.mu: their holders call nobody back.
type daemon struct {
	routing  // listeners, pools, health: what runs
	logging  // event log, access log
	origin   origin
	admin    *admin.Server
	service  *service
	signals  signals    // of the kernel, and of the command stop
	changing sync.Mutex // held while what runs is changed: by commands, reloads, the end of removed pools
	memory   memory     // of the operator's changes
	discoveries
	cluster    *cluster.Cluster // nil: lb belongs to none
	workers    workerPools
	usage      workerUsage
	reloads    reloads
	upgrades   upgrades
	stopping   *stopping
	background *background
}

// origin is how lb was started. An upgrade passes it on.
type origin struct {
	path    string // of the config file
	config  []byte // its text at the start, which holds for the keys that need a restart
	program string // what lb was started as, absolute: the default of an upgrade
	started time.Time
}

// newDaemon builds what the config file at path says needs a restart to change, and starts nothing. inherited
// is the control API of the code before, of which a file that it takes is copied.
func newDaemon(path string, cfg *config.Config, inherited admin.Frozen, files map[string]*os.File) (_ *daemon, err error) {
	d := &daemon{
		origin:  origin{path: path, config: cfg.Source, program: programPath(), started: time.Now()},
		service: newService(), signals: newSignals(), stopping: newStopping(), background: newBackground(),
	}
	d.names = newResolver()
	d.view.Store(&view{cfg: &config.Config{Proxy: cfg.Proxy, Admin: cfg.Admin, Log: cfg.Log}})
	if err := d.openLogs(cfg.Log, files); err != nil {
		return nil, err
	}
	if d.queues.sockets, err = sockdiag.Dial(); err != nil {
		d.log.Warn("health checks of type accept cannot see who hangs: they see what connect sees", "error", err)
	}
	px, err := proxy.New(cfg.Proxy)
	if err != nil {
		return nil, err
	}
	room, err := cfg.Room()
	if err == nil {
		_, err = px.Reserve(room.Reserved)
	}
	if err != nil {
		px.Stop(canceled())
		return nil, err
	}
	px.OnConnectFailure = d.connectFailed
	px.OnUntaken = d.untaken
	if d.access != nil {
		px.OnSession = d.sessionEnded
	}
	px.OnAcceptError = d.acceptFailed
	px.OnShortage = d.connectShort
	px.OnChannel = d.channelEvent
	px.OnLimit = d.limitReached
	px.OnRingLost = d.ringLost
	d.proxy = px
	d.closing.proxy, d.closing.log = px, d.log
	if err := d.joinCluster(cfg); err != nil {
		px.Stop(canceled())
		return nil, err
	}
	d.admin, err = admin.NewServerFrom(cfg.Admin, d.sources(), inherited)
	if err != nil {
		return nil, err
	}
	d.admin.Control = d
	return d, nil
}

// start begins to serve what cfg says. On an error the caller stops the daemon.
func (d *daemon) start(cfg *config.Config) error {
	// A thread that waits in a loop keeps its processor, so the rest of the program needs at least one of its
	// own.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), d.proxy.Loops()+1))
	d.proxy.Start()
	if err := d.takeSockets(); err != nil {
		return err
	}
	supervisor.BecomeReaper() // before there are workers
	d.startCluster()
	if err := d.begin(cfg); err != nil {
		return err
	}
	d.dropSockets()
	d.endLeftovers()
	d.background.run(d.serveAdmin)
	d.background.run(func() { d.names.run(d.background.ctx, d) })
	d.log.Info("lb is up", "version", build.Version(), "pid", os.Getpid(), "loops", d.proxy.Loops(), "batching", d.batching(), "max_sessions", d.proxy.MaxSessions(),
		"socket", cfg.Admin.Socket, "http", cfg.Admin.HTTP)
	d.background.run(d.reportToService)
	d.workers.reap(d.background)
	return nil
}

// serveAdmin serves the control API until it is closed or frozen.
func (d *daemon) serveAdmin() {
	if err := d.admin.Serve(); err != nil {
		d.log.Error("the control API has ended", "error", err)
	}
}

// begin makes the first change: from nothing to the config, with what is remembered.
func (d *daemon) begin(cfg *config.Config) error {
	d.changing.Lock()
	defer d.changing.Unlock()
	remembered, err := recall(cfg.Admin.StateFile, d.log)
	if err != nil {
		return err
	}
	p, err := d.plan(cfg, remembered, d.lookUpNew(cfg, d.recallFound(cfg)), "start")
	if err != nil {
		return err
	}
	if err := p.prepare(d.resolveNew(cfg, &p.remembered)); err != nil {
		return err
	}
	p.commit()
	d.reloads.set(api.ReloadStatus{Loaded: time.Now()})
	for _, line := range p.dropped {
		d.log.Warn("a change made at run time is forgotten", "change", line)
	}
	for _, line := range p.kept {
		d.log.Info("a change made at run time holds", "change", line)
	}
	if p.room.Warning != "" {
		d.log.Warn(p.room.Warning)
	}
	for _, ln := range d.proxy.Listeners() {
		d.log.Info("listening", "listener", ln.Name, "addresses", strings.Join(ln.Addresses(), " "), "pools", strings.Join(poolNames(ln), " "))
	}
	return nil
}
