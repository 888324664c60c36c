package admin

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/sockdiag"
)

// Caller is who sent a request.
type Caller struct {
	// Local says that it came over the control socket, and that the kernel told who it was when it connected
	// (SO_PEERCRED, unix(7)): PID, UID and GID. The PID is 0 if it is one of another PID namespace.
	Local    bool
	PID      int32
	UID, GID uint32
	// Addr is its address, where it came over TCP; Token says that it sent the right one.
	Addr  string
	Token bool
	// Host says that it came over TCP from this host, from a process of the user UID.
	Host bool
	// Self says that lb itself has connected: a session that lb relays to its own control API, or a probe.
	// Behind it is whoever may reach a listener, so that it may do nothing.
	Self bool
}

// Access returns what the caller may do. Who may open the control socket (its mode says who) may operate;
// root and the user that runs lb may do everything. Over TCP there is only reading, and with the token
// everything. lb itself may do nothing.
func (p Caller) Access() Access {
	switch {
	case p.Self:
		return accessNone
	case p.Token:
		return AccessAdmin
	case !p.Local:
		return AccessRead
	case p.UID == 0 || p.UID == uint32(os.Geteuid()):
		return AccessAdmin
	default:
		return AccessOperate
	}
}

// privileged reports whether connections of the caller may use the reserve: those of root and of the user
// that runs lb, over TCP from this host too.
func (p Caller) privileged() bool {
	return !p.Self && (p.Local || p.Host) && (p.UID == 0 || p.UID == uint32(os.Geteuid()))
}

// share names with whom the caller shares connections: all of its user on this host, else all of its address,
// or of its /64 of IPv6 (RFC 4291, section 2.5.4), of which one machine has every address.
func (p Caller) share() string {
	switch {
	case p.Self:
		return "lb itself"
	case p.Local || p.Host:
		return "uid " + strconv.FormatUint(uint64(p.UID), 10)
	}
	addr, err := netip.ParseAddrPort(p.Addr)
	if err != nil {
		return "an unknown address"
	}
	ip := addr.Addr().Unmap().WithZone("")
	switch {
	case ip.IsLoopback():
		return "this host"
	case ip.Is6():
		prefix, _ := ip.Prefix(64) // fails for another family only
		return prefix.String()
	}
	return ip.String()
}

// String names the caller for the event log: "root over the control socket".
func (p Caller) String() string {
	switch {
	case p.Self:
		return "lb itself"
	case p.Local && p.UID == 0:
		return "root over the control socket"
	case p.Local:
		return "uid " + strconv.FormatUint(uint64(p.UID), 10) + " over the control socket"
	case p.Token:
		return "the token over HTTP"
	default:
		return p.Addr
	}
}

type callerKey struct{}

// CallerFrom returns the caller of a request by its context; the zero Caller, who may only read, where there
// is none.
func CallerFrom(ctx context.Context) Caller {
	p, _ := ctx.Value(callerKey{}).(Caller)
	return p
}

// withCaller is the http.Server.ConnContext that CallerFrom needs.
func withCaller(ctx context.Context, c net.Conn) context.Context {
	var p Caller
	if lc, ok := c.(*limitedConn); ok {
		p = lc.caller
	}
	return context.WithValue(ctx, callerKey{}, p)
}

// identifier finds out who connects.
type identifier struct {
	serveSelf bool // connections of this very process are as others: it tests itself
	kernel    localUsers
}

// identify asks the kernel who is at the other end. One on the control socket that it does not know may only
// read.
func (i *identifier) identify(c net.Conn) Caller {
	switch c := c.(type) {
	case *net.UnixConn:
		cred, err := peerCred(c)
		if err != nil {
			return Caller{Addr: c.RemoteAddr().String()}
		}
		return Caller{
			Local: true, PID: cred.Pid, UID: cred.Uid, GID: cred.Gid,
			Self: !i.serveSelf && cred.Pid == int32(os.Getpid()),
		}
	case *net.TCPConn:
		return i.identifyTCP(c.LocalAddr().(*net.TCPAddr).AddrPort(), c.RemoteAddr().(*net.TCPAddr).AddrPort())
	}
	return Caller{Addr: c.RemoteAddr().String()}
}

func (i *identifier) identifyTCP(local, remote netip.AddrPort) Caller {
	p := Caller{Addr: remote.String()}
	if !ofThisHost(local.Addr(), remote.Addr()) {
		return p
	}
	p.UID, p.Host = i.kernel.user(remote, local)
	// A socket of lb's belongs to lb's user. Where the kernel does not tell whose it is, lb looks for it
	// among its own.
	if !i.serveSelf && (!p.Host || p.UID == uint32(os.Geteuid())) {
		p.Self = ownConnection(remote, local)
	}
	return p
}

// ofThisHost reports whether remote is an address of this host: then a socket there is one of a process here.
func ofThisHost(local, remote netip.Addr) bool {
	remote = remote.Unmap().WithZone("")
	if remote.IsLoopback() || remote == local.Unmap().WithZone("") {
		return true
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return true // to be looked at rather than trusted
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok && ip.Unmap() == remote {
				return true
			}
		}
	}
	return false
}

// ownConnection reports whether a socket of this process is connected from that address to that one.
func ownConnection(from, to netip.AddrPort) bool {
	dir, err := os.Open("/proc/self/fd")
	if err != nil {
		return false
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return false
	}
	for _, name := range names {
		fd, err := strconv.Atoi(name)
		if err != nil {
			continue
		}
		near, err := unix.Getsockname(fd)
		if err != nil || !isAddress(near, from) { // no socket, or closed meanwhile, or another
			continue
		}
		if far, err := unix.Getpeername(fd); err == nil && isAddress(far, to) {
			return true
		}
	}
	return false
}

func isAddress(sa unix.Sockaddr, addr netip.AddrPort) bool {
	ip := addr.Addr().Unmap().WithZone("")
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return sa.Port == int(addr.Port()) && netip.AddrFrom4(sa.Addr) == ip
	case *unix.SockaddrInet6:
		return sa.Port == int(addr.Port()) && netip.AddrFrom16(sa.Addr).Unmap() == ip
	}
	return false
}

// localUsers asks the kernel which user has a TCP socket. Safe for concurrent use.
type localUsers struct {
	mu     sync.Mutex
	conn   *sockdiag.Conn // nil before the first question
	closed bool
	failed bool // this kernel or sandbox does not tell
}

// user returns the user of the TCP socket with these addresses; false where that is not known.
func (u *localUsers) user(local, remote netip.AddrPort) (uid uint32, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || u.failed {
		return 0, false
	}
	if u.conn == nil {
		conn, err := sockdiag.Dial()
		if err != nil {
			u.failed = errors.Is(err, sockdiag.ErrUnavailable)
			return 0, false
		}
		u.conn = conn
	}
	s, err := u.conn.TCPSocket(unmapped(local), unmapped(remote))
	return s.UID, err == nil
}

func (u *localUsers) close() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.closed = true
	if u.conn != nil {
		u.conn.Close()
		u.conn = nil
	}
}

// unmapped returns an IPv4-mapped address as IPv4, under which the kernel finds the sockets of both families.
func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
}

func peerCred(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	}); err != nil {
		return nil, err
	}
	return cred, credErr
}
