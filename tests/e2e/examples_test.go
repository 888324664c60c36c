//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// startExamples boots a machine with lb's unit, and the project's folder with its examples as /srv/lb.
func startExamples(t *testing.T) *machine {
	t.Helper()
	stage := tempDir(t)
	stageFile(t, stage, lbBinary(t), "usr/bin/lb", 0o755)
	stageFile(t, stage, sampleWorker(t), "srv/lb/bin/sample", 0o755)
	stageFile(t, stage, preloadLibrary(t), "usr/lib/lb/lbaccept.so", 0o644)
	stageFile(t, stage, "../../packaging/lb.sysusers", "usr/lib/sysusers.d/lb.conf", 0o644)
	stageFile(t, stage, "../../packaging/lb.service", "etc/lb-test/lb.service", 0o644)
	os.Mkdir(filepath.Join(stage, "etc/lb"), 0o755)
	os.MkdirAll(filepath.Join(stage, "etc/lb-test/lb.service.d"), 0o755)
	writeFile(t, stage, "etc/lb-test/lb.service.d/examples.conf", "[Service]\nWorkingDirectory=/srv/lb\n", 0o644)
	if err := os.CopyFS(filepath.Join(stage, "srv/lb/examples"), os.DirFS("../../examples")); err != nil {
		t.Fatal(err)
	}
	if modules, err := filepath.Glob(filepath.Join(npmCache(t), "express-*/node_modules")); err == nil && len(modules) > 0 {
		if err := os.CopyFS(filepath.Join(stage, "srv/lb/examples/node/node_modules"), os.DirFS(modules[0])); err != nil {
			t.Fatal(err)
		}
	}
	return boot(t, stage)
}

// dial connects to an address in the machine.
func (m *machine) dial(address string) (net.Conn, error) {
	within, err := unix.Open(fmt.Sprintf("/proc/%d/ns/net", m.pid), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(within)
	own, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer unix.Close(own)
	to, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return nil, err
	}
	runtime.LockOSThread() // a socket is of the namespace of the thread that makes it
	if err := unix.Setns(within, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return nil, err
	}
	conn, err := net.DialTCP("tcp", nil, to)
	if back := unix.Setns(own, unix.CLONE_NEWNET); back != nil {
		return nil, back // the thread is not given back, and ends with its goroutine
	}
	runtime.UnlockOSThread()
	if err != nil {
		return nil, err
	}
	return conn, nil
}

// workers asks for the workers of the pool app.
func (m *machine) workers() (s workersStatus) {
	m.t.Helper()
	if err := json.Unmarshal([]byte(m.must("lb", "workers", "app", "--json")), &s); err != nil {
		m.t.Fatalf("cannot read the output of lb workers --json: %v", err)
	}
	return s
}

// admin is where the examples have their control socket; the unit has its own.
var admin = regexp.MustCompile(`(?m)^socket = .*\n`)

// Each example serves, restarts under load without a failed request or a broken connection, and drains, as
// the packaged unit confines it.
func TestExamples_RestartWithoutAFailureUnderTheUnit(t *testing.T) {
	for _, name := range []string{"node", "gunicorn", "uvicorn", "puma", "nginx"} {
		program(t, name)
	}
	if fpm, err := filepath.Glob("/usr/sbin/php-fpm*"); err != nil || len(fpm) == 0 {
		t.Fatal("no php-fpm: tests/e2e/install.sh installs it")
	}
	m := startExamples(t)
	for _, example := range []struct {
		file  string
		front []string // a program in front of lb
	}{
		{file: "go/lb.toml"}, {file: "node/lb.toml"}, {file: "node/express.toml"}, {file: "python/gunicorn.toml"},
		{file: "python/uvicorn.toml"}, {file: "python/lb.toml"}, {file: "ruby/lb.toml"},
		{file: "php/lb.toml", front: []string{"sh", "-c", "nginx -c /srv/lb/examples/php/nginx.conf >/dev/null 2>&1"}},
	} {
		t.Run(example.file, func(t *testing.T) {
			m := &machine{t: t, pid: m.pid, root: m.root}
			if example.file == "node/express.toml" {
				fromNPM(t, "express-*/node_modules")
			}
			m.config(admin.ReplaceAllString(readFile(t, "../../examples/"+example.file), ""))
			m.must("systemctl", "start", "lb.service")
			t.Cleanup(func() {
				if t.Failed() {
					t.Logf("the log of lb:\n%s", readFile(t, m.root+"/run/lb.log"))
				}
				os.Truncate(m.root+"/run/lb.log", 0)
				m.must("systemctl", "stop", "lb.service")
				if left := m.pids(); left != "" {
					t.Errorf("processes after the stop: got %s; want none", left)
				}
			})
			if len(example.front) > 0 {
				m.must(example.front...)
			}
			eventually(t, 3*patience, func() error {
				if got := m.show("StatusText"); got != "0 sessions, 2 of 2 backends up" {
					return fmt.Errorf("status: got %q; want both workers up", got)
				}
				return nil
			})
			before := m.workers()
			dial := func() (net.Conn, error) { return m.dial("127.0.0.1:8080") }
			kept, single := startKeepers(t, 4, "", dial), startKeepers(t, 2, "Connection: close\r\n", dial)
			kept.many(t, 100)
			single.many(t, 20)
			m.must("lb", "restart", "app")
			began := time.Now()
			eventually(t, 2*patience, func() error {
				if now := m.workers(); len(now.Retired) > 0 {
					return fmt.Errorf("draining workers: got %v; want none", now.Retired)
				}
				return nil
			})
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("drain: took %v; want less than stop_timeout, 30s", took)
			}
			for _, pid := range m.workers().pids() {
				if slices.Contains(before.pids(), pid) {
					t.Errorf("worker %d: got it after the restart; want another", pid)
				}
			}
			kept.many(t, 100)
			single.many(t, 20)
			kept.wantNoFailure(t)
			single.wantNoFailure(t)
		})
	}
}
