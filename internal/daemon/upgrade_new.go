package daemon

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/build"
	"github.com/273ebdf9/lb/internal/clock"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
	"github.com/273ebdf9/lb/upgrade"
)

// This file is the new code's half of an upgrade: build everything from the snapshot, and only then touch
// anything. Until Handover.Keep, whatever fails, panics or hangs leads back to the binary before, with the
// same state.

// Upgraded reports whether this process is the new code of an upgrade. If it is, Upgraded first serves, until
// a signal ends lb. It exits, or hands everything back to the code before, if it cannot take over.
func Upgraded() bool {
	handover, err := upgrade.FromEnv()
	switch {
	case err != nil && handover != nil:
		rollBack(handover, newSignals(), err)
	case err != nil:
		fmt.Fprintln(os.Stderr, "lb:", err)
		os.Exit(exitFailed)
	case handover != nil: // sessions wait
		_ = fault("start")
		takeOver(handover)
		return true
	}
	return false
}

// exitFailed is the exit code of a process that cannot go on.
const exitFailed = 1

// takeOver goes on where the code before has stopped, until a signal ends it.
func takeOver(h *upgrade.Handover) {
	gc := debug.SetGCPercent(-1) // none while sessions wait
	heard := newSignals()
	heard.listen() // until now SIGTERM would have ended lb at once, and SIGHUP was ignored
	for _, sig := range h.Signals {
		heard.send(sig)
	}
	// The kernel names a program after the descriptor that it was run by.
	os.WriteFile("/proc/self/comm", []byte(filepath.Base(os.Args[0])), 0)
	late := time.AfterFunc(takeOverTimeout, func() {
		rollBack(h, heard, fmt.Errorf("it had not taken over after %v", takeOverTimeout))
	})
	a := &takeover{heard: heard}
	err := a.build(h)
	if !late.Stop() {
		select {} // the way back has begun, and ends this code
	}
	if err != nil {
		rollBack(h, heard, err)
	}
	runtime.KeepAlive(a) // its files must not be closed for want of a reference before the way back
	d := a.serve(h)
	debug.SetGCPercent(gc)
	d.handle()
}

// rollBack gives everything to the code before, and what was heard meanwhile. It does not return: if that
// fails too, there is nobody left to serve.
func rollBack(h *upgrade.Handover, heard signals, err error) {
	err = fmt.Errorf("%s cannot take over: %w", build.Version(), err)
	fmt.Fprintln(os.Stderr, "lb:", err)
	heard.deafen()
	h.Signals = nil
	for _, sig := range heard.drain() {
		h.Signals = append(h.Signals, sig.(syscall.Signal))
	}
	back := h.Back(err.Error(), handledSignals())
	fmt.Fprintln(os.Stderr, "lb: cannot run the code before: sessions are lost, unless a guardian goes on:", back)
	os.Exit(exitFailed)
}

// takeover is what has been built, and serves nothing yet.
type takeover struct {
	heard    signals
	d        *daemon
	snap     *snapshot
	plan     *plan
	sessions int
	closing  []*backends.Backend // whose sessions are to be closed
	files    []*os.File          // of workers, which have copies now; to be closed
}

// build makes all that the snapshot says. A panic is an error.
func (a *takeover) build(h *upgrade.Handover) (err error) {
	defer func() {
		if r := recover(); r != nil {
			fmt.Fprintf(os.Stderr, "panic: %v\n%s", r, debug.Stack())
			err = fmt.Errorf("BUG: %v", r)
		}
	}()
	if err := fault("takeover"); err != nil {
		return err
	}
	if a.snap, err = readSnapshot(h.State); err != nil {
		return err
	}
	if _, ok := a.snap.head.Service[watchdogPID]; ok && h.Died != nil {
		a.snap.head.Service[watchdogPID] = strconv.Itoa(os.Getpid())
	}
	return a.buildDaemon()
}

