// Package daemon is a running lb: it builds the proxy, the pools, their health checks and workers from a
// config, and wires them. It applies reloads and what the control API asks for, remembers changes made at run
// time, attends to signals, and carries all of it over an upgrade (upgrade_*.go).
//
// Run owns every goroutine and waits for them. The package prints nothing for people; internal/cli does.
package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/build"
	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/internal/sockdiag"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
)

// daemon is a running lb: the parts, and the facts that flow between them.
type daemon struct {
	path    string // of the config file
	log     *slog.Logger
	events  *logs.Logger    // behind log
	access  *logs.AccessLog // nil when off
	repeats *logs.Throttle  // for errors that may come in masses
	started time.Time

	outputPace logs.Pace // of what workers write

	view    atomic.Pointer[view] // what runs; replaced under changing
	self    backends.Self        // where lb itself listens: no backend leads there
	proxy   *proxy.Proxy
	admin   *admin.Server
	service *service
	program string        // what lb was started as, absolute: the default of an upgrade
	signals signals       // of the kernel, and of the command stop
	resolve chan struct{} // wakes resolveNames; holds one

	startConfig []byte        // the text that holds for what needs a restart
	adopting    bool          // what is built goes on from a live state, and nothing of it runs yet
	upgrades    atomic.Uint64 // and how many sessions they have carried over, in all
	carriedOver atomic.Uint64
	standstill  time.Duration   // of the upgrade to this code; 0: there was none
	gate        gate            // shut while an upgrade freezes everything
	held        held            // signals that came meanwhile
	stopAsked   context.Context // over when a signal to stop has come
	noteStop    context.CancelFunc

	changing   sync.Mutex      // one change at a time: commands, reloads, the end of removed pools
	remembered state.Changes   // guarded by changing
	runDir     *supervisor.Dir // guarded by changing; nil before the first workers
	workers    []*workerPool   // guarded by changing: all that were started and have not ended
	stopping   bool            // guarded by changing
	ending     atomic.Bool     // stopping, for those who must not wait for a change

	reapNoMore func() // ends what reap began; nil: it has not; guarded by changing

	patience  context.Context // over when workers that end are killed
	impatient context.CancelFunc

	background context.Context // over when the probes and look-ups shall end
	cancel     context.CancelFunc
	running    sync.WaitGroup // checkers, resolver, removed pools, admin server, service
	closing    closing        // sessions of backends that went down
	queues     acceptQueues
}

// view is what runs at one moment. It is never changed in place: loops and requests read it while it is
// replaced.
type view struct {
	cfg   *config.Config   // what holds: of keys that need a restart, the values of the start
	pools []*backends.Pool // in the order of the config
	// of these, and of removed pools to which connections are still on their way
	checkers map[*backends.Pool]watcher
}

// pool is the pool of that name, or nil.
func (v *view) pool(name string) *backends.Pool {
	for _, p := range v.pools {
		if p.Name == name {
			return p
		}
	}
	return nil
}

// newDaemon builds what the config file at path says needs a restart to change, and starts nothing. inherited
// is the control API of the code before, of which a file that it takes is copied.
func newDaemon(path string, cfg *config.Config, inherited admin.Frozen, files map[string]*os.File) (_ *daemon, err error) {
	d := &daemon{
		path: path, program: programPath(), startConfig: cfg.Source, started: time.Now(), service: newService(),
		signals: newSignals(), resolve: make(chan struct{}, 1),
	}
	d.view.Store(&view{cfg: &config.Config{Proxy: cfg.Proxy, Admin: cfg.Admin, Log: cfg.Log}})
	d.patience, d.impatient = context.WithCancel(context.Background())
	d.stopAsked, d.noteStop = context.WithCancel(context.Background())
	d.background, d.cancel = context.WithCancel(context.Background())
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
	if d.access != nil {
		px.OnSession = d.sessionEnded
	}
	px.OnAcceptError = func(ln *proxy.Listener, err error) {
		d.repeats.Log(slog.LevelError, "accept "+ln.Name, "accepting pauses", "error", err)
	}
	px.OnShortage = func(b *backends.Backend, err error) {
		d.repeats.Log(slog.LevelError, "shortage "+err.Error(), shortage(err), "backend", b.Pool().Name+"/"+b.Name, "error", err)
	}
	px.OnChannel = d.channelEvent
	px.OnLimit = func(n int64) {
		d.log.Warn("session limit reached: newcomers wait until sessions end; raise RLIMIT_NOFILE or proxy.max_sessions", "max_sessions", n)
	}
	d.proxy = px
	d.closing.proxy, d.closing.log = px, d.log
	d.admin, err = admin.NewServerFrom(cfg.Admin, d.sources(), inherited)
	if err != nil {
		return nil, err
	}
	d.admin.Control = d
	return d, nil
}

// shortage says of what lb is short where a connect to a backend has failed for that reason, and what to do.
func shortage(err error) string {
	const what = "cannot connect to a backend, which is not at fault: "
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAGAIN):
		return what + "no local port is free; widen net.ipv4.ip_local_port_range, or use Unix sockets"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return what + "no descriptor is free; raise RLIMIT_NOFILE or lower proxy.max_sessions"
	case errors.Is(err, unix.ENOSPC):
		return what + "the user's epoll watches are used up; raise fs.epoll.max_user_watches"
	}
	return what + "the kernel has no memory for it"
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
	if err := d.begin(cfg); err != nil {
		return err
	}
	d.dropSockets()
	d.endLeftovers(cfg)
	d.running.Go(d.serveAdmin)
	d.running.Go(d.resolveNames)
	d.log.Info("lb is up", "version", build.Version(), "pid", os.Getpid(), "loops", d.proxy.Loops(), "max_sessions", d.proxy.MaxSessions(),
		"socket", cfg.Admin.Socket, "http", cfg.Admin.HTTP)
	d.running.Go(d.reportToService)
	d.reap()
	return nil
}

