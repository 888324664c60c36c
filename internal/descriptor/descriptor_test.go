package descriptor

import (
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestCopyFile_OutlivesTheFirstAndIsNotInherited(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	c, err := CopyFile(w, "copy")
	if err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := c.WriteString("text"); err != nil {
		t.Errorf("write after the first was closed: got %v; want none", err)
	}
	if flags, err := unix.FcntlInt(c.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("got flags %#x, %v; want FD_CLOEXEC", flags, err)
	}
	c.Close()
	if text, err := io.ReadAll(r); string(text) != "text" || err != nil {
		t.Errorf("got %q, %v; want what was written", text, err)
	}
}

func TestCopyFile_LeavesTheModeAsItIs(t *testing.T) {
	fds := make([]int, 2)
	if err := unix.Pipe2(fds, unix.O_NONBLOCK|unix.O_CLOEXEC); err != nil {
		t.Fatal(err)
	}
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	defer r.Close()
	defer w.Close()
	c, err := CopyFile(r, "copy")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if flags, err := unix.FcntlInt(uintptr(fds[0]), unix.F_GETFL, 0); err != nil || flags&unix.O_NONBLOCK == 0 {
		t.Errorf("got flags %#x, %v; want O_NONBLOCK as before", flags, err)
	}
}

func TestCopy_OfAClosedOneIsAnError(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	if fd, err := CopyOf(f); err == nil || fd != -1 {
		t.Errorf("got %d, %v; want -1 and an error", fd, err)
	}
	if fd, err := Copy(-1); err == nil || fd != -1 {
		t.Errorf("got %d, %v; want -1 and an error", fd, err)
	}
}
