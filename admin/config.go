package admin

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/273ebdf9/lb/admin/api"
)

// Config is how lb is controlled and observed, [admin]. Take DefaultConfig and change it.
type Config struct {
	// Socket is the absolute path of the control socket; the CLI speaks to it. Its directory is made if only
	// that is missing. Default "/run/lb/admin.sock"; "" is off.
	Socket string `toml:"socket"`
	// SocketMode is the permission of the control socket, in octal. Who may write to it may look, and change
	// what runs: weights, states, sessions, workers. Only root and the user that runs lb may add and remove
	// backends, reload, upgrade and stop lb; docs/access.md has all of it. Default "0660".
	SocketMode string `toml:"socket_mode"`
	// SocketGroup is the group of the control socket, by name or number; with the mode 0660 its members may
	// use the CLI. lb must run as root or as a member. Default "": the group that lb runs as.
	SocketGroup string `toml:"socket_group"`
	// HTTP is the address that serves /metrics and the API: for reading, and with a token_file for changes
	// too. A request's Host must be a loopback name or address, the host named here, or the address it came
	// to. Default "127.0.0.1:9901"; "" is off.
	HTTP string `toml:"http"`
	// TokenFile is the absolute path of a file of one line, the token: at least 16 letters, digits and signs.
	// Who sends it over HTTP as "Authorization: Bearer TOKEN" may change everything, but name no binary for
	// an upgrade. The file must not be readable for all; lb reads it again when it has changed. Default "":
	// over HTTP there is only reading.
	TokenFile string `toml:"token_file"`
	// StateFile is the absolute path of the file in which lb remembers what was changed while it ran
	// (weights, admin states, limits, splits, added and removed backends), so that it outlives a restart. A
	// value that the config has changed since is the config's. The directory must exist, and lb must be able
	// to write to it. Default "": nothing outlives a restart.
	StateFile string `toml:"state_file"`
	// RunDir is the absolute path of the directory in which lb keeps the sockets of the workers that it
	// starts, and what it must know to find them again after it was killed. It is made if only that is
	// missing, for lb's user alone, and one lb uses it at a time; without workers it is not touched. Default
	// "": the directory "workers" beside the socket.
	RunDir string `toml:"run_dir"`
}

// DefaultConfig has every default set.
func DefaultConfig() Config {
	return Config{Socket: api.DefaultSocket, SocketMode: "0660", HTTP: "127.0.0.1:9901"}
}

// EffectiveRunDir is RunDir, or the directory beside the socket; empty where the socket is off.
func (c *Config) EffectiveRunDir() string {
	if c.RunDir != "" || c.Socket == "" {
		return c.RunDir
	}
	return filepath.Join(filepath.Dir(c.Socket), "workers")
}

// Validate finds every fault. Each error's text starts with the key.
func (c *Config) Validate() error {
	var errs []error
	if c.Socket != "" && !filepath.IsAbs(c.Socket) {
		errs = append(errs, fmt.Errorf("socket: %q is no absolute path; write one such as %q, or \"\" for off", c.Socket, api.DefaultSocket))
	}
	if strings.ContainsRune(c.Socket, 0) {
		errs = append(errs, fmt.Errorf("socket: NUL byte in the path %q", c.Socket))
	}
	if len(c.Socket) > 107 {
		errs = append(errs, fmt.Errorf("socket: the path has %d bytes; a Unix socket's has at most 107", len(c.Socket)))
	}
	if mode, err := strconv.ParseUint(c.SocketMode, 8, 32); err != nil || mode > 0o777 {
		errs = append(errs, fmt.Errorf("socket_mode: %q is not an octal permission such as \"0660\"", c.SocketMode))
	}
	if strings.ContainsAny(c.SocketGroup, ": \x00") {
		errs = append(errs, fmt.Errorf("socket_group: %q is neither a name nor a number of a group", c.SocketGroup))
	}
	if c.TokenFile != "" && !filepath.IsAbs(c.TokenFile) {
		errs = append(errs, fmt.Errorf("token_file: %q is no absolute path; write one such as \"/etc/lb/token\", or \"\" for none", c.TokenFile))
	}
	switch {
	case c.StateFile == "":
	case !filepath.IsAbs(c.StateFile):
		errs = append(errs, fmt.Errorf("state_file: %q is no absolute path; write one such as \"/var/lib/lb/state\", or \"\" for none", c.StateFile))
	case strings.HasSuffix(c.StateFile, "/"), strings.ContainsRune(c.StateFile, 0):
		errs = append(errs, fmt.Errorf("state_file: %q is no path of a file", c.StateFile))
	}
	if c.RunDir != "" && (!filepath.IsAbs(c.RunDir) || strings.ContainsRune(c.RunDir, 0)) {
		errs = append(errs, fmt.Errorf("run_dir: %q is no absolute path; write one such as \"/run/lb/workers\"", c.RunDir))
	}
	if c.HTTP != "" {
		_, port, err := net.SplitHostPort(c.HTTP)
		if err == nil {
			_, err = strconv.ParseUint(port, 10, 16)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("http: %q is not host:port; write \"127.0.0.1:9901\", or \"\" for off", c.HTTP))
		}
	}
	return errors.Join(errs...)
}
