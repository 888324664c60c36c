package admin

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

var (
	// ErrSocketInUse: another process listens on the control socket.
	ErrSocketInUse = errors.New("another process listens on it; stop that one, or give this lb another admin.socket")
	// ErrNotSocket: there is something else at the control socket's path.
	ErrNotSocket = errors.New("there is a file that is no socket; remove it, or choose another admin.socket")
	// ErrSocketLocked: the lock beside the control socket cannot be had.
	ErrSocketLocked = errors.New("the lock beside it cannot be taken")
)

// socketBacklog is how many callers may wait to be accepted. One more is refused (EAGAIN) and does not try
// again, so that it is enough for whatever scripts start at once.
const socketBacklog = 1024

// controlSocket is a listening Unix socket and the file that names it.
type controlSocket struct {
	*net.UnixListener
	path  string
	mode  fs.FileMode // of the file, as group is
	group int         // negative: the group of the process
	dev   uint64      // of the file, as ino is; 0: it is another's
	ino   uint64

	inherited bool
}

// listenControl makes the control socket. A socket file that no process listens on is what a dead lb left: it
// is replaced.
//
// Nobody can connect before the mode is right, for a bound socket refuses until listen(2). Of two that start
// at the same time one finds the other's socket alive, for each holds the lock (lock.go) from the look to the
// listen(2).
//
// group is the group of the file; negative is the one that the process has.
func listenControl(path string, mode fs.FileMode, group int) (*controlSocket, error) {
	fail := func(err error) (*controlSocket, error) {
		if os.IsPermission(err) {
			err = fmt.Errorf("%w; run as a user who may, or set admin.socket to a path of your own", err)
		}
		return nil, fmt.Errorf("cannot listen on control socket %q: %w", path, err)
	}
	if err := os.Mkdir(filepath.Dir(path), 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
		return fail(err)
	}
	unlock, err := lockSocket(path, lockPatience)
	if err != nil {
		return fail(err)
	}
	defer unlock()
	if err := removeStale(path); err != nil {
		return fail(err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return fail(os.NewSyscallError("socket", err))
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close() // the listener below has a duplicate
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		return fail(os.NewSyscallError("bind", err))
	}
	s := &controlSocket{path: path, mode: mode, group: group}
	if err := s.publish(fd, file, mode, group); err != nil {
		if s.ino != 0 {
			removeOwn(path, s.dev, s.ino)
		}
		return fail(err)
	}
	return s, nil
}

// publish gives the bound socket its mode and its group, and opens it to callers.
func (s *controlSocket) publish(fd int, file *os.File, mode fs.FileMode, group int) error {
	if err := s.setMode(mode, group); err != nil {
		return err
	}
	if err := unix.Listen(fd, socketBacklog); err != nil {
		return os.NewSyscallError("listen", err)
	}
	l, err := net.FileListener(file)
	if err != nil {
		return err
	}
	s.UnixListener = l.(*net.UnixListener)
	return nil
}

// setMode gives the file its group, and its mode whatever the umask was, and notes which file it is. It goes
// through a descriptor of the file itself: by path, a symbolic link put in its place would turn the mode onto
// another file.
func (s *controlSocket) setMode(mode fs.FileMode, group int) error {
	fd, err := unix.Open(s.path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return os.NewSyscallError("open", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return os.NewSyscallError("fstat", err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFSOCK {
		return ErrNotSocket
	}
	s.dev, s.ino = st.Dev, st.Ino
	// fchmod(2) refuses an O_PATH descriptor; its name in /proc is the way round (open(2), O_PATH).
	name := "/proc/self/fd/" + strconv.Itoa(fd)
	if group >= 0 {
		if err := os.Chown(name, -1, group); err != nil {
			return fmt.Errorf("cannot give it the group %d of admin.socket_group: %w; run lb as root or as a member", group, errors.Unwrap(err))
		}
	}
	return os.Chmod(name, mode)
}

// groupID finds a group by name or number; the empty name is -1.
func groupID(group string) (int, error) {
	if group == "" {
		return -1, nil
	}
	if id, err := strconv.ParseUint(group, 10, 31); err == nil {
		return int(id), nil
	}
	g, err := user.LookupGroup(group)
	if err != nil {
		return 0, fmt.Errorf("cannot find the group of admin.socket_group: %w; make it (groupadd %s), or name another", err, group)
	}
	return strconv.Atoi(g.Gid)
}

// Close stops listening and removes the file, unless it has become another's.
func (s *controlSocket) Close() error {
	unlock, err := lockSocket(s.path, lockPatience)
	if err != nil {
		return errors.Join(err, s.UnixListener.Close())
	}
	defer unlock()
	removeOwn(s.path, s.dev, s.ino)
	return s.UnixListener.Close()
}

// removeOwn removes a file if it is still the one that it was.
func removeOwn(path string, dev, ino uint64) {
	if own(path, dev, ino) {
		os.Remove(path)
	}
}

func own(path string, dev, ino uint64) bool {
	var st unix.Stat_t
	return unix.Lstat(path, &st) == nil && st.Dev == dev && st.Ino == ino
}

// inheritControl takes over a control socket that listens already: nothing is bound, and whoever waits in its
// queue goes on waiting. The file gets its mode and its group again. One that has become another's since is
// left alone; of that the result knows nothing, so that Close leaves it too. The given socket is duplicated,
// and stays as it is.
func inheritControl(from Socket, warn func(what string, err error), mode fs.FileMode, group int) (*controlSocket, error) {
	fail := func(err error) (*controlSocket, error) {
		return nil, fmt.Errorf("cannot take over control socket %q: %w", from.Address, err)
	}
	l, err := net.FileListener(from.File)
	if err != nil {
		return fail(err)
	}
	unixListener, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return fail(ErrNotSocket)
	}
	s := &controlSocket{UnixListener: unixListener, path: from.Address, mode: mode, group: group, inherited: true}
	if from.Ino != 0 && !own(s.path, from.Dev, from.Ino) {
		return s, nil
	}
	if err := s.setMode(mode, group); err != nil {
		warn("the control socket keeps its mode and group", err)
	}
	return s, nil
}

// removeStale removes a socket that no process listens on.
func removeStale(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().Type() != fs.ModeSocket {
		return ErrNotSocket
	}
	alive, err := listening(path)
	if err != nil {
		return err
	}
	if alive {
		return ErrSocketInUse
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && !own(path, st.Dev, st.Ino) {
		return ErrSocketInUse // it came while we looked
	}
	return os.Remove(path)
}

// listening says whether a process listens on the socket. A refusal is the only sign that none does: a full
// backlog (EAGAIN) and a socket of another type (EPROTOTYPE) have an owner.
func listening(path string) (bool, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return false, os.NewSyscallError("socket", err)
	}
	defer unix.Close(fd)
	switch err := unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err {
	case unix.ECONNREFUSED:
		return false, nil
	case nil, unix.EAGAIN, unix.EPROTOTYPE:
		return true, nil
	default:
		return false, os.NewSyscallError("connect", err)
	}
}
