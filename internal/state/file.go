package state

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// ErrNotRegular: at the path is a directory, a device or another thing that no state file is; it is left
// alone.
var ErrNotRegular = errors.New("it is no regular file")

// newSuffix is what the file is called while it is being written. One that a crash left is overwritten.
const newSuffix = ".new"

// WriteFile replaces the file at path by data: a crash at any moment, of the process or of the host, leaves
// the old or the new one whole. It writes a file beside it, flushes it to the disk, renames it (rename(2) is
// atomic) and flushes the directory. Only one process may write a path, and no two calls at once. The mode is
// 0600.
func WriteFile(path string, data []byte) error {
	if err := writeFile(path, data); err != nil {
		return fmt.Errorf("cannot write state file %q: %w", path, err)
	}
	return nil
}

func writeFile(path string, data []byte) error {
	if err := regular(path); err != nil {
		return err
	}
	temp := path + newSuffix
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		os.Remove(temp)
		return err
	}
	return syncDir(filepath.Dir(path))
}

// regular is ErrNotRegular where there is something else than a file, which must not be renamed nor replaced.
func regular(path string) error {
	if st, err := os.Stat(path); err == nil && !st.Mode().IsRegular() {
		return ErrNotRegular
	}
	return nil
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	defer dir.Close()
	return dir.Sync()
}

// ReadFile reads what WriteFile wrote. The error wraps os.ErrNotExist where there is no file, ErrNotRegular
// where there is something else, and ErrTooLarge for one above MaxSize.
func ReadFile(path string) ([]byte, error) {
	// a FIFO must not hang the start
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("cannot read state file: %w", err)
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && !st.Mode().IsRegular() {
		return nil, fmt.Errorf("cannot read state file %q: %w", path, ErrNotRegular)
	}
	data, err := io.ReadAll(io.LimitReader(f, MaxSize+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("cannot read state file: %w", err)
	case len(data) > MaxSize:
		return nil, fmt.Errorf("cannot read state file %q: %w", path, ErrTooLarge)
	}
	return data, nil
}

// SetAside renames a file that cannot be used, so that it is neither lost nor overwritten, and returns its
// new name.
func SetAside(path string, now time.Time) (string, error) {
	if err := regular(path); err != nil {
		return "", fmt.Errorf("cannot set state file %q aside: %w", path, err)
	}
	base := path + ".damaged-" + now.UTC().Format("20060102T150405Z")
	for i := range 100 {
		name := base
		if i > 0 {
			name = fmt.Sprintf("%s-%d", base, i)
		}
		// RENAME_NOREPLACE, by hand: not every file system has it.
		if _, err := os.Lstat(name); !errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err := os.Rename(path, name); err != nil {
			return "", fmt.Errorf("cannot set state file aside: %w", err)
		}
		return name, nil
	}
	return "", fmt.Errorf("cannot set state file %q aside: too many names like %q are taken", path, base)
}
