package logs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/eventually"
)

func TestFile_RotatesAtItsSizeAndKeepsSome(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.log")
	f, err := OpenFile(path, 30, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 9 { // 10 bytes each: three a file
		if _, err := f.WriteLines(fmt.Appendf(nil, "line %04d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := f.WriteLines([]byte(strings.Repeat("x", 100) + "\n")); err != nil {
		// longer than a file: in one of its own
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{
		path: strings.Repeat("x", 100) + "\n", path + ".1": "line 0006\nline 0007\nline 0008\n", path + ".2": "line 0003\nline 0004\nline 0005\n",
	} {
		if got := readFile(t, name); got != want {
			t.Errorf("%s: got %q; want %q", filepath.Base(name), got, want)
		}
	}
	if _, err := os.Stat(path + ".3"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a third one: got %v; want none", err)
	}
	if _, err := f.WriteLines([]byte("late\n")); !errors.Is(err, os.ErrClosed) {
		t.Errorf("line after Close: got %v; want os.ErrClosed", err)
	}
}

func TestFile_GoesOnInTheOldOneWhereItCannotRotate(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "app.log")
	if err := os.MkdirAll(filepath.Join(path+".1", "in the way"), 0o755); err != nil {
		t.Fatal(err)
	}
	f, err := OpenFile(path, 10, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteLines([]byte("12345678\n"))
	if _, err := f.WriteLines([]byte("second\n")); err == nil {
		t.Error("rotation onto a directory: got no error; want one")
	}
	if got := readFile(t, path); got != "12345678\nsecond\n" {
		t.Errorf("file: got %q; want both lines", got)
	}
}

func TestFile_ReopenFollowsARename(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.log")
	f, err := OpenFile(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	f.WriteLines([]byte("one\n"))
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(); err != nil {
		t.Fatal(err)
	}
	f.WriteLines([]byte("two\n"))
	if got, old := readFile(t, path), readFile(t, path+".old"); got != "two\n" || old != "one\n" {
		t.Errorf("after a rename: got %q and %q; want two and one", got, old)
	}
}

func TestFile_LinesOfAFullDiskAreWrittenLaterTheLastOfThemWhole(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	dir := t.TempDir()
	if err := unix.Mount("lb-test", dir, "tmpfs", 0, "size=256k"); err != nil {
		t.Skipf("cannot mount a small file system: %v", err)
	}
	defer unix.Unmount(dir, unix.MNT_DETACH)
	path := filepath.Join(dir, "app.log")
	f, err := OpenFile(path, 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	ballast := filepath.Join(dir, "ballast")
	if err := os.WriteFile(ballast, make([]byte, 200<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	const lines = 20_000
	var dropped uint64
	for i := 0; i < lines; i += 10 {
		var batch []byte
		for j := i; j < i+10; j++ {
			batch = fmt.Appendf(batch, "line %05d\n", j)
		}
		n, err := f.WriteLines(batch)
		if n > 0 && !errors.Is(err, unix.ENOSPC) {
			t.Fatalf("dropped %d, %v; want ENOSPC", n, err)
		}
		dropped += n
	}
	if dropped == 0 {
		t.Fatal("dropped: got none; want some, or the disk is not full")
	}
	if err := os.Remove(ballast); err != nil {
		t.Fatal(err)
	}
	eventually.NoError(t, func() error { // without another line
		if !strings.HasSuffix(readFile(t, path), fmt.Sprintf("line %05d\n", lines-1)) {
			return errors.New("the last line is not there")
		}
		return nil
	})
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	next, marked := 0, uint64(0)
	for _, line := range strings.Split(strings.TrimSuffix(readFile(t, path), "\n"), "\n") {
		if _, text, ok := strings.Cut(line, "(lb dropped "); ok {
			var n uint64
			fmt.Sscanf(text, "%d lines here", &n)
			marked, next = marked+n, next+int(n)
			continue
		}
		var n int
		if _, err := fmt.Sscanf(line, "line %05d", &n); err != nil || n != next {
			if len(line) < len("line 00000") && next > 0 { // the torn one, which is counted
				continue
			}
			t.Fatalf("line %q: got it where %d was to come", line, next)
		}
		next++
	}
	if next != lines || marked != dropped {
		t.Errorf("got %d lines told of, %d marked as dropped; want %d, %d", next, marked, lines, dropped)
	}
}
