//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// tmux is a terminal with a shell in it, which a test types into and reads.
type tmux struct {
	t      *testing.T
	path   string
	socket string
	out    string // the file with every byte that programs wrote to the terminal
}

// startTmux starts a shell in a terminal of that size. Its prompt is "$ ", lb is the one under test, and its
// commands ask the lb with that control socket.
func startTmux(t *testing.T, socket string, width, height int) *tmux {
	t.Helper()
	dir := tempDir(t)
	m := &tmux{t: t, path: program(t, "tmux"), socket: filepath.Join(dir, "tmux.sock"), out: filepath.Join(dir, "out")}
	rc := writeFile(t, dir, "rc", "PS1='$ '\nlb() { "+lbBinary(t)+" \"$@\"; }\n", 0o644)
	cmd := m.command("-f", "/dev/null", "-u", "new-session", "-d", "-x", fmt.Sprint(width), "-y", fmt.Sprint(height),
		"-e", "ENV="+rc, "-e", "LB_SOCKET="+socket, "-e", "NO_COLOR=", "/bin/sh")
	cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8")
	if text, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot start tmux: %v: %s", err, text)
	}
	t.Cleanup(func() { m.command("kill-server").Run() })
	m.run("pipe-pane", "cat >>'"+m.out+"'")
	m.shows("the prompt", func(screen string) bool { return strings.HasPrefix(screen, "$") })
	return m
}

func (m *tmux) command(args ...string) *exec.Cmd {
	return exec.Command(m.path, append([]string{"-S", m.socket}, args...)...)
}

func (m *tmux) run(args ...string) string {
	m.t.Helper()
	text, err := m.command(args...).CombinedOutput()
	if err != nil {
		m.t.Fatalf("tmux %v: %v: %s", args, err, text)
	}
	return string(text)
}

// typed types a text as it is; key presses a key by tmux's name for it.
func (m *tmux) typed(text string) { m.t.Helper(); m.run("send-keys", "-l", text) }
func (m *tmux) key(name string)   { m.t.Helper(); m.run("send-keys", name) }

func (m *tmux) screen() string { m.t.Helper(); return m.run("capture-pane", "-p") }

// written returns how many bytes programs have written to the terminal.
func (m *tmux) written() int64 {
	m.t.Helper()
	info, err := os.Stat(m.out)
	if err != nil {
		m.t.Fatal(err)
	}
	return info.Size()
}

// shows waits until the screen is as a test wants it, and returns it.
func (m *tmux) shows(what string, is func(screen string) bool) (screen string) {
	m.t.Helper()
	eventually(m.t, patience, func() error {
		if screen = m.screen(); !is(screen) {
			return fmt.Errorf("the terminal: got\n%s\nwant %s", screen, what)
		}
		return nil
	})
	return screen
}

// says waits until the screen has every one of the texts.
func (m *tmux) says(texts ...string) string {
	m.t.Helper()
	return m.shows(fmt.Sprintf("%q", texts), func(screen string) bool {
		flat := strings.Join(strings.Fields(screen), " ")
		for _, text := range texts {
			if !strings.Contains(flat, text) {
				return false
			}
		}
		return true
	})
}

// lacks waits until the screen does not have a text any more.
func (m *tmux) lacks(text string) {
	m.t.Helper()
	m.shows("no "+text, func(screen string) bool { return !strings.Contains(screen, text) })
}

// inOrder reports whether a screen has texts in this order.
func inOrder(screen string, texts ...string) bool {
	for _, text := range texts {
		i := strings.Index(screen, text)
		if i < 0 {
			return false
		}
		screen = screen[i+len(text):]
	}
	return true
}
