package proxy_test

import (
	"testing"

	"golang.org/x/sys/unix"
)

// segmentsIn returns how many segments the kernel has received for a TCP connection.
func segmentsIn(t testing.TB, c conn) (n uint32) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var info *unix.TCPInfo
	if e := raw.Control(func(fd uintptr) {
		info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
	}); e != nil || err != nil {
		t.Fatal(e, err)
	}
	return info.Segs_in
}

// What epoll reports of a backend that has closed after its last word.
const (
	unixEnd = unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLHUP
	tcpEnd  = unix.EPOLLIN | unix.EPOLLRDHUP
)

func TestSession_LastBytesOfABackendAndTheFINLeaveInOneSegment(t *testing.T) {
	for kind, mask := range map[string]uint32{unixSocket: unixEnd, tcpSocket: tcpEnd} {
		proceed, closed := make(chan struct{}), make(chan struct{})
		r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, kind, func(c conn) {
			receive(t, c, "ask")
			send(t, c, []byte("wait"))
			<-proceed
			send(t, c, []byte("answer"))
			c.Close()
			close(closed)
		}).address)
		c := r.dial()
		send(t, c, []byte("ask"))
		receive(t, c, "wait") // which acknowledges all that was said
		before := segmentsIn(t, c)
		r.proxy.BackendEvent(mask, func() {
			close(proceed)
			<-closed
		})
		receive(t, c, "answer")
		wantEOF(t, c)
		if n := segmentsIn(t, c) - before; n != 1 {
			t.Errorf("%s backend: segments of the answer and the FIN: got %d; want 1", kind, n)
		}
	}
}

func TestSession_LastBytesOfAClientAndTheFINLeaveInOneSegment(t *testing.T) {
	listening, got := make(chan struct{}), make(chan uint32, 1)
	r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, tcpSocket, func(c conn) {
		receive(t, c, "hello")
		send(t, c, []byte("well?"))
		receive(t, c, "now") // which acknowledges all that was said
		before := segmentsIn(t, c)
		close(listening)
		receive(t, c, "the rest")
		wantEOF(t, c)
		got <- segmentsIn(t, c) - before
	}).address)
	c := r.dial()
	send(t, c, []byte("hello"))
	receive(t, c, "well?")
	send(t, c, []byte("now"))
	await(t, "the backend's turn", listening)
	r.proxy.ClientEvent(tcpEnd, func() {
		send(t, c, []byte("the rest"))
		c.CloseWrite()
	})
	if n := await(t, "the backend's count", got); n != 1 {
		t.Errorf("segments of the rest and the FIN: got %d; want 1", n)
	}
	wantEOF(t, c)
}

// TestSession_BytesBeforeAnErrorAreNotHeldBack: the hang-up hides an error, so no FIN follows. TCP would hold
// the bytes back for 200 ms.
func TestSession_BytesBeforeAnErrorAreNotHeldBack(t *testing.T) {
	proceed, closed := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, unixSocket, func(c conn) {
		receive(t, c, "part of a re")
		send(t, c, []byte("wait"))
		<-proceed
		send(t, c, []byte("error: cannot"))
		c.Close()
		close(closed)
	}).address)
	c := r.dial()
	send(t, c, []byte("part of a request"))
	receive(t, c, "wait")
	r.proxy.BackendEvent(unixEnd, func() {
		close(proceed)
		<-closed
	})
	if n := r.proxy.NotSent(); n != 0 {
		t.Errorf("bytes that TCP holds back after the backend's end: got %d; want 0", n)
	}
	receive(t, c, "error: cannot")
	wantReset(t, c)
	r.wantTermination("SD")
}

// TestSession_BytesThatCrossTheEndCostNoAnswer: a close with unread bytes resets the client, and drops what
// was held back for the FIN.
func TestSession_BytesThatCrossTheEndCostNoAnswer(t *testing.T) {
	proceed, closed := make(chan struct{}), make(chan struct{})
	r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, unixSocket, func(c conn) {
		receive(t, c, "ask")
		send(t, c, []byte("wait"))
		<-proceed
		send(t, c, []byte("the answer"))
		c.Close()
		close(closed)
	}).address)
	c := r.dial()
	send(t, c, []byte("ask"))
	receive(t, c, "wait")
	r.proxy.BackendEvent(unixEnd, func() {
		close(proceed)
		<-closed
		send(t, c, []byte("what nobody will read"))
		for r.proxy.UnreadOfClient() == 0 {
		}
	})
	receive(t, c, "the answer")
}
