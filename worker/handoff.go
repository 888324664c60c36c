package worker

import (
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
)

// taker is the listener of a worker to which lb hands accepted sockets over (docs/handoff.md). It is safe for
// concurrent use.
type taker struct {
	file    *os.File
	raw     syscall.RawConn
	address net.Addr
	report  bool // lb wants to hear when connections end
}

// takeHandedOff takes the worker's end of lb's channel, which is the descriptor of that number.
func takeHandedOff(number string) (net.Listener, error) {
	fd, err := strconv.Atoi(number)
	if err != nil || fd < 0 {
		return nil, fmt.Errorf("cannot take connections over: %s is %q, which is no descriptor", handoff.EnvFD, number)
	}
	unix.CloseOnExec(fd)
	// lb reads from a duplicate, with MSG_DONTWAIT: it does not matter to it that this end does not block.
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, fmt.Errorf("cannot take connections over from descriptor %d: %w", fd, err)
	}
	t := &taker{file: os.NewFile(uintptr(fd), "handoff"), address: &net.TCPAddr{}, report: os.Getenv(handoff.EnvReport) != ""}
	if t.raw, err = t.file.SyscallConn(); err != nil {
		return nil, err
	}
	if a, err := netip.ParseAddrPort(os.Getenv(handoff.EnvAddress)); err == nil {
		t.address = net.TCPAddrFromAddrPort(a)
	}
	if t.report {
		if err := t.say([]byte{byte(handoff.Hello)}); err != nil {
			return nil, err
		}
	}
	for _, name := range []string{handoff.EnvFD, handoff.EnvAddress, handoff.EnvReport} {
		os.Unsetenv(name) // they are not for children
	}
	return t, nil
}

// Accept waits for the next connection, and tells lb that it is taken.
func (t *taker) Accept() (net.Conn, error) {
	for {
		fd, message, err := t.receive()
		if err != nil {
			return nil, t.failed(err)
		}
		if fd < 0 { // the kernel could not give the descriptor: too many are open
			t.say([]byte{byte(handoff.Refused)})
			return nil, t.failed(os.NewSyscallError("recvmsg", unix.EMFILE))
		}
		if err := t.say([]byte{byte(handoff.Taken)}); err != nil {
			unix.Close(fd)
			return nil, t.failed(err)
		}
		c, err := handoff.ParseConnection(message)
		if err != nil || c.Probe {
			unix.Close(fd)
			continue
		}
		conn, err := t.conn(fd, &c)
		if err != nil { // reset before it was taken
			continue
		}
		return conn, nil
	}
}

func (t *taker) failed(err error) error {
	return &net.OpError{Op: "accept", Net: "tcp", Addr: t.address, Err: err}
}

// receive waits for a message. fd is -1 if no descriptor came with it.
func (t *taker) receive() (fd int, message []byte, err error) {
	fd = -1
	var buf [handoff.MaxConnection]byte
	oob := make([]byte, unix.CmsgSpace(4))
	waitErr := t.raw.Read(func(channel uintptr) bool {
		var n, oobn int
		for {
			n, oobn, _, _, err = unix.Recvmsg(int(channel), buf[:], oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
			if err != unix.EINTR {
				break
			}
		}
		switch {
		case err == unix.EAGAIN:
			return false
		case err != nil:
			err = os.NewSyscallError("recvmsg", err)
			return true
		case n == 0:
			err = io.EOF // lb is gone
			return true
		}
		message = buf[:n]
		if messages, err := unix.ParseSocketControlMessage(oob[:oobn]); err == nil && len(messages) > 0 {
			if fds, err := unix.ParseUnixRights(&messages[0]); err == nil && len(fds) > 0 {
				fd = fds[0]
			}
		}
		return true
	})
	if waitErr != nil { // without a deadline there is one reason
		return -1, nil, net.ErrClosed
	}
	return fd, message, err
}

// say sends lb a message. A channel that takes none now is one that lb does not read: it has given this
// worker up.
func (t *taker) say(message []byte) error {
	var failed error
	err := t.raw.Control(func(fd uintptr) {
		failed = unix.Sendto(int(fd), message, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, nil)
	})
	if err != nil {
		return err
	}
	return os.NewSyscallError("send", failed)
}

// conn makes a connection of a descriptor, which it closes if it cannot.
func (t *taker) conn(fd int, c *handoff.Connection) (net.Conn, error) {
	f := os.NewFile(uintptr(fd), "connection")
	defer f.Close() // FileConn makes a copy
	conn, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	tcp, ok := conn.(*net.TCPConn)
	if !ok || !t.report && !c.Client.IsValid() {
		return conn, nil
	}
	named := handedOff{TCPConn: tcp, remote: tcp.RemoteAddr()}
	if c.Client.IsValid() {
		named.remote = net.TCPAddrFromAddrPort(c.Client)
	}
	if !t.report {
		return &named, nil
	}
	return &reported{handedOff: named, taker: t, id: c.ID}, nil
}

// Close has Accept return net.ErrClosed. Connections go on.
func (t *taker) Close() error { return t.file.Close() }

// Addr returns where clients connect to, if lb says so, else the zero address.
func (t *taker) Addr() net.Addr { return t.address }

// handedOff is a connection whose client is not its peer, but whom a PROXY header named.
type handedOff struct {
	*net.TCPConn
	remote net.Addr
}

// RemoteAddr returns the client's address.
func (c *handedOff) RemoteAddr() net.Addr { return c.remote }

// reported is a connection whose end lb wants to hear of.
type reported struct {
	handedOff
	taker          *taker
	id             uint64
	received, sent atomic.Uint64
	closed         sync.Once
}

func (c *reported) Read(b []byte) (int, error) {
	n, err := c.TCPConn.Read(b)
	c.received.Add(uint64(n))
	return n, err
}

func (c *reported) Write(b []byte) (int, error) {
	n, err := c.TCPConn.Write(b)
	c.sent.Add(uint64(n))
	return n, err
}

// ReadFrom is io.Copy's way to write; WriteTo its way to read.
func (c *reported) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.TCPConn.ReadFrom(r)
	c.sent.Add(uint64(n))
	return n, err
}

func (c *reported) WriteTo(w io.Writer) (int64, error) {
	n, err := c.TCPConn.WriteTo(w)
	c.received.Add(uint64(n))
	return n, err
}

// Close closes the connection and tells lb.
func (c *reported) Close() error {
	err := c.TCPConn.Close()
	c.closed.Do(func() {
		c.taker.say(handoff.AppendEnded(nil, handoff.End{ID: c.id, Received: c.received.Load(), Sent: c.sent.Load()}))
	})
	return err
}
