// Package upgrade puts another binary into this process: it writes the state into a memfd, keeps the
// descriptors that the state names open over execve(2), and gives the new code both. The pid, the children
// and the sockets stay.
//
// The way there is [Check] (the new binary, as a child, says what it can read) and [Exec], which returns only
// if it failed. The way in is [FromEnv], and then either [Handover.Keep], when the new code has taken
// everything over, or [Handover.Back], which gives the same state and the same descriptors to the binary
// before. Until Keep nothing of them may be changed.
//
// The package knows nothing of what the state says, starts no goroutine that outlives a call, and never logs.
package upgrade

import (
	"errors"
	"fmt"
	"math"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// The variables of the environment that tell the new code what it was given.
const (
	// "STATE BACK": descriptors of the state and of the binary before; BACK may be -1
	envHandover = "LB_HANDOVER"
	envFailed   = "LB_HANDOVER_FAILED"
	envSignals  = "LB_HANDOVER_SIGNALS" // numbers of those that were heard and not acted on
	// "PID FD": the guardian, and the connection to it
	envGuardian = "LB_HANDOVER_GUARDIAN"
	// "PID STATUS": the process that ended before it had taken over
	envDied = "LB_HANDOVER_DIED"
)

// maxReason is how much of a reason goes back, in bytes.
const maxReason = 4096

// ErrTooLarge: the state does not fit into RLIMIT_FSIZE.
var ErrTooLarge = errors.New("the state is larger than RLIMIT_FSIZE allows")

// Plan is what Exec does.
type Plan struct {
	Binary *Binary  // what to run
	Args   []string // with the program's name
	State  []byte
	FDs    []int // what the state names
	// that wait until the new code asks for them, with signal.Notify; but see signalsVariable
	Signals []syscall.Signal
	// Heard gives signals that this code has heard and leaves to the new one, which finds them in
	// Handover.Signals. It is called last. Nil: none.
	Heard func() []syscall.Signal
	// Guard asks for a guardian: if this process ends before Handover.Keep, the running binary takes over in
	// another process. The new binary must know of it (Answer.Guardian). Without the means for one, Exec does
	// without.
	Guard bool
	// Unheard is given the signals that the guardian has held back, when Exec has failed. Nil: they are lost.
	Unheard func([]syscall.Signal)
}

// Exec replaces the running code. When it returns, nothing has changed, and the error says why. The caller
// must keep all other goroutines from changing the descriptors.
func Exec(p *Plan) error {
	state, err := memfd(p.State)
	if err != nil {
		return err
	}
	defer state.Close()
	if err := p.Binary.unchanged(); err != nil {
		return err
	}
	before, err := openPath("/proc/self/exe") // also if its name is gone, or another's
	if err != nil {
		return fmt.Errorf("cannot keep the running binary for the way back: %w", err)
	}
	defer before.Close()
	fds := slices.Concat(p.FDs, []int{int(state.Fd()), int(before.Fd())})
	env := append(environment(), fmt.Sprintf("%s=%d %d", envHandover, state.Fd(), before.Fd()))
	image := image{binary: p.Binary.file.Fd(), args: p.Args, env: env, fds: fds, block: p.Signals, heard: p.Heard}
	if p.Guard {
		g, err := newGuardian(before.Fd(), state.Fd(), os.Args, environment(), p.Signals)
		if err == nil {
			defer g.close()
			image.guardian, image.fds = g, append(fds, g.far)
		}
	}
	deferred, err := image.become()
	if len(deferred) > 0 && p.Unheard != nil {
		p.Unheard(deferred)
	}
	return err
}

// environment is this process's, without what is about a handover.
func environment() []string {
	return slices.DeleteFunc(os.Environ(), func(s string) bool {
		name, _, _ := strings.Cut(s, "=")
		switch name {
		case envHandover, envFailed, envSignals, envGuardian, envDied:
			return true
		}
		return false
	})
}

// image is what this process becomes.
type image struct {
	binary    uintptr // a descriptor
	args, env []string
	fds       []int            // to keep open
	block     []syscall.Signal // until the new code asks for them
	heard     func() []syscall.Signal
	guardian  *guardian // nil: none is started
}

// become makes this process run the image. It returns if that failed, with the signals that the guardian has
// held back meanwhile.
func (m *image) become() (deferred []syscall.Signal, err error) {
	for i, fd := range m.fds {
		if err := setCloseOnExec(fd, false); err != nil {
			keepFromChildren(m.fds[:i])
			return nil, fmt.Errorf("cannot hand over descriptor %d: %w", fd, err)
		}
	}
	runtime.LockOSThread() // the mask of the thread that calls execve(2) is the new code's (signal(7))
	defer runtime.UnlockOSThread()
	mask := sigset(m.block)
	var old unix.Sigset_t
	if err := unix.PthreadSigmask(unix.SIG_BLOCK, &mask, &old); err != nil {
		keepFromChildren(m.fds)
		return nil, fmt.Errorf("cannot hold signals back: %w", err)
	}
	env := m.env
	guarded := m.guardian != nil && m.guardian.start(old) == nil
	if guarded {
		env = append(env, m.guardian.variable())
	}
	if m.heard != nil {
		heard := m.heard()
		env = append(env, signalsVariable(heard))
		if guarded {
			m.guardian.leave(heard)
		}
	}
	backToLimit := keepFileLimit()
	err = syscall.Exec(fmt.Sprintf("/proc/self/fd/%d", m.binary), m.args, env)
	backToLimit()
	if guarded {
		deferred = m.guardian.dismiss()
	}
	unix.PthreadSigmask(unix.SIG_SETMASK, &old, nil)
	keepFromChildren(m.fds)
	return deferred, execError(err)
}

// keepFileLimit is called before an exec, and back after one that failed. Go's runtime raises the soft
// RLIMIT_NOFILE, and syscall.Exec gives back what it had found: the new code raises it again, but here it
// would stay low. And if somebody has changed the limits since (prlimit(1)), the new code would have those of
// the start, and too few descriptors.
func keepFileLimit() (back func()) {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return func() {}
	}
	back = func() { syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit) }
	if limit.Cur != limit.Max-1 {
		// not what the runtime makes of it; it looks in the same way when it starts a child
		back() // after Setrlimit, syscall.Exec leaves it alone
	}
	return back
}

