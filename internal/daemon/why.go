package daemon

import (
	"cmp"

	"github.com/273ebdf9/lb/admin/why"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/supervisor"
)

// setup is what the config asks of a backend, for who asks why it fails; b is nil for a slot without one.
func (d *daemon) setup(pool *backends.Pool, b *backends.Backend) why.Setup {
	v := d.view.Load()
	var s why.Setup
	if cfg := v.cfg.Pool(pool.Name); cfg != nil {
		s.Health, s.Interval, s.Fall = cfg.Health.Type, cfg.Health.Interval, cfg.Health.Fall
		for _, bc := range cfg.Backends {
			if b != nil && cmp.Or(bc.Name, bc.Address) == b.Name {
				s.Configured, s.MaxConns = true, configuredMaxConns(bc, &cfg.Config)
			}
		}
	}
	s.SendProxy = pool.Config().SendProxy
	checker, watched := v.checkers[pool]
	if b != nil {
		s.Unresolved = b.Address.IsHostName() && b.Sockaddr() == nil
		if watched {
			s.Sent, s.Wanted = checker.Exchange(b)
			s.NeverBeat = checker.Status(b).Mute
		}
	}
	if watched && checker.workers != nil {
		cfg := checker.workers.cfg.Load()
		s.Ready, s.StartTimeout, s.Place = cfg.Ready, cfg.StartTimeout, cfg.Place()
	}
	return s
}

// listening is where a worker and what it has started listen.
func listening(pid int) (all []why.Listening, looked bool) {
	found, looked := supervisor.Listens(pid)
	for _, l := range found {
		all = append(all, why.Listening{PID: l.PID, Address: l.Address})
	}
	return all, looked
}
