package proxy

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// Activated is a listening socket that the service manager has opened and handed over (systemd.socket(5)).
type Activated struct {
	// Name is the listener that it is for, FileDescriptorName= of the socket unit.
	Name string
	// FD is the socket; the proxy owns it from Activate on.
	FD int
}

// Activate hands sockets over that are open already. The listener of that name that has the bind address
// takes one instead of opening its own. Call it before the first Prepare.
func (p *Proxy) Activate(sockets []Activated) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.activated = append(p.activated, sockets...)
}

// DropActivated closes the sockets that no listener has taken, and gives them for a warning.
func (p *Proxy) DropActivated() []Activated {
	p.mu.Lock()
	defer p.mu.Unlock()
	left := p.activated
	p.activated = nil
	for _, a := range left {
		unix.Close(a.FD)
	}
	return left
}

// takeActivated gives the socket that was handed over for the bind address of a listener; nil if there is
// none. Its Unix socket file is the service manager's, and stays when it is closed. The caller holds mu.
func (p *Proxy) takeActivated(name, bind string, cfg *ListenerConfig) *socket {
	i := slices.IndexFunc(p.activated, func(a Activated) bool { return a.Name == name && isBoundTo(a.FD, bind) })
	if i < 0 {
		return nil
	}
	fd := p.activated[i].FD
	p.activated = slices.Delete(p.activated, i, i+1)
	unix.CloseOnExec(fd)
	unix.SetNonblock(fd, true)
	s := &socket{fd: int32(fd), bind: bind, addr: bind}
	if addr := localAddr(s.fd); addr.IsValid() {
		s.addr = addr.String()
		unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_OOBINLINE, 1)
	}
	s.configure(cfg)
	return s
}

// blameActivated says more of err, why bind could not be opened, where the reason is a socket that was handed
// over under another name than the listener's. The caller holds mu.
func (p *Proxy) blameActivated(name, bind string, err error) error {
	i := slices.IndexFunc(p.activated, func(a Activated) bool { return isBoundTo(a.FD, bind) })
	if i < 0 || !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	return fmt.Errorf("cannot take the socket %q that the service manager has opened for %q: write FileDescriptorName=%s in its unit: %w",
		p.activated[i].Name, bind, name, unix.EADDRINUSE)
}

// isBoundTo says whether a socket is bound to the address, as the config writes it.
func isBoundTo(fd int, bind string) bool {
	want, err := backends.ParseAddress(bind)
	if err != nil {
		return false
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return false
	}
	if un, ok := sa.(*unix.SockaddrUnix); ok {
		return un.Name == want.Path
	}
	got := localAddr(int32(fd))
	if want.IsUnix() || got.Port() != want.Port {
		return false
	}
	if want.Host == "" {
		return got.Addr().IsUnspecified()
	}
	ip, err := netip.ParseAddr(want.Host)
	return err == nil && ip.Unmap() == got.Addr()
}
