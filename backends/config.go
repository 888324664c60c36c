package backends

import (
	"errors"
	"fmt"
	"math"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	// DefaultWeight is the weight of a backend that names none.
	DefaultWeight = 100
	// MaxWeight is the largest weight.
	MaxWeight = 1000
	// minTimeout is the floor of every duration: a bare integer in TOML reads as nanoseconds.
	minTimeout = time.Millisecond
	// maxDuration keeps sums of a duration and a moment far from overflow.
	maxDuration = 10 * 365 * 24 * time.Hour
)

// policies holds the names that balance takes.
var policies = []string{"leastconn", "random", "roundrobin", "source", "first"}

// whenAllDown holds the values that when_all_down takes.
var whenAllDown = []string{whenReject, whenQueue, whenAny}

const (
	whenReject = "reject"
	whenQueue  = "queue"
	whenAny    = "any"
)

// Config is a pool's configuration, [pools.NAME]. Take DefaultConfig and change it: the zero value is not
// valid.
type Config struct {
	// Balance is the policy, by which a new connection gets its backend: "leastconn" (default), the one with
	// the fewest connections for its weight, and in turn by weight where these are equal; "random", the less
	// loaded of two drawn at random by weight; "roundrobin", in turn by weight; "source", the same one for
	// the same client address, unless that one is out or has more than its share; "first", the first one in
	// the order of the config that is below its max_conns.
	Balance string `toml:"balance"`
	// MaxConns is how many connections each backend may hold at once; 0 (default) is no limit.
	MaxConns int `toml:"max_conns"`
	// QueueSize is how many new connections may wait while every backend is at its max_conns, first come,
	// first served. One more is closed at once. Default 1024; 0 is no queue.
	QueueSize int `toml:"queue_size"`
	// QueueTimeout is how long a connection may wait in the queue; then it is closed. Default 5s.
	QueueTimeout time.Duration `toml:"queue_timeout"`
	// SlowStart is how long a backend that comes up or is added takes to grow from a hundredth of its weight
	// to all of it, unless all others are as new. Default "0s": it has its full weight at once.
	SlowStart time.Duration `toml:"slow_start"`
	// ConnectTimeout bounds the whole way from the accepted client to an established backend connection, over
	// all the backends tried. Default 5s.
	ConnectTimeout time.Duration `toml:"connect_timeout"`
	// IdleTimeout closes a session on which neither side sent a byte for this long. Default 1h; "0s" is
	// never.
	IdleTimeout time.Duration `toml:"idle_timeout"`
	// HalfClosedTimeout is IdleTimeout for a session of which one side has closed its direction. Default 10m;
	// "0s" is never.
	HalfClosedTimeout time.Duration `toml:"half_closed_timeout"`
	// MaxSessionAge ends a session this long after it was connected, spread by up to a tenth either way so
	// that sessions that began together do not end together. Default "0s": never.
	MaxSessionAge time.Duration `toml:"max_session_age"`
	// SendProxy tells the backend the client's address in a PROXY header, "v1" (text) or "v2" (binary, with
	// the TLVs that came from the client's own header). Default "": none.
	SendProxy string `toml:"send_proxy"`
	// Owner is the user, by name or number, who owns the Unix sockets of the pool's backends. lb connects to
	// such a socket only if it belongs to root, to lb's own user, or to Owner; where somebody else may write
	// to one of its directories, only if it belongs to Owner. It follows no symbolic link at the end of the
	// path. Workers that lb runs need no Owner. Default "": no other user.
	Owner string `toml:"owner"`
	// WhenAllDown is what happens to a new connection when no backend is selectable: "reject" (default)
	// closes it, "queue" lets it wait in the queue until one is up, "any" tries the backends whatever their
	// health, but none that is in drain or maint or has weight 0.
	WhenAllDown string `toml:"when_all_down"`
	// Handoff gives the accepted sockets themselves to the pool's workers, so that clients speak with them
	// directly: "off" (default), lb carries the bytes; "lb", a worker takes them from descriptor 3
	// (docs/handoff.md); "node", the workers are Node programs, which need no change. All backends of the
	// pool must be workers.
	Handoff string `toml:"handoff"`
	// HandoffWindow is how many connections a worker may have been given and not taken yet, 1..64. A worker
	// with so many is busy: the next one goes to another worker, or waits in the queue. Default 8.
	HandoffWindow int `toml:"handoff_window"`
	// HandoffTimeout is how long a worker may leave a connection untaken; then it is down, and what it has
	// not taken goes to others. Default 1s.
	HandoffTimeout time.Duration `toml:"handoff_timeout"`
	// TCPConfig is about the connections to the pool's TCP backends.
	TCPConfig
	// Backends are the places to send connections to, in the order of the config.
	Backends []BackendConfig `toml:"-"`
}

