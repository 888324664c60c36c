package admin

// metricFamily is a metric as GET /metrics declares it and docs/metrics.md explains it.
type metricFamily struct {
	name   string
	typ    metricType
	labels string // in the order in which they stand; empty for none
	help   string
	use    string // what to do with it, for docs/metrics.md
}

const (
	ofPool    = "pool"
	ofBackend = "pool, backend"
	ofSlot    = "pool, slot"
)

// metricFamilies are all metrics of lb itself. Names and labels stay; new ones come. runtimeFamilies has
// those of the process.
var metricFamilies = []metricFamily{
	{"lb_build_info", gauge, "version, revision, goversion", "The version of lb in its labels; always 1.", "Shows which hosts run which version."},
	{"lb_start_time_seconds", gauge, "", "When lb started, in Unix time.", "An upgrade keeps it, a restart changes it."},
	{"lb_sessions", gauge, "", "Sessions now, over all listeners.", "Compare with `lb_max_sessions`."},
	{"lb_handed_off_sessions", gauge, "", "Those of lb_sessions that workers have taken, for which lb holds no descriptor.", "They do not count towards `lb_max_sessions`."},
	{"lb_max_sessions", gauge, "", "Sessions that there may be at once beside those that were handed off.", "Raise RLIMIT_NOFILE (`LimitNOFILE=`) or `proxy.max_sessions` before `lb_sessions` without `lb_handed_off_sessions` comes near it."},
	{"lb_session_limit_reached_total", counter, "", "Times that lb stopped accepting because of lb_max_sessions.", "Clients waited in the kernel's queue meanwhile. Raise the limit, or find out who holds the sessions: `lb clients`."},
	{"lb_accept_errors_total", counter, "reason", "Failed accepts of client connections, by reason.", "lb or the host is out of descriptors or memory. The event log has the error."},
	{"lb_pipes", gauge, "", "Pipes for splice(2) that are open, in use or pooled.", "Follows the number of sessions that carry much at once."},
	{"lb_spliced_bytes_total", counter, "", "Bytes that went through pipes by splice(2).", "Says how much of the traffic takes the cheap way."},
	{"lb_handoff_ends_lost_total", counter, "", "Times that the kernel dropped messages about handed-off connections that ended; lb asked again.", "Nothing was missed. If it grows steadily, the host is short of memory for sockets."},
	{"lb_access_log_dropped_total", counter, "", "Lines that the access log had to drop.", "The disk or the reader of `log.access` is too slow."},
	{"lb_log_dropped_total", counter, "", "Lines of the event log, and of workers in it, that lb had to drop.", "The reader of `log.output` is too slow, or workers write without end."},
	{"lb_upgrades_total", counter, "", "Upgrades to another binary that succeeded.", "Mark deploys of lb with it."},
	{"lb_upgrade_sessions_total", counter, "", "Sessions that upgrades carried over.", ""},
	{"lb_upgrade_standstill_seconds", gauge, "", "How long sessions stood still in the last upgrade; 0 before the first.", "Milliseconds are normal. More says that the host was busy, or that there were very many sessions."},
	{"lb_config_last_reload_successful", gauge, "", "1 if the last reload was applied, or none was asked for; 0 if it was refused.", "0: the file on disk is not what runs. `lb check -f FILE` says why."},
	{"lb_config_last_reload_time_seconds", gauge, "", "When the config that runs was read, in Unix time.", "Compare with the time of a deploy."},
	{"lb_open_fds", gauge, "", "Open file descriptors.", ""},
	{"process_open_fds", gauge, "", "Open file descriptors.", "The same, under the name that other programs use."},
	{"process_max_fds", gauge, "", "Open file descriptors that there may be.", ""},

	{"lb_listener_accepting", gauge, "listener", "0 if lb cannot accept connections on the listener because of an error, 1 otherwise.", "0: clients get no answer. lb tries again every second; the event log has the error."},
	{"lb_listener_active", gauge, "listener", "Sessions of the listener now.", ""},
	{"lb_listener_max_conns", gauge, "listener", "The limit of lb_listener_active; absent where there is none.", "At the limit, newcomers are refused: `lb_listener_refused_total{reason=\"max_conns\"}`."},
	{"lb_listener_connections_total", counter, "listener", "Client connections that the listener accepted.", "Its rate is the load."},
	{"lb_listener_bytes_in_total", counter, "listener", "Bytes from clients of the listener.", ""},
	{"lb_listener_bytes_out_total", counter, "listener", "Bytes to clients of the listener.", ""},
	{"lb_listener_refused_total", counter, "listener, reason", "Clients that were closed before a backend was chosen, by reason.", "The reasons: `denied` (allow, deny), `max_conns`, `source_max_conns`, `source_rate`, `rate`, `proxy_from`, `bad_header`, `header_timeout` (PROXY header)."},

	{"lb_pool_active", gauge, ofPool, "Slots that the backends of the pool have given out.", "Sessions and connects under way."},
	{"lb_pool_selectable", gauge, ofPool, "Backends of the pool that may be given new connections.", "Alert at 0, and below what the load needs. `lb status POOL` says what is wrong."},
	{"lb_pool_backends", gauge, ofPool, "Backends of the pool.", ""},
	{"lb_pool_imbalance", gauge, ofPool, "The most active slots per weight of a selectable backend, over those of all of the pool's; 1 is even.", "Well above 1 with many sessions: connections live long, and a backend that came later has not filled up."},
	{"lb_pool_discovery_stale", gauge, ofPool, "1 if the pool's discover gives no sound answer, 0 otherwise; absent for a pool without discover.", "1: the backends that are known go on. `lb status POOL` says since when and why."},
	{"lb_pool_discovery_time_seconds", gauge, ofPool, "When the last sound answer of the pool's discover came, in Unix time; absent before the first.", ""},
	{"lb_pool_queue_length", gauge, ofPool, "Connections that wait for a backend of the pool.", "More than 0 for long: the backends are at `max_conns`. Add backends, or raise it."},
	{"lb_pool_queue_size", gauge, ofPool, "The limit of lb_pool_queue_length; 0 is no queue.", ""},
	{"lb_pool_queued_total", counter, ofPool, "Connections that had to wait for a backend of the pool.", ""},
	{"lb_pool_queue_rejected_total", counter, ofPool, "Connections that found the queue of the pool full.", "Their clients were closed (`sQ` in the access log)."},
	{"lb_pool_queue_timeouts_total", counter, ofPool, "Connections that waited in the queue of the pool in vain.", "Their clients were closed (`sQ` in the access log)."},
	{"lb_pool_queue_seconds", histogram, ofPool, "Time in the queue of the pool, of those that were given a backend. Absent before the first.", ""},

	{"lb_backend_active", gauge, ofBackend, "Slots that the backend has given out: sessions, and connects under way.", ""},
	{"lb_backend_max_conns", gauge, ofBackend, "The limit of lb_backend_active; absent where there is none.", ""},
	{"lb_backend_weight", gauge, ofBackend, "The weight of the backend, 0 to 1000.", ""},
	{"lb_backend_configured_weight", gauge, ofBackend, "The weight of the backend in the config; absent where lb_backend_weight is the same.", "Present: somebody has changed the weight at run time, and it may have been forgotten."},
	{"lb_backend_connections_total", counter, ofBackend, "Connections established to the backend.", ""},
	{"lb_backend_bytes_in_total", counter, ofBackend, "Bytes from clients to the backend.", ""},
	{"lb_backend_bytes_out_total", counter, ofBackend, "Bytes from the backend to clients.", ""},
	{"lb_backend_connect_errors_total", counter, "pool, backend, reason", "Failed connects to the backend, by reason.", "`refused`: nobody listens. `saturated`: its backlog is full, it does not accept fast enough. `timeout`, `unreachable`: the network or the host. `resource`: lb itself is out of descriptors, ports or memory. `untrusted`: the socket belongs to somebody else."},
	{"lb_backend_health", gauge, "pool, backend, state", "What lb sees of the backend: 1 for its state, 0 for the others.", "`lb_backend_health{state=\"down\"} == 1` lists those that are down."},
	{"lb_backend_admin", gauge, "pool, backend, state", "What the operator wants of the backend: 1 for its state, 0 for the others.", "Long `drain` or `maint`: somebody may have forgotten a drain."},
	{"lb_backend_selectable", gauge, ofBackend, "1 if the backend may be given new connections, lb_backend_max_conns aside.", "Its average over time is the backend's availability."},
	{"lb_backend_state_change_time_seconds", gauge, ofBackend, "When the health or the admin state last changed, in Unix time.", ""},
	{"lb_backend_accept_queue", gauge, ofBackend, "Connections that wait to be accepted by the backend; absent where lb cannot see it.", "Near its limit: the backend does not accept fast enough, or hangs."},
	{"lb_backend_accept_queue_limit", gauge, ofBackend, "The limit of lb_backend_accept_queue: the backlog of listen(2).", ""},
	{"lb_backend_connect_seconds", histogram, ofBackend, "Time from the choice of the backend to the established connection. Absent before the first.", "On one host, well below a millisecond."},
	{"lb_backend_first_byte_seconds", histogram, ofBackend, "Time from the client's first byte to the backend's first byte, of each session. Absent before the first.", "The latency of the backend as a client sees it. Of a session with many requests it is the first one's."},
	{"lb_backend_session_seconds", histogram, ofBackend, "Time from accept to the end of sessions on the backend. Absent before the first.", ""},
	{"lb_backend_probe_ok", gauge, ofBackend, "1 if the last health probe of the backend succeeded.", "`lb status POOL` shows why."},
	{"lb_backend_probe_duration_seconds", gauge, ofBackend, "How long the last health probe of the backend took.", ""},

	{"lb_workers", gauge, ofPool, "Worker processes that there shall be.", ""},
	{"lb_workers_up", gauge, ofPool, "Workers that take connections.", "Below `lb_workers` for minutes: `lb workers POOL` says why."},
	{"lb_workers_draining", gauge, ofPool, "Workers that were replaced or are not wanted any more, and have not ended.", "They finish sessions, for at most `stop_timeout`."},
	{"lb_worker_restarts_total", counter, ofSlot, "Workers that were started in the slot after the first, deploys included.", "Alert on `lb_worker_exits_total` instead."},
	{"lb_worker_exits_total", counter, "pool, slot, reason", "Workers of the slot that ended, by reason. Each is 0 before the first.", "`crashed`: it ended by itself. `not_started`: the command cannot be run. `not_ready`: not ready within `start_timeout`. `hung`: down for `kill_after`. `broken`: it said so itself. `stopped`: lb ended it, for a deploy, a recycling, a scaling or a stop. Alert on all but `stopped`."},
	{"lb_worker_cpu_seconds_total", counter, ofSlot, "CPU time of the workers of the slot, and of what they have started, user and system.", ""},
	{"lb_worker_resident_memory_bytes", gauge, ofSlot, "Memory in RAM of the slot's worker and of what it has started.", "Shared pages are counted once for each process. `recycle.memory` replaces a worker that has grown too large."},
	{"lb_worker_output_lines_total", counter, ofPool, "Lines that workers wrote.", ""},
	{"lb_worker_output_dropped_total", counter, ofPool, "Lines of workers that could not be written to their file and were dropped.", "The disk of `workers.log` is full or too slow."},
	{"lb_worker_notifications_total", counter, "pool, result", "Messages on the workers' notify socket, by what became of them.", "`unknown_sender`: a process that is no worker, or was gone when lb looked."},

	{"lb_admin_refused_total", counter, "reason", "Requests that the control API refused, by reason.", "See docs/access.md."},
	{"lb_admin_accept_errors_total", counter, "socket", "Failed accepts of connections to the control API, by socket.", ""},
}
