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
	if err := checkDir(path); err != nil {
		return nil, fmt.Errorf("cannot use run-time directory %q: %w", path, err)
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

// AdoptDir goes on with a directory whose lock, what Dir.File gave, came through an exec: no other lb could take it
// meanwhile. The file stays the caller's. The error is ErrDirInUse when it is not that directory's lock.
func AdoptDir(path string, lock *os.File) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err == nil {
		err = checkDir(path)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use run-time directory %q: %w", path, err)
	}
	fd := -1
	raw, err := lock.SyscallConn()
	if err == nil {
		if e := raw.Control(func(n uintptr) { fd, err = copyFD(int(n)) }); e != nil {
			err = e
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot take over the lock of run-time directory %q: %w", path, err)
	}
	d := &Dir{path: path, lock: os.NewFile(uintptr(fd), filepath.Join(path, "lock"))}
	var here, there unix.Stat_t
	if err = unix.Fstat(fd, &here); err == nil {
		err = unix.Stat(d.lock.Name(), &there)
	}
	if err == nil && (here.Dev != there.Dev || here.Ino != there.Ino || unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) != nil) {
		err = ErrDirInUse
	}
	if err != nil {
		d.Close()
		return nil, fmt.Errorf("cannot take over the lock of run-time directory %q: %w", path, err)
	}
	return d, nil
}

// checkDir says why a directory is not for this user alone.
func checkDir(path string) error {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return err
	}
	switch {
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return errors.New("it is no directory")
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("it belongs to user %d", st.Uid)
	case st.Mode&0o022 != 0:
		return errors.New("others may write to it; chmod it to 0700")
	}
	return nil
}

// File is a copy of the lock, which holds as long as one of them is open: carry it through an exec, for AdoptDir. The
// caller closes it.
func (d *Dir) File() (*os.File, error) {
	fd, err := copyFD(int(d.lock.Fd()))
	if err != nil {
		return nil, fmt.Errorf("cannot copy the lock of run-time directory %q: %w", d.path, err)
	}
	return os.NewFile(uintptr(fd), d.lock.Name()), nil
}

// Path is where it is.
func (d *Dir) Path() string { return d.path }

// Close unlocks it. What is in it stays.
func (d *Dir) Close() error { return d.lock.Close() }
