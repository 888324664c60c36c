package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// Listener is an address, or several, that clients connect to, and the pool that serves them. Made by Proxy.Listen.
type Listener struct {
	// Name is the listener's name in the config.
	Name string
	// Counters are what it has carried.
	Counters backends.Counters

	pool      *backends.Pool
	split     atomic.Pointer[backends.Split]
	sockets   []socket
	keepalive time.Duration
	active    atomic.Int64
}

// socket is one bound and listening socket.
type socket struct {
	fd   int32
	addr string // as bound, with the port that the kernel chose
	path string // to remove when it is closed; empty for TCP and abstract sockets
}

// Pool is the pool that serves the listener; see SetSplit.
func (ln *Listener) Pool() *backends.Pool { return ln.pool }

// SetSplit spreads new connections over the split's pools from now on, instead of Pool; nil ends that. Safe for
// concurrent use.
func (ln *Listener) SetSplit(s *backends.Split) { ln.split.Store(s) }

// Split is what SetSplit was given; nil when all go to Pool.
func (ln *Listener) Split() *backends.Split { return ln.split.Load() }

// route gives the pool of a new connection.
func (ln *Listener) route(client netip.Addr) *backends.Pool {
	if s := ln.split.Load(); s != nil {
		return s.Pick(client)
	}
	return ln.pool
}

// Active is how many sessions the listener has.
func (ln *Listener) Active() int64 { return ln.active.Load() }

// Addresses are where it listens, in the order of the config, with the port that the kernel chose where it was 0.
func (ln *Listener) Addresses() []string {
	addrs := make([]string, len(ln.sockets))
	for i, s := range ln.sockets {
		addrs[i] = s.addr
	}
	return addrs
}

// openListener binds and listens; on an error nothing stays open.
func openListener(name string, cfg ListenerConfig, pool *backends.Pool) (*Listener, error) {
	ln := &Listener{Name: name, pool: pool, keepalive: cfg.Keepalive}
	for _, bind := range cfg.Bind {
		s, err := openSocket(bind, cfg)
		if err != nil {
			ln.closeSockets()
			return nil, fmt.Errorf("cannot open listener %q: %w", name, err)
		}
		ln.sockets = append(ln.sockets, s)
	}
	return ln, nil
}

func (ln *Listener) closeSockets() {
	for _, s := range ln.sockets {
		if s.path != "" {
			os.Remove(s.path)
		}
		closeFD(s.fd)
	}
}

// openSocket makes one listening socket. What can be inherited by accepted sockets is set here, once.
func openSocket(bind string, cfg ListenerConfig) (_ socket, err error) {
	addr, err := backends.ParseAddress(bind)
	if err != nil {
		return socket{}, err
	}
	sa, err := listenSockaddr(addr)
	if err != nil {
		return socket{}, err
	}
	family := unix.AF_UNIX
	switch sa.(type) {
	case *unix.SockaddrInet4:
		family = unix.AF_INET
	case *unix.SockaddrInet6:
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return socket{}, fmt.Errorf("cannot make a socket for %q: %w", bind, err)
	}
	defer func() {
		if err != nil {
			unix.Close(fd)
		}
	}()
	s := socket{fd: int32(fd), addr: bind}
	if addr.IsUnix() {
		if !strings.HasPrefix(addr.Path, "@") {
			if err := removeStale(addr.Path); err != nil {
				return socket{}, err
			}
			s.path = addr.Path
		}
	} else {
		v6only := 0
		if ip := net.ParseIP(addr.Host); ip != nil && !ip.IsUnspecified() {
			v6only = 1
		}
		if family == unix.AF_INET6 {
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, v6only)
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		if cfg.Keepalive > 0 {
			setKeepalive(fd, cfg.Keepalive)
		}
	}
	if err := unix.Bind(fd, sa); err != nil {
		return socket{}, bindError(bind, err)
	}
	if s.path != "" {
		mode, err := cfg.unixMode()
		if err != nil {
			return socket{}, err
		}
		if err := os.Chmod(s.path, os.FileMode(mode)); err != nil {
			return socket{}, fmt.Errorf("cannot set the mode of %q: %w", bind, err)
		}
	}
	if err := unix.Listen(fd, cfg.Backlog); err != nil {
		return socket{}, bindError(bind, err)
	}
	if bound, err := unix.Getsockname(fd); err == nil {
		switch b := bound.(type) {
		case *unix.SockaddrInet4:
			s.addr = (&net.TCPAddr{IP: b.Addr[:], Port: b.Port}).String()
		case *unix.SockaddrInet6:
			s.addr = (&net.TCPAddr{IP: b.Addr[:], Port: b.Port}).String()
		}
	}
	return s, nil
}

// bindError says what to do about the usual faults.
func bindError(bind string, err error) error {
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return fmt.Errorf("cannot listen on %q: another process listens there: %w", bind, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("cannot listen on %q: not permitted (a port below 1024 needs root or CAP_NET_BIND_SERVICE): %w", bind, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("cannot listen on %q: this host has no such address: %w", bind, err)
	}
	return fmt.Errorf("cannot listen on %q: %w", bind, err)
}

func listenSockaddr(addr backends.Address) (unix.Sockaddr, error) {
	if addr.IsUnix() {
		return &unix.SockaddrUnix{Name: addr.Path}, nil
	}
	if addr.Host == "" {
		return &unix.SockaddrInet6{Port: int(addr.Port)}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", addr.Host)
	if err != nil {
		return nil, fmt.Errorf("cannot resolve host %q: %w", addr.Host, err)
	}
	for _, ip := range ips {
		if ip := ip.Unmap(); ip.Is4() {
			return &unix.SockaddrInet4{Port: int(addr.Port), Addr: ip.As4()}, nil
		}
	}
	sa := &unix.SockaddrInet6{Port: int(addr.Port), Addr: ips[0].As16()}
	if zone := ips[0].Zone(); zone != "" {
		ifi, err := net.InterfaceByName(zone)
		if err != nil {
			return nil, fmt.Errorf("cannot find the zone of %q: %w", addr.Host, err)
		}
		sa.ZoneId = uint32(ifi.Index)
	}
	return sa, nil
}

// removeStale removes a Unix socket file that nobody listens on any more. A live one, or another kind of file, is an error.
func removeStale(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("cannot look at %q: %w", path, err)
	}
	if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("cannot listen on %q: there is a file of another kind; remove it or choose another path", path)
	}
	if c, err := net.DialTimeout("unix", path, time.Second); err == nil {
		c.Close()
		return fmt.Errorf("cannot listen on %q: another process listens there", path)
	} else if !errors.Is(err, unix.ECONNREFUSED) {
		return fmt.Errorf("cannot listen on %q: another process seems to listen there: %w", path, err)
	}
	return os.Remove(path)
}

// setKeepalive makes the kernel probe a silent peer after idle, then every idle/4, and give it up after 4 more (tcp(7)).
func setKeepalive(fd int, idle time.Duration) {
	seconds := int(idle / time.Second)
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, seconds)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, max(seconds/4, 1))
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 4)
}
