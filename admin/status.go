package admin

import (
	"os"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// Status is the whole state of lb, as GET /v1/status gives it. Names of fields in JSON stay; new ones come.
type Status struct {
	ProcessStatus
	Listeners []ListenerStatus `json:"listeners"`
	Pools     []PoolStatus     `json:"pools"`
}

// PoolStatus is one pool at one moment.
type PoolStatus struct {
	Name string `json:"name"`
	// Balance is the name of its policy.
	Balance string `json:"balance"`
	// Active is how many slots its backends have given out.
	Active int64 `json:"active"`
	// Selectable is how many of its backends may be given new connections.
	Selectable int             `json:"selectable"`
	Queue      QueueStatus     `json:"queue"`
	Backends   []BackendStatus `json:"backends"`
	// Workers are the processes that lb runs for the pool; absent where it runs none.
	Workers *WorkersStatus `json:"workers,omitempty"`
	// Advice is of the change that this answers.
	Advice
}

// QueueStatus is a pool's queue at one moment.
type QueueStatus struct {
	// Length is how many connections wait, Size how many may.
	Length int `json:"length"`
	Size   int `json:"size"`
	// Queued counts those that had to wait, Rejected those that found the queue full, Timeouts those that waited in vain.
	Queued   uint64 `json:"queued"`
	Rejected uint64 `json:"rejected"`
	Timeouts uint64 `json:"timeouts"`
}

// BackendStatus is one backend at one moment.
type BackendStatus struct {
	Name    string `json:"name"`
	Address string `json:"address"`
	// Admin is what the operator wants: "ready", "drain" or "maint". Health is what lb sees: "starting", "up" or "down".
	Admin  string `json:"admin"`
	Health string `json:"health"`
	// Since is when Admin or Health last changed, Reason why; the reason is empty before the first change.
	Since  time.Time `json:"since"`
	Reason string    `json:"reason"`
	// Selectable says whether it may be given new connections, max_conns aside.
	Selectable bool `json:"selectable"`
	// LastResort says that it is given them nevertheless: its heartbeat has stopped, and nobody of the pool is selectable.
	LastResort bool `json:"last_resort"`
	// Backup says that it is only for when no other is selectable.
	Backup bool `json:"backup"`
	// Weight is 0..1000, ConfiguredWeight what the config says.
	Weight           int `json:"weight"`
	ConfiguredWeight int `json:"configured_weight"`
	// Share is its part, 0..1, of the weights of the backends that the pool offers at this moment, a slow start
	// included; 0 if it is not one.
	Share float64 `json:"share"`
	// Active is how many slots it has given out: sessions, and connects under way. MaxConns is their limit; 0 is none.
	Active   int64 `json:"active"`
	MaxConns int   `json:"max_conns"`
	// Connections counts the established ones. Rate is those a second, over the last seconds; the Server fills it in. It
	// is null for the first who asks.
	Connections uint64   `json:"connections"`
	Rate        *float64 `json:"connections_per_second"`
	// BytesIn counts bytes from clients, BytesOut bytes to them.
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`
	// ConnectErrors counts failed connects by reason: "refused", "saturated", "timeout", "unreachable", "resource", "other".
	ConnectErrors map[string]uint64 `json:"connect_errors"`
	// ConnectP50 and ConnectP99 are quantiles of the seconds that a connect took, over all since the backend was added; 0 before the first.
	ConnectP50 float64 `json:"connect_p50_seconds"`
	ConnectP99 float64 `json:"connect_p99_seconds"`
	// LastProbe is null before the first probe.
	LastProbe *ProbeStatus `json:"last_probe"`
	// Advice is of the change that this answers.
	Advice
}

// Status asks the sources for everything.
func (s *Sources) Status() *Status {
	st := &Status{ProcessStatus: s.process(), Listeners: s.listeners(), Pools: []PoolStatus{}}
	for _, p := range s.pools() {
		st.Pools = append(st.Pools, s.pool(p))
	}
	return st
}

func (s *Sources) process() ProcessStatus {
	var p ProcessStatus
	if s.Process != nil {
		p = s.Process()
	}
	p.PID = os.Getpid()
	if !p.Started.IsZero() {
		p.Uptime = time.Since(p.Started).Seconds()
	}
	if p.AcceptErrors == nil {
		p.AcceptErrors = map[string]uint64{}
	}
	return p
}

func (s *Sources) listeners() []ListenerStatus {
	ls := []ListenerStatus{}
	if s.Listeners != nil {
		ls = append(ls, s.Listeners()...)
	}
	for i := range ls {
		if ls[i].Addresses == nil {
			ls[i].Addresses = []string{}
		}
	}
	return ls
}

func (s *Sources) pools() []*backends.Pool {
	if s.Pools == nil {
		return nil
	}
	return s.Pools()
}

func (s *Sources) pool(p *backends.Pool) PoolStatus {
	st := PoolStatus{Name: p.Name, Balance: p.Config().Balance, Queue: queueStatus(p), Backends: []BackendStatus{}, Workers: s.workers(p)}
	all := offeredWeight(p)
	for _, b := range p.Backends() {
		bs := s.backend(b)
		bs.Share = share(b, all)
		if bs.Selectable {
			st.Selectable++
		}
		st.Active += bs.Active
		st.Backends = append(st.Backends, bs)
	}
	return st
}

func queueStatus(p *backends.Pool) QueueStatus {
	return QueueStatus{
		Length: p.QueueLen(), Size: p.Config().QueueSize,
		Queued: p.Queue.Queued.Load(), Rejected: p.Queue.Rejected.Load(), Timeouts: p.Queue.Timeouts.Load(),
	}
}

// offeredWeight is the sum of the effective weights that p offers.
func offeredWeight(p *backends.Pool) (sum int64) {
	for _, b := range p.Backends() {
		if b.Offered() {
			sum += b.EffectiveWeight()
		}
	}
	return sum
}

// share is the part of b in all that its pool offers. It is no more than 1, though a weight may have changed meanwhile.
func share(b *backends.Backend, all int64) float64 {
	if all <= 0 || !b.Offered() {
		return 0
	}
	return min(float64(b.EffectiveWeight())/float64(all), 1)
}

func (s *Sources) backend(b *backends.Backend) BackendStatus {
	connect := b.ConnectTime.Snapshot()
	st := BackendStatus{
		Name:             b.Name,
		Address:          b.Address.String(),
		Admin:            b.Admin().String(),
		Health:           b.Health().String(),
		Since:            b.Since(),
		Reason:           b.Reason(),
		Selectable:       b.Selectable(),
		LastResort:       b.LastResort(),
		Backup:           b.Backup(),
		Weight:           b.Weight(),
		ConfiguredWeight: b.ConfiguredWeight(),
		Active:           b.Active(),
		MaxConns:         b.MaxConns(),
		Connections:      b.Counters.Connections.Load(),
		BytesIn:          b.Counters.BytesIn.Load(),
		BytesOut:         b.Counters.BytesOut.Load(),
		ConnectErrors:    make(map[string]uint64, backends.NumConnectErrors),
		ConnectP50:       connect.Quantile(0.5).Seconds(),
		ConnectP99:       connect.Quantile(0.99).Seconds(),
	}
	for i := range backends.NumConnectErrors {
		st.ConnectErrors[backends.ConnectError(i).String()] = b.ConnectErrors[i].Load()
	}
	if s.Probe != nil {
		if probe := s.Probe(b); !probe.Time.IsZero() {
			st.LastProbe = &probe
		}
	}
	return st
}
