//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// buildLB builds another lb.
func buildLB(t testing.TB, dir, name string, env []string, args ...string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	cmd := exec.Command("go", append(append([]string{"build", "-o", path}, args...), "../../cmd/lb")...)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("cannot build %s: %v\n%s", name, err, out)
	}
	return path
}

// limit sets a soft limit of the process.
func (l *lb) limit(t testing.TB, what string) {
	t.Helper()
	mustRun(t, patience, program(t, "prlimit"), "--pid", fmt.Sprint(l.pid()), what)
}

// TestUpgrade_FaultsLeaveEverythingAsItWas has every step fail: the code before goes on with every session,
// and says why.
func TestUpgrade_FaultsLeaveEverythingAsItWas(t *testing.T) {
	dir := tempDir(t)
	faulty := buildLB(t, dir, "faulty", nil, "-tags", "lbfault")
	text := func(name, text string, mode os.FileMode) string { return writeFile(t, dir, name, text, mode) }
	// AArch64
	foreign := []byte("\x7fELF\x02\x01\x01" + strings.Repeat("\x00", 9) + "\x02\x00\xb7\x00\x01\x00\x00\x00" + strings.Repeat("\x00", 512))
	if strings.Contains(string(mustRun(t, patience, "uname", "-m").stdout), "aarch64") {
		foreign[18] = 62 // x86-64
	}
	for _, c := range []struct {
		name, fault, binary, want string
		spoil, restore            string // a limit
	}{
		{"missing", "", filepath.Join(dir, "none"), "no such file", "", ""},
		{"a directory", "", dir, "no regular file", "", ""},
		{"not executable", "", text("plain", "x", 0o644), "chmod +x", "", ""},
		{"empty", "", text("empty", "", 0o755), "empty", "", ""},
		{"another architecture", "", text("foreign", string(foreign), 0o755), "no program for this machine; build it for", "", ""},
		{"no lb", "", program(t, "true"), "no lb", "", ""},
		{"fails when asked", "check:error", faulty, "a fault that a test wants", "", ""},
		{"panics when asked", "check:panic", faulty, "a fault that a test wants", "", ""},
		{"ends when asked", "check:exit", faulty, "cannot take over", "", ""},
		{"hangs when asked", "check:hang", faulty, "does not say within", "", ""},
		{"reads another format", "format:other", faulty, "restart lb to change to it", "", ""},
		{"fails as it takes over", "takeover:error", faulty, "a fault that a test wants", "", ""},
		{"panics as it takes over", "takeover:panic", faulty, "a fault that a test wants", "", ""},
		{"hangs as it takes over", "takeover:hang", faulty, "had not taken over after", "", ""},
		{"state too large", "", "", "LimitFSIZE", "--fsize=100:", "--fsize=unlimited:"},
		{"too few descriptors", "", "", "prlimit --nofile", "--nofile=40:", "--nofile=20000:"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.fault != "" {
				t.Setenv("LB_FAULT", c.fault)
			}
			l := startLB(t, linesWorkers(t, 2, ""))
			workers := l.waitUp(t, 2).pids()
			conns := []net.Conn{dial(t, l.addr()), dial(t, l.addr())}
			answer := func() {
				t.Helper()
				for _, conn := range conns {
					if _, err := askOn(conn); err != nil {
						t.Errorf("session: %v", err)
					}
				}
				if _, err := askLine(l.addr(), patience); err != nil {
					t.Errorf("new connection: %v", err)
				}
			}
			answer()
			if c.spoil != "" {
				l.limit(t, c.spoil)
			}
			started := time.Now()
			status, u, err := l.askUpgrade(c.binary)
			if err != nil || status != http.StatusConflict || !strings.Contains(u.Error, c.want) {
				t.Errorf("upgrade: got %d, %q, %v; want a conflict that says %q", status, u.Error, err, c.want)
			}
			t.Logf("after %v: %.300s", time.Since(started).Round(time.Millisecond), u.Error)
			if c.restore != "" {
				l.limit(t, c.restore)
			}
			answer()
			if got := l.waitUp(t, 2).pids(); fmt.Sprint(got) != fmt.Sprint(workers) {
				t.Errorf("workers: got %v; want %v as before", got, workers)
			}
			if u := l.upgrade(t, ""); u.Sessions != len(conns) {
				t.Errorf("sessions of a good upgrade afterwards: got %d; want %d", u.Sessions, len(conns))
			}
			answer()
			for _, conn := range conns {
				conn.Close()
			}
		})
	}
}

// TestUpgrade_ThereAndBackFiveTimes goes to another version and back, by the command and by the signal.
func TestUpgrade_ThereAndBackFiveTimes(t *testing.T) {
	dir := tempDir(t)
	other := buildLB(t, dir, "other", nil, "-ldflags", "-X github.com/273ebdf9/lb/internal/build.version=the-other")
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	l := startLB(t, onePool(t, address))
	conn := dial(t, l.addr())
	load := startLoad(t, l.addr(), 2)
	own := mustRun(t, patience, lbBinary(t), "version").stdout
	for range 5 {
		if u := l.upgrade(t, other); u.To != "the-other" {
			t.Errorf("version: got %q; want the other's", u.To)
		}
		if _, err := askOn(conn); err != nil {
			t.Fatal(err)
		}
		if r := l.mustCommand(t, "upgrade", "--binary", lbBinary(t)); !strings.Contains(r.stdout, "the-other") {
			t.Errorf("lb upgrade: got %q; want the versions (own: %q)", r.stdout, own)
		}
		if _, err := askOn(conn); err != nil {
			t.Fatal(err)
		}
	}
	before := l.upgrades(t)
	l.signal(t, syscall.SIGUSR2)
	eventually(t, patience, func() error {
		if n := l.upgrades(t); n != before+1 {
			return fmt.Errorf("upgrades after SIGUSR2: got %d; want %d", n, before+1)
		}
		return nil
	})
	load.end()
	load.wantNoError(t)
	conn.Close()
}

// TestUpgrade_ServiceManagerHearsOfIt wants one reload told, and the process to stay.
func TestUpgrade_ServiceManagerHearsOfIt(t *testing.T) {
	n := startNotify(t)
	t.Setenv("WATCHDOG_USEC", "400000")
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	l := startLB(t, onePool(t, address))
	n.wait(t, "READY=1", 1)
	for i := range 3 {
		l.upgrade(t, "")
		n.wait(t, "RELOADING=1", i+1)
		n.wait(t, "MONOTONIC_USEC=", i+1)
		n.wait(t, "READY=1", i+2)
		n.wait(t, "WATCHDOG=1", n.count("WATCHDOG=1")+2)
	}
	if n.count("STOPPING=1") != 0 {
		t.Error("STOPPING=1: got it; want none")
	}
}
