package supervisor

import (
	"context"
	"errors"
	"fmt"
	"math/rand"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func TestPool_CrashedWorkerIsReplacedAtOnceAtItsAddress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		synctest.Wait()
		time.Sleep(time.Millisecond)
		synctest.Wait()
		r.want("up up")
		before := r.pool.Status().Slots[1].Backend
		r.die(1)
		time.Sleep(time.Millisecond)
		synctest.Wait()
		r.want("up up")
		if after := r.pool.Status().Slots[1].Backend; after != before {
			t.Errorf("got backend %v; want the same as before, %v", after, before)
		}
		if got := r.pool.Status().Slots[1].Last; got.Reason != "exit status 1" || got.PID == 0 {
			t.Errorf("got last end %+v", got)
		}
		r.stop()
	})
}

func TestPool_BackoffGrowsAndIsForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 1 }, func(int, *Release) behaviour { return behaviour{exitAfter: 10 * time.Millisecond} })
		start := time.Now()
		var starts []time.Duration
		r.pool.post(func() {
			spawn := r.pool.host.spawn
			r.pool.host.spawn = func(w *worker) (*process, error) {
				starts = append(starts, time.Since(start).Round(100*time.Millisecond))
				return spawn(w)
			}
		})
		time.Sleep(9 * time.Second)
		synctest.Wait()
		r.want("failed") // the sixth comes 5.06 s after the fifth
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		var waits []time.Duration
		for i := 1; i < len(starts); i++ {
			waits = append(waits, starts[i]-starts[i-1])
		}
		want := []time.Duration{0, time.Second, 1500 * time.Millisecond, 2250 * time.Millisecond}
		for i, w := range want {
			if d := waits[i] - w; d < -100*time.Millisecond || d > 200*time.Millisecond {
				t.Errorf("wait %d: got %v; want %v", i, waits[i], w)
			}
		}
		if last := waits[len(waits)-1]; last.Round(time.Second) != 30*time.Second {
			t.Errorf("got last wait %v; want the cap", last)
		}
		r.want("failed")
		r.do(func() { r.behave = func(int, *Release) behaviour { return behaviour{} } })
		time.Sleep(61 * time.Second)
		synctest.Wait()
		r.want("up")
		if d := r.pool.Status().Slots[0].Deaths; d != 0 {
			t.Errorf("got %d deaths after half a minute up; want 0", d)
		}
		r.stop()
	})
}

func TestPool_WorkerThatCannotStartIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(int, *Release) behaviour { return behaviour{cannot: true} })
		time.Sleep(time.Minute)
		synctest.Wait()
		r.want("failed failed")
		if r.started() > 30 {
			t.Errorf("tried %d times in a minute", r.started())
		}
		r.stop()
	})
}

func TestPool_LateWorkerIsStoppedAndReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 1; c.StartTimeout = 5 * time.Second }, func(int, *Release) behaviour { return behaviour{readyAfter: -1, deaf: true} })
		time.Sleep(6 * time.Second)
		synctest.Wait()
		r.want("stopping")
		r.do(func() { r.behave = func(int, *Release) behaviour { return behaviour{} } })
		time.Sleep(10 * time.Second)
		synctest.Wait()
		r.want("up")
		if got, want := r.pool.Status().Slots[0].Last.Reason, "signal: SIGKILL; it was not ready after 5s (start_timeout)"; got != want {
			t.Errorf("got last end %q; want %q", got, want)
		}
		r.stop()
	})
}

