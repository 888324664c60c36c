package supervisor

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/eventually"
)

// Whatever somebody does to the sockets of the workers, a moment later there is a worker that can be reached.
func TestHeal_SlotHasAWorkerThatCanBeReached(t *testing.T) {
	t.Parallel()
	f := func(words []string, hurt func(s *stage, path string) error) {
		t.Helper()
		cfg := workerConfig(words...)
		cfg.Count = 1
		s := start(t, open(t), cfg)
		s.until("ready", allUp)
		before := s.pool.Status().Slots[0]
		if err := hurt(s, strings.TrimPrefix(before.Backend.Address, "unix:")); err != nil {
			t.Fatal(err)
		}
		s.until("another one is up", func(st *Status) bool { return allUp(st) && st.Slots[0].PID != before.PID })
		after := s.pool.Status().Slots[0]
		if got := get(t, after.Backend, "/"); !strings.HasPrefix(got, strconv.Itoa(after.PID)) {
			t.Errorf("got %q; want an answer of pid %d", got, after.PID)
		}
		if after.Backend == before.Backend {
			t.Errorf("got the address %v again; want another one", after.Backend)
		}
		// The one before finishes what it has, and ends.
		s.until("the one before is gone", func(st *Status) bool { return len(st.Retired) == 0 })
		s.stop()
	}
	remove := func(_ *stage, path string) error { return os.Remove(path) }
	f(nil, remove)
	f([]string{"{socket}"}, remove)
	f(nil, func(s *stage, path string) error { // another one in its place
		if err := os.Remove(path); err != nil {
			return err
		}
		return unix.Mknod(path, unix.S_IFSOCK|0o600, 0)
	})
	f(nil, func(s *stage, _ string) error { // as a worker may do to all that share it
		return s.pool.await(t.Context(), func() error { return unix.Shutdown(s.pool.slots[0].current.end.fd, unix.SHUT_RDWR) }, now, nil)
	})
	f(nil, func(s *stage, _ string) error { return os.RemoveAll(s.pool.folder()) })
	f(nil, func(s *stage, _ string) error { return os.RemoveAll(s.dir.Path()) })
}

// The next worker of a slot is not handed a socket that the one before has made useless.
func TestHeal_CrashHandsOnNoUselessSocket(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	cfg.Count = 1
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	w := s.pool.Status().Slots[0]
	err := s.pool.await(t.Context(), func() error {
		return errors.Join(unix.Shutdown(s.pool.slots[0].current.end.fd, unix.SHUT_RDWR), unix.Kill(w.PID, unix.SIGKILL))
	}, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	s.until("the next one is up", func(st *Status) bool { return allUp(st) && st.Slots[0].PID != w.PID })
	if got := s.pool.Status().Slots[0]; got.Deaths != 1 {
		t.Errorf("got %d deaths; want 1", got.Deaths)
	}
}

func TestHeal_NotifySocketIsMadeAgain(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	cfg.Count = 1
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	path := filepath.Join(s.pool.folder(), notifyName)
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the notify socket is there", func() bool { _, err := os.Lstat(path); return err == nil })
	get(t, s.pool.Status().Slots[0].Backend, "/beat?text=again")
	s.until("its message comes", func(st *Status) bool { return st.Slots[0].Text == "again" })
}

// After a failure to write the record it is written when there is room again, and both are told.
func TestRecord_IsTriedAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		time.Sleep(5 * time.Second)
		var faults []string
		var last string
		broken := errors.New("no space")
		r.do(func() {
			r.pool.Hooks.Fault = func(what string, err error) {
				if err != nil {
					what += ": " + err.Error()
				}
				faults = append(faults, what)
			}
			r.pool.host.record = func(text string) error { last = text; return broken }
		})
		r.die(0)
		time.Sleep(5 * time.Second)
		if got := r.pool.Status().RecordError; got != "no space" {
			t.Errorf("got %q; want the reason", got)
		}
		r.do(func() { broken = nil })
		time.Sleep(1100 * time.Millisecond) // nothing else happens
		if got := r.pool.Status().RecordError; got != "" || !strings.Contains(last, `"pid":103`) {
			t.Errorf("got %q, %s; want it written", got, last)
		}
		if got := strings.Join(faults, ", "); got != "record: no space, record" {
			t.Errorf("got %q; want the fault once, and its end", got)
		}
		r.stop()
	})
}

// Each of many slots that are due again and again has its turn.
func TestRecycle_TakesAllSlotsInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) {
			c.Count = 4
			c.Recycle = RecycleConfig{Age: time.Second}
		})
		time.Sleep(time.Minute)
		for _, s := range r.pool.Status().Slots {
			if s.Starts < 4 {
				t.Errorf("slot %d: got %d workers in a minute; want its share", s.Slot, s.Starts)
			}
		}
		r.stop()
	})
}

// A wrapper that does not pass the signal on, and does not wait, costs its program nothing of its time to
// end.
func TestStop_ReachesTheProgramBehindAWrapper(t *testing.T) {
	t.Parallel()
	f := func(script string) {
		t.Helper()
		cfg := workerConfig()
		cfg.Count, cfg.Ready = 1, "notify"
		app := `trap 'sleep .3; echo flushed; exit 0' TERM; echo begun; while :; do sleep .01; done`
		cfg.Command = []string{"/bin/sh", "-c", script, "wrapper", app}
		s := start(t, open(t), cfg)
		s.untilSaid("begun")
		s.stop()
		if got := s.texts(); got[len(got)-1] != "flushed" {
			t.Errorf("%s: got %q; want that it ended in peace", script, got)
		}
	}
	f(`sh -c "$1"; true`)
	f(`sh -c "$1" & wait`)
	f(`exec sh -c "$1"`)
}
