package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/internal/printable"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/supervisor"
)

// workerPool is the workers of one pool. It makes a backend of each address that the supervisor has, and
// reports to the supervisor what health finds.
//
// The supervisor's goroutine calls the hooks. They take workerPool.mu, and never daemon.changing: who holds
// that may wait for the supervisor.
type workerPool struct {
	*supervisor.Pool
	d       *daemon
	pool    *backends.Pool
	checker *health.Checker
	cfg     atomic.Pointer[supervisor.Config]

	mu       sync.Mutex
	members  map[supervisor.Backend]backends.Member
	settings map[int]state.Backend // what the operator changed, by slot

	logging   sync.Mutex
	files     map[string]*logs.File // by path; guarded by logging
	formatted []byte                // the lines of one write; guarded by logging
}

// workersConfig returns the supervisor's config for a pool's workers.
func workersConfig(all *config.Config, cfg *config.Pool) supervisor.Config {
	c := *cfg.Workers
	if cfg.HandsOff() {
		c.Handoff, c.HandoffAddress = cfg.Handoff, handoffAddress(all, cfg.Name)
	}
	if cfg.Health.Type == "notify" {
		c.Watchdog = cfg.Health.Interval
	}
	return c
}

// newWorkerPool returns the workers of a pool, of which none has started.
func (d *daemon) newWorkerPool(all *config.Config, cfg *config.Pool, pool *backends.Pool, checker *health.Checker, dir *supervisor.Dir) (*workerPool, error) {
	c := workersConfig(all, cfg)
	var err error
	if c.HandoffReport, err = d.checkHandoff(cfg); err != nil {
		return nil, err
	}
	sup, err := supervisor.NewPool(cfg.Name, c, dir)
	if err != nil {
		return nil, err
	}
	w := &workerPool{
		Pool: sup, d: d, pool: pool, checker: checker,
		members: map[supervisor.Backend]backends.Member{}, settings: map[int]state.Backend{}, files: map[string]*logs.File{},
	}
	w.cfg.Store(&c)
	pool.SetSeries(slotOfName)
	sup.Hooks = supervisor.Hooks{
		HandoffAddress: w.handoffAddress,
		Added:          w.added, TakenOver: w.takenOver, Probe: w.probe, Resumed: w.resumed, Removed: w.removed,
		Starting: func(b supervisor.Backend, reason string) {
			w.with(b, func(b *backends.Backend) { checker.Starting(b, reason) })
		},
		Ready: func(b supervisor.Backend, reason string) {
			w.with(b, func(b *backends.Backend) { checker.Ready(b, reason) })
		},
		Offline: w.offline,
		Beat:    func(b supervisor.Backend) { w.with(b, checker.Beat) },
		Sessions: func(b supervisor.Backend) (n int) {
			w.with(b, func(b *backends.Backend) { n = int(b.Active()) })
			return n
		},
		Connections: func(b supervisor.Backend) (n uint64) {
			w.with(b, func(b *backends.Backend) { n = b.Counters.Connections.Load() })
			return n
		},
		Output:  w.output,
		Pace:    d.outputPace.Spend,
		Changed: w.changed,
		Fault:   w.fault,
	}
	return w, nil
}

// slotOfName is the series of a worker's backend: the slot before the number of the worker.
func slotOfName(backend string) string {
	if !supervisor.IsBackendName(backend) {
		return ""
	}
	slot, _, _ := strings.Cut(backend, ".")
	return slot
}

// with calls do with the member that stands for b, if there is one.
func (w *workerPool) with(b supervisor.Backend, do func(*backends.Backend)) {
	w.mu.Lock()
	m, ok := w.members[b]
	w.mu.Unlock()
	if ok {
		do(m.Backend)
	}
}

// added makes a new address a member of the pool, with what the operator wants of its slot.
func (w *workerPool) added(b supervisor.Backend) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cfg := w.backendConfig(b)
	m, err := w.pool.Add(cfg, backends.HealthStarting)
	if err != nil { // the name is taken, which addBackend and the config refuse
		w.d.log.Error("a worker cannot take connections", "pool", w.Name, "slot", b.Slot, "error", err)
		return
	}
	w.members[b] = backends.Member{Backend: m, Config: cfg}
	w.openChannel(b, m)
	restore(m, w.settings[b.Slot], "as its slot was")
	w.checker.AddAwaiting(m)
}

