package backends

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// ErrUnknown: the pool has no such backend.
var ErrUnknown = errors.New("backends: no such backend")

// Pool is a named set of backends with one balancing policy. All methods are safe for concurrent use.
type Pool struct {
	// Name is the pool's name in the config.
	Name string
	// OnChange, if set, is told of every change of a backend, one at a time and in the order of the changes; set it
	// before the first connection. It runs with no lock held on a goroutine that makes changes, which tells those of
	// the others too: a method may return before its change was told. It must not block, and may call the pool.
	OnChange func(Change)
	// Self are lb's own addresses, to which no backend may lead; nil for none. Set it before the first backend.
	Self *Self
	// Queue counts what became of the connections that had to wait.
	Queue QueueCounters

	config  atomic.Pointer[Config]     // written under mu
	members atomic.Pointer[[]*Backend] // written under mu, never changed in place
	waiting atomic.Int64               // length of the queue; written under mu

	mu     sync.Mutex
	policy Policy
	byName map[string]*Backend
	// departed are the backends that were removed and still have connections.
	departed map[identity]*Backend
	queue    queue
	served   bool     // somebody has asked for a backend
	ramp     ramp     // the clock of slow starts
	changes  []Change // not told yet
	telling  bool     // a goroutine tells changes
}

// nextID numbers backends over all pools.
var nextID atomic.Uint32

// NewPool makes an empty pool that chooses by policy. cfg.Backends is not read: see Add.
func NewPool(name string, cfg Config, policy Policy) *Pool {
	p := &Pool{Name: name, policy: policy, byName: map[string]*Backend{}, departed: map[identity]*Backend{}}
	p.config.Store(&cfg)
	p.members.Store(&[]*Backend{})
	policy.Reset(nil)
	return p
}

// Config is the pool's current configuration. The caller must not change it.
func (p *Pool) Config() *Config { return p.config.Load() }

// Backends are the members at this moment, in the order they were added. The caller must not change the slice.
func (p *Pool) Backends() []*Backend { return *p.members.Load() }

// Get finds a member by name; nil when there is none.
func (p *Pool) Get(name string) *Backend {
	for _, b := range p.Backends() {
		if b.Name == name {
			return b
		}
	}
	return nil
}

// Selectable counts the members that may take new connections, and all of them.
func (p *Pool) Selectable() (n, total int) {
	members := p.Backends()
	for _, b := range members {
		if b.Selectable() {
			n++
		}
	}
	return n, len(members)
}

// Active is the sum of the members' active counts.
func (p *Pool) Active() int64 {
	var n int64
	for _, b := range p.Backends() {
		n += b.Active()
	}
	return n
}

// Add makes a backend from cfg and puts it into the pool with the given health. An address that is no host name is
// resolved at once; the caller runs Resolve for the others.
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

// NewBackend makes a backend from cfg that is no member yet: Arrange makes it one. An address that is no host name is
// resolved at once; the caller runs Resolve for the others. If a backend of that name and address was removed and still
// has connections, NewBackend returns that one, so that they count for its limit and its load.
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

// departedBackend returns the backend of that identity that was removed and still has connections, as new but for those
// and for what it has counted, or nil.
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

// presetConfig gives a configuration to b, which is no member yet.
func (b *Backend) presetConfig(cfg BackendConfig) {
	b.config.Store(&cfg)
	b.setOwner(b.pool.ownerOf(&cfg))
	b.weight.Store(int32(cfg.Weight))
	b.effective.Store(b.fullWeight())
	b.backup.Store(cfg.Backup)
}

// joinLocked makes b, whom setMembersLocked has put among the members, one of them in all else.
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

// Remove takes b out of the pool: it gets nothing new, and keeps its slots until each is released. The error is
// ErrUnknown when it is no member.
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

// leaveLocked makes b, whom setMembersLocked has taken out, a member no more in all else.
func (p *Pool) leaveLocked(b *Backend, reason string) {
	b.removed.Store(true)
	b.offered.Store(false)
	delete(p.byName, b.Name)
	p.departLocked(b)
	p.noteLocked(b, "removed", b.Address.String(), "", reason, 0)
}

// departLocked keeps b, which is no member any more, for NewBackend as long as it has connections.
func (p *Pool) departLocked(b *Backend) {
	id := identity{b.Name, b.Address}
	if b.Active() > 0 {
		p.departed[id] = b
	} else if p.departed[id] == b {
		delete(p.departed, id)
	}
}

// memberLocked is an error when b is no member.
func (p *Pool) memberLocked(verb string, b *Backend) error {
	if p.byName[b.Name] != b {
		return fmt.Errorf("cannot %s backend %q of pool %q: %w", verb, b.Name, p.Name, ErrUnknown)
	}
	return nil
}

// setMembersLocked publishes a new membership.
func (p *Pool) setMembersLocked(members []*Backend) {
	for i, b := range members {
		b.index = i
	}
	p.members.Store(&members)
	p.policy.Reset(members)
}

