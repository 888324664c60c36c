//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestUpgrade_SessionsInEveryState takes sessions through three upgrades in the middle of something.
func TestUpgrade_SessionsInEveryState(t *testing.T) {
	for kind, address := range backendKinds(t) {
		t.Run(kind, func(t *testing.T) {
			m := startManual(t, address)
			config := onePool(t, address)
			config.Listeners[0].Bind = append(config.Listeners[0].Bind, socketPath(tempDir(t), "front"))
			l := startLB(t, config)
			again := func() {
				t.Helper()
				for range 3 {
					l.upgrade(t, "")
				}
			}
			for i, front := range config.Listeners[0].Bind {
				t.Run([]string{"tcp", "unix"}[i], func(t *testing.T) {
					byClient, askedBackend := m.session(t, front)
					say(t, byClient, "question")
					hear(t, askedBackend, "question")
					closeWrite(t, byClient)
					hearEnd(t, askedBackend)
					byBackend, endedBackend := m.session(t, front)
					say(t, endedBackend, "banner")
					closeWrite(t, endedBackend)
					hear(t, byBackend, "banner")
					hearEnd(t, byBackend)
					// Bytes that nobody takes yet, both ways: in sockets, buffers and pipes.
					const size = 8 << 20
					full, fullBackend := m.session(t, front)
					sent := make(chan error, 1)
					go func() {
						_, err := fullBackend.Write(mustRead(noise(size, 4)))
						sent <- err
					}()
					time.Sleep(200 * time.Millisecond) // until nothing moves any more
					again()
					say(t, askedBackend, "answer")
					askedBackend.Close()
					hear(t, byClient, "answer")
					hearEnd(t, byClient)
					say(t, byBackend, "last words")
					byBackend.Close()
					hear(t, endedBackend, "last words")
					hearEnd(t, endedBackend)
					endedBackend.Close()
					got := make([]byte, size)
					for n := 0; n < size; {
						more, err := full.Read(got[n:min(n+size/3, size)])
						if err != nil {
							t.Fatal(err)
						}
						if n < size/2 && n+more >= size/2 {
							l.upgrade(t, "") // in the middle
						}
						n += more
					}
					if err := <-sent; err != nil {
						t.Error(err)
					}
					if string(got) != string(mustRead(noise(size, 4))) {
						t.Error("what arrived differs from what was sent")
					}
					full.Close()
					hearEnd(t, fullBackend)
					fullBackend.Close()
				})
			}
		})
	}
}

func TestUpgrade_TheQueueKeepsItsOrder(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	config := onePool(t, address)
	config.Pools[0].Backends[0].Options = "max_conns = 1"
	config.Pools[0].Options = "queue_timeout = \"30s\""
	l := startLB(t, config)
	first := dial(t, l.addr())
	if _, err := askOn(first); err != nil {
		t.Fatal(err)
	}
	served := make(chan int, 20)
	for i := range cap(served) {
		conn := dial(t, l.addr())
		go func() {
			if _, err := askOn(conn); err != nil {
				t.Error(err)
			}
			served <- i
			conn.Close()
		}()
		eventually(t, patience, func() error {
			if n := l.counters(t)[`lb_pool_queued_total{pool="app"}`]; n != float64(i+1) {
				return fmt.Errorf("clients that had to wait: got %v; want %d", n, i+1)
			}
			return nil
		})
	}
	for range 3 {
		l.upgrade(t, "")
	}
	first.Close()
	for want := range cap(served) {
		if got := <-served; got != want {
			t.Errorf("served as number %d: got %d; want those who came first", want, got)
		}
	}
}

// TestUpgrade_WhatWasChangedStays has no state_file: what was changed at run time is in the snapshot alone.
// The access log has a line for each connection, and the Unix socket and the counters stay.
func TestUpgrade_WhatWasChangedStays(t *testing.T) {
	dir := tempDir(t)
	access := filepath.Join(dir, "access.log")
	config := onePool(t, socketPath(dir, "w1"), socketPath(dir, "w2"))
	config.Options = fmt.Sprintf("[log]\naccess = %q\n", access)
	config.Listeners[0].Bind = append(config.Listeners[0].Bind, socketPath(dir, "front"))
	for _, b := range config.Pools[0].Backends {
		startLines(t, b.Name, b.Address)
	}
	l := startLB(t, config)
	l.mustCommand(t, "weight", "app/w1", "7")
	l.mustCommand(t, "drain", "app/w2")
	socket, err := os.Stat(filepath.Join(dir, "front"))
	if err != nil {
		t.Fatal(err)
	}
	load := startLoad(t, config.Listeners[0].Bind[1], 4)
	before := l.counters(t)
	for range 10 {
		load.waitMore(t, "w1", 20)
		l.upgrade(t, "")
		after := l.counters(t)
		wantMonotone(t, before, after)
		before = after
	}
	load.end()
	load.wantNoError(t)
	s := l.status(t)
	if w1, w2 := s.backend(t, "w1"), s.backend(t, "w2"); w1.Weight != 7 || w2.Admin == "ready" || load.count("w2") != 0 {
		t.Errorf("backends: got %+v and %+v; want what the operator has changed", w1, w2)
	}
	if now, err := os.Stat(filepath.Join(dir, "front")); err != nil || !os.SameFile(now, socket) {
		t.Errorf("socket file: got %v, %v; want the same as before", now, err)
	}
	eventually(t, patience, func() error {
		if got := strings.Count(readFile(t, access), "\n"); got != load.count("w1") {
			return fmt.Errorf("lines of the access log: got %d; want %d, one for each connection", got, load.count("w1"))
		}
		return nil
	})
	if text := l.mustCommand(t, "events").stdout; strings.Count(text, "carried over") != 10 {
		t.Errorf("events: got\n%s\nwant all 10 upgrades", text)
	}
}

