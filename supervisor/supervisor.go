// Package supervisor starts, watches, restarts and stops worker processes, and receives their sd_notify
// messages.
//
// A [Pool] is the workers of one pool, in slots that keep their numbers. Each process of a slot is a worker;
// what can happen to it is one table (machine.go, docs/workers-states.md). A slot's restart goes through two
// workers: the next one proves itself while the old one serves, and takes over then.
//
// Ownership: one goroutine a pool owns all of its state and runs what is posted to its inbox: timers, exits,
// messages of workers, commands. Each worker has a goroutine that waits for its end, one that reads its
// output, and one that probes it until it is ready; the notify socket has one. Stop waits for all of them.
// Facts flow up through [Hooks], called on the pool's goroutine, in order.
//
// The package never carries a client's byte, never decides on its own that a worker is unhealthy, and logs
// nothing.
package supervisor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/sdnotify"
)

// Errors.
var (
	ErrStopped     = errors.New("the workers are stopped")
	ErrBusy        = errors.New("a restart of this pool is under way")
	ErrNoSlot      = errors.New("no such slot")
	ErrSlotStopped = errors.New("the slot was stopped by hand; start it")
	ErrNothingDone = errors.New("nothing to take back: all workers are of what worked before the restart that failed")
	ErrNoPrevious  = errors.New("nothing to roll back to: no restart has changed the command, the environment or the directory")
	ErrRestart     = errors.New("the restart failed")
	ErrState       = errors.New("this lb cannot read the saved state of the workers")
	ErrDirInUse    = errors.New("another lb uses this run-time directory")
)

// Pool is the workers of one pool. Its methods are safe for concurrent use after Start.
type Pool struct {
	// Name is the pool's name in the config.
	Name string
	// Hooks are set before Start.
	Hooks Hooks
	// Shim is the command that a worker is started through; its program must call Exec with the arguments
	// after it. Default: this program, with ExecArg. Set it before Start.
	Shim []string
	// Output counts.
	lines, dropped atomic.Uint64

	dir    *Dir
	home   atomic.Pointer[os.Root] // the pool's directory in dir: the sockets; only lb can change its entries
	boot   string                  // of the host, see record
	host   host
	random func() float64 // 0 <= x < 1
	// how long a worker that is ready must live before it may replace another; trialTime but in tests
	trial time.Duration
	every time.Duration // the time between two looks of tick; lookEvery but in tests

	wake     chan struct{} // holds one: the inbox has something
	ended    chan struct{} // the pool's goroutine has ended
	running  sync.WaitGroup
	round    context.Context // done when the goroutines of workers shall end; another one after a freeze
	endRound context.CancelFunc
	receiver *sdnotify.Receiver
	pids     atomic.Pointer[map[int]*worker] // leaders of process groups; for the notify socket's goroutine
	status   atomic.Pointer[Status]

	prepared bool      // the file system is; before the pool's goroutine runs
	frozen   *frozen   // what TakeOver took; nil: nothing, and after Start
	thaw     chan bool // true: a frozen pool goes on; false: it leaves its workers to another one

	mu     sync.Mutex
	inbox  []func()
	closed bool // nothing is taken any more

	// Owned by the pool's goroutine.
	cfg         Config
	wanted      *Release // of cfg
	release     *Release // what new slots run
	good        *Release // what last worked, its directory followed
	previous    *Release // what worked before that
	failed      bool     // the last restart to what the config says did not complete
	slots       []*slot
	workers     []*worker     // all that are not gone
	serial      uint64        // of the last endpoint
	rollout     *rollout      // the restart under way; nil if none
	interrupted *savedRollout // by the end of an lb before, until ResumeRestart
	remembered  func()        // fills the slots, without a record; nil: nothing is remembered
	recycling   *attempt
	recycleAt   time.Time     // not before
	used        map[int]Usage // of the workers, by pid, as measured
	measured    time.Time
	measuring   bool
	waiters     []*waiter
	looking     bool      // a look at draining workers is due
	ending      bool      // nothing is started any more
	freezing    *freezing // nil: nobody asks for one
	ticker      *time.Timer
	recorded    string            // what the record says
	faults      map[string]string // what cannot be done now, and why
	notifyFile  fileAt
	changes     uint64 // of workers' states and of faults, so far
	quiet       bool   // the last event was a tick that changed nothing
	nextSlot    int    // that is looked at first for recycling
}

