package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is one TCP socket of the network namespace, alive or at its end.
type Socket struct {
	Cookie uint64 // what Cookie returns for its descriptor
	Local  netip.AddrPort
	Remote netip.AddrPort
	State  State
	Inode  uint32 // 0 before a process accepted it and after all closed it
	UID    uint32 // the user of the process that made it, as this process's user namespace has it
	// bytes that the other side acknowledged; the handshake and a FIN count as one each
	Acked    uint64
	Sent     uint64        // bytes that were sent, each once; neither a handshake nor a FIN counts
	Received uint64        // bytes that came, in order; a FIN counts as one
	Idle     time.Duration // since the last byte came or went

	queue Queue // of a listening socket
}

// State is the state of a TCP socket, as in linux/tcp_states.h.
type State uint8

// The states that callers tell apart.
const (
	Established State = 1
	CloseWait   State = 8
)

// Unread is how many bytes have come that the process has not read; a FIN counts as one.
func (s *Socket) Unread() int { return s.queue.Waiting }

// Sockets calls each for every TCP socket whose local port is port: IPv4 and IPv6, in a state in which it can
// carry data, orphans that still send among them. The Socket is valid during the call only, and each must not
// use the Conn.
func (c *Conn) Sockets(port uint16, each func(*Socket)) error {
	var s Socket
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		err := c.ask(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, inetRequest(family, statesOfData, port), func(b []byte) {
			if parseInet(b, &s) {
				each(&s)
			}
		})
		if err != nil {
			return fmt.Errorf("cannot list the sockets of port %d: %w", port, err)
		}
	}
	return nil
}

// TCPSocket returns the TCP socket with these addresses: its own, and that of its other end. The error is
// ErrNotFound if this network namespace has none.
func (c *Conn) TCPSocket(local, remote netip.AddrPort) (s Socket, err error) {
	found := false
	err = c.ask(unix.SOCK_DIAG_BY_FAMILY, 0, inetExact(local, remote, anyCookie), func(b []byte) { found = parseInet(b, &s) })
	if err == nil && !found {
		err = ErrNotFound
	}
	return s, err
}

// Destroy ends a TCP socket as if a reset had come, whoever holds it (SOCK_DESTROY, sock_diag(7)). Only a
// socket with that cookie is touched. It needs CAP_NET_ADMIN, without which the error is unix.EPERM; the
// error is ErrNotFound if the socket is gone, and errors.ErrUnsupported on a kernel without
// CONFIG_INET_DIAG_DESTROY.
func (c *Conn) Destroy(local, remote netip.AddrPort, cookie uint64) error {
	err := c.ask(sockDestroy, unix.NLM_F_ACK, inetExact(local, remote, cookie), nil)
	if errors.Is(err, unix.EOPNOTSUPP) {
		return errors.ErrUnsupported
	}
	return err
}
