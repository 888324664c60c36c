package supervisor

import (
	"context"
	"maps"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/internal/eventually"
)

func TestRecycle_ByMemoryReplacesTheLargeWorkerSuccessorFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Recycle = RecycleConfig{Memory: "300MiB"} })
		large := 0 // pid
		r.do(func() {
			r.pool.host.usage = func(pids []int) map[int]Usage {
				used := map[int]Usage{}
				for _, pid := range pids {
					used[pid] = Usage{Memory: 299 << 20}
					if pid == large {
						used[pid] = Usage{Memory: 300 << 20}
					}
				}
				return used
			}
		})
		time.Sleep(time.Minute)
		before := r.pids()
		r.do(func() { large, r.leastUp = before[1], 2 })
		time.Sleep(10 * time.Second)
		after := r.pids()
		if after[0] != before[0] || after[1] == before[1] {
			t.Errorf("got pids %v then %v; want the large one replaced, and the other left", before, after)
		}
		if least := r.least(); least < 2 {
			t.Errorf("got %d serving; want the successor first", least)
		}
		// One that is too large from the start is not replaced all the time.
		r.do(func() { large = after[1] })
		time.Sleep(memoryTrial / 2)
		if got := r.pids()[1]; got != after[1] {
			t.Errorf("got pid %d; want %d for half a minute", got, after[1])
		}
		r.stop()
	})
}

func TestExits_AreCountedByWhy(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		plays := []behaviour{{cannot: true}, {readyAfter: -1}, {}, {}}
		r := newRig(t, func(c *Config) { c.Count, c.StartTimeout, c.KillAfter = 1, time.Second, time.Second }, func(int, *Release) (b behaviour) {
			if b = (behaviour{}); len(plays) > 0 {
				b, plays = plays[0], plays[1:]
			}
			return b
		})
		none := map[string]uint64{exitNotStarted: 0, exitNotReady: 0, exitCrashed: 0, exitHung: 0, exitBroken: 0, exitStopped: 0}
		if got := r.pool.Status().Slots[0].Exits; !maps.Equal(got, none) {
			t.Errorf("before the first exit: got %v; want %v", got, none)
		}
		time.Sleep(10 * time.Second) // not started, not ready, up
		r.die(0)
		time.Sleep(10 * time.Second)
		r.pool.SetHealth(r.pool.Status().Slots[0].Backend.Name, false, "silent")
		time.Sleep(10 * time.Second)
		if err := r.pool.Restart(context.Background(), DefaultRestartOptions()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		want := map[string]uint64{exitNotStarted: 1, exitNotReady: 1, exitCrashed: 1, exitHung: 1, exitBroken: 0, exitStopped: 1}
		if got := r.pool.Status().Slots[0].Exits; !maps.Equal(got, want) {
			t.Errorf("got exits %v; want %v", got, want)
		}
		r.stop()
	})
}

// A wrapper that waits for its program takes little, and what it has started counts for it.
func TestUsages_CountWhatAWrapperHasStarted(t *testing.T) {
	t.Parallel()
	cmd := exec.Command("/bin/sh", "-c", `sh -c 'while :; do :; done' & wait`)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer cmd.Wait()
	defer syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	eventually.True(t, "two processes that take CPU and memory", func() bool {
		u := Usages([]int{cmd.Process.Pid})[cmd.Process.Pid]
		return u.Processes == 2 && u.CPU >= 5*clockTick && u.Memory > 1<<16
	})
	if got := Usages([]int{1 << 30}); len(got) != 0 {
		t.Errorf("of a pid that there is not: got %v; want nothing", got)
	}
}

// A worker that an lb before has started is no descendant, and is counted all the same.
func TestUsages_CountOwnAndAdoptedWorkers(t *testing.T) {
	out, err := exec.Command("/bin/sh", "-c", `setsid sleep 1000 >&- 2>&- & echo $!`).Output()
	if err != nil {
		t.Fatal(err)
	}
	adopted, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		t.Fatal(err)
	}
	defer syscall.Kill(adopted, syscall.SIGKILL)
	reaper(t)
	cmd := exec.Command("sleep", "1000")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	own := cmd.Process.Pid
	defer cmd.Wait()
	defer cmd.Process.Kill()
	for _, pids := range [][]int{{own}, {adopted}, {own, adopted}, {own, 1 << 30}} {
		got := Usages(pids)
		for _, pid := range pids {
			want := 1
			if pid == 1<<30 {
				want = 0
			}
			if n := got[pid].Processes; n != want {
				t.Errorf("Usages(%v): got %d processes of %d; want %d", pids, n, pid, want)
			}
		}
	}
}

func TestParseSize(t *testing.T) {
	for text, want := range map[string]uint64{"": 0, "300MiB": 300 << 20, "1GiB": 1 << 30, "8 KiB": 8 << 10} {
		if got, err := parseSize(text); got != want || err != nil {
			t.Errorf("parseSize(%q): got %d, %v; want %d", text, got, err, want)
		}
	}
	for _, text := range []string{"300", "300MB", "0MiB", "-1MiB", "1.5GiB", "99999999999999GiB", "MiB"} {
		if got, err := parseSize(text); err == nil {
			t.Errorf("parseSize(%q): got %d; want an error", text, got)
		}
	}
}
