package proxy_test

// Clients and backends of plain blocking system calls: they allocate nothing, so that whatever is allocated
// while they run is lb's.

import (
	"net"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// serveRaw runs a backend on a Unix socket that gives each connection to handle, on a goroutine of its own,
// and closes it when handle returns.
func serveRaw(t testing.TB, handle func(fd int)) (address string) {
	t.Helper()
	return acceptRaw(t, func(running *sync.WaitGroup, fd int) {
		running.Go(func() {
			handle(fd)
			unix.Close(fd)
		})
	})
}

// serveRawInline is serveRaw for one connection after the other; it allocates nothing.
func serveRawInline(t testing.TB, handle func(fd int)) (address string) {
	t.Helper()
	return acceptRaw(t, func(_ *sync.WaitGroup, fd int) {
		handle(fd)
		unix.Close(fd)
	})
}

// acceptRaw listens on a Unix socket and gives each connection to take.
func acceptRaw(t testing.TB, take func(running *sync.WaitGroup, fd int)) (address string) {
	t.Helper()
	address = bindAddress(t, unixSocket)
	ln, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Bind(ln, &unix.SockaddrUnix{Name: strings.TrimPrefix(address, "unix:")}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(ln, 1024); err != nil {
		t.Fatal(err)
	}
	var running sync.WaitGroup
	running.Go(func() {
		for {
			fd, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, uintptr(ln), 0, 0, unix.SOCK_CLOEXEC, 0, 0)
			if errno == unix.EINTR {
				continue
			}
			if errno != 0 {
				return
			}
			take(&running, int(fd))
		}
	})
	t.Cleanup(func() {
		unix.Shutdown(ln, unix.SHUT_RDWR) // ends accept
		running.Wait()
		unix.Close(ln)
	})
	return address
}

// dialRaw connects a client socket to the rig; whoever gets it closes it.
func (r *rig) dialRaw() int {
	r.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		r.Fatal(err)
	}
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
	if err := unix.Connect(fd, r.sockaddr()); err != nil {
		r.Fatal(err)
	}
	return fd
}

// sockaddr is where the rig listens.
func (r *rig) sockaddr() *unix.SockaddrInet4 {
	r.Helper()
	a, err := backends.ParseAddress(r.ln.Addresses()[0])
	if err != nil {
		r.Fatal(err)
	}
	return &unix.SockaddrInet4{Addr: [4]byte(net.ParseIP(a.Host).To4()), Port: int(a.Port)}
}

// writeRaw writes all of b; false when it cannot.
func writeRaw(fd int, b []byte) bool {
	for len(b) > 0 {
		n, err := unix.Write(fd, b)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return false
		}
		b = b[n:]
	}
	return true
}

// readRaw reads n bytes through buf; false when they do not come.
func readRaw(fd int, buf []byte, n int) bool {
	for n > 0 {
		k, err := unix.Read(fd, buf[:min(n, len(buf))])
		if err == unix.EINTR {
			continue
		}
		if err != nil || k == 0 {
			return false
		}
		n -= k
	}
	return true
}

// answering handles a connection: each request is of so many bytes, and each answer.
func answering(request, answer int) func(fd int) {
	out := make([]byte, min(answer, 256<<10))
	return func(fd int) {
		in := make([]byte, request)
		for readRaw(fd, in, request) {
			for left := answer; left > 0; left -= min(left, len(out)) {
				if !writeRaw(fd, out[:min(left, len(out))]) {
					return
				}
			}
		}
	}
}
