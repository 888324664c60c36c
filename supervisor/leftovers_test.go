package supervisor

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/eventually"
)

// hasEnded reports whether a process has ended, waited for or not.
func hasEnded(pid int) bool {
	r, err := readRelative(pid)
	return err != nil || r.ended
}

func TestLeftovers_OfAPoolThatIsNoMoreAreEnded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run")
	pids := front(t, path) // of pool app
	dir, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if got := dir.Leftovers(func(name string) bool { return name == "app" }); len(got) != 0 {
		t.Errorf("got leftovers %q; want none of a pool that is known", got)
	}
	got := dir.Leftovers(func(name string) bool { return name == "web" })
	if !slices.Equal(got, []string{"app"}) {
		t.Fatalf("got leftovers %q; want app", got)
	}
	var changes []string
	if err := dir.EndLeftovers(t.Context(), "app", Hooks{Changed: func(c Change) { changes = append(changes, c.To) }}); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		eventually.True(t, "the worker has ended", func() bool { return hasEnded(pid) })
	}
	if !slices.Contains(changes, "gone") {
		t.Errorf("got changes %q; want that they are told", changes)
	}
	entries, _ := os.ReadDir(path)
	if len(entries) != 1 || entries[0].Name() != "lock" {
		t.Errorf("got %v; want nothing but the lock", entries)
	}
	if err := dir.EndLeftovers(t.Context(), "app", Hooks{}); err != nil { // there is nothing
		t.Error(err)
	}
}

// A program that puts itself in the background is told so, and leaves nothing behind.
func TestWorker_InTheBackgroundIsKilledAndNamed(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	var reaping sync.WaitGroup
	reaping.Go(func() { Reap(ctx) })
	defer func() {
		stop()
		reaping.Wait()
		unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	}()
	cfg := workerConfig()
	pidFile := filepath.Join(t.TempDir(), "pid")
	cfg.Command = []string{"/bin/sh", "-c", `setsid sh -c 'echo $$ > ` + pidFile + `; exec sleep 1000' & while [ ! -s ` + pidFile + ` ]; do sleep .01; done`}
	cfg.Count = 1
	s := start(t, open(t), cfg)
	s.until("deaths", func(st *Status) bool { return st.Slots[0].Deaths >= 1 })
	if got := s.pool.Status().Slots[0].Last.Reason; !strings.HasPrefix(got, "exit status 0; it left process ") {
		t.Errorf("got %q; want that it left a process", got)
	}
	s.stop()
	all, _ := everybody()
	for pid, r := range all {
		if r.parent == os.Getpid() && !r.ended {
			t.Errorf("process %d is left", pid)
		}
	}
	for pid := range ownZombies() { // Reap would, in a second
		unix.Wait4(pid, nil, 0, nil)
	}
}

// A process that lb lacks the descriptors to see is not taken for one that is not there.
func TestLeftovers_AreKilledThoughDescriptorsAreShort(t *testing.T) {
	// not parallel: it takes descriptors from all
	f := func(what string, kill func(invocation string, pid int)) {
		t.Helper()
		id := invocationID()
		cmd := exec.Command("sleep", "1000")
		cmd.Env = []string{"INVOCATION_ID=" + id}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			t.Fatal(err)
		}
		if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: 3, Max: limit.Max}); err != nil {
			t.Fatal(err)
		}
		more := time.AfterFunc(200*time.Millisecond, func() { unix.Setrlimit(unix.RLIMIT_NOFILE, &limit) })
		kill(id, cmd.Process.Pid)
		more.Stop()
		unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)
		eventually.True(t, what+" has killed the process", func() bool { return hasEnded(cmd.Process.Pid) })
		cmd.Process.Kill()
		cmd.Wait()
	}
	f("kill of the strays", func(invocation string, _ int) {
		// no process has this pid
		(&session{pid: 1 << 30, invocation: invocation, look: everybody}).kill()
	})
	f("killOne", func(_ string, pid int) {
		var r relative
		eventually.True(t, "the process is seen", func() bool {
			var err error
			r, err = readRelative(pid)
			return err == nil
		})
		eventually.True(t, "the process is killed", func() bool { return killOne(r) == nil })
	})
}
