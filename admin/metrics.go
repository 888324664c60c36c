package admin

import (
	"io"
	"maps"
	"os"
	"runtime"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// writeMetrics writes everything in the text format of Prometheus. Names of metrics and labels stay; new ones
// come.
func (s *Sources) writeMetrics(w io.Writer, refused *refusals, failures *acceptFailures) error {
	e := exposition{w: w}
	e.process(s.process())
	e.listeners(s.listeners())
	e.pools(s, s.pools())
	e.refusals(refused)
	e.acceptFailures(failures)
	e.runtime()
	return e.flush()
}

func (e *exposition) process(p api.ProcessStatus) {
	e.family("lb_build_info", gauge, "The version of lb in its labels; always 1.")
	e.count(labels("version", p.Version, "revision", p.Revision, "goversion", runtime.Version()), 1)
	if !p.Started.IsZero() {
		e.family("lb_start_time_seconds", gauge, "When lb started, in Unix time.")
		e.value("", float64(p.Started.UnixMilli())/1e3)
	}
	e.family("lb_sessions", gauge, "Sessions now, over all listeners.")
	e.value("", float64(p.Sessions))
	e.family("lb_max_sessions", gauge, "Sessions that there may be at once.")
	e.value("", float64(p.MaxSessions))
	e.family("lb_session_limit_reached_total", counter, "Times that lb stopped accepting because of lb_max_sessions.")
	e.count("", p.SessionLimitReached)
	e.family("lb_accept_errors_total", counter, "Failed accepts of client connections, by reason.")
	for _, reason := range sortedKeys(p.AcceptErrors) {
		e.count(labels("reason", reason), p.AcceptErrors[reason])
	}
	e.family("lb_pipes", gauge, "Pipes for splice(2) that are open, in use or pooled.")
	e.value("", float64(p.Pipes))
	e.family("lb_spliced_bytes_total", counter, "Bytes that went through pipes by splice(2).")
	e.count("", p.SplicedBytes)
	e.family("lb_handoff_ends_lost_total", counter, "Times that the kernel dropped messages about handed-off connections that ended; lb asked it anew.")
	e.count("", p.HandoffEndsLost)
	e.family("lb_access_log_dropped_total", counter, "Lines that the access log had to drop.")
	e.count("", p.AccessLogDropped)
	e.family("lb_log_dropped_total", counter, "Lines of the event log, and of workers in it, that lb had to drop.")
	e.count("", p.LogDropped)
	e.family("lb_upgrades_total", counter, "Upgrades to another binary that succeeded.")
	e.count("", p.Upgrades)
	e.family("lb_upgrade_sessions_total", counter, "Sessions that upgrades carried over.")
	e.count("", p.UpgradeSessions)
	e.family("lb_upgrade_standstill_seconds", gauge, "How long sessions stood still in the last upgrade; 0 before the first.")
	e.value("", p.UpgradeStandstill)

	fds := OpenFDs()
	e.family("lb_open_fds", gauge, "Open file descriptors.")
	e.value("", float64(fds))
	e.family("process_open_fds", gauge, "Open file descriptors.")
	e.value("", float64(fds))
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		e.family("process_max_fds", gauge, "Open file descriptors that there may be.")
		e.value("", float64(limit.Cur))
	}
}

func (e *exposition) listeners(listeners []api.ListenerStatus) {
	each := func(name string, typ metricType, help string, value func(*api.ListenerStatus) uint64) {
		e.family(name, typ, help)
		for i := range listeners {
			e.count(labels("listener", listeners[i].Name), value(&listeners[i]))
		}
	}
	each("lb_listener_active", gauge, "Sessions of the listener now.",
		func(l *api.ListenerStatus) uint64 { return uint64(max(l.Active, 0)) })
	each("lb_listener_max_conns", gauge, "The limit of lb_listener_active; 0 is none.",
		func(l *api.ListenerStatus) uint64 { return uint64(max(l.MaxConns, 0)) })
	each("lb_listener_connections_total", counter, "Client connections that the listener accepted.",
		func(l *api.ListenerStatus) uint64 { return l.Connections })
	each("lb_listener_bytes_in_total", counter, "Bytes from clients of the listener.",
		func(l *api.ListenerStatus) uint64 { return l.BytesIn })
	each("lb_listener_bytes_out_total", counter, "Bytes to clients of the listener.",
		func(l *api.ListenerStatus) uint64 { return l.BytesOut })
	e.family("lb_listener_refused_total", counter, "Clients that were closed before a backend was chosen, by reason: rules, limits, PROXY header.")
	for i := range listeners {
		for _, reason := range slices.Sorted(maps.Keys(listeners[i].Refused)) {
			e.count(labels("listener", listeners[i].Name, "reason", reason), listeners[i].Refused[reason])
		}
	}
}

