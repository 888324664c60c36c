//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

func TestHandOff_TheOperatorsCommandsWork(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		log := filepath.Join(tempDir(t), "access.log")
		config := handoffPool(t, mode, "", takers(t, mode, "")+"count = 2\n")
		config.Options = fmt.Sprintf("[log]\naccess = %q\naccess_format = \"json\"\n", log)
		l := startLB(t, config)
		slots := l.waitUp(t, 2).Slots

		t.Run("status and conns name the mode", func(t *testing.T) {
			conn := dial(t, l.addr())
			if _, err := askOn(conn); err != nil {
				t.Fatal(err)
			}
			if text := l.mustCommand(t, "status").stdout; !strings.Contains(text, "handoff "+mode) {
				t.Errorf("lb status: got\n%s\nwant handoff %s", text, mode)
			}
			l.waitStates(t, map[string]int{"web handed off": 1})
			conn.Close()
			l.waitActive(t, 0)
		})
		t.Run("kill resets the connection", func(t *testing.T) {
			conn := dial(t, l.addr())
			if _, err := askOn(conn); err != nil {
				t.Fatal(err)
			}
			l.waitActive(t, 1)
			for _, s := range l.sessions(t) {
				r := l.command(t, "kill", s.ID)
				if os.Geteuid() != 0 {
					if r.code != 1 || !strings.Contains(r.stderr, "CAP_NET_ADMIN") {
						t.Errorf("lb kill: got %d, %s; want 1, and what it needs", r.code, r.stderr)
					}
					return
				}
				if r.code != 0 {
					t.Errorf("lb kill: got %d, %s; want 0", r.code, r.stderr)
				}
			}
			if n, err := conn.Read(make([]byte, 1)); err == nil {
				t.Errorf("read of a killed connection: got %d bytes; want an error or its end", n)
			}
			l.waitActive(t, 0)
		})
		t.Run("drain waits for the sessions", func(t *testing.T) {
			conns := dialAll(t, l.addr(), 4)
			askAll(t, conns)
			l.waitActive(t, 4)
			backend := "app/" + slots[0].Backend
			if r := l.command(t, "drain", backend, "--wait", "--timeout", "100ms"); r.code != 1 {
				t.Errorf("lb drain with 2 sessions: got exit code %d, %s; want 1", r.code, r.stdout)
			}
			if got := askAll(t, dialAll(t, l.addr(), 4)); got["w1"] != 4 {
				t.Errorf("connections while worker 0 drains: got %v; want all with w1", got)
			}
			for _, conn := range conns {
				conn.Close()
			}
			l.mustCommand(t, "drain", backend, "--wait")
			l.mustCommand(t, "ready", backend)
		})
		t.Run("scale", func(t *testing.T) {
			l.waitReleased(t)
			l.mustCommand(t, "scale", "app", "4")
			l.waitUp(t, 4)
			conns := dialAll(t, l.addr(), 40)
			for name, n := range askAll(t, conns) {
				if n != 10 {
					t.Errorf("connections of %s: got %d; want 10", name, n)
				}
			}
			for _, conn := range conns {
				conn.Close()
			}
			l.mustCommand(t, "scale", "app", "2")
			l.waitUp(t, 2)
		})
		t.Run("access log and metrics", func(t *testing.T) {
			l.waitReleased(t)
			before := l.counters(t)
			conn := dial(t, l.addr())
			if _, err := askOn(conn); err != nil {
				t.Fatal(err)
			}
			from := conn.LocalAddr().String()
			closeWrite(t, conn)
			io.Copy(io.Discard, conn)
			conn.Close()
			l.waitReleased(t)
			eventually(t, patience, func() error {
				for line := range strings.Lines(readFile(t, log)) {
					if strings.Contains(line, from) {
						for _, want := range []string{`"-H"`, `"bytes_in":6,`, `"bytes_out":9`} {
							if !strings.Contains(line, want) {
								t.Fatalf("line of the access log: got %s; want %s in it", line, want)
							}
						}
						return nil
					}
				}
				return fmt.Errorf("access log: got no line of %s; want one", from)
			})
			wantMonotone(t, before, l.counters(t))
		})
	})
}

