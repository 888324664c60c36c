package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/descriptor"
)

const (
	// maxUnixPath is the longest path that fits in sun_path with its final NUL (unix(7)).
	maxUnixPath = 107
	// backlog is how many connections wait in a socket that lb binds for a worker; one that hangs swallows
	// that many before connects find it saturated.
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
	file    fileAt // of the socket
	handoff string // the worker is given its connections: how; fd is its end of the channel then
	front   int    // lb's end
}

// backendName matches the names of workers' backends, "SLOT.NUMBER".
var backendName = regexp.MustCompile(`^[0-9]+\.[0-9]+$`)

// IsBackendName reports whether a name has the form that only backends of workers may have.
func IsBackendName(name string) bool { return backendName.MatchString(name) }

// address returns the endpoint's address in the form of Backend.Address.
func (e *endpoint) address() string {
	if e.path != "" {
		return "unix:" + e.path
	}
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(e.port))
}

// fill returns s with its placeholders filled in.
func (e *endpoint) fill(s string) string {
	return strings.NewReplacer("{socket}", e.path, "{slot}", strconv.Itoa(e.slot), "{port}", strconv.Itoa(e.port)).Replace(s)
}

// openEndpoint makes a new address for a worker of s that runs r: a free TCP port, a path for it to bind, or
// a socket that listens.
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
	if r.Handoff != "" {
		if err := p.openChannel(e, r.Handoff); err != nil {
			return nil, fmt.Errorf("cannot make a hand-off channel: %w", err)
		}
		return e, nil
	}
	id, err := cfg.identity()
	if err != nil {
		return nil, err
	}
	if cfg.names("{socket}") {
		e.path = filepath.Join(p.folder(), name, "sock")
		err = p.makeNest(name, id)
	} else {
		e.path = filepath.Join(p.folder(), name+".sock")
		err = p.listenUnix(e, name+".sock", id)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot make socket %q: %w", e.path, err)
	}
	e.backend.Address = e.address()
	return e, nil
}

// makeNest makes a directory in the pool's in which a worker binds its socket itself.
func (p *Pool) makeNest(name string, id identity) error {
	p.removeEntry(name)
	if err := p.home.Load().Mkdir(name, 0o700); err != nil {
		return err
	}
	if id.set {
		return p.home.Load().Lchown(name, id.uid, id.gid)
	}
	return nil
}

// listenUnix makes e's listening socket, with a file of that name in the pool's directory, where nobody else
// can swap it. It blocks, as programs that are handed one expect.
func (p *Pool) listenUnix(e *endpoint, name string, id identity) error {
	p.removeEntry(name)
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Bind(fd, &unix.SockaddrUnix{Name: e.path})
	if err == nil {
		// The path's parents may be another user's: only the open directory says where the socket is.
		if err = own(p.home.Load(), name, id); err == nil {
			e.file.info, err = p.home.Load().Lstat(name)
		}
	}
	if err == nil {
		err = unix.Listen(fd, backlog)
	}
	if err != nil {
		unix.Close(fd)
		return err
	}
	e.fd = fd
	return nil
}

// own returns a socket in a directory that only lb can change to a worker's user, who alone may connect to
// it.
func own(dir *os.Root, name string, id identity) error {
	st, err := dir.Lstat(name)
	if err != nil {
		return err
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("%q is not a socket", name)
	}
	if id.set {
		err = dir.Lchown(name, id.uid, id.gid)
	}
	return errors.Join(err, dir.Chmod(name, 0o600))
}

// removeEntry removes what has that name in the pool's directory: a socket, or the directory that one is in,
// with what its worker left there. What is nested deeper stays, and so does what is still being added.
func (p *Pool) removeEntry(name string) {
	if p.home.Load().Remove(name) == nil {
		return
	}
	if nest, err := p.home.Load().Open(name); err == nil {
		entries, _ := nest.Readdirnames(1000)
		nest.Close()
		for _, entry := range entries {
			p.home.Load().Remove(name + "/" + entry)
		}
		p.home.Load().Remove(name)
	}
}

