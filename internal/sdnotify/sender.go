package sdnotify

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// sendTimeout bounds one send: a supervisor that does not read must not hang the service.
const sendTimeout = time.Second

// Sender tells a supervisor. A nil Sender, or one without a socket, tells nobody and succeeds. It is safe for
// concurrent use.
//
// It keeps one socket open, and opens another when the supervisor behind it was started anew, which
// github.com/coreos/go-systemd's daemon.SdNotify does at every call; a heartbeat is sent for a lifetime.
type Sender struct {
	path string
	mu   sync.Mutex
	conn *net.UnixConn // nil: not open
}

// NewSender sends to the socket at path, "@name" for an abstract one; empty: to nobody.
func NewSender(path string) *Sender { return &Sender{path: path} }

// FromEnv sends to NOTIFY_SOCKET.
func FromEnv() *Sender { return NewSender(os.Getenv("NOTIFY_SOCKET")) }

// Enabled reports whether there is anybody to tell.
func (s *Sender) Enabled() bool { return s != nil && s.path != "" }

// Send tells m.
func (s *Sender) Send(m Message) error { return s.send(m.Format(), nil) }

func (s *Sender) send(data, control []byte) error {
	if !s.Enabled() {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var err error
	for range 2 { // the second time on a new socket: the supervisor may have been started anew
		if s.conn == nil {
			s.conn, err = net.DialUnix("unixgram", nil, &net.UnixAddr{Name: s.path, Net: "unixgram"})
			if err != nil {
				s.conn = nil
				break
			}
		}
		s.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
		if err = sendmsg(s.conn, data, control); err == nil {
			return nil
		}
		s.conn.Close()
		s.conn = nil
	}
	return fmt.Errorf("cannot notify %q: %w", s.path, err)
}

// sendmsg sends on a connected socket, which UnixConn.WriteMsgUnix does not do for datagrams.
func sendmsg(conn *net.UnixConn, data, control []byte) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	e := raw.Write(func(fd uintptr) bool {
		err = unix.Sendmsg(int(fd), data, control, nil, unix.MSG_NOSIGNAL)
		return err != unix.EAGAIN
	})
	return errors.Join(e, err)
}

// Barrier returns when the supervisor has read all that was sent before, as sd_notify_barrier(3) does.
func (s *Sender) Barrier(ctx context.Context) error {
	if !s.Enabled() {
		return nil
	}
	var p [2]int
	if err := unix.Pipe2(p[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return fmt.Errorf("cannot make a barrier: %w", err)
	}
	r := os.NewFile(uintptr(p[0]), "barrier")
	defer r.Close()
	err := s.send(Message{Barrier: true}.Format(), unix.UnixRights(p[1]))
	unix.Close(p[1])
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := r.Read(make([]byte, 1)); errors.Is(err, os.ErrDeadlineExceeded) {
		// else: EOF, all copies are closed
		return fmt.Errorf("cannot wait for %q to read: %w", s.path, context.Cause(ctx))
	}
	return nil
}

// Close closes the socket. A later Send opens it again.
func (s *Sender) Close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}
