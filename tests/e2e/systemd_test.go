//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// notifySocket is a service manager's end of sd_notify(3).
type notifySocket struct {
	mu   sync.Mutex
	said []string
}

// startNotify has every lb that the test starts from now on tell the socket.
func startNotify(t *testing.T) *notifySocket {
	t.Helper()
	path := filepath.Join(tempDir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	n := &notifySocket{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 4096)
		for {
			size, err := conn.Read(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.said = append(n.said, string(buf[:size]))
			n.mu.Unlock()
		}
	}()
	t.Cleanup(func() { conn.Close(); <-done })
	t.Setenv("NOTIFY_SOCKET", path)
	return n
}

// count counts the messages that have the line, or one that begins with it if it ends with "=".
func (n *notifySocket) count(line string) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for _, message := range n.said {
		for _, l := range strings.Split(message, "\n") {
			if l == line || strings.HasSuffix(line, "=") && strings.HasPrefix(l, line) {
				count++
			}
		}
	}
	return count
}

// wait waits until a line was said at least so many times.
func (n *notifySocket) wait(t *testing.T, line string, times int) {
	t.Helper()
	eventually(t, patience, func() error {
		if got := n.count(line); got < times {
			return fmt.Errorf("messages with %q: got %d; want %d", line, got, times)
		}
		return nil
	})
}

func TestSystemd_HearsOfEveryStep(t *testing.T) {
	n := startNotify(t)
	t.Setenv("WATCHDOG_USEC", "200000")
	w1 := startHolder(t, socketPath(tempDir(t), "w1.sock"))
	l := startLB(t, onePool(t, w1.address))
	n.wait(t, "READY=1", 1)
	n.wait(t, "STATUS=0 sessions, 1 of 1 backend up", 1)
	start := time.Now()
	before := n.count("WATCHDOG=1")
	n.wait(t, "WATCHDOG=1", before+5)
	if took := time.Since(start); took < 300*time.Millisecond {
		t.Errorf("5 signs of life: got them within %v; want one each 100ms", took)
	}

	l.reload(t)
	n.wait(t, "RELOADING=1", 1)
	n.wait(t, "MONOTONIC_USEC=", 1)
	n.wait(t, "READY=1", 2)
	writeFile(t, filepath.Dir(l.file), filepath.Base(l.file), "nonsense", 0o644)
	if r := run(t, patience, nil, lbBinary(t), "reload", "-s", l.socket); r.code != 1 {
		t.Errorf("reload of a bad file: got exit code %d; want 1", r.code)
	}
	n.wait(t, "RELOADING=1", 2)
	n.wait(t, "READY=1", 3) // as it was

	if got := n.count("STOPPING=1"); got != 0 {
		t.Errorf("STOPPING=1 before the stop: got %d; want none", got)
	}
	l.signal(t, syscall.SIGTERM)
	n.wait(t, "STOPPING=1", 1)
	n.wait(t, "EXTEND_TIMEOUT_USEC=", 1)
	if code, _ := l.waitExit(t, patience); code != 0 {
		t.Errorf("exit code: got %d; want 0", code)
	}
}
