// Package sockdiag asks the kernel about sockets through NETLINK_SOCK_DIAG (sock_diag(7)): how many
// connections wait in a listener's queue, whether a connection was accepted, which TCP sockets a port has,
// and when each of them ends.
//
// A [Conn] asks and waits for the answer; any number of goroutines may share one. [Ends] hears of the end of
// TCP sockets; one goroutine reads it. Any user may do all of it, but [Conn.Destroy], which needs
// CAP_NET_ADMIN. The kernel answers for the network namespace in which the netlink socket was opened and for
// no other.
//
// The package is our own, and not a library, for three reasons. It needs five kinds of message, of which
// vishvananda/netlink and florianl/go-diag each know one (no Unix queues, no filter by port, no ends, no
// cookies in requests). It reads one message for each connection that ends, so it must not allocate; both
// decode every message into fresh structs. And mdlayher/netlink, the best one to build upon, costs two system
// calls a message.
package sockdiag

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Errors that callers test for with errors.Is.
var (
	// ErrUnavailable means that this kernel or sandbox has no sock_diag: a seccomp filter, systemd's
	// RestrictAddressFamilies=, gVisor, or a kernel without the module.
	ErrUnavailable = errors.New("this kernel or sandbox refuses to say what its sockets do (NETLINK_SOCK_DIAG)")
	// ErrNotFound means that the kernel knows no such socket in this network namespace.
	ErrNotFound = errors.New("no such socket")
	// ErrOverflow means that ends were lost, because nobody read them quickly enough.
	ErrOverflow = errors.New("the kernel dropped messages about sockets that ended")
)

var native = binary.NativeEndian

// answerTimeout bounds the wait for an answer. The kernel writes it before the request returns; nobody should
// ever wait.
const answerTimeout = 5 * time.Second

// Conn asks the kernel. It is safe for concurrent use; requests wait for each other.
type Conn struct {
	mu  sync.Mutex
	fd  int // -1 when closed
	seq uint32
	buf []byte
}

// Dial opens a Conn. The caller closes it. The error is ErrUnavailable where sock_diag does not answer for
// TCP and for Unix sockets.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	c := &Conn{fd: fd, buf: make([]byte, 64<<10)}
	timeout := unix.NsecToTimeval(int64(answerTimeout))
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &timeout); err != nil {
		c.Close()
		return nil, os.NewSyscallError("setsockopt", err)
	}
	// A dump of no state at all walks no table. It fails where the kernel has no handler for the family.
	for _, request := range [][]byte{inetRequest(unix.AF_INET, 0, 0), unixRequest(0, 0, 0)} {
		if err := c.ask(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, request, nil); err != nil {
			c.Close()
			return nil, fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
	}
	return c, nil
}

// Close closes the netlink socket. Requests fail with os.ErrClosed afterwards.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return nil
	}
	err := unix.Close(c.fd)
	c.fd = -1
	return err
}

// ask sends one request and calls each with the payload of every answer, which is valid during the call only.
func (c *Conn) ask(kind, flags uint16, payload []byte, each func([]byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.fd < 0 {
		return os.ErrClosed
	}
	c.seq++
	request := make([]byte, unix.SizeofNlMsghdr, unix.SizeofNlMsghdr+len(payload))
	native.PutUint32(request, uint32(len(request)+len(payload)))
	native.PutUint16(request[4:], kind)
	native.PutUint16(request[6:], unix.NLM_F_REQUEST|flags)
	native.PutUint32(request[8:], c.seq)
	request = append(request, payload...)
	if err := retry(func() error { return unix.Sendto(c.fd, request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) }); err != nil {
		return answerError(err)
	}
	for {
		var n int
		if err := retry(func() (err error) { n, _, err = unix.Recvfrom(c.fd, c.buf, 0); return }); err != nil {
			return os.NewSyscallError("recvfrom", err)
		}
		last, err := c.answers(c.buf[:n], flags, each)
		if last || err != nil {
			return err
		}
	}
}

// answers reads one datagram of answers. It reports whether the request's last answer was among them.
func (c *Conn) answers(data []byte, flags uint16, each func([]byte)) (last bool, err error) {
	for len(data) >= unix.SizeofNlMsghdr {
		size := int(native.Uint32(data))
		if size < unix.SizeofNlMsghdr || size > len(data) {
			return true, errShort
		}
		payload := data[unix.SizeofNlMsghdr:size]
		kind, seq := native.Uint16(data[4:]), native.Uint32(data[8:])
		data = data[min((size+3)&^3, len(data)):]
		if seq != c.seq {
			continue // the rest of a request that was given up
		}
		switch {
		case kind == unix.NLMSG_DONE:
			return true, nil
		case kind == unix.NLMSG_ERROR:
			if len(payload) < 4 {
				return true, errShort
			}
			if errno := int32(native.Uint32(payload)); errno != 0 {
				return true, answerError(unix.Errno(-errno))
			}
			return true, nil
		case each != nil:
			each(payload)
		}
		if flags&(unix.NLM_F_DUMP|unix.NLM_F_ACK) == 0 {
			return true, nil // one request, one answer
		}
	}
	return false, nil
}

var errShort = errors.New("the kernel's answer is cut off")

func answerError(err error) error {
	if errors.Is(err, unix.ENOENT) {
		return ErrNotFound
	}
	return err
}

func retry(call func() error) error {
	for {
		if err := call(); !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

// Cookie returns the number that the kernel gave the socket fd: unique until the machine starts anew
// (SO_COOKIE, socket(7)).
func Cookie(fd int) (uint64, error) {
	cookie, err := unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_COOKIE)
	return cookie, os.NewSyscallError("getsockopt SO_COOKIE", err)
}

// family returns the address family under which the kernel keeps sockets of that address: an IPv4-mapped
// address belongs to an IPv6 socket.
func family(addr netip.Addr) uint8 {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}
