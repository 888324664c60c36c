package backends

// Hot path of new connections. BenchmarkConnect and BenchmarkTarget hold its cost.

import (
	"net/netip"
	"os"
	"strings"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Target is one place that lb connects to, and whom lb trusts there. A backend has one, and so has a health
// probe with an address of its own. Everything of lb that dials a backend does it by Connect or
// ConnectVerified.
//
// A Unix socket's name belongs to whoever may write to its directories, and who may point it at any socket
// that lb may open: a container engine's, or lb's own control socket. So lb proves who listens there before
// it sends a byte. ConnectVerified opens the directory entry without following links, checks its owner, and
// connects to that very inode. What it finds out about the listener is kept as a proof, and Connect compares:
// it connects by path and asks the kernel who listens (getsockopt SO_PEERCRED, getpeername; unix(7)).
// Whatever differs leads back to ConnectVerified. docs/decisions.md has the figures.
//
// A Target is safe for concurrent use once it has been made.
type Target struct {
	Address Address
	// self are lb's own addresses, to which nothing leads. Nil: none.
	self *Self
	// owner may own the socket, beside root and lb's own user. Nil: no other user.
	owner atomic.Pointer[Owner]
	// sockaddr is nil while a host name has not been resolved.
	sockaddr atomic.Pointer[RawSockaddr]
	// proof is nil while ConnectVerified has to look.
	proof atomic.Pointer[proof]
	// refusal is why the last attempt was refused; nil when it was not.
	refusal atomic.Pointer[string]
}

// proof is what a listener was when it was verified. It is never changed once made.
type proof struct {
	sockaddr *RawSockaddr
	self     *[]Address // lb's own addresses at that time
	owner    *Owner     // and the named owner
	// What Connect compares, for a Unix socket. It is one system call where nobody but root and lb's user
	// decides what the path leads to, and whoever listens is the owner.
	byPeer, byName bool
	// peer is the process that called listen(2), as SO_PEERCRED has it.
	peer unix.Ucred
}

// ErrUntrusted is what Connect and ConnectVerified return when they refuse to connect: Refusal has the
// reason. connect(2) never fails with it.
const ErrUntrusted = unix.EKEYREJECTED

// Refusal returns why the last attempt to connect was refused, in words, or "" if it was not.
func (t *Target) Refusal() string {
	if r := t.refusal.Load(); r != nil {
		return *r
	}
	return ""
}

// Sockaddr returns the address to connect to; nil while a host name has not been resolved.
func (t *Target) Sockaddr() *RawSockaddr { return t.sockaddr.Load() }

// setOwner changes who may own the socket.
func (t *Target) setOwner(name string) {
	if old := t.owner.Load(); name == "" && old == nil || old != nil && old.name == name {
		return
	}
	var owner *Owner
	if name != "" {
		owner = &Owner{name: name}
	}
	t.owner.Store(owner)
}

// Connect starts a connection on fd, a non-blocking stream socket of the family of Sockaddr that nothing else
// uses yet. It returns 0 when the connection is made, EINPROGRESS when the kernel will tell, ErrUntrusted
// when lb may not connect there, EHOSTUNREACH while a host name has not been resolved, and else what
// connect(2) says. After a change at a Unix address fd may be another socket of the same number. It allocates
// nothing while nothing has changed.
func (t *Target) Connect(fd int32) unix.Errno {
	p := t.proof.Load()
	if p == nil || p.self != t.self.load() || p.owner != t.owner.Load() || p.sockaddr != t.sockaddr.Load() {
		return t.ConnectVerified(fd)
	}
	errno := connect(fd, p.sockaddr)
	if p.sockaddr.Family != unix.AF_UNIX {
		return errno
	}
	if errno != 0 {
		if errno != unix.EAGAIN { // EAGAIN: its backlog is full (unix(7))
			t.proof.Store(nil)
		}
		return errno
	}
	if p.holds(fd) {
		return 0
	}
	// Another process listens now, or the name leads elsewhere. No byte has been sent.
	t.proof.Store(nil)
	if errno := renew(fd, unix.AF_UNIX); errno != 0 {
		return errno
	}
	return t.ConnectVerified(fd)
}

// holds reports whether the socket that fd is connected to is the one of the proof.
func (p *proof) holds(fd int32) bool {
	if p.byPeer {
		if peer, ok := peerCred(fd); !ok || peer != p.peer {
			return false
		}
	}
	return !p.byName || boundTo(fd, p.sockaddr)
}

// ConnectVerified is Connect that trusts nothing of what was found out before. Health probes use it, so that
// what changes at an address is seen within an interval also while no client comes.
func (t *Target) ConnectVerified(fd int32) unix.Errno {
	sa, self, owner := t.sockaddr.Load(), t.self.load(), t.owner.Load()
	if sa == nil {
		return unix.EHOSTUNREACH
	}
	p := &proof{sockaddr: sa, self: self, owner: owner}
	var errno unix.Errno
	var refusal string
	switch {
	case sa.Family != unix.AF_UNIX:
		if own, ok := ownAddrPort(self, sa.AddrPort()); ok {
			refusal = leadsBack(own)
		} else {
			t.accept(p)
			return connect(fd, sa)
		}
	case t.Address.Path[0] == '@':
		errno, refusal = connectAbstract(fd, p, t.Address)
	default:
		errno, refusal = connectEntry(fd, p, t.Address.Path)
	}
	switch {
	case refusal != "":
		t.proof.Store(nil)
		t.refusal.Store(&refusal)
		return ErrUntrusted
	case errno != 0:
		t.proof.Store(nil)
		if errno != unix.EAGAIN {
			t.refusal.Store(nil)
		}
	case p.byPeer || p.byName:
		t.accept(p)
	default: // the kernel does not tell it from others: verify each time
		t.proof.Store(nil)
		t.refusal.Store(nil)
	}
	return errno
}

// RefusesTCP returns why lb must not connect to an address of TCP, or "" if it may.
func (t *Target) RefusesTCP(a Address) string {
	ip, err := netip.ParseAddr(a.Host)
	if err != nil {
		return ""
	}
	if own, ok := ownAddrPort(t.self.load(), netip.AddrPortFrom(ip, a.Port)); ok {
		return leadsBack(own)
	}
	return ""
}

func leadsBack(own string) string {
	return own + " is an address of lb itself: connections would go in a circle"
}

func (t *Target) accept(p *proof) {
	t.proof.Store(p)
	t.refusal.Store(nil)
}

// connectAbstract connects to a socket without a file, whose owner only the connected socket tells.
func connectAbstract(fd int32, p *proof, a Address) (unix.Errno, string) {
	if own, ok := ownName(p.self, a.Path); ok {
		return 0, own
	}
	if errno := connect(fd, p.sockaddr); errno != 0 {
		return errno, ""
	}
	peer, ok := peerCred(fd)
	if !ok {
		return unix.EIO, ""
	}
	if !trusted(peer.Uid) && !p.owner.is(peer.Uid) {
		return 0, a.String() + " is served by " + userText(peer.Uid) + ", who is not its owner: " + writeOwner(peer.Uid)
	}
	p.peer, p.byPeer = peer, true // the name itself cannot be pointed elsewhere
	return 0, ""
}

// connectEntry connects to the socket at path once it has proved who owns it.
func connectEntry(fd int32, p *proof, path string) (unix.Errno, string) {
	e, errno, refusal := openEntry(path)
	if errno != 0 || refusal != "" {
		return errno, refusal
	}
	defer e.close()
	if own, ok := e.own(p.self); ok {
		return 0, own
	}
	if refusal := e.judge(p.owner); refusal != "" {
		return 0, refusal
	}
	sa := p.sockaddr
	if e.controller != "" { // the name may lead elsewhere by now; the descriptor does not
		sa = rawUnix(e.proc())
	}
	if errno := connect(fd, sa); errno != 0 {
		if errno == unix.EPROTOTYPE {
			return 0, path + " is no stream socket"
		}
		if errno == unix.ENOENT && e.controller != "" {
			if _, err := os.Stat("/proc/self/fd"); err != nil {
				return 0, path + " can only be used with /proc mounted, as " + e.controller
			}
		}
		return errno, ""
	}
	peer, ok := peerCred(fd)
	if !ok {
		return unix.EIO, ""
	}
	// Processes that listen on behalf of many: the service manager (1), lb itself, and whoever lb cannot see
	// (0).
	many := peer.Pid <= 1 || int(peer.Pid) == os.Getpid()
	if own, ok := ownName(p.self, peerName(fd)); ok && many { // by a name that it has no more
		return 0, own
	}
	// Of an unprivileged user every socket will do. Root and lb have sockets that nobody else may reach: the
	// process tells them apart if it listens for itself alone, or else the name that the socket was bound by.
	p.peer, p.byPeer = peer, !many || !trusted(peer.Uid) || e.controller != ""
	p.byName = trusted(peer.Uid) && (many || e.controller != "")
	if p.byName && !boundTo(fd, p.sockaddr) {
		p.byPeer, p.byName = false, false // verify each time
	}
	return 0, ""
}

// Self holds the addresses at which lb itself listens: control sockets and listeners, so that no backend
// leads back to lb. The zero value has none, and so has a nil one. It is safe for concurrent use.
type Self struct {
	addresses atomic.Pointer[[]Address]
}

// Set replaces the addresses.
func (s *Self) Set(addresses []Address) { s.addresses.Store(&addresses) }

func (s *Self) load() *[]Address {
	if s == nil {
		return nil
	}
	return s.addresses.Load()
}

// ownName reports whether name, a path or "@name", is one of lb's own, and says so.
func ownName(self *[]Address, name string) (string, bool) {
	if self == nil || name == "" {
		return "", false
	}
	for _, a := range *self {
		if a.Path == name {
			return a.String() + " is a socket of lb itself", true
		}
	}
	return "", false
}

// ownAddrPort reports whether a connection to ap would reach lb itself, and by which address.
func ownAddrPort(self *[]Address, ap netip.AddrPort) (string, bool) {
	if self == nil {
		return "", false
	}
	for _, a := range *self {
		if a.IsUnix() || a.Port != ap.Port() {
			continue
		}
		ip, err := netip.ParseAddr(strings.Trim(a.Host, "[]"))
		switch to := ap.Addr().Unmap(); {
		case a.Host == "" || err == nil && ip.IsUnspecified(): // it listens on all addresses of the host
			if to.IsUnspecified() || to.IsLoopback() || isLocal(to) {
				return a.String(), true
			}
		case err != nil:
		case ip.Unmap() == to, to.IsUnspecified() && ip.Unmap().IsLoopback():
			return a.String(), true
		}
	}
	return "", false
}