// BackendConfig is one [[pools.NAME.backends]]. Take DefaultBackendConfig and change it.
type BackendConfig struct {
	// Name identifies the backend in its pool. Default: its address.
	Name string `toml:"name"`
	// Address is "unix:/path", "unix:@name" (abstract), "host:port" or "[v6]:port". Required.
	Address string `toml:"address"`
	// Weight is the backend's share against the others', 0..1000; 0 takes no new connections. Default 100.
	Weight int `toml:"weight"`
	// MaxConns is how many connections this backend may hold at once; 0 (default) is the pool's max_conns.
	MaxConns int `toml:"max_conns"`
	// Backup keeps the backend for when no other of the pool is selectable. Default false.
	Backup bool `toml:"backup"`
	// Owner is the user who owns the backend's Unix socket. Default "": the pool's owner.
	Owner string `toml:"owner"`
}

// DefaultConfig returns a pool without backends, with every default set.
func DefaultConfig() Config {
	return Config{
		Balance:           "leastconn",
		QueueSize:         1024,
		QueueTimeout:      5 * time.Second,
		ConnectTimeout:    5 * time.Second,
		IdleTimeout:       time.Hour,
		HalfClosedTimeout: 10 * time.Minute,
		TCPConfig:         DefaultTCPConfig(),
		WhenAllDown:       whenReject,
		Handoff:           HandoffOff,
		HandoffWindow:     8,
		HandoffTimeout:    time.Second,
	}
}

// DefaultBackendConfig returns a backend with every default set and no address.
func DefaultBackendConfig() BackendConfig { return BackendConfig{Weight: DefaultWeight} }

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ValidName reports whether s can be the name of a pool or a listener: letters, digits, dot, dash and
// underscore, at most 64, so that it needs no quoting in a path POOL/BACKEND, a label or a URL.
func ValidName(s string) bool { return nameForm.MatchString(s) }

// Validate returns every fault. Each error's text starts with the key, relative to the pool, such as
// "backends[2].weight: …".
func (c *Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !slices.Contains(policies, c.Balance) {
		fault("balance: unknown policy %q; write one of %q", c.Balance, policies)
	}
	if err := CheckMaxConns(c.MaxConns, "for no limit"); err != nil {
		errs = append(errs, err)
	} else if c.Balance == "first" && c.MaxConns == 0 && !c.limitsEach() {
		fault("max_conns: missing; \"first\" fills one backend after the other, so each needs a limit: here, or its own")
	}
	if c.QueueSize < 0 {
		fault("queue_size: %d is negative; write 0 for no queue", c.QueueSize)
	}
	errs = append(errs,
		CheckDuration("queue_timeout", c.QueueTimeout, false),
		CheckDuration("slow_start", c.SlowStart, true),
		CheckDuration("connect_timeout", c.ConnectTimeout, false),
		CheckDuration("idle_timeout", c.IdleTimeout, true),
		CheckDuration("half_closed_timeout", c.HalfClosedTimeout, true),
		CheckDuration("max_session_age", c.MaxSessionAge, true),
		c.TCPConfig.Check())
	if err := checkOwner(c.Owner); err != nil {
		fault("owner: %w", err)
	}
	if !slices.Contains(whenAllDown, c.WhenAllDown) {
		fault("when_all_down: unknown value %q; write one of %q", c.WhenAllDown, whenAllDown)
	} else if c.WhenAllDown == whenQueue && c.QueueSize == 0 {
		fault("when_all_down: \"queue\" needs a queue_size above 0")
	}
	if c.SendProxy != "" && c.SendProxy != "v1" && c.SendProxy != "v2" {
		fault("send_proxy: unknown version %q; write \"v1\", \"v2\", or \"\" for none", c.SendProxy)
	}
	errs = append(errs, c.checkHandoff()...)
	seen := map[string]int{}
	for i, b := range c.Backends {
		if err := b.validate(); err != nil {
			for _, e := range err.(interface{ Unwrap() []error }).Unwrap() {
				fault("backends[%d].%w", i, e)
			}
		}
		name := b.EffectiveName()
		if first, ok := seen[name]; ok && name != "" {
			fault("backends[%d].name: %q is already the name of backends[%d]", i, name, first)
		}
		seen[name] = i
	}
	return errors.Join(errs...)
}

