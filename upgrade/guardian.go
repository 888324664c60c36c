package upgrade

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The guardian is a child that this process forks right before it executes the new binary. It holds copies of
// all descriptors, the state among them, until the new code has taken over. If the process ends before that,
// the guardian executes the binary before, which takes over with another pid. It also traces the process, as
// far as the host allows that (ptrace(2)), and so holds back signals that the new code does not hear yet.
// guardian_child.go is what it runs.

// guardPatience bounds how long a process may take to take over before its guardian ends it. The new code and
// the code before it have bounds of their own, which are shorter.
const guardPatience = 30 * time.Second

// guardAnswer bounds how long each answer of the guardian may take.
const guardAnswer = 5 * time.Second

// What process and guardian say to each other, one byte each. To the last two the guardian answers with how
// often each signal came, and ends.
const (
	saidWatch    = 'W' // to the guardian: begin
	saidTraced   = 'T' // its answer: all signals are held back
	saidUntraced = 'U' // its answer: the host does not allow it to trace
	saidKeep     = 'K' // to the guardian: somebody else has taken over
)

// signalCounts is how often each signal came; its number is the index.
type signalCounts [65]uint8

// signals returns each signal as often as it came.
func (c *signalCounts) signals() (all []syscall.Signal) {
	for sig, n := range c {
		for range n {
			all = append(all, syscall.Signal(sig))
		}
	}
	return all
}

// Died is what became of a process that ended before it had taken over.
type Died struct {
	PID    int
	Status syscall.WaitStatus
	Known  bool // whether Status is known
}

// String returns how the process ended.
func (d *Died) String() string {
	switch {
	case !d.Known:
		return "ended"
	case d.Status.Signaled():
		return fmt.Sprintf("was ended by a signal (%v)", d.Status.Signal())
	}
	return fmt.Sprintf("ended with exit status %d", d.Status.ExitStatus())
}

// Reap lets the parent of the process see its end. Until then, a guardian that traced it keeps that back, so
// that a service manager can be told first of the process that goes on.
func (d *Died) Reap() { unix.Wait4(d.PID, nil, unix.WNOHANG|unix.WALL, nil) }

// parseDied reads the variable of the environment.
func parseDied(value string) *Died {
	d := &Died{}
	var status int64
	if n, _ := fmt.Sscanf(value, "%d %d", &d.PID, &status); n != 2 || value == "" {
		return nil
	}
	d.Known = status != unknownStatus
	d.Status = syscall.WaitStatus(status)
	return d
}

// unknownStatus stands for the exit status of a process that the guardian could not trace.
const unknownStatus = 0xffff_ffff

// newGuardian prepares a guardian that runs binary, with the state, if this process ends. It copies
// everything that the child needs: that may not allocate. The caller closes it.
func newGuardian(binary, state uintptr, args, env []string, hold []syscall.Signal) (g *guardian, err error) {
	g = &guardian{
		parent: uintptr(os.Getpid()), tasks: fmt.Appendf(nil, "/proc/%d/task\x00", os.Getpid()),
		binary: fmt.Appendf(nil, "/proc/self/fd/%d\x00", binary), patience: unix.NsecToTimespec(int64(guardPatience)),
	}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socketpair", err)
	}
	g.near, g.far = pair[0], pair[1]
	limit := unix.NsecToTimeval(int64(guardAnswer))
	if err := unix.SetsockoptTimeval(g.far, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if g.pidfd, err = unix.PidfdOpen(os.Getpid(), 0); err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	children := sigset(append([]syscall.Signal{syscall.SIGCHLD}, hold...))
	if g.signalfd, err = unix.Signalfd(-1, &children, unix.SFD_CLOEXEC|unix.SFD_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("signalfd", err)
	}
	for _, sig := range hold {
		g.hold |= 1 << uint(sig)
	}
	page, err := unix.Mmap(-1, 0, int(unsafe.Sizeof(notes{})), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, os.NewSyscallError("mmap", err)
	}
	g.page, g.notes = page, (*notes)(unsafe.Pointer(&page[0]))
	g.notes.diedAt = int32(copy(g.notes.died[:], fmt.Sprintf("%s=%d ", envDied, os.Getpid())))
	g.notes.signalsEnd = int32(copy(g.notes.signals[:], envSignals+"="))
	argv, err1 := syscall.SlicePtrFromStrings(args)
	envp, err2 := syscall.SlicePtrFromStrings(append(env, fmt.Sprintf("%s=%d -1", envHandover, state)))
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	g.argv = argv
	g.envp = append(envp[:len(envp)-1], &g.notes.died[0], &g.notes.signals[0], nil)
	return g, nil
}

