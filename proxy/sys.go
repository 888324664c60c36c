package proxy

// The raw system calls of the loops, behind typed functions. All of them return at once (the sockets are
// non-blocking) except epollWaitBlocking, so they skip the scheduler's bookkeeping; and none allocates.

import (
	"encoding/binary"
	"net/netip"
	"unsafe"

	"golang.org/x/sys/unix"
)

// recv reads what is there into buf. n is 0 with errno 0 at the end of the stream.
func recv(fd int32, buf []byte) (n int, errno unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), unix.MSG_DONTWAIT, 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// peek reads what is there into buf and leaves it in the socket.
func peek(fd int32, buf []byte) (n int, errno unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), unix.MSG_DONTWAIT|unix.MSG_PEEK, 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// localAddr is the address that the socket is bound to; the zero value for a Unix socket.
func localAddr(fd int32) netip.AddrPort {
	var sa unix.RawSockaddrAny
	size := uint32(unix.SizeofSockaddrAny)
	if _, _, e := unix.RawSyscall(unix.SYS_GETSOCKNAME, uintptr(fd), uintptr(unsafe.Pointer(&sa)), uintptr(unsafe.Pointer(&size))); e != 0 {
		return netip.AddrPort{}
	}
	return peerAddr(&sa)
}

// send writes what the peer takes now. The caller never passes an empty buf. flags is 0 or MSG_MORE.
func send(fd int32, buf []byte, flags int) (n int, errno unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(unsafe.SliceData(buf))), uintptr(len(buf)), uintptr(unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL|flags), 0, 0)
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// sendFD sends a message with a descriptor beside it (SCM_RIGHTS, unix(7)), whole or not at all.
func sendFD(to int32, message []byte, fd int32) unix.Errno {
	var control [24]byte // CMSG_SPACE(4)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&control))
	h.Level, h.Type = unix.SOL_SOCKET, unix.SCM_RIGHTS
	h.SetLen(unix.CmsgLen(4))
	*(*int32)(unsafe.Pointer(&control[unix.SizeofCmsghdr])) = fd
	iov := unix.Iovec{Base: unsafe.SliceData(message)}
	iov.SetLen(len(message))
	m := unix.Msghdr{Iov: &iov, Iovlen: 1, Control: &control[0]}
	m.SetControllen(unix.CmsgSpace(4))
	for {
		_, _, e := unix.RawSyscall(unix.SYS_SENDMSG, uintptr(to), uintptr(unsafe.Pointer(&m)), unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if e != unix.EINTR {
			return e
		}
	}
}

// recvBack reads a message, and closes the descriptors that come with it: lb has its own.
func recvBack(fd int32, buf []byte) (int, unix.Errno) {
	control := make([]byte, unix.CmsgSpace(4*maxDescriptors))
	for {
		n, size, _, _, err := unix.Recvmsg(int(fd), buf, control, unix.MSG_DONTWAIT|unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, err.(unix.Errno)
		}
		if messages, err := unix.ParseSocketControlMessage(control[:size]); err == nil {
			for i := range messages {
				fds, _ := unix.ParseUnixRights(&messages[i])
				for _, fd := range fds {
					unix.Close(fd)
				}
			}
		}
		return n, 0
	}
}

// maxDescriptors is SCM_MAX_FD: how many descriptors a message can carry.
const maxDescriptors = 253

// splice moves up to n bytes from one fd to another, one of which is a pipe (splice(2)).
func splice(from, to int32, n int, flags int) (int, unix.Errno) {
	for {
		r, _, e := unix.RawSyscall6(unix.SYS_SPLICE, uintptr(from), 0, uintptr(to), 0, uintptr(n), uintptr(flags|unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK))
		if e != unix.EINTR {
			return int(r), e
		}
	}
}

// accept takes one connection off a listener's queue, non-blocking and close-on-exec, and the peer's address
// into sa.
func accept(fd int32, sa *unix.RawSockaddrAny) (int32, unix.Errno) {
	for {
		size := uint32(unix.SizeofSockaddrAny)
		r, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, uintptr(fd), uintptr(unsafe.Pointer(sa)), uintptr(unsafe.Pointer(&size)), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0, 0)
		if e != unix.EINTR {
			return int32(r), e
		}
	}
}

// peerAddr reads the address that accept stored; the zero value for a Unix socket.
func peerAddr(sa *unix.RawSockaddrAny) netip.AddrPort {
	switch sa.Addr.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), networkPort(&in.Port))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(sa))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr).Unmap(), networkPort(&in.Port))
	}
	return netip.AddrPort{}
}

func networkPort(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }

// dialSocket makes a non-blocking, close-on-exec stream socket.
func dialSocket(family int) (int32, unix.Errno) {
	r, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	return int32(r), e
}

// socketError reads and clears SO_ERROR: how a connect in progress ended.
func socketError(fd int32) unix.Errno {
	v, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return err.(unix.Errno)
	}
	return unix.Errno(v)
}

func closeFD(fd int32) { unix.RawSyscall(unix.SYS_CLOSE, uintptr(fd), 0, 0) }

func shutdownWrite(fd int32) unix.Errno {
	_, _, e := unix.RawSyscall(unix.SYS_SHUTDOWN, uintptr(fd), unix.SHUT_WR, 0)
	return e
}

// push has TCP send what it holds back for the end of the stream (tcp(7), TCP_NODELAY).
func push(fd int32) { unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) }

// inQueue returns how many bytes a socket has received that were not read yet (tcp(7), SIOCINQ).
func inQueue(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCINQ)
	if err != nil {
		return 0
	}
	return n
}

// outQueue returns how many bytes in the send queue of a TCP socket are not acknowledged (tcp(7), SIOCOUTQ).
// A FIN counts as one.
func outQueue(fd int32) int {
	n, err := unix.IoctlGetInt(int(fd), unix.TIOCOUTQ)
	if err != nil {
		return 0
	}
	return n
}

// resetOnClose makes the coming close send RST instead of FIN on a TCP socket (SO_LINGER with 0 s,
// socket(7)). A Unix socket has no such thing and ignores it.
func resetOnClose(fd int32) {
	unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
}

// epollCtl adds or modifies fd with the event's mask and data.
func epollCtl(epfd int32, op int, fd int32, mask uint32, data token) unix.Errno {
	ev := unix.EpollEvent{Events: mask, Fd: data.id, Pad: data.gen}
	_, _, e := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(epfd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return e
}

// epollWait looks for events for at most timeout ms without telling the scheduler. The processor stays with
// this thread, so timeout must be short.
func epollWait(epfd int32, events []unix.EpollEvent, timeout int) int {
	r, _, e := unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout), 0, 0)
	if e != 0 { // EINTR: the runtime wants something; the caller comes again
		return 0
	}
	return int(r)
}

// epollWaitBlocking is epollWait through the scheduler, which may give the processor to others meanwhile.
// timeout is in ms; -1 waits without end.
func epollWaitBlocking(epfd int32, events []unix.EpollEvent, timeout int) int {
	r, _, e := unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(epfd), uintptr(unsafe.Pointer(unsafe.SliceData(events))), uintptr(len(events)), uintptr(timeout), 0, 0)
	if e != 0 {
		return 0
	}
	return int(r)
}

// schedYield lets other runnable threads go first (sched_yield(2)); it returns at once when there is none.
func schedYield() { unix.RawSyscall(unix.SYS_SCHED_YIELD, 0, 0, 0) }
