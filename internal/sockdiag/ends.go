package sockdiag

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// endsBuffer is how much the kernel keeps of what was not read yet, in bytes. The kernel counts some 1.5 KiB
// a message: room for 5 000 ends.
const endsBuffer = 8 << 20

// Ends hears of each TCP socket of the network namespace that ends, if its local port is one of those it was
// told. The kernel tells when it frees a socket: no process holds it any more and both sides are done with
// it. So it hears of a socket whose process crashed too. One goroutine reads; Close, SetPorts and
// WaitUntil may come from others.
type Ends struct {
	file *os.File
	raw  syscall.RawConn
	buf  []byte

	closed atomic.Bool // whose error os.File does not name

	// What Read works with, kept here so that it allocates nothing.
	readAll func(fd uintptr) bool
	into    []Socket
	n       int
	failed  error

	overflown bool // the kernel has dropped something, which Read has not told yet
}

// ListenEnds subscribes. The caller closes it. Without ports it hears of every TCP socket. The error is
// ErrUnavailable where sock_diag is refused.
func ListenEnds(ports ...uint16) (*Ends, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	file := os.NewFile(uintptr(fd), "netlink")
	raw, err := file.SyscallConn()
	if err != nil {
		file.Close()
		return nil, err
	}
	e := &Ends{file: file, raw: raw, buf: make([]byte, 4096)}
	e.readAll = e.readFrom
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, endsBuffer) != nil {
		// without CAP_NET_ADMIN: up to net.core.rmem_max
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, endsBuffer)
	}
	if err := e.SetPorts(ports...); err != nil {
		file.Close()
		return nil, err
	}
	groups := uint32(1<<(unix.SKNLGRP_INET_TCP_DESTROY-1) | 1<<(unix.SKNLGRP_INET6_TCP_DESTROY-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		file.Close()
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return e, nil
}

// maxPorts is how many ports a filter can name: a classic BPF program has at most 4096 instructions.
const maxPorts = 2000

// SetPorts has e hear of sockets with one of these local ports only, from now on. The kernel drops all others
// before they take room or wake the reader. No port, or more than 2000, is all.
func (e *Ends) SetPorts(ports ...uint16) error {
	ports = slices.Compact(slices.Sorted(slices.Values(ports)))
	const takeAll = 1 << 18
	var program []unix.SockFilter
	if len(ports) > 0 && len(ports) <= maxPorts {
		// idiag_sport of struct inet_diag_msg; BPF loads it in network order
		portAt := uint32(unix.SizeofNlMsghdr + 4)
		program = append(program, unix.SockFilter{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: portAt})
		for _, port := range ports {
			program = append(program,
				unix.SockFilter{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(port)},
				unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: takeAll})
		}
		program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K})
	} else {
		program = append(program, unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: takeAll})
	}
	var failed error
	err := e.raw.Control(func(fd uintptr) {
		failed = unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]})
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", failed)
}

// Read waits for ends, fills into with as many as are there, and returns how many. The error is ErrOverflow
// if the kernel dropped some: then the caller lists what is alive with Conn.Sockets and goes on reading. n
// counts beside an error too. It is os.ErrClosed after Close. It allocates nothing.
//
// After an overflow the kernel drops everything until the reader has read all that was kept
// (netlink_rcv_wake). So ErrOverflow comes last, when there is nothing left: what ends afterwards is told
// again, what ended before is in no list that is asked for now. After any other error the caller may read on;
// the kernel may have had no memory, or epoll(7) no place for the socket, so that a Read cannot wait.
func (e *Ends) Read(into []Socket) (n int, err error) {
	if len(into) == 0 {
		return 0, nil
	}
	e.into, e.n, e.failed = into, 0, nil
	err = e.raw.Read(e.readAll)
	e.into = nil
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return e.n, os.ErrDeadlineExceeded
	case err != nil && e.closed.Load():
		return e.n, os.ErrClosed
	case err != nil:
		return e.n, fmt.Errorf("cannot wait for the ends of sockets: %w", err)
	}
	return e.n, e.failed
}

// WaitUntil has a Read that still waits at a time return os.ErrDeadlineExceeded; the zero time: it waits for
// ever.
func (e *Ends) WaitUntil(t time.Time) { _ = e.file.SetReadDeadline(t) }

// readFrom reads until nothing is left or into is full. It reports false to wait for more.
func (e *Ends) readFrom(fd uintptr) (done bool) {
	for e.n < len(e.into) {
		size, err := unix.Read(int(fd), e.buf)
		switch {
		case err == nil:
			if isEnd(e.buf[:size]) && parseInet(e.buf[unix.SizeofNlMsghdr:size], &e.into[e.n]) {
				e.n++
			}
		case err == unix.EINTR:
		case err == unix.EAGAIN && e.overflown:
			e.overflown, e.failed = false, ErrOverflow
			return true
		case err == unix.EAGAIN:
			return e.n > 0
		case err == unix.ENOBUFS: // the kernel says it once
			e.overflown = true
		default:
			e.failed = os.NewSyscallError("read", err)
			return true
		}
	}
	return true
}

// isEnd reports whether a datagram is a message of sock_diag, which is never longer than the buffer.
func isEnd(b []byte) bool {
	return len(b) > unix.SizeofNlMsghdr && native.Uint16(b[4:]) == unix.SOCK_DIAG_BY_FAMILY
}

// Close ends the subscription, and a Read that waits.
func (e *Ends) Close() error {
	e.closed.Store(true)
	return e.file.Close()
}
