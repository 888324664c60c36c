package logs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFile_RotatesAtItsSizeAndKeepsSome(t *testing.T) {
	path := filepath.Join(t.TempDir(), "app.log")
	f, err := OpenFile(path, 30, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 9 { // 10 bytes each: three a file
		if err := f.WriteLine(fmt.Appendf(nil, "line %04d\n", i)); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.WriteLine([]byte(strings.Repeat("x", 100) + "\n")); err != nil { // longer than a file: in one of its own
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
	if err := f.WriteLine([]byte("late\n")); !errors.Is(err, os.ErrClosed) {
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
	f.WriteLine([]byte("12345678\n"))
	if err := f.WriteLine([]byte("second\n")); err == nil {
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
	f.WriteLine([]byte("one\n"))
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if err := f.Reopen(); err != nil {
		t.Fatal(err)
	}
	f.WriteLine([]byte("two\n"))
	if got, old := readFile(t, path), readFile(t, path+".old"); got != "two\n" || old != "one\n" {
		t.Errorf("after a rename: got %q and %q; want two and one", got, old)
	}
}
