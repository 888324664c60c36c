package upgrade

import (
	"bytes"
	"debug/elf"
	"os"
	"strings"
	"testing"
	"time"
)

// program is this test's own.
func program(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestOpen_RefusesWhatCannotTakeOver(t *testing.T) {
	whole := program(t)
	foreign := bytes.Clone(whole)
	foreign[18], foreign[19] = byte(elf.EM_SPARC), 0 // e_machine (elf(5))
	object := bytes.Clone(whole)
	object[16], object[17] = byte(elf.ET_REL), 0 // e_type
	for name, tc := range map[string]struct {
		data []byte
		want string
	}{
		"script":                     {[]byte("#!/bin/sh\nexec lb \"$@\"\n"), "it is a script"},
		"script without end":         {[]byte("#!"), "it is a script"},
		"text":                       {[]byte("no program"), "no program for this machine"},
		"two bytes":                  {[]byte("\x7fE"), "no program for this machine"},
		"header":                     {whole[:64], "no whole program"},
		"half of a program":          {whole[:len(whole)/2], "no whole program"},
		"all but its last byte":      {whole[:len(whole)-1], "no whole program"},
		"program of another machine": {foreign, "it is for EM_SPARC"},
		"object file":                {object, "a part of one"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := Open(binary(t, string(tc.data), 0o755))
			if err == nil {
				b.Close()
				t.Fatalf("got no error; want %q", tc.want)
			}
			if !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v; want %q", err, tc.want)
			}
		})
	}
}

func TestExec_RefusesABinaryThatWasChangedSince(t *testing.T) {
	path := binary(t, string(program(t)), 0o755)
	for name, change := range map[string]func() error{
		"written to": func() error { return os.WriteFile(path, []byte("another"), 0o755) },
		"touched":    func() error { return os.Chtimes(path, time.Now(), time.Now().Add(time.Second)) },
	} {
		t.Run(name, func(t *testing.T) {
			if err := os.WriteFile(path, program(t), 0o755); err != nil {
				t.Fatal(err)
			}
			b, err := Open(path)
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			if err := b.unchanged(); err != nil {
				t.Fatal(err)
			}
			if err := change(); err != nil {
				t.Fatal(err)
			}
			if err := Exec(&Plan{Binary: b, Args: []string{"x"}}); err == nil || !strings.Contains(err.Error(), "was changed") {
				t.Errorf("got %v; want that it was changed", err)
			}
		})
	}
}
