package logs

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
)

// File is a file that lines are appended to. At its limit it is renamed to FILE.1, as logrotate(8) would, the older ones
// to FILE.2 and so on, and begun anew. Safe for concurrent use.
type File struct {
	path string
	max  int64 // bytes; 0: no limit
	keep int

	mu   sync.Mutex
	file *os.File
	size int64
}

// OpenFile opens the file at path, or makes it. At max bytes (0 is no limit) it is renamed, and keep renamed ones stay. The
// caller owes a Close.
func OpenFile(path string, max int64, keep int) (*File, error) {
	f := &File{path: path, max: max, keep: keep}
	if err := f.open(); err != nil {
		return nil, err
	}
	return f, nil
}

func (f *File) open() error {
	file, err := openFile(f.path)
	if err != nil {
		return fmt.Errorf("cannot open log: %w", err)
	}
	f.size = 0
	if info, err := file.Stat(); err == nil {
		f.size = info.Size()
	}
	f.file = file
	return nil
}

// WriteLine appends a line, which has its line break. When the file cannot be renamed or begun anew, the old one goes on,
// and the error says so.
func (f *File) WriteLine(line []byte) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return os.ErrClosed
	}
	var rotated error
	if f.max > 0 && f.size > 0 && f.size+int64(len(line)) > f.max {
		rotated = f.rotate()
	}
	n, err := f.file.Write(line)
	f.size += int64(n)
	return errors.Join(rotated, err)
}

func (f *File) name(n int) string { return f.path + "." + strconv.Itoa(n) }

// rotate renames the file and begins it anew.
func (f *File) rotate() error {
	f.size = 0 // whatever comes of it, not again at the next line
	if f.keep == 0 {
		return f.file.Truncate(0)
	}
	for n := f.keep - 1; n > 0; n-- {
		if err := os.Rename(f.name(n), f.name(n+1)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("cannot rotate log: %w", err)
		}
	}
	if err := os.Rename(f.path, f.name(1)); err != nil {
		return fmt.Errorf("cannot rotate log: %w", err)
	}
	old := f.file
	if err := f.open(); err != nil {
		return err
	}
	return old.Close()
}

// Reopen opens the file anew by its path, for after it was renamed. If that fails, the old file stays in use.
func (f *File) Reopen() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	old := f.file
	if err := f.open(); err != nil {
		return err
	}
	return old.Close()
}

// Close closes it.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file = nil
	return err
}