// limit is the max_conns of a backend with that configuration.
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

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// SetPolicy has the pool choose by another policy from now on, which knows nothing but the backends as they are. The
// name is what Config has as Balance.
func (p *Pool) SetPolicy(name string, policy Policy) {
	p.mu.Lock()
	defer p.mu.Unlock()
	cfg := *p.Config()
	cfg.Balance = name
	p.config.Store(&cfg)
	p.policy = policy
	policy.Reset(p.Backends())
}

// Configure changes the pool's settings while it runs. cfg is valid; its Backends are not read, and Balance is not
// either: see SetPolicy. A changed max_conns reaches the backends that have none of their own, and replaces what
// SetMaxConns had set. A queue that is longer than its new size stays until it has been served.
func (p *Pool) Configure(cfg Config, reason string) {
	p.mu.Lock()
	cfg.Balance = p.Config().Balance
	p.configureLocked(cfg, reason)
	p.settleAndUnlock()
}

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
		if own := b.config.Load(); own.MaxConns == 0 && p.byName[b.Name] == b { // Arrange has not let all join yet
			p.setMaxConnsLocked(b, p.limit(own), reason)
		}
	}
}

// ConfigureBackend gives b a changed configuration while it runs. What cfg has as before stays as SetWeight and
// SetMaxConns have set it. Errors are ErrUnknown, and one that says that name and address cannot change.
func (p *Pool) ConfigureBackend(b *Backend, cfg BackendConfig, reason string) error {
	if addr, err := ParseAddress(cfg.Address); err != nil {
		return err
	} else if addr != b.Address || cfg.EffectiveName() != b.Name {
		return fmt.Errorf("cannot make backend %q at %v of backend %q at %v: remove the one and add the other", cfg.EffectiveName(), addr, b.Name, b.Address)
	}
	if err := CheckWeight(cfg.Weight); err != nil {
		return err
	}
	p.mu.Lock()
	if err := p.memberLocked("configure", b); err != nil {
		p.mu.Unlock()
		return err
	}
	p.configureBackendLocked(b, cfg, reason)
	p.settleAndUnlock()
	return nil
}

