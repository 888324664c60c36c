package supervisor

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// CheckProgram returns why the kernel will not run the file at path, in words that name the cause: execve(2)
// only says "no such file" or "exec format error". Nil: no fault is seen.
func CheckProgram(path string) error {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("there is no %q", path)
	case err != nil:
		return err
	case st.IsDir():
		return fmt.Errorf("%q is a directory", path)
	case !st.Mode().IsRegular():
		return fmt.Errorf("%q is not a regular file", path)
	case st.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("%q is not executable; chmod +x it", path)
	}
	f, err := os.Open(path)
	if err != nil { // one may run what one may not read
		return nil
	}
	defer f.Close()
	head := make([]byte, 256) // all that the kernel looks at
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return nil
	}
	head = head[:n]
	switch {
	case n == 0:
		return fmt.Errorf("%q is empty", path)
	case bytes.HasPrefix(head, []byte("#!")):
		return checkInterpreter(path, head)
	case bytes.HasPrefix(head, []byte("\xEF\xBB\xBF#!")):
		return fmt.Errorf("%q begins with a byte order mark before #!; save it as UTF-8 without", path)
	case bytes.HasPrefix(head, []byte("\x7fELF")), bytes.IndexByte(head, 0) >= 0: // for binfmt_misc, perhaps
		return nil
	default:
		return fmt.Errorf("%q is a script without a first line such as #!/bin/sh; add one, or name its interpreter in command", path)
	}
}

// checkInterpreter looks at the first line of a script.
func checkInterpreter(path string, head []byte) error {
	line, _, _ := strings.Cut(string(head[2:]), "\n")
	name := strings.TrimLeft(line, " \t")
	if end := strings.IndexAny(name, " \t"); end >= 0 {
		name = name[:end]
	}
	bare := strings.TrimSuffix(name, "\r")
	switch {
	case bare == "":
		return fmt.Errorf("the first line of %q names no interpreter", path)
	case bare != name || strings.HasSuffix(line, "\r"):
		return fmt.Errorf("the first line of %q ends in CRLF, which the kernel takes as part of it: save it with Unix line ends", path)
	}
	st, err := os.Stat(name)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("the interpreter %q in the first line of %q does not exist", name, path)
	case err != nil:
		return fmt.Errorf("the interpreter in the first line of %q: %w", path, err)
	case st.IsDir() || st.Mode().Perm()&0o111 == 0:
		return fmt.Errorf("the interpreter %q in the first line of %q is not executable", name, path)
	}
	return nil
}

// explain returns an error of execve(2) with its cause.
func explain(path string, err error) error {
	if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOEXEC) || errors.Is(err, unix.EACCES) || errors.Is(err, unix.ENOTDIR) {
		if why := CheckProgram(path); why != nil {
			return fmt.Errorf("cannot run %q: %w", path, why)
		}
	}
	if errors.Is(err, unix.ENOENT) { // the file is there, and so is what its first line names
		return fmt.Errorf("cannot run %q: its dynamic loader, or a library's, is not on this host: %w", filepath.Base(path), err)
	}
	return fmt.Errorf("cannot run %q: %w", path, err)
}
