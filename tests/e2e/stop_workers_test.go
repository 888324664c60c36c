//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// unwilling is a worker that does not want to end. It listens first, does what its first argument says, and
// says so in the file that its second argument names.
const unwilling = `
import ctypes, os, signal, socket, sys, time
what, port, said = sys.argv[1], int(sys.argv[2]), sys.argv[3]
until = time.monotonic() + 180 # nothing starts processes beyond the test, even where that was killed
for s in signal.SIGTERM, signal.SIGINT, signal.SIGHUP: signal.signal(s, signal.SIG_IGN)
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long, ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p]
def say(): open(said, "w").close()
def rest():
    while True: time.sleep(60)
def child(f):
    pid = os.fork()
    if pid == 0:
        try: f()
        finally: os._exit(0)
    return pid
def chain(apart): # each starts the next one and ends
    while time.monotonic() < until:
        if apart: os.setsid()
        if os.fork(): os._exit(0)
def trace(pid, options):
    if libc.ptrace(0x4206, pid, None, options): os.abort() # PTRACE_SEIZE
    say()
    rest()
def hide(): # out of the session, without the environment that lb gave it, and with lb for its parent
    os.setsid()
    if os.fork(): os._exit(0)
    os.execve(sys.executable, [sys.executable, "-c", "import time\ntime.sleep(600)", said], {})

if what == "mate": # outside of lb, of the same user
    trace(port, 0x40)
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", port))
listener.listen(64)
if what == "deaf": pass
elif what == "thousand":
    for _ in range(1000): child(rest)
elif what == "respawn": # itself and a child of another session start what dies anew
    def respawning():
        signal.signal(signal.SIGCHLD, lambda *_: time.monotonic() < until and child(rest))
        for _ in range(20): child(rest)
    child(lambda: [os.setsid(), respawning(), rest()])
    respawning()
elif what == "chain": child(lambda: chain(False))
elif what == "chain-apart": child(lambda: chain(True))
elif what == "group":
    refused = []
    for pid in os.getpgid(os.getppid()), os.getppid():
        try: os.setpgid(0, pid)
        except OSError as e: refused.append(e)
    def join():
        try: os.setpgid(0, os.getpgid(os.getppid()))
        except OSError: pass
        rest()
    child(join)
    if len(refused) < 2: os.abort()
elif what == "apart":
    child(lambda: [os.setsid(), child(rest), rest()])
    child(lambda: [os.setsid(), child(lambda: [os.setsid(), rest()])])
elif what == "hidden": child(hide)
elif what == "stopped":
    say()
    os.kill(os.getpid(), signal.SIGSTOP)
elif what == "vfork": # the parent of a vfork(2) sleeps until its child has executed, which waits for a writer
    os.mkfifo(said + ".fifo")
    say()
    os.posix_spawn("/bin/true", ["true"], {}, file_actions=[(os.POSIX_SPAWN_OPEN, 9, said + ".fifo", os.O_RDONLY, 0)])
elif what == "traced":
    libc.prctl(0x59616d61, ctypes.c_ulong(-1)) # PR_SET_PTRACER, for Yama
    worker = os.getpid()
    child(lambda: [os.setsid(), trace(worker, 0x40)]) # PTRACE_O_TRACEEXIT
    rest()
say()
rest()
`

// unwillingly are the ways of a worker not to end.
var unwillingly = []string{
	"deaf", "thousand", "respawn", "chain", "chain-apart", "group", "apart", "hidden", "stopped", "vfork", "traced",
}

// startUnwilling starts an lb with a pool for each way not to end, and returns it once all workers have done
// what they want, with the path that all of their processes have in their command lines.
func startUnwilling(t testing.TB, ways []string) (l *lb, mark string) {
	t.Helper()
	const python = "/usr/bin/python3" // one that the second user may run
	if _, err := os.Stat(python); err != nil {
		t.Skip(err)
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a second user")
	}
	dir, err := os.MkdirTemp("", "lb-unwilling")
	if err != nil {
		t.Fatal(err)
	}
	mark = filepath.Join(dir, "said")
	t.Cleanup(func() {
		for _, pid := range marked(t, mark) {
			syscall.Kill(pid, syscall.SIGKILL)
		}
		os.RemoveAll(dir)
	})
	if err := os.Chown(dir, appUser, appUser); err != nil {
		t.Fatal(err)
	}
	config := lbConfig{StopTimeout: "1s"}
	for _, what := range ways {
		config.Listeners = append(config.Listeners, lbListener{Name: what, Bind: []string{freePort(t, "127.0.0.1")}, Pool: what})
		config.Pools = append(config.Pools, lbPool{Name: what, Options: fmt.Sprintf(
			"[pools.%s.workers]\ncommand = [%q, \"-c\", %q, %q, \"{port}\", %q]\nuser = \"%d\"\ndir = \"/\"\ncount = 1\nstop_timeout = \"1s\"\nkill_timeout = \"500ms\"\n",
			what, python, unwilling, what, mark+"-"+what, appUser)})
	}
	l = startLB(t, config)
	for _, what := range ways {
		eventually(t, patience, func() error { _, err := os.Stat(mark + "-" + what); return err })
	}
	return l, mark
}

