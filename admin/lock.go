package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// lockPatience is how long another lb may take to make or remove the same control socket.
const lockPatience = 2 * time.Second

// lockSuffix makes the lock's path of the control socket's.
const lockSuffix = ".lock"

// errForeignLock: what stands at the lock's path is not a file that only this user can open.
var errForeignLock = errors.New("not ours")

// lockSocket takes the lock of the control socket at path, and waits for it for as long as patience. It is
// held for moments; the kernel drops it if the process dies.
//
// The lock is on a file that only lb's user can open. Whoever can open a file can lock it (flock(2)): a lock
// on the directory, or on a file that others may read, is one that they can keep lb from taking. The file is
// removed while it is locked, so that none is left behind; who waited for it sees that its name is gone, and
// begins again.
func lockSocket(path string, patience time.Duration) (unlock func(), err error) {
	name := path + lockSuffix
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for {
		fd, err := tryLock(name)
		switch {
		case err == nil:
			return func() {
				os.Remove(name)
				unix.Close(fd)
			}, nil
		case errors.Is(err, errForeignLock):
			if removeErr := removeForeign(name); removeErr == nil {
				err = nil
			} else {
				err = removeErr
			}
		case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EINTR):
			err = nil
		default:
			return nil, &fs.PathError{Op: "open", Path: name, Err: err}
		}
		select {
		case <-ctx.Done():
			if err == nil {
				err = fmt.Errorf("another process holds %q", name)
			}
			return nil, fmt.Errorf("%w: %w", ErrSocketLocked, err)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// tryLock opens the lock file, or makes it, and locks it. The error is unix.EWOULDBLOCK if another process
// has it, also if that one has just removed it.
func tryLock(name string) (fd int, err error) {
	fd, err = unix.Open(name, unix.O_RDWR|unix.O_CREAT|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0o600)
	switch err {
	case nil:
	case unix.ELOOP, unix.EISDIR, unix.ENXIO: // a symbolic link, a directory, a socket
		return -1, errForeignLock
	case unix.EACCES:
		if _, statErr := os.Lstat(name); statErr == nil {
			return -1, errForeignLock
		}
		return -1, err
	default:
		return -1, err
	}
	var st, now unix.Stat_t
	if err = unix.Fstat(fd, &st); err == nil {
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFREG || st.Uid != uint32(os.Geteuid()) || st.Mode&0o077 != 0 || st.Nlink > 1:
			err = errForeignLock
		default:
			err = unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB)
		}
	}
	if err == nil && (unix.Lstat(name, &now) != nil || now.Dev != st.Dev || now.Ino != st.Ino) {
		err = unix.EWOULDBLOCK // its holder has removed it meanwhile
	}
	if err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// removeForeign removes what somebody else has put at the lock's path. A directory, and a file with something
// in it, stay: they are not put there by mistake of another lb, and whoever made them may need them.
func removeForeign(name string) error {
	info, err := os.Lstat(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.IsDir() || info.Mode().IsRegular() && info.Size() > 0 {
		return fmt.Errorf("%q is not lb's lock file; remove it, or choose another admin.socket", name)
	}
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%q is another user's; remove it, or choose another admin.socket", name)
	}
	return nil
}
