//go:build e2e && faults

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// fault is a system call of lb that fails, with each of some errors (strace(1), "Tampering").
type fault struct {
	call    string
	errors  string
	only    string // the path or descriptor that the call must be about; "": any
	provoke string // what makes lb make the call: "": the load does; or control, state, workers, reload, pool
}

// faults are the calls on lb's paths with the errors that their man pages give. Not among them: what Go's
// runtime itself cannot survive (futex, mmap, epoll_pwait with other than EINTR), and EAGAIN on sockets that
// are ready: the kernel never says that without a later edge (see the end of tcp_sendmsg_locked), and an
// edge-triggered loop relies on it.
var faults = []fault{
	{call: "accept4", errors: "EMFILE ENFILE ENOBUFS ENOMEM ECONNABORTED EPROTO EPERM ENOSPC EINTR", provoke: "control"},
	{call: "connect", errors: "EAGAIN ECONNREFUSED EADDRNOTAVAIL ENETUNREACH ENOBUFS ENOMEM EACCES EPERM"},
	{call: "socket", errors: "EMFILE ENFILE ENOBUFS ENOMEM EACCES"},
	{call: "epoll_ctl", errors: "ENOMEM ENOSPC", provoke: "control"},
	{call: "epoll_pwait", errors: "EINTR"},
	{call: "recvfrom", errors: "EINTR ECONNRESET ETIMEDOUT ENOMEM ENOBUFS EHOSTUNREACH"},
	{call: "sendto", errors: "EINTR ECONNRESET EPIPE ETIMEDOUT ENOMEM ENOBUFS EHOSTUNREACH"},
	{call: "sendmsg", errors: "EAGAIN ENOBUFS ENOMEM EPIPE", provoke: "workers"},
	{call: "recvmsg", errors: "EINTR ENOBUFS ENOMEM ECONNRESET EIO", provoke: "workers"},
	{call: "splice", errors: "EINVAL ENOMEM EPIPE ECONNRESET"},
	{call: "pipe2", errors: "EMFILE ENFILE ENOMEM", provoke: "workers"},
	{call: "setsockopt", errors: "EINVAL ENOPROTOOPT ENOMEM ENOBUFS", provoke: "reload"},
	{call: "getsockopt", errors: "ENOBUFS ENOPROTOOPT", provoke: "reload"},
	{call: "shutdown", errors: "ENOTCONN"},
	{call: "openat", errors: "EMFILE ENFILE EACCES ENOSPC EROFS ENOENT", provoke: "state"},
	{call: "renameat,renameat2,rename", errors: "EACCES ENOSPC EROFS EIO", provoke: "state"},
	{call: "fsync", errors: "EIO ENOSPC EDQUOT", provoke: "state"},
	{call: "write", errors: "ENOSPC EIO EDQUOT EPIPE EAGAIN", only: "log", provoke: "state"},
	{call: "write,pwrite64", errors: "ENOSPC EIO EDQUOT", only: "access", provoke: "state"},
	{call: "write,pwrite64", errors: "ENOSPC EIO EDQUOT", only: "state", provoke: "state"},
	{call: "clone,clone3", errors: "EAGAIN", provoke: "workers"},
	{call: "execve", errors: "ENOENT EACCES ETXTBSY ENOEXEC ENOMEM E2BIG", provoke: "workers"},
	{call: "kill,pidfd_send_signal", errors: "ESRCH EPERM", provoke: "workers"},
	{call: "pidfd_open", errors: "EMFILE ENFILE ENOMEM ENOSYS EPERM", provoke: "workers"},
	{call: "bind", errors: "EADDRINUSE EACCES ENOMEM EADDRNOTAVAIL", provoke: "reload"},
	{call: "listen", errors: "EADDRINUSE ENOMEM", provoke: "reload"},
	{call: "ioctl", errors: "ENOTTY EFAULT EIO", provoke: "workers"},
	{call: "unlink,unlinkat", errors: "EACCES EROFS EBUSY", provoke: "workers"},
	{call: "mkdir,mkdirat", errors: "EACCES ENOSPC EROFS", provoke: "pool"},
	{call: "fchmod,fchmodat,fchown,fchownat,lchown", errors: "EPERM EROFS", provoke: "pool"},
	{call: "fcntl", errors: "EMFILE", provoke: "workers"},
	{call: "epoll_create1,eventfd2,timerfd_create", errors: "EMFILE ENFILE ENOMEM", provoke: "control"},
}

const faultTime = 600 * time.Millisecond // how long a fault is there

