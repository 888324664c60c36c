package admin

import (
	"os"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// Status asks the sources for everything.
func (s *Sources) Status() *api.Status {
	st := &api.Status{ProcessStatus: s.process(), Listeners: s.listeners(), Pools: []api.PoolStatus{}}
	for _, p := range s.pools() {
		st.Pools = append(st.Pools, s.pool(p))
	}
	return st
}

func (s *Sources) process() api.ProcessStatus {
	var p api.ProcessStatus
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

func (s *Sources) listeners() []api.ListenerStatus {
	ls := []api.ListenerStatus{}
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

func (s *Sources) pool(p *backends.Pool) api.PoolStatus {
	st := api.PoolStatus{Name: p.Name, Balance: p.Config().Balance, Handoff: handoffOf(p), Queue: queueStatus(p), Backends: []api.BackendStatus{}, Workers: s.workers(p)}
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
	if s.Discovery != nil {
		st.Discovery = s.Discovery(p.Name)
	}
	return st
}

// handoffOf is p's handoff; one that an older lb has written down has none.
func handoffOf(p *backends.Pool) string {
	if p.Config().HandsOff() {
		return p.Config().Handoff
	}
	return backends.HandoffOff
}

func queueStatus(p *backends.Pool) api.QueueStatus {
	return api.QueueStatus{
		Length: p.QueueLen(), Size: p.Config().QueueSize, OldestWait: p.OldestWait().Seconds(),
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

// share is the part of b in all that its pool offers. It is no more than 1, though a weight may have changed
// meanwhile.
func share(b *backends.Backend, all int64) float64 {
	if all <= 0 || !b.Offered() {
		return 0
	}
	return min(float64(b.EffectiveWeight())/float64(all), 1)
}

func (s *Sources) backend(b *backends.Backend) api.BackendStatus {
	connect := b.ConnectTime.Snapshot()
	st := api.BackendStatus{
		Name:             b.Name,
		Address:          b.Address.String(),
		Admin:            b.Admin().String(),
		Health:           b.Health().String(),
		Since:            b.Since(),
		Reason:           b.Reason(),
		Selectable:       b.Selectable(),
		LastResort:       b.LastResort(),
		Backup:           b.Backup(),
		Handoff:          b.Channel != nil,
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
	if s.Queue != nil {
		st.AcceptQueue = s.Queue(b)
	}
	return st
}