// resumed finds the member that stands for an address of before an upgrade.
func (w *workerPool) resumed(b supervisor.Backend, s supervisor.Standing) {
	w.mu.Lock()
	if m := w.pool.Get(b.Name); m != nil && m.Address.String() == b.Address {
		cfg := w.backendConfig(b)
		w.members[b] = backends.Member{Backend: m, Config: cfg}
		w.openChannel(b, m)
		w.mu.Unlock()
		return
	}
	w.mu.Unlock()
	const reason = "its backend was not carried over"
	w.added(b)
	w.with(b, func(b *backends.Backend) {
		switch s {
		case supervisor.Pending:
			w.checker.Starting(b, reason)
		case supervisor.Serving:
			w.checker.Ready(b, reason)
		case supervisor.Leaving:
			w.checker.Offline(b, reason)
		}
	})
}

// settled is called when the workers of before an upgrade have been resumed: members that no worker stands
// for go, and the supervisor hears how health finds the others.
func (w *workerPool) settled() {
	stands := map[*backends.Backend]bool{}
	w.mu.Lock()
	for _, m := range w.members {
		stands[m.Backend] = true
	}
	w.mu.Unlock()
	for _, b := range w.pool.Backends() {
		if !stands[b] && supervisor.IsBackendName(b.Name) {
			w.checker.Remove(b)
			w.pool.Remove(b, "its worker was not carried over")
		}
	}
	w.reportHealth()
}

// reportHealth passes the health of the workers' backends on to the supervisor.
func (w *workerPool) reportHealth() {
	w.mu.Lock()
	var members []*backends.Backend
	for _, m := range w.members {
		members = append(members, m.Backend)
	}
	w.mu.Unlock()
	for _, b := range members {
		if h := b.Health(); h != backends.HealthStarting {
			w.SetHealth(b.Name, h == backends.HealthUp, b.Reason())
		}
	}
}

// backendConfig is how the backend of a worker is configured. Its socket belongs to the user whom the worker
// runs as.
func (w *workerPool) backendConfig(b supervisor.Backend) backends.BackendConfig {
	cfg := workerBackendConfig()
	cfg.Name, cfg.Address, cfg.Owner = b.Name, b.Address, w.cfg.Load().User
	return cfg
}

// workerBackendConfig is how the backends of workers are configured.
func workerBackendConfig() backends.BackendConfig { return backends.DefaultBackendConfig() }

func (w *workerPool) removed(b supervisor.Backend, reason string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.members[b]
	if !ok {
		return
	}
	delete(w.members, b)
	w.d.proxy.CloseChannel(m.Backend)
	w.checker.Remove(m.Backend)
	w.pool.Remove(m.Backend, reason) // a reload that takes the pool's workers away may have been faster
}

// replace has the pool arranged with the members that the workers are.
func (w *workerPool) replaceMembers(replace func(workers []backends.Member)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	var members []backends.Member
	for _, b := range w.pool.Backends() {
		for _, m := range w.members {
			if m.Backend == b {
				members = append(members, m)
			}
		}
	}
	replace(members)
}

// slotOf returns the slot whose worker b stands for.
func (w *workerPool) slotOf(b *backends.Backend) (slot int, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for worker, m := range w.members {
		if m.Backend == b {
			return worker.Slot, true
		}
	}
	return 0, false
}

// slotPrefix begins the name under which is remembered what the operator changed of a slot. It names no
// backend.
const slotPrefix = "slot:"

