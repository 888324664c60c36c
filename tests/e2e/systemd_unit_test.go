//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// machine is a systemd with packaging/lb.service, apart from the host's.
type machine struct {
	t    *testing.T
	pid  int    // of its systemd, as the host sees it
	root string // its files, likewise
}

// The targets that a unit has by default, and the ones of the units under test.
var unitFiles = map[string]string{
	"sysinit.target":    "[Unit]\nDefaultDependencies=no\n", // an empty file would be a masked unit
	"basic.target":      "[Unit]\nRequires=sysinit.target\nAfter=sysinit.target sockets.target\n",
	"sockets.target":    "[Unit]\n",
	"multi-user.target": "[Unit]\n",
	"shutdown.target":   "[Unit]\nDefaultDependencies=no\n",
	// No journal; the rest only makes the test short.
	"lb.service.d/test.conf": "[Service]\nStandardOutput=append:/run/lb.log\nStandardError=inherit\nRestartSec=100ms\nTimeoutStopSec=1s\n",
}

const unitConfig = `
[admin]
state_file = "/var/lib/lb/state"
http = ""
[proxy]
stop_timeout = "3s"
[listeners.low]
bind = ["127.0.0.1:80", "unix:/run/lb/web.sock"]
pool = "app"
[listeners.web]
bind = ["127.0.0.1:8080"]
pool = "app"
[pools.app]
when_all_down = "queue"
[pools.app.workers]
command = ["/usr/bin/sample"]
count = 2
ready = "notify"
[pools.app.health]
type = "notify"
`

// startMachine boots it with lb installed as docs/systemd.md says, or skips the test where that is not
// possible.
func startMachine(t *testing.T) *machine {
	t.Helper()
	stage := tempDir(t)
	stageFile(t, stage, lbBinary(t), "usr/bin/lb", 0o755)
	stageFile(t, stage, sampleWorker(t), "usr/bin/sample", 0o755)
	stageFile(t, stage, "../../packaging/lb.sysusers", "usr/lib/sysusers.d/lb.conf", 0o644)
	stageFile(t, stage, "../../packaging/lb.service", "etc/lb-test/lb.service", 0o644)
	stageFile(t, stage, "../../packaging/lb.socket", "etc/lb-test/lb.socket", 0o644)
	os.Mkdir(filepath.Join(stage, "etc/lb"), 0o755)
	writeFile(t, stage, "etc/lb/lb.toml", unitConfig, 0o644)
	return boot(t, stage)
}

// stageFile copies a file into the stage of a machine.
func stageFile(t *testing.T, stage, from, to string, mode os.FileMode) {
	t.Helper()
	os.MkdirAll(filepath.Dir(filepath.Join(stage, to)), 0o755)
	writeFile(t, stage, to, readFile(t, from), mode)
}

// boot starts a machine with the files of stage, or skips the test where that is not possible.
func boot(t *testing.T, stage string) *machine {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("a systemd of its own needs root")
	}
	for _, program := range []string{"/lib/systemd/systemd", "/usr/bin/nsenter"} {
		if _, err := os.Stat(program); err != nil {
			t.Skip("no systemd to test with: ", err)
		}
	}
	scratch := tempDir(t)
	for name, text := range unitFiles {
		os.MkdirAll(filepath.Dir(filepath.Join(stage, "etc/lb-test", name)), 0o755)
		writeFile(t, stage, "etc/lb-test/"+name, text, 0o644)
	}

	group := newGroup(t)
	dir, err := os.Open(group)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	script, err := filepath.Abs("systemd.sh")
	if err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(script, stage, scratch)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Unshareflags: unix.CLONE_NEWCGROUP, // once it is in its group
		UseCgroupFD:  true, CgroupFD: int(dir.Fd()),
		Setsid: true,
	}
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Skip("cannot start a systemd of its own: ", err)
	}
	ended := make(chan struct{})
	go func() { cmd.Wait(); close(ended) }()
	t.Cleanup(func() {
		cmd.Process.Kill() // the first of its processes: the kernel ends the others
		<-ended
	})
	m := &machine{t: t, pid: cmd.Process.Pid, root: fmt.Sprintf("/proc/%d/root", cmd.Process.Pid)}
	for deadline := time.Now().Add(patience); ; time.Sleep(20 * time.Millisecond) {
		select {
		case <-ended:
			t.Skip("cannot start a systemd of its own: ", output.String())
		default:
		}
		if comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", m.pid)); string(comm) == "systemd\n" {
			if state := m.do("systemctl", "is-system-running"); state.stdout == "running\n" {
				return m
			}
		}
		if time.Now().After(deadline) {
			t.Skipf("a systemd of its own does not come up here: %s%s", output.String(), m.do("systemctl", "list-jobs").stdout)
		}
	}
}

