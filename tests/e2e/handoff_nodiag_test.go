//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// runWithoutDiag becomes another program for which the kernel opens no NETLINK_SOCK_DIAG socket, as in a
// container whose seccomp filter knows none. Children inherit that.
func runWithoutDiag(command []string) error {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
	)
	// struct seccomp_data of seccomp(2): nr at 0, args from 16. The low half of an argument comes first on a
	// machine of little endian.
	filter := []unix.SockFilter{
		{Code: load, K: 0},
		{Code: equal, Jf: 5, K: unix.SYS_SOCKET},
		{Code: load, K: 16},
		{Code: equal, Jf: 3, K: unix.AF_NETLINK},
		{Code: load, K: 16 + 2*8},
		{Code: equal, Jf: 1, K: unix.NETLINK_SOCK_DIAG},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPROTONOSUPPORT)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	return becomeFiltered(filter, command)
}

// Without sock_diag the kernel tells lb of no end. Workers with an SDK report the ends themselves: the counts
// are as exact, and so are the bytes of the access log.
func TestHandOff_WithoutSockDiagWorkersReportTheEnds(t *testing.T) {
	log := filepath.Join(tempDir(t), "access.log")
	config := handoffPool(t, "lb", "", fmt.Sprintf("command = [%q]\nready = \"notify\"\ncount = 4\n", sampleWorker(t)))
	config.Options = fmt.Sprintf("[log]\naccess = %q\naccess_format = \"json\"\n", log)
	if code, text := checkAs(t, roleNoDiag, config, "check"); code != 0 || !strings.Contains(text, "NETLINK_SOCK_DIAG") || !strings.Contains(text, "pools.app.handoff") {
		t.Errorf("lb check: got exit code %d and\n%s\nwant 0, and a warning of handoff and sock_diag", code, text)
	}
	l := startAs(t, roleNoDiag, config)
	l.waitUp(t, 4)
	conns := dialAll(t, l.addr(), 40)
	for _, conn := range conns {
		say(t, conn, "GET /client HTTP/1.1\r\nHost: lb\r\n\r\n")
		hear(t, conn, "HTTP/1.1 200 OK\r\n")
	}
	for name, n := range l.waitActive(t, 40).active() {
		if n != 10 {
			t.Errorf("sessions of %s: got %d; want 10", name, n)
		}
	}
	if !strings.Contains(l.tail(), "NETLINK_SOCK_DIAG") {
		t.Errorf("log of lb: got\n%s\nwant a word on sock_diag", l.tail())
	}
	for _, conn := range conns[:20] {
		conn.Close()
	}
	l.waitActive(t, 20)
	for _, conn := range conns[20:] {
		conn.Close()
	}
	l.waitActive(t, 0)
	eventually(t, patience, func() error {
		text, _ := os.ReadFile(log)
		if n := strings.Count(string(text), `"bytes_in":34,`); n != 40 {
			return fmt.Errorf("lines of the access log with the 34 bytes of a request: got %d of %d; want 40", n, strings.Count(string(text), "\n"))
		}
		return nil
	})
	l.upgrade(t, "")
	if who := fresh(t, l.addr()); !strings.HasPrefix(who, "hello from Go worker") {
		t.Errorf("answer after an upgrade: got %q", who)
	}
	l.waitActive(t, 0)
}

// A worker that does not report the ends serves as well; its connections count until it has taken them.
func TestHandOff_WithoutSockDiagAWorkerThatReportsNothingServes(t *testing.T) {
	l := startAs(t, roleNoDiag, handoffPool(t, "lb", "", takers(t, "lb", "")+"count = 2\n"))
	l.waitUp(t, 2)
	conns := dialAll(t, l.addr(), 20)
	askAll(t, conns)
	l.waitActive(t, 0)
	askAll(t, conns)
}

func TestHandOff_WithoutSockDiagNodeIsRefused(t *testing.T) {
	config := handoffPool(t, "node", "", takers(t, "node", "")+"count = 2\n")
	for _, command := range []string{"check", "run"} {
		code, text := checkAs(t, roleNoDiag, config, command)
		if want := map[string]int{"check": 0, "run": 1}[command]; code != want || !strings.Contains(text, "NETLINK_SOCK_DIAG") || !strings.Contains(text, `"off"`) {
			t.Errorf("lb %s: got exit code %d and\n%s\nwant %d, with the reason and what to write", command, code, text, want)
		}
	}
}
