package daemon

import (
	"log/slog"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/internal/build"
	"github.com/273ebdf9/lb/proxy"
)

// sources are the facts that the control API shows.
func (d *daemon) sources() admin.Sources {
	return admin.Sources{
		Pools:        func() []*backends.Pool { return d.view.Load().pools },
		Listeners:    d.listenerStatus,
		Process:      d.processStatus,
		NotAccepting: d.proxy.NotAccepting,
		Probe:        d.probeStatus,
		Queue:        d.queues.of,
		Workers:      d.workersStatus,
		Discovery:    d.discoveryStatus,
		Setup:        d.setup,
		Listening:    listening,
		Sessions:     d.listSessions,
		Log:          d.log,
		Report:       func(level slog.Level, key, msg string, args ...any) { d.repeats.Log(level, key, msg, args...) },
	}
}

func (d *daemon) listenerStatus() []api.ListenerStatus {
	var all []api.ListenerStatus
	for _, ln := range d.proxy.Listeners() {
		st := api.ListenerStatus{
			Name: ln.Name, Addresses: ln.Addresses(), MaxConns: ln.MaxConns(),
			Active: ln.Active(), Connections: ln.Counters.Connections.Load(),
			BytesIn: ln.Counters.BytesIn.Load(), BytesOut: ln.Counters.BytesOut.Load(),
			Refused: make(map[string]uint64, proxy.NumRefusals),
		}
		for why := range ln.Refused {
			st.Refused[proxy.Refusal(why).String()] = ln.Refused[why].Load()
		}
		if split := ln.Split(); split != nil {
			st.Split = split.Weights()
		} else if pool := ln.Pool(); pool != nil { // a reload may be between the two questions
			st.Pool = pool.Name
		}
		all = append(all, st)
	}
	return all
}

func (d *daemon) processStatus() api.ProcessStatus {
	st := &d.proxy.Stats
	return api.ProcessStatus{
		Version: build.Version(), Revision: build.Read().Revision, Started: d.origin.started, Stopping: d.stopping.begun.Load(),
		Sessions: d.proxy.Sessions(), HandedOff: d.proxy.HandedOff(), MaxSessions: d.proxy.MaxSessions(),
		LastReload:          d.reloads.status(),
		Batching:            d.batching(),
		SessionLimitReached: st.LimitReached.Load(),
		AcceptErrors:        map[string]uint64{"resource": st.AcceptErrors.Load()},
		Pipes:               st.Pipes.Load(), SplicedBytes: st.SplicedBytes.Load(), HandoffEndsLost: st.EndsLost.Load(),
		AccessLogDropped: d.access.Dropped(), LogDropped: d.events.Dropped(),
		Upgrades: d.upgrades.count.Load(), UpgradeSessions: d.upgrades.sessions.Load(), UpgradeStandstill: d.upgrades.standstill.Seconds(),
	}
}

func (d *daemon) probeStatus(b *backends.Backend) api.ProbeStatus {
	w, ok := d.view.Load().checkers[b.Pool()]
	if !ok {
		return api.ProbeStatus{}
	}
	st := w.Status(b)
	if st.Outcome == health.None {
		return api.ProbeStatus{}
	}
	ps := api.ProbeStatus{Type: st.Type, Time: st.Last, OK: st.Outcome != health.Failure && !st.Shortage, Duration: st.Duration.Seconds()}
	if !ps.OK {
		ps.Error = st.Reason
	}
	return ps
}
