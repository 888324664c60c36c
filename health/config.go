package health

import (
	"errors"
	"fmt"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// Config is how a pool's backends are watched, [pools.NAME.health]. Take DefaultConfig and change it.
type Config struct {
	// Type is the probe: "connect" (default) opens a connection and closes it; "none" probes nothing: the backends
	// are up, and only a run of failed connects takes one down, until PassiveHold is over.
	Type string `toml:"type"`
	// Interval is the time between two probes of a backend. Default 1s.
	Interval time.Duration `toml:"interval"`
	// Jitter spreads the interval by up to this part of it either way, 0..0.5, so that probes do not come in step. Default 0.1.
	Jitter float64 `toml:"jitter"`
	// Timeout is how long one probe may take. Default 1s.
	Timeout time.Duration `toml:"timeout"`
	// Rise is how many probes in a row must succeed until a backend that is down is up. Default 2.
	Rise int `toml:"rise"`
	// Fall is how many probes in a row must fail until a backend that is up is down. Default 3.
	Fall int `toml:"fall"`
	// PassiveFall is how many connects of clients in a row must fail until the backend is taken down at once, without
	// waiting for a probe. Default 3; 0 is never.
	PassiveFall int `toml:"passive_fall"`
}

// DefaultConfig has every default set.
func DefaultConfig() Config {
	return Config{Type: "connect", Interval: time.Second, Jitter: 0.1, Timeout: time.Second, Rise: 2, Fall: 3, PassiveFall: 3}
}

// Validate finds every fault. Each error's text starts with the key.
func (c *Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	switch c.Type {
	case "connect", "none":
	default:
		fault("type: unknown probe %q; write \"connect\" or \"none\"", c.Type)
	}
	errs = append(errs,
		backends.CheckDuration("interval", c.Interval, false),
		backends.CheckDuration("timeout", c.Timeout, false))
	if !(c.Jitter >= 0 && c.Jitter <= 0.5) {
		fault("jitter: %v is not within 0..0.5", c.Jitter)
	}
	if c.Rise < 1 {
		fault("rise: %d is not a positive number", c.Rise)
	}
	if c.Fall < 1 {
		fault("fall: %d is not a positive number", c.Fall)
	}
	if c.PassiveFall < 0 {
		fault("passive_fall: %d is negative; write 0 for never", c.PassiveFall)
	}
	return errors.Join(errs...)
}
