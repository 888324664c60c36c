package supervisor

import (
	"cmp"
	"errors"
	"fmt"
	"os/user"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
)

const (
	readyConnect = "connect"
	readyNotify  = "notify"

	orphansAdopt = "adopt"
	orphansStop  = "stop"

	// maxCount is the most workers of a pool.
	maxCount = 1024
)

// Config is the processes that lb runs for a pool, [pools.NAME.workers]. Take DefaultConfig and change it:
// the zero value is not valid.
type Config struct {
	// Command is the program and its arguments; no shell is involved. A program without a slash is looked for
	// in PATH. {socket} becomes the path of a Unix socket that the program must bind itself, a new one at
	// each start; {port} a free TCP port on 127.0.0.1 that it must bind, and is ready only when what listens
	// there is its own; {slot} the worker's number. Without {socket} and {port} lb binds the socket and hands
	// it over, listening, as descriptor 3 (LISTEN_FDS, as systemd's socket activation). Required.
	Command []string `toml:"command"`
	// Count is how many workers run. Default 0: as many as there are CPUs.
	Count int `toml:"count"`
	// Env is added to lb's own environment, and the placeholders of Command are filled in here too.
	// LB_WORKER_ID, LB_WORKER_SOCKET, NOTIFY_SOCKET, WATCHDOG_USEC, WATCHDOG_PID, INVOCATION_ID, LISTEN_FDS,
	// LISTEN_PID and LISTEN_FDNAMES are set by lb. Default {}.
	Env map[string]string `toml:"env"`
	// Dir is the working directory. A symbolic link is followed anew at each start of a worker, so that a
	// deploy can swap it. Default "": lb's own.
	Dir string `toml:"dir"`
	// User is the name or number of the user that the workers run as; needs root. Default "": lb's own.
	User string `toml:"user"`
	// Group is the name or number of their group; needs root. Default "": the User's own, with its
	// supplementary groups.
	Group string `toml:"group"`
	// Umask is their file mode mask, in octal: "027". Default "": lb's own.
	Umask string `toml:"umask"`
	// Nice is added to lb's own niceness, -40..39; a negative one needs root. Default 0.
	Nice int `toml:"nice"`
	// RlimitNofile is how many descriptors each may open. Default 0: what lb was started with.
	RlimitNofile uint64 `toml:"rlimit_nofile"`
	// Ready is what tells that a worker can take connections: "connect" (default), that it accepts one, or
	// READY=1 on NOTIFY_SOCKET if that comes first; "notify", only READY=1.
	Ready string `toml:"ready"`
	// StartTimeout is how long a worker may take to be ready; then it is stopped, and that counts as a crash.
	// Default 30s.
	StartTimeout time.Duration `toml:"start_timeout"`
	// StopTimeout is how long a worker that takes nothing new may take to finish its connections; then it is
	// stopped nevertheless. Default 30s.
	StopTimeout time.Duration `toml:"stop_timeout"`
	// DrainSignal tells a worker at the start of its drain that it gets no new connections, so that it can
	// finish those that clients keep: "USR2", or another one of StopSignal's. The process that lb started
	// gets it, and only if it has a handler, since it would end it otherwise; lb restart, scale, stop and
	// recycle send it, lb drain does not. Default "": none is sent.
	DrainSignal string `toml:"drain_signal"`
	// StopSignal asks a worker and its whole process group to end, once its connections are finished: "TERM"
	// (default), "INT", "QUIT", "HUP", "USR1" or "USR2", with or without "SIG" in front.
	StopSignal string `toml:"stop_signal"`
	// KillTimeout is how long it and all that it has started may take to end after that signal; then they are
	// killed. Default 10s.
	KillTimeout time.Duration `toml:"kill_timeout"`
	// KillAfter is how long a worker may be down, by its heartbeat or its probes, until it gets SIGABRT, for
	// a dump of what it hangs in, and KillTimeout later SIGKILL, and another one is started; "0s" is never.
	// Default 30s, but never with the pool's health type "accept": a worker that does not accept may be busy.
	KillAfter time.Duration `toml:"kill_after"`
	// MaxDraining is how many replaced workers of the pool may finish their connections at once; with one
	// more the oldest is stopped. Default 32; 0 is no limit.
	MaxDraining int `toml:"max_draining"`
	// Orphans is what becomes of the workers of an lb that was killed, when it is started again: "adopt"
	// (default) goes on with them, "stop" stops them and starts others.
	Orphans string `toml:"orphans"`
	// Log is the absolute path of a file for what the workers write to their standard output and error, each
	// line with its time, slot and pid; {slot} in it makes it a file for each slot. Default "": lb's own
	// event log.
	Log string `toml:"log"`
	// LogMaxMiB is the size in MiB at which that file is renamed and begun anew. Default 100; 0 is never.
	LogMaxMiB int `toml:"log_max_mib"`
	// LogKeep is how many renamed files are kept, as FILE.1 (the youngest), FILE.2 and so on. Default 3; 0
	// keeps none.
	LogKeep int `toml:"log_keep"`
	// Recycle replaces workers by age or use.
	Recycle RecycleConfig `toml:"recycle"`
	// Watchdog is the interval of the heartbeat that is asked of the workers (WATCHDOG_USEC). 0: none is
	// asked. It follows from the pool's health, and is no key of its own.
	Watchdog time.Duration `toml:"-"`
	// Handoff is how the workers are given accepted sockets, HandoffLB or HandoffNode; empty: they are not.
	// It follows from the pool's handoff, as what comes next.
	Handoff string `toml:"-"`
	// HandoffAddress is where clients connect to, which HandoffLB tells the workers.
	HandoffAddress string `toml:"-"`
	// HandoffReport has HandoffLB ask the workers to say when connections end.
	HandoffReport bool `toml:"-"`
}

