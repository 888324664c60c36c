package config

import (
	"net/netip"
	"strings"

	"github.com/273ebdf9/lb/backends"
)

// checkBinds finds addresses that lb would listen on twice.
func (d *decoder) checkBinds(c *Config) {
	taken := binds{}
	if a, err := backends.ParseAddress(c.Admin.HTTP); err == nil {
		taken.add("admin.http", a)
	}
	if a, err := backends.ParseAddress("unix:" + c.Admin.Socket); err == nil {
		taken.add("admin.socket", a)
	}
	for i := range c.Listeners {
		for j, s := range c.Listeners[i].Bind {
			a, err := backends.ParseAddress(s)
			if err != nil {
				continue
			}
			path := index(join(join("listeners", c.Listeners[i].Name), "bind"), j)
			if by, ok := taken.add(path, a); !ok {
				d.fault(path, "%s is taken by %s, %s", a, by.path, by.address)
			}
		}
	}
}

// bind is an address that lb listens on, and the key that says so.
type bind struct {
	path    string
	address backends.Address
}

// binds are the addresses that lb listens on, each under itself and under those groups that a wildcard stands
// for. A group is an address with a port and one of the hosts below, which no address has.
type binds map[backends.Address]bind

const (
	every   = "every address"
	everyV4 = "every IPv4 address"
	everyV6 = "every IPv6 address"
)

// add puts in an address, unless the kernel would refuse to listen on it because of another: both are the
// same, or one is a wildcard that the other falls under. Port 0 is another port each time.
func (m binds) add(path string, address backends.Address) (by bind, ok bool) {
	a := normal(address)
	if !a.IsUnix() && a.Port == 0 {
		return bind{}, true
	}
	conflicts, groups := []string{a.Host, ""}, []string{a.Host, every}
	if ip, err := netip.ParseAddr(a.Host); err == nil {
		wildcard, group := netip.IPv6Unspecified(), everyV6
		if ip.Is4() {
			wildcard, group = netip.IPv4Unspecified(), everyV4
		}
		conflicts, groups = append(conflicts, wildcard.String()), append(groups, group)
		if ip == wildcard {
			conflicts = append(conflicts, group)
		}
	} else if a.Host == "" {
		conflicts = append(conflicts, every)
	}
	for _, host := range conflicts {
		if by, taken := m[backends.Address{Path: a.Path, Host: host, Port: a.Port}]; taken {
			return by, false
		}
	}
	for _, host := range groups {
		key := backends.Address{Path: a.Path, Host: host, Port: a.Port}
		if _, taken := m[key]; !taken {
			m[key] = bind{path, address}
		}
	}
	return bind{}, true
}

// normal is a with its host in one spelling, so that equal addresses are equal values.
func normal(a backends.Address) backends.Address {
	a.Host = strings.ToLower(a.Host)
	if a.Host == "localhost" {
		a.Host = "127.0.0.1" // where lb has the choice it takes IPv4
	}
	if ip, err := netip.ParseAddr(a.Host); err == nil {
		a.Host = ip.Unmap().String()
	}
	return a
}