func (e *exposition) refusals(c *refusals) {
	e.family("lb_admin_refused_total", counter, "Requests that the control API refused, by reason.")
	for i := range c {
		e.count(labels("reason", refusalNames[i]), c[i].Load())
	}
}

func (e *exposition) acceptFailures(f *acceptFailures) {
	e.family("lb_admin_accept_errors_total", counter, "Failed accepts of connections to the control API, by socket.")
	for _, name := range []string{controlName, httpName} {
		e.count(labels("socket", name), f.of(name).Load())
	}
}

// member is a backend with what the metrics say of it.
type member struct {
	*backends.Backend
	labels string // pool and backend
	status api.BackendStatus
}

func (e *exposition) pools(s *Sources, pools []*backends.Pool) {
	var members []member
	var statuses []api.PoolStatus
	for _, p := range pools {
		st := api.PoolStatus{Name: p.Name, Queue: queueStatus(p)}
		for _, b := range p.Backends() {
			m := member{b, labels("pool", p.Name, "backend", b.Name), s.backend(b)}
			members = append(members, m)
			st.Backends = append(st.Backends, m.status)
			st.Active += m.status.Active
			if m.status.Selectable {
				st.Selectable++
			}
		}
		statuses = append(statuses, st)
	}
	e.poolTotals(statuses)
	e.queues(statuses, pools)
	e.backendCounts(members)
	e.backendStates(members)
	e.acceptQueues(members)
	e.backendTimes(members)
	e.workers(s, pools)
}

func (e *exposition) poolTotals(pools []api.PoolStatus) {
	e.family("lb_pool_active", gauge, "Slots that the backends of the pool have given out.")
	for i := range pools {
		e.value(labels("pool", pools[i].Name), float64(pools[i].Active))
	}
	e.family("lb_pool_selectable", gauge, "Backends of the pool that may be given new connections.")
	for i := range pools {
		e.value(labels("pool", pools[i].Name), float64(pools[i].Selectable))
	}
	e.family("lb_pool_backends", gauge, "Backends of the pool.")
	for i := range pools {
		e.value(labels("pool", pools[i].Name), float64(len(pools[i].Backends)))
	}
	e.family("lb_pool_imbalance", gauge, "The most active slots per weight of a selectable backend, over those of all of the pool's; 1 is even.")
	for i := range pools {
		e.value(labels("pool", pools[i].Name), imbalance(pools[i].Backends))
	}
}

func (e *exposition) queues(statuses []api.PoolStatus, pools []*backends.Pool) {
	each := func(name string, typ metricType, help string, value func(*api.QueueStatus) uint64) {
		e.family(name, typ, help)
		for i := range statuses {
			e.count(labels("pool", statuses[i].Name), value(&statuses[i].Queue))
		}
	}
	each("lb_pool_queue_length", gauge, "Connections that wait for a backend of the pool.",
		func(q *api.QueueStatus) uint64 { return uint64(max(q.Length, 0)) })
	each("lb_pool_queue_size", gauge, "The limit of lb_pool_queue_length; 0 is no queue.",
		func(q *api.QueueStatus) uint64 { return uint64(max(q.Size, 0)) })
	each("lb_pool_queued_total", counter, "Connections that had to wait for a backend of the pool.",
		func(q *api.QueueStatus) uint64 { return q.Queued })
	each("lb_pool_queue_rejected_total", counter, "Connections that found the queue of the pool full.",
		func(q *api.QueueStatus) uint64 { return q.Rejected })
	each("lb_pool_queue_timeouts_total", counter, "Connections that waited in the queue of the pool in vain.",
		func(q *api.QueueStatus) uint64 { return q.Timeouts })
	e.family("lb_pool_queue_seconds", histogram, "Time in the queue of the pool, of those that were given a backend.")
	for _, p := range pools {
		h := p.Queue.Wait.Snapshot()
		e.histogram(labels("pool", p.Name), &h)
	}
}

// imbalance is 1 when every selectable backend is as loaded as its weight says, and when there is no load.
func imbalance(members []api.BackendStatus) float64 {
	var active, weight, most float64
	for i := range members {
		b := &members[i]
		if !b.Selectable || b.Weight == 0 {
			continue
		}
		active += float64(b.Active)
		weight += float64(b.Weight)
		most = max(most, float64(b.Active)/float64(b.Weight))
	}
	if active == 0 {
		return 1
	}
	return most / (active / weight)
}

