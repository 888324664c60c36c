package admin

import (
	"io"
	"maps"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// writeMetrics writes everything in the text format of Prometheus. Names of metrics and labels stay; new ones
// come. A series that would say nothing is left out: the help of its family says so.
func (s *Sources) writeMetrics(w io.Writer, refused *refusals, failures *acceptFailures) error {
	e := exposition{w: w}
	e.process(s.process())
	e.accepting(s)
	e.listeners(s.listeners())
	e.pools(s, s.pools())
	e.refusals(refused)
	e.acceptFailures(failures)
	e.runtime()
	return e.flush()
}

// unixSeconds is a time as metrics have it.
func unixSeconds(t time.Time) float64 { return float64(t.UnixMilli()) / 1e3 }

func (e *exposition) process(p api.ProcessStatus) {
	e.family("lb_build_info")
	e.count(labels("version", p.Version, "revision", p.Revision, "goversion", runtime.Version()), 1)
	if !p.Started.IsZero() {
		e.family("lb_start_time_seconds")
		e.value("", unixSeconds(p.Started))
	}
	e.number("lb_sessions", float64(p.Sessions))
	e.number("lb_handed_off_sessions", float64(p.HandedOff))
	e.number("lb_max_sessions", float64(p.MaxSessions))
	e.total("lb_session_limit_reached_total", p.SessionLimitReached)
	e.family("lb_accept_errors_total")
	for _, reason := range sortedKeys(p.AcceptErrors) {
		e.count(labels("reason", reason), p.AcceptErrors[reason])
	}
	e.number("lb_pipes", float64(p.Pipes))
	e.total("lb_spliced_bytes_total", p.SplicedBytes)
	e.total("lb_handoff_ends_lost_total", p.HandoffEndsLost)
	e.total("lb_access_log_dropped_total", p.AccessLogDropped)
	e.total("lb_log_dropped_total", p.LogDropped)
	e.total("lb_upgrades_total", p.Upgrades)
	e.total("lb_upgrade_sessions_total", p.UpgradeSessions)
	e.number("lb_upgrade_standstill_seconds", p.UpgradeStandstill)
	if r := p.LastReload; r != nil {
		e.family("lb_config_last_reload_successful")
		e.flag("", r.Error == "")
		e.number("lb_config_last_reload_time_seconds", unixSeconds(r.Loaded))
	}

	fds := OpenFDs()
	e.number("lb_open_fds", float64(fds))
	e.number("process_open_fds", float64(fds))
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		e.number("process_max_fds", float64(limit.Cur))
	}
}

func (e *exposition) accepting(s *Sources) {
	if s.NotAccepting == nil {
		return
	}
	failing := s.NotAccepting()
	e.family("lb_listener_accepting")
	for _, l := range s.listeners() {
		e.flag(labels("listener", l.Name), !slices.Contains(failing, l.Name))
	}
}

func (e *exposition) listeners(listeners []api.ListenerStatus) {
	each := func(name string, value func(*api.ListenerStatus) uint64) {
		e.family(name)
		for i := range listeners {
			e.count(labels("listener", listeners[i].Name), value(&listeners[i]))
		}
	}
	each("lb_listener_active", func(l *api.ListenerStatus) uint64 { return uint64(max(l.Active, 0)) })
	e.family("lb_listener_max_conns")
	for i := range listeners {
		if n := listeners[i].MaxConns; n > 0 {
			e.count(labels("listener", listeners[i].Name), uint64(n))
		}
	}
	each("lb_listener_connections_total", func(l *api.ListenerStatus) uint64 { return l.Connections })
	each("lb_listener_bytes_in_total", func(l *api.ListenerStatus) uint64 { return l.BytesIn })
	each("lb_listener_bytes_out_total", func(l *api.ListenerStatus) uint64 { return l.BytesOut })
	e.family("lb_listener_refused_total")
	for i := range listeners {
		for _, reason := range slices.Sorted(maps.Keys(listeners[i].Refused)) {
			e.count(labels("listener", listeners[i].Name, "reason", reason), listeners[i].Refused[reason])
		}
	}
}

