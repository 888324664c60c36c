package proxy_test

import (
	"errors"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/proxy"
)

// activate opens a listening socket as a service manager does, and gives its descriptor.
func activate(t *testing.T) (fd int, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if fd, err = unix.Dup(int(f.Fd())); err != nil {
		t.Fatal(err)
	}
	return fd, ln.Addr().String()
}

func TestListener_TakesTheActivatedSocketOfItsNameAndAddress(t *testing.T) {
	backend := serve(t, unixSocket, echo).address
	var queued *net.TCPConn
	r := newRig(t, func(s *setup) {
		s.prepare = func(p *proxy.Proxy) {
			fd, addr := activate(t)
			elsewhere, _ := activate(t)
			unknown, _ := activate(t)
			s.listener.Bind = []string{addr}
			p.Activate([]proxy.Activated{{Name: "nobody", FD: unknown}, {Name: "web", FD: elsewhere}, {Name: "web", FD: fd}})
			c, err := net.Dial("tcp", addr) // waits in the queue of the socket as it was opened
			if err != nil {
				t.Fatal(err)
			}
			queued = c.(*net.TCPConn)
		}
	}, backend)
	defer queued.Close()
	send(t, queued, []byte("x"))
	receive(t, queued, "x")
	if left := r.proxy.DropActivated(); len(left) != 2 || left[0].Name != "nobody" || left[1].Name != "web" {
		t.Errorf("left over: got %v; want the ones of another name and of another address", left)
	}
}

func TestListener_SaysThatAnActivatedSocketHasAnotherName(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	fd, addr := activate(t)
	r.proxy.Activate([]proxy.Activated{{Name: "lb.socket", FD: fd}})
	defer r.proxy.DropActivated()
	_, err := r.proxy.Prepare([]proxy.ListenerSpec{r.spec("web", addr)}, nil)
	if !errors.Is(err, unix.EADDRINUSE) || !strings.Contains(err.Error(), `"lb.socket"`) || !strings.Contains(err.Error(), "FileDescriptorName=web") {
		t.Errorf("Prepare: got %v; want EADDRINUSE, the name of the socket, and the one that it needs", err)
	}
}
