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
	// Loops is the number of event loops, each a thread of its own. 0 (default) is one per CPU that lb may
	// use.
	Loops int `toml:"loops"`
	// MaxSessions is how many sessions lb holds at once; newcomers beyond it wait in the kernel's queue until
	// one ends. Sessions that were handed off to a worker do not count. 0 (default) is derived from
	// RLIMIT_NOFILE: two descriptors a session, after what the process needs.
	MaxSessions int `toml:"max_sessions"`
	// Batching is whether an event loop has the receives and sends of a round done in two system calls,
	// through an io_uring(7): "auto" (default), where the kernel and the sandbox allow it and a round carries
	// several sessions; "on", the same, and lb does not start without it; "off", never. It takes Linux 5.18.
	// After a reload an upgrade in place (lb upgrade) makes a change hold.
	Batching string `toml:"batching"`
	// StopTimeout is how long sessions may finish after SIGTERM before they are closed. Default 30s; "0s"
	// closes at once.
	StopTimeout time.Duration `toml:"stop_timeout"`
}

// The values of Config.Batching.
const (
	BatchingAuto = "auto"
	BatchingOn   = "on"
	BatchingOff  = "off"
)

// DefaultConfig has every default set.
func DefaultConfig() Config { return Config{Batching: BatchingAuto, StopTimeout: 30 * time.Second} }

// Validate finds every fault. Each error's text starts with the key.
func (c *Config) Validate() error {
	var errs []error
	if c.Loops < 0 || c.Loops > 1024 {
		errs = append(errs, fmt.Errorf("loops: %d is not within 0..1024; write 0 for one per CPU", c.Loops))
	}
	if c.MaxSessions < 0 {
		errs = append(errs, fmt.Errorf("max_sessions: %d is negative; write 0 for the limit of RLIMIT_NOFILE", c.MaxSessions))
	}
	if c.Batching != BatchingAuto && c.Batching != BatchingOn && c.Batching != BatchingOff {
		errs = append(errs, fmt.Errorf("batching: unknown value %q; write \"auto\", \"on\" or \"off\"", c.Batching))
	}
	errs = append(errs, backends.CheckDuration("stop_timeout", c.StopTimeout, true))
	return errors.Join(errs...)
}

// ListenerConfig is one [listeners.NAME]. Take DefaultListenerConfig and change it.
type ListenerConfig struct {
	// Bind are the addresses to listen on: "127.0.0.1:8080", ":8080" (every address, IPv4 and IPv6),
	// "[::]:8080" (the same, but IPv6 alone where some listener has an IPv4 address with that port),
	// "unix:/path", "unix:@name". At least one.
	Bind []string `toml:"bind"`
	// Pool is the name of the pool that serves the listener. Default "": none, and then there must be a
	// split.
	Pool string `toml:"pool"`
	// Split spreads the connections over several pools by weight, 0..1000, instead of Pool: { blue = 90,
	// green = 10 }. Default {}: all go to Pool.
	Split map[string]int `toml:"split"`
	// SplitBy is what a split gives its sides: "connection" (default), each in turn, exact in proportion;
	// "client", each client address, so that a client stays with its side as long as the weights stay.
	SplitBy string `toml:"split_by"`
	// Backlog is how many connections the kernel queues until lb accepts them; it caps it at
	// net.core.somaxconn. Default 4096.
	Backlog int `toml:"backlog"`
	// UnixMode is the permission of the sockets that Bind makes with unix:/path, in octal. Default "0666".
	UnixMode string `toml:"unix_mode"`
	// TCPConfig is about the connections of TCP clients.
	backends.TCPConfig
	// AccessConfig is who may connect.
	AccessConfig
}

// DefaultListenerConfig is a listener with every default set, no address and no pool.
func DefaultListenerConfig() ListenerConfig {
	return ListenerConfig{
		SplitBy: "connection", Backlog: 4096, UnixMode: "0666",
		TCPConfig: backends.DefaultTCPConfig(), AccessConfig: DefaultAccessConfig(),
	}
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
	switch {
	case c.Pool == "" && len(c.Split) == 0:
		errs = append(errs, errors.New("pool: missing; name the pool that serves this listener"))
	case c.Pool != "" && len(c.Split) > 0:
		errs = append(errs, errors.New("split: there is a pool too; write one of them"))
	}
	if len(c.Split) > 0 {
		errs = append(errs, backends.ValidateSplit(c.Split))
	}
	if c.SplitBy != "connection" && c.SplitBy != "client" {
		errs = append(errs, fmt.Errorf("split_by: unknown value %q; write \"connection\" or \"client\"", c.SplitBy))
	}
	if c.Backlog < 1 {
		errs = append(errs, fmt.Errorf("backlog: %d is not a positive number", c.Backlog))
	}
	if _, err := c.unixMode(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(append(errs, c.TCPConfig.Check(), c.AccessConfig.validate())...)
}

func (c *ListenerConfig) unixMode() (uint32, error) {
	mode, err := strconv.ParseUint(c.UnixMode, 8, 32)
	if err != nil || mode > 0o777 {
		return 0, fmt.Errorf("unix_mode: %q is not an octal permission such as \"0660\"", c.UnixMode)
	}
	return uint32(mode), nil
}
