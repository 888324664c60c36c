package daemon

import (
	"cmp"
	"strings"

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
		s.Ready, s.StartTimeout, s.Place = cfg.Ready, cfg.StartTimeout, place(cfg)
	}
	return s
}

// place is how the workers of a config are given their address.
func place(cfg *supervisor.Config) string {
	words := append([]string{}, cfg.Command...)
	for _, value := range cfg.Env {
		words = append(words, value)
	}
	for _, name := range []string{"{port}", "{socket}"} {
		for _, word := range words {
			if strings.Contains(word, name) {
				return name
			}
		}
	}
	return ""
}

// listening is where a worker and what it has started listen.
func listening(pid int) (all []why.Listening, looked bool) {
	found, looked := supervisor.Listens(pid)
	for _, l := range found {
		all = append(all, why.Listening{PID: l.PID, Address: l.Address})
	}
	return all, looked
}