// TestFaults has each call on lb's paths fail with each error, once and in a burst, under a byte-checking
// load. lb must live, serve as before soon after the end of the fault, answer on its control socket, lose no
// byte silently, and leak neither sessions nor descriptors.
func TestFaults(t *testing.T) {
	rig := startCheckedRig(t)
	only := os.Getenv("LB_FAULTS") // "recvmsg" or "recvmsg:EIO" for one
	rig.recover(t, "at the start")
	before := rig.descriptors(t)
	injected, reached, ran := 0, 0, 0
	for _, f := range faults {
		for errno := range strings.FieldsSeq(f.errors) {
			missed := false
			for _, when := range []string{"1", "1..60"} {
				name := fmt.Sprintf("%s:%s:%s %s", f.call, errno, when, f.only)
				if only != "" && !strings.HasPrefix(name, only) {
					continue
				}
				if (f.call == "clone,clone3" || f.call == "epoll_pwait") && when != "1" {
					when = "1..5" // Go's runtime tries again twenty times and gives up then
				}
				if when != "1" && missed {
					continue // a burst would not meet it either
				}
				n := rig.inject(t, f, errno, when)
				missed = n == 0
				ran++
				if injected += n; n > 0 {
					reached++
				}
				t.Logf("%-60s injected %d times", name, n)
				rig.recover(t, name)
				if t.Failed() {
					t.Fatalf("%s: see above", name)
				}
			}
		}
	}
	if reached == 0 {
		t.Fatal("faults that lb met: got none; want some")
	}
	rig.load.end()
	for _, err := range rig.load.takeWorst() {
		t.Errorf("at the end: %v", err)
	}
	t.Logf("%d of %d faults met a call of lb, %d calls failed; load: %v", reached, ran, injected, rig.load)
	rig.waitReleased(t)
	eventually(t, patience, func() error {
		// Pools of pipes and workers' descriptors vary a little; a leak a fault would be hundreds.
		if now := rig.descriptors(t); now > before+24 {
			return fmt.Errorf("descriptors of lb: got %d; want about %d as before\n%s", now, before, rig.describeDescriptors())
		}
		return nil
	})
}

// inject has the call fail for a while, provokes it meanwhile, and returns how often it failed.
func (rig *checkedRig) inject(t *testing.T, f fault, errno, when string) int {
	t.Helper()
	report := filepath.Join(rig.reports, "strace")
	inject := fmt.Sprintf("inject=%s:error=%s:when=%s", f.call, errno, when)
	args := []string{"-f", "-b", "execve", "-o", report, "-e", "trace=" + f.call, "-e", inject, "-p", fmt.Sprint(rig.pid())}
	if f.only != "" {
		args = append([]string{"-P", rig.files[f.only]}, args...)
	}
	tracer := exec.Command(program(t, "strace"), args...)
	stderr, err := tracer.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Start(); err != nil {
		t.Fatalf("cannot start strace: %v", err)
	}
	waitAttached(t, stderr)
	end := time.After(faultTime)
	rig.provoke(t, f.provoke)
	<-end
	tracer.Process.Signal(syscall.SIGTERM)
	tracer.Wait()
	text, err := os.ReadFile(report)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	os.Remove(report)
	return strings.Count(string(text), "(INJECTED)")
}

// waitAttached waits until strace says that it has attached to a process, and reads on what else it says.
func waitAttached(t *testing.T, stderr io.Reader) {
	t.Helper()
	said := bufio.NewReader(stderr)
	line, err := said.ReadString('\n')
	if !strings.Contains(line, "attached") {
		rest, _ := io.ReadAll(said)
		t.Fatalf("strace: got %q, %v, %q; want it to attach", line, err, rest)
	}
	go io.Copy(io.Discard, said)
}

// provoke asks lb for what makes it make certain calls. What it answers does not matter while the fault is
// there, but it must answer.
func (rig *checkedRig) provoke(t *testing.T, what string) {
	t.Helper()
	ask := func(args ...string) {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		cmd := exec.CommandContext(ctx, lbBinary(t), append(args, "-s", rig.socket)...)
		dieWithParent(cmd)
		if out, err := cmd.CombinedOutput(); ctx.Err() != nil {
			t.Errorf("lb %q during a fault: got no answer within %v (%v); want one\n%s", args, patience, err, out)
		}
	}
	switch what {
	case "control":
		ask("status")
		rig.reload(t, ask, rig.more)
	case "state":
		ask("weight", "tcp/tcp1", "90")
		ask("weight", "tcp/tcp1", "100")
	case "workers":
		ask("restart", "app/0", "--timeout", "3s")
		for until := time.Now().Add(recoveryTime); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			r := rig.command(t, "workers", "app", "--json") // lb stops the old worker
			var s workersStatus
			if json.Unmarshal([]byte(r.stdout), &s) == nil && r.code == 0 && len(s.Retired) == 0 {
				return
			}
		}
	case "reload":
		rig.reload(t, ask, rig.more)
	case "pool":
		pool := rig.more
		pool.Pools = append(pool.Pools[:len(pool.Pools):len(pool.Pools)], lbPool{Name: "extra", Health: heartbeats, Options: fmt.Sprintf(
			"[pools.extra.workers]\ncommand = [%q]\ncount = 1\nready = \"notify\"\n", sampleWorker(t))})
		pool.Listeners = slices.Clone(pool.Listeners)
		pool.Listeners[len(pool.Listeners)-1].Pool = "extra"
		rig.reload(t, ask, pool)
	}
}
