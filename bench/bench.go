// Package bench measures what a connection through a balancer costs: the lb of this module, haproxy and nginx
// stream side by side, in one run, on the same backends and under the same load.
//
// [Compare] runs the whole comparison and returns a [Report]. Its pieces stand on their own: [Process]
// (start, wait until ready, stop by pid), [Tree], [ReadCPU], [ReadMemory] and [CountFDs] (what a tree of
// processes costs), [Backends] (nginx workers behind Unix sockets), [RunWrk] (load), [Sessions] (idle
// connections), [Summarize] and [Ratios] (statistics) and [Table] (output).
//
// How it measures:
//
//   - One set of backends serves the whole run. The contenders are started again for every round and all run at the
//     same time, but only one of them is under load at any moment; an idle one costs nothing. The order rotates from
//     round to round.
//   - CPU is read from the kernel's clock of each process before and after the load, see [ReadCPU]. It is the
//     balancer's own: the backends and wrk are counted apart. What the kernel does for a packet in a soft interrupt is
//     charged to whatever was running, for every contender alike.
//   - A ratio is taken within a round, against the best rival of that round, and the median of these ratios is what
//     counts: the machine's speed changes from minute to minute, the ratio hardly.
//   - A cell with one failed request is invalid: it is shown, but neither compared nor counted as a best.
//
// The package owns every process that it starts and ends each by its pid; it never signals a process by name.
// It leaves nothing behind: a child dies with this program even if this program is killed. All traffic stays
// on the loopback interface.
package bench

import "time"

// Names of the cases that [AllCases] returns.
const (
	CaseKeepAlive = "keepalive" // 64 connections
	CaseKeep1     = "keep1"     // the same with 1, 4, 16 and 512
	CaseKeep4     = "keep4"
	CaseKeep16    = "keep16"
	CaseKeep512   = "keep512"
	CaseConnect   = "connect"
	Case64K       = "64k"
	Case4M        = "4m"
	CaseIdle      = "idle"
)

// Case is one kind of load.
type Case struct {
	// Name selects the case on the command line and in JSON.
	Name string `json:"name"`
	// Title says in words what the load is.
	Title string `json:"title"`
	// Path is the request path; the backends serve the paths of [BodySize].
	Path string `json:"path"`
	// Conns is how many client connections are open at a time. In an idle case it is how many sessions are
	// held.
	Conns int `json:"conns"`
	// NewConn asks for a new connection for every request.
	NewConn bool `json:"new_conn,omitempty"`
	// Idle holds the connections without any traffic, instead of loading them.
	Idle bool `json:"idle,omitempty"`
	// Goal is the highest ratio of CPU per request to the best rival that lb may reach; 0 means no goal.
	Goal float64 `json:"goal,omitempty"`
	// HandoffGoal is the same where lb hands the sockets over.
	HandoffGoal float64 `json:"handoff_goal,omitempty"`
	// HandoffCPU is the highest CPU per request in microseconds that lb may use where it hands the sockets
	// over; 0 means no goal.
	HandoffCPU float64 `json:"handoff_cpu_us,omitempty"`
	// HandoffRate is the lowest ratio of requests per second to the reference's that lb may reach where it
	// hands the sockets over; 0 means no goal.
	HandoffRate float64 `json:"handoff_rate,omitempty"`
}

// Limits of an idle session of lb: user memory in bytes and file descriptors. Descriptors are compared after
// rounding to two digits, because a health check can be in flight while they are counted.
const (
	IdleMemoryGoal = 512.0
	IdleFDsGoal    = 2.0
)

// AllCases returns every case in the order in which they are run, with the goals of lb.
func AllCases() []Case {
	const small = "keep-alive, small replies"
	return []Case{
		{Name: CaseKeepAlive, Title: small, Path: "/small", Conns: 64, Goal: 0.62, HandoffCPU: 0.1, HandoffRate: 0.97},
		{Name: CaseKeep1, Title: small, Path: "/small", Conns: 1},
		{Name: CaseKeep4, Title: small, Path: "/small", Conns: 4, Goal: 0.85},
		{Name: CaseKeep16, Title: small, Path: "/small", Conns: 16},
		{Name: CaseKeep512, Title: small, Path: "/small", Conns: 512, Goal: 0.60},
		{
			Name: CaseConnect, Title: "a new connection per request", Path: "/small", Conns: 64, NewConn: true,
			Goal: 0.75, HandoffGoal: 0.45,
		},
		{Name: Case64K, Title: "keep-alive, 64 KiB replies", Path: "/64k", Conns: 64, Goal: 0.70, HandoffCPU: 0.1, HandoffRate: 0.97},
		// Few connections: a request that is under way when the load ends is paid for but not counted.
		{Name: Case4M, Title: "keep-alive, 4 MiB replies", Path: "/4m", Conns: 16, Goal: 0.80, HandoffCPU: 0.1, HandoffRate: 0.97},
		{Name: CaseIdle, Title: "idle sessions", Path: "/small", Conns: 2000, Idle: true},
	}
}

// Sample is what one contender did under one case in one round. Fields that do not apply to the case are
// zero.
type Sample struct {
	Round     int    `json:"round"`
	Case      string `json:"case"`
	Contender string `json:"contender"`
	Kind      Kind   `json:"kind"`

	// Invalid says why the sample does not count; empty if it does.
	Invalid string `json:"invalid,omitempty"`

	// Requests is how many were answered; Rate is that per second, as wrk says.
	Requests uint64  `json:"requests,omitempty"`
	Rate     float64 `json:"rate,omitempty"`
	// P50 and P99 are wrk's latency percentiles, in nanoseconds in JSON.
	P50 time.Duration `json:"p50_ns,omitempty"`
	P99 time.Duration `json:"p99_ns,omitempty"`

	// CPU is the balancer's CPU time per request in microseconds, from the nanosecond clocks of its
	// processes; StatCPU is the same from /proc/PID/stat, whose unit is 10 ms, as a check.
	CPU     float64 `json:"cpu_us,omitempty"`
	StatCPU float64 `json:"stat_cpu_us,omitempty"`
	// UserShare is the part of it spent in user mode, 0 to 1, as sampled by the kernel's timer tick.
	UserShare float64 `json:"user_share,omitempty"`
	// Switches is the balancer's context switches per request.
	Switches float64 `json:"switches,omitempty"`
	// BackendCPU is the CPU time of the backends per request in microseconds. It is not the balancer's, but
	// how a balancer writes decides how often a backend wakes up.
	BackendCPU float64 `json:"backend_cpu_us,omitempty"`
	// MachineCPU is the CPU time of the whole machine per request in microseconds: balancer, backends, load
	// and whatever else ran. A balancer that only moves work to the others does not lower it.
	MachineCPU float64 `json:"machine_cpu_us,omitempty"`
	// Others is the share of the machine's CPUs, 0 to 1, that neither the contender nor the backends nor the
	// load used, yet somebody did: interrupts, and other programs that disturbed the measurement.
	Others float64 `json:"others"`

	// IdleMemory is the user memory of an idle session in bytes, see [Memory.User]; IdleFDs its file
	// descriptors.
	IdleMemory float64 `json:"idle_memory_bytes,omitempty"`
	IdleFDs    float64 `json:"idle_fds,omitempty"`
	// IdleCPU is the CPU time that the balancer used per second, holding the idle sessions, in microseconds.
	IdleCPU float64 `json:"idle_cpu_us_per_s,omitempty"`
}
