//go:build e2e

package e2e

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// goodConfig is a config without a fault; a test replaces one of its lines.
const goodConfig = `[proxy]
loops = 2
stop_timeout = "30s"

[admin]
socket = "DIR/admin.sock"
http = ""

[log]
access = "off"

[listeners.web]
bind = ["127.0.0.1:PORT"]
pool = "app"

[pools.app]
connect_timeout = "5s"
idle_timeout = "1h"

[pools.app.health]
type = "connect"
interval = "1s"

[[pools.app.backends]]
name = "w1"
address = "unix:DIR/w1.sock"
weight = 100

[[pools.app.backends]]
name = "w2"
address = "127.0.0.1:5432"
weight = 100
`

// configFile writes goodConfig with the first line that is old replaced, if old is not empty, and returns its
// path and that line's number.
func configFile(t testing.TB, old, new string) (path string, line int) {
	t.Helper()
	dir := tempDir(t)
	lines := strings.Split(goodConfig, "\n")
	for i, text := range lines {
		if line == 0 && old != "" && text == old {
			lines[i], line = new, i+1
		}
	}
	if line == 0 && old != "" {
		t.Fatalf("cannot find the line %q in the config", old)
	}
	text := strings.Join(lines, "\n")
	_, port, _ := strings.Cut(freePort(t, "127.0.0.1"), ":")
	text = strings.NewReplacer("DIR", dir, "PORT", port).Replace(text)
	return writeFile(t, dir, "lb.toml", text, 0o644), line
}

func TestCheck_GoodFile(t *testing.T) {
	path, _ := configFile(t, "", "")
	r := run(t, patience, nil, lbBinary(t), "check", "-f", path)
	if r.code != 0 {
		t.Errorf("exit code for a good file: got %d; want 0\n%s%s", r.code, r.stdout, r.stderr)
	}
}

func TestCheck_BadFileSaysWhere(t *testing.T) {
	for _, c := range []struct {
		name     string
		old, new string // the line that is replaced, and its successor
		want     string // also in the message
	}{
		{"syntax", `loops = 2`, `loops = = 2`, ""},
		{"unclosed string", `pool = "app"`, `pool = "app`, ""},
		{"unknown key", `loops = 2`, `lops = 2`, "lops"},
		{"unknown section", `[proxy]`, `[prxy]`, "prxy"},
		{"unknown key of a backend", `weight = 100`, `wieght = 100`, "wieght"},
		{"double key", `stop_timeout = "30s"`, `loops = 3`, "loops"},
		{"wrong type", `loops = 2`, `loops = "two"`, "loops"},
		{"bare integer duration", `stop_timeout = "30s"`, `stop_timeout = 30`, `"30s"`},
		{"no duration", `interval = "1s"`, `interval = "soon"`, "interval"},
		{"negative duration", `connect_timeout = "5s"`, `connect_timeout = "-5s"`, "connect_timeout"},
		{"zero interval", `interval = "1s"`, `interval = "0s"`, "interval"},
		{"negative loops", `loops = 2`, `loops = -1`, "loops"},
		{"weight too large", `weight = 100`, `weight = 1001`, "weight"},
		{"weight negative", `weight = 100`, `weight = -1`, "weight"},
		{"bad bind", `bind = ["127.0.0.1:PORT"]`, `bind = ["127.0.0.1"]`, "bind"},
		{"bad port", `bind = ["127.0.0.1:PORT"]`, `bind = ["127.0.0.1:65536"]`, "65536"},
		{"bad backend address", `address = "127.0.0.1:5432"`, `address = "127.0.0.1"`, "127.0.0.1"},
		{"relative socket", `address = "127.0.0.1:5432"`, `address = "unix:w2.sock"`, "w2.sock"},
		{"unknown pool", `pool = "app"`, `pool = "apps"`, "apps"},
		{"unknown probe", `type = "connect"`, `type = "conect"`, "conect"},
		{"double name", `name = "w2"`, `name = "w1"`, "w1"},
		{"bad name", `name = "w2"`, `name = "w 2"`, "w 2"},
	} {
		t.Run(c.name, func(t *testing.T) {
			path, line := configFile(t, c.old, c.new)
			for _, command := range []string{"check", "run"} {
				r := run(t, patience, nil, lbBinary(t), command, "-f", path)
				if r.code != 1 {
					t.Errorf("exit code of lb %s: got %d; want 1", command, r.code)
				}
				if want := fmt.Sprintf("%s:%d", path, line); !strings.Contains(r.stderr, want) {
					t.Errorf("message of lb %s: got %q; want it to say %q", command, r.stderr, want)
				}
				if !strings.Contains(r.stderr, c.want) {
					t.Errorf("message of lb %s: got %q; want it to say %q", command, r.stderr, c.want)
				}
			}
		})
	}
}

