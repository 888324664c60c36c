package upgrade

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// CheckRoom returns ErrTooLarge if a state of so many bytes cannot be handed over.
func CheckRoom(size int) error {
	// A write beyond the limit raises SIGXFSZ, which would end the process.
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err == nil && limit.Cur < uint64(size) {
		return fmt.Errorf("%w: %d of %d bytes; raise it (prlimit --fsize=, LimitFSIZE=)", ErrTooLarge, limit.Cur, size)
	}
	return nil
}

// memfd puts data into a file that has no name, and seals it: nobody can change it any more
// (memfd_create(2)).
func memfd(data []byte) (_ *os.File, err error) {
	if err := CheckRoom(len(data)); err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate("lb-state", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("cannot make a memfd for the state: %w", err)
	}
	f := os.NewFile(uintptr(fd), "lb-state")
	if _, err = f.Write(data); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_WRITE|unix.F_SEAL_GROW|unix.F_SEAL_SHRINK|unix.F_SEAL_SEAL)
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("cannot write %d bytes of state into a memfd: %w", len(data), err)
	}
	return f, nil
}

// mapFile maps a file into memory, to read.
func mapFile(fd int) (data []byte, unmap func(), err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return nil, nil, err
	}
	if st.Size == 0 {
		return nil, nil, nil
	}
	data, err = unix.Mmap(fd, 0, int(st.Size), unix.PROT_READ, unix.MAP_PRIVATE|unix.MAP_POPULATE)
	if err != nil {
		return nil, nil, os.NewSyscallError("mmap", err)
	}
	return data, func() { unix.Munmap(data) }, nil
}
