package sdnotify

import (
	"errors"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// maxFDs is the most descriptors that the kernel takes along with one message (SCM_MAX_FD, unix(7)).
const maxFDs = 253

// Counts are how many datagrams a Receiver has read, by what became of them.
type Counts struct {
	Received uint64 // all
	Unknown  uint64 // from a process that Notify did not know
	Garbage  uint64 // unreadable
	TooLong  uint64 // above MaxSize
	Closed   uint64 // descriptors that came along, and were closed
}

// Receiver is the socket that NOTIFY_SOCKET names. It is always read, so that no sender waits: a Unix datagram socket
// holds 11 messages (net.unix.max_dgram_qlen), and then the senders block.
type Receiver struct {
	// Notify takes a message of the process pid, while that process is likely still there. It says whether it knows the
	// process. It must not block. Set it before Run.
	Notify func(pid int, m Message) (known bool)

	path string
	conn *net.UnixConn

	received, unknown, garbage, tooLong, closed atomic.Uint64
}

// Listen binds the socket at path, in place of one that is there. Who may send is the business of the directory's
// permissions and the socket's; it is made with mode 0600.
func Listen(path string) (*Receiver, error) {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace notify socket %q: %w", path, err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("cannot bind notify socket %q: %w", path, err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot protect notify socket %q: %w", path, err)
	}
	return newReceiver(path, conn)
}

// FromFile goes on with a socket of Listen that came from before an exec. It takes f over.
func FromFile(path string, f *os.File) (*Receiver, error) {
	defer f.Close()
	c, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("cannot take over notify socket %q: %w", path, err)
	}
	conn, ok := c.(*net.UnixConn)
	if !ok {
		c.Close()
		return nil, fmt.Errorf("cannot take over notify socket %q: it is no Unix socket", path)
	}
	return newReceiver(path, conn)
}

func newReceiver(path string, conn *net.UnixConn) (*Receiver, error) {
	raw, err := conn.SyscallConn()
	if err == nil {
		if e := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) }); e != nil {
			err = e
		}
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot ask for credentials on notify socket %q: %w", path, err)
	}
	return &Receiver{path: path, conn: conn}, nil
}

// Path is where the socket is.
func (r *Receiver) Path() string { return r.path }

// File is a copy of the socket, to hand over at an exec; the caller closes it.
func (r *Receiver) File() (*os.File, error) { return r.conn.File() }

// Counts are the numbers so far.
func (r *Receiver) Counts() Counts {
	return Counts{
		Received: r.received.Load(), Unknown: r.unknown.Load(), Garbage: r.garbage.Load(),
		TooLong: r.tooLong.Load(), Closed: r.closed.Load(),
	}
}

// Restore has the counts go on from those of the lb before an exec. Call it before Run.
func (r *Receiver) Restore(c Counts) {
	r.received.Store(c.Received)
	r.unknown.Store(c.Unknown)
	r.garbage.Store(c.Garbage)
	r.tooLong.Store(c.TooLong)
	r.closed.Store(c.Closed)
}

// Pause ends Run, which has then taken a datagram wholly or not at all; what comes waits in the socket. Resume undoes it:
// Run may be called again.
func (r *Receiver) Pause() { r.conn.SetReadDeadline(time.Unix(1, 0)) }

// Resume is for after a Pause, and before the next Run.
func (r *Receiver) Resume() { r.conn.SetReadDeadline(time.Time{}) }

// Run reads until Close or Pause. The error is that of a socket that broke.
func (r *Receiver) Run() error {
	data := make([]byte, MaxSize)
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*maxFDs))
	for {
		n, cn, flags, _, err := r.conn.ReadMsgUnix(data, control) // MSG_CMSG_CLOEXEC is set by package net
		switch {
		case errors.Is(err, net.ErrClosed), errors.Is(err, os.ErrDeadlineExceeded):
			return nil
		case err != nil:
			return fmt.Errorf("cannot read notify socket %q: %w", r.path, err)
		}
		r.received.Add(1)
		pid := r.open(control[:cn])
		if flags&unix.MSG_TRUNC != 0 {
			r.tooLong.Add(1)
			continue
		}
		m, err := Parse(data[:n])
		switch {
		case err != nil:
			r.garbage.Add(1)
		case pid <= 0 || r.Notify == nil || !r.Notify(pid, m):
			r.unknown.Add(1)
		}
	}
}

// open gives the sender's pid, 0 if there is none, and closes every descriptor that came along: BARRIER=1 waits for that,
// and a hoard of descriptors would be an attack.
func (r *Receiver) open(control []byte) (pid int) {
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return 0
	}
	for _, cm := range messages {
		if cm.Header.Level != unix.SOL_SOCKET {
			continue
		}
		switch cm.Header.Type {
		case unix.SCM_CREDENTIALS:
			if cred, err := unix.ParseUnixCredentials(&cm); err == nil {
				pid = int(cred.Pid)
			}
		case unix.SCM_RIGHTS:
			fds, err := unix.ParseUnixRights(&cm)
			if err != nil {
				continue
			}
			for _, fd := range fds {
				r.closed.Add(1) // before the sender can see it
				unix.Close(fd)
			}
		}
	}
	return pid
}

// Close ends Run. The file stays for others to bind or remove: see Remove.
func (r *Receiver) Close() error { return r.conn.Close() }

// Remove removes the socket's file.
func (r *Receiver) Remove() error { return os.Remove(r.path) }
