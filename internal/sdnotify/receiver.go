package sdnotify

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxFDs is the most descriptors that the kernel takes along with one message (SCM_MAX_FD, unix(7)).
const maxFDs = 253

const (
	// pauseCap is the longest pause after an error, and so the longest that Pause and Close wait for Run.
	pauseCap = 50 * time.Millisecond
	// burst is how many datagrams Run reads in burstTime; a flood of more waits, and its senders with it.
	burst     = 64
	burstTime = 5 * time.Millisecond
)

// Counts are how many datagrams a Receiver has read, by what became of them.
type Counts struct {
	Received uint64 // all
	Unknown  uint64 // from a process that Notify did not know
	Garbage  uint64 // unreadable
	TooLong  uint64 // above MaxSize
	Closed   uint64 // descriptors that came along, and were closed
	Failed   uint64 // reads that failed: the kernel was short of memory, for example
}

// Receiver is the socket that NOTIFY_SOCKET names. It is always read, so that no sender waits: a Unix
// datagram socket holds 11 messages (net.unix.max_dgram_qlen), and then the senders block.
type Receiver struct {
	// Notify takes a message of the process pid, while that process is likely still there. It reports whether
	// it knows the process. It must not block. Set it before Run.
	Notify func(pid int, m Message) (known bool)
	// Fault is told of the first of some reads in a row that fail; Run goes on. Nil: nobody is. Set it before
	// Run.
	Fault func(err error)

	path string

	mu     sync.Mutex
	conn   *net.UnixConn
	paused bool
	closed bool

	received, unknown, garbage, tooLong, descriptors, failed atomic.Uint64
}

// Listen binds the socket at path, where nothing may be. protect, if not nil, is called before the socket is
// used: it has to keep everybody out who may not send.
func Listen(path string, protect func() error) (*Receiver, error) {
	conn, err := bind(path, protect)
	if err != nil {
		return nil, err
	}
	return &Receiver{path: path, conn: conn}, nil
}

func bind(path string, protect func() error) (*net.UnixConn, error) {
	// Before the bind: a message that comes at once already has its sender's pid.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error { return passCredentials(c) }}
	c, err := config.ListenPacket(context.Background(), "unixgram", path)
	if err != nil {
		return nil, fmt.Errorf("cannot bind notify socket %q: %w", path, err)
	}
	conn := c.(*net.UnixConn)
	if protect != nil {
		if err := protect(); err != nil {
			conn.Close()
			return nil, fmt.Errorf("cannot protect notify socket %q: %w", path, err)
		}
	}
	return conn, nil
}

// passCredentials asks the kernel for the sender of each datagram.
func passCredentials(raw syscall.RawConn) (err error) {
	controlErr := raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
	return cmp.Or(controlErr, err)
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
		return nil, fmt.Errorf("cannot take over notify socket %q: it is not a Unix socket", path)
	}
	raw, err := conn.SyscallConn()
	if err == nil {
		err = passCredentials(raw)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot take over notify socket %q: %w", path, err)
	}
	return &Receiver{path: path, conn: conn}, nil
}

// Rebind binds the socket at its path again, when its file is gone: Run goes on with the new one. What waits
// in the one before is lost. protect is as in Listen.
func (r *Receiver) Rebind(protect func() error) error {
	conn, err := bind(r.path, protect)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		conn.Close()
		return net.ErrClosed
	}
	if r.paused {
		conn.SetReadDeadline(time.Unix(1, 0))
	}
	r.conn.Close()
	r.conn = conn
	return nil
}

// Path returns where the socket is.
func (r *Receiver) Path() string { return r.path }

// File returns a copy of the socket, to hand over at an exec; the caller closes it.
func (r *Receiver) File() (*os.File, error) { return r.current().File() }

func (r *Receiver) current() *net.UnixConn {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.conn
}

// Counts returns the numbers so far.
func (r *Receiver) Counts() Counts {
	return Counts{
		Received: r.received.Load(), Unknown: r.unknown.Load(), Garbage: r.garbage.Load(),
		TooLong: r.tooLong.Load(), Closed: r.descriptors.Load(), Failed: r.failed.Load(),
	}
}

// Restore has the counts go on from those of the lb before an exec. Call it before Run.
func (r *Receiver) Restore(c Counts) {
	r.received.Store(c.Received)
	r.unknown.Store(c.Unknown)
	r.garbage.Store(c.Garbage)
	r.tooLong.Store(c.TooLong)
	r.descriptors.Store(c.Closed)
	r.failed.Store(c.Failed)
}

// Pause ends Run, which has then taken a datagram wholly or not at all; what comes waits in the socket.
// Resume undoes it: Run may be called again.
func (r *Receiver) Pause() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = true
	r.conn.SetReadDeadline(time.Unix(1, 0))
}

// Resume is for after a Pause, and before the next Run.
func (r *Receiver) Resume() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.paused = false
	r.conn.SetReadDeadline(time.Time{})
}

// over reports whether Run has to end.
func (r *Receiver) over() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.paused || r.closed
}

// Run reads until Close or Pause, whatever fails meanwhile: nobody else hears that the workers are alive.
func (r *Receiver) Run() {
	data := make([]byte, MaxSize)
	control := make([]byte, unix.CmsgSpace(unix.SizeofUcred)+unix.CmsgSpace(4*maxFDs))
	pause := time.Duration(0) // after an error; 0: the last read was good
	count, since := 0, time.Now()
	for {
		// MSG_CMSG_CLOEXEC is set by package net
		n, cn, flags, _, err := r.current().ReadMsgUnix(data, control)
		if err != nil {
			if r.over() {
				return
			}
			if errors.Is(err, net.ErrClosed) || errors.Is(err, os.ErrDeadlineExceeded) {
				// another socket took its place
				continue
			}
			r.failed.Add(1)
			if pause == 0 && r.Fault != nil {
				r.Fault(fmt.Errorf("cannot read notify socket %q: %w", r.path, err))
			}
			pause = min(max(2*pause, time.Millisecond), pauseCap)
			time.Sleep(pause)
			continue
		}
		pause = 0
		r.take(data[:n], control[:cn], flags)
		if count++; count == burst {
			time.Sleep(burstTime - time.Since(since))
			count, since = 0, time.Now()
		}
	}
}

// take takes one datagram.
func (r *Receiver) take(data, control []byte, flags int) {
	r.received.Add(1)
	pid := r.open(control)
	if flags&unix.MSG_TRUNC != 0 {
		r.tooLong.Add(1)
		return
	}
	m, err := Parse(data)
	switch {
	case err != nil:
		r.garbage.Add(1)
	case pid <= 0 || r.Notify == nil || !r.Notify(pid, m):
		r.unknown.Add(1)
	}
}

// open returns the sender's pid, 0 if there is none, and closes every descriptor that came along: BARRIER=1
// waits for that, and a hoard of descriptors would be an attack.
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
				r.descriptors.Add(1) // before the sender can see it
				unix.Close(fd)
			}
		}
	}
	return pid
}

// Close ends Run. The file stays, for whoever made its directory to remove.
func (r *Receiver) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	return r.conn.Close()
}
