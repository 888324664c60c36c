package proxy

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// Config is how lb carries connections, [proxy]. Take DefaultConfig and change it.
type Config struct {
	// Loops is the number of event loops, each a thread of its own. 0 (default) is one per CPU that lb may use.
	Loops int `toml:"loops"`
	// MaxSessions is how many sessions lb holds at once; newcomers beyond it wait in the kernel's queue until one
	// ends. 0 (default) is derived from RLIMIT_NOFILE: two descriptors a session, after what the process needs.
	MaxSessions int `toml:"max_sessions"`
	// StopTimeout is how long sessions may finish after SIGTERM before they are closed. Default 30s; "0s" closes at once.
	StopTimeout time.Duration `toml:"stop_timeout"`
}

// DefaultConfig has every default set.
func DefaultConfig() Config { return Config{StopTimeout: 30 * time.Second} }

// Validate finds every fault. Each error's text starts with the key.
func (c *Config) Validate() error {
	var errs []error
	if c.Loops < 0 || c.Loops > 1024 {
		errs = append(errs, fmt.Errorf("loops: %d is not within 0..1024; write 0 for one per CPU", c.Loops))
	}
	if c.MaxSessions < 0 {
		errs = append(errs, fmt.Errorf("max_sessions: %d is negative; write 0 for the limit of RLIMIT_NOFILE", c.MaxSessions))
	}
	errs = append(errs, backends.CheckDuration("stop_timeout", c.StopTimeout, true))
	return errors.Join(errs...)
}

// ListenerConfig is one [listeners.NAME]. Take DefaultListenerConfig and change it.
type ListenerConfig struct {
	// Bind are the addresses to listen on: "127.0.0.1:8080", "[::]:8080", ":8080" (every address, IPv4 and IPv6),
	// "unix:/path", "unix:@name". At least one.
	Bind []string `toml:"bind"`
	// Pool is the name of the pool that serves the listener. Required.
	Pool string `toml:"pool"`
	// Backlog is how many connections the kernel queues until lb accepts them; it caps it at net.core.somaxconn.
	// Default 4096.
	Backlog int `toml:"backlog"`
	// UnixMode is the permission of the sockets that Bind makes with unix:/path, in octal. Default "0666".
	UnixMode string `toml:"unix_mode"`
	// Keepalive is how long a TCP connection is silent before the kernel probes the client. Default 75s; "0s" is off.
	Keepalive time.Duration `toml:"keepalive"`
}

// DefaultListenerConfig is a listener with every default set, no address and no pool.
func DefaultListenerConfig() ListenerConfig {
	return ListenerConfig{Backlog: 4096, UnixMode: "0666", Keepalive: 75 * time.Second}
}

// Validate finds every fault. Each error's text starts with the key.
func (c *ListenerConfig) Validate() error {
	var errs []error
	if len(c.Bind) == 0 {
		errs = append(errs, errors.New("bind: missing; write an address such as [\"127.0.0.1:8080\"]"))
	}
	for i, s := range c.Bind {
		if _, err := backends.ParseAddress(s); err != nil {
			errs = append(errs, fmt.Errorf("bind[%d]: %w", i, err))
		}
	}
	if c.Pool == "" {
		errs = append(errs, errors.New("pool: missing; name the pool that serves this listener"))
	}
	if c.Backlog < 1 {
		errs = append(errs, fmt.Errorf("backlog: %d is not a positive number", c.Backlog))
	}
	if _, err := c.unixMode(); err != nil {
		errs = append(errs, err)
	}
	if c.Keepalive != 0 && c.Keepalive < time.Second {
		errs = append(errs, fmt.Errorf("keepalive: %v is below 1s; write \"75s\", or \"0s\" for off", c.Keepalive))
	}
	return errors.Join(errs...)
}

func (c *ListenerConfig) unixMode() (uint32, error) {
	mode, err := strconv.ParseUint(c.UnixMode, 8, 32)
	if err != nil || mode > 0o777 {
		return 0, fmt.Errorf("unix_mode: %q is not an octal permission such as \"0660\"", c.UnixMode)
	}
	return uint32(mode), nil
}
