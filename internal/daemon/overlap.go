package daemon

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

// explainInUse adds to err the listener of lb itself that holds the address that a new one wants, if one
// does. Linux lets no socket listen on 127.0.0.1:80 and another on :80 (ip(7), EADDRINUSE), so that a reload
// cannot go from one to the other without closing the first, with whoever waits in its queue.
func (d *daemon) explainInUse(err error, specs []proxy.ListenerSpec) error {
	if !errors.Is(err, unix.EADDRINUSE) {
		return err
	}
	for _, spec := range specs {
		for _, bind := range spec.Config.Bind {
			if holder, address := d.overlapping(bind); holder != nil {
				return fmt.Errorf("%w; it is listener %q of lb, whose %s it overlaps: take that bind out and reload, then put this one in and reload again (clients are refused in between), or restart lb",
					err, holder.Name, address)
			}
		}
	}
	return err
}

// overlapping is the running listener with an address on the port of a new bind; nil for one that runs
// already.
func (d *daemon) overlapping(bind string) (holder *proxy.Listener, address string) {
	want, err := backends.ParseAddress(bind)
	if err != nil || want.IsUnix() {
		return nil, ""
	}
	for _, ln := range d.proxy.Listeners() {
		if slices.Contains(ln.Config().Bind, bind) {
			return nil, ""
		}
	}
	for _, ln := range d.proxy.Listeners() {
		for _, bound := range ln.Addresses() {
			have, err := netip.ParseAddrPort(bound)
			if err != nil || have.Port() != want.Port {
				continue
			}
			ip, err := netip.ParseAddr(want.Host)
			if err != nil || ip.IsUnspecified() || have.Addr().IsUnspecified() || ip.Unmap() == have.Addr().Unmap() {
				return ln, bound // a host name counts as any
			}
		}
	}
	return nil, ""
}

// ownAddresses returns all addresses at which lb itself takes connections.
func (d *daemon) ownAddresses() (all []backends.Address) {
	add := func(text string) {
		if a, err := backends.ParseAddress(text); err == nil {
			all = append(all, a)
		}
	}
	for _, ln := range d.proxy.Listeners() {
		for _, bound := range ln.Addresses() {
			add(bound)
		}
	}
	cfg := d.view.Load().cfg
	if cfg.Admin.Socket != "" {
		add("unix:" + cfg.Admin.Socket)
	}
	if cfg.Admin.HTTP != "" {
		add(cfg.Admin.HTTP)
	}
	return all
}
