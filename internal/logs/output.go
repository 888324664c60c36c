package logs

import (
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// output is where lines go: a file by path, or a duplicate of stdout or stderr. Safe for concurrent use.
type output struct {
	path string // empty for stdout and stderr

	mu   sync.Mutex
	file *os.File
}

// openOutput opens "stdout", "stderr" or a path.
func openOutput(name string) (*output, error) {
	switch name {
	case "stdout":
		return duplicate(os.Stdout)
	case "stderr":
		return duplicate(os.Stderr)
	}
	f, err := openFile(name)
	if err != nil {
		return nil, err
	}
	return &output{path: name, file: f}, nil
}

// duplicate makes an output of a standard stream. It has a descriptor of its own because a write to descriptor 1 or 2
// whose reader is gone ends a Go process (os/signal, "SIGPIPE"), and lb must outlive whoever reads its log.
func duplicate(f *os.File) (*output, error) {
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 3)
	if err != nil {
		return nil, fmt.Errorf("cannot duplicate %s: %w", f.Name(), os.NewSyscallError("fcntl", err))
	}
	return &output{file: os.NewFile(uintptr(fd), f.Name())}, nil
}

// openFile opens a file to append to. O_NONBLOCK is for a FIFO: without a reader it is an error instead of a wait.
func openFile(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE|unix.O_NONBLOCK, 0o640)
}

// Write writes whole lines.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.file.Write(p)
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
	o.file = f
	o.mu.Unlock()
	return old.Close()
}

func (o *output) close() error {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.file.Close()
}
