package config

import (
	"strings"

	"github.com/273ebdf9/lb/backends"
)

// checkHandoff finds what does not go with a pool's handoff: who hands the sockets over does not see the
// bytes.
func (d *decoder) checkHandoff(p *Pool, users []*Listener) {
	if !p.HandsOff() {
		return
	}
	path := join("pools", p.Name)
	key := join(path, "handoff")
	switch {
	case p.Workers == nil:
		d.fault(key, "%q hands sockets to workers that lb runs, and the pool has none; add [%s.workers] with their command, or write \"off\"", p.Handoff, path)
	case len(p.Backends) > 0:
		d.fault(key, "%q hands sockets to workers that lb runs, and the pool has other backends too; give the backends a pool of their own", p.Handoff)
	}
	if p.Workers != nil {
		for i, arg := range p.Workers.Command {
			if strings.Contains(arg, "{socket}") || strings.Contains(arg, "{port}") {
				d.fault(index(join(join(path, "workers"), "command"), i), "a worker of a pool with handoff = %q listens nowhere: it gets its connections "+
					"on descriptor 3; leave {socket} and {port} out", p.Handoff)
			}
		}
	}
	const inPath = "needs lb to carry the bytes, which it does not with handoff = %q; leave %s out, or write handoff = \"off\""
	for _, name := range []string{"idle_timeout", "half_closed_timeout", "max_session_age", "send_proxy"} {
		if d.isSet(join(path, name)) {
			d.fault(join(path, name), inPath, p.Handoff, name)
		}
	}
	for _, l := range users {
		listener := join("listeners", l.Name)
		for _, bind := range l.Bind {
			if a, err := backends.ParseAddress(bind); err == nil && a.IsUnix() {
				d.fault(join(listener, "bind"), "%q is a Unix socket, and pool %q has handoff = %q, which is for clients that come over TCP; "+
					"give the listener another pool", bind, p.Name, p.Handoff)
			}
		}
		if l.AcceptProxy && p.Handoff == backends.HandoffNode {
			d.fault(join(listener, "accept_proxy"), "a Node program cannot be told who a PROXY header named (pool %q has handoff = \"node\"); "+
				"leave it out, or write handoff = \"off\"", p.Name)
		}
	}
}

// needForHandoff warns of a pool whose sockets cannot be handed over on this host, or not to every worker:
// unseen returns why the kernel does not tell when connections end, or is nil.
func (d *decoder) needForHandoff(p *Pool, unseen error) {
	if !p.HandsOff() || unseen == nil {
		return
	}
	key := join(join("pools", p.Name), "handoff")
	if p.Handoff == backends.HandoffNode {
		d.warn(key, "lb cannot start with it here, as it would not know when a connection has ended: %v; write \"off\"", unseen)
		return
	}
	d.warn(key, "connections of workers that do not report their ends, as the Go package does, count only until they are taken: %v", unseen)
}
