package config

import (
	"fmt"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

const (
	// baseFDs are standard streams, logs, the state file, the runtime's own, and what a reload or a look-up
	// opens for a moment.
	baseFDs = 48
	// adminFDs are connections to the control API; it holds more of them where descriptors are plenty.
	adminFDs = 64
	// upgradeFDs are what the new code of an upgrade opens before the old one's are closed.
	upgradeFDs = 64
	// workerFDs are a worker's listening socket, output and pidfd, and a probe.
	workerFDs = 4
	// takerFDs are the same for a worker that is handed sockets: it has no listening socket, but a channel,
	// whose two ends its supervisor and its loop hold, and a probe of it is a connection that lb makes with
	// itself.
	takerFDs = 2*2 + 2 + 3
	// endsFDs hear how handed-off connections end.
	endsFDs = 2
)

// Room is how lb's file descriptors are divided.
type Room struct {
	// Sessions is how many fit, and no more than proxy.max_sessions.
	Sessions int64
	// Reserved descriptors are left to everything else: see proxy.Proxy.Reserve.
	Reserved int
	// Warning says that fewer sessions fit than proxy.max_sessions, or that there is no room to spare; empty
	// where all is well.
	Warning string
}

// Room divides the RLIMIT_NOFILE of this process among sessions and what else the config needs. The error
// says that not a single session fits.
func (c *Config) Room() (Room, error) {
	need, spare := c.descriptors()
	r := Room{Reserved: need}
	_, nofile, err := proxy.SessionLimit(&c.Proxy, need)
	if err == nil { // where descriptors are few, most of them are for sessions
		r.Reserved += min(spare, int(min(nofile/8, 1<<30)))
	}
	if r.Sessions, nofile, err = proxy.SessionLimit(&c.Proxy, r.Reserved); err != nil {
		r.Reserved = need
		if r.Sessions, nofile, err = proxy.SessionLimit(&c.Proxy, r.Reserved); err != nil {
			return r, err
		}
		r.Warning = fmt.Sprintf("RLIMIT_NOFILE is %d: lb needs %d descriptors for what is configured and has none to spare, for an upgrade or a reload that adds something; raise it (ulimit -n, LimitNOFILE=)",
			nofile, need)
	}
	switch want := int64(c.Proxy.MaxSessions); {
	case want > r.Sessions:
		r.Warning = fmt.Sprintf("proxy.max_sessions: only %d of %d sessions fit: RLIMIT_NOFILE is %d, and lb needs %d descriptors for what else is configured; raise it (ulimit -n, LimitNOFILE=)",
			r.Sessions, want, nofile, r.Reserved)
	case want > 0:
		r.Sessions = want
	}
	return r, nil
}

// descriptors returns how many file descriptors lb needs for this config beside its sessions: each bind, a
// probe of every backend at once, every worker with a successor, the control socket; and how many it should
// have to spare, for connections to the control API, an upgrade, and a reload that adds a quarter more of
// what is configured.
func (c *Config) descriptors() (need, spare int) {
	n, ends := 0, 0
	for i := range c.Listeners {
		n += len(c.Listeners[i].Bind)
	}
	for i := range c.Pools {
		p := &c.Pools[i]
		for j := range p.Backends {
			if a, err := backends.ParseAddress(p.Backends[j].Address); err == nil && a.IsUnix() {
				n++ // the entry of its directory
			}
			n++
		}
		if p.Workers != nil {
			each := workerFDs
			if p.HandsOff() {
				each, ends = takerFDs, endsFDs
			}
			n += 2 + 2*each*p.Workers.EffectiveCount()
		}
	}
	n += ends
	return baseFDs + adminFDs/2 + n, adminFDs/2 + upgradeFDs + max(n/4, 16)
}
