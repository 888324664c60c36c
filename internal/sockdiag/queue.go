package sockdiag

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Queue is how full a listener's queue is: connections that the kernel took and no process accepted.
type Queue struct {
	Waiting int // connections in it
	Limit   int // its size: the backlog of listen(2), 0 if the kernel does not say
}

// UnixQueue returns the queue of the listening Unix socket with that inode: what fstat(2) says of its
// descriptor. The error is ErrNotFound if there is none.
func (c *Conn) UnixQueue(inode uint32) (Queue, error) {
	var q Queue
	found := false
	err := c.ask(unix.SOCK_DIAG_BY_FAMILY, 0, unixRequest(stateListen, inode, unixShowQueues), func(b []byte) {
		q, found = unixQueue(b)
	})
	if err == nil && !found {
		err = ErrNotFound // a socket of that inode that does not listen
	}
	return q, err
}

// unixQueue reads the queue of a listening socket out of a struct unix_diag_msg.
func unixQueue(b []byte) (Queue, bool) {
	const stateAt, listening = 2, 10
	if len(b) < sizeofUnixMessage || b[stateAt] != listening {
		return Queue{}, false
	}
	lengths := attribute(b[sizeofUnixMessage:], unixQueues)
	if len(lengths) < 8 {
		return Queue{}, false
	}
	return Queue{Waiting: int(native.Uint32(lengths)), Limit: int(native.Uint32(lengths[4:]))}, true
}

// UnixListener returns the inode of the socket that listens at path, for UnixQueue. A path that begins with
// "@" is an abstract name. The kernel walks all Unix sockets for it, so ask once, and again when UnixQueue
// says ErrNotFound. A socket file is known by its device and inode, so renames and links do not matter.
func (c *Conn) UnixListener(path string) (inode uint32, err error) {
	var file unix.Stat_t
	abstract, isAbstract := strings.CutPrefix(path, "@")
	if !isAbstract {
		if err := unix.Stat(path, &file); err != nil {
			return 0, &os.PathError{Op: "stat", Path: path, Err: err}
		}
	}
	// The kernel writes a device as it keeps it inside: 12 bits of major number and 20 of minor.
	device := unix.Major(file.Dev)<<20 | unix.Minor(file.Dev)
	err = c.ask(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, unixRequest(stateListen, 0, unixShowName|unixShowVFS), func(b []byte) {
		if len(b) < sizeofUnixMessage || inode != 0 {
			return
		}
		attributes := b[sizeofUnixMessage:]
		if isAbstract {
			if name := attribute(attributes, unixName); len(name) > 0 && name[0] == 0 && string(name[1:]) == abstract {
				inode = native.Uint32(b[4:])
			}
		} else if vfs := attribute(attributes, unixVFS); len(vfs) >= 8 &&
			native.Uint32(vfs) == uint32(file.Ino) && native.Uint32(vfs[4:]) == device {
			inode = native.Uint32(b[4:])
		}
	})
	if err == nil && inode == 0 {
		err = ErrNotFound
	}
	if err != nil {
		return 0, fmt.Errorf("cannot find who listens at %q: %w", path, err)
	}
	return inode, nil
}

// TCPQueue returns the queues of the sockets that take connections to addr, summed up: one, or as many as
// share the port by SO_REUSEPORT. A socket that listens at all addresses (0.0.0.0 or ::) counts where none
// listens at addr itself. The error is ErrNotFound if none listens.
func (c *Conn) TCPQueue(addr netip.AddrPort) (Queue, error) {
	var exact, wild Queue
	var nExact, nWild int
	add := func(b []byte) {
		var s Socket
		if !parseInet(b, &s) {
			return
		}
		switch local := s.Local.Addr(); {
		case local.Unmap() == addr.Addr().Unmap().WithZone(""):
			exact, nExact = Queue{exact.Waiting + s.queue.Waiting, exact.Limit + s.queue.Limit}, nExact+1
		case local.IsUnspecified() && (local.Is6() || addr.Addr().Unmap().Is4()):
			wild, nWild = Queue{wild.Waiting + s.queue.Waiting, wild.Limit + s.queue.Limit}, nWild+1
		}
	}
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		if family == unix.AF_INET && !addr.Addr().Unmap().Is4() {
			continue
		}
		if err := c.ask(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, inetRequest(family, stateListen, addr.Port()), add); err != nil {
			return Queue{}, err
		}
	}
	switch {
	case nExact > 0:
		return exact, nil
	case nWild > 0:
		return wild, nil
	}
	return Queue{}, ErrNotFound
}

