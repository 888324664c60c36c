package supervisor

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestRestart_SlotThatIsStoppedMeanwhileIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 3 }, func(int, *Release) behaviour { return behaviour{readyAfter: time.Second} })
		time.Sleep(5 * time.Second)
		before := r.pids()
		o := DefaultRestartOptions()
		started := make(chan struct{})
		o.Progress = func(p Progress) {
			if p.Step == "started" && p.Slot == 1 {
				close(started)
			}
		}
		ended := make(chan error, 1)
		go func() { ended <- r.pool.Restart(context.Background(), o) }()
		<-started
		if err := r.pool.StopSlot(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; err != nil {
			t.Errorf("restart: got %v; want it done for the slots that are left", err)
		}
		if after := r.pids(); after[0] == before[0] || after[2] == before[2] {
			t.Errorf("got pids %v of %v; want 0 and 2 replaced", after, before)
		}
		r.stop()
	})
}

func TestRestart_ThatFailsHalfWayPromisesNoWayBackWhereThereIsNone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		bad := false
		r := newRig(t, func(c *Config) { c.Count = 3 }, func(slot int, _ *Release) behaviour {
			if bad && slot == 1 {
				return behaviour{exitAfter: 10 * time.Millisecond, readyAfter: -1}
			}
			return behaviour{}
		})
		time.Sleep(5 * time.Second)
		r.do(func() { bad = true })
		err := r.pool.Restart(context.Background(), DefaultRestartOptions()) // to the same command
		if !errors.Is(err, ErrRestart) || strings.Contains(err.Error(), "rollback") {
			t.Errorf("restart: got %v; want ErrRestart, and no rollback promised", err)
		}
		if err := r.pool.Rollback(context.Background(), DefaultRestartOptions()); !errors.Is(err, ErrNothingDone) {
			t.Errorf("rollback: got %v; want ErrNothingDone", err)
		}
		r.stop()
	})
}

func TestScale_ThatFailsLeavesTheCountAsItWas(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(slot int, _ *Release) behaviour {
			switch slot {
			case 3:
				return behaviour{exitAfter: 10 * time.Millisecond, readyAfter: -1}
			case 4:
				return behaviour{readyAfter: time.Hour}
			}
			return behaviour{}
		})
		time.Sleep(time.Second)
		before := r.pids()
		if err := r.pool.Scale(context.Background(), 4); err == nil || !strings.Contains(err.Error(), "has 2 workers as before") {
			t.Errorf("scale to 4, of which one dies: got %v; want an error that says what there is", err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if after := r.pids(); len(r.pool.Status().Slots) != 2 || !slices.Equal(after, before) || r.alive() != 2 {
			t.Errorf("after it: got %v, %d alive; want %v alone", after, r.alive(), before)
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		r.do(func() { r.behave = func(int, *Release) behaviour { return behaviour{readyAfter: 10 * time.Second} } })
		if err := r.pool.Scale(ctx, 3); err == nil {
			t.Error("scale that is cut off: got no error")
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := len(r.pool.Status().Slots); n != 2 || r.alive() != 2 {
			t.Errorf("after one that was cut off: got %d slots, %d alive; want 2", n, r.alive())
		}
		r.stop()
	})
}

// interrupt begins a restart, and returns the record that an lb leaves which is killed at the given step.
func interrupt(t *testing.T, r *rig, begin func(context.Context, RestartOptions) error, step string, slot int) *snapshot {
	t.Helper()
	var text string
	r.do(func() { r.pool.host.record = func(s string) error { text = s; return nil } })
	o := DefaultRestartOptions()
	o.Surge = 2
	reached := make(chan struct{})
	o.Progress = func(p Progress) {
		if p.Step == step && p.Slot == slot {
			close(reached)
		}
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- begin(ctx, o) }()
	<-reached
	r.do(func() {})
	rec, err := parseSnapshot([]byte(text), r.pool.Name, oldestRecord)
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	<-ended
	return rec
}

func TestRestart_ThatTheEndOfLBInterruptsIsResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 4 }, func(int, *Release) behaviour { return behaviour{readyAfter: time.Second} })
		time.Sleep(5 * time.Second)
		cfg := r.pool.cfg
		cfg.Command = []string{"app", "v2"}
		if restart, err := r.pool.Update(cfg); err != nil || !restart {
			t.Fatalf("update: got %v, %v; want a restart", restart, err)
		}
		rec := interrupt(t, r, r.pool.Restart, "replaced", 0)
		if rec.Rollout == nil || !slices.Equal(rec.Rollout.Left, []int{1, 2, 3}) || !rec.Rollout.Wanted || rec.Rollout.Surge != 2 {
			text, _ := json.Marshal(rec.Rollout)
			t.Fatalf("record: got %s; want what is left of the restart", text)
		}
		if !r.pool.Status().Stale {
			t.Error("before: got a pool that is not stale; want one")
		}
		before := r.pids()
		r.do(func() { r.pool.restoreRollout(rec.Rollout) })
		if resumed, err := r.pool.ResumeRestart(context.Background()); !resumed || err != nil {
			t.Errorf("resume: got %v, %v; want it done", resumed, err)
		}
		after := r.pids()
		if st := r.pool.Status(); after[0] != before[0] || after[1] == before[1] || after[3] == before[3] || st.Stale || st.Strays != 0 {
			t.Errorf("got pids %v of %v, %+v; want the three that were left replaced", after, before, st)
		}
		if resumed, err := r.pool.ResumeRestart(context.Background()); resumed || err != nil {
			t.Errorf("again: got %v, %v; want nothing to resume", resumed, err)
		}
		r.stop()
	})
}

func TestRestart_ToAConfigThatHasChangedSinceIsNotResumed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		time.Sleep(5 * time.Second)
		left := &savedRollout{Release: &Release{Command: []string{"app", "v0"}}, Wanted: true, Slot: AllSlots, Left: []int{0, 1}}
		r.do(func() { r.pool.restoreRollout(left) })
		if resumed, err := r.pool.ResumeRestart(context.Background()); resumed || err != nil {
			t.Errorf("got %v, %v; want nothing to resume", resumed, err)
		}
		r.stop()
	})
}

// A successor that is started in a slot which is scaled away is still there until it has ended: it is shown,
// and an lb that takes over then can read of it.
func TestRecord_OfASuccessorWhoseSlotIsGoneCanBeRead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		starts := 0
		r := newRig(t, func(c *Config) { c.Recycle = RecycleConfig{Age: time.Minute} }, func(int, *Release) behaviour {
			if starts++; starts > 2 {
				return behaviour{readyAfter: -1, deaf: true}
			}
			return behaviour{deaf: true}
		})
		time.Sleep(30 * time.Second)
		if err := r.pool.Restart(context.Background(), RestartOptions{Slot: 1, Surge: 1, Timeout: time.Second}); err == nil {
			t.Fatal("got a restart; want it cut off, with the successor on its way out")
		}
		var text string
		r.do(func() { r.pool.host.record = func(s string) error { text = s; return nil } })
		if err := r.pool.Scale(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		r.do(func() {})
		if got := len(r.pool.Status().Retired); got != 2 {
			t.Errorf("got %d retired workers; want the slot's own and its successor", got)
		}
		if _, err := parseSnapshot([]byte(text), r.pool.Name, oldestRecord); err != nil {
			t.Errorf("got %v; want a record that can be read: %s", err, text)
		}
		r.stop()
	})
}
