//go:build e2e && faults

package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
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
	provoke string // what makes lb make the call: "": the load does; or control, state, workers,
	// handed, reload, pool, upgrade
	before string // what lb does before the fault, as with provoke
	unmet  string // why lb need not make the call
	burst  string // which calls of each thread fail in a burst; "": 1..60
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
	{call: "epoll_ctl", errors: "ENOMEM ENOSPC", provoke: "workers"},
	// Go's runtime tries again twenty times and gives up then
	{call: "epoll_pwait", errors: "EINTR", burst: "1..5"},
	{call: "recvfrom", errors: "EINTR ECONNRESET ETIMEDOUT ENOMEM ENOBUFS EHOSTUNREACH"},
	{call: "sendto", errors: "EINTR ECONNRESET EPIPE ETIMEDOUT ENOMEM ENOBUFS EHOSTUNREACH"},
	{call: "sendmsg", errors: "EAGAIN ENOBUFS ENOMEM EPIPE", provoke: "reload"},
	{call: "recvmsg", errors: "EINTR ENOBUFS ENOMEM ECONNRESET EIO", provoke: "workers"},
	// A ring that is refused for good is given up; the code after an upgrade has new ones.
	{call: "io_uring_enter", errors: "EAGAIN EBUSY EINTR ENOMEM EBADF EOPNOTSUPP", before: "upgrade"},
	{call: "splice", errors: "EINVAL ENOMEM EPIPE ECONNRESET"},
	{call: "pipe2", errors: "EMFILE ENFILE ENOMEM", provoke: "workers"},
	{call: "setsockopt", errors: "EINVAL ENOPROTOOPT ENOMEM ENOBUFS", provoke: "reload"},
	{call: "getsockopt", errors: "ENOBUFS ENOPROTOOPT", provoke: "reload"},
	{call: "shutdown", errors: "ENOTCONN"},
	{call: "openat", errors: "EMFILE ENFILE EACCES ENOSPC EROFS ENOENT", provoke: "state"},
	{call: "openat", errors: "EMFILE ENFILE", provoke: "workers"},
	{call: "renameat,renameat2,rename", errors: "EACCES ENOSPC EROFS EIO", provoke: "state"},
	{call: "fsync", errors: "EIO ENOSPC EDQUOT", provoke: "state"},
	{call: "write", errors: "ENOSPC EIO EDQUOT EPIPE EAGAIN", only: "log", provoke: "state"},
	{call: "write,pwrite64", errors: "ENOSPC EIO EDQUOT", only: "access", provoke: "state"},
	{call: "write,pwrite64", errors: "ENOSPC EIO EDQUOT", only: "new state", provoke: "state"},
	{call: "clone,clone3", errors: "EAGAIN", burst: "1..5", provoke: "workers"}, // as with epoll_pwait
	{call: "execve", errors: "ENOENT EACCES ETXTBSY ENOEXEC ENOMEM E2BIG", provoke: "workers"},
	// lb looks twenty times at what is left
	{call: "kill,pidfd_send_signal", errors: "ESRCH EPERM", burst: "1..5", provoke: "workers"},
	{call: "pidfd_open", errors: "EMFILE ENFILE ENOMEM ENOSYS EPERM", provoke: "workers"},
	{call: "bind", errors: "EADDRINUSE EACCES ENOMEM EADDRNOTAVAIL", provoke: "reload"},
	{call: "listen", errors: "EADDRINUSE ENOMEM", provoke: "reload"},
	{call: "ioctl", errors: "ENOTTY EFAULT EIO"},
	{call: "unlink,unlinkat", errors: "EACCES EROFS EBUSY", provoke: "workers"},
	{call: "mkdir,mkdirat", errors: "EACCES ENOSPC EROFS", provoke: "pool"},
	{call: "fchmod,fchmodat,fchown,fchownat,lchown", errors: "EPERM EROFS", provoke: "pool"},
	{call: "fcntl", errors: "EMFILE", provoke: "handed"},
	{call: "fcntl", errors: "EMFILE", provoke: "workers"},
	// The rehearsal of an upgrade makes them first, and it refuses.
	{call: "epoll_create1", errors: "EMFILE ENFILE ENOMEM", provoke: "upgrade"},
	{call: "eventfd2", errors: "EMFILE ENFILE ENOMEM", provoke: "upgrade"},
	{call: "memfd_create", errors: "EMFILE ENFILE ENOMEM ENOSYS EPERM", provoke: "upgrade"},
}

