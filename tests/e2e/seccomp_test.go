//go:build e2e

package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// becomeFiltered becomes another program, whose system calls go through a filter as in a container
// (seccomp(2)). Children inherit it.
func becomeFiltered(filter []unix.SockFilter, command []string) error {
	runtime.LockOSThread() // a filter is the thread's, and exec keeps that of the thread that calls it
	program := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	if err := unix.Prctl(unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, uintptr(unsafe.Pointer(&program)), 0, 0); err != nil {
		return err
	}
	env := os.Environ()
	for i, e := range env {
		if strings.HasPrefix(e, roleVariable+"=") {
			env = append(env[:i], env[i+1:]...)
			break
		}
	}
	return syscall.Exec(command[0], command, env)
}

// startAs is startLB with lb run by a role that limits it.
func startAs(t testing.TB, role string, config lbConfig) *lb {
	t.Helper()
	dir := tempDir(t)
	l := &lb{config: config, socket: filepath.Join(dir, "admin.sock")}
	l.file = writeFile(t, dir, "lb.toml", config.toml(l.socket), 0o644)
	l.process = startProcess(t, "lb", roleCommand(t, role, lbBinary(t), "run", "-f", l.file))
	l.waitStarted(t)
	t.Cleanup(func() { l.finish(t) })
	return l
}

// checkAs runs a command of lb that takes a config by a role that limits it, such as lb check.
func checkAs(t testing.TB, role string, config lbConfig, args ...string) (code int, output string) {
	t.Helper()
	dir := tempDir(t)
	file := writeFile(t, dir, "lb.toml", config.toml(filepath.Join(dir, "admin.sock")), 0o644)
	out, err := roleCommand(t, role, append([]string{lbBinary(t), args[0], "-f", file}, args[1:]...)...).CombinedOutput()
	if exit, ok := err.(*exec.ExitError); ok {
		return exit.ExitCode(), string(out)
	}
	if err != nil {
		t.Fatal(err)
	}
	return 0, string(out)
}
