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
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/internal/state"
	"github.com/273ebdf9/lb/supervisor"
)

// fleet is the workers of one pool: it makes a backend of each address that the supervisor has, and tells the supervisor
// what health finds.
//
// The supervisor's goroutine calls the hooks. They take fleet.mu, and never daemon.changing: who holds that may wait for
// the supervisor.
type fleet struct {
	*supervisor.Pool
	d       *daemon
	pool    *backends.Pool
	checker *health.Checker
	cfg     atomic.Pointer[supervisor.Config]

	mu       sync.Mutex
	members  map[supervisor.Backend]backends.Member
	settings map[int]state.Backend // what the operator changed, by slot

	logging sync.Mutex
	files   map[string]*logs.File // by path; guarded by logging
}

// workersConfig is how the supervisor is to run a pool's workers.
func workersConfig(cfg *config.Pool) supervisor.Config {
	c := *cfg.Workers
	if cfg.Health.Type == "notify" {
		c.Watchdog = cfg.Health.Interval
	}
	return c
}

// newFleet makes the workers of a pool, and starts none.
func (d *daemon) newFleet(cfg *config.Pool, pool *backends.Pool, checker *health.Checker, dir *supervisor.Dir) (*fleet, error) {
	c := workersConfig(cfg)
	sup, err := supervisor.NewPool(cfg.Name, c, dir)
	if err != nil {
		return nil, err
	}
	f := &fleet{
		Pool: sup, d: d, pool: pool, checker: checker,
		members: map[supervisor.Backend]backends.Member{}, settings: map[int]state.Backend{}, files: map[string]*logs.File{},
	}
	f.cfg.Store(&c)
	sup.Hooks = supervisor.Hooks{
		Added: f.added, Resumed: f.resumed, Removed: f.removed,
		Starting: func(b supervisor.Backend, reason string) {
			f.with(b, func(b *backends.Backend) { checker.Starting(b, reason) })
		},
		Ready: func(b supervisor.Backend, reason string) {
			f.with(b, func(b *backends.Backend) { checker.Ready(b, reason) })
		},
		Offline: func(b supervisor.Backend, reason string) {
			f.with(b, func(b *backends.Backend) { checker.Offline(b, reason) })
		},
		Beat: func(b supervisor.Backend) { f.with(b, checker.Beat) },
		Sessions: func(b supervisor.Backend) (n int) {
			f.with(b, func(b *backends.Backend) { n = int(b.Active()) })
			return n
		},
		Connections: func(b supervisor.Backend) (n uint64) {
			f.with(b, func(b *backends.Backend) { n = b.Counters.Connections.Load() })
			return n
		},
		Output:  f.output,
		Changed: f.changed,
	}
	return f, nil
}

// with calls do with the member that stands for b, if there is one.
func (f *fleet) with(b supervisor.Backend, do func(*backends.Backend)) {
	f.mu.Lock()
	m, ok := f.members[b]
	f.mu.Unlock()
	if ok {
		do(m.Backend)
	}
}

// added makes a new address a member of the pool, with what the operator wants of its slot.
func (f *fleet) added(b supervisor.Backend) {
	f.mu.Lock()
	defer f.mu.Unlock()
	cfg := workerBackendConfig()
	cfg.Name, cfg.Address = b.Name, b.Address
	m, err := f.pool.Add(cfg, backends.HealthStarting)
	if err != nil { // somebody has taken the name, which addBackend and the config refuse
		f.d.log.Error("a worker cannot take connections", "pool", f.Name, "slot", b.Slot, "error", err)
		return
	}
	f.members[b] = backends.Member{Backend: m, Config: cfg}
	restore(m, f.settings[b.Slot], "as its slot was")
	f.checker.AddHeld(m)
}

