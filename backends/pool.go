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

var (
	// ErrNoneUp: no backend of the pool is selectable.
	ErrNoneUp = errors.New("backends: no backend is selectable")
	// ErrSaturated: backends are selectable, but each is at its max_conns or was tried by this connection already.
	ErrSaturated = errors.New("backends: every selectable backend is full or was tried")
	// ErrUnknown: the pool has no backend of that name.
	ErrUnknown = errors.New("backends: no such backend")
)

// Request is what a policy may know of the connection that wants a backend.
type Request struct {
	// Client is the client's address; the zero value on a Unix listener.
	Client netip.Addr
	// Tried are the backends that this connection could not reach. A policy never picks one of them.
	Tried []*Backend
}

// Policy orders a pool's backends. The pool calls it with its mutex held: no method may block, call the pool, or be
// called from elsewhere. Implementations are in package balancer.
type Policy interface {
	// Pick gives a backend that is Eligible and not in req.Tried, or nil when there is none. It does not acquire.
	Pick(req *Request) *Backend
	// Update tells that b's active count, weight, limit or state changed.
	Update(b *Backend)
	// Reset gives the members anew, with each one's Index set; the policy may keep the slice and must not change it.
	Reset(members []*Backend)
}

// Pool is a named set of backends with one balancing policy. All methods are safe for concurrent use.
type Pool struct {
	// Name is the pool's name in the config.
	Name string
	// OnChange, if set, is told of every change of a backend; set it before the first connection. It runs on the
	// goroutine that made the change, with no lock held, and must not block.
	OnChange func(Change)

	config  atomic.Pointer[Config]
	members atomic.Pointer[[]*Backend] // written under mu, never changed in place

	mu     sync.Mutex
	policy Policy
	byName map[string]*Backend
}

// nextID numbers backends over all pools.
var nextID atomic.Uint32

// NewPool makes an empty pool that chooses by policy. cfg.Backends is not read: see Add.
func NewPool(name string, cfg Config, policy Policy) *Pool {
	p := &Pool{Name: name, policy: policy, byName: map[string]*Backend{}}
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
	addr, err := ParseAddress(cfg.Address)
	if err != nil {
		return nil, err
	}
	b := &Backend{ID: nextID.Add(1), Name: cfg.EffectiveName(), Address: addr, pool: p}
	b.weight.Store(int32(cfg.Weight))
	b.maxConns.Store(int32(cfg.MaxConns))
	if cfg.MaxConns == 0 {
		b.maxConns.Store(int32(p.Config().MaxConns))
	}
	b.health.Store(uint32(health))
	b.since.Store(time.Now().UnixNano())
	if addr.IsUnix() || isIP(addr.Host) {
		if err := b.Resolve(context.Background()); err != nil {
			return nil, err
		}
	}

	p.mu.Lock()
	if p.byName[b.Name] != nil {
		p.mu.Unlock()
		return nil, fmt.Errorf("cannot add backend %q to pool %q: the name is taken", b.Name, p.Name)
	}
	p.byName[b.Name] = b
	p.setMembersLocked(append(slices.Clone(p.Backends()), b))
	p.mu.Unlock()
	return b, nil
}

// setMembersLocked publishes a new membership.
func (p *Pool) setMembersLocked(members []*Backend) {
	for i, b := range members {
		b.index = i
	}
	p.members.Store(&members)
	p.policy.Reset(members)
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// Acquire chooses a backend for a new connection and takes one of its slots. The caller owes exactly one Release.
// Errors are ErrNoneUp and ErrSaturated. It allocates nothing (BenchmarkAcquire in package balancer).
func (p *Pool) Acquire(req *Request) (*Backend, error) {
	p.mu.Lock()
	b := p.policy.Pick(req)
	if b == nil {
		p.mu.Unlock()
		if n, _ := p.Selectable(); n == 0 {
			return nil, ErrNoneUp
		}
		return nil, ErrSaturated
	}
	b.active.Add(1)
	p.policy.Update(b)
	p.mu.Unlock()
	return b, nil
}

// Release gives back a slot of b that Acquire took.
func (p *Pool) Release(b *Backend) {
	p.mu.Lock()
	if b.active.Add(-1) < 0 {
		p.mu.Unlock()
		panic("BUG: backends: slot released twice")
	}
	if !b.removed.Load() {
		p.policy.Update(b)
	}
	p.mu.Unlock()
}

// SetHealth changes b's health state; no change if it has that state already. Reason is what the event says.
func (p *Pool) SetHealth(b *Backend, to HealthState, reason string) (changed bool) {
	p.mu.Lock()
	from := b.Health()
	if from == to || b.removed.Load() {
		p.mu.Unlock()
		return false
	}
	b.health.Store(uint32(to))
	held := b.changedLocked(reason)
	p.policy.Update(b)
	p.mu.Unlock()
	p.tell(b, "health", from.String(), to.String(), reason, held)
	return true
}

// SetAdmin changes b's admin state; no change if it has that state already.
func (p *Pool) SetAdmin(b *Backend, to AdminState, reason string) (changed bool) {
	p.mu.Lock()
	from := b.Admin()
	if from == to || b.removed.Load() {
		p.mu.Unlock()
		return false
	}
	b.admin.Store(uint32(to))
	held := b.changedLocked(reason)
	p.policy.Update(b)
	p.mu.Unlock()
	p.tell(b, "admin", from.String(), to.String(), reason, held)
	return true
}

// SetWeight changes b's weight, which must be within 0..MaxWeight.
func (p *Pool) SetWeight(b *Backend, weight int, reason string) error {
	if weight < 0 || weight > MaxWeight {
		return fmt.Errorf("cannot set weight of backend %q: %d is not within 0..%d", b.Name, weight, MaxWeight)
	}
	p.mu.Lock()
	from := b.Weight()
	if from == weight {
		p.mu.Unlock()
		return nil
	}
	b.weight.Store(int32(weight))
	p.policy.Update(b)
	p.mu.Unlock()
	p.tell(b, "weight", strconv.Itoa(from), strconv.Itoa(weight), reason, 0)
	return nil
}

// changedLocked notes when and why a state changed, and gives how long the one before had stood.
func (b *Backend) changedLocked(reason string) time.Duration {
	now := time.Now()
	held := now.Sub(b.Since())
	b.since.Store(now.UnixNano())
	b.reason.Store(&reason)
	return held
}

func (p *Pool) tell(b *Backend, field, from, to, reason string, held time.Duration) {
	if p.OnChange == nil {
		return
	}
	left, total := p.Selectable()
	p.OnChange(Change{
		Time: time.Now(), Pool: p.Name, Backend: b.Name,
		Field: field, From: from, To: to, Reason: reason, Held: held,
		Left: left, Total: total,
	})
}
