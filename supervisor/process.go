package supervisor

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// process is a worker's process, as far as the pool needs it.
type process struct {
	pid     int
	session *session
	// when, in clock ticks since boot (proc_pid_stat(5)): tells it from another one of the same pid
	start  uint64
	signal func(sig unix.Signal, group bool)
	// sends a signal that asks for no end; errUnhandled if it would be one
	announce func(sig unix.Signal) error
	release  func() // has the shim go on
	// waits for its end, and tells the pool; may be called again when ctx was done before. Nil: others tell
	watch func(ctx context.Context)
	close func() // gives the watch up

	exit // the zero value but for the status, -1, until the pool has heard of its end
}

// exit is how a process has ended.
type exit struct {
	status int           // its exit status; -1 for a signal, or when that is not known
	cpu    time.Duration // of it and of what it has waited for
}

// spawn starts w's process, stopped in the shim, and watches it.
func (p *Pool) spawn(w *worker) (*process, error) {
	dir, err := w.release.follow()
	if err == nil && dir != "" {
		_, err = os.Stat(dir)
	}
	if err != nil && w.release.Pin != "" {
		if errors.Is(err, os.ErrNotExist) {
			err = errors.New("it is gone")
		}
		return nil, fmt.Errorf("cannot use %q, the directory of the last restart that worked: %w; restart the pool to follow dir = %q again",
			w.release.Pin, err, w.release.Dir)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use dir = %q: %w", w.release.Dir, err)
	}
	w.dir = dir
	w.invocation = invocationID()
	id, err := w.release.config().identity()
	if err != nil {
		return nil, err
	}
	l := launch{
		Set: id.set, UID: id.uid, GID: id.gid, Groups: id.groups, Umask: w.release.Umask, Nice: w.release.Nice,
		Nofile: w.release.RlimitNofile,
	}
	for _, arg := range w.release.Command {
		l.Command = append(l.Command, w.end.fill(arg))
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		return nil, fmt.Errorf("cannot start worker: %w", err)
	}
	defer null.Close()
	out, in, err := outputPipe()
	if err != nil {
		return nil, fmt.Errorf("cannot start worker: %w", err)
	}
	defer unix.Close(in)
	if id.set { // it opens its own output by name as well: /dev/stderr
		if err := unix.Fchown(in, id.uid, id.gid); err != nil {
			out.Close()
			return nil, fmt.Errorf("cannot give worker its output: %w", err)
		}
	}
	var gate [2]int
	if err := unix.Pipe2(gate[:], unix.O_CLOEXEC); err != nil {
		out.Close()
		return nil, fmt.Errorf("cannot start worker: %w", err)
	}
	defer unix.Close(gate[0])
	files := []uintptr{null.Fd(), uintptr(in), uintptr(in)}
	if w.end.fd >= 0 {
		// as the worker before may have left it; programs expect it to block
		unix.SetNonblock(w.end.fd, false)
		files = append(files, uintptr(w.end.fd))
		l.Listen = 1
	}
	if w.end.handoff != "" {
		files = append(files, uintptr(w.end.front))
		l.Listen = 2
	}
	files = append(files, uintptr(gate[0]))
	text, err := json.Marshal(l)
	if err != nil {
		panic("BUG: supervisor: a launch that is no JSON: " + err.Error())
	}
	p.dir.roster.starting.RLock()
	defer p.dir.roster.starting.RUnlock()
	pidfd := -1
	argv := slices.Concat(p.Shim, []string{string(text)})
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{
		Dir: dir, Env: p.environment(w, id), Files: files,
		Sys: &syscall.SysProcAttr{Setsid: true, PidFD: &pidfd},
	})
	if err == nil && pidfd < 0 {
		pidfd, err = unix.PidfdOpen(pid, 0)
	}
	if err != nil {
		out.Close()
		unix.Close(gate[1])
		return nil, fmt.Errorf("cannot start worker: %w", err)
	}
	start, _ := startTime(pid)
	w.out = p.newOutput(w.slot.number, pid, out)
	proc := p.newProcess(w, pid, start, pidfd)
	proc.release = func() {
		unix.Write(gate[1], []byte{1}) // no reader: it was killed, which its watch sees
		unix.Close(gate[1])
	}
	return proc, nil
}