// close gives the descriptors and the page back.
func (g *guardian) close() {
	for _, fd := range []*int{&g.near, &g.far, &g.pidfd, &g.signalfd} {
		if *fd > 0 {
			unix.Close(*fd)
			*fd = 0
		}
	}
	if g.page != nil {
		unix.Munmap(g.page)
		g.page, g.notes = nil, nil
	}
}

// start forks the guardian, and returns once it watches this process. mask is the signal mask of the program
// that it may run. The caller has locked the thread.
func (g *guardian) start(mask unix.Sigset_t) error {
	g.programMask = mask
	var all, before unix.Sigset_t
	for i := range all.Val {
		all.Val[i] = ^all.Val[i]
	}
	if err := unix.PthreadSigmask(unix.SIG_SETMASK, &all, &before); err != nil {
		return os.NewSyscallError("rt_sigprocmask", err)
	}
	pid, errno := g.fork()
	unix.PthreadSigmask(unix.SIG_SETMASK, &before, nil)
	runtime.KeepAlive(g)
	if errno != 0 {
		return os.NewSyscallError("clone", syscall.Errno(errno))
	}
	g.pid = int(pid)
	// Where Yama is on, a child may trace its parent only with leave (PR_SET_PTRACER of prctl(2)).
	unix.Prctl(unix.PR_SET_PTRACER, pid, 0, 0, 0)
	var answer [1]byte
	err := unix.Send(g.far, []byte{saidWatch}, unix.MSG_NOSIGNAL)
	if err == nil {
		_, err = receive(g.far, answer[:])
	}
	if err != nil {
		unix.Kill(g.pid, unix.SIGKILL)
		unix.Wait4(g.pid, nil, 0, nil)
		g.pid = 0
		return fmt.Errorf("it does not answer: %w", err)
	}
	g.traces = answer[0] == saidTraced
	return nil
}

// leave has the guardian hand signals on, should it have to go on in the place of this process.
func (g *guardian) leave(signals []syscall.Signal) {
	for _, sig := range signals {
		g.addSignal(uint64(sig))
	}
}

// variable tells the new code of the guardian.
func (g *guardian) variable() string { return fmt.Sprintf("%s=%d %d", envGuardian, g.pid, g.far) }

// dismiss ends a guardian that was started, and returns the signals that it has held back.
func (g *guardian) dismiss() (deferred []syscall.Signal) {
	deferred = dismiss(g.far)
	unix.Wait4(g.pid, nil, 0, nil)
	g.pid = 0
	return deferred
}

// dismiss tells the guardian behind fd that somebody has taken over. It returns the signals that it has held
// back; a guardian that was killed has none.
func dismiss(fd int) []syscall.Signal {
	var counts signalCounts
	if err := unix.Send(fd, []byte{saidKeep}, unix.MSG_NOSIGNAL); err != nil {
		return nil
	}
	if _, err := receive(fd, counts[:]); err != nil {
		return nil
	}
	return counts.signals()
}

// receive reads one message.
func receive(fd int, into []byte) (int, error) {
	for {
		// A tracer interrupts calls that have a time limit.
		n, _, err := unix.Recvfrom(fd, into, 0)
		switch {
		case err == unix.EINTR:
		case err == nil && n == 0:
			return 0, errors.New("it has ended")
		default:
			return n, err
		}
	}
}

// parseGuardian reads the variable of the environment; fd is -1 if there is none.
func parseGuardian(value string) (fd int) {
	_, number, _ := strings.Cut(value, " ")
	fd, err := strconv.Atoi(number)
	if err != nil {
		return -1
	}
	return fd
}