// limitsEach reports whether each backend has a max_conns of its own.
func (c *Config) limitsEach() bool {
	return len(c.Backends) > 0 && !slices.ContainsFunc(c.Backends, func(b BackendConfig) bool { return b.MaxConns == 0 })
}

// EffectiveName returns Name, or the address where no name is given.
func (b *BackendConfig) EffectiveName() string {
	if b.Name != "" {
		return b.Name
	}
	return b.Address
}

func (b *BackendConfig) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if b.Name != "" && !ValidName(b.Name) {
		fault("name: %q must be 1 to 64 letters, digits, dots, dashes or underscores, and start with a letter or digit", b.Name)
	}
	if b.Address == "" {
		fault("address: missing; write unix:/path, unix:@name, host:port or [v6]:port")
	} else if a, err := ParseAddress(b.Address); err != nil {
		fault("address: %w", err)
	} else if !a.IsUnix() && (a.Host == "" || a.Port == 0) {
		fault("address: %q needs a host and a port other than 0", b.Address)
	}
	if err := CheckWeight(b.Weight); err != nil {
		errs = append(errs, err)
	}
	if err := CheckMaxConns(b.MaxConns, "for the pool's"); err != nil {
		errs = append(errs, err)
	}
	if err := checkOwner(b.Owner); err != nil {
		fault("owner: %w", err)
	}
	return errors.Join(errs...)
}

// checkOwner finds what can be no user. Whether there is such a user is asked when lb connects: it may be
// made later, and lb must not end for that.
func checkOwner(name string) error {
	if strings.ContainsAny(name, ":/ \t\n\x00") || strings.HasPrefix(name, "-") {
		return fmt.Errorf("%q is no user; write a user's name or number, or \"\" for none", name)
	}
	return nil
}

// CheckMaxConns returns an error that wraps ErrRange unless n is a limit; zero says what 0 stands for.
func CheckMaxConns(n int, zero string) error {
	if n < 0 || n > math.MaxInt32 {
		return fmt.Errorf("max_conns: %d is %w 0..%d; write 0 %s", n, ErrRange, math.MaxInt32, zero)
	}
	return nil
}

// CheckDuration returns an error unless d is at least 1 ms, or 0 where zeroOK: the rule for all durations in
// the config. The message tells the writer of a bare integer, which TOML reads as nanoseconds, what to write.
func CheckDuration(key string, d time.Duration, zeroOK bool) error {
	switch {
	case d > maxDuration:
		return fmt.Errorf("%s: %v is more than ten years", key, d)
	case d == 0 && zeroOK, d >= minTimeout:
		return nil
	case d < 0:
		return fmt.Errorf("%s: %v is negative", key, d)
	case d == 0:
		return fmt.Errorf("%s: must be more than 0; write a duration such as \"5s\"", key)
	default:
		return fmt.Errorf("%s: %v is below 1ms; a bare number counts nanoseconds: write \"%ds\" for seconds", key, d, int64(d))
	}
}