// AnswerCheck is what the new binary does to say whether it can take over: it reads a snapshot without
// sessions, and builds all that it would build, but serves nothing and opens no address.
func AnswerCheck(in io.Reader, out io.Writer) error {
	data, err := io.ReadAll(io.LimitReader(in, maxSnapshot))
	if err != nil {
		return fmt.Errorf("cannot read the state: %w", err)
	}
	snap, err := readSnapshot(data)
	if err != nil && !errors.Is(err, errFormat) {
		return fmt.Errorf("cannot read the state: %w", err)
	}
	if err == nil { // of another format it only says which ones it reads
		if err := rehearse(snap); err != nil {
			return err
		}
	}
	return json.NewEncoder(out).Encode(upgrade.Answer{Version: build.Version(), Formats: snapshotFormats(), Guardian: true})
}

// rehearse builds what can be built of a snapshot without its descriptors.
func rehearse(snap *snapshot) error {
	if err := fault("check"); err != nil {
		return err
	}
	cfg, _, err := snap.config()
	if err != nil {
		return err
	}
	if snap.head.Reload {
		if _, err := config.Load(snap.head.Path); err != nil {
			return err
		}
	}
	px, err := proxy.New(cfg.Proxy)
	if err != nil {
		return err
	}
	if _, err := px.Stop(canceled()); err != nil {
		return err
	}
	if _, err := cfg.Room(); err != nil {
		return err
	}
	changes, err := state.Unmarshal(snap.head.Changes)
	if err != nil {
		return err
	}
	d := &daemon{}
	d.proxy = px
	d.view.Store(&view{cfg: &config.Config{}})
	_, err = d.plan(cfg, changes, snap.head.Found, "rehearsal")
	return err
}

// config is what the code before ran, as this code reads it.
func (snap *snapshot) config() (cfg *config.Config, start []byte, err error) {
	cfg, err = config.ParseRunning(snap.head.Path, []byte(snap.head.Config))
	if err != nil {
		return nil, nil, fmt.Errorf("the config that runs is not valid for %s:\n%w", build.Version(), err)
	}
	started, err := config.ParseRunning(snap.head.Path, []byte(snap.head.StartConfig))
	if err != nil {
		return nil, nil, fmt.Errorf("the config of the start is not valid for %s:\n%w", build.Version(), err)
	}
	effective := untilRestart(started, cfg)
	effective.Proxy.Batching = cfg.Proxy.Batching // the loops are made anew
	return effective, []byte(snap.head.StartConfig), nil
}

// buildDaemon makes the daemon. Nothing of it runs, and no descriptor is changed.
func (a *takeover) buildDaemon() error {
	snap := a.snap
	cfg, start, err := snap.config()
	if err != nil {
		return err
	}
	changes, err := state.Unmarshal(snap.head.Changes)
	if err != nil {
		return fmt.Errorf("cannot read the remembered changes: %w", err)
	}
	for name, value := range snap.head.Service {
		os.Setenv(name, value)
	}
	inherited := snap.admin.Frozen
	for i := range inherited.Sockets {
		inherited.Sockets[i].File = a.file(snap.admin.FDs[i], inherited.Sockets[i].Name)
	}
	files := map[string]*os.File{}
	for name, fd := range snap.head.Files {
		files[name] = a.file(fd, name)
	}
	d, err := newDaemon(snap.head.Path, cfg, inherited, files)
	if err != nil {
		return err
	}
	a.d = d
	d.signals = a.heard
	d.origin.started, d.origin.config, d.origin.program = snap.head.Started, start, snap.head.Program
	d.upgrades.count.Store(snap.head.Upgrades)
	d.upgrades.sessions.Store(snap.head.Carried)
	if snap.head.LastReload != nil {
		d.reloads.set(*snap.head.LastReload)
	} else { // of an lb that did not know
		d.reloads.set(api.ReloadStatus{Loaded: time.Now()})
	}
	var level slog.Level
	if level.UnmarshalText([]byte(snap.head.LogLevel)) == nil {
		d.events.SetLevel(level)
	}
	d.proxy.Inherit(&snap.frozen)
	if snap.head.Lock >= 0 {
		dir, err := supervisor.TakeOverDir(cfg.Admin.EffectiveRunDir(), a.file(snap.head.Lock, "lock"), files[fileRunDir])
		if err != nil {
			return err
		}
		d.workers.setDir(dir)
	}
	d.upgrades.takingOver = true
	if a.plan, err = d.plan(cfg, changes, snap.head.Found, "upgrade"); err != nil {
		return err
	}
	a.plan.takeOver = a.takeOverWorkers
	if err := a.plan.prepare(resolved{}); err != nil {
		return err
	}
	a.plan.commit()
	if err := a.restore(); err != nil {
		return err
	}
	a.sessions = len(snap.frozen.Sessions)
	return d.proxy.TakeOver(&snap.frozen)
}

