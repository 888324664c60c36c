package backends

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// maxUnixPath is the longest path that fits in sun_path with its final NUL (unix(7)).
const maxUnixPath = 107

// Address is where something listens: a Unix socket by path, an abstract Unix socket, or TCP host:port.
// The zero value is no address. It is a plain value, safe to copy and compare.
type Address struct {
	// Path is the path of a Unix socket, or "@name" for an abstract one. Empty: the address is TCP.
	Path string
	// Host is an IP address or a host name; empty in a listener's address means every address.
	Host string
	// Port is the TCP port.
	Port uint16
}

// ParseAddress reads "unix:/path", "unix:@name" (abstract), "host:port" or "[v6]:port".
// The error says which forms there are.
func ParseAddress(s string) (Address, error) {
	if path, ok := strings.CutPrefix(s, "unix:"); ok {
		name := strings.TrimPrefix(path, "@")
		switch {
		case name == "":
			return Address{}, fmt.Errorf("cannot parse address %q: there is no path after \"unix:\"", s)
		case len(path) > maxUnixPath:
			return Address{}, fmt.Errorf("cannot parse address %q: a Unix socket path has at most %d bytes, this one has %d; use a shorter directory", s, maxUnixPath, len(path))
		case strings.ContainsRune(path, 0):
			return Address{}, fmt.Errorf("cannot parse address %q: NUL byte in the path", s)
		case path[0] != '@' && path[0] != '/':
			return Address{}, fmt.Errorf("cannot parse address %q: the path must be absolute (unix:/…) or abstract (unix:@…)", s)
		}
		return Address{Path: path}, nil
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Address{}, fmt.Errorf("cannot parse address %q: write host:port, [v6]:port, unix:/path or unix:@name", s)
	}
	n, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return Address{}, fmt.Errorf("cannot parse address %q: port %q is not a number from 0 to 65535", s, port)
	}
	return Address{Host: host, Port: uint16(n)}, nil
}

// IsUnix reports whether the address is a Unix socket, by path or abstract.
func (a Address) IsUnix() bool { return a.Path != "" }

// IsHostName reports whether the address has to be looked up before it can be connected to.
func (a Address) IsHostName() bool { return !a.IsUnix() && a.Host != "" && !isIP(a.Host) }

// Network returns "unix" or "tcp", as package net has it.
func (a Address) Network() string {
	if a.IsUnix() {
		return "unix"
	}
	return "tcp"
}

// Dial returns the address without its prefix, as net.Dial takes it together with Network.
func (a Address) Dial() string {
	if a.IsUnix() {
		return a.Path
	}
	return net.JoinHostPort(a.Host, strconv.Itoa(int(a.Port)))
}

// String returns the form that ParseAddress reads.
func (a Address) String() string {
	if a.IsUnix() {
		return "unix:" + a.Path
	}
	return a.Dial()
}

// IsLocalIP reports whether ip is an address of this host, as its network namespace sees it. It asks the
// kernel unless ip is a loopback address.
func IsLocalIP(ip netip.Addr) bool {
	ip = ip.Unmap()
	if ip.IsLoopback() || ip.IsUnspecified() {
		return true
	}
	all, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	return slices.ContainsFunc(all, func(a net.Addr) bool {
		prefix, err := netip.ParsePrefix(a.String())
		return err == nil && prefix.Addr().Unmap() == ip.WithZone("")
	})
}

// ErrNoAddress says that a host name has no address.
var ErrNoAddress = errors.New("the host name has no address")

// Resolve turns the address into one the kernel takes. A Unix socket or an IP address needs no look-up and
// cannot block; a host name is looked up with the host's resolver, and of several answers the first IPv4 one,
// else the first.
func (a Address) Resolve(ctx context.Context) (*RawSockaddr, error) {
	if a.IsUnix() {
		return rawUnix(a.Path), nil
	}
	if a.Host == "" { // a listener's: every address, IPv4 too
		return rawInet(netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port)), nil
	}
	if ip, err := netip.ParseAddr(a.Host); err == nil {
		return rawInet(netip.AddrPortFrom(ip, a.Port)), nil
	}
	ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", a.Host)
	if err != nil {
		return nil, fmt.Errorf("cannot resolve host %q: %w", a.Host, err)
	}
	if len(ips) == 0 {
		return nil, fmt.Errorf("cannot resolve host %q: %w", a.Host, ErrNoAddress)
	}
	for _, ip := range ips {
		if ip.Unmap().Is4() {
			return rawInet(netip.AddrPortFrom(ip, a.Port)), nil
		}
	}
	return rawInet(netip.AddrPortFrom(ips[0], a.Port)), nil
}

// RawSockaddr is a socket address as connect(2) takes it. It is never changed once made, so that loops may
// share it.
type RawSockaddr struct {
	Family int // unix.AF_UNIX, AF_INET or AF_INET6
	Len    uint32
	Any    unix.RawSockaddrAny
}

// AddrPort returns the IP address and port; the zero value for a Unix socket.
func (sa *RawSockaddr) AddrPort() netip.AddrPort {
	switch sa.Family {
	case unix.AF_INET:
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa.Any))
		return netip.AddrPortFrom(netip.AddrFrom4(in.Addr), binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&in.Port))[:]))
	case unix.AF_INET6:
		in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&sa.Any))
		return netip.AddrPortFrom(netip.AddrFrom16(in.Addr), binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(&in.Port))[:]))
	}
	return netip.AddrPort{}
}

// SockaddrOf returns the socket address of an IP address and port.
func SockaddrOf(ap netip.AddrPort) *RawSockaddr { return rawInet(ap) }

func rawUnix(path string) *RawSockaddr {
	sa := &RawSockaddr{Family: unix.AF_UNIX, Len: uint32(2 + len(path))}
	un := (*unix.RawSockaddrUnix)(unsafe.Pointer(&sa.Any))
	un.Family = unix.AF_UNIX
	// its element is int8 or uint8, by platform
	dst := unsafe.Slice((*byte)(unsafe.Pointer(&un.Path)), len(un.Path))
	copy(dst, path)
	if path[0] == '@' { // abstract: a NUL first, and the length counts (unix(7))
		dst[0] = 0
	} else {
		sa.Len++ // the final NUL
	}
	return sa
}

// rawInet makes the kernel's form of an IP address and port. An IPv4-mapped address becomes IPv4. A named
// zone is looked up among the host's interfaces.
func rawInet(ap netip.AddrPort) *RawSockaddr {
	ip := ap.Addr().Unmap()
	var port uint16
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(&port))[:], ap.Port())
	if ip.Is4() {
		sa := &RawSockaddr{Family: unix.AF_INET, Len: unix.SizeofSockaddrInet4}
		in := (*unix.RawSockaddrInet4)(unsafe.Pointer(&sa.Any))
		in.Family, in.Port, in.Addr = unix.AF_INET, port, ip.As4()
		return sa
	}
	sa := &RawSockaddr{Family: unix.AF_INET6, Len: unix.SizeofSockaddrInet6}
	in := (*unix.RawSockaddrInet6)(unsafe.Pointer(&sa.Any))
	in.Family, in.Port, in.Addr = unix.AF_INET6, port, ip.As16()
	if zone := ip.Zone(); zone != "" {
		if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
			in.Scope_id = uint32(n)
		} else if ifi, err := net.InterfaceByName(zone); err == nil {
			in.Scope_id = uint32(ifi.Index)
		}
	}
	return sa
}