// newGroup makes a cgroup of version 2, or skips the test. It goes, with those below it, at the end of the
// test.
func newGroup(t *testing.T) string {
	t.Helper()
	for _, parent := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/unified"} {
		var fs unix.Statfs_t
		if err := unix.Statfs(parent, &fs); err != nil || fs.Type != unix.CGROUP2_SUPER_MAGIC {
			continue
		}
		group := filepath.Join(parent, fmt.Sprintf("lb-e2e-%d", os.Getpid()))
		if err := os.Mkdir(group, 0o755); err != nil {
			t.Skip("cannot make a cgroup: ", err)
		}
		t.Cleanup(func() {
			eventually(t, patience, func() error { // its processes are still ending
				var remove func(string) error
				remove = func(dir string) error {
					entries, _ := os.ReadDir(dir)
					for _, e := range entries {
						if e.IsDir() {
							remove(filepath.Join(dir, e.Name()))
						}
					}
					return os.Remove(dir)
				}
				return remove(group)
			})
		})
		return group
	}
	t.Skip("no cgroups of version 2")
	return ""
}

// do runs a program in the machine.
func (m *machine) do(args ...string) result {
	m.t.Helper()
	return run(m.t, 2*patience, nil, "/usr/bin/nsenter", append([]string{"-t", strconv.Itoa(m.pid), "-m", "-p", "-u", "-i", "-n", "-C", "-r", "-w", "--"}, args...)...)
}

// must is do for what has to succeed; it gives what was printed.
func (m *machine) must(args ...string) string {
	m.t.Helper()
	r := m.do(args...)
	if r.code != 0 {
		text, _ := os.ReadFile(m.root + "/run/lb.log")
		m.t.Fatalf("%q: got exit code %d; want 0\n%s%s\n%s\nthe log of lb:\n%s", args, r.code, r.stdout, r.stderr,
			m.do("systemctl", "status", "--no-pager", "lb.service").stdout, text)
	}
	return strings.TrimSpace(r.stdout)
}

func (m *machine) show(property string) string {
	m.t.Helper()
	return m.must("systemctl", "show", "-P", property, "lb.service")
}

// until waits until the service's properties have the values: name, value, name, value.
func (m *machine) until(want ...string) {
	m.t.Helper()
	eventually(m.t, patience, func() error {
		for i := 0; i < len(want); i += 2 {
			if got := m.show(want[i]); got != want[i+1] {
				return fmt.Errorf("%s: got %q; want %q", want[i], got, want[i+1])
			}
		}
		return nil
	})
}

// pids are the service's processes but the main one, as the machine numbers them.
func (m *machine) pids() string {
	m.t.Helper()
	// the host's numbers
	text, _ := os.ReadFile(m.root + "/sys/fs/cgroup/system.slice/lb.service/cgroup.procs")
	main := m.show("MainPID")
	var pids []string
	for pid := range strings.FieldsSeq(string(text)) {
		status, _ := os.ReadFile("/proc/" + pid + "/status")
		_, own, _ := strings.Cut(string(status), "NSpid:")
		own, _, _ = strings.Cut(own, "\n")
		if fields := strings.Fields(own); len(fields) > 0 && fields[len(fields)-1] != main {
			pids = append(pids, fields[len(fields)-1])
		}
	}
	slices.Sort(pids)
	return strings.Join(pids, " ")
}

func (m *machine) config(text string) {
	m.t.Helper()
	writeFile(m.t, m.root+"/etc/lb", "lb.toml", text, 0o644)
}

// crash kills lb. crash ends lb by a signal: KILL as the kernel does that has no memory, ABRT as Go's runtime
// does after a panic, with exit status 2.
func (m *machine) crash(signal string) {
	m.t.Helper()
	m.must("kill", "-s", signal, m.show("MainPID"))
}

// held is a client that stays.
type held struct {
	t    *testing.T
	conn net.Conn
	r    *bufio.Reader
}

