package supervisor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rig is a pool over a host that is played, for a fake clock. It runs within a synctest bubble.
type rig struct {
	t        *testing.T
	pool     *Pool
	pid      int
	behave   func(slot int, r *Release) behaviour // how the next process behaves
	plays    map[*endpoint]behaviour
	live     map[int]*worker
	spawned  int
	log      []string       // of hooks: "ready 0.1"
	serving  map[string]int // backends that take connections, with their slot
	sessions map[string]int
	conns    map[string]uint64
	signals  []string
	lost     string // what host.lost returns
	leastUp  int    // fewest serving at once since it was set
}

type behaviour struct {
	readyAfter time.Duration // 0: at once; below 0: never
	exitAfter  time.Duration // 0: not by itself
	deaf       bool          // only SIGKILL ends it
	cannot     bool          // cannot be started
	unhandled  bool          // has no handler for drain_signal
}

func newRig(t *testing.T, change func(c *Config), behave ...func(slot int, r *Release) behaviour) *rig {
	t.Helper()
	cfg := DefaultConfig()
	cfg.Command, cfg.Count = []string{"app"}, 2
	if change != nil {
		change(&cfg)
	}
	p, err := NewPool("app", cfg, &Dir{path: "/nonexistent"})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{
		t: t, pool: p, pid: 100, plays: map[*endpoint]behaviour{}, live: map[int]*worker{}, serving: map[string]int{},
		sessions: map[string]int{}, conns: map[string]uint64{}, behave: func(int, *Release) behaviour { return behaviour{} },
	}
	if len(behave) > 0 {
		r.behave = behave[0]
	}
	p.random = func() float64 { return 0.5 }
	p.host = host{
		open: func(s *slot, _ *Release) (*endpoint, error) {
			p.serial++
			name := fmt.Sprintf("%d.%d", s.number, p.serial)
			return &endpoint{slot: s.number, path: "/run/" + name, fd: 1000, backend: Backend{Pool: "app", Slot: s.number, Name: name}}, nil
		},
		close:  func(e *endpoint) { delete(r.plays, e) },
		spawn:  r.spawn,
		record: func(string) error { return nil },
		sweep:  func() {},
		mend:   func() error { return nil },
		lost:   func(*endpoint, bool) string { return r.lost },
		owns:   func(*worker) error { return nil },
	}
	p.host.probe = func(w *worker) func(context.Context) error {
		d := r.plays[w.end].readyAfter
		return func(ctx context.Context) error {
			if d < 0 {
				<-ctx.Done()
				return ctx.Err()
			}
			select {
			case <-time.After(d):
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	note := func(what string) func(Backend, string) {
		return func(b Backend, _ string) { r.log = append(r.log, what+" "+b.Name) }
	}
	p.Hooks = Hooks{
		Added:    func(b Backend) { r.log = append(r.log, "added "+b.Name) },
		Starting: note("starting"),
		Ready: func(b Backend, reason string) {
			note("ready")(b, reason)
			r.serving[b.Name] = b.Slot
		},
		Offline: func(b Backend, reason string) {
			note("offline")(b, reason)
			if _, ok := r.serving[b.Name]; !ok {
				t.Errorf("offline %s, which does not serve", b.Name)
			}
			delete(r.serving, b.Name)
			r.leastUp = min(r.leastUp, len(r.serving))
		},
		Removed:     note("removed"),
		Sessions:    func(b Backend) int { return r.sessions[b.Name] },
		Connections: func(b Backend) uint64 { return r.conns[b.Name] },
	}
	p.begin(nil, true)
	return r
}

func (r *rig) spawn(w *worker) (*process, error) {
	b := r.behave(w.slot.number, w.release)
	r.plays[w.end] = b
	r.spawned++
	if b.cannot {
		return nil, errors.New("cannot start worker: no such file")
	}
	r.pid++
	pid := r.pid
	r.live[pid] = w
	exit := func(reason string) {
		r.pool.post(func() {
			if r.live[pid] == w {
				delete(r.live, pid)
				r.pool.fire(w, exited, reason)
			}
		})
	}
	if b.exitAfter > 0 {
		time.AfterFunc(b.exitAfter, func() { exit("exit status 1") })
	}
	return &process{pid: pid, start: uint64(pid), release: func() {}, signal: func(sig unix.Signal, group bool) {
		r.signals = append(r.signals, fmt.Sprintf("%s %d", unix.SignalName(sig), pid))
		if sig == unix.SIGKILL || !b.deaf && (sig == unix.SIGTERM || sig == unix.SIGABRT) {
			exit("signal: " + unix.SignalName(sig))
		}
	}, announce: func(sig unix.Signal) error {
		if b.unhandled {
			return errUnhandled
		}
		r.signals = append(r.signals, fmt.Sprintf("%s %d", unix.SignalName(sig), pid))
		return nil
	}}, nil
}

// do runs f on the pool's goroutine.
func (r *rig) do(f func()) {
	r.t.Helper()
	if err := r.pool.await(context.Background(), func() error { f(); return nil }, now, nil); err != nil {
		r.t.Fatal(err)
	}
}

// die ends the current worker of a slot, as a crash would.
func (r *rig) die(slot int) {
	r.t.Helper()
	r.do(func() {
		w := r.pool.slots[slot].current
		delete(r.live, w.pid())
		r.pool.fire(w, exited, "exit status 1")
	})
}

func (r *rig) states() string {
	var all []string
	for _, s := range r.pool.Status().Slots {
		all = append(all, s.State)
	}
	return strings.Join(all, " ")
}

func (r *rig) want(states string) {
	r.t.Helper()
	if got := r.states(); got != states {
		r.t.Errorf("got %s; want %s", got, states)
	}
}

// pids are those of the slots' workers.
func (r *rig) pids() []int {
	var all []int
	for _, s := range r.pool.Status().Slots {
		all = append(all, s.PID)
	}
	return all
}

// stop ends the pool, and looks for what it left.
func (r *rig) stop() {
	r.t.Helper()
	r.pool.Stop(context.Background())
	if len(r.live) != 0 || len(r.plays) != 0 || len(r.serving) != 0 {
		r.t.Errorf("left: processes %v, addresses %d, serving %v", r.live, len(r.plays), r.serving)
	}
	added, removed := 0, 0
	for _, line := range r.log {
		if strings.HasPrefix(line, "added") {
			added++
		}
		if strings.HasPrefix(line, "removed") {
			removed++
		}
	}
	if added != removed {
		r.t.Errorf("%d backends were added and %d removed", added, removed)
	}
}

func (r *rig) signalled(s string) (yes bool) {
	r.t.Helper()
	r.do(func() { yes = slices.Contains(r.signals, s) })
	return yes
}

// alive is how many processes there are.
func (r *rig) alive() (n int) {
	r.t.Helper()
	r.do(func() { n = len(r.live) })
	return n
}

// started is how many there have been.
func (r *rig) started() (n int) {
	r.t.Helper()
	r.do(func() { n = r.spawned })
	return n
}

// least is the fewest that served at once.
func (r *rig) least() (n int) {
	r.t.Helper()
	r.do(func() { n = r.leastUp })
	return n
}
