package upgrade

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestOpen_RefusesWhatIsNoProgram(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	if err := unix.Mkfifo(fifo, 0o755); err != nil {
		t.Fatal(err)
	}
	plain, empty := filepath.Join(dir, "plain"), filepath.Join(dir, "empty")
	if err := os.WriteFile(plain, []byte("text"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(empty, nil, 0o755); err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		fifo: "no regular file", dir: "no regular file", plain: "not executable", empty: "empty", filepath.Join(dir, "none"): "no such file",
	} {
		if f, err := Open(path); err == nil || !strings.Contains(err.Error(), want) {
			// a FIFO must not make it wait
			t.Errorf("%s: got %v, %v; want %q", filepath.Base(path), f, err, want)
		}
	}
}

func TestOpen_NeedsNoPermissionToRead(t *testing.T) {
	path, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	f, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if flags, err := unix.FcntlInt(f.file.Fd(), unix.F_GETFL, 0); err != nil || flags&unix.O_PATH == 0 {
		t.Errorf("flags: got %#x, %v; want O_PATH", flags, err)
	}
	answer, err := Check(t.Context(), f, []string{path, "-test.list=^$"}, nil, CheckTimeout)
	if err == nil || !strings.Contains(err.Error(), "does not know how to take over") { // it ran
		t.Errorf("Check: got %+v, %v; want that it is no lb", answer, err)
	}
}
