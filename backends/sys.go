package backends

// The raw system calls of a connect, behind typed functions. They return at once, as the sockets are
// non-blocking, so they skip the scheduler's bookkeeping, and none allocates.

import (
	"bytes"
	"unsafe"

	"golang.org/x/sys/unix"
)

// connect starts a connection: 0 when it is made, EINPROGRESS when the kernel will tell (connect(2)).
func connect(fd int32, sa *RawSockaddr) unix.Errno {
	for {
		_, _, e := unix.RawSyscall(unix.SYS_CONNECT, uintptr(fd), uintptr(unsafe.Pointer(&sa.Any)), uintptr(sa.Len))
		if e != unix.EINTR {
			return e
		}
	}
}

// peerCred returns who called listen(2) on the socket that fd is connected to (SO_PEERCRED, unix(7)).
func peerCred(fd int32) (peer unix.Ucred, ok bool) {
	size := uint32(unsafe.Sizeof(peer))
	_, _, e := unix.RawSyscall6(unix.SYS_GETSOCKOPT, uintptr(fd), unix.SOL_SOCKET, unix.SO_PEERCRED,
		uintptr(unsafe.Pointer(&peer)), uintptr(unsafe.Pointer(&size)), 0)
	return peer, e == 0
}

// boundTo reports whether the socket that fd is connected to was bound by just the name in sa. The kernel
// keeps the name that bind(2) was given, whatever the path leads to by now (getpeername(2)).
func boundTo(fd int32, sa *RawSockaddr) bool {
	var name unix.RawSockaddrUnix
	n := getpeername(fd, &name)
	want := (*unix.RawSockaddrUnix)(unsafe.Pointer(&sa.Any))
	if n < 0 || n > int(sa.Len) || n < int(sa.Len)-1 { // the final NUL may be missing
		return false
	}
	have := unsafe.Slice((*byte)(unsafe.Pointer(&name.Path)), n-2)
	return bytes.Equal(have, unsafe.Slice((*byte)(unsafe.Pointer(&want.Path)), n-2))
}

// peerName returns the name that the socket was bound by to which fd is connected: a path, "@name", or "" for
// none.
func peerName(fd int32) string {
	var name unix.RawSockaddrUnix
	n := getpeername(fd, &name)
	if n <= 2 {
		return ""
	}
	text := unsafe.Slice((*byte)(unsafe.Pointer(&name.Path)), n-2)
	if text[0] == 0 {
		return "@" + string(text[1:])
	}
	text, _, _ = bytes.Cut(text, []byte{0})
	return string(text)
}

func getpeername(fd int32, name *unix.RawSockaddrUnix) int {
	size := uint32(unsafe.Sizeof(*name))
	if _, _, e := unix.RawSyscall(unix.SYS_GETPEERNAME, uintptr(fd), uintptr(unsafe.Pointer(name)), uintptr(unsafe.Pointer(&size))); e != 0 {
		return -1
	}
	return int(min(size, uint32(unsafe.Sizeof(*name))))
}

// renew puts a new non-blocking stream socket in the place of fd.
func renew(fd int32, family int) unix.Errno {
	r, _, e := unix.RawSyscall(unix.SYS_SOCKET, uintptr(family), unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if e != 0 {
		return e
	}
	_, _, e = unix.RawSyscall(unix.SYS_DUP3, r, uintptr(fd), unix.O_CLOEXEC)
	unix.RawSyscall(unix.SYS_CLOSE, r, 0, 0)
	return e
}