// Accepted reports whether a process has accepted the connection of which fd is the connected client's end, a
// TCP or a Unix stream socket. It is exact for the one connection, however many others wait, so it is what a
// probe asks after it connected. The error is ErrNotFound where the other end is in another network namespace
// (TCP) or is closed already.
func (c *Conn) Accepted(fd int) (bool, error) {
	peer, err := unix.Getpeername(fd)
	if err != nil {
		return false, os.NewSyscallError("getpeername", err)
	}
	if _, ok := peer.(*unix.SockaddrUnix); ok {
		return c.unixAccepted(fd)
	}
	self, err := unix.Getsockname(fd)
	if err != nil {
		return false, os.NewSyscallError("getsockname", err)
	}
	local, remote := addrPort(self), addrPort(peer)
	if !local.IsValid() || !remote.IsValid() {
		return false, ErrNotFound
	}
	// The kernel gives the server's socket its inode when a process accepts it (sock_graft).
	accepted, found := false, false
	err = c.ask(unix.SOCK_DIAG_BY_FAMILY, 0, inetExact(remote, local, anyCookie), func(b []byte) {
		var s Socket
		found = parseInet(b, &s)
		accepted = s.Inode != 0
	})
	if err == nil && !found {
		err = ErrNotFound
	}
	return accepted, err
}

// unixAccepted asks for the peer's inode, which the kernel gives it when a process accepts it.
func (c *Conn) unixAccepted(fd int) (bool, error) {
	var self unix.Stat_t
	if err := unix.Fstat(fd, &self); err != nil {
		return false, os.NewSyscallError("fstat", err)
	}
	accepted, found := false, false
	err := c.ask(unix.SOCK_DIAG_BY_FAMILY, 0, unixRequest(0xfff, uint32(self.Ino), unixShowPeer), func(b []byte) {
		if len(b) < sizeofUnixMessage {
			return
		}
		if peer := attribute(b[sizeofUnixMessage:], unixPeer); len(peer) >= 4 {
			found, accepted = true, native.Uint32(peer) != 0
		}
	})
	if err == nil && !found {
		err = ErrNotFound
	}
	return accepted, err
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// Waiting is a listening Unix socket's queue with the clients in it, the one that waits longest first: the
// inodes of their sockets, 0 for a client that has closed its own. Clients is nil where there are too many
// for one message.
type Waiting struct {
	Queue
	Clients []uint32
}

// UnixWaiting returns who waits in the queue of the listening Unix socket with that inode. Unlike the length
// alone it shows that a queue moves that is always full. The error is ErrNotFound if there is none.
func (c *Conn) UnixWaiting(inode uint32) (Waiting, error) {
	var w Waiting
	found := false
	err := c.ask(unix.SOCK_DIAG_BY_FAMILY, 0, unixRequest(stateListen, inode, unixShowQueues|unixShowClients), func(b []byte) {
		if w.Queue, found = unixQueue(b); found {
			clients := attribute(b[sizeofUnixMessage:], unixClients)
			w.Clients = make([]uint32, len(clients)/4)
			for i := range w.Clients {
				w.Clients[i] = native.Uint32(clients[4*i:])
			}
		}
	})
	if errors.Is(err, unix.EMSGSIZE) {
		w.Queue, err = c.UnixQueue(inode)
		return w, err
	}
	if err == nil && !found {
		err = ErrNotFound
	}
	return w, err
}

// MovedSince reports whether a process has accepted a connection since before: an earlier answer about the
// same queue. The queue is first in, first out, so as long as nothing is accepted the clients of before stand
// where they stood.
func (w Waiting) MovedSince(before Waiting) bool {
	if w.Waiting < before.Waiting {
		return true
	}
	if w.Clients == nil || before.Clients == nil {
		return false
	}
	for i, client := range before.Clients {
		if i >= len(w.Clients) || w.Clients[i] != client && w.Clients[i] != 0 {
			return true
		}
	}
	return false
}

// UnixQueues is the queues of all listening Unix sockets of the network namespace at one moment.
type UnixQueues struct {
	abstract map[string]Queue
	files    map[uint64]Queue // by device and inode of the socket's file, as the kernel keeps them
}

// UnixQueues asks for all queues at once: the kernel walks all Unix sockets for one of them as it does for
// all.
func (c *Conn) UnixQueues() (*UnixQueues, error) {
	all := &UnixQueues{map[string]Queue{}, map[uint64]Queue{}}
	err := c.ask(unix.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP, unixRequest(stateListen, 0, unixShowName|unixShowVFS|unixShowQueues), func(b []byte) {
		q, ok := unixQueue(b)
		if !ok {
			return
		}
		attributes := b[sizeofUnixMessage:]
		if vfs := attribute(attributes, unixVFS); len(vfs) >= 8 {
			all.files[uint64(native.Uint32(vfs[4:]))<<32|uint64(native.Uint32(vfs))] = q
		} else if name := attribute(attributes, unixName); len(name) > 0 && name[0] == 0 {
			all.abstract[string(name[1:])] = q
		}
	})
	if err != nil {
		return nil, err
	}
	return all, nil
}

// At returns the queue of the socket that listens at path, as UnixListener takes it, and whether there is
// one.
func (u *UnixQueues) At(path string) (Queue, bool) {
	if name, ok := strings.CutPrefix(path, "@"); ok {
		q, ok := u.abstract[name]
		return q, ok
	}
	var file unix.Stat_t
	if unix.Stat(path, &file) != nil {
		return Queue{}, false
	}
	device := unix.Major(file.Dev)<<20 | unix.Minor(file.Dev)
	q, ok := u.files[uint64(device)<<32|uint64(uint32(file.Ino))]
	return q, ok
}
