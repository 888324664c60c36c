package upgrade

import (
	"runtime"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What is in this file runs in a forked child of a program with many threads, of which only one was copied.
// So it is plain system calls on memory that was there before: nothing allocates, grows the stack, locks,
// stores a pointer or asks Go's scheduler for anything. All signals are blocked.

// guardian is a guardian, and all that it needs.
type guardian struct {
	parent         uintptr       // the pid of the process that it watches
	near, far      int           // its end of the connection, and the other
	pidfd          int           // of parent
	signalfd       int           // of SIGCHLD and hold
	hold           uint64        // bits of the signals to hold back
	programMask    unix.Sigset_t // of the program that it may run
	binary         []byte        // path of the program to run, with a zero
	tasks          []byte        // path of the directory of parent's threads, with a zero
	argv, envp     []*byte
	page           []byte
	notes          *notes
	pid            int // its own, in the parent; 0: it does not run
	traces         bool
	counts         signalCounts
	message        [1]byte
	status         int32
	blocked        uint64    // a thread's signal mask
	info           [128]byte // siginfo_t
	siginfo        [128]byte // signalfd_siginfo
	polled         [3]unix.PollFd
	patience, left unix.Timespec // for the parent to take over
	dir            uintptr       // the open directory of parent's threads
	entries        [2048]byte
	entry, entryTo uintptr
}

// notes are shared by process and guardian: variables of the environment that the guardian's program gets.
type notes struct {
	diedAt     int32 // where the exit status goes
	signalsEnd int32
	died       [128]byte
	signals    [3072]byte
}

// addSignal adds a signal to those that the guardian's program finds as heard before.
//
//go:norace
//go:nosplit
func (g *guardian) addSignal(sig uint64) {
	n, at := g.notes, uintptr(g.notes.signalsEnd)
	if at+4 > unsafe.Sizeof(n.signals) {
		return
	}
	start := unsafe.Pointer(&n.signals)
	*(*byte)(unsafe.Add(start, at)) = ' '
	*(*byte)(unsafe.Add(start, at+1)) = byte('0' + sig/10%10)
	*(*byte)(unsafe.Add(start, at+2)) = byte('0' + sig%10)
	n.signalsEnd += 3
}

// fork forks the guardian. Only the parent returns.
//
//go:norace
//go:nosplit
func (g *guardian) fork() (pid, errno uintptr) {
	flags, stack := uintptr(unix.SIGCHLD), uintptr(0)
	if runtime.GOARCH == "s390x" { // clone(2)
		flags, stack = stack, flags
	}
	pid, _, e := syscall.RawSyscall6(unix.SYS_CLONE, flags, stack, 0, 0, 0, 0)
	if e == 0 && pid == 0 {
		g.run()
	}
	return pid, uintptr(e)
}

// call makes a system call.
//
//go:norace
//go:nosplit
func call(number, a, b, c, d, e uintptr) (uintptr, syscall.Errno) {
	result, _, errno := syscall.RawSyscall6(number, a, b, c, d, e, 0)
	return result, errno
}

// exit ends the guardian.
//
//go:norace
//go:nosplit
func (g *guardian) exit(code uintptr) {
	for {
		call(unix.SYS_EXIT_GROUP, code, 0, 0, 0, 0)
	}
}

// run is the guardian. It never returns.
//
//go:norace
//go:nosplit
func (g *guardian) run() {
	call(unix.SYS_CLOSE, uintptr(g.far), 0, 0, 0, 0)
	for !g.hear(0) {
	}
	g.seizeAll()
	g.message[0] = saidUntraced
	if g.traces {
		g.message[0] = saidTraced
	}
	call(unix.SYS_SENDTO, uintptr(g.near), uintptr(unsafe.Pointer(&g.message)), 1, unix.MSG_NOSIGNAL, 0)
	g.polled[0].Fd, g.polled[1].Fd, g.polled[2].Fd = int32(g.near), int32(g.pidfd), int32(g.signalfd)
	g.polled[0].Events, g.polled[1].Events, g.polled[2].Events = unix.POLLIN, unix.POLLIN, unix.POLLIN
	g.left = g.patience
	for {
		for { // what was sent to the group or the control group reaches the parent, too
			n, _ := call(unix.SYS_READ, uintptr(g.signalfd), uintptr(unsafe.Pointer(&g.siginfo)), unsafe.Sizeof(g.siginfo), 0, 0)
			if n != unsafe.Sizeof(g.siginfo) {
				break
			}
		}
		g.attend()
		if g.hear(unix.MSG_DONTWAIT) {
			g.letGo()
			call(unix.SYS_SENDTO, uintptr(g.near), uintptr(unsafe.Pointer(&g.counts)), unsafe.Sizeof(g.counts), unix.MSG_NOSIGNAL, 0)
			g.exit(0)
		}
		if g.polled[1].Revents != 0 {
			g.takeOver()
		}
		// The kernel writes what is left of the time.
		n, errno := call(unix.SYS_PPOLL, uintptr(unsafe.Pointer(&g.polled)), 3, uintptr(unsafe.Pointer(&g.left)), 0, 8)
		if errno == 0 && n == 0 {
			call(unix.SYS_KILL, g.parent, uintptr(unix.SIGKILL), 0, 0, 0)
			g.left = g.patience
		}
		if errno != 0 { // what it says of the descriptors is old
			g.polled[1].Revents = 0
		}
	}
}

// hear reports whether a message has come. It ends the guardian if no parent can send one any more before it
// was told to begin.
//
//go:norace
//go:nosplit
func (g *guardian) hear(flags uintptr) bool {
	n, errno := call(unix.SYS_RECVFROM, uintptr(g.near), uintptr(unsafe.Pointer(&g.message)), 1, flags, 0)
	if flags == 0 && errno != unix.EINTR && (errno != 0 || n == 0) {
		g.exit(1)
	}
	return errno == 0 && n == 1
}

// takeOver runs the binary before in the guardian's process. Its parent has ended.
//
//go:norace
//go:nosplit
func (g *guardian) takeOver() {
	// The exit status is looked at and stays: the parent's parent hears of the end when it is taken.
	status := uint64(unknownStatus)
	clear(g.info[:])
	_, errno := call(unix.SYS_WAITID, unix.P_PID, g.parent, uintptr(unsafe.Pointer(&g.info)), unix.WEXITED|unix.WNOWAIT|unix.WNOHANG|unix.WALL, 0)
	if errno == 0 && g.infoInt(infoPID) != 0 {
		status = uint64(g.infoInt(infoStatus))
		switch g.infoInt(infoCode) {
		case infoExited:
			status <<= 8
		case infoDumped:
			status |= 0x80
		}
	}
	at := unsafe.Add(unsafe.Pointer(&g.notes.died), uintptr(g.notes.diedAt))
	for i := 9; i >= 0; i-- {
		*(*byte)(unsafe.Add(at, i)) = byte('0' + status%10)
		status /= 10
	}
	for sig := uint64(1); sig < 65; sig++ {
		for n := *(*uint8)(unsafe.Add(unsafe.Pointer(&g.counts), sig)); n > 0; n-- {
			g.addSignal(sig)
		}
	}
	call(unix.SYS_RT_SIGPROCMASK, unix.SIG_SETMASK, uintptr(unsafe.Pointer(&g.programMask)), 0, 8, 0)
	call(unix.SYS_EXECVE, uintptr(unsafe.Pointer(unsafe.SliceData(g.binary))), uintptr(unsafe.Pointer(unsafe.SliceData(g.argv))), uintptr(unsafe.Pointer(unsafe.SliceData(g.envp))), 0, 0)
	g.exit(1)
}

// Where siginfo_t has what waitid(2) writes, and values of its code.
const (
	infoCode   = 8
	infoPID    = 8 + unsafe.Sizeof(uintptr(0))
	infoStatus = infoPID + 8
	infoExited = 1
	infoDumped = 3
)

//go:norace
//go:nosplit
func (g *guardian) infoInt(at uintptr) int32 {
	return *(*int32)(unsafe.Add(unsafe.Pointer(&g.info), at))
}
