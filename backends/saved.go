package backends

import (
	"math"
	"net/netip"
	"slices"
	"time"
)

// SavedPool is a pool for another process that goes on with it. It is plain data that survives JSON: a field
// that is missing is zero, an unknown one is ignored. Connections are not in it; see Retake and Requeue.
type SavedPool struct {
	Name   string
	Config Config
	Served bool // a connection has asked for a backend
	Queue  SavedQueue
	// Past is what backends have carried that are gone, by series.
	Past map[string]*Totals `json:",omitempty"`
	// Backends holds the members in their order, and then those that were removed and still have connections.
	Backends []SavedBackend
}

// SavedQueue is QueueCounters at one moment.
type SavedQueue struct {
	Queued, Rejected, Timeouts uint64
	Wait                       HistogramSnapshot
}

// SavedBackend is a backend for another process.
type SavedBackend struct {
	Name, Address string
	Config        BackendConfig
	Resolved      netip.AddrPort // of a host name; the zero value while unknown
	Removed       bool

	Weight, MaxConns int
	Admin            AdminState
	Health           HealthState
	Silent           bool // down, and only because it shows no sign of life
	Since            time.Time
	Reason           string
	FailStreak       uint32
	Original, Rose   bool
	UpSince          time.Time // zero: since ever
	RampFrom         time.Time // zero: it is not starting slowly

	Connections, BytesIn, BytesOut uint64
	ConnectErrors                  []uint64 // by ConnectError
	ConnectTime, SessionTime       HistogramSnapshot
	FirstByteTime                  HistogramSnapshot
}

// Save returns the pool, its members, and the backends in removed, which are not members any more.
func (p *Pool) Save(removed []*Backend) SavedPool {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := SavedPool{
		Name: p.Name, Config: *p.Config(), Served: p.served, Past: clonePast(p.past),
		Queue: SavedQueue{
			Queued: p.Queue.Queued.Load(), Rejected: p.Queue.Rejected.Load(), Timeouts: p.Queue.Timeouts.Load(),
			Wait: p.Queue.Wait.Snapshot(),
		},
	}
	for _, b := range p.Backends() {
		s.Backends = append(s.Backends, b.saveLocked())
	}
	for _, b := range removed {
		s.Backends = append(s.Backends, b.saveLocked())
	}
	return s
}

func (b *Backend) saveLocked() SavedBackend {
	s := SavedBackend{
		Name: b.Name, Address: b.Address.String(), Config: *b.config.Load(), Removed: b.removed.Load(),
		Weight: b.Weight(), MaxConns: b.MaxConns(), Admin: b.Admin(), Health: b.Health(), Silent: b.silent,
		Since: b.Since(), Reason: b.Reason(), FailStreak: b.failStreak.Load(),
		// The monotonic clock means nothing to another process.
		Original: b.original, Rose: b.rose, UpSince: b.upSince.Round(0), RampFrom: b.rampFrom.Round(0),
		Connections: b.Counters.Connections.Load(), BytesIn: b.Counters.BytesIn.Load(), BytesOut: b.Counters.BytesOut.Load(),
		ConnectTime: b.ConnectTime.Snapshot(), SessionTime: b.SessionTime.Snapshot(),
		FirstByteTime: b.FirstByteTime.Snapshot(),
	}
	for i := range b.ConnectErrors {
		s.ConnectErrors = append(s.ConnectErrors, b.ConnectErrors[i].Load())
	}
	if sa := b.Sockaddr(); sa != nil && b.Address.IsHostName() {
		s.Resolved = sa.AddrPort()
	}
	return s
}

