//go:build e2e

package e2e

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// program returns the path of the named program, which it also looks for where PATH of a plain user does not
// lead. A missing one fails the test: nothing is skipped silently.
func program(t testing.TB, name string) string {
	t.Helper()
	if path, err := exec.LookPath(name); err == nil {
		return path
	}
	folders := []string{"/usr/sbin", "/usr/local/sbin", "/sbin"}
	versions, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	for _, folder := range append(folders, versions...) {
		if path, err := exec.LookPath(filepath.Join(folder, name)); err == nil {
			return path
		}
	}
	t.Fatalf("cannot find the program %q: run tests/e2e/install.sh", name)
	return ""
}

// process is a program that runs in the background until the test ends or stops it.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string        // file with its output
	stop os.Signal     // what the end of the test sends first
	done chan struct{} // closed when it has ended and was waited for
}

// startProcess starts cmd. Its output goes to a file, which a failed test shows, unless cmd.Stdout is set. It
// gets SIGTERM at the end of the test, and SIGKILL if that does not help or if this test process dies.
func startProcess(t testing.TB, name string, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{name: name, cmd: cmd, stop: syscall.SIGTERM, done: make(chan struct{})}
	log, err := os.CreateTemp("", "lb-e2e-log-")
	if err != nil {
		t.Fatalf("cannot make a log file: %v", err)
	}
	defer log.Close()
	p.log = log.Name()
	t.Cleanup(func() { os.Remove(p.log) })
	if cmd.Stdout == nil {
		cmd.Stdout = log
	}
	cmd.Stderr = log
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Fatalf("cannot start %s: %v", name, err)
	}
	go p.wait()
	t.Cleanup(func() { p.end(t) })
	return p
}

// dieWithParent makes the kernel kill cmd's process when this one dies.
func dieWithParent(cmd *exec.Cmd) {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	if cmd.SysProcAttr.Pdeathsig == 0 {
		cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	}
}

func (p *process) wait() {
	p.cmd.Wait() // the exit code stays in cmd.ProcessState
	close(p.done)
}

// end stops the process and shows the end of its output if the test failed.
func (p *process) end(t testing.TB) {
	p.cmd.Process.Signal(p.stop)
	select {
	case <-p.done:
	case <-time.After(patience):
		t.Errorf("%s: got no end within %v of %v; want one", p.name, patience, p.stop)
		p.kill()
	}
	if t.Failed() {
		t.Logf("end of the output of %s (pid %d, %v):\n%s", p.name, p.pid(), p.cmd.ProcessState, p.tail())
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid }

// running says whether the process has not ended yet.
func (p *process) running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

func (p *process) signal(t testing.TB, sig os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(sig); err != nil {
		t.Fatalf("cannot send %v to %s: %v", sig, p.name, err)
	}
}

// kill sends SIGKILL and returns when the process is dead.
func (p *process) kill() {
	p.cmd.Process.Kill()
	<-p.done
}

// exitCode waits for the end of the process; a process that a signal killed has the code -1.
func (p *process) exitCode(t testing.TB, timeout time.Duration) int {
	t.Helper()
	select {
	case <-p.done:
		return p.cmd.ProcessState.ExitCode()
	case <-time.After(timeout):
		t.Fatalf("%s: got no end within %v; want one", p.name, timeout)
		return 0
	}
}

// tail returns the last output of the process.
func (p *process) tail() string {
	text, _ := os.ReadFile(p.log)
	if most := 4 << 10; len(text) > most {
		text = text[len(text)-most:]
	}
	return string(text)
}

// cpuTime returns the user and system time that the process has used: utime and stime of /proc/PID/stat,
// proc(5), in ticks of 10 ms.
func (p *process) cpuTime(t testing.TB) time.Duration {
	t.Helper()
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid()))
	if err != nil {
		t.Fatalf("cannot read the CPU time of %s: %v", p.name, err)
	}
	// The second field is the command in brackets, which may hold spaces; utime and stime are the 14th and
	// 15th.
	fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
	ticks := 0
	for _, field := range fields[11:13] {
		n, err := strconv.Atoi(field)
		if err != nil {
			t.Fatalf("cannot read the CPU time of %s: %v", p.name, err)
		}
		ticks += n
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// cpuShare returns which share of one CPU the process uses during the given time.
func (p *process) cpuShare(t testing.TB, during time.Duration) float64 {
	t.Helper()
	start, before := time.Now(), p.cpuTime(t)
	time.Sleep(during) // the measurement itself
	return float64(p.cpuTime(t)-before) / float64(time.Since(start))
}

// result is what a program that ran to its end left.
type result struct {
	code           int
	stdout, stderr string
}

// run runs a program to its end, with stdin if that is not nil. It fails the test only if the program does
// not start or does not end within timeout.
func run(t testing.TB, timeout time.Duration, stdin io.Reader, name string, args ...string) result {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &stdout, &stderr
	cmd.WaitDelay = patience // a busy machine may be late to read what it wrote last
	dieWithParent(cmd)
	err := cmd.Run()
	var exit *exec.ExitError
	if ctx.Err() != nil || (err != nil && !errors.As(err, &exit)) {
		t.Fatalf("cannot run %s %q within %v: %v\n%s%s", name, args, timeout, err, &stdout, &stderr)
	}
	return result{code: cmd.ProcessState.ExitCode(), stdout: stdout.String(), stderr: stderr.String()}
}

// mustRun runs a program to its end and returns its output; an exit code other than 0 fails the test.
func mustRun(t testing.TB, timeout time.Duration, name string, args ...string) result {
	t.Helper()
	r := run(t, timeout, nil, name, args...)
	if r.code != 0 {
		t.Fatalf("%s %q: got exit code %d; want 0\n%s%s", name, args, r.code, r.stdout, r.stderr)
	}
	return r
}
