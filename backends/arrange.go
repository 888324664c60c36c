package backends

import (
	"fmt"
	"slices"
	"time"
)

// Member is what a member of a pool shall be.
type Member struct {
	// Backend is a member, or one that NewBackend of the same pool made.
	Backend *Backend
	// Config is its configuration; its name and address are the backend's.
	Config BackendConfig
}

// Arrange gives the pool its settings and its members, in this order, in one step: a connection is dealt with under the
// old ones or under the new ones. Members that are not named are removed, as Remove does; the others are configured as
// ConfigureBackend does, and what SetWeight and SetMaxConns have set stays where cfg and their Config have what they had.
// With a policy the pool chooses by that, and cfg.Balance is its name; nil keeps the policy. cfg is valid; its Backends
// are not read. It panics for two backends of one name, and for a backend of another pool.
func (p *Pool) Arrange(cfg Config, policy Policy, members []Member, reason string) {
	p.mu.Lock()
	if policy != nil {
		p.policy = policy
	} else {
		cfg.Balance = p.Config().Balance
	}
	old, wanted := p.Backends(), make([]*Backend, len(members))
	for i, m := range members {
		if m.Backend.pool != p || m.Backend.removed.Load() && !m.Backend.returning || slices.ContainsFunc(wanted[:i], func(b *Backend) bool { return b.Name == m.Backend.Name }) {
			panic(fmt.Sprintf("BUG: backends: backend %q cannot be arranged in pool %q", m.Backend.Name, p.Name))
		}
		wanted[i] = m.Backend
		if p.byName[m.Backend.Name] != m.Backend {
			m.Backend.presetConfig(m.Config)
		}
	}
	if policy != nil || !slices.Equal(old, wanted) {
		p.setMembersLocked(wanted)
	}
	for _, b := range old {
		if !slices.Contains(wanted, b) {
			p.leaveLocked(b, reason)
		}
	}
	p.configureLocked(cfg, reason)
	now := time.Now()
	for _, m := range members {
		if p.byName[m.Backend.Name] == m.Backend {
			p.configureBackendLocked(m.Backend, m.Config, reason)
		} else {
			p.joinLocked(m.Backend, reason, now)
		}
	}
	p.settleAndUnlock()
}
