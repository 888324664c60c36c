package supervisor

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/descriptor"
)

// Dir is lb's run-time directory: the sockets of the workers, and what a later lb must know of them. One lb
// uses it at a time. Only lb's user can change its entries, so what is in it is reached through its
// descriptor and cannot be swapped. It is safe for concurrent use.
type Dir struct {
	path   string
	roster roster
	// looks of sessions whose worker has ended: among lb's descendants, and at the whole host
	near, wide lookout

	mu   sync.Mutex
	lock *os.File
	root *os.Root
}

// OpenDir makes the directory, with its parents, for this user alone (0700), and locks it. The error is
// ErrDirInUse when another lb has it.
func OpenDir(path string) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find run-time directory: %w", err)
	}
	root, err := makeDir(path)
	if err != nil {
		return nil, err
	}
	lock, err := lockDir(root)
	if err != nil {
		root.Close()
		return nil, err
	}
	return &Dir{path: path, lock: lock, root: root}, nil
}

// TakeOverDir goes on with a directory whose lock, which Dir.File returned, came through an exec: no other lb
// could take it meanwhile. A directory that was removed meanwhile is made again. Where its name leads
// elsewhere or cannot be used, TakeOverDir goes on in dir, the open directory, which Dir.Open returned, and
// heal looks again later; with nil it fails, and the error is ErrDirInUse when the lock is another
// directory's. Both files stay the caller's. Call Settled when the pools run.
func TakeOverDir(path string, lock, dir *os.File) (*Dir, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, fmt.Errorf("cannot find run-time directory: %w", err)
	}
	root, err := makeDir(path)
	var d *Dir
	if err == nil {
		if d, err = newDir(path, lock, root); err == nil {
			if err = d.checkLock(); err == nil {
				return d, nil
			}
			d.Close()
			err = fmt.Errorf("cannot take over the lock of run-time directory %q: %w", path, err)
		}
	}
	if dir == nil {
		return nil, err
	}
	if root, err = openRoot(dir); err != nil {
		return nil, fmt.Errorf("cannot take over run-time directory %q: %w", path, err)
	}
	return newDir(path, lock, root)
}

// newDir makes the Dir of an open directory, which it closes on an error, and a copy of its lock.
func newDir(path string, lock *os.File, root *os.Root) (*Dir, error) {
	lock, err := descriptor.CopyFile(lock, filepath.Join(path, "lock"))
	if err != nil {
		root.Close()
		return nil, fmt.Errorf("cannot take over the lock of run-time directory %q: %w", path, err)
	}
	return &Dir{path: path, lock: lock, root: root, roster: roster{partial: true}}, nil
}

// checkLock makes sure that the lock that came through an exec is the directory's.
func (d *Dir) checkLock() error {
	here, err := d.lock.Stat()
	if err != nil {
		return err
	}
	if here.Sys().(*syscall.Stat_t).Nlink == 0 { // a cleaner removed it, and perhaps the whole directory
		lock, err := lockDir(d.root)
		if err == nil {
			d.lock.Close()
			d.lock = lock
		}
		return err
	}
	there, err := d.root.Lstat("lock")
	if err == nil && (!os.SameFile(here, there) || unix.Flock(int(d.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB) != nil) {
		err = ErrDirInUse
	}
	return err
}

// makeDir makes and opens a directory that nobody but this user can change.
func makeDir(path string) (*os.Root, error) {
	err := os.MkdirAll(filepath.Dir(path), 0o755)
	if err == nil {
		err = os.Mkdir(path, 0o700)
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("cannot make run-time directory: %w", err)
	}
	// The name may lead elsewhere a moment later. What is checked is what is used: the open directory.
	fd, err := unix.Open(path, unix.O_PATH|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	var root *os.Root
	if err == nil {
		err = checkDir(fd)
		if err == nil {
			root, err = os.OpenRoot(fmt.Sprintf("/proc/self/fd/%d", fd))
		}
		unix.Close(fd)
	} else if err == unix.ENOTDIR || err == unix.ELOOP {
		err = errors.New("it is not a directory")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot use run-time directory %q: %w", path, err)
	}
	return root, nil
}

// checkDir returns an error unless a directory is this user's alone to change.
func checkDir(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	switch {
	case int(st.Uid) != os.Geteuid():
		return fmt.Errorf("it belongs to user %d", st.Uid)
	case st.Mode&0o022 != 0:
		return errors.New("others may write to it; chmod it to 0700")
	}
	return nil
}

// lockPatience is how long lockDir waits for a lock that another has. A process that an lb was starting when
// it ended shares the lock until its execve(2), which closes it (flock(2)).
const lockPatience = time.Second

func lockDir(root *os.Root) (*os.File, error) {
	lock, err := root.OpenFile("lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		for end := time.Now().Add(lockPatience); ; time.Sleep(10 * time.Millisecond) {
			err = unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB)
			if err != unix.EWOULDBLOCK || time.Now().After(end) {
				break
			}
		}
		if err != nil {
			lock.Close()
			if err == unix.EWOULDBLOCK {
				err = ErrDirInUse
			}
		}
	}
	if err != nil {
		return nil, fmt.Errorf("cannot lock run-time directory: %w", err)
	}
	return lock, nil
}

// heal makes the directory again when its name does not lead to it any more: somebody removed it. It reports
// whether it did. Entries of the one before are gone; each Pool makes its own again.
func (d *Dir) heal() (healed bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	there, err := os.Lstat(d.path)
	if err == nil {
		var here os.FileInfo
		if here, err = d.root.Lstat("."); err == nil && os.SameFile(here, there) {
			return false, nil
		}
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, err
	}
	root, err := makeDir(d.path)
	if err != nil {
		return false, err
	}
	lock, err := lockDir(root)
	if err != nil {
		root.Close()
		return false, err
	}
	d.root.Close()
	d.lock.Close()
	d.root, d.lock = root, lock
	return true, nil
}

// entries returns the open directory.
func (d *Dir) entries() *os.Root {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.root
}

// makeFolder makes a folder of that name, whose entries only lb can change, for workers of a user and a group
// to reach their sockets in. One that an earlier lb left is used again.
func (d *Dir) makeFolder(name string, id identity) (*os.Root, error) {
	root := d.entries()
	if err := root.Mkdir(name, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	st, err := root.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !st.IsDir() {
		return nil, fmt.Errorf("%q is not a directory; remove it", filepath.Join(d.path, name))
	}
	// Its own entries are anybody's guess if it was a worker's until now; from here on they are lb's.
	gid, mode := -1, fs.FileMode(0o700)
	if id.set {
		gid, mode = id.gid, 0o710
		err = root.Chmod(".", 0o711)
	}
	err = errors.Join(err, root.Lchown(name, os.Geteuid(), gid), root.Chmod(name, mode))
	if err != nil {
		return nil, err
	}
	return root.OpenRoot(name)
}

// File returns a copy of the lock, which holds as long as one of them is open: carry it through an exec, for
// TakeOverDir. The caller closes it.
func (d *Dir) File() (*os.File, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	lock, err := descriptor.CopyFile(d.lock, d.lock.Name())
	if err != nil {
		return nil, fmt.Errorf("cannot copy the lock of run-time directory %q: %w", d.path, err)
	}
	return lock, nil
}

// Open returns the open directory: carry it through an exec beside the lock. The caller closes it.
func (d *Dir) Open() (*os.File, error) { return d.entries().Open(".") }

// Path returns where the directory is.
func (d *Dir) Path() string { return d.path }

// Close unlocks the directory. What is in it stays.
func (d *Dir) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.lock.Close(), d.root.Close())
}
