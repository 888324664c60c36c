package backends

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"time"
)

const (
	// DefaultWeight is the weight of a backend that names none.
	DefaultWeight = 100
	// MaxWeight is the largest weight.
	MaxWeight = 1000
	// minTimeout is the floor of every duration: a bare integer in TOML reads as nanoseconds.
	minTimeout = time.Millisecond
)

// Policies are the names that balance takes.
var policies = []string{"leastconn"}

// Config is a pool's configuration, [pools.NAME]. Take DefaultConfig and change it: the zero value is not valid.
type Config struct {
	// Balance is the policy: "leastconn" (default).
	Balance string `toml:"balance"`
	// MaxConns is how many connections each backend may hold at once; 0 (default) is no limit.
	MaxConns int `toml:"max_conns"`
	// ConnectTimeout bounds the whole way from the accepted client to an established backend connection, over all
	// the backends tried. Default 5s.
	ConnectTimeout time.Duration `toml:"connect_timeout"`
	// IdleTimeout closes a session on which neither side sent a byte for this long. Default 1h; "0s" is never.
	IdleTimeout time.Duration `toml:"idle_timeout"`
	// HalfClosedTimeout is IdleTimeout for a session of which one side has closed its direction. Default 10m; "0s" is never.
	HalfClosedTimeout time.Duration `toml:"half_closed_timeout"`
	// WhenAllDown is what happens to a new connection when no backend is selectable: "reject" (default) closes it.
	WhenAllDown string `toml:"when_all_down"`
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
}

// DefaultConfig is a pool without backends, with every default set.
func DefaultConfig() Config {
	return Config{
		Balance:           "leastconn",
		ConnectTimeout:    5 * time.Second,
		IdleTimeout:       time.Hour,
		HalfClosedTimeout: 10 * time.Minute,
		WhenAllDown:       "reject",
	}
}

// DefaultBackendConfig is a backend with every default set and no address.
func DefaultBackendConfig() BackendConfig { return BackendConfig{Weight: DefaultWeight} }

var nameForm = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$`)

// ValidName says whether s can name a pool or a listener: letters, digits, dot, dash and underscore, at most 64, so
// that it needs no quoting in a path POOL/BACKEND, a label or a URL.
func ValidName(s string) bool { return nameForm.MatchString(s) }

// Validate finds every fault. Each error's text starts with the key, relative to the pool, such as
// "backends[2].weight: …".
func (c *Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !slices.Contains(policies, c.Balance) {
		fault("balance: unknown policy %q; write one of %q", c.Balance, policies)
	}
	if c.MaxConns < 0 {
		fault("max_conns: %d is negative; write 0 for no limit", c.MaxConns)
	}
	errs = append(errs,
		CheckDuration("connect_timeout", c.ConnectTimeout, false),
		CheckDuration("idle_timeout", c.IdleTimeout, true),
		CheckDuration("half_closed_timeout", c.HalfClosedTimeout, true))
	if c.WhenAllDown != "reject" {
		fault("when_all_down: unknown value %q; write \"reject\"", c.WhenAllDown)
	}
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

// EffectiveName is Name, or the address where no name is given.
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
	if b.Weight < 0 || b.Weight > MaxWeight {
		fault("weight: %d is not within 0..%d", b.Weight, MaxWeight)
	}
	if b.MaxConns < 0 {
		fault("max_conns: %d is negative; write 0 for the pool's", b.MaxConns)
	}
	return errors.Join(errs...)
}

// CheckDuration is the one rule for durations in the config: at least 1 ms, or 0 where zeroOK. The message tells the
// writer of a bare integer, which TOML reads as nanoseconds, what to write.
func CheckDuration(key string, d time.Duration, zeroOK bool) error {
	switch {
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
