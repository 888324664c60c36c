package supervisor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/eventually"
)

// nobody is watched.
func nobody(int) bool { return false }

// reaper makes this process the reaper of what it starts, as lb is, until the test ends.
func reaper(t testing.TB) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	var reaping sync.WaitGroup
	reaping.Go(func() { Reap(ctx, nobody) })
	t.Cleanup(func() {
		stop()
		reaping.Wait()
		for pid := range ownZombies() { // Reap would, in a second
			unix.Wait4(pid, nil, 0, nil)
		}
		unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	})
	eventually.True(t, "this process reaps", knowsDescendants)
}

func TestDescendants_AreAllThatAWorkerHasStarted(t *testing.T) {
	if _, err := os.Stat("/proc/thread-self/children"); err != nil {
		t.Skip("this kernel lists no children: ", err)
	}
	reaper(t)
	cfg := workerConfig()
	done := filepath.Join(t.TempDir(), "done")
	// a child, one of a group and a session of its own, and one whose parent has ended
	cfg.Command = []string{"/bin/sh", "-c", `sleep 1000 & setsid sleep 1001 & (sleep 1002 & (sleep 1003 & ) & ) & sleep 0.1; : >$0; wait`, done + "{slot}"}
	cfg.Count, cfg.Ready = 2, readyNotify
	s := start(t, open(t), cfg)
	s.until("processes", func(st *Status) bool { return st.Slots[0].PID != 0 && st.Slots[1].PID != 0 })
	eventually.True(t, "all is started", func() bool { _, err := os.Stat(done + "0"); return err == nil })
	var ours *session
	if err := s.pool.await(t.Context(), func() error { ours = s.pool.slots[0].current.process.session; return nil }, now, nil); err != nil {
		t.Fatal(err)
	}
	all, _ := everybody()
	want := 0
	for _, r := range all {
		if its, _ := invocationOf(r.pid); r.ended || its != ours.invocation {
			continue
		}
		want++
		found, err := ours.look()
		if _, ok := found[r.pid]; !ok || err != nil {
			t.Errorf("process %d of the worker: got it %v, %v; want it", r.pid, ok, err)
		}
	}
	if want < 5 {
		t.Errorf("got %d processes of the worker; want five", want)
	}
	if list, err := ours.members(); len(list) != want || err != nil {
		t.Errorf("members: got %d, %v; want %d", len(list), err, want)
	}
	other := s.pool.Status().Slots[1].PID
	if found, _ := ours.look(); slices.Contains(pidsOf(found), other) {
		t.Errorf("got the other worker, %d; want it left out", other)
	}
	s.stop()
	left, _ := everybody()
	for _, r := range left {
		if its, _ := invocationOf(r.pid); its == ours.invocation && !r.ended {
			t.Errorf("process %d is left", r.pid)
		}
	}
}

func pidsOf(all relatives) (pids []int) {
	for pid := range all {
		pids = append(pids, pid)
	}
	return pids
}

// Such a process is shown as a zombie, and runs on.
func TestReadRelative_AProcessWithoutItsFirstThreadHasNotEnded(t *testing.T) {
	t.Parallel()
	cmd := headless(t)
	eventually.True(t, "its first thread has ended", func() bool {
		return strings.Contains(readProc(t, cmd.Process.Pid, "status"), "State:\tZ")
	})
	if r, err := readRelative(cmd.Process.Pid); err != nil || r.ended {
		t.Errorf("got %+v, %v; want a process that has not ended", r, err)
	}
	cmd.Process.Kill()
	eventually.True(t, "it has ended", func() bool { r, err := readRelative(cmd.Process.Pid); return err == nil && r.ended })
}

// headless starts a process whose first thread ends.
func headless(t *testing.T) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "attack", "headless")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	return cmd
}

// A look happens at least twice for each worker that ends.
func BenchmarkLook(b *testing.B) {
	reaper(b)
	var pids []int
	for range 8 {
		cmd := exec.Command("sleep", "1000")
		if err := cmd.Start(); err != nil {
			b.Fatal(err)
		}
		defer cmd.Wait()
		defer cmd.Process.Kill()
		pids = append(pids, cmd.Process.Pid)
	}
	b.Run("usages", func(b *testing.B) {
		for b.Loop() {
			Usages(pids)
		}
	})
	b.Run("host", func(b *testing.B) {
		for b.Loop() {
			everybody()
		}
	})
	b.Run("descendants", func(b *testing.B) {
		for b.Loop() {
			descendants(func(int) bool { return false })
		}
	})
	if entries, err := filepath.Glob("/proc/[0-9]*"); err == nil {
		b.Log(strconv.Itoa(len(entries)), "processes on the host")
	}
}