func (e *exposition) refusals(c *refusals) {
	e.family("lb_admin_refused_total")
	for i := range c {
		e.count(labels("reason", refusalNames[i]), c[i].Load())
	}
}

func (e *exposition) acceptFailures(f *acceptFailures) {
	e.family("lb_admin_accept_errors_total")
	for _, name := range []string{controlName, httpName} {
		e.count(labels("socket", name), f.of(name).Load())
	}
}

// member is a series of a backend, or of the backends of a slot, with what the metrics say of it.
type member struct {
	backends.Series
	labels string // pool and backend
	probe  api.ProbeStatus
	queue  *api.AcceptQueue
}

func (e *exposition) pools(s *Sources, pools []*backends.Pool) {
	var members []member
	for _, p := range pools {
		for _, series := range p.Series() {
			m := member{Series: series, labels: labels("pool", p.Name, "backend", series.Name)}
			if s.Probe != nil {
				m.probe = s.Probe(m.Current)
			}
			if s.Queue != nil {
				m.queue = s.Queue(m.Current)
			}
			members = append(members, m)
		}
	}
	e.poolTotals(pools)
	e.discovery(s, pools)
	e.queues(pools)
	e.backendCounts(members)
	e.backendStates(members)
	e.acceptQueues(members)
	e.backendTimes(members)
	e.workers(s, pools)
}

func (e *exposition) poolTotals(pools []*backends.Pool) {
	each := func(name string, value func(*backends.Pool) float64) {
		e.family(name)
		for _, p := range pools {
			e.value(labels("pool", p.Name), value(p))
		}
	}
	each("lb_pool_active", func(p *backends.Pool) float64 { return float64(p.Active()) })
	each("lb_pool_selectable", func(p *backends.Pool) float64 {
		n, _ := p.Selectable()
		return float64(n)
	})
	each("lb_pool_backends", func(p *backends.Pool) float64 { return float64(len(p.Backends())) })
	each("lb_pool_imbalance", func(p *backends.Pool) float64 { return imbalance(p.Backends()) })
}

// discovery says how the look-ups go of the pools that discover backends.
func (e *exposition) discovery(s *Sources, pools []*backends.Pool) {
	var all []*api.DiscoveryStatus
	var names []string
	for _, p := range pools {
		if s.Discovery == nil {
			continue
		}
		if st := s.Discovery(p.Name); st != nil {
			all, names = append(all, st), append(names, p.Name)
		}
	}
	e.family("lb_pool_discovery_stale")
	for i, st := range all {
		e.flag(labels("pool", names[i]), !st.StaleSince.IsZero())
	}
	e.family("lb_pool_discovery_time_seconds")
	for i, st := range all {
		if !st.Checked.IsZero() {
			e.value(labels("pool", names[i]), unixSeconds(st.Checked))
		}
	}
}

func (e *exposition) queues(pools []*backends.Pool) {
	each := func(name string, value func(*backends.Pool) uint64) {
		e.family(name)
		for _, p := range pools {
			e.count(labels("pool", p.Name), value(p))
		}
	}
	each("lb_pool_queue_length", func(p *backends.Pool) uint64 { return uint64(max(p.QueueLen(), 0)) })
	each("lb_pool_queue_size", func(p *backends.Pool) uint64 { return uint64(max(p.Config().QueueSize, 0)) })
	each("lb_pool_queued_total", func(p *backends.Pool) uint64 { return p.Queue.Queued.Load() })
	each("lb_pool_queue_rejected_total", func(p *backends.Pool) uint64 { return p.Queue.Rejected.Load() })
	each("lb_pool_queue_timeouts_total", func(p *backends.Pool) uint64 { return p.Queue.Timeouts.Load() })
	e.family("lb_pool_queue_seconds")
	for _, p := range pools {
		h := p.Queue.Wait.Snapshot()
		e.histogram(labels("pool", p.Name), &h, waitBounds)
	}
}

// imbalance is 1 when every selectable backend is as loaded as its weight says, and when there is no load.
func imbalance(members []*backends.Backend) float64 {
	var active, weight, most float64
	for _, b := range members {
		if !b.Selectable() {
			continue
		}
		n, w := float64(b.Active()), float64(b.Weight())
		active += n
		weight += w
		most = max(most, n/w)
	}
	if active == 0 {
		return 1
	}
	return most / (active / weight)
}