// RecycleConfig is when a worker is replaced though nothing is wrong with it, [pools.NAME.workers.recycle]:
// its successor first, and one worker of the pool at a time.
type RecycleConfig struct {
	// Conns is after how many connections. Default 0: never.
	Conns uint64 `toml:"conns"`
	// Age is after how long. Default "0s": never.
	Age time.Duration `toml:"age"`
	// Memory is the size in RAM from which on a worker is replaced, with all that it has started, such as
	// "300MiB"; units are KiB, MiB and GiB. It is looked at every five seconds, and a worker has half a
	// minute after its start. Default "": never.
	Memory string `toml:"memory"`
	// Jitter spreads Conns and Age by up to this part either way, 0..0.5, so that workers do not come of age
	// together. Default 0.2.
	Jitter float64 `toml:"jitter"`
}

// DefaultConfig has every default set, and no command.
func DefaultConfig() Config {
	return Config{
		Ready:        readyConnect,
		StartTimeout: 30 * time.Second,
		StopTimeout:  30 * time.Second,
		StopSignal:   "TERM",
		KillTimeout:  10 * time.Second,
		KillAfter:    30 * time.Second,
		MaxDraining:  32,
		Orphans:      orphansAdopt,
		LogMaxMiB:    100,
		LogKeep:      3,
		Recycle:      RecycleConfig{Jitter: 0.2},
	}
}

// EffectiveCount is Count, or the number of CPUs.
func (c *Config) EffectiveCount() int {
	if c.Count == 0 {
		return runtime.NumCPU()
	}
	return c.Count
}

var (
	envName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)
	octal   = regexp.MustCompile(`^0?[0-7]{1,3}$`)
	// ownEnv is what lb itself tells its workers.
	ownEnv = []string{"LB_WORKER_ID", "LB_WORKER_SOCKET", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "INVOCATION_ID", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES",
		handoff.EnvFD, handoff.EnvAddress, handoff.EnvReport, handoff.EnvNodeFD, handoff.EnvNodeSerialization, handoff.EnvNodeID}
	// signals are the values of stop_signal and drain_signal; "SIG" may be in front.
	signals = []string{"TERM", "INT", "QUIT", "HUP", "USR1", "USR2"}
)

// Validate finds every fault. Each error's text starts with the key. It looks at nothing outside of the
// Config but for the user and the group.
func (c *Config) Validate() error {
	_, err := c.identity()
	return errors.Join(c.ValidateText(), err)
}