// TestUpgrade_WorkersStartedAfterwardsHearSignals: lb's threads hold some back after an exec.
func TestUpgrade_WorkersStartedAfterwardsHearSignals(t *testing.T) {
	// Go's own runtime changes the mask; socat's is that of its start.
	l := startLB(t, workersPool(t, "", fmt.Sprintf("command = [%q, \"UNIX-LISTEN:{socket},fork\", \"EXEC:cat\"]\ncount = 2\n", program(t, "socat"))))
	l.waitUp(t, 2)
	l.upgrade(t, "")
	l.mustCommand(t, "restart", "app")
	for _, pid := range l.waitUp(t, 2).pids() {
		for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", pid))) {
			if strings.HasPrefix(line, "SigBlk:") && strings.Trim(line[7:], "\t0\n") != "" {
				t.Errorf("worker %d: got %q; want no signal held back", pid, strings.TrimSpace(line))
			}
		}
	}
}

// TestUpgrade_AsTheFirstProcess is a container's: the kernel treats the signals of pid 1 in another way, and
// lb reaps orphans.
func TestUpgrade_AsTheFirstProcess(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	config := onePool(t, address)
	dir := tempDir(t)
	l := &lb{config: config, socket: filepath.Join(dir, "admin.sock")}
	l.file = writeFile(t, dir, "lb.toml", config.toml(l.socket), 0o644)
	l.process = startProcess(t, "unshare", exec.Command(program(t, "unshare"), "--pid", "--fork", "--kill-child", "--mount-proc", lbBinary(t), "run", "-f", l.file))
	l.stop = syscall.SIGKILL // unshare passes no other on
	eventually(t, patience, func() error { _, err := l.readStatus(t); return err })
	l.waitHealth(t, "up")
	conn := dial(t, l.addr())
	for range 5 {
		status, u, err := l.askUpgrade("")
		if err != nil || status != 200 || u.PID != 1 {
			t.Fatalf("upgrade of pid 1: got %d, %+v, %v; want it done", status, u, err)
		}
		if _, err := askOn(conn); err != nil {
			t.Fatal(err)
		}
	}
	l.mustCommand(t, "stop")
	conn.Close()
	if code := l.exitCode(t, patience); code != 0 {
		t.Errorf("exit code: got %d; want 0", code)
	}
}

// TestRun_WithoutHomeOnAReadOnlyRoot: lb writes to what its config names, and to nothing else.
func TestRun_WithoutHomeOnAReadOnlyRoot(t *testing.T) {
	config := linesWorkers(t, 2, "")
	dir := tempDir(t)
	l := &lb{config: config, socket: filepath.Join(dir, "admin.sock")}
	l.file = writeFile(t, dir, "lb.toml", config.toml(l.socket), 0o644)
	const script = `set -e
mount --bind "$1" "$1"
mount -o remount,bind,ro /
! mkdir /lb-e2e 2>/dev/null
cd /
exec env -i "$2" run -f "$3"`
	l.process = startProcess(t, "unshare", exec.Command(program(t, "unshare"), "--mount", "--propagation", "private",
		program(t, "sh"), "-c", script, "sh", dir, lbBinary(t), l.file))
	eventually(t, patience, func() error { _, err := l.readStatus(t); return err })
	before := l.waitUp(t, 2).pids()
	conn := dial(t, l.addr())
	defer conn.Close()
	answer := func() {
		t.Helper()
		if _, err := askOn(conn); err != nil {
			t.Error(err)
		}
		if _, err := askLine(l.addr(), patience); err != nil {
			t.Error(err)
		}
	}
	answer()
	l.upgrade(t, "")
	answer()
	conn.Close()
	l.mustCommand(t, "restart", "app", "--timeout", "10s")
	if after := l.waitUp(t, 2).pids(); fmt.Sprint(after) == fmt.Sprint(before) {
		t.Errorf("workers after a restart: got the same, %v", after)
	}
	if _, err := askLine(l.addr(), patience); err != nil {
		t.Error(err)
	}
	l.mustCommand(t, "stop")
	if code := l.exitCode(t, patience); code != 0 {
		t.Errorf("exit code: got %d; want 0\n%s", code, l.tail())
	}
}