// remember keeps what the operator wants of the slots for those to come.
func (w *workerPool) remember(changes *state.Changes) {
	settings := map[int]state.Backend{}
	for _, r := range changes.Backends {
		if n, ok := strings.CutPrefix(r.Name, slotPrefix); ok && r.Pool == w.Name {
			if slot, err := strconv.Atoi(n); err == nil {
				settings[slot] = r
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.settings = maps.Clone(settings)
}

// healthChanged passes on to the supervisor what probes and heartbeats found.
func (w *workerPool) healthChanged(c backends.Change) {
	if c.To == "up" || c.To == "down" {
		w.SetHealth(c.Backend, c.To == "up", c.Reason)
	}
}

// changed reports a worker's change of state. The end of one that was needed is a warning.
func (w *workerPool) changed(c supervisor.Change) {
	level := slog.LevelInfo
	switch {
	case c.To == "gone" && (c.From == "up" || c.From == "silent" || c.From == "starting" || c.From == "joining" || c.From == "proving"),
		c.To == "aborting", c.To == "killing", c.To == "silent":
		level = slog.LevelWarn
	}
	subject := w.Name + "/" + strconv.Itoa(c.Slot)
	text := fmt.Sprintf("worker %s → %s: %s", c.From, c.To, c.Reason)
	if c.PID > 0 {
		text = fmt.Sprintf("worker %s → %s, pid %d: %s", c.From, c.To, c.PID, c.Reason)
	}
	w.d.report(level, api.Event{Time: c.Time, Kind: "worker", Subject: subject, Text: text},
		"worker "+c.To, "worker", subject, "pid", c.PID, "from", c.From, "to", c.To, "reason", c.Reason)
}

// output takes lines of a worker, on that worker's goroutine, and returns how many it had to drop.
func (w *workerPool) output(lines []supervisor.Line) (dropped uint64) {
	all := make([]api.WorkerLine, len(lines))
	for i, l := range lines {
		all[i] = api.WorkerLine{Time: l.Time, Slot: l.Slot, PID: l.PID, Text: strings.ToValidUTF8(l.Text, "\ufffd"), Cut: l.Cut}
	}
	w.d.admin.PublishLines(w.Name, all)
	cfg := w.cfg.Load()
	if cfg.Log == "" {
		for i := range all {
			w.logLine(&all[i])
		}
		return 0
	}
	dropped, err := w.fileLines(cfg, lines)
	if err != nil {
		w.d.repeats.Log(slog.LevelError, "output "+w.Name, "cannot write what a worker said", "pool", w.Name, "slot", lines[0].Slot, "error", err)
	}
	return dropped
}

func (w *workerPool) logLine(l *api.WorkerLine) {
	args := []any{"worker", w.Name + "/" + strconv.Itoa(l.Slot), "pid", l.PID, "text", l.Text}
	if l.Cut {
		args = append(args, "cut", true)
	}
	w.d.log.Info(logs.WorkerSays, args...)
}

// fileLines appends lines of one worker to the file of its slot, and returns how many it had to drop.
func (w *workerPool) fileLines(cfg *supervisor.Config, lines []supervisor.Line) (dropped uint64, err error) {
	path := strings.ReplaceAll(cfg.Log, "{slot}", strconv.Itoa(lines[0].Slot))
	w.logging.Lock()
	defer w.logging.Unlock()
	file := w.files[path]
	if file == nil {
		if file, err = logs.OpenFile(path, int64(cfg.LogMaxMiB)<<20, cfg.LogKeep); err != nil {
			return uint64(len(lines)), err
		}
		w.files[path] = file
	}
	prefix := fmt.Sprintf("%s %d %d ", lines[0].Time.Format("2006-01-02T15:04:05.000Z07:00"), lines[0].Slot, lines[0].PID)
	text := w.formatted[:0]
	for i := range lines {
		text = append(append(text, prefix...), printable.Line(lines[i].Text)...)
		if lines[i].Cut {
			text = append(text, " (cut)"...)
		}
		text = append(text, '\n')
	}
	w.formatted = text
	return file.WriteLines(text)
}

// reopenLogs reopens the files, after logrotate(8) has renamed them.
func (w *workerPool) reopenLogs() {
	w.logging.Lock()
	defer w.logging.Unlock()
	for _, file := range w.files {
		if err := file.Reopen(); err != nil {
			w.d.log.Error("cannot reopen a log of workers; lb goes on in the old file", "error", err)
		}
	}
}

// closeLogs closes the files; a line that comes after that opens its own again.
func (w *workerPool) closeLogs() {
	w.logging.Lock()
	defer w.logging.Unlock()
	for path, file := range w.files {
		file.Close()
		delete(w.files, path)
	}
}

// update changes the workers' config. It reports whether they are to be restarted for it.
func (w *workerPool) update(all *config.Config, cfg *config.Pool) (restart bool) {
	c := workersConfig(all, cfg)
	c.HandoffReport = w.cfg.Load().HandoffReport
	old := w.cfg.Swap(&c)
	if old.Log != c.Log || old.LogMaxMiB != c.LogMaxMiB || old.LogKeep != c.LogKeep {
		w.closeLogs()
	}
	restart, err := w.Update(c)
	if err != nil && err != supervisor.ErrStopped {
		panic("BUG: lb: a checked config of workers is refused: " + err.Error())
	}
	return restart
}

// stop ends the workers: those without sessions soon, and all of them once ctx is done.
func (w *workerPool) stop(ctx context.Context) {
	w.Stop(ctx)
	w.closeLogs()
}