const (
	faultTime     = 600 * time.Millisecond // how long a fault is there at least
	mostFaultTime = 6 * time.Second        // how long at most, where lb answers late what provokes it
)

// TestFaults has each call on lb's paths fail with each error, once and in a burst, under a byte-checking
// load. lb must live, serve as before soon after the end of the fault, answer on its control socket, lose no
// byte silently, and leak neither sessions nor descriptors. A case that fails ends its lb: the others go on
// with a new one.
//
// LB_FAULTS names the cases to run, all if it is empty. LB_FAULTS_TIME bounds how long new cases begin: then
// only bursts are tried, the first error of each call before the second of any.
func TestFaults(t *testing.T) {
	c := &campaign{only: os.Getenv("LB_FAULTS"), calls: map[string]*callCount{}}
	if text := os.Getenv("LB_FAULTS_TIME"); text != "" {
		most, err := time.ParseDuration(text)
		if err != nil {
			t.Fatalf("LB_FAULTS_TIME: %v", err)
		}
		c.until = time.Now().Add(most)
	}
	mayTrace(t)
	c.begin(t)
	for errnos := 0; c.cycle(t, errnos); errnos++ {
	}
	c.end(t)
}

// campaign is a run of TestFaults.
type campaign struct {
	only   string    // "recvmsg" or "recvmsg:EIO" for one
	until  time.Time // no case begins later; the zero value: all are run, singly and in bursts
	rig    *checkedRig
	before int // descriptors of lb

	ran, reached, injected int
	calls                  map[string]*callCount
}

// callCount is how often one call failed, in how many cases.
type callCount struct {
	cases, injected int
	unmet           string
}

// cycle tries each call with its error of that number. It reports whether there was any.
func (c *campaign) cycle(t *testing.T, number int) (found bool) {
	for _, f := range faults {
		errnos := strings.Fields(f.errors)
		if number >= len(errnos) {
			continue
		}
		if found = true; !c.until.IsZero() && time.Now().After(c.until) {
			t.Logf("LB_FAULTS_TIME is over at %s:%s", f.call, errnos[number])
			return false
		}
		burst := "1..60"
		if f.burst != "" {
			burst = f.burst
		}
		if c.until.IsZero() && c.try(t, f, errnos[number], "1") == 0 {
			continue // a burst would not meet it either
		}
		c.try(t, f, errnos[number], burst)
	}
	return found
}

// mayTrace skips the test where strace may not attach to another process, as in some containers.
func mayTrace(t *testing.T) {
	t.Helper()
	sleep := exec.Command("sleep", "60")
	dieWithParent(sleep)
	if err := sleep.Start(); err != nil {
		t.Fatal(err)
	}
	defer sleep.Wait()
	defer sleep.Process.Kill()
	tracer := exec.Command(program(t, "strace"), "-o", os.DevNull, "-p", fmt.Sprint(sleep.Process.Pid))
	stderr, err := tracer.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := tracer.Start(); err != nil {
		t.Fatalf("cannot start strace: %v", err)
	}
	line, _ := bufio.NewReader(stderr).ReadString('\n')
	tracer.Process.Signal(syscall.SIGTERM)
	tracer.Wait()
	if !strings.Contains(line, "attached") {
		t.Skipf("no call can be made to fail: strace may not trace another process here: %s", strings.TrimSpace(line))
	}
}

// begin starts an lb under load.
func (c *campaign) begin(t *testing.T) {
	t.Helper()
	c.rig = startCheckedRig(t)
	c.rig.recover(t, "at the start")
	c.before = c.rig.descriptors(t)
}