// Restore makes the pool as another one was, as far as its members are the same. It returns a backend for
// each of s.Backends, in that order. For one that was removed, or that is not a member here, it makes a
// removed backend, for the connections that it still has. It does not call OnChange. The error is that of an
// address that cannot be parsed; then nothing has changed.
func (p *Pool) Restore(s SavedPool) ([]*Backend, error) {
	all := make([]*Backend, len(s.Backends))
	for i := range s.Backends {
		sb := &s.Backends[i]
		addr, err := ParseAddress(sb.Address)
		if err != nil {
			return nil, err
		}
		if b := p.Get(sb.Name); !sb.Removed && b != nil && b.Address == addr {
			all[i] = b
			continue
		}
		cfg := sb.Config
		cfg.Name, cfg.Address = sb.Name, sb.Address
		if all[i], err = p.NewBackend(cfg, sb.Health); err != nil {
			return nil, err
		}
		all[i].removed.Store(true)
	}
	p.mu.Lock()
	p.served = s.Served
	p.Queue.Queued.Store(s.Queue.Queued)
	p.Queue.Rejected.Store(s.Queue.Rejected)
	p.Queue.Timeouts.Store(s.Queue.Timeouts)
	p.Queue.Wait.restore(s.Queue.Wait)
	p.past = clonePast(s.Past)
	for i, b := range all {
		b.restoreLocked(&s.Backends[i])
		if !b.removed.Load() {
			p.weighLocked(b, time.Now())
		}
	}
	silence := p.OnChange
	p.OnChange = nil
	p.rampLocked(time.Now())
	p.refreshLocked()
	p.OnChange = silence
	p.policy.Reset(p.Backends())
	p.mu.Unlock()
	return all, nil
}

func (b *Backend) restoreLocked(s *SavedBackend) {
	if s.Resolved.IsValid() && b.Address.IsHostName() {
		b.sockaddr.Store(rawInet(s.Resolved))
	}
	b.weight.Store(int32(min(max(s.Weight, 0), MaxWeight)))
	b.maxConns.Store(int32(max(s.MaxConns, 0)))
	b.admin.Store(uint32(min(s.Admin, AdminMaint)))
	b.health.Store(uint32(min(s.Health, HealthDown)))
	b.silent = s.Silent
	b.since.Store(s.Since.UnixNano())
	reason := s.Reason
	b.reason.Store(&reason)
	b.failStreak.Store(s.FailStreak)
	b.original, b.rose, b.upSince, b.rampFrom = s.Original, s.Rose, s.UpSince, s.RampFrom
	b.Counters.Connections.Store(s.Connections)
	b.Counters.BytesIn.Store(s.BytesIn)
	b.Counters.BytesOut.Store(s.BytesOut)
	for i := range min(len(s.ConnectErrors), len(b.ConnectErrors)) {
		b.ConnectErrors[i].Store(s.ConnectErrors[i])
	}
	b.ConnectTime.restore(s.ConnectTime)
	b.SessionTime.restore(s.SessionTime)
	b.FirstByteTime.restore(s.FirstByteTime)
}

func (h *Histogram) restore(s HistogramSnapshot) {
	for i := range h.counts {
		h.counts[i].Store(s.Counts[i])
	}
	h.sum.Store(uint64(s.Sum))
}

// Retake takes a slot of b for a connection that had one in another process, whatever the limits are. The
// caller owes one Release.
func (p *Pool) Retake(b *Backend) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b.active.Add(1)
	if b.removed.Load() {
		p.departLocked(b)
	} else {
		p.policy.Update(b)
	}
}

// RetakeUntaken is Retake for a connection that b has not taken yet; see SetWindow.
func (p *Pool) RetakeUntaken(b *Backend) {
	b.window.CompareAndSwap(0, math.MaxInt32) // until SetWindow says another one
	b.untaken.Add(1)
	p.Retake(b)
}

// Requeue puts w at the end of the queue for a connection that waited in another process, whatever the limits
// are. It does not get the backends in req.Tried; see Waiter.Tried. Requeue counts nothing.
func (p *Pool) Requeue(req *Request, w *Waiter) {
	p.mu.Lock()
	defer p.mu.Unlock()
	w.client, w.tried = req.Client, append(w.tried[:0], req.Tried...)
	p.appendLocked(w)
}

// Waiters returns the connections that wait, the oldest first.
func (p *Pool) Waiters() []*Waiter {
	p.mu.Lock()
	defer p.mu.Unlock()
	var all []*Waiter
	for w := p.queue.head; w != nil; w = w.next {
		all = append(all, w)
	}
	return all
}

// Tried returns the backends that w could not reach and does not get. The pool must stand still meanwhile: no
// backend may come up, and no slot be taken or released.
func (w *Waiter) Tried() []*Backend { return slices.Clone(w.tried) }
