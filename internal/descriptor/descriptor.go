// Package descriptor copies file descriptors.
package descriptor

import (
	"cmp"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Copy returns a copy of a descriptor, with FD_CLOEXEC and above the standard streams. The caller closes it.
func Copy(fd int) (int, error) {
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return -1, fmt.Errorf("cannot copy descriptor %d: %w", fd, err)
	}
	return copied, nil
}

// CopyOf returns a copy of the descriptor of a file or a socket, which stays in non-blocking mode if it was
// in it: os.File.Fd would have it block for everybody who has it.
func CopyOf(c syscall.Conn) (fd int, err error) {
	fd = -1
	raw, err := c.SyscallConn()
	if err == nil {
		controlErr := raw.Control(func(old uintptr) { fd, err = Copy(int(old)) })
		err = cmp.Or(err, controlErr)
	}
	return fd, err
}

// CopyFile is CopyOf, and returns the copy as a file of that name.
func CopyFile(c syscall.Conn, name string) (*os.File, error) {
	fd, err := CopyOf(c)
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), name), nil
}