// execError says what to do about the usual faults.
func execError(err error) error {
	switch {
	case errors.Is(err, unix.ENOEXEC):
		return fmt.Errorf("cannot run the new binary: it is no program for this machine; build it for %s/%s: %w", runtime.GOOS, runtime.GOARCH, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("cannot run the new binary: not permitted; make it executable for the user that lb runs as (chmod +x), on a file system that is not mounted noexec: %w", err)
	}
	return fmt.Errorf("cannot run the new binary: %w", err)
}

// setCloseOnExec does without the scheduler: there are two descriptors a session.
func setCloseOnExec(fd int, on bool) error {
	flag := uintptr(0)
	if on {
		flag = unix.FD_CLOEXEC
	}
	if _, _, errno := unix.RawSyscall(unix.SYS_FCNTL, uintptr(fd), unix.F_SETFD, flag); errno != 0 {
		return errno
	}
	return nil
}

// keepFromChildren has the descriptors closed by an exec again. One that is gone needs nothing. It is done to
// all that there are at once, as sessions wait; that includes what this process was started with, which no
// child of it should have either. Kernels before 5.11 have it done one by one.
func keepFromChildren(fds []int) {
	if unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC) == nil {
		return
	}
	for _, fd := range fds {
		setCloseOnExec(fd, true)
	}
}

// openPath opens a file to run it: it need not be readable, and a FIFO does not make it wait.
func openPath(path string) (*os.File, error) { return os.OpenFile(path, unix.O_PATH, 0) }

