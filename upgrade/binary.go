package upgrade

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// Binary is an open program. What Check asked is what Exec runs, whatever becomes of its name.
type Binary struct {
	file *os.File // O_PATH
	path string   // for messages
	stat unix.Stat_t
}

// Open opens a program to run. The error says what to do, where path is no program that can take over: no
// file or not executable, a script, or of another machine. Close it.
func Open(path string) (*Binary, error) {
	f, err := openPath(path)
	if err != nil {
		return nil, fmt.Errorf("cannot open the new binary: %w", err)
	}
	b := &Binary{file: f, path: path}
	if err := b.inspect(); err != nil {
		f.Close()
		return nil, err
	}
	return b, nil
}

// Close closes the file.
func (b *Binary) Close() error { return b.file.Close() }

// inspect returns an error for what cannot be run in the place of this program.
func (b *Binary) inspect() error {
	fault := func(format string, args ...any) error {
		return fmt.Errorf("cannot run the new binary %q: "+format, append([]any{b.path}, args...)...)
	}
	if err := unix.Fstat(int(b.file.Fd()), &b.stat); err != nil {
		return fault("%w", err)
	}
	switch {
	case b.stat.Mode&unix.S_IFMT != unix.S_IFREG:
		return fault("it is no regular file")
	case b.stat.Mode&0o111 == 0:
		return fault("it is not executable; chmod +x it")
	case b.stat.Size == 0:
		return fault("it is empty")
	}
	// Who may run a program may not always read it. Then the kernel alone judges.
	f, err := os.Open("/proc/self/fd/" + strconv.Itoa(int(b.file.Fd())))
	if err != nil {
		return nil
	}
	defer f.Close()
	return inspectELF(f, b.stat.Size, fault)
}

// machines are the ELF machines of the architectures that lb is built for.
var machines = map[string]elf.Machine{
	"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64, "386": elf.EM_386, "arm": elf.EM_ARM, "riscv64": elf.EM_RISCV, "ppc64le": elf.EM_PPC64,
	"s390x": elf.EM_S390, "loong64": elf.EM_LOONGARCH,
}

// inspectELF looks at a program's header (elf(5)). A script or a program of another machine would run as a
// child, as long as its interpreter finds it by a name, and not in the place of this program, where the name
// is a descriptor that the exec closes.
func inspectELF(f io.ReaderAt, size int64, fault func(format string, args ...any) error) error {
	head := make([]byte, 4)
	if _, err := f.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return fault("%w", err)
	}
	if bytes.HasPrefix(head, []byte("#!")) {
		return fault("it is a script, which cannot take sessions over; name the lb that it starts")
	}
	if !bytes.Equal(head, []byte(elf.ELFMAG)) {
		return fault("it is no program for this machine; build it for %s/%s", runtime.GOOS, runtime.GOARCH)
	}
	program, err := elf.NewFile(f)
	if err != nil {
		return fault("it is no whole program: %w; copy it again", err)
	}
	if want, known := machines[runtime.GOARCH]; known && program.Machine != want {
		return fault("it is no program for this machine; build it for %s/%s (it is for %v)", runtime.GOOS, runtime.GOARCH, program.Machine)
	}
	if program.Type != elf.ET_EXEC && program.Type != elf.ET_DYN {
		return fault("it is no program but a part of one (%v)", program.Type)
	}
	for _, p := range program.Progs {
		if p.Type == elf.PT_LOAD && p.Off+p.Filesz > uint64(size) {
			return fault("it is no whole program: it has %d bytes and needs %d; copy it again", size, p.Off+p.Filesz)
		}
	}
	return nil
}

// unchanged returns an error if the file was written to since it was opened: what was checked would not be
// what runs.
func (b *Binary) unchanged() error {
	var now unix.Stat_t
	if err := unix.Fstat(int(b.file.Fd()), &now); err != nil {
		return fmt.Errorf("cannot look at the new binary again: %w", err)
	}
	if now.Size != b.stat.Size || now.Mtim != b.stat.Mtim {
		return fmt.Errorf("the new binary %q was changed while it was asked; put a new file in its place with mv or install, and try again", b.path)
	}
	return nil
}
