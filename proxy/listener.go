package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// Listener is an address, or several, that clients connect to, and what is done with them. A Transition makes
// it.
type Listener struct {
	// Name is the listener's name in the config.
	Name string
	// Counters are what it has carried.
	Counters backends.Counters
	// Refused counts the connections that were closed before a backend was chosen, by Refusal.
	Refused [NumRefusals]atomic.Uint64

	settings atomic.Pointer[settings]
	sockets  atomic.Pointer[[]*socket] // written under Proxy.mu, never changed in place
	active   atomic.Int64
}

// socket is one bound and listening socket.
type socket struct {
	fd   int32
	bind string // as in the config
	addr string // as bound, with the port that the kernel chose
	// of the file to remove when it is closed; empty for TCP and abstract sockets, and what others have made
	path string
	file fileID // of path, as it was made

	inherited bool // from the process before

	// What the loops cannot do with it; times count from the proxy's epoch.
	unheard      atomic.Int32 // loops that could not put it into their epoll sets
	unheardSince atomic.Int64 // when it became one more
	failingSince atomic.Int64 // the first accept that failed since one succeeded; 0 as a rule
	lastFailure  atomic.Int64 // and the last one
}

// failed notes that a loop could not accept.
func (s *socket) failed(now time.Duration) {
	s.failingSince.CompareAndSwap(0, int64(now))
	s.lastFailure.Store(int64(now))
}

// served notes that a loop could accept.
func (s *socket) served() {
	if s.failingSince.Load() != 0 {
		s.failingSince.Store(0)
	}
}

// deaf reports whether none of so many loops has been able to accept for a while, and one has tried.
func (s *socket) deaf(now time.Duration, loops int) bool {
	if int(s.unheard.Load()) >= loops && now-time.Duration(s.unheardSince.Load()) > deafAfter {
		return true
	}
	since := time.Duration(s.failingSince.Load())
	return since != 0 && now-since > deafAfter && now-time.Duration(s.lastFailure.Load()) < 2*maxAcceptPause
}

// configure makes a changed configuration hold for a socket that stays open. What it has accepted keeps the
// old one.
func (s *socket) configure(cfg *ListenerConfig) {
	unix.Listen(int(s.fd), cfg.Backlog) // on a listening socket it only changes the backlog (listen(2))
	if s.path == "" {
		setTCP(int(s.fd), &cfg.TCPConfig)
	} else if mode, err := cfg.unixMode(); err == nil {
		os.Chmod(s.path, os.FileMode(mode))
	}
}

// close closes the socket, and removes its file, unless the path is another's by now.
func (s *socket) close() {
	if s.hasFile() {
		os.Remove(s.path)
	}
	closeFD(s.fd)
}

// hasFile reports whether the socket's file is where it was made: another process may have put its own there.
func (s *socket) hasFile() bool {
	return s.path != "" && fileAt(s.path) == s.file
}

// lost reports whether the socket's file is gone, or another's, so that no client reaches the socket any
// more.
func (s *socket) lost() bool { return s.path != "" && !s.hasFile() }

// fileID tells a file from every other. The number of an inode is not given to another file while the socket
// is open, which keeps the inode.
type fileID struct{ dev, ino uint64 }

// fileAt returns what is at path; the zero value where nothing is.
func fileAt(path string) fileID {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}
	}
	return fileID{uint64(st.Dev), st.Ino}
}

// Pool is the pool that serves the listener; nil when a split does.
func (ln *Listener) Pool() *backends.Pool { return ln.settings.Load().pool }

// Split spreads the listener's connections over several pools; nil when all go to Pool.
func (ln *Listener) Split() *backends.Split { return ln.settings.Load().split }

// Config is the listener's current configuration. The caller must not change it.
func (ln *Listener) Config() *ListenerConfig { return &ln.settings.Load().cfg }

// Active is how many sessions the listener has.
func (ln *Listener) Active() int64 { return ln.active.Load() }

// MaxConns is how many it may have; 0 is no limit.
func (ln *Listener) MaxConns() int { return int(ln.settings.Load().maxConns.Load()) }

// SetMaxConns changes the limit until the next change of the configuration; 0 is none.
func (ln *Listener) SetMaxConns(n int) { ln.settings.Load().maxConns.Store(int64(n)) }

// Addresses are where it listens, in the order of the config, with the port that the kernel chose where it
// was 0.
func (ln *Listener) Addresses() []string {
	var addrs []string
	for _, s := range *ln.sockets.Load() {
		addrs = append(addrs, s.addr)
	}
	return addrs
}

