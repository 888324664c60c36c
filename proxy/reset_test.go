package proxy_test

import (
	"errors"
	"io"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSession_ClientResetReachesTCPBackend(t *testing.T) {
	got := make(chan error, 1)
	r := newRig(t, nil, serve(t, tcpSocket, func(c conn) {
		send(t, c, []byte("hello"))
		_, err := io.Copy(io.Discard, c)
		got <- err
	}).address)
	c := r.dial()
	receive(t, c, "hello")
	reset(c)
	if err := await(t, "the backend's end", got); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("backend's read: got %v; want ECONNRESET", err)
	}
	r.wantTermination("CD")
}

func TestSession_ClientResetEndsUnixBackend(t *testing.T) {
	got := make(chan error, 1)
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		send(t, c, []byte("hello"))
		_, err := io.Copy(io.Discard, c)
		got <- err
	}).address)
	c := r.dial()
	receive(t, c, "hello")
	reset(c)
	if err := await(t, "the backend's end", got); err != nil {
		// a Unix socket knows no reset of what was read
		t.Errorf("backend's read: got %v; want EOF", err)
	}
	r.wantTermination("CD")
}

func TestSession_ClientResetAfterItsHalfCloseReachesBackend(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		eof := make(chan struct{})
		got := make(chan error, 1)
		r := newRig(t, nil, serve(t, kind, func(c conn) {
			receive(t, c, "ask")
			wantEOF(t, c)
			close(eof)
			// It works on a long answer and says nothing; only its connection can tell that nobody wants it.
			got <- waitHangUp(c)
		}).address)
		c := r.dial()
		send(t, c, []byte("ask"))
		c.CloseWrite()
		await(t, "EOF at the backend", eof)
		reset(c)
		failIf(t, await(t, "the hang-up", got), "backend")
		r.wantTermination("CD")
	})
}

// waitHangUp waits until the peer has closed both ways, as a poll of the socket shows.
func waitHangUp(c conn) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var result error
	err = raw.Control(func(fd uintptr) {
		fds := []unix.PollFd{{Fd: int32(fd)}} // POLLHUP and POLLERR are always told
		n, err := unix.Poll(fds, int(ioTimeout.Milliseconds()))
		for err == unix.EINTR {
			n, err = unix.Poll(fds, int(ioTimeout.Milliseconds()))
		}
		if n == 0 {
			result = errors.New("the peer has not closed in time")
		}
	})
	return errors.Join(err, result)
}

func TestSession_BackendResetReachesClient(t *testing.T) {
	r := newRig(t, nil, serve(t, tcpSocket, func(c conn) {
		receive(t, c, "ask")
		send(t, c, []byte("half an ans"))
		receive(t, c, "got it")
		reset(c)
	}).address)
	c := r.dial()
	send(t, c, []byte("ask"))
	receive(t, c, "half an ans")
	send(t, c, []byte("got it"))
	wantReset(t, c)
	r.wantTermination("SD")
}

func TestSession_BackendResetAfterItsHalfCloseReachesClient(t *testing.T) {
	proceed := make(chan struct{})
	r := newRig(t, nil, serve(t, tcpSocket, func(c conn) {
		send(t, c, []byte("answer"))
		c.CloseWrite()
		<-proceed
		reset(c)
	}).address)
	c := r.dial()
	receive(t, c, "answer")
	wantEOF(t, c)
	close(proceed)
	failIf(t, waitHangUp(c), "client")
	r.wantTermination("SD")
}

func TestSession_UnixBackendThatClosesWithUnreadBytesResetsClient(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		receive(t, c, "part of a re") // the rest of the request is never read
		send(t, c, []byte("error: cannot"))
	}).address)
	for range 200 {
		c := r.dial()
		send(t, c, []byte("part of a request"))
		receive(t, c, "error: cannot")
		wantReset(t, c)
		c.Close()
	}
	for _, rec := range r.ended(200) {
		if rec.Termination.String() != "SD" {
			t.Errorf("termination code: got %v; want SD", rec.Termination)
		}
	}
}

// A poll may see the hang-up of a Unix socket before the error that belongs to it; it happened once in 100
// 000 sessions.
func TestSession_HangUpThatHidesAnErrorIsStillAReset(t *testing.T) {
	waiting, proceed, closed := make(chan struct{}), make(chan struct{}), make(chan struct{})
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		receive(t, c, "part of a re")
		close(waiting)
		<-proceed
		send(t, c, []byte("error: cannot"))
		c.Close()
		close(closed)
	}).address)
	c := r.dial()
	send(t, c, []byte("part of a request"))
	await(t, "the request", waiting)
	r.proxy.BackendEvent(unix.EPOLLIN|unix.EPOLLRDHUP|unix.EPOLLHUP, func() {
		close(proceed)
		<-closed
	})
	receive(t, c, "error: cannot")
	wantReset(t, c)
	r.wantTermination("SD")
}

func TestSession_UnixBackendThatReadAllAndClosedGivesCleanEOF(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		receive(t, c, "a whole request")
		send(t, c, []byte("a whole answer"))
	}).address)
	for range 200 {
		c := r.dial()
		send(t, c, []byte("a whole request"))
		receive(t, c, "a whole answer")
		wantEOF(t, c)
		c.Close()
	}
	for _, rec := range r.ended(200) {
		if rec.Termination.String() != "--" {
			t.Errorf("termination code: got %v; want --", rec.Termination)
		}
	}
}

func TestSession_BackendThatRefusesToReadStillSpeaks(t *testing.T) {
	refused := make(chan struct{})
	proceed := make(chan struct{})
	r := newRig(t, nil, serve(t, unixSocket, func(c conn) {
		raw, _ := c.SyscallConn()
		raw.Control(func(fd uintptr) { unix.Shutdown(int(fd), unix.SHUT_RD) })
		close(refused)
		<-proceed
		send(t, c, []byte("last words"))
	}).address)
	c := r.dial()
	<-refused
	send(t, c, []byte("nobody reads this"))
	eventually(t, "the refusal is known", func() bool { return r.proxy.Holdings().Broken == 1 })
	close(proceed)
	receive(t, c, "last words")
	wantReset(t, c)
	r.wantTermination("SD")
}
