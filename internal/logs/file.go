package logs

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"
)

// File is a file that lines are appended to. At its limit it is renamed to FILE.1, as logrotate(8) would, the
// older ones to FILE.2 and so on, and a new one begins. Safe for concurrent use.
type File struct {
	path string
	max  int64 // bytes; 0: no limit
	keep int

	mu      sync.Mutex
	file    *os.File
	size    int64
	backlog backlog // lines that could not be written
	why     error   // of the last write that failed
	retry   *time.Timer
}

// OpenFile opens the file at path, or makes it. At max bytes (0 is no limit) it is renamed, and keep renamed
// ones stay. The caller owes a Close.
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

// WriteLines appends lines, each with its line break. Lines that cannot be written, to a full disk say, are
// kept as far as there is room, tried again each second, and written before the next ones; the last of them
// are kept, and of those that had to be dropped a line in their place says how many there were. dropped is
// how many were dropped now. The error says why lines are not written, or that the file cannot be renamed or
// begun; then the old one goes on.
func (f *File) WriteLines(lines []byte) (dropped uint64, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return uint64(bytes.Count(lines, newline)), os.ErrClosed
	}
	if err := f.flushLocked(); err != nil {
		return f.backlog.add(lines), err
	}
	rotated, rest, began, err := f.writeLocked(lines)
	if err != nil {
		dropped = f.backlog.unwritten(rest, began)
		f.failedLocked(err)
	}
	return dropped, errors.Join(rotated, err)
}

// flushLocked writes what could not be written before.
func (f *File) flushLocked() error {
	b := &f.backlog
	if b.lost > 0 || b.torn {
		mark := fmt.Appendf(nil, "%s (lb dropped %d lines here, which it could not write: %v)\n", time.Now().Format(fileTime), b.lost, f.why)
		if b.torn {
			mark = append([]byte{'\n'}, mark...)
		}
		n, err := f.file.Write(mark)
		f.size += int64(n)
		if err != nil {
			b.torn = b.torn || n > 0
			f.failedLocked(err)
			return err
		}
		b.lost, b.torn = 0, false
	}
	if len(b.lines) == 0 {
		return nil
	}
	lines := b.lines
	b.lines, b.part = nil, false
	_, rest, began, err := f.writeLocked(lines)
	if err != nil {
		b.unwritten(rest, began)
		f.failedLocked(err)
	}
	return err
}

// fileTime is the form of the time in the lines of a file.
const fileTime = "2006-01-02T15:04:05.000Z07:00"

// retryEvery is how long lines that cannot be written wait until they are tried again, when no others come.
const retryEvery = time.Second

// failedLocked notes why lines are not written, and has them tried again.
func (f *File) failedLocked(err error) {
	f.why = err
	if f.retry == nil {
		f.retry = time.AfterFunc(retryEvery, func() {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.retry = nil
			if f.file != nil && !f.backlog.empty() {
				f.flushLocked()
			}
		})
	}
}

// writeLocked writes lines, and begins a new file where they do not fit. rest is what it did not write,
// and began says that rest begins in the middle of a line. rotated is why no new file was begun, which
// hurts no line.
func (f *File) writeLocked(lines []byte) (rotated error, rest []byte, began bool, err error) {
	for len(lines) > 0 {
		part := lines
		if f.max > 0 && f.size+int64(len(part)) > f.max {
			part = lines[:f.fitting(lines)]
			if len(part) == 0 {
				rotated = errors.Join(rotated, f.rotate())
				continue
			}
		}
		n, err := f.file.Write(part)
		f.size += int64(n)
		if err != nil {
			return rotated, lines[n:], n > 0 && lines[n-1] != '\n', err
		}
		lines = lines[n:]
	}
	return rotated, nil, false, nil
}

// fitting returns the length of the lines that fit into the file, at least of one if the file is empty.
func (f *File) fitting(lines []byte) int {
	room := max(f.max-f.size, 0)
	if int64(len(lines)) <= room {
		return len(lines)
	}
	if end := bytes.LastIndexByte(lines[:room], '\n'); end >= 0 {
		return end + 1
	}
	if f.size > 0 {
		return 0
	}
	if end := bytes.IndexByte(lines, '\n'); end >= 0 {
		return end + 1
	}
	return len(lines)
}

func (f *File) name(n int) string { return f.path + "." + strconv.Itoa(n) }

// rotate renames the file and begins a new one.
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

// Reopen opens the file again by its path, for after it was renamed. If that fails, the old file stays in
// use.
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

// Close writes what could not be written before, if that is possible now, and closes the file.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.file == nil {
		return nil
	}
	if f.retry != nil {
		f.retry.Stop()
		f.retry = nil
	}
	var unwritten error
	if !f.backlog.empty() {
		unwritten = f.flushLocked()
		if f.retry != nil {
			f.retry.Stop()
			f.retry = nil
		}
	}
	err := f.file.Close()
	f.file = nil
	return errors.Join(unwritten, err)
}
