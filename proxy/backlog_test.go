package proxy_test

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// fullBacklog listens on a Unix socket whose backlog is full until accept is called, which then serves like
// echo.
func fullBacklog(t *testing.T) (address string, accept func()) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "full.sock")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	filler, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { filler.Close() })
	return "unix:" + path, func() {
		filler.Close()
		for range 2 { // the filler, and the one that waited
			c, _, err := unix.Accept(fd)
			if err != nil {
				t.Error(err)
				return
			}
			go func() {
				defer unix.Close(c)
				buf := make([]byte, 512)
				for {
					n, err := unix.Read(c, buf)
					if n <= 0 || err != nil {
						return
					}
					unix.Write(c, buf[:n])
				}
			}()
		}
	}
}

func TestSession_WaitsWhileEveryBacklogIsFull(t *testing.T) {
	t.Parallel()
	address, accept := fullBacklog(t)
	failed := make(chan backends.ConnectError, 1000)
	r := newRig(t, func(s *setup) {
		s.pool.ConnectTimeout = 10 * time.Second
		s.onFailed = func(why backends.ConnectError, _ uint32) { failed <- why }
	}, address)
	c := r.dial()
	send(t, c, []byte("x"))
	for range 3 { // it tries again and again
		if why := <-failed; why != backends.ConnectSaturated {
			t.Fatalf("connect error: got %v; want %v", why, backends.ConnectSaturated)
		}
	}
	accept()
	receive(t, c, "x")
	c.Close()
}

func TestSession_BacklogThatStaysFullEndsTheConnectBudget(t *testing.T) {
	t.Parallel()
	address, _ := fullBacklog(t)
	const timeout = 100 * time.Millisecond
	r := newRig(t, func(s *setup) { s.pool.ConnectTimeout = timeout }, address)
	c := r.dial()
	wantEOF(t, c)
	wantLasted(t, r.wantTermination("sC"), timeout)
}