// environment is lb's own, without what lb's own supervisor told it, then the config's, then what lb tells
// its workers.
func (p *Pool) environment(w *worker, id identity) []string {
	env := map[string]string{}
	for _, kv := range os.Environ() {
		if name, value, ok := strings.Cut(kv, "="); ok && name != "" {
			env[name] = value
		}
	}
	for _, name := range []string{"INVOCATION_ID", "JOURNAL_STREAM", "MAINPID", "FDSTORE", "SYSTEMD_EXEC_PID"} {
		delete(env, name)
	}
	for _, name := range ownEnv {
		delete(env, name)
	}
	if id.home != "" {
		for _, name := range []string{"USER", "LOGNAME", "MAIL", "SHELL", "XDG_RUNTIME_DIR", "DBUS_SESSION_BUS_ADDRESS", "SSH_AUTH_SOCK"} {
			delete(env, name) // of lb's own user
		}
		env["HOME"] = id.home
		if id.name != "" {
			env["USER"], env["LOGNAME"] = id.name, id.name
		}
	}
	switch {
	case w.release.Pin != "":
		env["PWD"] = w.dir
	case w.release.Dir != "":
		env["PWD"] = w.release.Dir // as typed, as a shell has it
		if dir, err := filepath.Abs(w.release.Dir); err == nil {
			env["PWD"] = dir
		}
	}
	for name, value := range w.release.Env {
		env[name] = w.end.fill(value)
	}
	env["INVOCATION_ID"] = w.invocation
	env["LB_WORKER_ID"] = strconv.Itoa(w.slot.number)
	env["NOTIFY_SOCKET"] = p.receiver.Path()
	if w.end.handoff != "" {
		p.handoffEnvironment(w, env)
	} else {
		if w.end.path != "" {
			env["LB_WORKER_SOCKET"] = w.end.path
		}
		if w.end.fd >= 0 {
			env["LISTEN_FDS"], env["LISTEN_FDNAMES"] = "1", p.Name
		}
	}
	if p.cfg.Watchdog > 0 {
		env["WATCHDOG_USEC"] = strconv.FormatInt(p.cfg.Watchdog.Microseconds(), 10)
	}
	list := make([]string, 0, len(env))
	for name, value := range env {
		list = append(list, name+"="+value)
	}
	slices.Sort(list)
	return list
}

// invocationID returns what tells one worker from all others, ever: 128 random bits, as systemd's
// INVOCATION_ID.
func invocationID() string {
	var id [16]byte
	rand.Read(id[:])
	return hex.EncodeToString(id[:])
}

// newProcess returns w's process, a child or not. Its end is waited for without a thread: its pidfd is in the
// runtime's epoll set. After a stop signal what it has started gets the same time to end as it has itself.
// What is left then is killed before its pid is given back, and its last words are read.
func (p *Pool) newProcess(w *worker, pid int, start uint64, pidfd int) *process {
	unix.SetNonblock(pidfd, true) // os.NewFile takes what does not block into the epoll set
	f := os.NewFile(uintptr(pidfd), "pidfd")
	var mu sync.Mutex
	ended := false // its pid may be another's
	// it was asked to end, and what it has started with it
	var stops atomic.Bool
	// it was sent SIGKILL, and what it has started is still to be
	var strikes atomic.Bool
	interrupt := func() { f.SetReadDeadline(time.Unix(1, 0)) } // has watch look at why
	session := p.sessionOf(w, pid, start)
	proc := &process{pid: pid, start: start, session: session, exit: exit{status: -1}, release: func() {}, close: func() { f.Close() }}
	proc.watch = func(ctx context.Context) {
		stop := context.AfterFunc(ctx, interrupt)
		defer stop()
		for {
			f.SetReadDeadline(time.Time{})
			if ctx.Err() != nil {
				return
			}
			if strikes.Swap(false) {
				session.strike()
			}
			if err := awaitEnd(ctx, f); err == nil {
				break
			} else if !errors.Is(err, os.ErrDeadlineExceeded) {
				return
			}
		}
		p.dir.roster.ended(session.id())
		for stops.Load() && session.lives() {
			select {
			case <-time.After(membersLook):
			case <-ctx.Done():
				return
			}
		}
		strays, first := session.kill()
		p.dir.roster.forget(session.id(), session.user)
		orphans, orphan := session.killOrphans()
		mu.Lock()
		how, reason, reaped := reap(pid)
		ended = true
		mu.Unlock()
		if strays > 0 {
			reason += fmt.Sprintf("; it left process %d in the background, which was killed: run the program in the foreground", first)
			if strays > 1 {
				reason += fmt.Sprintf(" (and %d more)", strays-1)
			}
		}
		if orphans > 0 {
			reason += fmt.Sprintf("; process %d of its user was left in the background, and was killed", orphan)
			if orphans > 1 {
				reason += fmt.Sprintf(" (and %d more)", orphans-1)
			}
		}
		f.Close()
		if w.out != nil {
			w.out.finish()
		}
		p.post(func() { // the pool may have given it up
			proc.exit = how
			p.fire(w, exited, reason)
		})
		if !reaped {
			reapLater(ctx, pid)
		}
	}
	send := func(sig unix.Signal, group bool) error {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			return nil
		}
		if group {
			failed := unix.Kill(-pid, sig)
			// A leader of a session stays in its group; what an older lb has started may have left it.
			if own, err := unix.Getpgid(pid); failed == nil && sig != unix.SIGKILL && err == nil && own == pid {
				return nil
			}
		}
		raw, err := f.SyscallConn()
		if err != nil {
			return nil // closed: it is watched no more
		}
		raw.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), sig, nil, 0) })
		return err
	}
	proc.signal = func(sig unix.Signal, group bool) {
		stops.Store(sig != unix.SIGKILL)
		if err := send(sig, group); err != nil && sig == unix.SIGKILL {
			again(killTries, func() error { return send(sig, group) })
		}
		if sig == unix.SIGKILL {
			strikes.Store(true)
			interrupt()
		}
	}
	proc.announce = func(sig unix.Signal) error {
		if !handles(pid, sig) {
			return errUnhandled
		}
		return send(sig, false)
	}
	if w.state == stopping || w.state == aborting {
		stops.Store(true)
	}
	return proc
}

