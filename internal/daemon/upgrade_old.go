package daemon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/build"
	"github.com/273ebdf9/lb/internal/clock"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/upgrade"
)

// This file is the old code's half of an upgrade: check the new binary, freeze everything, write it down,
// exec. The new code's half is upgrade_new.go; upgrade_snapshot.go is what they have in common.

const (
	// gatePatience is how long an upgrade waits for changes that are under way.
	gatePatience = 2 * time.Second
	// requestPatience is how long other requests to the control API may take to end before a freeze cuts
	// them.
	requestPatience = time.Second
	// flushPatience is how long the logs may take to be written before everything is frozen, and
	// freezePatience while it is; what is left is carried over.
	flushPatience  = 200 * time.Millisecond
	freezePatience = 5 * time.Millisecond
	// spareFDs are what the new code opens before it has taken over: epoll sets, the runtime's own, copies of
	// sockets.
	spareFDs = 64
	// stateMargin is how much larger than its head a state without sessions may be, and sessionState how
	// large a session is in it, in bytes, with a part of a buffer.
	stateMargin  = 64 << 10
	sessionState = 1 << 10
)

// programPath is the absolute path of what lb was started as, its symbolic links not followed: they may lead
// to another binary later.
func programPath() string {
	exe, err := os.Executable()
	if err != nil {
		exe = os.Args[0]
	}
	path := os.Args[0]
	if !strings.Contains(path, "/") {
		if path, err = exec.LookPath(path); err != nil || !sameFile(path, exe) {
			// the name says nothing of the place
			return exe
		}
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// sameFile reports whether two paths lead to one file.
func sameFile(a, b string) bool {
	x, err1 := os.Stat(a)
	y, err2 := os.Stat(b)
	return err1 == nil && err2 == nil && os.SameFile(x, y)
}

// Upgrade replaces the running code by that of a binary. It returns if that was refused or failed, and all
// goes on as before, or for a dry run. caller is who waits for the outcome, nil for nobody.
func (d *daemon) Upgrade(ctx context.Context, req api.UpgradeRequest, caller *admin.Reply, by string) (api.UpgradeResult, error) {
	result, err := d.tryUpgrade(ctx, req, caller, by)
	if err != nil {
		d.report(slog.LevelError, api.Event{Kind: "upgrade", Subject: "lb", Text: "cannot upgrade, everything goes on as it was: " + err.Error()},
			"cannot upgrade: everything goes on as it was", "by", by, "error", err)
	}
	return result, err
}

func (d *daemon) tryUpgrade(ctx context.Context, req api.UpgradeRequest, caller *admin.Reply, by string) (result api.UpgradeResult, err error) {
	patience, cancel := context.WithTimeout(ctx, gatePatience)
	err = d.upgrades.gate.close(patience)
	cancel()
	if err != nil {
		return result, err
	}
	defer d.upgrades.gate.open()
	var warnings []string
	if req.Reload {
		d.changing.Lock()
	} else {
		warnings = d.compareAndLock()
	}
	defer d.changing.Unlock()
	if d.stopping.begun.Load() {
		return result, errStopping
	}
	path := req.Binary
	if path == "" {
		path = d.origin.program
	}
	binary, err := upgrade.Open(path)
	if err != nil {
		return result, err
	}
	defer binary.Close()
	if err := d.roomForUpgrade(); err != nil {
		return result, err
	}
	u := &upgrading{d: d, path: path, binary: binary, by: by, reload: req.Reload, warnings: warnings, caller: -1, lock: -1}
	checking, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(d.stopping.asked, cancel)() // a stop does not wait for it
	answer, err := u.check(checking)
	if d.stopping.asked.Err() != nil {
		return result, errStopping
	}
	if err != nil {
		return result, err
	}
	u.guard = answer.Guardian
	result = api.UpgradeResult{
		DryRun: req.DryRun, From: build.Version(), To: answer.Version, Sessions: int(d.proxy.Sessions()), PID: os.Getpid(), Warnings: u.warnings,
	}
	if req.DryRun {
		return result, nil
	}
	d.log.Info("upgrading", "from", build.Version(), "to", answer.Version, "binary", path, "sessions", result.Sessions, "by", by)
	defer u.close()
	if caller != nil {
		f, err := caller.Hand()
		if err != nil {
			return result, err
		}
		if u.caller, err = u.carry(f); err != nil {
			return result, err
		}
	}
	d.service.reloading()
	defer d.service.ready()
	return result, u.run()
}

// roomForUpgrade reports whether the new code would have descriptors enough.
func (d *daemon) roomForUpgrade() error {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return fmt.Errorf("cannot read RLIMIT_NOFILE: %w", err)
	}
	if n := uint64(admin.OpenFDs()); n+spareFDs > limit.Cur {
		return api.Refuse(http.StatusConflict, "%d descriptors are open, and RLIMIT_NOFILE is %d: the new code would have none left; raise it (prlimit --nofile=%d --pid %d), or upgrade when there are fewer sessions",
			n, limit.Cur, n+2*spareFDs, os.Getpid())
	}
	return nil
}

// upgrading is one upgrade.
type upgrading struct {
	d        *daemon
	path     string // of the new binary
	binary   *upgrade.Binary
	by       string
	reload   bool
	warnings []string
	guard    bool // the new binary knows of a guardian
	caller   int  // descriptors; -1: none
	lock     int
	carried  []*os.File // that are copies, for the new code alone
	frozenAt time.Duration
}

// carry has a file's descriptor go along, and returns its number.
func (u *upgrading) carry(f *os.File) (fd int, err error) {
	u.carried = append(u.carried, f)
	raw, err := f.SyscallConn() // Fd would change the mode of the socket
	if err != nil {
		return -1, err
	}
	return fd, raw.Control(func(n uintptr) { fd = int(n) })
}

// close closes the copies, when no new code has them.
func (u *upgrading) close() {
	for _, f := range u.carried {
		f.Close()
	}
}

// compareAndLock takes daemon.changing, and returns what is to be said of a config file that is not the
// config that runs.
func (d *daemon) compareAndLock() (warnings []string) {
	onDisk, _, err := d.loadAndLock(true)
	switch {
	case err != nil:
		return []string{"the config file has faults now; the upgrade goes on with the config that runs"}
	case !bytes.Equal(onDisk.Source, d.view.Load().cfg.Source):
		return []string{"the config file has changed since it was loaded; the upgrade goes on with the config that runs: lb reload, or lb upgrade --reload, makes the new one hold"}
	}
	return nil
}

// check asks the new binary whether it can take over.
func (u *upgrading) check(ctx context.Context) (upgrade.Answer, error) {
	snap := &snapshot{head: u.head()}
	args := []string{u.path, "run", "--adopt-check", "-f", u.d.origin.path}
	state := snap.marshal()
	// What is not known before the freeze, pools, workers and sessions with what they hold, takes several
	// times as much at most.
	if err := upgrade.CheckRoom(stateMargin + 4*len(state) + sessionState*int(u.d.proxy.Sessions())); err != nil {
		return upgrade.Answer{}, err
	}
	answer, err := upgrade.Check(ctx, u.binary, args, state, upgrade.CheckTimeout)
	if err != nil {
		return answer, err
	}
	if !slices.Contains(answer.Formats, snapshotFormat) {
		return answer, api.Refuse(http.StatusConflict, "the new binary, %s, reads snapshots of format %v, and this lb, %s, writes format %d: restart lb to change to it (sessions end), or go by way of a version that reads both",
			answer.Version, answer.Formats, build.Version(), snapshotFormat)
	}
	return answer, nil
}

// head is what there is one of. The caller holds changing.
func (u *upgrading) head() snapshotHead {
	d := u.d
	changes := d.memory.all()
	return snapshotHead{
		Format: snapshotFormat, Version: build.Version(), Started: d.origin.started, Path: d.origin.path, Program: d.origin.program,
		StartConfig: string(d.origin.config), Config: string(d.view.Load().cfg.Source), Changes: changes.Marshal(),
		Found:    d.discoveries.all(),
		LogLevel: d.events.Level().String(), LastReload: d.reloads.status(), Service: d.service.env,
		Lock: u.lock, Caller: u.caller, By: u.by, Reload: u.reload, Warnings: u.warnings,
		Upgrades: d.upgrades.count.Load(), Carried: d.upgrades.sessions.Load(),
	}
}

// run freezes everything, and execs. It returns when that failed, with everything thawed.
func (u *upgrading) run() error {
	d := u.d
	var thaw []func()
	undo := func() {
		for _, f := range slices.Backward(thaw) {
			f()
		}
	}
	d.deferSignals()
	thaw = append(thaw, d.releaseSignals)
	// Whatever does not carry bytes stops first, while sessions go on.
	ctx, cancel := context.WithTimeout(context.Background(), requestPatience)
	defer cancel()
	adminState, err := d.admin.Freeze(ctx)
	if err != nil {
		undo()
		return err
	}
	thaw = append(thaw, func() {
		adminState.Close()
		d.admin.Thaw()
		d.background.run(d.serveAdmin)
	})
	snap := &snapshot{admin: adminSnapshot{Frozen: *adminState}}
	for i := range adminState.Sockets {
		fd, err := u.carry(adminState.Sockets[i].File)
		if err != nil {
			undo()
			return err
		}
		snap.admin.FDs = append(snap.admin.FDs, fd)
	}
	d.haltCheckers()
	thaw = append(thaw, d.runCheckers)
	if d.workers.stopReaping() {
		thaw = append(thaw, func() { d.workers.reap(d.background) })
	}
	thawWorkers, err := u.freezeWorkers(snap)
	thaw = append(thaw, thawWorkers)
	if err == nil {
		err = u.copyLock()
	}
	if err != nil {
		undo()
		return err
	}
	d.closing.wait() // as far as the loops find no other backend to be down
	u.flushLogs()
	gc := debug.SetGCPercent(-1) // none while sessions wait
	thaw = append(thaw, func() { debug.SetGCPercent(gc) })
	u.frozenAt = clock.Monotonic()
	frozen, err := d.proxy.Freeze()
	if err != nil {
		undo()
		return err
	}
	thaw = append(thaw, d.proxy.Thaw)
	u.writeDown(snap, frozen)
	thawLogs, err := u.freezeLogs(&snap.head)
	thaw = append(thaw, thawLogs)
	if err == nil {
		err = u.carryFiles(&snap.head)
	}
	if err != nil {
		undo()
		return err
	}
	if d.stopping.asked.Err() != nil {
		undo()
		return errStopping
	}
	err = upgrade.Exec(&upgrade.Plan{
		Binary: u.binary, Args: os.Args, State: snap.marshal(), FDs: snap.fds(), Signals: handledSignals(), Heard: d.missedSignals,
		Guard: u.guard, Unheard: d.unheard,
	})
	undo()
	return err
}

// freezeWorkers freezes the workers of all pools.
func (u *upgrading) freezeWorkers(snap *snapshot) (thaw func(), err error) {
	var frozen []*workerPool
	thaw = func() {
		for _, f := range frozen {
			f.Thaw()
			f.reportHealth()
		}
	}
	for _, f := range u.d.workers.list() {
		text, files, err := f.Freeze()
		if err != nil {
			return thaw, api.Refuse(http.StatusConflict, "%v; try again when that has ended", err)
		}
		frozen = append(frozen, f)
		saved := workersSnapshot{Pool: f.Name, State: text, Files: map[string]int{}}
		for _, name := range slices.Sorted(maps.Keys(files)) {
			if saved.Files[name], err = u.carry(files[name]); err != nil {
				return thaw, err
			}
		}
		snap.workers = append(snap.workers, saved)
	}
	return thaw, nil
}

// flushLogs has the logs write most of what they have, while sessions go on.
func (u *upgrading) flushLogs() {
	ctx, cancel := context.WithTimeout(context.Background(), flushPatience)
	defer cancel()
	u.d.repeats.Flush()
	u.d.access.Flush(ctx) // what is left goes along
	u.d.events.Flush(ctx)
}

// freezeLogs pauses the logs, once nothing writes to them any more.
func (u *upgrading) freezeLogs(head *snapshotHead) (thaw func(), err error) {
	d := u.d
	ctx, cancel := context.WithTimeout(context.Background(), freezePatience)
	defer cancel()
	if head.Access, err = d.access.Freeze(ctx); err != nil {
		return func() {}, fmt.Errorf("cannot freeze the access log: %w", err)
	}
	if head.Log, err = d.events.Freeze(ctx); err != nil {
		return d.access.Thaw, fmt.Errorf("cannot freeze the event log: %w", err)
	}
	return func() {
		d.access.Thaw()
		d.events.Thaw()
	}, nil
}

// carryFiles takes along what the new code would else have to open by name.
func (u *upgrading) carryFiles(head *snapshotHead) error {
	d := u.d
	open := map[string]func() (*os.File, error){fileLog: d.events.File, fileAccess: d.access.File}
	if dir := d.workers.openDir(); dir != nil {
		open[fileRunDir] = dir.Open
	}
	head.Files = map[string]int{}
	for name, copyOf := range open {
		f, err := copyOf()
		if err != nil {
			return fmt.Errorf("cannot hand over the open file of %s: %w", name, err)
		}
		if f == nil { // a standard stream
			continue
		}
		if head.Files[name], err = u.carry(f); err != nil {
			return err
		}
	}
	return nil
}

// Names of snapshotHead.Files.
const (
	fileLog    = "log"
	fileAccess = "access"
	fileRunDir = "run_dir"
)

// copyLock takes the lock of the run-time directory along.
func (u *upgrading) copyLock() error {
	dir := u.d.workers.openDir()
	if dir == nil {
		return nil
	}
	f, err := dir.File()
	if err != nil {
		return err
	}
	u.lock, err = u.carry(f)
	return err
}

// writeDown fills the snapshot, with everything frozen.
func (u *upgrading) writeDown(snap *snapshot, frozen *proxy.Frozen) {
	d := u.d
	v := d.view.Load()
	snap.frozen = *frozen
	snap.head = u.head()
	// what workers wrote, and what was reported, since the control API was frozen
	snap.admin.State = d.admin.State()
	snap.head.FrozenAt = u.frozenAt
	snap.head.Epoch, snap.head.Counts, snap.head.Channels = frozen.Epoch, frozen.Counts, frozen.Channels
	pools := slices.Clone(v.pools)
	for p := range v.checkers { // removed, and connections are still on their way
		if !slices.Contains(pools, p) {
			pools = append(pools, p)
		}
	}
	for _, p := range frozen.Pools {
		if !slices.Contains(pools, p) {
			pools = append(pools, p)
		}
	}
	places := map[*backends.Backend][2]int{}
	for i, p := range pools {
		members := p.Backends()
		var removed []*backends.Backend
		for _, b := range frozen.Backends {
			if b.Pool() == p && b.Removed() {
				removed = append(removed, b)
			}
		}
		saved := poolSnapshot{SavedPool: p.Save(removed), Gone: !slices.Contains(v.pools, p)}
		if w, ok := v.checkers[p]; ok {
			saved.Health = w.Export()
		}
		snap.pools = append(snap.pools, saved)
		for j, b := range slices.Concat(members, removed) {
			places[b] = [2]int{i, j}
		}
	}
	for _, p := range frozen.Pools {
		snap.head.SessionPools = append(snap.head.SessionPools, slices.Index(pools, p))
	}
	for _, b := range frozen.Backends {
		snap.head.SessionBackends = append(snap.head.SessionBackends, places[b])
	}
	for _, b := range d.closing.open() {
		if place, ok := places[b]; ok { // else it has no sessions
			snap.head.Closing = append(snap.head.Closing, place)
		}
	}
}
