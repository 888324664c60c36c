package daemon

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/eventually"
	"github.com/273ebdf9/lb/supervisor"
)

// testWorker is the first argument by which this binary is a worker.
const testWorker = "play-worker"

// playWorker accepts connections and closes them; with "fail" it says so and ends.
func playWorker(words []string) {
	if slices.Contains(words, "fail") {
		fmt.Println("no database")
		os.Exit(3)
	}
	l, err := net.FileListener(os.NewFile(3, "listener"))
	if err != nil {
		os.Exit(1)
	}
	for {
		c, err := l.Accept()
		if err != nil {
			os.Exit(1)
		}
		c.Close()
	}
}

// workersTable is [pools.POOL.workers] of so many workers with those words.
func workersTable(pool string, n int, words ...string) string {
	return fmt.Sprintf("[pools.%s.workers]\ncommand = %q\ncount = %d\n", pool, append([]string{"/proc/self/exe", testWorker}, words...), n)
}

// tomlList writes %q of a slice as TOML has it.
func tomlList(s string) string { return strings.ReplaceAll(s, `" "`, `", "`) }

// newWorkerRig is a rig whose pool app has two workers beside its backends.
func newWorkerRig(t *testing.T) *rig {
	t.Helper()
	r := newRig(t)
	r.withWorkers(2)
	r.mustReload()
	r.waitWorkers(2)
	return r
}

func (r *rig) withWorkers(n int, words ...string) {
	r.t.Helper()
	r.configure("[pools.beta]\n", tomlList(workersTable("app", n, words...))+"[pools.beta]\n")
}

func (r *rig) mustReload() {
	r.t.Helper()
	if _, err := r.Reload(r.background.ctx, false, "test"); err != nil {
		r.t.Fatal(err)
	}
}

// waitWorkers waits until n workers are up and none drains, and gives them.
func (r *rig) waitWorkers(n int) *api.WorkersStatus {
	r.t.Helper()
	var st *api.WorkersStatus
	eventually.NoError(r.t, func() error {
		st = r.workersStatus("app")
		up := 0
		for i := range st.Slots {
			if st.Slots[i].State == "up" {
				up++
			}
		}
		if up != n || len(st.Slots) != n || len(st.Retired) != 0 {
			return fmt.Errorf("workers: got %+v; want %d up", st, n)
		}
		return nil
	})
	return st
}

func TestWorkerPool_ComesAndGoesWithTheConfig(t *testing.T) {
	t.Parallel()
	r := newWorkerRig(t)
	pool := r.view.Load().pool("app")
	if n, all := pool.Selectable(); n != 4 || all != 4 {
		t.Errorf("members: got %d of %d selectable; want 2 backends and 2 workers", n, all)
	}
	pids := []int{r.waitWorkers(2).Slots[0].PID, r.waitWorkers(2).Slots[1].PID}
	r.mustReload() // nothing is different
	r.withWorkers(3)
	r.mustReload()
	if st := r.waitWorkers(3); st.Slots[0].PID != pids[0] || st.Slots[1].PID != pids[1] {
		t.Errorf("workers after a change of the count: got %+v; want the same, and one more", st)
	}
	f := r.workersOf("app")
	r.configure()
	r.mustReload()
	if r.workersOf("app") != nil || r.workersStatus("app") != nil {
		t.Error("workers that the config has no more: got them; want none")
	}
	f.Stop(r.background.ctx) // returns when they have ended
	if n, all := pool.Selectable(); n != 2 || all != 2 {
		t.Errorf("members: got %d of %d selectable; want the 2 backends", n, all)
	}
	if left, _ := filepath.Glob(filepath.Join(r.dir, "workers", "app*")); len(left) > 0 {
		t.Errorf("files: got %q; want none", left)
	}
}

func TestWorkerPool_AChangedCommandRollsOrFailsTheReload(t *testing.T) {
	t.Parallel()
	r := newWorkerRig(t)
	before := r.waitWorkers(2)
	r.withWorkers(2, "fail")
	_, err := r.Reload(r.background.ctx, false, "test")
	if !errors.Is(err, supervisor.ErrRestart) || !strings.Contains(err.Error(), "no database") {
		t.Errorf("reload with a command that fails: got %v; want the canary's last words", err)
	}
	if st := r.waitWorkers(2); st.Slots[0].PID != before.Slots[0].PID || st.Slots[1].PID != before.Slots[1].PID || !st.Stale {
		t.Errorf("workers: got %+v; want the old ones, stale", st)
	}
	// The very same reload again finds the config as it was, and the workers of another one.
	dry, err := r.Reload(r.background.ctx, true, "test")
	if want := "pools.app.workers: not all run the command, environment and directory of the config"; err != nil || !slices.Equal(dry.Changes, []string{want}) {
		t.Errorf("dry run of the same reload: got %q, %v; want %q", dry.Changes, err, want)
	}
	if _, err := r.Reload(r.background.ctx, false, "test"); !errors.Is(err, supervisor.ErrRestart) {
		t.Errorf("the same reload again: got %v; want it tried again", err)
	}
	r.withWorkers(2, "other")
	r.mustReload()
	if again, err := r.Reload(r.background.ctx, false, "test"); err != nil || len(again.Changes) != 0 {
		t.Errorf("the same reload after one that worked: got %q, %v; want nothing different", again.Changes, err)
	}
	if st := r.waitWorkers(2); st.Slots[0].PID == before.Slots[0].PID || st.Slots[1].PID == before.Slots[1].PID || st.Stale || !st.CanRollback {
		t.Errorf("workers of another command: got %+v; want new ones", st)
	}
}