// resumed finds the member that stands for an address of before an upgrade.
func (f *fleet) resumed(b supervisor.Backend, s supervisor.Standing) {
	f.mu.Lock()
	if m := f.pool.Get(b.Name); m != nil && m.Address.String() == b.Address {
		cfg := workerBackendConfig()
		cfg.Name, cfg.Address = b.Name, b.Address
		f.members[b] = backends.Member{Backend: m, Config: cfg}
		f.mu.Unlock()
		return
	}
	f.mu.Unlock()
	const reason = "its backend was not carried over"
	f.added(b)
	f.with(b, func(b *backends.Backend) {
		switch s {
		case supervisor.Held:
			f.checker.Starting(b, reason)
		case supervisor.Serving:
			f.checker.Ready(b, reason)
		case supervisor.Leaving:
			f.checker.Offline(b, reason)
		}
	})
}

// settled is called when the workers of before an upgrade have been resumed: members that no worker stands for go, and the
// supervisor hears how health finds the others.
func (f *fleet) settled() {
	stands := map[*backends.Backend]bool{}
	f.mu.Lock()
	for _, m := range f.members {
		stands[m.Backend] = true
	}
	f.mu.Unlock()
	for _, b := range f.pool.Backends() {
		if !stands[b] && workerName.MatchString(b.Name) {
			f.checker.Remove(b)
			f.pool.Remove(b, "its worker was not carried over")
		}
	}
	f.tellHealth()
}

// tellHealth tells the supervisor how health finds the workers.
func (f *fleet) tellHealth() {
	f.mu.Lock()
	var members []*backends.Backend
	for _, m := range f.members {
		members = append(members, m.Backend)
	}
	f.mu.Unlock()
	for _, b := range members {
		if h := b.Health(); h != backends.HealthStarting {
			f.SetHealth(b.Name, h == backends.HealthUp, b.Reason())
		}
	}
}

// workerBackendConfig is how the backends of workers are configured.
func workerBackendConfig() backends.BackendConfig { return backends.DefaultBackendConfig() }

func (f *fleet) removed(b supervisor.Backend, reason string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	m, ok := f.members[b]
	if !ok {
		return
	}
	delete(f.members, b)
	f.checker.Remove(m.Backend)
	f.pool.Remove(m.Backend, reason) // an Arrange without its fleet may have been faster
}

// arrange has the pool arranged with the members that the workers are.
func (f *fleet) arrange(arrange func(workers []backends.Member)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var members []backends.Member
	for _, b := range f.pool.Backends() {
		for _, m := range f.members {
			if m.Backend == b {
				members = append(members, m)
			}
		}
	}
	arrange(members)
}

// slotOf is the slot whose worker b stands for.
func (f *fleet) slotOf(b *backends.Backend) (slot int, ok bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for w, m := range f.members {
		if m.Backend == b {
			return w.Slot, true
		}
	}
	return 0, false
}

// slotPrefix begins the name under which is remembered what the operator changed of a slot. It names no backend.
const slotPrefix = "slot:"