func (e *exposition) backendCounts(members []member) {
	each := func(name string, value func(*member) uint64) {
		e.family(name)
		for i := range members {
			e.count(members[i].labels, value(&members[i]))
		}
	}
	each("lb_backend_active", func(m *member) uint64 { return uint64(max(m.Active, 0)) })
	e.family("lb_backend_max_conns")
	for i := range members {
		if n := members[i].Current.MaxConns(); n > 0 {
			e.count(members[i].labels, uint64(n))
		}
	}
	each("lb_backend_weight", func(m *member) uint64 { return uint64(m.Current.Weight()) })
	e.family("lb_backend_configured_weight")
	for i := range members {
		if n := members[i].Current.ConfiguredWeight(); n != members[i].Current.Weight() {
			e.count(members[i].labels, uint64(n))
		}
	}
	each("lb_backend_connections_total", func(m *member) uint64 { return m.Totals.Connections })
	each("lb_backend_bytes_in_total", func(m *member) uint64 { return m.Totals.BytesIn })
	each("lb_backend_bytes_out_total", func(m *member) uint64 { return m.Totals.BytesOut })
	e.family("lb_backend_connect_errors_total")
	for i := range members {
		for reason, n := range members[i].Totals.ConnectErrors {
			e.count(withLabel(members[i].labels, "reason", backends.ConnectError(reason).String()), n)
		}
	}
}

func (e *exposition) backendStates(members []member) {
	e.family("lb_backend_health")
	for i := range members {
		for _, state := range []backends.HealthState{backends.HealthStarting, backends.HealthUp, backends.HealthDown} {
			e.flag(withLabel(members[i].labels, "state", state.String()), members[i].Current.Health() == state)
		}
	}
	e.family("lb_backend_admin")
	for i := range members {
		for _, state := range []backends.AdminState{backends.AdminReady, backends.AdminDrain, backends.AdminMaint} {
			e.flag(withLabel(members[i].labels, "state", state.String()), members[i].Current.Admin() == state)
		}
	}
	e.family("lb_backend_selectable")
	for i := range members {
		e.flag(members[i].labels, members[i].Current.Selectable())
	}
	e.family("lb_backend_state_change_time_seconds")
	for i := range members {
		e.value(members[i].labels, unixSeconds(members[i].Current.Since()))
	}
}

func (e *exposition) acceptQueues(members []member) {
	each := func(name string, value func(*api.AcceptQueue) int) {
		e.family(name)
		for i := range members {
			if q := members[i].queue; q != nil {
				e.count(members[i].labels, uint64(max(value(q), 0)))
			}
		}
	}
	each("lb_backend_accept_queue", func(q *api.AcceptQueue) int { return q.Waiting })
	each("lb_backend_accept_queue_limit", func(q *api.AcceptQueue) int { return q.Limit })
}

func (e *exposition) backendTimes(members []member) {
	each := func(name string, bounds bucketBounds, value func(*backends.Totals) *backends.HistogramSnapshot) {
		e.family(name)
		for i := range members {
			e.histogram(members[i].labels, value(&members[i].Totals), bounds)
		}
	}
	each("lb_backend_connect_seconds", connectBounds,
		func(t *backends.Totals) *backends.HistogramSnapshot { return &t.ConnectTime })
	each("lb_backend_first_byte_seconds", latencyBounds,
		func(t *backends.Totals) *backends.HistogramSnapshot { return &t.FirstByteTime })
	each("lb_backend_session_seconds", sessionBounds,
		func(t *backends.Totals) *backends.HistogramSnapshot { return &t.SessionTime })
	e.family("lb_backend_probe_ok")
	for i := range members {
		if p := &members[i].probe; !p.Time.IsZero() {
			e.flag(members[i].labels, p.OK)
		}
	}
	e.family("lb_backend_probe_duration_seconds")
	for i := range members {
		if p := &members[i].probe; !p.Time.IsZero() {
			e.value(members[i].labels, p.Duration)
		}
	}
}

// OpenFDs counts the open descriptors. Linux 6.2 and later report it as the size of the directory; for an
// older kernel the entries are read.
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
