package supervisor

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestProgram_WhatKeepsItFromRunningIsNamed(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	f := func(name, text string, mode os.FileMode, want string) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := filepath.Join(dir, name)
			if err := os.WriteFile(path, []byte(text), mode); err != nil {
				t.Fatal(err)
			}
			if err := CheckProgram(path); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v; want %q", err, want)
			}
			// What a worker dies of says the same.
			cfg := workerConfig()
			cfg.Command, cfg.Count = []string{path}, 1
			s := start(t, open(t), cfg)
			s.until("deaths", func(st *Status) bool { return st.Slots[0].Deaths >= 1 })
			if last := s.pool.Status().Slots[0].Last; name != "crlf-env" && (len(last.Lines) != 1 || !strings.Contains(last.Lines[0], want)) {
				// env(1) speaks for itself
				t.Errorf("got %q; want %q", last.Lines, want)
			}
			s.stop()
		})
	}
	f("interpreter", "#!/usr/bin/pythn3 -u\nprint()\n", 0o755, `the interpreter "/usr/bin/pythn3"`)
	f("crlf", "#!/bin/sh\r\nexit 0\r\n", 0o755, "ends in CRLF")
	f("crlf-env", "#!/usr/bin/env python3\r\nexit 0\r\n", 0o755, "CRLF")
	f("bare", "echo hello\n", 0o755, "a script without a first line")
	f("bom", "\xEF\xBB\xBF#!/bin/sh\n", 0o755, "byte order mark")
	f("nothing", "", 0o755, "is empty")
	f("mode", "#!/bin/sh\n", 0o644, "not executable")
	for _, path := range []string{"/bin/sh", "/proc/self/exe"} {
		if err := CheckProgram(path); err != nil {
			t.Errorf("%s: got %v; want nil", path, err)
		}
	}
}
