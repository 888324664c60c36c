package backends

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"
)

// Member is one backend of a pool, with the configuration that it gets.
type Member struct {
	// Backend is a member, or one that NewBackend of the same pool made.
	Backend *Backend
	// Config is its configuration; its name and address are the backend's.
	Config BackendConfig
	// Discovered says that Config comes from a list that changes by itself. What SetWeight and SetMaxConns
	// have set stays over such a change.
	Discovered bool
}

// ReplaceMembers replaces the pool's settings and its members, in this order, in one step: each connection
// sees the old ones or the new ones. Members that are not named are removed, as by Remove. What SetWeight and
// SetMaxConns have set stays unless cfg or the member's Config changes it: a changed max_conns of the pool
// reaches the members that have none of their own. A queue that is longer than its new size stays until it is
// served. The pool chooses by policy, whose name is cfg.Balance; nil keeps the old one. cfg must be valid;
// its Backends are not read. ReplaceMembers panics if two backends have one name, or if one belongs to
// another pool.
func (p *Pool) ReplaceMembers(cfg Config, policy Policy, members []Member, reason string) {
	p.mu.Lock()
	if policy != nil {
		p.policy = policy
	} else {
		cfg.Balance = p.Config().Balance
	}
	old, wanted := p.Backends(), make([]*Backend, len(members))
	names := make(map[string]*Backend, len(members))
	for i, m := range members {
		if m.Backend.pool != p || m.Backend.removed.Load() && !m.Backend.returning || names[m.Backend.Name] != nil {
			panic(fmt.Sprintf("BUG: backends: backend %q cannot be a member of pool %q", m.Backend.Name, p.Name))
		}
		wanted[i], names[m.Backend.Name] = m.Backend, m.Backend
		if p.byName[m.Backend.Name] != m.Backend {
			m.Backend.presetConfig(m.Config)
		}
	}
	if policy != nil || !slices.Equal(old, wanted) {
		p.setMembersLocked(wanted)
	}
	for _, b := range old {
		if names[b.Name] != b {
			p.leaveLocked(b, reason)
		}
	}
	p.configureLocked(cfg, reason)
	now := time.Now()
	for _, m := range members {
		if p.byName[m.Backend.Name] == m.Backend {
			p.configureMemberLocked(m, reason)
		} else {
			p.joinLocked(m.Backend, reason, now)
		}
	}
	p.settleAndUnlock()
}

// configureLocked replaces the pool's settings.
func (p *Pool) configureLocked(cfg Config, reason string) {
	old := p.Config()
	p.config.Store(&cfg)
	for _, b := range p.Backends() {
		b.setOwner(p.ownerOf(b.config.Load()))
	}
	if cfg.MaxConns == old.MaxConns {
		return
	}
	for _, b := range p.Backends() {
		if own := b.config.Load(); own.MaxConns == 0 && p.byName[b.Name] == b { // some have not joined yet
			p.setMaxConnsLocked(b, p.limit(own), reason)
		}
	}
}

// configureMemberLocked changes a member's configuration. What it does not change stays as it was set at run
// time.
func (p *Pool) configureMemberLocked(m Member, reason string) {
	b, cfg := m.Backend, m.Config
	old := b.config.Swap(&cfg)
	b.setOwner(p.ownerOf(&cfg))
	if cfg.Weight != old.Weight && !(m.Discovered && b.Weight() != old.Weight) {
		p.setWeightLocked(b, cfg.Weight, reason)
	}
	if cfg.MaxConns != old.MaxConns {
		p.setMaxConnsLocked(b, p.limit(&cfg), reason)
	}
	if cfg.Backup != old.Backup {
		b.backup.Store(cfg.Backup)
		p.noteLocked(b, "backup", strconv.FormatBool(old.Backup), strconv.FormatBool(cfg.Backup), reason, 0)
	}
}

// Add makes a backend from cfg and puts it into the pool with that health. It resolves an address that is no
// host name; the caller runs Resolve for the others.
func (p *Pool) Add(cfg BackendConfig, health HealthState) (*Backend, error) {
	b, err := p.NewBackend(cfg, health)
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	if p.byName[b.Name] != nil {
		p.mu.Unlock()
		return nil, fmt.Errorf("cannot add backend %q to pool %q: the name is taken", b.Name, p.Name)
	}
	p.setMembersLocked(append(slices.Clone(p.Backends()), b))
	p.joinLocked(b, "", time.Now())
	p.settleAndUnlock()
	return b, nil
}