// host is how a pool acts on the system. Tests replace it.
type host struct {
	open  func(s *slot, r *Release) (*endpoint, error)
	close func(e *endpoint)
	spawn func(w *worker) (*process, error)
	// waits until w accepts: nil; ctx's error; or why it never will
	probe func(w *worker) func(ctx context.Context) error
	owns  func(w *worker) error // nil: what listens at w's {port} is w
	sweep func()                // removes files of workers that are no more
	// makes the pool's directory and notify socket again, if they are gone
	mend func() error
	// why nobody can connect to e any more; empty: they can
	lost   func(e *endpoint, serves bool) string
	record func(text string) error
	usage  func(pids []int) map[int]Usage
}

// NewPool makes the pool's workers, and starts none. The error is cfg's, as ValidateText has it.
func NewPool(name string, cfg Config, dir *Dir) (*Pool, error) {
	if err := cfg.ValidateText(); err != nil {
		return nil, fmt.Errorf("cannot run workers of pool %q: %w", name, err)
	}
	p := &Pool{
		Name: name, Shim: []string{"/proc/self/exe", ExecArg}, dir: dir, boot: bootID(), cfg: cfg, faults: map[string]string{}, random: rand.Float64,
		wake: make(chan struct{}, 1), ended: make(chan struct{}), thaw: make(chan bool), trial: trialTime, every: lookEvery,
	}
	p.host = host{open: p.openEndpoint, close: p.closeEndpoint, spawn: p.spawn, probe: p.probeEndpoint, mend: p.mend, sweep: p.sweep, lost: p.lost,
		owns: func(w *worker) error { return foreignListener(w.end.port, w) }, record: p.writeRecord, usage: Usages}
	p.round, p.endRound = context.WithCancel(context.Background())
	p.wanted = cfg.release()
	p.release = p.wanted
	p.pids.Store(&map[int]*worker{})
	p.status.Store(&Status{})
	return p, nil
}

// notifyName is the notify socket's in the pool's directory.
const notifyName = "notify"

// folder returns the path of the pool's directory, for the workers. lb itself goes through home.
func (p *Pool) folder() string { return filepath.Join(p.dir.path, p.Name) }

// Prepare does what of Start can fail. The caller then owes a Start, or a Discard.
func (p *Pool) Prepare() error {
	if err := p.prepare(); err != nil {
		return fmt.Errorf("cannot start workers of pool %q: %w", p.Name, err)
	}
	p.prepared = true
	return nil
}

// Discard undoes Prepare, instead of Start.
func (p *Pool) Discard() {
	p.finish()
	if p.frozen != nil {
		p.frozen.drop()
		if p.home.Load() != nil {
			p.home.Load().Close()
		}
		return
	}
	if p.home.Load() != nil {
		p.removeEntry(notifyName)
		p.dir.entries().Remove(p.Name) // not empty: it has sockets of workers of an earlier lb
		p.home.Load().Close()
	}
}

// Start makes the pool's directory and notify socket, goes on with the workers that TakeOver took or that an
// lb that was killed has left, and starts the others. It does not wait until they are ready. After a Prepare
// it cannot fail.
func (p *Pool) Start() error {
	if !p.prepared {
		if err := p.Prepare(); err != nil {
			return err
		}
	}
	if p.frozen != nil {
		p.begin(p.frozen.state, false)
		p.frozen.drop()
		p.frozen = nil
	} else {
		p.begin(p.readRecord(), true)
	}
	p.running.Go(func() { p.receiver.Run() }) // not sooner: it would know nobody
	return nil
}

