package supervisor

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Dir is lb's run-time directory: the sockets of the workers, and what a later lb must know of them. One lb uses it at a
// time.
type Dir struct {
	path string
	lock *os.File
}

// OpenDir makes the directory, with its parents, for this user alone (0700), and locks it. The error is ErrDirInUse when
// another lb has it.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find run-time directory: %w", err)
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, fmt.Errorf("cannot make run-time directory: %w", err)
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cannot make run-time directory: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return nil, fmt.Errorf("cannot use run-time directory %q: %w", path, err)
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return nil, fmt.Errorf("cannot use run-time directory %q: it is no directory", path)
	case int(st.Uid) != os.Geteuid():
		return nil, fmt.Errorf("cannot use run-time directory %q: it belongs to user %d", path, st.Uid)
	case st.Mode&0o022 != 0:
		return nil, fmt.Errorf("cannot use run-time directory %q: others may write to it; chmod it to 0700", path)
	}
	lock, err := os.OpenFile(filepath.Join(path, "lock"), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("cannot lock run-time directory: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		if err == unix.EWOULDBLOCK {
			err = ErrDirInUse
		}
		return nil, fmt.Errorf("cannot lock run-time directory %q: %w", path, err)
	}
	return &Dir{path: path, lock: lock}, nil
}

// Path is where it is.
func (d *Dir) Path() string { return d.path }

// Close unlocks it. What is in it stays.
func (d *Dir) Close() error { return d.lock.Close() }
