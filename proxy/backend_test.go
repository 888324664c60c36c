package proxy_test

import (
	"net"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// nobody is an address where nobody listens.
func nobody(t testing.TB, kind string) string {
	t.Helper()
	if kind == unixSocket || kind == abstractSocket {
		return bindAddress(t, kind)
	}
	ln, err := net.Listen("tcp", bindAddress(t, kind))
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	return ln.Addr().String()
}

// blackHole is a TCP address that answers no SYN: its queue is full and nobody accepts.
func blackHole(t testing.TB) string {
	t.Helper()
	_, address, _ := fullListener(t)
	return address
}

// fullListener is a listening TCP socket whose queue is full, until hangUp.
func fullListener(t testing.TB) (fd int, address string, hangUp func()) {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	return fd, net.JoinHostPort("127.0.0.1", port(name)), fill(t, unix.AF_INET, name, unix.EINPROGRESS)
}

func port(sa unix.Sockaddr) string {
	_, p, _ := net.SplitHostPort((&net.TCPAddr{Port: sa.(*unix.SockaddrInet4).Port}).String())
	return p
}

// swamped is a Unix socket whose queue is full; drain accepts one connection, and so makes room for one.
func swamped(t testing.TB) (address string, drain func()) {
	t.Helper()
	address = bindAddress(t, unixSocket)
	a, err := backends.ParseAddress(address)
	if err != nil {
		t.Fatal(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	sa := &unix.SockaddrUnix{Name: a.Path}
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	fill(t, unix.AF_UNIX, sa, unix.EAGAIN)
	return address, func() {
		c, _, err := unix.Accept(fd)
		if err != nil {
			t.Error(err)
			return
		}
		t.Cleanup(func() { unix.Close(c) })
	}
}

// fill connects to a listening socket until it takes no more, which a non-blocking connect shows by the given
// error. The connections stay until hangUp, or the end of the test.
func fill(t testing.TB, family int, to unix.Sockaddr, full unix.Errno) (hangUp func()) {
	t.Helper()
	var fds []int
	hangUp = func() {
		for _, fd := range fds {
			unix.Close(fd)
		}
		fds = nil
	}
	t.Cleanup(func() { hangUp() })
	for range 64 {
		fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		fds = append(fds, fd)
		err = unix.Connect(fd, to)
		if err == nil || err == unix.EINPROGRESS && writable(fd, 20*time.Millisecond) {
			continue
		}
		if err != full {
			t.Fatalf("connect to fill the queue: got %v; want %v", err, full)
		}
		return hangUp
	}
	t.Fatal("the queue does not fill")
	return nil
}

// writable says whether a socket takes bytes, or fails, within d.
func writable(fd int, d time.Duration) bool {
	fds := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, int(d.Milliseconds()))
	return err == nil && n > 0
}