// openSocket makes one listening socket. v6only leaves IPv4 to another bind on the port, where this one is
// "[::]". What can be inherited by accepted sockets is set here, once.
func openSocket(bind string, cfg *ListenerConfig, found BindAddresses, v6only bool) (_ *socket, err error) {
	addr, err := backends.ParseAddress(bind)
	if err != nil {
		return nil, err
	}
	sa, err := found.sockaddr(addr)
	if err != nil {
		return nil, err
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
		return nil, fmt.Errorf("cannot make a socket for %q: %w", bind, err)
	}
	var bound string // the socket file, once it is there
	defer func() {
		if err != nil {
			unix.Close(fd)
			if bound != "" {
				os.Remove(bound)
			}
		}
	}()
	s := &socket{fd: int32(fd), bind: bind, addr: bind}
	if addr.IsUnix() {
		if !strings.HasPrefix(addr.Path, "@") {
			if err := removeStale(addr.Path); err != nil {
				return nil, err
			}
			s.path = addr.Path
		}
	} else {
		if family == unix.AF_INET6 {
			only := 0
			if ip := net.ParseIP(addr.Host); v6only || ip != nil && !ip.IsUnspecified() {
				only = 1
			}
			unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, only)
		}
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
		setTCP(fd, &cfg.TCPConfig)
	}
	if err := unix.Bind(fd, sa); err != nil {
		return nil, bindError(bind, err)
	}
	bound = s.path
	if s.path != "" {
		s.file = fileAt(s.path)
		mode, err := cfg.unixMode()
		if err != nil {
			return nil, err
		}
		if err := os.Chmod(s.path, os.FileMode(mode)); err != nil {
			return nil, fmt.Errorf("cannot set the mode of %q: %w", bind, err)
		}
	}
	if err := unix.Listen(fd, cfg.Backlog); err != nil {
		return nil, bindError(bind, err)
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
		return fmt.Errorf("cannot listen on %q: another process, or another listener of lb, listens there: %w", bind, err)
	case errors.Is(err, unix.EACCES):
		return fmt.Errorf("cannot listen on %q: not permitted (a port below 1024 needs root or CAP_NET_BIND_SERVICE): %w", bind, err)
	case errors.Is(err, unix.EADDRNOTAVAIL):
		return fmt.Errorf("cannot listen on %q: this host has no such address: %w", bind, err)
	}
	return fmt.Errorf("cannot listen on %q: %w", bind, err)
}

// BindAddresses are the addresses of the host names that listeners bind to. LookUpBinds makes them before any
// lock is taken: a name server may take seconds to answer. The zero value has none.
type BindAddresses map[backends.Address]bindAddress

type bindAddress struct {
	sa  unix.Sockaddr
	err error
}

// LookUpBinds looks up the host names among the bind addresses of listeners, for Prepare. It skips those that
// have a socket already. It takes up to 5 seconds for each name.
func (p *Proxy) LookUpBinds(binds []string) BindAddresses {
	found := BindAddresses{}
	for _, bind := range binds {
		p.lookUpBind(bind, found)
	}
	return found
}

// lookUpBind looks up the host name of one bind address, unless it is in found or has a socket.
func (p *Proxy) lookUpBind(bind string, found BindAddresses) {
	addr, err := backends.ParseAddress(bind)
	if err != nil || !addr.IsHostName() || p.hasSocket(bind) {
		return
	}
	if _, known := found[addr]; !known {
		sa, err := listenSockaddr(addr)
		found[addr] = bindAddress{sa, err}
	}
}

// hasSocket reports whether a socket is bound to bind, of a listener or inherited.
func (p *Proxy) hasSocket(bind string) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.socketAt(bind) != nil || slices.ContainsFunc(p.inherited, func(x *inherited) bool { return x.Bind == bind })
}

// sockaddr returns the address to bind to.
func (f BindAddresses) sockaddr(addr backends.Address) (unix.Sockaddr, error) {
	if at, known := f[addr]; known {
		return at.sa, at.err
	}
	return listenSockaddr(addr) // needs no look-up
}

func listenSockaddr(addr backends.Address) (unix.Sockaddr, error) {
	if addr.IsUnix() {
		return &unix.SockaddrUnix{Name: addr.Path}, nil
	}
	if addr.Host == "" {
		return &unix.SockaddrInet6{Port: int(addr.Port)}, nil
	}
	ips, err := listenIPs(addr.Host)
	if err != nil {
		return nil, err
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

// listenIPs are the addresses of a host. The resolver is not asked for a literal one: of "::" it makes
// 0.0.0.0 too.
func listenIPs(host string) ([]netip.Addr, error) {
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	if err != nil {
		return nil, fmt.Errorf("cannot resolve host %q: %w", host, err)
	}
	return ips, nil
}

// removeStale removes a Unix socket file that nobody listens on any more. A live one, or another kind of
// file, is an error.
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

// setTCP sets what cfg says; a socket that a listener accepts inherits it.
func setTCP(fd int, cfg *backends.TCPConfig) {
	on := 0
	if cfg.Keepalive > 0 {
		on = 1
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, int(cfg.Keepalive/time.Second))
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, int(cfg.KeepaliveInterval/time.Second))
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_KEEPCNT, cfg.KeepaliveCount)
	}
	unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_KEEPALIVE, on)
	unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(cfg.TCPUserTimeout/time.Millisecond))
}
