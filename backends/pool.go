package backends

import (
	"errors"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// ErrUnknown means that the pool has no such backend.
var ErrUnknown = errors.New("no such backend")

// Pool is a named set of backends with one balancing policy. All methods are safe for concurrent use.
type Pool struct {
	// Name is the pool's name in the config.
	Name string
	// OnChange, if set, is called for every change of a backend, one at a time and in order. Set it before
	// the first connection. It runs without a lock on a goroutine that makes changes, which emits those of
	// other goroutines too, so a method may return before its change was emitted. It must not block, and may
	// call the pool.
	OnChange func(Change)
	// Self are lb's own addresses, to which no backend may lead; nil for none. Set it before the first
	// backend.
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
	seriesOf func(backend string) string // see SetSeries; nil: each backend stands for itself
	past     map[string]*Totals          // of backends that are gone, by series
	queue    queue
	served   bool     // a connection has asked for a backend
	ramp     ramp     // the clock of slow starts
	changes  []Change // not emitted yet
	emitting bool     // a goroutine emits changes
}

// nextID numbers backends over all pools.
var nextID atomic.Uint32

// NewPool makes an empty pool that chooses by policy. It does not read cfg.Backends: see Add.
func NewPool(name string, cfg Config, policy Policy) *Pool {
	p := &Pool{Name: name, policy: policy, byName: map[string]*Backend{}, departed: map[identity]*Backend{}}
	p.config.Store(&cfg)
	p.members.Store(&[]*Backend{})
	policy.Reset(nil)
	return p
}

// Config returns the pool's current configuration. The caller must not change it.
func (p *Pool) Config() *Config { return p.config.Load() }

// Backends returns the members, in their order. The caller must not change the slice.
func (p *Pool) Backends() []*Backend { return *p.members.Load() }

// Get returns the member of that name, or nil.
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

// Active returns the sum of the members' active counts.
func (p *Pool) Active() int64 {
	var n int64
	for _, b := range p.Backends() {
		n += b.Active()
	}
	return n
}

func isIP(host string) bool {
	_, err := netip.ParseAddr(host)
	return err == nil
}

// SetHealth changes b's health state. It changes nothing if b has that state already or is not a member any
// more. The event says reason.
func (p *Pool) SetHealth(b *Backend, to HealthState, reason string) (changed bool) {
	return p.setHealth(b, to, false, reason)
}

// SetSilent takes b down because it shows no sign of life, and nothing else is known against it. It is a last
// resort then: the pool offers it while no backend is selectable, and emits when that begins and ends.
// SetHealth ends it.
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
	lasted := b.changedLocked(now, reason)
	if to == HealthUp {
		p.riseLocked(b, now)
		p.queue.forgive(b)
	} else {
		p.endRampLocked(b)
	}
	p.noteLocked(b, "health", from.String(), to.String(), reason, lasted)
	p.settleAndUnlock()
	return true
}

// ReportProbe emits that probes of b cannot be made, because lb itself is out of something, or can be made
// again. It changes no state.
func (p *Pool) ReportProbe(b *Backend, possible bool, reason string) {
	words := [2]string{"impossible", "possible"}
	from, to := words[0], words[1]
	if !possible {
		from, to = to, from
	}
	p.mu.Lock()
	p.noteLocked(b, "probe", from, to, reason, 0)
	p.mu.Unlock()
	p.emit()
}

// SetAdmin changes b's admin state. It changes nothing if b has that state already or is not a member any
// more.
func (p *Pool) SetAdmin(b *Backend, to AdminState, reason string) (changed bool) {
	p.mu.Lock()
	from := b.Admin()
	if from == to || b.removed.Load() {
		p.mu.Unlock()
		return false
	}
	now := time.Now()
	b.admin.Store(uint32(to))
	lasted := b.changedLocked(now, reason)
	if to == AdminReady {
		p.queue.forgive(b)
	}
	if from == AdminMaint && b.Health() == HealthUp { // it was off, and anything may have been done to it
		p.riseLocked(b, now)
	}
	p.noteLocked(b, "admin", from.String(), to.String(), reason, lasted)
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

// SetMaxConns changes how many connections b may hold at once; 0 is no limit. Those above a lower limit stay.
// Errors are ErrRange, and ErrUnknown when b is no member any more.
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

// changedLocked notes when and why a state changed. It returns how long the state before had lasted.
func (b *Backend) changedLocked(now time.Time, reason string) time.Duration {
	lasted := now.Sub(b.Since())
	b.since.Store(now.UnixNano())
	b.reason.Store(&reason)
	return lasted
}

// settleAndUnlock ends a critical section that changed a backend or the members: it works out which backends
// the pool offers now, grants free slots to waiting connections, unlocks, and emits the changes.
func (p *Pool) settleAndUnlock() {
	p.rampLocked(time.Now())
	p.refreshLocked()
	var granted grants
	if p.queue.head != nil {
		p.grantAllLocked(&granted)
	}
	p.mu.Unlock()
	granted.call()
	p.emit()
}

// refreshLocked works out which members are offered, and updates the policy where that changed. A backup is
// offered or not, like the others; a policy never picks a backend that is not offered.
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

// resortLocked notes when b begins or ceases to be a last resort.
func (p *Pool) resortLocked(b *Backend, is bool) {
	if b.lastResort.Swap(is) == is {
		return
	}
	reason := "no backend of the pool is selectable"
	if !is {
		reason = "another backend of the pool is selectable, or it is known to be down"
	}
	p.noteLocked(b, "last_resort", strconv.FormatBool(!is), strconv.FormatBool(is), reason, 0)
}
