package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// CheckHost finds what keeps workers from being started on this host as the config says. It changes nothing.
// Each error's text starts with the key.
func (c *Config) CheckHost() error {
	_, err := c.lookUpIdentity()
	return err
}

// lookUpIdentity is identity, and returns an error if lb cannot start workers with it.
func (c *Config) lookUpIdentity() (identity, error) {
	id, err := c.identity()
	switch {
	case err != nil:
		return id, err
	case id.set && os.Geteuid() != 0:
		return id, errors.New("user: only root can start workers as another user or group")
	}
	return id, nil
}

// CheckRunDir returns an error if the path of the run-time directory is so long that the sockets of a pool's
// workers would not fit in a Unix socket's address.
func CheckRunDir(dir, pool string) error {
	longest := len(filepath.Join(dir, pool, "1023.9999999999", "sock"))
	if longest <= maxUnixPath {
		return nil
	}
	return fmt.Errorf("the run-time directory %q is too long for the sockets of workers: with the pool's name their paths have %d bytes, "+
		"a Unix socket's has at most %d; set admin.run_dir to a shorter one", dir, longest, maxUnixPath)
}

// CheckExisting returns an error if there is something at the path of the run-time directory that cannot be
// it.
func CheckExisting(dir string) error {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err == nil {
		defer unix.Close(fd)
		err = checkDir(fd)
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("cannot use run-time directory %q: %w", dir, err)
	}
	return nil
}