const (
	// A SIGKILL that the kernel refuses, as a security module or a change of the worker's user may have it,
	// is sent again after killPause, killTries times.
	killTries = 40
	killPause = 200 * time.Millisecond
	// unwatchedLook is how often a process, or the output of one, is looked at that epoll(7) does not watch:
	// the kernel had no memory for it, or the user no watch.
	unwatchedLook = 100 * time.Millisecond
	// membersLook is how often a worker that has ended is asked whether what it has started has, too.
	membersLook = 20 * time.Millisecond
	// reapPatience is how long a process that has ended may keep its exit status from lb: one that is traced
	// does.
	reapPatience = 500 * time.Millisecond
)

// again calls do after killPause, up to n times, until it returns nil.
func again(n int, do func() error) {
	time.AfterFunc(killPause, func() {
		if do() != nil && n > 1 {
			again(n-1, do)
		}
	})
}

// awaitEnd returns nil when the process of a pidfd has ended. The error is os.ErrDeadlineExceeded when it is
// time to look at what else there is to do, os.ErrClosed when f is closed, or ctx's.
func awaitEnd(ctx context.Context, f *os.File) error {
	raw, err := f.SyscallConn()
	if err != nil {
		return err
	}
	err = raw.Read(func(fd uintptr) bool {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, e := unix.Poll(polled, 0)
		return e == nil && n > 0
	})
	if err == nil || errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, os.ErrClosed) {
		return err
	}
	select { // the runtime could not put the pidfd into its epoll set
	case <-time.After(unwatchedLook):
		return os.ErrDeadlineExceeded
	case <-ctx.Done():
		return ctx.Err()
	}
}

// reap takes the exit status of a process that has ended, and returns it also in words. It never waits for
// long: a tracer of the same user can hold the status back for as long as it likes.
func reap(pid int) (how exit, reason string, reaped bool) {
	var status unix.WaitStatus
	var used unix.Rusage
	for deadline := time.Now().Add(reapPatience); ; time.Sleep(time.Millisecond) {
		got, err := unix.Wait4(pid, &status, unix.WNOHANG, &used)
		switch {
		case err == unix.EINTR:
			continue
		case err != nil:
			return exit{status: -1}, "ended (another lb had started it: no exit status)", true
		case got == 0 && time.Now().After(deadline):
			return exit{status: -1}, "ended (no exit status: another process traces it)", false
		case got == 0:
			continue
		}
		break
	}
	how = exit{status: status.ExitStatus(), cpu: time.Duration(used.Utime.Nano() + used.Stime.Nano())}
	switch {
	case status.Signaled() && status.CoreDump():
		return how, fmt.Sprintf("signal: %v (core dumped)", status.Signal()), true
	case status.Signaled():
		return how, fmt.Sprintf("signal: %v", status.Signal()), true
	default:
		return how, fmt.Sprintf("exit status %d", status.ExitStatus()), true
	}
}

// reapLater waits until a tracer lets go of a process that has ended.
func reapLater(ctx context.Context, pid int) {
	for {
		if got, err := unix.Wait4(pid, nil, unix.WNOHANG, nil); got == pid || err != nil && err != unix.EINTR {
			return
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// startTime returns when a process was started, in clock ticks since boot; a zombie is one, too.
func startTime(pid int) (uint64, error) {
	r, err := readRelative(pid)
	return r.start, err
}

// hidesOthers reports whether /proc hides the processes of other users from lb: whether the host's first
// process is not there.
func hidesOthers() bool {
	_, err := startTime(1)
	return err != nil
}

// signalNamed returns the signal that a config names, with or without "SIG" in front.
func signalNamed(name string) unix.Signal {
	sig := unix.SignalNum("SIG" + strings.TrimPrefix(name, "SIG"))
	if sig == 0 {
		panic("BUG: supervisor: no signal " + name)
	}
	return sig
}
