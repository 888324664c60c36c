package backends

import (
	"context"
	"fmt"
	"sync/atomic"
	"time"
)

// WeightScale is the factor from a weight to an effective weight, so that a slow start can use a part of a
// weight of 1.
const WeightScale = 1000

// Backend is one place to send connections. It is made by Pool.Add and belongs to that pool for life.
//
// Its fields are atomic: any goroutine may read them, only Pool methods (under the pool's mutex) write the
// ones that decide who gets a connection.
type Backend struct {
	// ID is unique in the process and never used again.
	ID   uint32
	Name string
	// Target is where its connections go; its Address never changes.
	Target
	// Counters count what this backend has carried since it was added.
	Counters Counters
	// ConnectErrors counts failed connects by reason.
	ConnectErrors [NumConnectErrors]atomic.Uint64
	// ConnectTime is from the choice of the backend to the established connection.
	ConnectTime Histogram
	// FirstByteTime is from the client's first byte, or from the established connection if the backend speaks
	// first, to the backend's first byte.
	FirstByteTime Histogram
	// SessionTime is from accept to the end of the session.
	SessionTime Histogram

	// Channel is how the front gives connections to the backend where it does not connect to Address; nil as
	// a rule. The front sets it before the backend is selectable, and the pool does not read it.
	Channel any

	pool *Pool

	// What a pick and a release read stands together.
	active atomic.Int64
	// of active, those that the backend has not taken yet; counted where there is a window
	untaken    atomic.Int64
	effective  atomic.Int64 // what EffectiveWeight returns
	weight     atomic.Int32
	maxConns   atomic.Int32
	window     atomic.Int32 // see SetWindow; 0: none
	admin      atomic.Uint32
	health     atomic.Uint32
	backup     atomic.Bool
	removed    atomic.Bool
	lastResort atomic.Bool  // what LastResort returns; set by Pool.refreshLocked alone
	offered    atomic.Bool  // what Offered returns; set by Pool.refreshLocked alone
	since      atomic.Int64 // Unix ns of the last change of admin or health
	reason     atomic.Pointer[string]
	config     atomic.Pointer[BackendConfig]

	// failStreak counts connect failures since the last established connection.
	failStreak atomic.Uint32

	// Guarded by the pool's mutex.
	remembered bool      // its totals are in Pool.past
	silent     bool      // down, and only because it shows no sign of life
	returning  bool      // was removed, and NewBackend has returned it again
	index      int       // place in the pool's members
	original   bool      // was there before the pool's first connection
	rose       bool      // has been up
	upSince    time.Time // when it last came up; zero: since ever, for an original one
	rampFrom   time.Time // when its slow start began; zero: it is not starting slowly
}

// Pool returns the pool that the backend belongs to.
func (b *Backend) Pool() *Pool { return b.pool }

// Index returns the backend's place among the members that Policy.Reset was given. For policies, under the
// pool's mutex.
func (b *Backend) Index() int { return b.index }

// Active returns how many slots are held: sessions, and connects under way.
func (b *Backend) Active() int64 { return b.active.Load() }

// Weight returns the current weight, 0..1000.
func (b *Backend) Weight() int { return int(b.weight.Load()) }

// ConfiguredWeight returns the weight of the configuration, which Pool.SetWeight does not change.
func (b *Backend) ConfiguredWeight() int { return b.config.Load().Weight }

// EffectiveWeight returns what policies compare by: Weight × WeightScale, less while the backend starts
// slowly, and 0 only if Weight is.
func (b *Backend) EffectiveWeight() int64 { return b.effective.Load() }

// Backup reports whether the backend is only for when no other of its pool is selectable.
func (b *Backend) Backup() bool { return b.backup.Load() }

// Removed reports whether the backend was removed from its pool. It keeps its connections until they end.
func (b *Backend) Removed() bool { return b.removed.Load() }

// MaxConns returns the limit on Active; 0 is none.
func (b *Backend) MaxConns() int { return int(b.maxConns.Load()) }

// Admin returns what the operator wants.
func (b *Backend) Admin() AdminState { return AdminState(b.admin.Load()) }

// Health returns what lb sees.
func (b *Backend) Health() HealthState { return HealthState(b.health.Load()) }

// Since returns when the admin or the health state last changed.
func (b *Backend) Since() time.Time { return time.Unix(0, b.since.Load()) }

// Reason returns why the last change of state happened; empty before the first.
func (b *Backend) Reason() string {
	if r := b.reason.Load(); r != nil {
		return *r
	}
	return ""
}

// Selectable reports whether the backend may be given new connections: the operator wants it, it is up, it
// has weight. Whether the pool offers it, and whether it has a free slot, are questions of their own: see
// Offered and Eligible.
func (b *Backend) Selectable() bool {
	return b.Admin() == AdminReady && b.Health() == HealthUp && b.weight.Load() > 0 && !b.removed.Load()
}

// Offered reports whether the pool offers the backend to new connections at this moment: it is selectable,
// and no backup as long as another is. If no backend is selectable, those are offered that show no sign of
// life (Pool.SetSilent). With when_all_down = "any", and no backend selectable, each one is offered that the
// operator wants and that has weight.
func (b *Backend) Offered() bool { return b.offered.Load() }

// LastResort reports whether the pool offers the backend, which shows no sign of life, because no backend is
// selectable.
func (b *Backend) LastResort() bool { return b.lastResort.Load() }

// Eligible reports whether the backend is offered and below its max_conns.
func (b *Backend) Eligible() bool { return b.offered.Load() && b.hasRoom() }

func (b *Backend) hasRoom() bool {
	limit := b.maxConns.Load()
	return (limit == 0 || b.active.Load() < int64(limit)) && !b.windowFull()
}

// TargetAt returns another place where the backend is to be looked at, which is trusted as the backend is. A
// host name is looked up.
func (b *Backend) TargetAt(ctx context.Context, address Address) (*Target, error) {
	sa, err := address.Resolve(ctx)
	if err != nil {
		return nil, err
	}
	t := &Target{Address: address, self: b.self}
	t.sockaddr.Store(sa)
	t.owner.Store(b.owner.Load())
	return t, nil
}

// Resolve looks the address up and stores what Sockaddr returns. A failure keeps the last answer.
func (b *Backend) Resolve(ctx context.Context) error {
	sa, err := b.Address.Resolve(ctx)
	if err != nil {
		return fmt.Errorf("cannot resolve backend %q of pool %q: %w", b.Name, b.pool.Name, err)
	}
	b.SetSockaddr(sa)
	return nil
}

// SetSockaddr stores what Sockaddr returns: what b.Address was resolved to.
func (b *Backend) SetSockaddr(sa *RawSockaddr) { b.sockaddr.Store(sa) }

// Connected notes that a connection was established d after the backend was chosen.
func (b *Backend) Connected(d time.Duration) {
	if b.failStreak.Load() != 0 {
		b.failStreak.Store(0)
	}
	b.Counters.Connections.Add(1)
	b.ConnectTime.Observe(d)
}

// ConnectFailed counts a failed connect. It returns the number in a row since the last success. A full
// backlog is counted but is no failure: it says that the backend is busy, not that it is gone.
func (b *Backend) ConnectFailed(why ConnectError) (streak uint32) {
	b.ConnectErrors[why].Add(1)
	if why == ConnectSaturated || why == ConnectResource {
		return b.failStreak.Load()
	}
	return b.failStreak.Add(1)
}