// entry returns the name of what e has in the pool's directory; empty if it is elsewhere.
func (p *Pool) entry(path string) string {
	name, _ := strings.CutPrefix(path, p.folder()+"/")
	name, _, _ = strings.Cut(name, "/")
	return name
}

// closeEndpoint closes an address and removes its file.
func (p *Pool) closeEndpoint(e *endpoint) {
	if e.fd >= 0 {
		unix.Close(e.fd)
		e.fd = -1
	}
	if e.handoff != "" {
		if e.front >= 0 {
			unix.Close(e.front)
			e.front = -1
		}
		return
	}
	if name := p.entry(e.path); name != "" {
		p.removeEntry(name)
	}
}

// probeEndpoint returns a function that waits until a connection to w's address has been accepted. It returns
// the error of its context when that is done before, and another one when w can never be ready.
//
// A connect to a socket that lb bound itself always succeeds: the kernel answers. It was accepted when the
// listening socket, which lb holds too, has nobody waiting any more.
func (p *Pool) probeEndpoint(w *worker) func(ctx context.Context) error {
	e := w.end
	if e.handoff != "" {
		return p.probeChannel(e.backend)
	}
	listening := -1
	if e.fd >= 0 { // a copy: e may be closed meanwhile
		fd, err := descriptor.Copy(e.fd)
		if err != nil { // start_timeout comes, with a better moment
			return func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		}
		listening = fd
	}
	uid := os.Geteuid()
	if id, err := w.release.config().identity(); err == nil && id.set {
		uid = id.uid
	}
	connect := func(ctx context.Context) (net.Conn, error) { return p.connectUnix(ctx, e.path, uid) }
	if e.path == "" {
		dialer := net.Dialer{Timeout: time.Second}
		connect = func(ctx context.Context) (net.Conn, error) { return dialer.DialContext(ctx, "tcp", e.address()) }
	}
	port := e.port
	return func(ctx context.Context) error {
		if listening >= 0 {
			defer unix.Close(listening)
		}
		if err := awaitAccept(ctx, connect, listening); err != nil || port == 0 {
			return err
		}
		return foreignListener(port, w)
	}
}

// connectUnix connects to a worker's socket. A worker that binds it itself may have put something else there:
// a link to a socket that lb may use and the worker may not. So the file is opened without following it,
// looked at, and then connected to.
func (p *Pool) connectUnix(ctx context.Context, path string, user int) (net.Conn, error) {
	name, ok := strings.CutPrefix(path, p.folder()+"/")
	if !ok { // of an older lb's run-time directory
		return nil, os.ErrNotExist
	}
	f, err := p.home.Load().OpenFile(name, unix.O_PATH, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	uid := int(st.Sys().(*syscall.Stat_t).Uid)
	if st.Mode().Type() != os.ModeSocket || uid != os.Geteuid() && uid != user {
		return nil, fmt.Errorf("%q is not a socket of the worker", path)
	}
	dialer := net.Dialer{Timeout: time.Second}
	return dialer.DialContext(ctx, "unix", fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

// awaitAccept connects until it is accepted.
func awaitAccept(ctx context.Context, connect func(context.Context) (net.Conn, error), listening int) error {
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for {
		if c, err := connect(ctx); err == nil {
			ok := listening < 0 || accepted(ctx, listening, tick.C)
			c.Close()
			if ok {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// probeChannel returns a function that waits until a worker has taken a connection that lb gave it.
func (p *Pool) probeChannel(b Backend) func(ctx context.Context) error {
	if p.Hooks.Probe == nil {
		return func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	}
	return func(ctx context.Context) error {
		tick := time.NewTicker(probeEvery)
		defer tick.Stop()
		for {
			if p.Hooks.Probe(ctx, b) == nil {
				return nil
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-tick.C:
			}
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
