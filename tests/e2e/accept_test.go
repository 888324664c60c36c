//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"
)

// acceptLimit is within which lb with default health takes a backend offline that does not accept: fall (3)
// intervals (1s) and a timeout (500ms), and what a busy machine adds.
const acceptLimit = 3*time.Second + 500*time.Millisecond + time.Second

// hangs has hang make the backend name hang, under an lb without any health keys, and goOn end that. It wants
// the backend offline in time, nothing new on it from then on, and it back in the end.
func hangs(t *testing.T, l *lb, name string, hang, goOn func(), ask func() error) {
	t.Helper()
	start := time.Now()
	hang()
	l.waitHealth(t, "down", name)
	if took := time.Since(start); took > acceptLimit {
		t.Errorf("time until %s was offline: got %v; want at most %v", name, took, acceptLimit)
	}
	text := mustRun(t, patience, lbBinary(t), "status", "-s", l.socket).stdout
	if !strings.Contains(text, "does not accept: ") {
		t.Errorf("status: got\n%s\nwant it to say that %s does not accept", text, name)
	}
	before := l.status(t).backend(t, name).Connections
	for range 50 {
		if err := ask(); err != nil {
			t.Fatalf("a request while %s hangs: %v", name, err)
		}
	}
	if after := l.status(t).backend(t, name).Connections; after != before {
		t.Errorf("connections to %s while it is offline: got %d; want 0", name, after-before)
	}
	goOn()
	l.waitHealth(t, "up", name)
}

func askOnce(l *lb) func() error {
	return func() error {
		_, err := askLine(l.addr(), patience)
		return err
	}
}

func TestAccept_StoppedBackendIsOfflineAndBack(t *testing.T) {
	for kind, addresses := range map[string][]string{
		"unix": {socketPath(tempDir(t), "w1"), socketPath(tempDir(t), "w2")},
		"tcp":  {freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1")},
	} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			stopped := startLines(t, "w1", addresses[0])
			startLines(t, "w2", addresses[1])
			l := startLB(t, onePool(t, addresses...))
			l.waitHealth(t, "up")
			hangs(t, l, "w1", func() { stopped.signal(t, syscall.SIGSTOP) }, func() { stopped.signal(t, syscall.SIGCONT) }, askOnce(l))
		})
	}
}

func TestAccept_StoppedWorkerIsOfflineAndBackAndNotKilled(t *testing.T) {
	t.Parallel()
	l := startLB(t, linesWorkers(t, 3, ""))
	before := l.waitUp(t, 3)
	pid := before.Slots[1].PID
	hangs(t, l, before.Slots[1].Backend, func() { syscall.Kill(pid, syscall.SIGSTOP) }, func() { syscall.Kill(pid, syscall.SIGCONT) }, askOnce(l))
	sameWorkers(t, before, l.waitUp(t, 3))
}

// A worker that does not accept is killed where the config asks for it.
func TestAccept_KillAfterKills(t *testing.T) {
	t.Parallel()
	l := startLB(t, linesWorkers(t, 2, "kill_after = \"1s\"\nkill_timeout = \"1s\"\n"))
	pid := l.waitUp(t, 2).Slots[0].PID
	syscall.Kill(pid, syscall.SIGSTOP)
	eventually(t, patience, func() error {
		if w := l.workers(t).Slots[0]; w.PID == pid || w.State != "up" {
			return fmt.Errorf("slot 0: got %+v; want another worker, up", w)
		}
		return nil
	})
}

// busyServer answers a request at once, and /hang after its only thread was busy for ten seconds.
const busyServer = `
const [name, socket] = process.argv.slice(2);
require('http').createServer((req, res) => {
	if (req.url === '/hang') {
		const end = Date.now() + 10000;
		while (Date.now() < end);
	}
	res.end(name);
}).listen(socket);
`

