package worker

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
)

// channel plays lb: it gives connections to a worker of this process.
type channel struct {
	t  *testing.T
	fd int
	ln net.Listener
}

// handOver starts a worker to which the channel hands over.
func handOver(t *testing.T, env map[string]string) (*channel, *Worker) {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Setenv(handoff.EnvFD, strconv.Itoa(pair[1]))
	for name, value := range env {
		t.Setenv(name, value)
	}
	w, err := Listen(context.Background(), Options{WaitReady: true})
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ch := &channel{t: t, fd: pair[0], ln: ln}
	t.Cleanup(func() {
		w.Close()
		ln.Close()
		unix.Close(ch.fd)
	})
	limit := unix.NsecToTimeval(int64(10 * time.Second))
	if err := unix.SetsockoptTimeval(ch.fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &limit); err != nil {
		t.Fatal(err)
	}
	return ch, w
}

// give connects a client and gives its connection to the worker.
func (ch *channel) give(c handoff.Connection) (client net.Conn) {
	ch.t.Helper()
	client, err := net.Dial("tcp", ch.ln.Addr().String())
	if err != nil {
		ch.t.Fatal(err)
	}
	ch.t.Cleanup(func() { client.Close() })
	accepted, err := ch.ln.Accept()
	if err != nil {
		ch.t.Fatal(err)
	}
	raw, err := accepted.(syscall.Conn).SyscallConn()
	if err != nil {
		ch.t.Fatal(err)
	}
	raw.Control(func(fd uintptr) {
		err = unix.Sendmsg(ch.fd, handoff.AppendConnection(nil, &c), unix.UnixRights(int(fd)), nil, 0)
	})
	if err != nil {
		ch.t.Fatal(err)
	}
	accepted.Close()
	return client
}

// hear returns what the worker says next.
func (ch *channel) hear() (handoff.Reply, handoff.End) {
	ch.t.Helper()
	b := make([]byte, 100)
	n, err := unix.Read(ch.fd, b)
	if err != nil {
		ch.t.Fatal(err)
	}
	r, end, err := handoff.ParseReply(b[:n])
	if err != nil {
		ch.t.Fatal(err)
	}
	return r, end
}

func TestListen_TakesConnectionsOver(t *testing.T) {
	ch, w := handOver(t, map[string]string{handoff.EnvAddress: "127.0.0.1:8080"})
	if got := w.Addr().String(); got != "127.0.0.1:8080" {
		t.Errorf("got address %v; want what lb says", got)
	}
	if os.Getenv(handoff.EnvFD) != "" {
		t.Errorf("%s is left for children", handoff.EnvFD)
	}
	for range 3 {
		client := ch.give(handoff.Connection{ID: 1, Listener: "web"})
		conn, err := w.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if r, _ := ch.hear(); r != handoff.Taken {
			t.Errorf("the worker said %v; want Taken", r)
		}
		if conn.RemoteAddr().String() != client.LocalAddr().String() {
			t.Errorf("got client %v; want %v", conn.RemoteAddr(), client.LocalAddr())
		}
		if _, ok := conn.(*net.TCPConn); !ok {
			t.Errorf("got a %T; want a *net.TCPConn, as a listener gives", conn)
		}
		go conn.Write([]byte("hello"))
		got := make([]byte, 5)
		if _, err := io.ReadFull(client, got); err != nil || string(got) != "hello" {
			t.Errorf("got %q, %v", got, err)
		}
	}
}

func TestAccept_NamesTheClientOfAProxyHeader(t *testing.T) {
	ch, w := handOver(t, nil)
	want := netip.MustParseAddrPort("192.0.2.7:1234")
	ch.give(handoff.Connection{Client: want})
	conn, err := w.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if got := conn.RemoteAddr().String(); got != want.String() {
		t.Errorf("got client %v; want %v", got, want)
	}
}

func TestAccept_TakesProbesAndKeepsThemFromTheProgram(t *testing.T) {
	ch, w := handOver(t, nil)
	probe := ch.give(handoff.Connection{Probe: true})
	client := ch.give(handoff.Connection{})
	conn, err := w.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if conn.RemoteAddr().String() != client.LocalAddr().String() {
		t.Errorf("got %v; want the client %v, not the probe", conn.RemoteAddr(), client.LocalAddr())
	}
	for range 2 {
		if r, _ := ch.hear(); r != handoff.Taken {
			t.Errorf("the worker said %v; want Taken", r)
		}
	}
	if _, err := probe.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the probe got %v; want its end", err)
	}
}

// A message whose descriptor the kernel had no room for is what a process at its RLIMIT_NOFILE gets.
func TestAccept_WithoutADescriptorRefusesAndGoesOn(t *testing.T) {
	ch, w := handOver(t, nil)
	if err := unix.Sendto(ch.fd, handoff.AppendConnection(nil, &handoff.Connection{ID: 1}), 0, nil); err != nil {
		t.Fatal(err)
	}
	_, err := w.Accept()
	var temporary interface{ Temporary() bool }
	if !errors.As(err, &temporary) || !temporary.Temporary() {
		t.Errorf("got %v; want an error that a server retries after", err)
	}
	if r, _ := ch.hear(); r != handoff.Refused {
		t.Errorf("the worker said %v; want Refused", r)
	}
	ch.give(handoff.Connection{})
	conn, err := w.Accept()
	if err != nil {
		t.Fatal(err)
	}
	conn.Close()
}

func TestConn_TellsItsEndWhereTheKernelDoesNot(t *testing.T) {
	ch, w := handOver(t, map[string]string{handoff.EnvReport: "1"})
	if r, _ := ch.hear(); r != handoff.Hello {
		t.Errorf("the worker said %v first; want Hello", r)
	}
	client := ch.give(handoff.Connection{ID: 42})
	conn, err := w.Accept()
	if err != nil {
		t.Fatal(err)
	}
	client.Write([]byte("12345"))
	io.ReadFull(conn, make([]byte, 5))
	conn.Write([]byte("1234567"))
	conn.Close()
	conn.Close()
	if r, _ := ch.hear(); r != handoff.Taken {
		t.Errorf("the worker said %v; want Taken", r)
	}
	if r, end := ch.hear(); r != handoff.Ended || end != (handoff.End{ID: 42, Received: 5, Sent: 7}) {
		t.Errorf("the worker said %v %+v", r, end)
	}
}

func TestAccept_EndsWithTheChannelOrTheListener(t *testing.T) {
	ch, w := handOver(t, nil)
	unix.Shutdown(ch.fd, unix.SHUT_RDWR)
	if _, err := w.Accept(); !errors.Is(err, io.EOF) {
		t.Errorf("got %v when lb was gone; want EOF", err)
	}
	_, w = handOver(t, nil)
	got := make(chan error)
	go func() {
		_, err := w.Accept()
		got <- err
	}()
	w.Listener.Close()
	if err := <-got; !errors.Is(err, net.ErrClosed) {
		t.Errorf("got %v after Close; want net.ErrClosed", err)
	}
}
