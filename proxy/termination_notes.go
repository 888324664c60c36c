package proxy

// TerminationNote explains terminations to who reads an access log, in docs/access-log.md.
type TerminationNote struct {
	Codes []string // as Termination.String returns them; at least one
	Means string   // what has happened, in Markdown
	Do    string   // what an operator does about it, in Markdown
}

// TerminationNotes has every termination that a session can have. A test holds it against the code.
var TerminationNotes = []TerminationNote{
	{[]string{"--"}, "Both sides finished.", "Nothing: the normal end."},
	{[]string{"CD"}, "The client reset the connection, or closed it while the backend still sent.", "Usual for browsers and for clients with a timeout. Many at once: the answers take too long."},
	{[]string{"SD"}, "The backend reset the connection, or closed it with unread bytes.", "Look at what the process wrote: `lb logs POOL`. Many at the time of a deploy: it does not finish its sessions on SIGTERM."},
	{[]string{"cD"}, "The client took or sent nothing for `idle_timeout` (`half_closed_timeout` once one side has finished).", "Usual for forgotten connections. Raise the timeout for clients that are silent for long."},
	{[]string{"sD"}, "The backend was to answer, and was silent for as long.", "The backend hangs or is slow: `lb status POOL`. Raise `idle_timeout` for answers that take long."},
	{[]string{"PD"}, "The session was as old as `max_session_age` allows.", "Nothing: the config asks for it."},
	{[]string{"PR"}, "lb refused the client before it chose a backend: `allow` and `deny`, a limit of the listener, or its PROXY header.", "`lb_listener_refused_total` has the reason. Raise the limit, or leave the client out."},
	{[]string{"cR"}, "The client sent no whole PROXY header within `proxy_timeout`.", "Either the sender is not the proxy that `accept_proxy` expects, or it is slow."},
	{[]string{"CR"}, "The client was gone before its PROXY header was whole.", "Often a probe of another load balancer that only connects."},
	{[]string{"sQ"}, "No backend had a free slot: the queue was full, or the client waited for `queue_timeout`.", "All backends are at `max_conns`: add backends (`lb scale POOL`), or raise it."},
	{[]string{"CQ"}, "The client went away while it waited in the queue.", "As for `sQ`."},
	{[]string{"SC"}, "No backend could be connected to, after all retries; or none is up.", "`lb status POOL` says what is wrong with each."},
	{[]string{"sC"}, "No backend took the connection within `connect_timeout`.", "The backlog is full, or the host does not answer: `lb_backend_connect_errors_total` has the reason."},
	{[]string{"CC"}, "The client went away while lb connected to a backend.", "Many: connecting takes too long, as for `sC`."},
	{[]string{"-H"}, "The connection was handed over to a worker and has ended. lb cannot know who ended it.", "Nothing: the normal end with `handoff`."},
	{[]string{"SH"}, "The worker ended before it had taken the connection.", "`lb workers POOL` says how the worker ended."},
	{[]string{"RR", "RQ", "RC", "RD", "RH"}, "lb or the host was out of descriptors, ports or memory. No backend is at fault.", "The event log says what to raise: `lb events`."},
	{[]string{"DD", "DH"}, "lb closed the session because its backend went down (`on_down = \"close\"`) or away.", "The event log says why the backend went down."},
	{[]string{"KR", "KQ", "KC", "KD", "KH"}, "An operator closed the session (`lb kill`), or lb stopped and `stop_timeout` was over.", "For a stop: raise `stop_timeout` for sessions that take longer."},
}
