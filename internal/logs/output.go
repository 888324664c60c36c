package logs

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/descriptor"
)

// output is where lines go: a file by path, or a duplicate of stdout or stderr. Safe for concurrent use.
//
// It never waits inside a write for who reads a pipe: a write that waits cannot be ended without losing count
// of what it wrote, and an exec ends it. What waits instead is a poll(2).
type output struct {
	path string // empty for stdout and stderr

	mu      sync.Mutex
	file    *os.File
	regular bool // writes do not wait for anybody
	noNow   bool // the kernel does not know RWF_NOWAIT for it
}

// openOutput opens "stdout", "stderr" or a path. A file that another process had open for the path is
// duplicated instead: the path may lead elsewhere by now, or nowhere.
func openOutput(name string, inherited *os.File) (*output, error) {
	o := new(output)
	var f *os.File
	var err error
	switch {
	case name == "stdout":
		f, err = duplicate(os.Stdout)
	case name == "stderr":
		f, err = duplicate(os.Stderr)
	case inherited != nil:
		o.path = name
		f, err = duplicate(inherited)
	default:
		o.path = name
		f, err = openFile(name)
	}
	if err != nil {
		return nil, err
	}
	o.use(f)
	return o, nil
}

// duplicate copies a file. A standard stream needs a descriptor of its own because a write to descriptor 1 or
// 2 whose reader is gone ends a Go process (os/signal, "SIGPIPE"), and lb must outlive whoever reads its log.
func duplicate(f *os.File) (*os.File, error) { return descriptor.CopyFile(f, f.Name()) }

// openFile opens a file to append lines to. If its last line was torn by the end of another process, openFile
// ends that line. O_NONBLOCK is for a FIFO: without a reader it is an error instead of a wait.
func openFile(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o640)
	if err == nil && isTorn(f) {
		f.Write(newline) // a disk that is full takes the next line as little; whoever writes that reports it
	}
	return f, err
}

// isTorn reports whether a regular file does not end with a newline. One that lb may not read counts as
// whole.
func isTorn(f *os.File) bool {
	info, err := f.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() == 0 {
		return false
	}
	r, err := os.Open(f.Name())
	if err != nil {
		return false
	}
	defer r.Close()
	last := []byte{'\n'}
	r.ReadAt(last, info.Size()-1)
	return last[0] != '\n'
}

// use makes f the file. Called before anybody else has o, or with mu held.
func (o *output) use(f *os.File) {
	info, err := f.Stat()
	o.file, o.regular, o.noNow = f, err == nil && info.Mode().IsRegular(), false
}

// Write writes whole lines.
func (o *output) Write(p []byte) (int, error) { return o.writeUnless(nil, p) }

// errPaused: a write was ended because the writer is to pause.
var errPaused = errors.New("the log is paused")

// pollTime is how long a writer waits until it looks whether it is to pause, in milliseconds.
const pollTime = 50

// writeUnless writes p, until pausing is set: then it returns how much it has written, to the byte, and
// errPaused.
func (o *output) writeUnless(pausing *atomic.Bool, p []byte) (n int, err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	raw, err := o.file.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) {
		for n < len(p) && err == nil {
			if pausing != nil && pausing.Load() {
				err = errPaused
				return
			}
			var some int
			switch some, err = o.writeSome(int(fd), p[n:]); err {
			case nil:
				n += some
			case unix.EINTR:
				err = nil
			case unix.EAGAIN:
				if _, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}, pollTime); err == unix.EINTR {
					err = nil
				}
			}
		}
	})
	if errors.Is(err, errPaused) {
		return n, err
	}
	return n, errors.Join(controlErr, os.NewSyscallError("write", err))
}

// pipeBuf is PIPE_BUF of pipe(7): what a pipe that is ready takes without waiting.
const pipeBuf = 4096

// writeSome writes what can be written now, or fails with EAGAIN.
func (o *output) writeSome(fd int, p []byte) (int, error) {
	if o.regular {
		return unix.Write(fd, p)
	}
	if !o.noNow {
		// O_NONBLOCK would hold for everybody who has the terminal or the pipe.
		n, err := unix.Pwritev2(fd, [][]byte{p}, -1, unix.RWF_NOWAIT)
		if err != unix.EOPNOTSUPP && err != unix.ENOSYS && err != unix.ESPIPE && err != unix.EINVAL {
			return n, err
		}
		o.noNow = true
	}
	ready := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLOUT}}
	if n, err := unix.Poll(ready, 0); err != nil {
		return 0, err
	} else if n == 0 {
		return 0, unix.EAGAIN
	}
	return unix.Write(fd, p[:min(len(p), pipeBuf)])
}

func (o *output) reopen() error {
	if o.path == "" {
		return nil
	}
	f, err := openFile(o.path)
	if err != nil {
		return fmt.Errorf("cannot reopen log: %w", err)
	}
	o.mu.Lock()
	old := o.file
	o.use(f)
	o.mu.Unlock()
	return old.Close()
}

// copy returns a duplicate of the file for another process; nil for stdout and stderr, which that has anyway.
func (o *output) copy() (*os.File, error) {
	if o.path == "" {
		return nil, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	return duplicate(o.file)
}

func (o *output) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.file.Close()
}