func TestPool_SilentWorkerIsAbortedThenKilled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(int, *Release) behaviour { return behaviour{deaf: true} })
		time.Sleep(time.Second)
		b, pid := r.pool.Status().Slots[0].Backend, r.pids()[0]
		r.pool.SetHealth(b.Name, false, "no heartbeat")
		time.Sleep(29 * time.Second)
		r.pool.SetHealth(b.Name, true, "a heartbeat")
		time.Sleep(29 * time.Second)
		synctest.Wait()
		r.want("up up")
		r.pool.SetHealth(b.Name, false, "no heartbeat")
		time.Sleep(31 * time.Second)
		synctest.Wait()
		r.want("aborting up")
		if !r.signalled(fmt.Sprintf("SIGABRT %d", pid)) {
			t.Error("no SIGABRT")
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		r.want("up up")
		if !r.signalled(fmt.Sprintf("SIGKILL %d", pid)) || r.pids()[0] == pid {
			t.Errorf("no SIGKILL, or the same pid %d", pid)
		}
		r.stop()
	})
}

func TestPool_KillAfterZeroNeverKills(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.KillAfter = 0 })
		time.Sleep(time.Second)
		r.pool.SetHealth(r.pool.Status().Slots[0].Backend.Name, false, "no heartbeat")
		time.Sleep(24 * time.Hour)
		synctest.Wait()
		r.want("silent up")
		r.stop()
	})
}

func TestPool_StoppingWorkerFinishesBesideItsSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		time.Sleep(time.Second)
		b, pid := r.pool.Status().Slots[0].Backend, r.pids()[0]
		r.do(func() {
			r.sessions[b.Name] = 3
			r.pool.fire(r.pool.slots[0].current, offline, "STOPPING=1")
		})
		time.Sleep(20 * time.Second)
		synctest.Wait()
		r.want("up up")
		if st := r.pool.Status(); len(st.Retired) != 1 || st.Retired[0].State != "draining" || st.Retired[0].PID != pid {
			t.Fatalf("got retired %+v; want the old one, draining", st.Retired)
		}
		r.do(func() { r.sessions[b.Name] = 0 })
		time.Sleep(time.Second)
		synctest.Wait()
		if st := r.pool.Status(); len(st.Retired) != 0 {
			t.Errorf("got retired %+v; want none", st.Retired)
		}
		r.stop()
	})
}

func TestRestart_ReplacesOneByOneNewFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 8 }, func(int, *Release) behaviour { return behaviour{readyAfter: 100 * time.Millisecond} })
		time.Sleep(time.Second)
		before := r.pids()
		r.do(func() { r.leastUp = 8 })
		var steps []string
		o := DefaultRestartOptions()
		o.Progress = func(p Progress) { steps = append(steps, fmt.Sprintf("%s %d %d/%d", p.Step, p.Slot, p.Done, p.Total)) }
		start := time.Now()
		if err := r.pool.Restart(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 8*1100*time.Millisecond {
			t.Errorf("took %v; want 8 times 1.1 s", d)
		}
		for i, pid := range r.pids() {
			if slices.Contains(before, pid) {
				t.Errorf("slot %d still has pid %d", i, pid)
			}
		}
		r.do(func() {
			if r.leastUp < 8 {
				t.Errorf("only %d served at a time; want 8", r.leastUp)
			}
		})
		if len(steps) != 16 || steps[0] != "started 0 0/8" || steps[1] != "replaced 0 1/8" || steps[15] != "replaced 7 8/8" {
			t.Errorf("got steps %q", steps)
		}
		r.stop()
	})
}

func TestRestart_SurgeComesAfterTheCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 8 })
		time.Sleep(time.Second)
		o := DefaultRestartOptions()
		o.Surge = 0
		start := time.Now()
		if err := r.pool.Restart(context.Background(), o); err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d != 2*time.Second {
			t.Errorf("took %v; want one second for the canary and one for all others", d)
		}
		r.stop()
	})
}

