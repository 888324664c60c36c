package config

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// A backend that is lb itself, in whatever spelling, would have lb carry its own connections in a circle:
// without any client the first health probe fills lb to its session limit. This file finds such backends as
// far as they can be known before a connection is made. The proxy breaks at run time what is found here too
// late.

// lookupLimit bounds the look-ups of all host names of a config.
const lookupLimit = 2 * time.Second

// network knows which addresses and paths are the same.
type network struct {
	// lookup returns the addresses of a host name. nil looks nothing up: then only localhost is known.
	lookup func(host string) []netip.Addr
	// local are this host's addresses, beside loopback.
	local []netip.Addr
	// resolve returns the path without symbolic links. nil only cleans it.
	resolve func(path string) string
}

// textual knows what can be read from the config alone.
var textual = &network{}

// newHost returns the network of this host. It asks the resolver, the kernel and the file system, and changes
// nothing. The resolver has until ctx ends.
func newHost(ctx context.Context) *network {
	n := &network{
		lookup: func(host string) []netip.Addr {
			ips, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
			if err != nil {
				return nil // lb run reports it, and tries again
			}
			return ips
		},
		resolve: func(path string) string {
			if dir, err := filepath.EvalSymlinks(filepath.Dir(path)); err == nil {
				path = filepath.Join(dir, filepath.Base(path))
			}
			if end, err := filepath.EvalSymlinks(path); err == nil {
				return end
			}
			return path
		},
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil {
				n.local = append(n.local, prefix.Addr())
			}
		}
	}
	return n
}

// addresses are the one that lb takes for a host, to listen or to connect: of several the first of IPv4, else
// the first. There is none for a name that cannot be looked up. The unspecified addresses are kept as they
// are.
func (n *network) addresses(host string) []netip.Addr {
	host = strings.TrimSuffix(strings.ToLower(host), ".")
	if ip, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{ip.Unmap().WithZone("")}
	}
	switch {
	case host == "":
		return []netip.Addr{netip.IPv6Unspecified()}
	case host == "localhost" || strings.HasSuffix(host, ".localhost"): // RFC 6761, 6.3
		return []netip.Addr{netip.AddrFrom4([4]byte{127, 0, 0, 1})}
	case n.lookup == nil:
		return nil
	}
	ips := n.lookup(host)
	for i, ip := range ips {
		ips[i] = ip.Unmap().WithZone("")
	}
	if i := slices.IndexFunc(ips, netip.Addr.Is4); i >= 0 {
		return ips[i : i+1]
	}
	return ips[:min(len(ips), 1)]
}

// isLocal reports whether connections to the address reach this host.
func (n *network) isLocal(ip netip.Addr) bool { return ip.IsLoopback() || slices.Contains(n.local, ip) }

// path is a socket's path in its one spelling. An abstract name has only one.
func (n *network) path(path string) string {
	if strings.HasPrefix(path, "@") {
		return path
	}
	if path = filepath.Clean(path); n.resolve != nil {
		path = n.resolve(path)
	}
	return path
}

// loopbackFor returns the address that the kernel connects to in the place of an unspecified one (ip(7),
// ipv6(7)).
func loopbackFor(ip netip.Addr) netip.Addr {
	switch ip {
	case netip.IPv4Unspecified():
		return netip.AddrFrom4([4]byte{127, 0, 0, 1})
	case netip.IPv6Unspecified():
		return netip.IPv6Loopback()
	}
	return ip
}

// RefuseLoop returns why a pool may not have a backend at the address: connections would come back to lb. It
// returns nil if the pool may. Host names are looked up, until ctx ends.
func (c *Config) RefuseLoop(ctx context.Context, pool string, address backends.Address) error {
	l := newLoops(c, newHost(ctx))
	leadsBack := func(from *Listener) bool { return l.leadsTo(from, pool, map[*Listener]bool{}) }
	if why := l.find(pool, address, leadsBack); why != "" {
		return fmt.Errorf("%s %s", address, why)
	}
	return nil
}

// ownSocket is a place where lb listens: a listener, or the control API, which then has the key that says so.
type ownSocket struct {
	listener *Listener
	key      string
}

// loops knows where lb listens, and which pools lead to which listeners.
type loops struct {
	network   *network
	ports     map[uint16]bool // those that lb listens on
	exact     map[netip.AddrPort][]ownSocket
	wildcards map[netip.AddrPort][]ownSocket
	paths     map[string][]ownSocket
	known     map[string][]netip.Addr // of host names
	next      map[string][]*Listener  // by pool: listeners that are its backends
}

func newLoops(c *Config, n *network) *loops {
	l := &loops{
		network: n, ports: map[uint16]bool{}, exact: map[netip.AddrPort][]ownSocket{}, wildcards: map[netip.AddrPort][]ownSocket{},
		paths: map[string][]ownSocket{}, known: map[string][]netip.Addr{}, next: map[string][]*Listener{},
	}
	if c.Admin.Socket != "" {
		l.listen("unix:"+c.Admin.Socket, ownSocket{key: "admin.socket"})
	}
	l.listen(c.Admin.HTTP, ownSocket{key: "admin.http"})
	for i := range c.Listeners {
		for _, bind := range c.Listeners[i].Bind {
			l.listen(bind, ownSocket{listener: &c.Listeners[i]})
		}
	}
	for i := range c.Pools {
		p := &c.Pools[i]
		for _, b := range p.Backends {
			if a, err := backends.ParseAddress(b.Address); err == nil {
				for _, own := range l.at(a) {
					if own.listener != nil && !slices.Contains(l.next[p.Name], own.listener) {
						l.next[p.Name] = append(l.next[p.Name], own.listener)
					}
				}
			}
		}
	}
	return l
}

