// Package discovery finds the backends of a pool in DNS: addresses (A, AAAA) or services (SRV). What other
// sources find has the same form.
//
// A Watcher asks again and again, on the one goroutine that runs it. It reports what a sound answer lists,
// and says once when answers fail and once when they are sound again. It removes nothing itself: whoever
// takes its reports decides what becomes of a backend. The package listens nowhere and writes no file.
package discovery

import (
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"

	"github.com/miekg/dns"

	"github.com/273ebdf9/lb/backends"
)

// Kinds of sources.
const (
	kindDNS = "dns"
	kindSRV = "srv"
	// Etcd is the source of what the hosts of the cluster publish, which package cluster reads.
	Etcd = "etcd"
)

// MaxBackends is the largest discover_max.
const MaxBackends = 4096

// PoolConfig is where a pool finds backends beside those of the config: keys of [pools.NAME]. Take
// DefaultPoolConfig and change it.
type PoolConfig struct {
	// Discover is where lb looks for more backends of the pool, again and again: "dns:NAME:PORT" makes every
	// address of the host name (A and AAAA) a backend at that port; "srv:_app._tcp.NAME" makes every target
	// of the service (SRV) a backend, with its port and weight, and as a backup unless it has the lowest
	// priority; "etcd" makes every listener a backend that an lb of the same cluster publishes for the pool
	// of this name ([cluster], publish). A backend that the answer does not list any more finishes its
	// connections. While no sound
	// answer comes, the backends stay that are known (docs/fleet.md). Default "": nowhere.
	Discover string `toml:"discover"`
	// DiscoverMax is how many backends an answer may list, 1..4096. lb takes a longer one for a mistake, and
	// goes on with the backends that it knows. Default 256.
	DiscoverMax int `toml:"discover_max"`
	// Resolver are the name servers that Discover asks, in this order: "ADDRESS:PORT", or an IP address alone
	// for port 53. Default []: those of /etc/resolv.conf, with its search list.
	Resolver []string `toml:"resolver"`
}

// DefaultPoolConfig returns a pool that discovers nothing.
func DefaultPoolConfig() PoolConfig { return PoolConfig{DiscoverMax: 256} }

// Check returns every fault. Each error's text starts with the key.
func (c *PoolConfig) Check() error {
	var errs []error
	if c.Discover != "" {
		if _, err := ParseSource(c.Discover); err != nil {
			errs = append(errs, fmt.Errorf("discover: %w", err))
		}
	}
	if c.DiscoverMax < 1 || c.DiscoverMax > MaxBackends {
		errs = append(errs, fmt.Errorf("discover_max: %d is not in 1..%d", c.DiscoverMax, MaxBackends))
	}
	for i, s := range c.Resolver {
		if _, err := serverAddress(s); err != nil {
			errs = append(errs, fmt.Errorf("resolver[%d]: %w", i, err))
		}
	}
	return errors.Join(errs...)
}

// Source is a place where backends are found. It is a plain value, safe to copy and compare.
type Source struct {
	kind string
	name string // as it is asked for
	port uint16 // of kindDNS
}

// serviceName is _SERVICE._PROTO.NAME (RFC 2782).
var serviceName = regexp.MustCompile(`^_[A-Za-z0-9-]+\._(tcp|udp)\..`)