// The canary fails in each way; all the old ones stay, and nothing of the new is left.
func TestRestart_FailingCanaryKeepsAllTheOld(t *testing.T) {
	f := func(b behaviour, want string) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, func(c *Config) { c.Count = 8 })
			time.Sleep(time.Second)
			before := r.pids()
			r.do(func() {
				r.leastUp = 8
				r.behave = func(int, *Release) behaviour { return b }
			})
			spawned := r.started()
			err := r.pool.Restart(context.Background(), DefaultRestartOptions())
			if !errors.Is(err, ErrRestart) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v; want ErrRestart with %q", err, want)
			}
			if got := r.pids(); !slices.Equal(got, before) {
				t.Errorf("got pids %v; want %v", got, before)
			}
			time.Sleep(30 * time.Second)
			synctest.Wait()
			r.want("up up up up up up up up")
			if len(r.pool.Status().Retired) != 0 || r.started() != spawned+1 || r.least() != 8 {
				t.Errorf("got retired %v, %d started, %d served at least", r.pool.Status().Retired, r.started()-spawned, r.least())
			}
			r.stop()
		})
	}
	f(behaviour{cannot: true}, "no such file")
	f(behaviour{exitAfter: 10 * time.Millisecond, readyAfter: -1}, "exit status 1")
	f(behaviour{exitAfter: 500 * time.Millisecond}, "exit status 1")
	f(behaviour{readyAfter: -1}, "not ready after 30s")
	f(behaviour{readyAfter: -1, deaf: true}, "not ready after 30s")
}

func TestRestart_CutOffEndsTheNewOne(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		time.Sleep(time.Second)
		before := r.pids()
		r.do(func() { r.behave = func(int, *Release) behaviour { return behaviour{readyAfter: -1} } })
		o := DefaultRestartOptions()
		o.Timeout = 3 * time.Second
		if err := r.pool.Restart(context.Background(), o); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v; want DeadlineExceeded", err)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if !slices.Equal(r.pids(), before) || r.alive() != 2 {
			t.Errorf("got pids %v, alive %d; want %v", r.pids(), r.alive(), before)
		}
		r.stop()
	})
}

func TestRestart_DrainingOnesDoNotBlockTheNextAndAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.MaxDraining = 3; c.StopTimeout = time.Hour })
		time.Sleep(time.Second)
		r.do(func() { r.pool.Hooks.Sessions = func(Backend) int { return 1 } })
		for range 4 {
			if err := r.pool.Restart(context.Background(), DefaultRestartOptions()); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if n := len(r.pool.Status().Retired); n != 3 {
			t.Errorf("%d drain; want 3", n)
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		r.pool.Stop(ctx)
	})
}

func TestRollback_ReturnsToWhatWorked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		time.Sleep(time.Second)
		if err := r.pool.Rollback(context.Background(), DefaultRestartOptions()); !errors.Is(err, ErrNoPrevious) {
			t.Errorf("got %v; want ErrNoPrevious", err)
		}
		cfg := r.pool.cfg
		cfg.Command = []string{"app", "v2"}
		restart, err := r.pool.Update(cfg)
		if err != nil || !restart {
			t.Fatalf("got %v, %v; want a restart to be due", restart, err)
		}
		r.die(0) // until the restart it is still the old command
		time.Sleep(time.Second)
		synctest.Wait()
		commands := func() (all []string) {
			for _, s := range r.pool.Status().Slots {
				all = append(all, strings.Join(s.Command, " "))
			}
			return all
		}
		if got := commands(); !slices.Equal(got, []string{"app", "app"}) {
			t.Errorf("before the restart: got %q", got)
		}
		if err := r.pool.Restart(context.Background(), DefaultRestartOptions()); err != nil {
			t.Fatal(err)
		}
		if got := commands(); !slices.Equal(got, []string{"app v2", "app v2"}) {
			t.Errorf("after the restart: got %q", got)
		}
		if err := r.pool.Rollback(context.Background(), DefaultRestartOptions()); err != nil {
			t.Fatal(err)
		}
		if got := commands(); !slices.Equal(got, []string{"app", "app"}) {
			t.Errorf("after the rollback: got %q", got)
		}
		r.stop()
	})
}