func TestWorkerPool_AReloadWaitsForTheRestartUnderWay(t *testing.T) {
	t.Parallel()
	r := newWorkerRig(t)
	begun := make(chan struct{}, 10)
	ended := make(chan error, 1)
	go func() {
		_, err := r.Restart(t.Context(), "app", api.RestartRequest{}, func(api.RestartStep) { begun <- struct{}{} }, "test")
		ended <- err
	}()
	<-begun
	r.withWorkers(2, "other")
	r.mustReload()
	if err := <-ended; err != nil {
		t.Errorf("the restart: %v", err)
	}
	st := r.waitWorkers(2)
	for i := range st.Slots {
		if w := &st.Slots[i]; w.Command[len(w.Command)-1] != "other" || st.Stale {
			t.Errorf("worker %d: got %+v; want one of the new command", i, w)
		}
	}
}

func TestWorkerPool_WhatTheOperatorWantsOfASlotStays(t *testing.T) {
	t.Parallel()
	r := newWorkerRig(t)
	slot := func() string { return r.waitWorkers(2).Slots[1].Backend }
	if _, err := r.client().SetWeight(t.Context(), "app", slot(), 20); err != nil {
		t.Fatal(err)
	}
	if _, err := r.client().SetAdmin(t.Context(), "app", slot(), "drain"); err != nil {
		t.Fatal(err)
	}
	want := func(when string) {
		t.Helper()
		b := r.view.Load().pool("app").Get(slot())
		if b.Weight() != 20 || b.Admin().String() != "drain" {
			t.Errorf("%s: got weight %d and %v; want 20 and drain", when, b.Weight(), b.Admin())
		}
	}
	one := 1
	if _, err := r.Restart(t.Context(), "app", api.RestartRequest{Slot: &one}, func(api.RestartStep) {}, "test"); err != nil {
		t.Fatal(err)
	}
	want("after a restart of the worker")
	r.mustReload()
	want("after a reload")
	r.restart()
	want("after a restart of lb")
	if _, err := r.client().RemoveBackend(t.Context(), "app", slot()); err == nil {
		t.Error("removing a worker's backend: got no error; want one")
	}
	if _, err := r.client().AddBackend(t.Context(), "app", api.NewBackend{Name: "1.99", Address: "unix:/x"}); err == nil {
		t.Error("adding a backend of a worker's name: got no error; want one")
	}
}

// Members come and go while others change the pool: nobody is lost, and nothing locks up.
func TestWorkerPool_RestartsAndReloadsAtOnce(t *testing.T) {
	t.Parallel()
	r := newWorkerRig(t)
	var busy sync.WaitGroup
	stop := make(chan struct{})
	busy.Go(func() {
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			default:
			}
			r.configure("[pools.beta]\n", fmt.Sprintf("max_conns = %d\n[pools.beta]\n", 100+i%7))
			text, err := os.ReadFile(r.file)
			if err == nil { // the last backend's table has the key; the workers' table follows
				err = os.WriteFile(r.file, []byte(strings.Replace(string(text), "[pools.beta]\n", tomlList(workersTable("app", 2))+"[pools.beta]\n", 1)), 0o600)
			}
			if err == nil {
				_, err = r.Reload(r.background.ctx, false, "test")
			}
			if err != nil {
				t.Errorf("reload: %v", err)
				return
			}
			r.client().SetWeight(t.Context(), "app", "w1", 10+i%50)
		}
	})
	for range 2 {
		if _, err := r.Restart(t.Context(), "app", api.RestartRequest{Surge: -1}, func(api.RestartStep) {}, "test"); err != nil {
			t.Error(err)
		}
	}
	close(stop)
	busy.Wait()
	r.waitWorkers(2)
	if n, all := r.view.Load().pool("app").Selectable(); n != 4 || all != 4 {
		t.Errorf("members: got %d of %d selectable; want 4", n, all)
	}
}

func TestRestart_SaysThatTheConfigFileHasChangedSince(t *testing.T) {
	t.Parallel()
	r := newWorkerRig(t)
	restart := func() []string {
		t.Helper()
		warnings, err := r.Restart(t.Context(), "app", api.RestartRequest{}, func(api.RestartStep) {}, "test")
		if err != nil {
			t.Fatal(err)
		}
		return warnings
	}
	if got := restart(); len(got) != 0 {
		t.Errorf("restart: got warnings %q; want none", got)
	}
	r.withWorkers(2, "other")
	if got := restart(); len(got) != 1 || !strings.Contains(got[0], "lb reload makes the new one hold") {
		t.Errorf("restart with an edited config file: got warnings %q; want one that says so", got)
	}
}

func TestState_RemembersTheNumberOfWorkersAndStoppedSlots(t *testing.T) {
	t.Parallel()
	r := newWorkerRig(t)
	slots := func() string {
		t.Helper()
		var states []string
		for _, s := range r.workersStatus("app").Slots {
			states = append(states, s.State)
		}
		return strings.Join(states, " ")
	}
	c, ctx := r.client(), t.Context()
	four := 4
	if _, err := c.Scale(ctx, "app", api.ScaleRequest{Count: &four}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.StopWorker(ctx, "app", 1); err != nil {
		t.Fatal(err)
	}
	r.restart()
	eventually.True(t, "slots after a restart", func() bool { return slots() == "up stopped up up" })
	if _, err := c.StartWorker(ctx, "app", 1); err != nil {
		t.Fatal(err)
	}
	r.restart()
	eventually.True(t, "slots after a start and a restart", func() bool { return slots() == "up up up up" })
	r.withWorkers(3)
	r.restart()
	eventually.True(t, "slots after a restart with another count in the config", func() bool { return slots() == "up up up" })
}