// A connection above max_conns waits in lb, and is given to the worker that is free first.
func TestHandOff_MaxConnsAndTheQueueHold(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		l := startLB(t, handoffPool(t, mode, "max_conns = 2\nqueue_timeout = \"20s\"", takers(t, mode, "")+"count = 2\n"))
		l.waitUp(t, 2)
		first := dialAll(t, l.addr(), 4)
		askAll(t, first)
		later := dialAll(t, l.addr(), 3)
		l.waitStates(t, map[string]int{"web handed off": 4, "web queued": 3})
		for _, conn := range first[:3] {
			conn.Close()
		}
		askAll(t, later)
		l.waitStates(t, map[string]int{"web handed off": 4})
	})
}

// A worker that passes descriptors back, and floods, costs lb none and others nothing.
func TestHandOff_AWorkerThatPassesDescriptorsBackCostsItselfOnly(t *testing.T) {
	script := writeFile(t, tempDir(t), "hostile.py", `
import os, socket, array
channel = socket.socket(fileno=3)
some = array.array("i", [channel.fileno()] * 200)
while True:
    message, fds, flags, address = socket.recv_fds(channel, 256, 1)
    channel.send(b"\x01")
    conn = socket.socket(fileno=fds[0])
    conn.setblocking(True)
    if message[4] == 1:
        conn.sendall(b"w%s hello\n" % os.environ["LB_WORKER_ID"].encode())
    conn.close()
    if message[4] == 1 and os.environ["LB_WORKER_ID"] == "1":
        for i in range(50):
            channel.sendmsg([b"\x01" * 3], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, some)], socket.MSG_NOSIGNAL)
`, 0o644)
	l := startLB(t, handoffPool(t, "lb", "", fmt.Sprintf("command = [%q, %q]\ncount = 2\n", program(t, "python3"), script)))
	bad := l.waitUp(t, 2).Slots[1]
	fds := l.process.fds(t)
	askAll(t, dialAll(t, l.addr(), 2))
	l.waitHealth(t, "down", bad.Backend)
	for range 50 {
		if who, err := askLine(l.addr(), patience); err != nil || who != "w0" {
			t.Errorf("answer: got one of %q, %v; want one of w0", who, err)
		}
	}
	l.waitActive(t, 0)
	if now := l.process.fds(t); now > fds+20 {
		t.Errorf("descriptors of lb: got %d; want about %d as before", now, fds)
	}
}

// A worker is told the port that clients connect to, also where the kernel chose it.
func TestHandOff_AWorkerIsToldThePortThatTheKernelChose(t *testing.T) {
	out := filepath.Join(tempDir(t), "address")
	config := handoffPool(t, "lb", "", fmt.Sprintf("command = [\"sh\", \"-c\", \"echo $LB_HANDOFF_ADDRESS > %s; exec sleep 1000\"]\ncount = 1\nready = \"notify\"\n", out))
	config.Listeners[0].Bind = []string{"127.0.0.1:0"}
	dir := tempDir(t)
	l := &lb{config: config, socket: filepath.Join(dir, "admin.sock")}
	l.file = writeFile(t, dir, "lb.toml", config.toml(l.socket), 0o644)
	l.process = startProcess(t, "lb", exec.Command(lbBinary(t), "run", "-f", l.file))
	eventually(t, patience, func() error {
		text, _ := os.ReadFile(out)
		address := strings.TrimSpace(string(text))
		if address == "" || strings.HasSuffix(address, ":0") {
			return fmt.Errorf("LB_HANDOFF_ADDRESS: got %q; want one with a port", address)
		}
		return accepts(address)
	})
}
