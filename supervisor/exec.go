package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// ExecArg is the first argument by which a program tells that it was started as the shim; it must call Exec
// then, before anything else, with the arguments that follow.
const ExecArg = "__exec"

// A worker must find its own pid in LISTEN_PID (sd_listen_fds(3)), and nobody knows it before the fork. So lb
// starts its own binary, which puts its pid there, takes on user, limits and mask, and becomes the command by
// execve(2): the same process. Before that it waits for a byte, which lb sends once it has recorded the pid;
// if lb dies first, the shim ends.

// launch tells the shim what to do.
type launch struct {
	// how many listening sockets there are, from descriptor 3 on; the pipe follows
	Listen  int      `json:"listen"`
	Set     bool     `json:"set"` // UID, GID and Groups hold
	UID     int      `json:"uid"`
	GID     int      `json:"gid"`
	Groups  []int    `json:"groups,omitempty"`
	Umask   string   `json:"umask,omitempty"`
	Nice    int      `json:"nice,omitempty"`
	Nofile  uint64   `json:"nofile,omitempty"`
	Command []string `json:"command"`
}

// Exit codes of the shim, as env(1) and shells have them.
const (
	exitCannotRun = 126
	exitNotFound  = 127
)

// Exec is the shim: it turns this process into a worker, and never returns.
func Exec(args []string) {
	code, err := becomeWorker(args)
	fmt.Fprintf(os.Stderr, "lb: %v\n", err)
	os.Exit(code)
}

func becomeWorker(args []string) (code int, err error) {
	runtime.LockOSThread() // the niceness is a thread's; the one that calls execve(2) stays
	var l launch
	if len(args) != 1 {
		return exitCannotRun, errors.New("BUG: the shim wants one argument")
	}
	if err := json.Unmarshal([]byte(args[0]), &l); err != nil {
		return exitCannotRun, fmt.Errorf("cannot read what to run: %w", err)
	}
	pipe := 3 + l.Listen
	if err := awaitRelease(pipe); err != nil {
		os.Exit(exitCannotRun) // lb is gone, and its successor knows nothing of this process
	}
	if err := l.takeOn(); err != nil {
		return exitCannotRun, fmt.Errorf("cannot prepare to run %q: %w", l.Command[0], err)
	}
	// Whatever lb itself was started with, or forgot: nothing leaks into a worker.
	if err := unix.CloseRange(uint(pipe), math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return exitCannotRun, fmt.Errorf("cannot keep descriptors from %q: %w", l.Command[0], err)
	}
	path := l.Command[0]
	if !strings.Contains(path, "/") {
		if path, err = exec.LookPath(path); err != nil {
			return exitNotFound, fmt.Errorf("cannot run %q: %w", l.Command[0], err)
		}
	}
	// After an upgrade lb's threads hold back the signals that lb handles, and a child inherits that
	// (signal(7)).
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &unix.Sigset_t{}, nil); err != nil {
		return exitCannotRun, fmt.Errorf("cannot let signals through to %q: %w", l.Command[0], err)
	}
	pid := strconv.Itoa(os.Getpid())
	if l.Listen > 0 {
		os.Setenv("LISTEN_PID", pid)
	}
	if os.Getenv("WATCHDOG_USEC") != "" {
		os.Setenv("WATCHDOG_PID", pid)
	}
	err = syscall.Exec(path, l.Command, os.Environ()) // gives back the RLIMIT_NOFILE that Go's runtime raised
	code = exitCannotRun
	if errors.Is(err, os.ErrNotExist) {
		code = exitNotFound
	}
	return code, explain(path, err)
}

// awaitRelease waits for the byte that lb sends when it has recorded this process.
func awaitRelease(fd int) error {
	var b [1]byte
	for {
		n, err := unix.Read(fd, b[:])
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return errors.New("lb has ended")
		default:
			return nil
		}
	}
}

// takeOn sets the process's limits and user, in the order that needs root last.
func (l *launch) takeOn() error {
	if err := dropInherited(); err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	if l.Nofile != 0 {
		if err := syscall.Setrlimit(syscall.RLIMIT_NOFILE, &syscall.Rlimit{Cur: l.Nofile, Max: l.Nofile}); err != nil {
			return fmt.Errorf("rlimit_nofile: %w", err)
		}
	}
	if l.Nice != 0 {
		raw, err := unix.Getpriority(unix.PRIO_PROCESS, 0)
		if err == nil { // the system call gives 20 - nice (getpriority(2))
			err = unix.Setpriority(unix.PRIO_PROCESS, 0, min(max(20-raw+l.Nice, -20), 19))
		}
		if err != nil {
			return fmt.Errorf("nice: %w", err)
		}
	}
	if l.Umask != "" {
		mask, err := strconv.ParseUint(l.Umask, 8, 12)
		if err != nil {
			return fmt.Errorf("umask: %w", err)
		}
		unix.Umask(int(mask))
	}
	if !l.Set {
		return nil
	}
	if err := syscall.Setgroups(l.Groups); err != nil {
		return fmt.Errorf("group: %w", err)
	}
	if err := syscall.Setgid(l.GID); err != nil {
		return fmt.Errorf("group: %w", err)
	}
	if err := syscall.Setuid(l.UID); err != nil {
		return fmt.Errorf("user: %w", err)
	}
	return nil
}

// dropInherited drops the capabilities that lb has for itself and that execve(2) would pass on to any
// program: those in the ambient and the inheritable set (capabilities(7)). They belong to the calling thread.
func dropInherited() error {
	if err := unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0); err != nil && err != unix.EINVAL {
		return err
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&header, &data[0]); err != nil {
		return err
	}
	data[0].Inheritable, data[1].Inheritable = 0, 0
	err := unix.Capset(&header, &data[0])
	if err == unix.EPERM && unix.Geteuid() != 0 {
		// A sandbox refuses the call (systemd's @privileged). With no ambient ones left, execve(2) gives a
		// user other than root none, but for a program with file capabilities of its own.
		return nil
	}
	return err
}
