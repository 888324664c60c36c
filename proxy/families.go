package proxy

import (
	"fmt"
	"net/netip"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// A socket on [::] takes IPv4 too, unless IPV6_V6ONLY is set before it is bound (ipv6(7)); then another
// socket may have the IPv4 addresses of the port. So "[::]:80" alone is both families, and beside
// "0.0.0.0:80" it is IPv6 alone, as the pair is meant.

// notePorts notes the ports on which some bind addresses are of IPv4.
func notePorts(ports map[uint16]bool, binds []string) {
	for _, bind := range binds {
		a, err := backends.ParseAddress(bind)
		if err != nil || a.IsUnix() || a.Port == 0 {
			continue
		}
		if ip, err := netip.ParseAddr(a.Host); a.Host == "localhost" || err == nil && ip.Unmap().Is4() {
			ports[a.Port] = true
		}
	}
}

// leavesIPv4 reports whether a bind address is [::] and leaves IPv4 to another one on its port.
func leavesIPv4(bind string, v4 map[uint16]bool) bool {
	a, err := backends.ParseAddress(bind)
	if err != nil || a.IsUnix() || !v4[a.Port] {
		return false
	}
	ip, err := netip.ParseAddr(a.Host)
	return err == nil && ip == netip.IPv6Unspecified()
}

// noteFamilies works out which ports have IPv4 addresses, now and from now on. It returns an error if an open
// socket that stays is to take other families.
func (t *Transition) noteFamilies(specs []ListenerSpec) error {
	t.v4, t.v4Before = map[uint16]bool{}, map[uint16]bool{}
	stays := map[string]bool{}
	for i := range specs {
		notePorts(t.v4, specs[i].Config.Bind)
		for _, bind := range specs[i].Config.Bind {
			stays[bind] = true
		}
	}
	for _, ln := range t.p.listeners {
		notePorts(t.v4Before, ln.Config().Bind)
	}
	for _, ln := range t.p.listeners {
		for _, s := range *ln.sockets.Load() {
			if !stays[s.bind] {
				continue
			}
			if err := t.checkFamilies(s); err != nil {
				return fmt.Errorf("cannot change listener %q: %w", ln.Name, err)
			}
		}
	}
	return nil
}

// checkFamilies returns an error if a change of the listeners would have an open socket on [::] take other
// families: the kernel changes that for no bound socket. A socket that systemd opened keeps what it was
// given.
func (t *Transition) checkFamilies(s *socket) error {
	before, want := leavesIPv4(s.bind, t.v4Before), leavesIPv4(s.bind, t.v4)
	if only, err := unix.GetsockoptInt(int(s.fd), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY); before == want || err != nil || (only == 1) == want {
		return nil
	}
	now, then := "IPv4 too", "IPv6 alone"
	if !want {
		now, then = then, now
	}
	return fmt.Errorf("%q is open for %s and would be for %s: take it out and reload, then put it in and reload again "+
		"(clients are refused in between), or restart lb", s.bind, now, then)
}