// file is a descriptor that is closed once everything has been taken over.
func (a *takeover) file(fd int, name string) *os.File {
	f := os.NewFile(uintptr(fd), name)
	a.files = append(a.files, f)
	return f
}

// takeOverWorkers gives a pool's workers what they were before.
func (a *takeover) takeOverWorkers(f *workerPool) error {
	for i := range a.snap.workers {
		saved := &a.snap.workers[i]
		if saved.Pool != f.Name {
			continue
		}
		files := map[string]*os.File{}
		for name, fd := range saved.Files {
			files[name] = a.file(fd, name)
		}
		return f.TakeOver(saved.State, files)
	}
	return nil
}

// restore makes the pools what they were, and the sessions' tables of them.
func (a *takeover) restore() error {
	d, snap := a.d, a.snap
	v := d.view.Load()
	pools := make([]*backends.Pool, len(snap.pools))
	all := make([][]*backends.Backend, len(snap.pools))
	for i := range snap.pools {
		saved := &snap.pools[i]
		pool := v.pool(saved.Name)
		gone := saved.Gone || pool == nil
		if gone {
			var err error
			if pool, err = gonePool(saved); err != nil {
				return err
			}
		}
		w := v.checkers[pool]
		if gone || w.workers != nil {
			if err := addMembers(pool, saved, w.workers); err != nil {
				return err
			}
		}
		var err error
		if all[i], err = pool.Restore(saved.SavedPool); err != nil {
			return err
		}
		if w.Checker != nil {
			for _, b := range pool.Backends() {
				w.AddAwaiting(b) // the workers'; the others are watched already
			}
			w.Import(saved.Health)
		}
		pools[i] = pool
	}
	for _, n := range snap.head.SessionPools {
		snap.frozen.Pools = append(snap.frozen.Pools, pools[n])
	}
	for _, n := range snap.head.SessionBackends {
		snap.frozen.Backends = append(snap.frozen.Backends, all[n[0]][n[1]])
	}
	for _, n := range snap.head.Closing {
		a.closing = append(a.closing, all[n[0]][n[1]])
	}
	return nil
}

// gonePool makes a pool that is not in the config any more, for the connections that it still has.
func gonePool(saved *poolSnapshot) (*backends.Pool, error) {
	policy, err := balancer.New(saved.Config.Balance)
	if err != nil {
		return nil, err
	}
	return backends.NewPool(saved.Name, saved.Config, policy), nil
}

// addMembers adds the backends that the config does not name: workers, and those of a pool that is not in it
// any more.
func addMembers(pool *backends.Pool, saved *poolSnapshot, workers *workerPool) error {
	for i := range saved.Backends {
		b := &saved.Backends[i]
		if b.Removed || pool.Get(b.Name) != nil {
			continue
		}
		cfg := b.Config
		cfg.Name, cfg.Address = b.Name, b.Address
		if workers != nil && cfg.Owner == "" { // an lb that knew of no owners wrote it
			cfg.Owner = workers.cfg.Load().User
		}
		if _, err := pool.Add(cfg, b.Health); err != nil {
			return err
		}
	}
	return nil
}