// prepare makes the directory and the notify socket that the workers need.
func (p *Pool) prepare() error {
	id, err := p.cfg.lookUpIdentity()
	if err != nil && p.frozen == nil { // workers that run need no names
		return err
	}
	if id.set && p.frozen == nil && hidesOthers() {
		return errors.New("user: /proc does not show the processes of other users (hidepid of proc(5), ProtectProc= of systemd): " +
			"lb could not find its workers again; mount it without, or give lb CAP_SYS_PTRACE")
	}
	if err := CheckRunDir(p.dir.path, p.Name); err != nil && p.frozen == nil {
		return err
	}
	home, err := p.dir.makeFolder(p.Name, id)
	if err != nil && p.frozen != nil {
		home, err = p.frozen.openHome(p.homeFileName())
	}
	if err != nil {
		return err
	}
	p.home.Store(home)
	path := filepath.Join(p.folder(), notifyName)
	carried := -1
	if p.frozen != nil {
		if err := p.frozen.copyFiles(); err != nil {
			p.home.Load().Close()
			return err
		}
		carried = p.frozen.take(p.notifyFileName())
	}
	if carried >= 0 {
		p.receiver, err = sdnotify.FromFile(path, os.NewFile(uintptr(carried), path))
	} else {
		p.removeEntry(notifyName)
		p.receiver, err = sdnotify.Listen(path, func() error { return p.ownNotify(id) })
	}
	if err != nil {
		p.frozen.drop()
		p.home.Load().Close()
		return err
	}
	p.receiver.Notify = p.notified
	p.receiver.Fault = func(err error) {
		if p.Hooks.Fault != nil {
			p.Hooks.Fault("notify socket", err)
		}
	}
	return nil
}

// Remember has the pool start with another number of workers than the config's, unless count is negative, and
// without those of the stopped slots. What an lb that was killed has recorded wins. Call it before Start.
func (p *Pool) Remember(count int, stopped []int) {
	if count < 0 {
		count = p.cfg.EffectiveCount()
	}
	p.remembered = func() {
		p.grow(min(count, maxCount))
		for _, n := range stopped {
			if n >= 0 && n < len(p.slots) {
				p.slots[n].wanted, p.slots[n].stopped = false, true
			}
		}
	}
}

// begin fills the slots, with what was saved first, and runs the pool's goroutine. killed is as in restore;
// saved may be nil.
func (p *Pool) begin(saved *snapshot, killed bool) {
	reason := "lb starts"
	switch {
	case saved == nil && p.remembered != nil:
		p.remembered()
	case saved == nil:
		p.grow(p.cfg.EffectiveCount())
	default:
		p.restore(saved, killed)
		if !killed {
			reason = "the count has changed"
		}
	}
	p.host.sweep()
	for _, s := range p.slots {
		if s.wanted && s.current == nil && !p.ending {
			p.plan(s, 0, nil, reason)
		}
	}
	p.schedule()
	p.publish()
	go p.run()
}

// Stop ends all workers: each takes nothing new, finishes its connections, gets its stop signal, and SIGKILL
// if it does not obey. Call it after Start only. When ctx is done it kills them all. It returns when none is
// left, and the pool's files are gone.
func (p *Pool) Stop(ctx context.Context) {
	all := func(e event, reason string) {
		for _, w := range append([]*worker(nil), p.workers...) {
			p.fire(w, e, reason)
		}
	}
	err := p.await(ctx, func() error {
		p.ending = true
		for _, s := range p.slots {
			s.wanted = false
		}
		all(retire, "lb stops")
		return nil
	}, func() (bool, error) { return len(p.workers) == 0, nil }, func() { all(kill, "lb stops at once") })
	if err != nil {
		<-p.ended
	}
	<-p.ended
	p.finish()
	if p.home.Load() != nil {
		p.removeEntry(notifyName)
		p.sweep()
		p.dir.entries().Remove(p.recordName())
		p.dir.entries().Remove(p.Name)
		p.home.Load().Close()
	}
}

// finish ends every goroutine of the pool, and lets go of the workers that are left.
func (p *Pool) finish() {
	p.endRound()
	if p.receiver != nil {
		p.receiver.Close()
	}
	p.running.Wait()
	for _, w := range p.workers {
		w.stopTimer()
		w.stopProbe()
		if w.process != nil && w.process.close != nil {
			w.process.close()
		}
		if w.out != nil {
			w.out.file.Close()
		}
		if w.end != nil && w.end.fd >= 0 {
			unix.Close(w.end.fd)
			w.end.fd = -1
		}
		if w.end != nil && w.end.handoff != "" && w.end.front >= 0 {
			unix.Close(w.end.front)
			w.end.front = -1
		}
	}
}