// listen notes a place where lb listens. What is no address has its own fault.
func (l *loops) listen(address string, own ownSocket) {
	a, err := backends.ParseAddress(address)
	switch {
	case err != nil:
	case a.IsUnix():
		path := l.network.path(a.Path)
		l.paths[path] = append(l.paths[path], own)
	case a.Port != 0: // else it is another each time
		l.ports[a.Port] = true
		for _, ip := range l.addresses(a.Host) {
			where, key := l.exact, netip.AddrPortFrom(ip, a.Port)
			if ip.IsUnspecified() {
				where = l.wildcards
			}
			where[key] = append(where[key], own)
		}
	}
}

func (l *loops) addresses(host string) []netip.Addr {
	ips, ok := l.known[host]
	if !ok {
		ips = l.network.addresses(host)
		l.known[host] = ips
	}
	return ips
}

// at returns the places of lb at which a connection to the address arrives.
func (l *loops) at(a backends.Address) []ownSocket {
	if a.IsUnix() {
		return l.paths[l.network.path(a.Path)]
	}
	if !l.ports[a.Port] {
		return nil // its host is of no interest
	}
	var found []ownSocket
	for _, ip := range l.addresses(a.Host) {
		ip = loopbackFor(ip)
		found = append(found, l.exact[netip.AddrPortFrom(ip, a.Port)]...)
		if l.network.isLocal(ip) {
			found = append(found, l.wildcards[netip.AddrPortFrom(netip.IPv6Unspecified(), a.Port)]...)
			if ip.Is4() {
				found = append(found, l.wildcards[netip.AddrPortFrom(netip.IPv4Unspecified(), a.Port)]...)
			}
		}
	}
	return found
}

// find returns what is wrong with a backend of a pool at the address; "" if nothing is. leadsBack reports
// whether the connections of a listener may come to the pool, through other listeners of lb.
func (l *loops) find(pool string, address backends.Address, leadsBack func(*Listener) bool) string {
	for _, own := range l.at(address) {
		switch {
		case own.key != "":
			return "is " + own.key + ", lb's own control API, which would take clients for lb; name another address"
		case own.listener.uses(pool):
			return fmt.Sprintf("is the listener %q itself: connections would go in a circle", own.listener.Name)
		case leadsBack(own.listener):
			return fmt.Sprintf("is the listener %q, which leads back to this pool: connections would go in a circle", own.listener.Name)
		}
	}
	return ""
}

// leadsTo reports whether connections of the listener may come to the pool. seen are the listeners that were
// looked at.
func (l *loops) leadsTo(from *Listener, pool string, seen map[*Listener]bool) bool {
	if from.uses(pool) {
		return true
	}
	if seen[from] {
		return false
	}
	seen[from] = true
	for _, name := range poolsOf(from) {
		if slices.ContainsFunc(l.next[name], func(next *Listener) bool { return l.leadsTo(next, pool, seen) }) {
			return true
		}
	}
	return false
}

// circles numbers the pools so that those with one number lead to each other (R. Tarjan, "Depth-first search
// and linear graph algorithms", 1972). It takes a time that grows with the config only.
func (l *loops) circles() map[string]int {
	number, low, circle := map[string]int{}, map[string]int{}, map[string]int{}
	var stack []string
	var visit func(pool string)
	visit = func(pool string) {
		number[pool] = len(number) + 1
		low[pool] = number[pool]
		stack = append(stack, pool)
		for _, listener := range l.next[pool] {
			for _, next := range poolsOf(listener) {
				if number[next] == 0 {
					visit(next)
					low[pool] = min(low[pool], low[next])
				} else if circle[next] == 0 { // it is on the stack
					low[pool] = min(low[pool], number[next])
				}
			}
		}
		for low[pool] == number[pool] && circle[pool] == 0 {
			last := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			circle[last] = number[pool]
		}
	}
	for pool := range l.next {
		if number[pool] == 0 {
			visit(pool)
		}
	}
	return circle
}

// uses reports whether the listener sends connections to the pool.
func (l *Listener) uses(pool string) bool {
	_, split := l.Split[pool]
	return l.Pool == pool || split
}

// checkLoops finds backends that are lb itself.
func (d *decoder) checkLoops(c *Config, n *network) {
	l := newLoops(c, n)
	circles := l.circles()
	for i := range c.Pools {
		p := &c.Pools[i]
		leadsBack := func(from *Listener) bool {
			for _, name := range poolsOf(from) {
				if circles[name] == circles[p.Name] && circles[name] != 0 {
					return true
				}
			}
			return false
		}
		for j, b := range p.Backends {
			path := join(index(join(join("pools", p.Name), "backends"), j), "address")
			a, err := backends.ParseAddress(b.Address)
			if err != nil || d.isFaulty(path) {
				continue
			}
			if why := l.find(p.Name, a, leadsBack); why != "" {
				d.fault(path, "%s %s", a, why)
			}
		}
	}
}