// marked returns the processes that have the mark in their command lines and have not ended.
func marked(t testing.TB, mark string) (pids []int) {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if text, _ := os.ReadFile("/proc/" + e.Name() + "/cmdline"); bytes.Contains(text, []byte(mark)) {
			// a zombie has none
			pids = append(pids, pid)
		}
	}
	return pids
}

// wantNoneMarked waits until no process has the mark. One that starts the next and ends is seen by one look
// and missed by another.
func wantNoneMarked(t testing.TB, mark string) {
	t.Helper()
	eventually(t, patience, func() error {
		for range 20 {
			for _, pid := range marked(t, mark) {
				text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
				args := strings.Split(strings.TrimSuffix(string(text), "\x00"), "\x00")
				return fmt.Errorf("process %d is left: %s", pid, args[len(args)-1])
			}
		}
		return nil
	})
}

// stopMost is how long a stop may take here: 1 s for sessions, 0.5 s for workers, 10 s for the kernel, and 5
// s for the rest. It takes 3 s where nothing else runs.
const stopMost = 17 * time.Second

// Whatever workers do, a stop ends lb within the time that its config gives it and them, and nothing of them
// is left.
func TestStop_EndsWhateverWorkersDo(t *testing.T) {
	for _, tc := range []struct {
		name string
		stop func(t *testing.T, l *lb)
	}{
		{"TERM", func(t *testing.T, l *lb) { l.signal(t, syscall.SIGTERM) }},
		{"INT", func(t *testing.T, l *lb) { l.signal(t, syscall.SIGINT) }},
		{"lb stop", func(t *testing.T, l *lb) { l.mustCommand(t, "stop") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			l, mark := startUnwilling(t, unwillingly)
			began := time.Now()
			tc.stop(t, l)
			wantEnd(t, l, began, stopMost)
			wantNoneMarked(t, mark)
		})
	}
}

// What a worker has hidden ends with a restart, also after an upgrade, and the next worker's own stays.
func TestStop_RestartEndsWhatAWorkerHasHidden(t *testing.T) {
	l, mark := startUnwilling(t, []string{"hidden"})
	both := func() (pids []int) { // the worker, and what it has hidden
		eventually(t, patience, func() error {
			if pids = marked(t, mark); len(pids) != 2 {
				return fmt.Errorf("processes: got %v; want the worker and one that it has hidden", pids)
			}
			return nil
		})
		return pids
	}
	before := both()
	l.upgrade(t, "")
	l.mustCommand(t, "restart", "hidden")
	if now := both(); slices.ContainsFunc(now, func(pid int) bool { return slices.Contains(before, pid) }) {
		t.Errorf("processes after the restart: got %v; want none of %v", now, before)
	}
	l.signal(t, syscall.SIGTERM)
	wantEnd(t, l, time.Now(), stopMost)
	wantNoneMarked(t, mark)
}

// Another process of a worker's user can trace it and hold its end up for ever. lb gives it the time that it
// gives to the kernel, and ends without it.
func TestStop_EndsThoughAWorkersMateTracesIt(t *testing.T) {
	l, mark := startUnwilling(t, []string{"deaf"})
	var status workersStatus
	if err := json.Unmarshal([]byte(l.mustCommand(t, "workers", "deaf", "--json").stdout), &status); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("/usr/bin/python3", "-c", unwilling, "mate", strconv.Itoa(status.Slots[0].PID), mark+"-mate")
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: appUser, Gid: appUser}}
	mate := startProcess(t, "mate", cmd)
	eventually(t, patience, func() error { _, err := os.Stat(mark + "-mate"); return err })
	began := time.Now()
	l.signal(t, syscall.SIGTERM)
	wantEnd(t, l, began, stopMost)
	mate.kill()
	wantNoneMarked(t, mark)
}

// wantEnd waits for lb's end, which must come in good time.
func wantEnd(t testing.TB, l *lb, began time.Time, most time.Duration) {
	t.Helper()
	code, _ := l.waitExit(t, 2*patience)
	if code != 0 {
		t.Errorf("exit code: got %d; want 0", code)
	}
	took := time.Since(began)
	t.Logf("lb ended after %v", took)
	if took > most {
		t.Errorf("the end: got it after %v; want it within %v", took, most)
	}
}