func TestRollback_StaysWithWhatWorksAfterAFailedCanary(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(_ int, r *Release) behaviour {
			if len(r.Command) > 1 && r.Command[1] == "v3" {
				return behaviour{exitAfter: 10 * time.Millisecond, readyAfter: -1}
			}
			return behaviour{}
		})
		time.Sleep(time.Second)
		restart := func(version string) error {
			cfg := r.pool.cfg
			cfg.Command = []string{"app", version}
			if _, err := r.pool.Update(cfg); err != nil {
				t.Fatal(err)
			}
			return r.pool.Restart(context.Background(), DefaultRestartOptions())
		}
		rollback := func() error { return r.pool.Rollback(context.Background(), DefaultRestartOptions()) }
		if err := restart("v2"); err != nil {
			t.Fatal(err)
		}
		before := r.pids()
		if err := restart("v3"); !errors.Is(err, ErrRestart) {
			t.Fatalf("got %v; want the canary to fail", err)
		}
		if err := rollback(); !errors.Is(err, ErrNothingDone) || r.pool.Status().CanRollback {
			t.Errorf("got %v; want ErrNothingDone", err)
		}
		if after := r.pids(); !slices.Equal(after, before) {
			t.Errorf("got pids %v; want %v to stay", after, before)
		}
		if err := restart("v2"); err != nil {
			t.Fatal(err)
		}
		if err := rollback(); err != nil {
			t.Errorf("after a restart that worked: got %v", err)
		}
		if got := r.pool.Status().Slots[0].Command; len(got) != 1 {
			t.Errorf("got %q; want the command before v2", got)
		}
		r.stop()
	})
}

func TestRollback_StaysWithWhatWorksAfterASlotThatFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 3 }, func(slot int, r *Release) behaviour {
			if slot == 1 && len(r.Command) > 1 && r.Command[1] == "v3" {
				return behaviour{exitAfter: 10 * time.Millisecond, readyAfter: -1}
			}
			return behaviour{}
		})
		time.Sleep(time.Second)
		update := func(version string) {
			t.Helper()
			cfg := r.pool.cfg
			cfg.Command = []string{"app", version}
			if _, err := r.pool.Update(cfg); err != nil {
				t.Fatal(err)
			}
		}
		restart := func(slot int) error {
			o := DefaultRestartOptions()
			o.Slot = slot
			return r.pool.Restart(context.Background(), o)
		}
		rollback := func() error { return r.pool.Rollback(context.Background(), DefaultRestartOptions()) }
		want := func(when string, versions ...string) {
			t.Helper()
			for i, s := range r.pool.Status().Slots {
				if got := strings.Join(s.Command[1:], " "); got != versions[i] || s.State != "up" {
					t.Errorf("%s: slot %d: got %q, %s; want %q, up", when, i, got, s.State, versions[i])
				}
			}
		}
		update("v2")
		if err := restart(AllSlots); err != nil {
			t.Fatal(err)
		}
		update("v3")
		before := r.pids()
		if err := restart(1); !errors.Is(err, ErrRestart) || !strings.Contains(err.Error(), "after 0 of 1: ") {
			t.Fatalf("got %v; want the successor to fail", err)
		}
		if err := rollback(); !errors.Is(err, ErrNothingDone) || r.pool.Status().CanRollback {
			t.Errorf("after the slot that failed: got %v, rollback %v; want ErrNothingDone", err, r.pool.Status().CanRollback)
		}
		if after := r.pids(); !slices.Equal(after, before) {
			t.Errorf("got pids %v; want %v to stay", after, before)
		}
		// Of one that worked before it there is something to take back.
		if err := restart(0); err != nil {
			t.Fatal(err)
		}
		if err := restart(1); !errors.Is(err, ErrRestart) {
			t.Fatalf("got %v; want the successor to fail", err)
		}
		want("after both", "v3", "v2", "v2")
		if err := rollback(); err != nil {
			t.Errorf("got %v; want the slot that worked taken back", err)
		}
		want("after the rollback", "v2", "v2", "v2")
		// A slot that works again is the end of what failed.
		if err := restart(1); !errors.Is(err, ErrRestart) {
			t.Fatalf("got %v; want the successor to fail", err)
		}
		update("v2")
		if err := restart(1); err != nil {
			t.Fatal(err)
		}
		if err := rollback(); err != nil {
			t.Errorf("after a slot that worked: got %v; want the way back to what was before v2", err)
		}
		want("at the end", "", "", "")
		r.stop()
	})
}