// remember keeps what the operator wants of the slots for those to come.
func (f *fleet) remember(changes *state.Changes) {
	settings := map[int]state.Backend{}
	for _, r := range changes.Backends {
		if n, ok := strings.CutPrefix(r.Name, slotPrefix); ok && r.Pool == f.Name {
			if slot, err := strconv.Atoi(n); err == nil {
				settings[slot] = r
			}
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.settings = maps.Clone(settings)
}

// healthChanged tells the supervisor of what probes and heartbeats found. What it has told health itself it knows.
func (f *fleet) healthChanged(c backends.Change) {
	if c.To == "up" || c.To == "down" {
		f.SetHealth(c.Backend, c.To == "up", c.Reason)
	}
}

// changed tells of a worker's change of state. One that has ended while it was needed is a warning.
func (f *fleet) changed(c supervisor.Change) {
	level := slog.LevelInfo
	switch {
	case c.To == "gone" && (c.From == "up" || c.From == "silent" || c.From == "starting" || c.From == "joining" || c.From == "proving"),
		c.To == "aborting", c.To == "killing", c.To == "silent":
		level = slog.LevelWarn
	}
	subject := f.Name + "/" + strconv.Itoa(c.Slot)
	text := fmt.Sprintf("worker %s → %s: %s", c.From, c.To, c.Reason)
	if c.PID > 0 {
		text = fmt.Sprintf("worker %s → %s, pid %d: %s", c.From, c.To, c.PID, c.Reason)
	}
	f.d.tell(level, api.Event{Time: c.Time, Kind: "worker", Subject: subject, Text: text},
		"worker "+c.To, "worker", subject, "pid", c.PID, "from", c.From, "to", c.To, "reason", c.Reason)
}

// output takes a line of a worker, on that worker's goroutine.
func (f *fleet) output(l supervisor.Line) {
	line := api.WorkerLine{Time: l.Time, Slot: l.Slot, PID: l.PID, Text: strings.ToValidUTF8(l.Text, "\ufffd"), Cut: l.Cut, Dropped: l.Dropped}
	f.d.admin.PublishLine(f.Name, line)
	cfg := f.cfg.Load()
	if cfg.Log == "" {
		f.logLine(&line)
		return
	}
	if err := f.fileLine(cfg, &line); err != nil {
		f.d.repeats.Log(slog.LevelError, "output "+f.Name, "cannot write what a worker said", "pool", f.Name, "slot", l.Slot, "error", err)
	}
}

func (f *fleet) logLine(l *api.WorkerLine) {
	args := []any{"worker", f.Name + "/" + strconv.Itoa(l.Slot), "pid", l.PID, "text", l.Text}
	if l.Cut {
		args = append(args, "cut", true)
	}
	if l.Dropped > 0 {
		args = append(args, "dropped_before", l.Dropped)
	}
	f.d.log.Info("worker says", args...)
}

// fileLine appends a line to the file of its slot.
func (f *fleet) fileLine(cfg *supervisor.Config, l *api.WorkerLine) error {
	path := strings.ReplaceAll(cfg.Log, "{slot}", strconv.Itoa(l.Slot))
	f.logging.Lock()
	defer f.logging.Unlock()
	file := f.files[path]
	if file == nil {
		var err error
		if file, err = logs.OpenFile(path, int64(cfg.LogMaxMiB)<<20, cfg.LogKeep); err != nil {
			return err
		}
		f.files[path] = file
	}
	var text strings.Builder
	prefix := fmt.Sprintf("%s %d %d ", l.Time.Format("2006-01-02T15:04:05.000Z07:00"), l.Slot, l.PID)
	if l.Dropped > 0 {
		fmt.Fprintf(&text, "%s(lb dropped %d lines before this one, which came too fast)\n", prefix, l.Dropped)
	}
	text.WriteString(prefix + l.Text)
	if l.Cut {
		text.WriteString(" (cut)")
	}
	text.WriteString("\n")
	return file.WriteLine([]byte(text.String()))
}

// reopenLogs opens the files anew, after logrotate(8) has renamed them.
func (f *fleet) reopenLogs() {
	f.logging.Lock()
	defer f.logging.Unlock()
	for _, file := range f.files {
		if err := file.Reopen(); err != nil {
			f.d.log.Error("cannot open a log of workers anew; it goes on in the old file", "error", err)
		}
	}
}

// closeLogs closes the files; a line that comes after that opens its own again.
func (f *fleet) closeLogs() {
	f.logging.Lock()
	defer f.logging.Unlock()
	for path, file := range f.files {
		file.Close()
		delete(f.files, path)
	}
}

// update goes on under another config. It says whether the workers are to be restarted for it.
func (f *fleet) update(cfg *config.Pool) (restart bool) {
	c := workersConfig(cfg)
	old := f.cfg.Swap(&c)
	if old.Log != c.Log || old.LogMaxMiB != c.LogMaxMiB || old.LogKeep != c.LogKeep {
		f.closeLogs()
	}
	restart, err := f.Update(c)
	if err != nil && err != supervisor.ErrStopped {
		panic("BUG: lb: a checked config of workers is refused: " + err.Error())
	}
	return restart
}

// stop ends the workers: those that have no sessions soon, and when ctx is over all of them.
func (f *fleet) stop(ctx context.Context) {
	f.Stop(ctx)
	f.closeLogs()
}

// hurried is how long the workers of an lb that is to stop at once may take to end.
const hurried = 2 * time.Second