// ValidateText is Validate without the user and the group, who may be gone while workers of theirs run.
func (c *Config) ValidateText() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	duration := func(key string, d time.Duration, zeroOK bool) {
		if err := checkDuration(key, d, zeroOK); err != nil {
			errs = append(errs, err)
		}
	}
	if len(c.Command) == 0 || c.Command[0] == "" {
		fault("command: missing; write [\"./app\", \"argument\"]")
	}
	for i, arg := range c.Command {
		if strings.ContainsRune(arg, 0) {
			fault("command[%d]: NUL byte", i)
		}
	}
	if c.Handoff != "" && (c.names("{socket}") || c.names("{port}")) {
		fault("command: {socket} and {port} cannot be used with handoff = %q: the worker is given its connections on descriptor %d", c.Handoff, backFD)
	}
	if c.names("{socket}") && c.names("{port}") {
		fault("command: {socket} and {port} cannot both be used: a worker listens in one place")
	}
	if c.Count < 0 || c.Count > maxCount {
		fault("count: %d is not within 1..%d, nor 0 for one a CPU", c.Count, maxCount)
	}
	for name, value := range c.Env {
		switch {
		case !envName.MatchString(name):
			fault("env: %q cannot name a variable", name)
		case slices.Contains(ownEnv, name):
			fault("env.%s: is set by lb", name)
		case strings.ContainsRune(value, 0):
			fault("env.%s: NUL byte", name)
		}
	}
	if strings.ContainsRune(c.Dir, 0) {
		fault("dir: NUL byte")
	}
	if c.Umask != "" && !octal.MatchString(c.Umask) {
		fault("umask: %q is no octal number; write \"022\"", c.Umask)
	}
	if c.Nice < -40 || c.Nice > 39 {
		fault("nice: %d is not within -40..39", c.Nice)
	}
	if c.RlimitNofile != 0 && c.RlimitNofile < 16 {
		fault("rlimit_nofile: %d is below 16; write 0 for lb's own", c.RlimitNofile)
	}
	oneOf := func(key, value string, known []string) {
		if !slices.Contains(known, value) {
			fault("%s: unknown value %q; write one of %q", key, value, known)
		}
	}
	oneOf("ready", c.Ready, []string{readyConnect, readyNotify})
	oneOf("stop_signal", strings.TrimPrefix(c.StopSignal, "SIG"), signals)
	if c.DrainSignal != "" {
		oneOf("drain_signal", strings.TrimPrefix(c.DrainSignal, "SIG"), signals)
	}
	oneOf("orphans", c.Orphans, []string{orphansAdopt, orphansStop})
	switch {
	case c.Log == "":
	case !filepath.IsAbs(c.Log):
		fault("log: %q is no absolute path; write one, or \"\" for lb's own log", c.Log)
	case strings.HasSuffix(c.Log, "/"), strings.ContainsRune(c.Log, 0):
		fault("log: %q is no path of a file", c.Log)
	}
	if c.LogMaxMiB < 0 || c.LogMaxMiB > 1<<20 {
		fault("log_max_mib: %d is not within 1..%d, nor 0 for no limit", c.LogMaxMiB, 1<<20)
	}
	if c.LogKeep < 0 || c.LogKeep > 1000 {
		fault("log_keep: %d is not within 0..1000", c.LogKeep)
	}
	duration("start_timeout", c.StartTimeout, false)
	duration("stop_timeout", c.StopTimeout, false)
	duration("kill_timeout", c.KillTimeout, false)
	duration("kill_after", c.KillAfter, true)
	duration("recycle.age", c.Recycle.Age, true)
	if _, err := parseSize(c.Recycle.Memory); err != nil {
		fault("recycle.memory: %w", err)
	}
	if c.MaxDraining < 0 {
		fault("max_draining: %d is negative; write 0 for no limit", c.MaxDraining)
	}
	if !(c.Recycle.Jitter >= 0 && c.Recycle.Jitter <= 0.5) { // also NaN
		fault("recycle.jitter: %v is not within 0..0.5", c.Recycle.Jitter)
	}
	return errors.Join(errs...)
}

// checkDuration is the rule of backends.CheckDuration, which this package does not import.
func checkDuration(key string, d time.Duration, zeroOK bool) error {
	switch {
	case d == 0 && zeroOK, d >= time.Millisecond:
		return nil
	case d < 0:
		return fmt.Errorf("%s: %v is negative", key, d)
	case d == 0:
		return fmt.Errorf("%s: must be more than 0; write a duration such as \"5s\"", key)
	default:
		return fmt.Errorf("%s: %v is below 1ms; a bare number counts nanoseconds: write \"%ds\" for seconds", key, d, int64(d))
	}
}

// Place returns how a worker is given its address: "{port}" or "{socket}", the placeholder that its command
// or environment has; empty where it inherits a socket that listens.
func (c *Config) Place() string {
	for _, placeholder := range []string{"{port}", "{socket}"} {
		if c.names(placeholder) {
			return placeholder
		}
	}
	return ""
}

// names reports whether the command or the environment uses a placeholder.
func (c *Config) names(placeholder string) bool {
	for _, arg := range c.Command {
		if strings.Contains(arg, placeholder) {
			return true
		}
	}
	for _, value := range c.Env {
		if strings.Contains(value, placeholder) {
			return true
		}
	}
	return false
}

// identity is who a worker runs as.
type identity struct {
	set      bool // false: as lb itself
	uid, gid int
	groups   []int
	name     string // for USER and LOGNAME; empty: this host knows none
	home     string // empty: lb's own, as no other user is asked for
}

// identity looks up User and Group.
func (c *Config) identity() (identity, error) {
	if c.User == "" && c.Group == "" {
		return identity{}, nil
	}
	id := identity{set: true, uid: unix.Getuid(), gid: unix.Getgid()}
	var err error
	if c.User != "" {
		u, lookup := user.Lookup(c.User)
		if lookup != nil {
			u, lookup = user.LookupId(c.User)
		}
		switch {
		case lookup == nil:
			id.uid, _ = strconv.Atoi(u.Uid)
			id.gid, _ = strconv.Atoi(u.Gid)
			id.name, id.home = u.Username, cmp.Or(u.HomeDir, "/")
			if list, e := u.GroupIds(); e == nil {
				for _, g := range list {
					if n, e := strconv.Atoi(g); e == nil {
						id.groups = append(id.groups, n)
					}
				}
			}
		default:
			id.uid, err = number("user", c.User)
			id.gid, id.home = id.uid, "/"
		}
	}
	if c.Group != "" && err == nil {
		g, lookup := user.LookupGroup(c.Group)
		if lookup != nil {
			g, lookup = user.LookupGroupId(c.Group)
		}
		if lookup == nil {
			id.gid, err = strconv.Atoi(g.Gid)
		} else {
			id.gid, err = number("group", c.Group)
		}
	}
	if len(id.groups) == 0 {
		id.groups = []int{id.gid}
	}
	return id, err
}

func number(key, s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return 0, fmt.Errorf("%s: this host knows no %s %q", key, key, s)
	}
	return int(n), nil
}