func TestRollback_TakesBackWhatAFailedRestartHasReplaced(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 4 }, func(slot int, r *Release) behaviour {
			if slot == 2 && len(r.Command) > 1 {
				return behaviour{exitAfter: 10 * time.Millisecond, readyAfter: -1}
			}
			return behaviour{}
		})
		time.Sleep(time.Second)
		before := r.pids()
		cfg := r.pool.cfg
		cfg.Command = []string{"app", "v2"}
		if _, err := r.pool.Update(cfg); err != nil {
			t.Fatal(err)
		}
		err := r.pool.Restart(context.Background(), DefaultRestartOptions())
		if !errors.Is(err, ErrRestart) || !strings.Contains(err.Error(), "after 2 of 4 (these stay; a rollback takes them back)") {
			t.Errorf("got %v; want how far it came, and the way back", err)
		}
		r.die(1)
		r.die(1)
		r.die(1) // it waits for its time, and is still of the new command
		synctest.Wait()
		if st := r.pool.Status(); st.Strays != 2 || !st.CanRollback {
			t.Errorf("got %d strays, rollback %v; want 2, and a way back", st.Strays, st.CanRollback)
		}
		if err := r.pool.Rollback(context.Background(), DefaultRestartOptions()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(10 * time.Second)
		synctest.Wait()
		r.want("up up up up")
		for _, s := range r.pool.Status().Slots {
			if len(s.Command) != 1 {
				t.Errorf("worker %d: got command %q; want the one of before", s.Slot, s.Command)
			}
		}
		if after := r.pids(); !slices.Equal(after[2:], before[2:]) {
			t.Errorf("got pids %v; want those that were not replaced to stay, of %v", after, before)
		}
		if st := r.pool.Status(); st.Strays != 0 || st.CanRollback {
			t.Errorf("got %+v; want nothing to roll back", st)
		}
		r.die(0)
		time.Sleep(time.Second)
		synctest.Wait()
		if s := r.pool.Status().Slots[0]; len(s.Command) != 1 {
			t.Errorf("after a crash: got command %q; want the one of before", s.Command)
		}
		r.stop()
	})
}

func TestRestart_WaitsForTheOneUnderWay(t *testing.T) {
	f := func(first, then, want int) {
		t.Helper()
		synctest.Test(t, func(t *testing.T) {
			r := newRig(t, nil)
			time.Sleep(time.Second)
			began := r.started()
			update := func(version int) {
				cfg := r.pool.cfg
				cfg.Command = []string{"app", fmt.Sprint(version)}
				if _, err := r.pool.Update(cfg); err != nil {
					t.Error(err)
				}
			}
			update(first)
			ended := make(chan error, 1)
			go func() { ended <- r.pool.Restart(context.Background(), DefaultRestartOptions()) }()
			synctest.Wait()
			update(then)
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			o := DefaultRestartOptions()
			if err := r.pool.Restart(ctx, o); !errors.Is(err, ErrBusy) {
				t.Errorf("got %v without Wait; want ErrBusy", err)
			}
			o.Wait = true
			if err := r.pool.Restart(ctx, o); !errors.Is(err, context.Canceled) {
				t.Errorf("got %v for one that was cut off; want Canceled", err)
			}
			if err := r.pool.Restart(context.Background(), o); err != nil {
				t.Errorf("got %v; want it to wait", err)
			}
			if err := <-ended; err != nil {
				t.Errorf("the one under way: got %v", err)
			}
			for _, s := range r.pool.Status().Slots {
				if s.Command[1] != fmt.Sprint(then) {
					t.Errorf("worker %d: got command %q; want that of %d", s.Slot, s.Command, then)
				}
			}
			if n := r.started() - began; n != want {
				t.Errorf("got %d started; want %d", n, want)
			}
			r.stop()
		})
	}
	f(1, 2, 4)
	f(1, 1, 4) // another configuration all the same, as far as anybody knows
}