// serve takes over, and returns the daemon that serves now. From here on there is no way back.
func (a *takeover) serve(h *upgrade.Handover) *daemon {
	d, snap := a.d, a.snap
	_ = fault("built")
	failed := h.Failed
	for _, sig := range h.Keep(snap.fds()) {
		a.heard.send(sig)
	}
	d.access.Requeue(snap.head.Access)
	d.events.Requeue(snap.head.Log)
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), d.proxy.Loops()+1))
	d.upgrades.takingOver = false
	for _, pool := range d.view.Load().pools {
		pool.OnChange = func(c backends.Change) { d.backendChanged(pool, c) }
	}
	d.proxy.Start()
	standstill := clock.Monotonic() - snap.head.FrozenAt
	if failed == "" {
		d.upgrades.standstill = standstill
	}
	for _, b := range a.closing {
		d.closing.begin(b)
	}
	a.plan.begin()
	for _, f := range d.workers.list() {
		f.settled()
	}
	d.workers.settled()
	d.admin.Settle()
	for _, f := range a.files {
		f.Close()
	}
	d.startCluster()
	d.background.run(d.serveAdmin)
	d.background.run(func() { d.names.run(d.background.ctx, d) })
	d.background.run(func() {
		d.changing.Lock()
		defer d.changing.Unlock()
		d.memory.save(d.log) // logs what came of it
	})
	if h.Died != nil {
		// in this order: for the service manager, the end of the main process is that of the service
		d.service.moved()
		h.Died.Reap()
	}
	d.background.run(d.reportToService)
	d.workers.reap(d.background)
	d.endLeftovers()
	a.report(failed, standstill)
	return d
}

// report reports the outcome, in the log and to the caller who waits for it.
func (a *takeover) report(failed string, standstill time.Duration) {
	d, head := a.d, a.snap.head
	result := api.UpgradeResult{
		From: head.Version, To: build.Version(), Sessions: a.sessions, Standstill: standstill.Seconds(), PID: os.Getpid(), Warnings: head.Warnings,
	}
	var err error
	if failed != "" {
		err = api.Refuse(http.StatusConflict, "the new binary gave everything back: %s", strings.TrimSpace(failed))
		d.report(slog.LevelError, api.Event{Kind: "upgrade", Subject: "lb", Text: "cannot upgrade, everything goes on as it was: " + failed},
			"cannot upgrade: everything goes on as it was", "by", head.By, "sessions", a.sessions, "standstill", standstill, "error", err)
	} else {
		d.upgrades.count.Add(1)
		d.upgrades.sessions.Add(uint64(a.sessions))
		d.report(slog.LevelInfo, api.Event{Kind: "upgrade", Subject: "lb", Text: fmt.Sprintf("%s → %s, %s carried over, stood still for %v, by %s",
			head.Version, build.Version(), count(a.sessions, "session"), standstill.Round(10*time.Microsecond), head.By)},
			"upgraded", "from", head.Version, "to", build.Version(), "sessions", a.sessions, "standstill", standstill, "pid", os.Getpid(), "by", head.By)
	}
	d.background.run(func() {
		if failed == "" && head.Reload {
			var reloaded api.ReloadResult
			if reloaded, err = d.Reload(context.WithoutCancel(d.background.ctx), false, "upgrade by "+head.By); err != nil {
				err = api.Refuse(http.StatusConflict, "upgraded to %s, but the reload failed: %v", build.Version(), err)
			}
			result.Warnings = slices.Concat(result.Warnings, reloaded.Warnings)
		}
		if head.Caller >= 0 {
			if e := admin.Answer(os.NewFile(uintptr(head.Caller), "caller"), result, err); e != nil {
				d.log.Warn("who asked for the upgrade does not hear of its outcome", "error", e)
			}
		}
	})
}
