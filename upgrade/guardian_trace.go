package upgrade

import (
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is how a guardian traces its parent: ptrace(2). The rules of guardian_child.go hold.

// eventStop is PTRACE_EVENT_STOP.
const eventStop = 128

// seizeAll begins to trace all threads of the parent, and those that they start.
//
//go:norace
//go:nosplit
func (g *guardian) seizeAll() {
	for again := true; again; {
		again = false
		for tid := g.firstThread(); tid != 0; tid = g.nextThread() {
			// One that is traced already is an error, too.
			if _, errno := call(unix.SYS_PTRACE, unix.PTRACE_SEIZE, tid, 0, unix.PTRACE_O_TRACECLONE, 0); errno == 0 {
				again, g.traces = true, true
			}
		}
	}
}

// attend has each thread that has stopped go on, without the signals that are held back. It takes the exit
// status of every thread but of the last, which is the process's.
//
//go:norace
//go:nosplit
func (g *guardian) attend() {
	for g.traces {
		clear(g.info[:])
		_, errno := call(unix.SYS_WAITID, unix.P_ALL, 0, uintptr(unsafe.Pointer(&g.info)), unix.WEXITED|unix.WSTOPPED|unix.WNOHANG|unix.WNOWAIT|unix.WALL, 0)
		if errno == unix.EINTR {
			continue
		}
		tid := uintptr(g.infoInt(infoPID))
		code := g.infoInt(infoCode)
		if errno != 0 || tid == 0 || tid == g.parent && code >= infoExited && code <= infoDumped {
			return
		}
		if got, _ := call(unix.SYS_WAIT4, tid, uintptr(unsafe.Pointer(&g.status)), unix.WNOHANG|unix.WALL, 0, 0); got != tid {
			return
		}
		g.resume(tid, unix.PTRACE_CONT)
	}
}

// resume has a thread go on whose status was just taken: as request says, PTRACE_CONT or PTRACE_DETACH.
//
//go:norace
//go:nosplit
func (g *guardian) resume(tid, request uintptr) {
	status := uint32(g.status)
	if status&0xff != 0x7f {
		return // it has ended
	}
	sig, event := uintptr(status>>8&0xff), status>>16
	switch {
	case event == eventStop && request == unix.PTRACE_CONT && stops(sig):
		// stopped, with the whole process, by job control
		request, sig = unix.PTRACE_LISTEN, 0
	case event != 0:
		sig = 0
	case g.hold>>sig&1 != 0:
		count := (*uint8)(unsafe.Add(unsafe.Pointer(&g.counts), sig))
		if *count < maxCount {
			*count++
		}
		g.mask(tid, 1<<(sig-1)&unblocked, 0)
		sig = 0
	}
	if request == unix.PTRACE_DETACH {
		g.mask(tid, 0, unblocked)
	}
	call(unix.SYS_PTRACE, request, tid, 0, sig, 0)
}

// unblocked are the signals that no thread of a Go program blocks, but one that blocks all for a moment:
// those that would end it.
const unblocked = 1<<(unix.SIGTERM-1) | 1<<(unix.SIGINT-1) | 1<<(unix.SIGHUP-1)

// mask adds and takes signals to and from those that a thread blocks, which has stopped. One that has come
// once waits from then on: otherwise the thread would get no further while somebody sends it again and again.
//
//go:norace
//go:nosplit
func (g *guardian) mask(tid uintptr, add, take uint64) {
	_, errno := call(unix.SYS_PTRACE, unix.PTRACE_GETSIGMASK, tid, unsafe.Sizeof(g.blocked), uintptr(unsafe.Pointer(&g.blocked)), 0)
	if errno != 0 || g.blocked&(1<<(unix.SIGURG-1)) != 0 { // it blocks all
		return
	}
	g.blocked = (g.blocked | add) &^ take
	call(unix.SYS_PTRACE, unix.PTRACE_SETSIGMASK, tid, unsafe.Sizeof(g.blocked), uintptr(unsafe.Pointer(&g.blocked)), 0)
}

// maxCount is how often a signal counts.
const maxCount = 32

//go:norace
//go:nosplit
func stops(sig uintptr) bool {
	return sig == uintptr(unix.SIGSTOP) || sig == uintptr(unix.SIGTSTP) || sig == uintptr(unix.SIGTTIN) || sig == uintptr(unix.SIGTTOU)
}

// letGo traces no thread any more.
//
//go:norace
//go:nosplit
func (g *guardian) letGo() {
	for again := g.traces; again; {
		again = false
		for tid := g.firstThread(); tid != 0; tid = g.nextThread() {
			if _, errno := call(unix.SYS_PTRACE, unix.PTRACE_INTERRUPT, tid, 0, 0, 0); errno != 0 {
				continue // it is not traced
			}
			again = true
			if got, _ := call(unix.SYS_WAIT4, tid, uintptr(unsafe.Pointer(&g.status)), unix.WALL, 0, 0); got == tid {
				g.resume(tid, unix.PTRACE_DETACH)
			}
		}
	}
}

// firstThread returns the first thread of the parent, 0 if there is none; nextThread the next.
//
//go:norace
//go:nosplit
func (g *guardian) firstThread() uintptr {
	fd, errno := call(unix.SYS_OPENAT, ^uintptr(99), uintptr(unsafe.Pointer(unsafe.SliceData(g.tasks))), unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0, 0)
	if errno != 0 {
		return 0
	}
	g.dir, g.entry, g.entryTo = fd, 0, 0
	return g.nextThread()
}

//go:norace
//go:nosplit
func (g *guardian) nextThread() uintptr {
	for {
		if g.entry >= g.entryTo {
			n, errno := call(unix.SYS_GETDENTS64, g.dir, uintptr(unsafe.Pointer(&g.entries)), unsafe.Sizeof(g.entries), 0, 0)
			if errno != 0 || n == 0 {
				call(unix.SYS_CLOSE, g.dir, 0, 0, 0, 0)
				return 0
			}
			g.entry, g.entryTo = 0, n
		}
		// struct linux_dirent64: length at 16, name at 19 (getdents(2))
		entry := unsafe.Add(unsafe.Pointer(&g.entries), g.entry)
		g.entry += uintptr(*(*uint16)(unsafe.Add(entry, 16)))
		tid := uintptr(0)
		for i := uintptr(19); ; i++ {
			digit := uintptr(*(*byte)(unsafe.Add(entry, i))) - '0'
			if digit > 9 {
				break
			}
			tid = 10*tid + digit
		}
		if tid != 0 {
			return tid
		}
	}
}