func TestRestart_OneToTheSameIsNotDoneTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		time.Sleep(time.Second)
		began := r.started()
		ended := make(chan error, 1)
		go func() { ended <- r.pool.Restart(context.Background(), DefaultRestartOptions()) }()
		synctest.Wait()
		o := DefaultRestartOptions()
		o.Wait = true
		if err := errors.Join(r.pool.Restart(context.Background(), o), <-ended); err != nil {
			t.Error(err)
		}
		if n := r.started() - began; n != 2 {
			t.Errorf("got %d started; want 2", n)
		}
		r.stop()
	})
}

func TestSlot_ManualStopSticks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil)
		time.Sleep(time.Second)
		if err := r.pool.StopSlot(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		if err := r.pool.Restart(context.Background(), DefaultRestartOptions()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		r.want("up stopped")
		o := DefaultRestartOptions()
		o.Slot = 1
		if err := r.pool.Restart(context.Background(), o); !errors.Is(err, ErrSlotStopped) {
			t.Errorf("got %v; want ErrSlotStopped", err)
		}
		if err := r.pool.StartSlot(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		r.want("up up")
		if err := r.pool.StopSlot(context.Background(), 2); !errors.Is(err, ErrNoSlot) {
			t.Errorf("got %v; want ErrNoSlot", err)
		}
		r.stop()
	})
}

func TestScale_UpWaitsAndDownDrains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(int, *Release) behaviour { return behaviour{readyAfter: time.Second} })
		time.Sleep(2 * time.Second)
		if err := r.pool.Scale(context.Background(), 4); err != nil {
			t.Fatal(err)
		}
		r.want("up up up up")
		if err := r.pool.Scale(context.Background(), 1); err != nil {
			t.Fatal(err)
		}
		r.want("up")
		time.Sleep(time.Second)
		synctest.Wait()
		if r.alive() != 1 {
			t.Errorf("%d processes live; want 1", r.alive())
		}
		r.do(func() {
			r.behave = func(int, *Release) behaviour { return behaviour{readyAfter: -1, exitAfter: time.Millisecond} }
		})
		if err := r.pool.Scale(context.Background(), 2); err == nil || !strings.Contains(err.Error(), "exit status 1") {
			t.Errorf("got %v; want the death of the new one", err)
		}
		r.stop()
	})
}

func TestRecycle_OneAtATimeSuccessorFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count = 4; c.Recycle.Age = time.Minute; c.Recycle.Conns = 100 })
		time.Sleep(10 * time.Second)
		before := r.pids()
		r.do(func() {
			r.leastUp = 4
			r.conns[r.pool.slots[2].current.backend.Name] = 100
		})
		time.Sleep(5 * time.Second)
		synctest.Wait()
		after := r.pids()
		if after[2] == before[2] || after[0] != before[0] || after[1] != before[1] {
			t.Errorf("got %v after %v; want slot 2 replaced", after, before)
		}
		time.Sleep(60 * time.Second)
		synctest.Wait()
		for i, pid := range r.pids() {
			if pid == before[i] {
				t.Errorf("slot %d is over a minute old", i)
			}
		}
		r.do(func() {
			if r.leastUp != 4 {
				t.Errorf("%d served at least; want 4", r.leastUp)
			}
		})
		r.stop()
	})
}

func TestStop_KillsTheDeafAfterKillTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, nil, func(int, *Release) behaviour { return behaviour{deaf: true} })
		time.Sleep(time.Second)
		start := time.Now()
		r.stop()
		if d := time.Since(start); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("took %v; want kill_timeout", d)
		}
		if err := r.pool.Restart(context.Background(), DefaultRestartOptions()); !errors.Is(err, ErrStopped) {
			t.Errorf("got %v; want ErrStopped", err)
		}
	})
}

// Whatever happens in whatever order: what serves has a process, each slot has one worker at most, and a
// quiet hour brings everything up.
func TestPool_RandomEventsKeepTheInvariants(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewSource(seed))
	for range 10 {
		synctest.Test(t, func(t *testing.T) {
			played := rand.New(rand.NewSource(random.Int63())) // the latter is the pool's goroutine's
			play := func(int, *Release) behaviour {
				random := played
				return behaviour{
					readyAfter: time.Duration(random.Intn(3)) * time.Second, deaf: random.Intn(4) == 0, cannot: random.Intn(8) == 0,
					exitAfter: time.Duration(random.Intn(2)*random.Intn(20)) * time.Second,
				}
			}
			r := newRig(t, func(c *Config) { c.Count = 4; c.MaxDraining = 2 }, play)
			for range 150 {
				time.Sleep(time.Duration(random.Intn(5000)) * time.Millisecond)
				ctx, cancel := context.WithTimeout(context.Background(), time.Duration(random.Intn(10))*time.Second)
				switch random.Intn(6) {
				case 0:
					r.pool.Restart(ctx, DefaultRestartOptions())
				case 1:
					r.pool.Scale(ctx, 1+random.Intn(6))
				case 2:
					r.pool.StopSlot(ctx, random.Intn(4))
				case 3:
					r.pool.StartSlot(ctx, random.Intn(4))
				default:
					r.do(func() {
						random := played
						if n := len(r.pool.workers); n > 0 {
							w := r.pool.workers[random.Intn(n)]
							if e := event(random.Intn(int(numEvents))); e != exited && e != due && e != settled {
								r.pool.fire(w, e, "random")
							}
						}
					})
				}
				cancel()
				r.do(func() { r.check(t) })
			}
			r.do(func() { r.behave = func(int, *Release) behaviour { return behaviour{} } })
			for n := range r.pool.Count() {
				r.pool.StartSlot(context.Background(), n)
			}
			time.Sleep(time.Hour)
			synctest.Wait()
			if s := r.states(); strings.Trim(strings.ReplaceAll(s, "up", ""), " ") != "" || r.alive() != r.pool.Count() {
				t.Errorf("after an hour: got %s and %d processes", s, r.alive())
			}
			r.stop()
		})
		if t.Failed() {
			return
		}
	}
}

// check looks at the invariants, on the pool's goroutine.
func (r *rig) check(t *testing.T) {
	serving := map[int]int{}
	for _, w := range r.pool.workers {
		if w.state == up || w.state == silent {
			serving[w.slot.number]++
			if _, ok := r.serving[w.backend.Name]; !ok {
				t.Errorf("%s is up, and nobody was told", w.backend.Name)
			}
			if w.slot.current != w && w.slot.next != w {
				t.Errorf("%s serves, and is no slot's", w.backend.Name)
			}
		}
		if w.state == gone {
			t.Error("a worker that is gone is kept")
		}
	}
	for n, count := range serving {
		if count > 1 {
			t.Errorf("slot %d has %d workers that serve", n, count)
		}
	}
	for _, s := range r.pool.slots {
		if s.wanted && s.current == nil {
			t.Errorf("slot %d has no worker and no plan for one", s.number)
		}
		if !s.wanted && s.current != nil {
			t.Errorf("slot %d is not wanted and has a worker", s.number)
		}
	}
}
