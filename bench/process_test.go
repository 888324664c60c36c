package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const testLimit = 10 * time.Second

// startChild starts the test binary in a role and waits until it is ready.
func startChild(t *testing.T, role string) *Process {
	t.Helper()
	p := startUnready(t, role)
	awaitOutput(t, p, "ready\n")
	return p
}

// awaitOutput waits until the process has written want.
func awaitOutput(t *testing.T, p *Process, want string) {
	t.Helper()
	err := p.WaitReady(t.Context(), testLimit, func(context.Context) error {
		if !strings.Contains(p.Output(), want) {
			return fmt.Errorf("no %q yet", want)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func startUnready(t *testing.T, role string) *Process {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	p, err := Start(Command{
		Name: role, Path: self, Env: []string{"LB_BENCH_CHILD=" + role},
		Log: filepath.Join(t.TempDir(), "log"),
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Stop(0) })
	return p
}

// grandchild returns the pid that a parent printed, and a function that waits for the end of that process.
func grandchild(t *testing.T, p *Process) (pid int, awaitEnd func()) {
	t.Helper()
	pid, err := strconv.Atoi(regexp.MustCompile(`child (\d+)`).FindStringSubmatch(p.Output())[1])
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return pid, func() {
		t.Helper()
		for {
			n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(testLimit/time.Millisecond))
			if err == unix.EINTR {
				continue
			}
			if n != 1 {
				syscall.Kill(pid, syscall.SIGKILL)
				t.Fatalf("grandchild lives on: got %d, %v", n, err)
			}
			return
		}
	}
}

func TestProcess_StopEndsPolitely(t *testing.T) {
	p := startChild(t, "sleeper")
	if err := p.Exited(); err != nil {
		t.Fatalf("got %v before Stop; want nil", err)
	}
	if err := p.Stop(testLimit); err != nil {
		t.Fatal(err)
	}
	// The child exits with 0 on SIGTERM; SIGKILL would be another status.
	if got := p.Exited(); got == nil || !strings.Contains(got.Error(), "exit status 0") {
		t.Errorf("got %v; want exit status 0", got)
	}
	if p.CPU() == 0 {
		t.Error("got no CPU time of an ended process")
	}
	if err := p.Stop(testLimit); err != nil {
		t.Errorf("got %v from a second Stop; want nil", err)
	}
}

func TestProcess_StopKillsAfterGrace(t *testing.T) {
	p := startChild(t, "stubborn")
	if err := p.Stop(10 * time.Millisecond); err != nil {
		t.Fatal(err)
	}
	if got := p.Exited(); got == nil || !strings.Contains(got.Error(), "signal: killed") {
		t.Errorf("got %v; want signal: killed", got)
	}
}

func TestProcess_StopKillsDescendantsInOtherGroups(t *testing.T) {
	p := startChild(t, "parent")
	pid, awaitEnd := grandchild(t, p)
	tree, err := Tree(p.PID())
	if err != nil || len(tree) != 2 || (tree[0] != pid && tree[1] != pid) {
		t.Errorf("got tree %v, %v; want %d and %d", tree, err, p.PID(), pid)
	}
	if err := p.Stop(testLimit); err != nil {
		t.Fatal(err)
	}
	awaitEnd()
}

func TestProcess_CrashTakesItsGroupAlong(t *testing.T) {
	p := startChild(t, "crashing-parent")
	_, awaitEnd := grandchild(t, p)
	syscall.Kill(p.PID(), syscall.SIGUSR1)
	awaitEnd()
	if err := p.Wait(t.Context()); err == nil || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v; want exit status 3", err)
	}
}

func TestProcess_WaitReadyReportsTheEnd(t *testing.T) {
	p := startUnready(t, "failing")
	err := p.WaitReady(t.Context(), testLimit, func(context.Context) error { return errors.New("not yet") })
	if err == nil || !strings.Contains(err.Error(), "exit status 7") || !strings.Contains(err.Error(), "no such thing") {
		t.Errorf("got %v; want the exit status and the output", err)
	}
}

func TestProcess_WaitReadyReportsTheLastProbe(t *testing.T) {
	p := startChild(t, "sleeper")
	refused := errors.New("refused")
	err := p.WaitReady(t.Context(), time.Millisecond, func(context.Context) error { return refused })
	if !errors.Is(err, refused) {
		t.Errorf("got %v; want %v", err, refused)
	}
}

func TestProcess_WaitStopsWithContext(t *testing.T) {
	p := startChild(t, "sleeper")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Wait(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; want %v", err, context.Canceled)
	}
	if p.Exited() == nil {
		t.Error("the process runs on")
	}
}

func TestStart_MissingProgram(t *testing.T) {
	_, err := Start(Command{Name: "ghost", Path: "/nonexistent", Log: filepath.Join(t.TempDir(), "log")})
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(fmt.Sprint(err), "cannot start ghost") {
		t.Errorf("got %v; want one that names ghost", err)
	}
}