// try has one call fail and returns how often it did; -1 where the case is not asked for.
func (c *campaign) try(t *testing.T, f fault, errno, when string) int {
	name := strings.TrimSpace(fmt.Sprintf("%s:%s:%s %s", f.call, errno, when, f.only))
	if c.only != "" && !strings.HasPrefix(name, c.only) {
		return -1
	}
	n := 0
	ok := t.Run(name, func(t *testing.T) {
		c.rig.provoke(t, f.before)
		n = c.rig.inject(t, f, errno, when)
		t.Logf("%-60s injected %d times", name, n)
		c.rig.recover(t, name)
		if t.Failed() {
			t.Logf("the log of lb:\n%s", c.rig.logTail())
		}
	})
	c.ran++
	call := strings.TrimSpace(f.call + " " + f.only)
	if c.calls[call] == nil {
		c.calls[call] = &callCount{unmet: f.unmet}
	}
	c.calls[call].cases++
	c.calls[call].injected += n
	if c.injected += n; n > 0 {
		c.reached++
	}
	if !ok {
		c.rig.discard()
		c.begin(t)
	}
	return n
}

// end stops the load and looks at what is left.
func (c *campaign) end(t *testing.T) {
	if c.ran == 0 {
		t.Fatalf("faults that begin with LB_FAULTS=%q: got none; want some", c.only)
	}
	for _, call := range slices.Sorted(maps.Keys(c.calls)) {
		n := c.calls[call]
		t.Logf("%-50s failed %5d times in %2d cases %s", call, n.injected, n.cases, n.unmet)
		if n.injected == 0 && n.unmet == "" {
			t.Errorf("%s: got no call of lb that failed; want some", call)
		}
	}
	c.rig.load.end()
	for _, err := range c.rig.load.takeWorst() {
		t.Errorf("at the end: %v", err)
	}
	t.Logf("%d of %d faults met a call of lb, %d calls failed; load: %v", c.reached, c.ran, c.injected, c.rig.load)
	c.rig.waitReleased(t)
	eventually(t, patience, func() error {
		// Pools of pipes and workers' descriptors vary a little; a leak a fault would be hundreds.
		if now := c.rig.descriptors(t); now > c.before+24 {
			return fmt.Errorf("descriptors of lb: got %d; want about %d as before\n%s", now, c.before, c.rig.describeDescriptors())
		}
		return nil
	})
}

// inject has the call fail for a while, provokes it meanwhile, and returns how often it failed.
func (rig *checkedRig) inject(t *testing.T, f fault, errno, when string) int {
	t.Helper()
	report := filepath.Join(rig.reports, "strace")
	inject := fmt.Sprintf("inject=%s:error=%s:when=%s", f.call, errno, when)
	args := []string{"-f", "-o", report, "-e", "trace=" + f.call, "-e", inject, "-p", fmt.Sprint(rig.pid())}
	if f.provoke != "upgrade" { // workers are left alone
		args = append(args, "-b", "execve")
	}
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
	least, most := time.After(faultTime), time.After(mostFaultTime)
	provoked := make(chan struct{})
	go func() {
		defer close(provoked)
		rig.provoke(t, f.provoke)
	}()
	select {
	case <-provoked:
		<-least
	case <-most:
	}
	tracer.Process.Signal(syscall.SIGTERM)
	tracer.Wait()
	<-provoked
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
	case "workers", "handed":
		pool := map[string]string{"workers": "app", "handed": "hand"}[what]
		ask("restart", pool+"/0", "--timeout", "3s")
		for until := time.Now().Add(recoveryTime); time.Now().Before(until); time.Sleep(20 * time.Millisecond) {
			r := rig.command(t, "workers", pool, "--json") // lb stops the old worker
			var s workersStatus
			if json.Unmarshal([]byte(r.stdout), &s) == nil && r.code == 0 && len(s.Retired) == 0 {
				return
			}
		}
	case "reload":
		rig.reload(t, ask, rig.more)
	case "upgrade":
		ask("upgrade")
	case "pool":
		pool := rig.more
		pool.Pools = append(pool.Pools[:len(pool.Pools):len(pool.Pools)], lbPool{Name: "extra", Health: heartbeats, Options: fmt.Sprintf(
			"[pools.extra.workers]\ncommand = [%q]\ncount = 1\nready = \"notify\"\n", sampleWorker(t))})
		pool.Listeners = slices.Clone(pool.Listeners)
		pool.Listeners[len(pool.Listeners)-1].Pool = "extra"
		rig.reload(t, ask, pool)
	}
}
