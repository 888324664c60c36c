package sockdiag

import (
	"fmt"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// endsBuffer is how much the kernel keeps of what was not read yet, in bytes. The kernel counts some 1.5 KiB
// a message: room for 5 000 ends.
const endsBuffer = 8 << 20

// Ends hears of each TCP socket of the network namespace that ends, if its local port is one of those it was
// told. The kernel tells when it frees a socket: no process holds it any more and both sides are done with
// it. So it hears of a socket whose process crashed too. One goroutine at a time reads or closes; SetPorts
// may come from others.
type Ends struct {
	fd        int // -1 when closed
	datagrams *datagrams
	overflown bool // the kernel has dropped something, which Read has not told yet
}

// ListenEnds subscribes. The caller closes it. Without ports it hears of every TCP socket. The error is
// ErrUnavailable where sock_diag is refused.
func ListenEnds(ports ...uint16) (*Ends, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	e := &Ends{fd: fd, datagrams: newDatagrams()}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, endsBuffer) != nil {
		// without CAP_NET_ADMIN: up to net.core.rmem_max
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, endsBuffer)
	}
	if err := e.SetPorts(ports...); err != nil {
		e.Close()
		return nil, err
	}
	groups := uint32(1<<(unix.SKNLGRP_INET_TCP_DESTROY-1) | 1<<(unix.SKNLGRP_INET6_TCP_DESTROY-1))
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		e.Close()
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
	return os.NewSyscallError("setsockopt SO_ATTACH_FILTER", unix.SetsockoptSockFprog(e.fd, unix.SOL_SOCKET,
		unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}))
}

// FD returns the netlink socket, for whoever waits for the next end (poll(2), epoll(7)): it is readable while
// there is something for Read. It stays that of e.
func (e *Ends) FD() int { return e.fd }

// Read fills into with ends that are there, and returns how many: 0 if there is none. It does not wait. Where
// it has filled into there may be more, and an overflow to tell: the caller reads again, whatever epoll says.
// The error is ErrOverflow if the kernel dropped some: then the caller lists what is alive with Conn.Sockets
// and goes on reading. n counts beside an error too. It allocates nothing.
//
// After an overflow the kernel drops everything until the reader has read all that was kept
// (netlink_rcv_wake). So ErrOverflow comes last, when there is nothing left: what ends afterwards is told
// again, what ended before is in no list that is asked for now. After any other error the caller may read on:
// the kernel may have had no memory.
func (e *Ends) Read(into []Socket) (n int, err error) {
	for {
		want := min(len(into)-n, maxDatagrams)
		if want == 0 {
			return n, nil
		}
		got, errno := e.datagrams.receive(e.fd, want)
		switch {
		case errno == unix.ENOBUFS: // the kernel says it once
			e.overflown = true
			continue
		case errno != 0 && errno != unix.EAGAIN:
			return n, os.NewSyscallError("recvmmsg", errno)
		}
		for i := range got {
			if b := e.datagrams.at(i); isEnd(b) && parseInet(b[unix.SizeofNlMsghdr:], &into[n]) {
				n++
			}
		}
		switch {
		case got == want && e.overflown:
		case e.overflown:
			e.overflown = false
			return n, ErrOverflow
		default:
			return n, nil
		}
	}
}

// isEnd reports whether a datagram is a message of sock_diag, which is never longer than the buffer.
func isEnd(b []byte) bool {
	return len(b) > unix.SizeofNlMsghdr && native.Uint16(b[4:]) == unix.SOCK_DIAG_BY_FAMILY
}

// Close ends the subscription.
func (e *Ends) Close() error {
	if e.fd < 0 {
		return os.ErrClosed
	}
	err := unix.Close(e.fd)
	e.fd = -1
	return err
}
