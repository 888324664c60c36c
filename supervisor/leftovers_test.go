package supervisor

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
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

// Workers leave processes that are told by nothing but their user: each ends with the last worker that may
// have started it.
func TestWorker_OrphansEndWithTheWorkersThatMayHaveStartedThem(t *testing.T) {
	dir, base, app := openForOthers(t)
	if err := os.Chmod(base, 0o777); err != nil {
		t.Fatal(err)
	}
	reaper(t)
	sidecar := strangersCommand(app, "rest")
	if err := sidecar.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		sidecar.Process.Kill()
		sidecar.Wait()
	}()
	before, err := readRelative(sidecar.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	eventually.True(t, "the clock of start times goes on", func() bool {
		var now unix.Timespec
		unix.ClockGettime(unix.CLOCK_BOOTTIME, &now)
		return uint64(now.Nano()/1e7) > before.start
	})
	cfg := strangerConfig(base, app)
	cfg.Count = 2
	// The subshell ends at once. Its child is out of the session, and does not have the worker's environment.
	cfg.Command = []string{"/bin/sh", "-c", "( env -i setsid " + app + " attack rest " + base + "/$$ & ); while [ ! -s " + base + "/$$ ]; do sleep .01; done; exec " + app + " worker"}
	s := start(t, dir, cfg)
	s.until("ready", allUp)
	left := func() (pids []int) {
		for _, slot := range s.pool.Status().Slots {
			text, err := os.ReadFile(filepath.Join(base, strconv.Itoa(slot.PID)))
			pid, notOne := strconv.Atoi(string(text))
			if err != nil || notOne != nil {
				t.Fatalf("got %q, %v; want the pid of what worker %d has left", text, err, slot.PID)
			}
			pids = append(pids, pid)
		}
		return pids
	}
	old := left()
	unix.Kill(s.pool.Status().Slots[0].PID, unix.SIGKILL) // the other one may have started both
	s.until("the next one", func(st *Status) bool { return st.Slots[0].Deaths == 1 && allUp(st) })
	for _, pid := range old {
		if hasEnded(pid) {
			t.Errorf("process %d has ended; want that it lives while a worker does that may have started it", pid)
		}
	}
	old = append(old, left()[0])
	if err := s.pool.Restart(t.Context(), DefaultRestartOptions()); err != nil {
		t.Fatal(err)
	}
	s.until("the old ones have ended", func(st *Status) bool { return allUp(st) && len(st.Retired) == 0 })
	for _, pid := range old {
		if !hasEnded(pid) {
			t.Errorf("process %d is left of the workers before the restart", pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	now := left()
	for _, pid := range append(now, sidecar.Process.Pid) {
		if hasEnded(pid) {
			t.Errorf("process %d has ended; want that it lives: no worker that has ended may have started it", pid)
		}
	}
	s.stop()
	for _, pid := range now {
		if !hasEnded(pid) {
			t.Errorf("process %d is left of the workers after the stop", pid)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	if hasEnded(sidecar.Process.Pid) {
		t.Error("the process that is no worker's has ended")
	}
}

// A program that puts itself in the background is told so, and leaves nothing behind.
func TestWorker_InTheBackgroundIsKilledAndNamed(t *testing.T) {
	reaper(t)
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
		(&session{pid: 1 << 30, invocation: invocation, lookAfter: new(Dir).lookWide}).kill()
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