func (m *machine) hold() *held {
	m.t.Helper()
	conn, err := net.Dial("unix", m.root+"/run/lb/web.sock")
	if err != nil {
		m.t.Fatal(err)
	}
	m.t.Cleanup(func() { conn.Close() })
	h := &held{t: m.t, conn: conn, r: bufio.NewReader(conn)}
	h.ask()
	return h
}

func (h *held) ask() {
	h.t.Helper()
	h.conn.SetDeadline(time.Now().Add(patience))
	fmt.Fprintf(h.conn, "GET / HTTP/1.1\r\nHost: lb\r\n\r\n")
	response, err := http.ReadResponse(h.r, nil)
	if err != nil {
		h.t.Fatal("a session that shall go on: ", err)
	}
	var body bytes.Buffer
	body.ReadFrom(response.Body)
	if !strings.HasPrefix(body.String(), "hello from Go worker") {
		h.t.Fatalf("response: got %q; want a greeting", &body)
	}
}

// The unit as it is packaged, under a real systemd: what only systemd can say of it.
func TestSystemd_RunsTheUnit(t *testing.T) {
	m := startMachine(t)
	m.must("systemctl", "start", "lb.service")
	m.until("StatusText", "0 sessions, 2 of 2 backends up", "ActiveState", "active")
	if user := m.must("stat", "-c", "%U:%G", "/proc/"+m.show("MainPID")); user != "lb:lb" {
		t.Errorf("lb runs as %s; want lb:lb", user)
	}
	main, workers := m.show("MainPID"), m.pids()
	if len(strings.Fields(workers)) != 2 {
		t.Fatalf("workers: got %q; want two", workers)
	}
	same := func(when string) {
		t.Helper()
		if got := m.pids(); got != workers {
			t.Errorf("workers after %s: got %s; want the same, %s", when, got, workers)
		}
	}

	// A reload tells systemctl what came of it.
	m.config(unitConfig + "nonsense = 1\n")
	if r := m.do("systemctl", "reload", "lb.service"); r.code == 0 || m.show("ActiveState") != "active" {
		t.Errorf("reload of a bad config: got exit code %d, %s; want a failure, and active", r.code, m.show("ActiveState"))
	}
	m.config(unitConfig)
	m.must("systemctl", "reload", "lb.service")
	same("reloads")

	// An upgrade is nothing that systemd would have to do with.
	client := m.hold()
	m.must("lb", "upgrade")
	client.ask()
	m.must("systemctl", "kill", "--kill-who=main", "--signal=USR2", "lb.service")
	eventually(t, patience, func() error {
		if text := readFile(t, m.root+"/run/lb.log"); strings.Count(text, "msg=upgraded ") < 2 {
			return fmt.Errorf("the log of lb has no second upgrade:\n%s", text)
		}
		return nil
	})
	client.ask()
	m.until("ActiveState", "active", "MainPID", main, "NRestarts", "0")
	same("upgrades")

	// After a crash the next lb has the workers; also when systemd had given up on it, and somebody starts it
	// later.
	m.crash("KILL")
	m.until("NRestarts", "1", "ActiveState", "active", "StatusText", "0 sessions, 2 of 2 backends up")
	same("a crash")
	m.config(unitConfig + "nonsense = 1\n")
	m.crash("ABRT")
	m.until("ActiveState", "failed")
	m.config(unitConfig)
	m.must("systemctl", "reset-failed", "lb.service")
	m.must("systemctl", "start", "lb.service")
	m.until("StatusText", "0 sessions, 2 of 2 backends up")
	same("systemd gave up")

	// A stop takes what the config says, not what TimeoutStopSec= says, and leaves nobody.
	client = m.hold()
	start := time.Now()
	m.must("systemctl", "stop", "lb.service")
	if took := time.Since(start); took < 2900*time.Millisecond || m.show("Result") != "success" {
		t.Errorf("stop with a session: got %s after %v; want success after 3s", m.show("Result"), took)
	}
	if left := m.pids(); left != "" {
		t.Errorf("after the stop: got processes %s; want none", left)
	}

	// The first client starts it, and waits for the first worker; it waits for a restart as well.
	m.must("systemctl", "start", "lb.socket")
	for _, when := range []string{"the start", "a restart"} {
		if got := m.must("curl", "-sS", "-m", "15", "http://127.0.0.1:8080/"); !strings.HasPrefix(got, "hello") {
			t.Errorf("a client that waited for %s: got %q; want a greeting", when, got)
		}
		m.must("systemctl", "restart", "--no-block", "lb.service")
	}
}
