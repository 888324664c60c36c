package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxUnixPath is the longest path that fits in sun_path with its final NUL (unix(7)).
	maxUnixPath = 107
	// backlog is how many connections wait in a socket that lb binds for a worker; one that hangs swallows that many
	// before connects find it saturated.
	backlog = 512
	// probeEvery is how often a worker that starts is asked whether it is ready.
	probeEvery = 20 * time.Millisecond
)

// endpoint is an address at which a worker takes connections.
type endpoint struct {
	backend Backend
	slot    int
	path    string // of a Unix socket; empty: TCP
	port    int    // of TCP
	fd      int    // the listening socket, if lb bound it; else -1
}

// address is the endpoint's, in the form of Backend.Address.
func (e *endpoint) address() string {
	if e.path != "" {
		return "unix:" + e.path
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(e.port))
}

// fill fills the placeholders in.
func (e *endpoint) fill(s string) string {
	return strings.NewReplacer("{socket}", e.path, "{slot}", strconv.Itoa(e.slot), "{port}", strconv.Itoa(e.port)).Replace(s)
}

// openEndpoint makes a new address for a worker of s that runs r: a free TCP port, a path for it to bind, or a socket
// that listens.
func (p *Pool) openEndpoint(s *slot, r *Release) (*endpoint, error) {
	p.serial++
	name := fmt.Sprintf("%d.%d", s.number, p.serial)
	e := &endpoint{slot: s.number, fd: -1, backend: Backend{Pool: p.Name, Slot: s.number, Name: name}}
	cfg := r.config()
	if cfg.names("{port}") {
		port, err := p.freePort()
		if err != nil {
			return nil, fmt.Errorf("cannot find a free port: %w", err)
		}
		e.port = port
		e.backend.Address = e.address()
		return e, nil
	}
	e.path = filepath.Join(p.folder(), name+".sock")
	e.backend.Address = e.address()
	if err := os.Remove(e.path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("cannot replace socket: %w", err)
	}
	if cfg.names("{socket}") {
		return e, nil
	}
	fd, err := listenUnix(e.path)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", e.path, err)
	}
	e.fd = fd
	if id, err := cfg.identity(); err == nil && id.set {
		os.Lchown(e.path, id.uid, id.gid)
	}
	return e, nil
}

// listenUnix makes a listening socket at path. It blocks, as programs that are handed one expect.
func listenUnix(path string) (int, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		if err = os.Chmod(path, 0o600); err == nil { // its directory lets nobody else in
			err = unix.Listen(fd, backlog)
		}
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// freePort is a TCP port on the loopback address that nobody listens on now, and that no worker of the pool has.
func (p *Pool) freePort() (int, error) {
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return 0, err
		}
		port := ln.Addr().(*net.TCPAddr).Port
		ln.Close()
		taken := false
		for _, w := range p.workers {
			taken = taken || w.end != nil && w.end.port == port
		}
		if !taken {
			return port, nil
		}
	}
	return 0, errors.New("all are taken")
}

// closeEndpoint gives an address up.
func closeEndpoint(e *endpoint) {
	if e.fd >= 0 {
		unix.Close(e.fd)
		e.fd = -1
	}
	if e.path != "" {
		os.Remove(e.path)
	}
}

// probeEndpoint returns what waits until a connection to e has been accepted, which is true, or its context is done.
//
// A connect to a socket that lb bound itself always succeeds: the kernel answers. It was accepted when the listening
// socket, which lb holds too, has nobody waiting any more.
func probeEndpoint(e *endpoint) func(ctx context.Context) bool {
	listening := -1
	if e.fd >= 0 { // a copy: e may be closed meanwhile
		fd, err := unix.FcntlInt(uintptr(e.fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return func(context.Context) bool { return false } // start_timeout comes, with a better moment
		}
		listening = fd
	}
	network, address := "unix", e.path
	if e.path == "" {
		network, address = "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(e.port))
	}
	return func(ctx context.Context) bool {
		if listening >= 0 {
			defer unix.Close(listening)
		}
		return awaitAccept(ctx, network, address, listening)
	}
}

// awaitAccept connects until it is accepted.
func awaitAccept(ctx context.Context, network, address string, listening int) bool {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		dialer := net.Dialer{Timeout: time.Second}
		if c, err := dialer.DialContext(ctx, network, address); err == nil {
			ok := listening < 0 || accepted(ctx, listening, tick.C)
			c.Close()
			if ok {
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// accepted waits until nobody waits in a listening socket.
func accepted(ctx context.Context, fd int, tick <-chan time.Time) bool {
	for {
		polled := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(polled, 0); err == nil && n == 0 {
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick:
		}
	}
}
