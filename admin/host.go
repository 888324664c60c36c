package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"
)

// CheckHost finds what keeps lb from serving the control API on this host as the config says. It changes
// nothing. Each error's text starts with the key.
func (c *Config) CheckHost() error {
	var errs []error
	if c.TokenFile != "" {
		if err := (&tokenFile{path: c.TokenFile}).check(); err != nil {
			errs = append(errs, fmt.Errorf("token_file: %w", err))
		}
	}
	if c.Socket == "" {
		return errors.Join(errs...)
	}
	if group, err := groupID(c.SocketGroup); err != nil {
		errs = append(errs, fmt.Errorf("socket_group: %w", err))
	} else if group >= 0 && os.Geteuid() != 0 && !isMember(group) {
		errs = append(errs, fmt.Errorf("socket_group: this user is no member of group %q; run lb as root or as a member, or name another", c.SocketGroup))
	}
	dir := filepath.Dir(c.Socket)
	switch info, err := os.Lstat(c.Socket); {
	case err == nil && info.Mode()&fs.ModeSocket == 0:
		errs = append(errs, fmt.Errorf("socket: %q is a file that is no socket; remove it, or choose another path", c.Socket))
	case errors.Is(err, unix.ENOTDIR):
		errs = append(errs, fmt.Errorf("socket: %q is no directory; choose another path", dir))
	case errors.Is(unix.Access(dir, unix.W_OK|unix.X_OK), unix.EACCES), errors.Is(unix.Access(dir, unix.W_OK), unix.EROFS):
		errs = append(errs, fmt.Errorf("socket: this user may not make a file in %q; run lb as one who may, or choose another path", dir))
	}
	return errors.Join(errs...)
}

func isMember(group int) bool {
	groups, err := os.Getgroups()
	return os.Getegid() == group || err == nil && slices.Contains(groups, group)
}