func (p *Pool) configureBackendLocked(b *Backend, cfg BackendConfig, reason string) {
	old := b.config.Swap(&cfg)
	b.setOwner(p.ownerOf(&cfg))
	if cfg.Weight != old.Weight {
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

// SetHealth changes b's health state; no change if it has that state already, or is no member any more. Reason is what
// the event says.
func (p *Pool) SetHealth(b *Backend, to HealthState, reason string) (changed bool) {
	return p.setHealth(b, to, false, reason)
}

// SetSilent takes b down because its heartbeat has stopped, and nothing else is known against it. It is a last resort
// then: the pool offers it while nobody is selectable, and tells when that begins and ends. SetHealth ends it.
func (p *Pool) SetSilent(b *Backend, reason string) (changed bool) {
	return p.setHealth(b, HealthDown, true, reason)
}

func (p *Pool) setHealth(b *Backend, to HealthState, silent bool, reason string) (changed bool) {
	p.mu.Lock()
	from := b.Health()
	if from == to && b.silent == silent || b.removed.Load() {
		p.mu.Unlock()
		return false
	}
	b.silent = silent
	if from == to {
		p.settleAndUnlock()
		return false
	}
	now := time.Now()
	b.health.Store(uint32(to))
	held := b.changedLocked(now, reason)
	if to == HealthUp {
		p.riseLocked(b, now)
		p.queue.forgive(b)
	} else {
		p.endRampLocked(b)
	}
	p.noteLocked(b, "health", from.String(), to.String(), reason, held)
	p.settleAndUnlock()
	return true
}

// ReportProbe tells OnChange that probes of b cannot be made, as lb itself is out of something, or can be made again. The
// states stay as they are.
func (p *Pool) ReportProbe(b *Backend, possible bool, reason string) {
	words := [2]string{"impossible", "possible"}
	from, to := words[0], words[1]
	if !possible {
		from, to = to, from
	}
	p.mu.Lock()
	p.noteLocked(b, "probe", from, to, reason, 0)
	p.mu.Unlock()
	p.tell()
}

// SetAdmin changes b's admin state; no change if it has that state already, or is no member any more.
func (p *Pool) SetAdmin(b *Backend, to AdminState, reason string) (changed bool) {
	p.mu.Lock()
	from := b.Admin()
	if from == to || b.removed.Load() {
		p.mu.Unlock()
		return false
	}
	now := time.Now()
	b.admin.Store(uint32(to))
	held := b.changedLocked(now, reason)
	if to == AdminReady {
		p.queue.forgive(b)
	}
	if from == AdminMaint && b.Health() == HealthUp { // it was off, and who knows what was done to it
		p.riseLocked(b, now)
	}
	p.noteLocked(b, "admin", from.String(), to.String(), reason, held)
	p.settleAndUnlock()
	return true
}

// SetWeight changes b's weight. Errors are ErrRange, and ErrUnknown when b is no member any more.
func (p *Pool) SetWeight(b *Backend, weight int, reason string) error {
	if err := CheckWeight(weight); err != nil {
		return err
	}
	p.mu.Lock()
	if err := p.memberLocked("set weight of", b); err != nil {
		p.mu.Unlock()
		return err
	}
	p.setWeightLocked(b, weight, reason)
	p.settleAndUnlock()
	return nil
}

func (p *Pool) setWeightLocked(b *Backend, weight int, reason string) {
	from := b.Weight()
	if from == weight {
		return
	}
	b.weight.Store(int32(weight))
	p.weighLocked(b, time.Now())
	p.noteLocked(b, "weight", strconv.Itoa(from), strconv.Itoa(weight), reason, 0)
}

// SetMaxConns changes how many connections b may hold at once; 0 is no limit. Those above a lower limit stay. Errors are
// ErrRange, and ErrUnknown when b is no member any more.
func (p *Pool) SetMaxConns(b *Backend, n int, reason string) error {
	if err := CheckMaxConns(n, "for no limit"); err != nil {
		return err
	}
	p.mu.Lock()
	if err := p.memberLocked("set max_conns of", b); err != nil {
		p.mu.Unlock()
		return err
	}
	p.setMaxConnsLocked(b, int32(n), reason)
	p.settleAndUnlock()
	return nil
}

func (p *Pool) setMaxConnsLocked(b *Backend, n int32, reason string) {
	from := b.maxConns.Swap(n)
	if from == n {
		return
	}
	p.policy.Update(b)
	p.noteLocked(b, "max_conns", strconv.Itoa(int(from)), strconv.Itoa(int(n)), reason, 0)
}

// changedLocked notes when and why a state changed, and gives how long the one before had stood.
func (b *Backend) changedLocked(now time.Time, reason string) time.Duration {
	held := now.Sub(b.Since())
	b.since.Store(now.UnixNano())
	b.reason.Store(&reason)
	return held
}

// settleAndUnlock ends a critical section that changed a backend or the membership: it works out whom the pool offers
// now, hands free slots to those who wait, unlocks, and tells.
func (p *Pool) settleAndUnlock() {
	p.rampLocked(time.Now())
	p.refreshLocked()
	var granted grants
	if p.queue.head != nil {
		p.grantAllLocked(&granted)
	}
	p.mu.Unlock()
	granted.call()
	p.tell()
}

// refreshLocked works out which members are offered, and tells the policy where that changed. Backups have no policy
// of their own: they are offered or not, and a policy looks at nobody who is not.
func (p *Pool) refreshLocked() {
	members := p.Backends()
	var primary, backup bool
	for _, b := range members {
		if b.Selectable() {
			if b.backup.Load() {
				backup = true
			} else {
				primary = true
			}
		}
	}
	anyHealth := !primary && !backup && p.Config().WhenAllDown == whenAny
	nobody := !primary && !backup
	for _, b := range members {
		offered := b.Selectable() && (!primary || !b.backup.Load())
		if anyHealth || nobody && b.silent {
			offered = b.Admin() == AdminReady && b.weight.Load() > 0
		}
		p.resortLocked(b, nobody && b.silent && offered)
		if b.offered.Swap(offered) != offered {
			p.policy.Update(b)
		}
	}
}

// resortLocked notes when b begins and ceases to be a last resort.
func (p *Pool) resortLocked(b *Backend, is bool) {
	if b.lastResort.Swap(is) == is {
		return
	}
	reason := "nobody of the pool is selectable"
	if !is {
		reason = "another one of the pool is selectable, or it is known to be down"
	}
	p.noteLocked(b, "last_resort", strconv.FormatBool(!is), strconv.FormatBool(is), reason, 0)
}

// noteLocked adds a change to those that tell will tell.
func (p *Pool) noteLocked(b *Backend, field, from, to, reason string, held time.Duration) {
	if p.OnChange == nil {
		return
	}
	left, total := p.Selectable()
	p.changes = append(p.changes, Change{
		Time: time.Now(), Pool: p.Name, Backend: b.Name,
		Field: field, From: from, To: to, Reason: reason, Held: held,
		Left: left, Total: total,
	})
}

// tell tells what has been noted, in order. One goroutine at a time does it for all, so that the last that OnChange
// hears of a backend is how it is.
func (p *Pool) tell() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.telling {
		return
	}
	p.telling = true
	for len(p.changes) > 0 {
		batch := p.changes
		p.changes = nil
		p.mu.Unlock()
		for _, c := range batch {
			p.OnChange(c)
		}
		p.mu.Lock()
	}
	p.telling = false
}
