package bench

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Command says how to start a process.
type Command struct {
	// Name stands for the process in errors.
	Name string
	// Path is the program; it is not looked up in PATH. Args are its arguments, without the program.
	Path string
	Args []string
	// Env are variables added to this program's own, as "NAME=value".
	Env []string
	// Log is the file that receives the process's standard output and error; an existing one is emptied. It
	// is a file, not a pipe, so that a grandchild that outlives the process blocks nobody.
	Log string
	// Files are open in the process as descriptors 3, 4 and so on. Start leaves them open here.
	Files []*os.File
	// DeathSignal is what the kernel sends to the process when this program dies; 0 means SIGKILL. A master
	// with workers wants SIGTERM, because nobody tells the workers when their master is killed.
	DeathSignal syscall.Signal
}

// Process is a running child of this program. Its methods are safe for concurrent use.
type Process struct {
	command Command
	cmd     *exec.Cmd
	done    chan struct{} // closed after the child was reaped; err is valid from then on
	err     error
}

// Start starts a process, in a process group of its own: an interrupt typed at the terminal reaches this
// program only, and this program decides how its children end. Whoever starts a process must call
// [Process.Stop].
func Start(c Command) (*Process, error) {
	log, err := os.OpenFile(c.Log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot open log of %s: %w", c.Name, err)
	}
	defer log.Close()
	cmd := exec.Command(c.Path, c.Args...)
	cmd.Env = append(os.Environ(), c.Env...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = c.Files
	death := c.DeathSignal
	if death == 0 {
		death = syscall.SIGKILL
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: death}

	p := &Process{command: c, cmd: cmd, done: make(chan struct{})}
	started := make(chan error)
	go p.run(started)
	if err := <-started; err != nil {
		return nil, fmt.Errorf("cannot start %s: %w", c.Name, err)
	}
	return p, nil
}

// run starts the child and waits for it on one locked thread: to the kernel the parent, whose death is
// signalled, is the thread that forked (prctl(2), PR_SET_PDEATHSIG), so that thread must last as long as the
// child.
func (p *Process) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := p.cmd.Start()
	started <- err
	if err != nil {
		return
	}
	p.awaitExit()
	// Until it is reaped the dead child keeps its pid, and with it the id of its group, so this hits nobody
	// else. Without it the workers of a master that crashed would live on.
	_ = syscall.Kill(-p.PID(), syscall.SIGKILL)
	p.err = p.cmd.Wait()
	close(p.done)
}

// awaitExit waits until the child is dead, and leaves it to be reaped.
func (p *Process) awaitExit() {
	for {
		err := unix.Waitid(unix.P_PID, p.PID(), nil, unix.WEXITED|unix.WNOWAIT, nil)
		if err != unix.EINTR {
			return
		}
	}
}

// PID returns the process id. After the process has ended it can be somebody else's.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done returns a channel that is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// CPU returns the CPU time of the process and of those of its children that it waited for. It is zero until
// Done is closed.
func (p *Process) CPU() time.Duration {
	if !p.ended() {
		return 0
	}
	return p.cmd.ProcessState.UserTime() + p.cmd.ProcessState.SystemTime()
}

func (p *Process) ended() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// Output returns what the process wrote so far to its standard output and error.
func (p *Process) Output() string {
	b, err := os.ReadFile(p.command.Log)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// Exited returns nil while the process runs, and afterwards an error that says how it ended and the last
// lines it wrote.
func (p *Process) Exited() error {
	if !p.ended() {
		return nil
	}
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended (%s)%s", p.command.Name, how, lastLines(p.Output(), 5))
}

// explain returns why the process ended if that is what err comes from, and err otherwise. The connections of
// a process break a moment before it can be seen to have ended, so it waits that long.
func (p *Process) explain(err error) error {
	timer := time.NewTimer(200 * time.Millisecond)
	defer timer.Stop()
	select {
	case <-p.done:
		return p.Exited()
	case <-timer.C:
		return err
	}
}

// Wait waits until the process has ended by itself; an exit status other than 0 is an error. If ctx ends
// first, Wait stops the process and returns the error of ctx.
func (p *Process) Wait(ctx context.Context) error {
	select {
	case <-p.done:
		if p.err != nil {
			return p.Exited()
		}
		return nil
	case <-ctx.Done():
		return errors.Join(ctx.Err(), p.Stop(0))
	}
}

// WaitReady calls probe until it returns nil, the process ends, the limit is over or ctx ends. The probe must
// give up when its context ends.
func (p *Process) WaitReady(ctx context.Context, limit time.Duration, probe func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	for {
		if err := p.Exited(); err != nil {
			return err
		}
		err := probe(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-again.C:
		case <-p.done:
		case <-ctx.Done():
			return fmt.Errorf("cannot reach %s: %w%s", p.command.Name, err, lastLines(p.Output(), 5))
		}
	}
}

// Stop ends the process and all of its descendants: SIGTERM to the process first, and SIGKILL to whatever of
// them is left after the grace time. A grace of 0 or less kills at once. It returns after the process was
// reaped; that a process ends by a signal is no error. Stopping an ended process does nothing. The error says
// that the descendants could not be listed, so that those outside the process's group may be left.
func (p *Process) Stop(grace time.Duration) error {
	if p.ended() {
		return nil
	}
	// The list is made before the first signal: once the parent is dead its children are somebody else's.
	family, err := snapshot(p.PID())
	if err != nil && p.ended() {
		return nil
	}
	if grace > 0 {
		// An error means that it has ended in the meantime, which is what Stop is for.
		_ = p.cmd.Process.Signal(syscall.SIGTERM)
		timer := time.NewTimer(grace)
		defer timer.Stop()
		select {
		case <-p.done:
		case <-timer.C:
		}
	}
	_ = p.cmd.Process.Kill()
	<-p.done
	if err != nil {
		return fmt.Errorf("cannot list descendants of %s: %w", p.command.Name, err)
	}
	for _, member := range family {
		// The start time tells the process that was seen from a new one that was given the same pid.
		if now, err := readStat(member.pid); err == nil && now.start == member.start {
			_ = syscall.Kill(member.pid, syscall.SIGKILL)
		}
	}
	return nil
}

// snapshot returns the stat of root and of each of its descendants that still is there.
func snapshot(root int) ([]procStat, error) {
	pids, err := Tree(root)
	if err != nil {
		return nil, err
	}
	var stats []procStat
	for _, pid := range pids {
		if st, err := readStat(pid); err == nil {
			stats = append(stats, st)
		}
	}
	return stats, nil
}

// lastLines returns the last n lines of s, each indented on a line of its own, for the end of an error
// message.
func lastLines(s string, n int) string {
	lines := bytes.Split(bytes.TrimSpace([]byte(s)), []byte("\n"))
	if len(lines) > n {
		lines = lines[len(lines)-n:]
	}
	var out strings.Builder
	for _, line := range lines {
		if len(line) > 0 {
			fmt.Fprintf(&out, "\n\t%s", line)
		}
	}
	return out.String()
}