func TestCheck_SaysAllFaultsAtOnce(t *testing.T) {
	path, first := configFile(t, `loops = 2`, "loops = -1")
	text := strings.Replace(readFile(t, path), `interval = "1s"`, `interval = "0s"`, 1)
	path = writeFile(t, filepath.Dir(path), "lb.toml", text, 0o644)
	second := 1 + strings.Count(text[:strings.Index(text, "interval")], "\n")
	r := run(t, patience, nil, lbBinary(t), "check", "-f", path)
	for _, line := range []int{first, second} {
		if want := fmt.Sprintf("%s:%d", path, line); !strings.Contains(r.stderr, want) {
			t.Errorf("message for two faults: got %q; want it to say %q", r.stderr, want)
		}
	}
}

func TestCheck_MissingFile(t *testing.T) {
	path := filepath.Join(tempDir(t), "none.toml")
	for _, command := range []string{"check", "run"} {
		r := run(t, patience, nil, lbBinary(t), command, "-f", path)
		if r.code != 1 || !strings.Contains(r.stderr, path) {
			t.Errorf("lb %s of a missing file: got exit code %d and %q; want 1 and the path", command, r.code, r.stderr)
		}
	}
}

func TestCommand_ExitCodes(t *testing.T) {
	dir := tempDir(t)
	for _, c := range []struct {
		name string
		args []string
		want int
	}{
		{"version", []string{"version"}, 0},
		{"help", []string{"--help"}, 0},
		{"unknown command", []string{"rnu"}, 2},
		{"unknown flag", []string{"run", "--fiel", "x"}, 2},
		{"excess argument", []string{"version", "x"}, 2},
		{"status of nobody", []string{"status", "-s", filepath.Join(dir, "none.sock")}, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := run(t, patience, nil, lbBinary(t), c.args...)
			if r.code != c.want {
				t.Errorf("exit code of lb %q: got %d; want %d\n%s%s", c.args, r.code, c.want, r.stdout, r.stderr)
			}
			if r.stdout+r.stderr == "" {
				t.Errorf("output of lb %q: got none; want some", c.args)
			}
		})
	}
}

func TestRun_OccupiedAddressIsAnError(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startHolder(t, address)
	first := startLB(t, onePool(t, address))
	dir := tempDir(t)
	path := writeFile(t, dir, "lb.toml", first.config.toml(filepath.Join(dir, "admin.sock")), 0o644)
	r := run(t, patience, nil, lbBinary(t), "run", "-f", path)
	if r.code != 1 || !strings.Contains(r.stderr, first.addr()) {
		t.Errorf("second lb on the same address: got exit code %d and %q; want 1 and %q", r.code, r.stderr, first.addr())
	}
	if err := accepts(first.addr()); err != nil {
		t.Errorf("first lb afterwards: %v", err)
	}
}

// The admin socket of a running lb is not taken away from it.
func TestRun_OccupiedAdminSocketIsAnError(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startHolder(t, address)
	first := startLB(t, onePool(t, address))
	path := writeFile(t, tempDir(t), "lb.toml", onePool(t, address).toml(first.socket), 0o644)
	r := run(t, patience, nil, lbBinary(t), "run", "-f", path)
	if r.code != 1 || !strings.Contains(r.stderr, first.socket) {
		t.Errorf("second lb on the same admin socket: got exit code %d and %q; want 1 and %q", r.code, r.stderr, first.socket)
	}
	first.status(t)
}
