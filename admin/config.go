package admin

import (
	"errors"
	"fmt"
	"net"
	"strconv"
)

// Config is how lb is controlled and observed, [admin]. Take DefaultConfig and change it.
type Config struct {
	// Socket is the path of the control socket; the CLI speaks to it. Default "/run/lb/admin.sock"; "" is off.
	Socket string `toml:"socket"`
	// SocketMode is the permission of the control socket, in octal. Default "0660".
	SocketMode string `toml:"socket_mode"`
	// HTTP is the address that serves /metrics and the read-only API. Default "127.0.0.1:9901"; "" is off.
	HTTP string `toml:"http"`
}

// DefaultConfig has every default set.
func DefaultConfig() Config {
	return Config{Socket: "/run/lb/admin.sock", SocketMode: "0660", HTTP: "127.0.0.1:9901"}
}

// Validate finds every fault. Each error's text starts with the key.
func (c *Config) Validate() error {
	var errs []error
	if len(c.Socket) > 107 {
		errs = append(errs, fmt.Errorf("socket: the path has %d bytes; a Unix socket's has at most 107", len(c.Socket)))
	}
	if mode, err := strconv.ParseUint(c.SocketMode, 8, 32); err != nil || mode > 0o777 {
		errs = append(errs, fmt.Errorf("socket_mode: %q is not an octal permission such as \"0660\"", c.SocketMode))
	}
	if c.HTTP != "" {
		if _, _, err := net.SplitHostPort(c.HTTP); err != nil {
			errs = append(errs, fmt.Errorf("http: %q is not host:port; write \"127.0.0.1:9901\", or \"\" for off", c.HTTP))
		}
	}
	return errors.Join(errs...)
}
