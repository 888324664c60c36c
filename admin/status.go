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
	Backends   []BackendStatus `json:"backends"`
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
	// Weight is 0..1000. Share is its part, 0..1, of the weights of the pool's selectable backends; 0 if it is not one.
	Weight int     `json:"weight"`
	Share  float64 `json:"share"`
	// Active is how many slots it has given out: sessions, and connects under way. MaxConns is their limit; 0 is none.
	Active   int64 `json:"active"`
	MaxConns int   `json:"max_conns"`
	// Connections counts the established ones.
	Connections uint64 `json:"connections"`
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
	st := PoolStatus{Name: p.Name, Balance: p.Config().Balance, Backends: []BackendStatus{}}
	var weights int
	for _, b := range p.Backends() {
		bs := s.backend(b)
		if bs.Selectable {
			st.Selectable++
			weights += bs.Weight
		}
		st.Active += bs.Active
		st.Backends = append(st.Backends, bs)
	}
	for i := range st.Backends {
		if b := &st.Backends[i]; b.Selectable && weights > 0 { // a weight may have become 0 since Selectable was asked
			b.Share = float64(b.Weight) / float64(weights)
		}
	}
	return st
}

func (s *Sources) backend(b *backends.Backend) BackendStatus {
	connect := b.ConnectTime.Snapshot()
	st := BackendStatus{
		Name:          b.Name,
		Address:       b.Address.String(),
		Admin:         b.Admin().String(),
		Health:        b.Health().String(),
		Since:         b.Since(),
		Reason:        b.Reason(),
		Selectable:    b.Selectable(),
		Weight:        b.Weight(),
		Active:        b.Active(),
		MaxConns:      b.MaxConns(),
		Connections:   b.Counters.Connections.Load(),
		BytesIn:       b.Counters.BytesIn.Load(),
		BytesOut:      b.Counters.BytesOut.Load(),
		ConnectErrors: make(map[string]uint64, backends.NumConnectErrors),
		ConnectP50:    connect.Quantile(0.5).Seconds(),
		ConnectP99:    connect.Quantile(0.99).Seconds(),
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