// ParseSource reads "dns:NAME:PORT", "srv:_SERVICE._PROTO.NAME" or Etcd. The error says what to write.
func ParseSource(s string) (Source, error) {
	kind, rest, _ := strings.Cut(s, ":")
	switch kind {
	case Etcd:
		if s == Etcd {
			return Source{kind: kind}, nil
		}
	case kindDNS:
		i := strings.LastIndexByte(rest, ':')
		if i < 0 {
			return Source{}, fmt.Errorf(`%q has no port; write "dns:NAME:PORT"`, s)
		}
		port, err := strconv.ParseUint(rest[i+1:], 10, 16)
		if err != nil || port == 0 {
			return Source{}, fmt.Errorf("%q: %q is no port from 1 to 65535", s, rest[i+1:])
		}
		name := rest[:i]
		if _, err := netip.ParseAddr(strings.Trim(name, "[]")); err == nil {
			return Source{}, fmt.Errorf("%q names an address, which needs no look-up; write it as a backend", s)
		}
		if err := checkHost(name); err != nil {
			return Source{}, fmt.Errorf("%q: %w", s, err)
		}
		return Source{kind: kind, name: name, port: uint16(port)}, nil
	case kindSRV:
		if !serviceName.MatchString(rest) {
			return Source{}, fmt.Errorf(`%q is no service; write "srv:_SERVICE._tcp.NAME"`, s)
		}
		if err := checkHost(rest); err != nil {
			return Source{}, fmt.Errorf("%q: %w", s, err)
		}
		return Source{kind: kind, name: rest}, nil
	}
	return Source{}, fmt.Errorf(`unknown source %q; write "dns:NAME:PORT", "srv:_SERVICE._tcp.NAME" or "etcd"`, s)
}

// String returns the form that ParseSource reads.
func (s Source) String() string {
	switch s.kind {
	case kindDNS:
		return fmt.Sprintf("%s:%s:%d", s.kind, s.name, s.port)
	case Etcd:
		return Etcd
	}
	return s.kind + ":" + s.name
}

// hostName holds the characters of names that hosts and services have in practice.
var hostName = regexp.MustCompile(`^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_.])?$`)

// checkHost returns an error unless name can be looked up. What comes in an answer passes it too, so that no
// backend has a name that a terminal obeys.
func checkHost(name string) error {
	if _, ok := dns.IsDomainName(name); !ok || !hostName.MatchString(name) {
		return fmt.Errorf("%q is no host name", name)
	}
	return nil
}

// serverAddress is a name server as package net dials it.
func serverAddress(s string) (string, error) {
	if ip, err := netip.ParseAddr(s); err == nil {
		return netip.AddrPortFrom(ip, 53).String(), nil
	}
	ap, err := netip.ParseAddrPort(s)
	if err != nil || ap.Port() == 0 {
		return "", fmt.Errorf("%q is no address of a name server; write ADDRESS:PORT, [V6]:PORT, or an IP address", s)
	}
	return ap.String(), nil
}

// Backend is one backend that was found. It survives JSON.
type Backend struct {
	// Name identifies the backend in its pool. It does not depend on the order of the answer. Default: the
	// address.
	Name string `json:"name,omitempty"`
	// Address is what it is listed under: ADDRESS:PORT, or TARGET:PORT of a service.
	Address string `json:"address"`
	// At is where its connections go.
	At netip.AddrPort `json:"at"`
	// Weight is its share, 0..1000.
	Weight int `json:"weight"`
	// Backup keeps it for when no other is selectable.
	Backup bool `json:"backup,omitempty"`
}

// EffectiveName returns Name, or the address where no name is given.
func (b *Backend) EffectiveName() string {
	if b.Name != "" {
		return b.Name
	}
	return b.Address
}

// Check returns an error unless b can be a backend. What comes from outside lb has passed it.
func (b *Backend) Check() error {
	if b.Name != "" && !backends.ValidName(b.Name) {
		return fmt.Errorf("%q is no name", b.Name)
	}
	addr, err := backends.ParseAddress(b.Address)
	if err != nil {
		return err
	}
	if addr.IsUnix() || addr.Port == 0 {
		return fmt.Errorf("%q is no host and port", b.Address)
	}
	if ip, err := netip.ParseAddr(addr.Host); err == nil {
		if ip.Zone() != "" {
			return fmt.Errorf("%q has a zone", b.Address)
		}
	} else if err := checkHost(addr.Host); err != nil {
		return err
	}
	if !usable(b.At.Addr()) || b.At.Port() == 0 {
		return fmt.Errorf("%q leads to %v, where no connection can go", b.Address, b.At)
	}
	return backends.CheckWeight(b.Weight)
}

// usable reports whether a connection can go to ip: it is one host's.
func usable(ip netip.Addr) bool {
	return ip.IsValid() && !ip.IsUnspecified() && !ip.IsMulticast() && ip != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}