// reap begins to take the exit statuses of processes that nobody waits for: what workers leave behind when
// they end becomes lb's child. The caller holds changing, or is alone.
func (d *daemon) reap() {
	ctx, stop := context.WithCancel(d.background)
	done := make(chan struct{})
	d.running.Go(func() {
		defer close(done)
		supervisor.Reap(ctx)
	})
	d.reapNoMore = func() {
		stop()
		<-done
	}
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
	remembered, err := d.recall(cfg.Admin.StateFile)
	if err != nil {
		return err
	}
	p, err := d.plan(cfg, remembered, "start")
	if err != nil {
		return err
	}
	if err := p.prepare(d.resolveNew(cfg, &p.remembered)); err != nil {
		return err
	}
	p.commit()
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

// poolNames are the pools that a listener sends connections to.
func poolNames(ln *proxy.Listener) []string {
	if split := ln.Split(); split != nil {
		return slices.Sorted(maps.Keys(split.Weights()))
	}
	return []string{ln.Pool().Name}
}

// connectFailed passes a failed connect on to the pool's checker. It runs on a loop.
func (d *daemon) connectFailed(b *backends.Backend, why backends.ConnectError, streak uint32) {
	if why == backends.ConnectUntrusted {
		d.repeats.Log(slog.LevelError, "untrusted "+b.Pool().Name+"/"+b.Name, "did not connect to a backend: its address is not to be trusted",
			"backend", b.Pool().Name+"/"+b.Name, "reason", b.Refusal())
	}
	if w, ok := d.view.Load().checkers[b.Pool()]; ok {
		w.ConnectFailed(b, why, streak)
	}
}

// backendChanged logs a change of a backend, and tells whom it concerns. It may run on a loop.
func (d *daemon) backendChanged(pool *backends.Pool, c backends.Change) {
	b, v := pool.Get(c.Backend), d.view.Load()
	w, watched := v.checkers[pool]
	// The word of a worker or of its supervisor, and no finding: it was told to end, say.
	word := b != nil && watched && c.Field == "health" && w.Status(b).Awaiting
	level := changeLevel(c.To)
	if word {
		level = slog.LevelInfo
	} else if c.Field == "last_resort" && c.To == "true" {
		level = slog.LevelWarn
	}
	d.report(level, api.Event{Time: c.Time, Kind: c.Field, Subject: c.Pool + "/" + c.Backend, Text: changeText(c)},
		changeMessage(c),
		"backend", c.Pool+"/"+c.Backend, "from", c.From, "to", c.To, "reason", c.Reason,
		"held", c.Lasted.Round(time.Millisecond), "left", fmt.Sprintf("%d/%d", c.Left, c.Total))
	if b == nil {
		return
	}
	if c.Field == "health" && watched && w.workers != nil {
		w.workers.healthChanged(c)
	}
	switch cfg := v.cfg.Pool(c.Pool); {
	case c.Field == "admin":
		if watched {
			w.AdminChanged(b)
		}
	case c.Field == "health" && c.To == "down" && !word && cfg != nil && cfg.Health.OnDown == "close":
		d.closing.begin(b)
	}
}

// changeMessage is the log's sentence for a change.
func changeMessage(c backends.Change) string {
	if c.Field == "added" || c.Field == "removed" {
		return "backend " + c.Field
	}
	return "backend " + c.Field + " changed"
}

// changeText returns a change in words; the field, where the values do not name it.
func changeText(c backends.Change) string {
	text := c.From + " → " + c.To
	switch c.Field {
	case "added":
		text = "added, " + c.To
	case "removed":
		text = "removed, " + c.From
	case "weight", "max_conns":
		text = c.Field + " " + text
	case "last_resort":
		if c.To == "true" {
			text = "last resort: every backend of " + c.Pool + " is down"
		} else {
			text = "no last resort any more: " + c.Pool + " has backends that are up"
		}
	}
	if c.Reason != "" {
		text += ": " + c.Reason
	}
	return text
}

// tell writes a line into the event log, and shows the event to those who follow.
func (d *daemon) report(level slog.Level, e api.Event, msg string, args ...any) {
	d.log.Log(context.Background(), level, msg, args...)
	e.Level = strings.ToLower(level.String())
	d.admin.Publish(e)
}

// stop ends everything: listeners first, then sessions (until ctx is over), then workers (as long as each may
// take, and in a hurry once now is over), then the rest.
func (d *daemon) stop(ctx, now context.Context) {
	d.changing.Lock()
	d.stopping = true
	d.ending.Store(true)
	workers := slices.Clone(d.workers)
	d.changing.Unlock()
	defer context.AfterFunc(now, func() { time.AfterFunc(hurried, d.impatient) })()
	d.service.stopping(d.stopsWithin())
	killed, err := d.proxy.Stop(ctx)
	if err != nil && !errors.Is(err, proxy.ErrStopped) {
		d.log.Error("cannot stop cleanly", "error", err)
	}
	var ending sync.WaitGroup
	for _, f := range workers {
		ending.Go(func() { f.stop(d.patience) })
	}
	ending.Wait()
	d.cancel()
	d.admin.Close(canceled())
	d.running.Wait()
	d.closing.wait()
	if d.runDir != nil {
		d.runDir.Close()
	}
	d.service.close()
	d.log.Info("stopped", "sessions_closed", killed)
	d.queues.close()
	d.closeLogs()
}