// Handover is what the code before has given to this one.
type Handover struct {
	// State is what Exec was given.
	State []byte
	// Failed is why another binary could not take the state over and has given it back; empty if none has
	// tried.
	Failed string
	// Signals are those that the code before has heard and left to this one.
	Signals []syscall.Signal
	// Died is the process that had not taken over when it ended, if this one goes on in its place. Nil: this
	// is the process that it has always been.
	Died *Died

	unmap       func()
	state, back int    // descriptors; back is -1 on the way back
	guardian    int    // the connection to it; -1 if there is none
	guardianVar string // its variable of the environment
}

// FromEnv gives what the code before has handed over; nil if this process was started as any other. It takes
// it out of the environment. With an error there may be a Handover, for the way back.
func FromEnv() (*Handover, error) {
	value, failed, signals, guardian := os.Getenv(envHandover), os.Getenv(envFailed), os.Getenv(envSignals), os.Getenv(envGuardian)
	if value == "" {
		return nil, nil
	}
	h := &Handover{Failed: failed, Died: parseDied(os.Getenv(envDied)), guardian: parseGuardian(guardian), guardianVar: guardian}
	for _, name := range []string{envHandover, envFailed, envSignals, envGuardian, envDied} {
		os.Unsetenv(name)
	}
	if h.Died != nil {
		h.Failed = h.Died.String() + " before it had taken over"
	}
	for _, number := range strings.Fields(signals) {
		if n, err := strconv.Atoi(number); err == nil {
			h.Signals = append(h.Signals, syscall.Signal(n))
		}
	}
	state, back, _ := strings.Cut(value, " ")
	var err1, err2 error
	h.state, err1 = strconv.Atoi(state)
	h.back, err2 = strconv.Atoi(back)
	if err := errors.Join(err1, err2); err != nil {
		return nil, fmt.Errorf("cannot read %s=%q: %w", envHandover, value, err)
	}
	var err error
	if h.State, h.unmap, err = mapFile(h.state); err != nil {
		return h, fmt.Errorf("cannot read the state that was handed over: %w", err)
	}
	return h, nil
}

// Keep ends the handover: this code has taken over, and no child is to have any of fds, which are all that
// the state names. State is gone afterwards. The signals are those that were held back until now.
func (h *Handover) Keep(fds []int) (signals []syscall.Signal) {
	if h.guardian >= 0 {
		signals = dismiss(h.guardian)
		unix.Close(h.guardian)
	}
	// All at once, on Linux 5.11 and later (close_range(2)): every other descriptor of a Go program has the
	// flag already.
	if err := unix.CloseRange(3, math.MaxUint32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		keepFromChildren(fds)
	}
	if h.unmap != nil {
		h.unmap()
		h.State, h.unmap = nil, nil
	}
	unix.Close(h.state)
	if h.back >= 0 {
		unix.Close(h.back)
	}
	return signals
}

// Back gives everything to the binary before, with the reason. It returns only if that fails too. fds are
// those that the state names, as far as this code could read it; they are as they were already.
func (h *Handover) Back(reason string, signals []syscall.Signal) error {
	if h.back < 0 {
		return errors.New("there is no binary before this one")
	}
	if len(reason) > maxReason {
		reason = reason[:maxReason]
	}
	env := append(environment(),
		fmt.Sprintf("%s=%d -1", envHandover, h.state),
		envFailed+"="+strings.ReplaceAll(reason, "\x00", ""))
	fds := []int{h.state}
	if h.guardian >= 0 {
		env, fds = append(env, envGuardian+"="+h.guardianVar), append(fds, h.guardian)
	}
	back := image{binary: uintptr(h.back), args: os.Args, env: env, fds: fds, block: signals, heard: func() []syscall.Signal { return h.Signals }}
	_, err := back.become()
	return err
}