func (e *exposition) backendCounts(members []member) {
	each := func(name string, typ metricType, help string, value func(*api.BackendStatus) uint64) {
		e.family(name, typ, help)
		for i := range members {
			e.count(members[i].labels, value(&members[i].status))
		}
	}
	each("lb_backend_active", gauge, "Slots that the backend has given out: sessions, and connects under way.",
		func(b *api.BackendStatus) uint64 { return uint64(max(b.Active, 0)) })
	each("lb_backend_max_conns", gauge, "The limit of lb_backend_active; 0 is none.",
		func(b *api.BackendStatus) uint64 { return uint64(b.MaxConns) })
	each("lb_backend_weight", gauge, "The weight of the backend, 0 to 1000.",
		func(b *api.BackendStatus) uint64 { return uint64(b.Weight) })
	each("lb_backend_configured_weight", gauge, "The weight of the backend that the config gives.",
		func(b *api.BackendStatus) uint64 { return uint64(b.ConfiguredWeight) })
	each("lb_backend_connections_total", counter, "Connections established to the backend.",
		func(b *api.BackendStatus) uint64 { return b.Connections })
	each("lb_backend_bytes_in_total", counter, "Bytes from clients to the backend.",
		func(b *api.BackendStatus) uint64 { return b.BytesIn })
	each("lb_backend_bytes_out_total", counter, "Bytes from the backend to clients.",
		func(b *api.BackendStatus) uint64 { return b.BytesOut })

	e.family("lb_backend_connect_errors_total", counter, "Failed connects to the backend, by reason.")
	for i := range members {
		for reason := range backends.NumConnectErrors {
			name := backends.ConnectError(reason).String()
			e.count(withLabel(members[i].labels, "reason", name), members[i].status.ConnectErrors[name])
		}
	}
}

func (e *exposition) backendStates(members []member) {
	each := func(name, help string, states []string, current func(*api.BackendStatus) string) {
		e.family(name, gauge, help)
		for i := range members {
			for _, state := range states {
				e.flag(withLabel(members[i].labels, "state", state), current(&members[i].status) == state)
			}
		}
	}
	each("lb_backend_health", "What lb sees of the backend: 1 for its state, 0 for the others.",
		[]string{backends.HealthStarting.String(), backends.HealthUp.String(), backends.HealthDown.String()},
		func(b *api.BackendStatus) string { return b.Health })
	each("lb_backend_admin", "What the operator wants of the backend: 1 for its state, 0 for the others.",
		[]string{backends.AdminReady.String(), backends.AdminDrain.String(), backends.AdminMaint.String()},
		func(b *api.BackendStatus) string { return b.Admin })

	e.family("lb_backend_selectable", gauge, "1 if the backend may be given new connections, lb_backend_max_conns aside.")
	for i := range members {
		e.flag(members[i].labels, members[i].status.Selectable)
	}
	e.family("lb_backend_state_change_time_seconds", gauge, "When the health or the admin state last changed, in Unix time.")
	for i := range members {
		e.value(members[i].labels, float64(members[i].status.Since.UnixMilli())/1e3)
	}
}

func (e *exposition) acceptQueues(members []member) {
	each := func(name, help string, value func(*api.AcceptQueue) int) {
		e.family(name, gauge, help)
		for i := range members {
			if q := members[i].status.AcceptQueue; q != nil {
				e.count(members[i].labels, uint64(max(value(q), 0)))
			}
		}
	}
	each("lb_backend_accept_queue", "Connections that wait to be accepted by the backend; absent where lb cannot see it.",
		func(q *api.AcceptQueue) int { return q.Waiting })
	each("lb_backend_accept_queue_limit", "The limit of lb_backend_accept_queue: the backlog of listen(2).",
		func(q *api.AcceptQueue) int { return q.Limit })
}

func (e *exposition) backendTimes(members []member) {
	e.family("lb_backend_connect_seconds", histogram, "Time from the choice of the backend to the established connection.")
	for i := range members {
		h := members[i].ConnectTime.Snapshot()
		e.histogram(members[i].labels, &h)
	}
	e.family("lb_backend_session_seconds", histogram, "Time from accept to the end of sessions on the backend.")
	for i := range members {
		h := members[i].SessionTime.Snapshot()
		e.histogram(members[i].labels, &h)
	}
	e.family("lb_backend_probe_ok", gauge, "1 if the last health probe of the backend succeeded.")
	for i := range members {
		if p := members[i].status.LastProbe; p != nil {
			e.flag(members[i].labels, p.OK)
		}
	}
	e.family("lb_backend_probe_duration_seconds", gauge, "How long the last health probe of the backend took.")
	for i := range members {
		if p := members[i].status.LastProbe; p != nil {
			e.value(members[i].labels, p.Duration)
		}
	}
}

// OpenFDs counts the open descriptors. Linux 6.2 and later tell it as the size of the directory; for an older
// kernel the entries are read.
func OpenFDs() int {
	var st unix.Stat_t
	if err := unix.Stat("/proc/self/fd", &st); err == nil && st.Size > 0 {
		return int(st.Size)
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries) - 1 // not the one that reads the directory
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