func TestAccept_NodeInALoopIsOfflineAndBack(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	script := writeFile(t, dir, "server.js", busyServer, 0o644)
	addresses := []string{socketPath(dir, "w1"), socketPath(dir, "w2")}
	for i, address := range addresses {
		_, socket := splitAddress(address)
		waitAccepts(t, startProcess(t, "node", exec.Command(program(t, "node"), script, fmt.Sprint("w", i+1), socket)), address)
	}
	l := startLB(t, onePool(t, addresses...))
	l.waitHealth(t, "up")
	_, socket := splitAddress(addresses[0])
	curl := program(t, "curl")
	hang := func() { startProcess(t, "curl", exec.Command(curl, "-s", "--unix-socket", socket, "http://lb/hang")) }
	ask := func() error {
		return exec.Command(curl, "-sf", "-o", "/dev/null", "http://"+l.addr()+"/").Run()
	}
	hangs(t, l, "w1", hang, func() {}, ask)
}

// busyWorker is busyServer as a worker that knows nothing of lb but its socket, and names its slot.
const busyWorker = `
require('http').createServer((req, res) => {
	if (req.url === '/hang') {
		const end = Date.now() + 10000;
		while (Date.now() < end);
	}
	res.end('w' + process.env.LB_WORKER_ID);
}).listen({ fd: 3 });
`

// lb connects the clients of the pool to the worker itself (no hand-off), and the pool has no health keys.
func TestAccept_NodeWorkerInALoopIsOfflineAndBackAndNotKilled(t *testing.T) {
	t.Parallel()
	script := writeFile(t, tempDir(t), "worker.js", busyWorker, 0o644)
	l := startLB(t, workersPool(t, "", fmt.Sprintf("command = [%q, %q]\ncount = 2\n", program(t, "node"), script)))
	before := l.waitUp(t, 2)
	curl := program(t, "curl")
	get := func(socket, path string) *exec.Cmd {
		return exec.Command(curl, "-sf", "-o", "/dev/null", "--unix-socket", socket, "http://lb"+path)
	}
	_, socket := splitAddress(l.status(t).backend(t, before.Slots[1].Backend).Address)
	hang := func() { startProcess(t, "curl", get(socket, "/hang")) }
	ask := func() error {
		return exec.Command(curl, "-sf", "-o", "/dev/null", "http://"+l.addr()+"/").Run()
	}
	hangs(t, l, before.Slots[1].Backend, hang, func() {}, ask)
	sameWorkers(t, before, l.waitUp(t, 2))
}

// sameWorkers wants each slot to have the process that it had before.
func sameWorkers(t *testing.T, before, after workersStatus) {
	t.Helper()
	for i := range after.Slots {
		if after.Slots[i].PID != before.Slots[i].PID || after.Slots[i].Restarts != 0 {
			t.Errorf("slot %d: got pid %d, %d restarts; want pid %d and none", i, after.Slots[i].PID, after.Slots[i].Restarts, before.Slots[i].PID)
		}
	}
}

// syncServer has one thread, which serves one connection after the other and is busy for a second with each,
// as a sync worker of gunicorn.
const syncServer = `
import os, socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.bind(sys.argv[1])
s.listen(64)
while True:
    c, _ = s.accept()
    if c.recv(100):
        time.sleep(1.2)
        c.sendall(b'done')
    c.close()
`

// Its queue stands, and moves: lb must not take it offline, or nobody would serve.
func TestAccept_SyncWorkerWithAStandingQueueStaysUp(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	script, address := writeFile(t, dir, "server.py", syncServer, 0o644), socketPath(dir, "w1")
	_, socket := splitAddress(address)
	waitAccepts(t, startProcess(t, "python3", exec.Command(program(t, "python3"), script, socket)), address)
	l := startLB(t, onePool(t, address))
	l.waitHealth(t, "up")
	const clients = 6
	done := make(chan error, clients)
	for range clients {
		go func() {
			answer, err := askText(l.addr(), "work\n", patience)
			if err == nil && answer != "done" {
				err = fmt.Errorf("got %q", answer)
			}
			done <- err
		}()
	}
	for left := clients; left > 0; {
		select {
		case err := <-done:
			if left--; err != nil {
				t.Errorf("a request: %v", err)
			}
		case <-time.After(100 * time.Millisecond):
			if got := l.status(t).backend(t, "w1").Health; got != "up" {
				t.Fatalf("health of a worker whose queue moves: got %q; want up", got)
			}
		}
	}
}

// askText sends text over a new connection and returns all that comes back.
func askText(address, text string, timeout time.Duration) (string, error) {
	network, addr := splitAddress(address)
	conn, err := net.DialTimeout(network, addr, timeout)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	if _, err := io.WriteString(conn, text); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return string(answer), err
}
