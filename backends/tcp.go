package backends

import (
	"errors"
	"fmt"
	"time"
)

// TCPConfig is how the kernel finds out that the other end of a TCP connection is gone (tcp(7)); it has no
// meaning for a Unix socket. It is part of a pool's Config, for its backends, and of a listener's, for its
// clients.
type TCPConfig struct {
	// Keepalive is how long a TCP connection is silent, at most, before the kernel asks whether the other end
	// is still there (TCP_KEEPIDLE). Each session has a time of its own between half of it and all of it, so
	// that not all ask at once. Default 75s; "0s" is off.
	Keepalive time.Duration `toml:"keepalive"`
	// KeepaliveInterval is the time between two such questions (TCP_KEEPINTVL). Default 15s.
	KeepaliveInterval time.Duration `toml:"keepalive_interval"`
	// KeepaliveCount is after how many questions without an answer the connection is given up (TCP_KEEPCNT),
	// 1..127. Default 4.
	KeepaliveCount int `toml:"keepalive_count"`
	// TCPUserTimeout is how long sent bytes may stay unacknowledged before the connection is given up
	// (TCP_USER_TIMEOUT). Default "0s": the kernel's own patience, about 15 minutes.
	TCPUserTimeout time.Duration `toml:"tcp_user_timeout"`
}

// DefaultTCPConfig has every default set.
func DefaultTCPConfig() TCPConfig {
	return TCPConfig{Keepalive: 75 * time.Second, KeepaliveInterval: 15 * time.Second, KeepaliveCount: 4}
}

// Check returns every fault. Each error's text starts with the key.
func (c *TCPConfig) Check() error {
	var errs []error
	if c.Keepalive != 0 && (c.Keepalive < time.Second || c.Keepalive > 32767*time.Second) {
		errs = append(errs, fmt.Errorf("keepalive: %v is not within 1s..9h; write \"75s\", or \"0s\" for off", c.Keepalive))
	}
	if c.KeepaliveInterval < time.Second || c.KeepaliveInterval > 32767*time.Second {
		errs = append(errs, fmt.Errorf("keepalive_interval: %v is not within 1s..9h; write \"15s\"", c.KeepaliveInterval))
	}
	if c.KeepaliveCount < 1 || c.KeepaliveCount > 127 {
		errs = append(errs, fmt.Errorf("keepalive_count: %d is not within 1..127", c.KeepaliveCount))
	}
	errs = append(errs, CheckDuration("tcp_user_timeout", c.TCPUserTimeout, true))
	return errors.Join(errs...)
}