// NewBackend makes a backend from cfg that is not a member yet: ReplaceMembers makes it one. It resolves an
// address that is no host name; the caller runs Resolve for the others. If a backend of that name and address
// was removed and still has connections, NewBackend returns that one, so that they count for its limit and
// its load.
func (p *Pool) NewBackend(cfg BackendConfig, health HealthState) (*Backend, error) {
	addr, err := ParseAddress(cfg.Address)
	if err != nil {
		return nil, err
	}
	b := p.departedBackend(identity{cfg.EffectiveName(), addr})
	if b == nil {
		b = &Backend{ID: nextID.Add(1), Name: cfg.EffectiveName(), Target: Target{Address: addr, self: p.Self}, pool: p}
	}
	b.presetConfig(cfg)
	b.health.Store(uint32(health))
	b.since.Store(time.Now().UnixNano())
	if addr.IsUnix() || isIP(addr.Host) {
		if err := b.Resolve(context.Background()); err != nil {
			return nil, err
		}
	}
	return b, nil
}

// identity is what makes a backend the same one when it is removed and added again.
type identity struct {
	name    string
	address Address
}

// departedBackend returns the backend of that identity that was removed and still has connections, or nil. It
// keeps its connections and counters, and is as new otherwise.
func (p *Pool) departedBackend(id identity) *Backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	b := p.departed[id]
	if b == nil {
		return nil
	}
	b.returning, b.silent = true, false
	b.admin.Store(uint32(AdminReady))
	b.reason.Store(nil)
	b.failStreak.Store(0)
	b.lastResort.Store(false)
	b.rampFrom = time.Time{}
	return b
}

// presetConfig configures b, which is not a member yet.
func (b *Backend) presetConfig(cfg BackendConfig) {
	b.config.Store(&cfg)
	b.setOwner(b.pool.ownerOf(&cfg))
	b.weight.Store(int32(cfg.Weight))
	b.effective.Store(b.fullWeight())
	b.backup.Store(cfg.Backup)
}

// joinLocked does what is left to do for a backend that setMembersLocked has made a member.
func (p *Pool) joinLocked(b *Backend, reason string, now time.Time) {
	p.byName[b.Name] = b
	if b.returning {
		b.returning = false
		b.removed.Store(false)
		delete(p.departed, identity{b.Name, b.Address})
	}
	b.maxConns.Store(p.limit(b.config.Load()))
	b.original = !p.served
	if b.Health() == HealthUp {
		b.failStreak.Store(0)
		p.riseLocked(b, now)
	}
	p.policy.Update(b)
	p.noteLocked(b, "added", "", b.Address.String(), reason, 0)
}

// Remove takes b out of the pool: it gets no new connection, and keeps its slots until each is released. The
// error is ErrUnknown if b is not a member.
func (p *Pool) Remove(b *Backend, reason string) error {
	p.mu.Lock()
	if err := p.memberLocked("remove", b); err != nil {
		p.mu.Unlock()
		return err
	}
	p.setMembersLocked(slices.DeleteFunc(slices.Clone(p.Backends()), func(x *Backend) bool { return x == b }))
	p.leaveLocked(b, reason)
	p.settleAndUnlock()
	return nil
}

// leaveLocked does what is left to do for a backend that setMembersLocked has taken out.
func (p *Pool) leaveLocked(b *Backend, reason string) {
	b.removed.Store(true)
	b.offered.Store(false)
	delete(p.byName, b.Name)
	p.departLocked(b)
	p.noteLocked(b, "removed", b.Address.String(), "", reason, 0)
}

// departLocked keeps b, which was removed, for NewBackend as long as it has connections.
func (p *Pool) departLocked(b *Backend) {
	id := identity{b.Name, b.Address}
	if b.Active() > 0 {
		p.departed[id] = b
	} else if p.departed[id] == b {
		delete(p.departed, id)
	}
	if b.Active() == 0 {
		p.rememberLocked(b)
	}
}

// memberLocked returns an error unless b is a member.
func (p *Pool) memberLocked(verb string, b *Backend) error {
	if p.byName[b.Name] != b {
		return fmt.Errorf("cannot %s backend %q of pool %q: %w", verb, b.Name, p.Name, ErrUnknown)
	}
	return nil
}

// setMembersLocked publishes the new members.
func (p *Pool) setMembersLocked(members []*Backend) {
	for i, b := range members {
		b.index = i
	}
	p.members.Store(&members)
	p.policy.Reset(members)
}

// limit returns the max_conns of a backend with that configuration.
func (p *Pool) limit(cfg *BackendConfig) int32 {
	if cfg.MaxConns != 0 {
		return int32(cfg.MaxConns)
	}
	return int32(p.Config().MaxConns)
}

// ownerOf returns who may own the socket of a backend with that configuration, or "".
func (p *Pool) ownerOf(cfg *BackendConfig) string {
	if cfg.Owner != "" {
		return cfg.Owner
	}
	return p.Config().Owner
}
