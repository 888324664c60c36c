//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const containerConfig = `
[admin]
http = ""
[proxy]
stop_timeout = "10s"
[listeners.web]
bind = ["0.0.0.0:8080"]
pool = "app"
[pools.app.workers]
command = ["/srv/app"]
count = 2
ready = "notify"
drain_signal = "SIGUSR2"
`

// container is lb as the first process of namespaces of its own, in a root that holds nothing but its binary,
// its config and a worker.
type container struct {
	machine
	ended chan error
}

func startContainer(t *testing.T) *container {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("namespaces of its own need root")
	}
	stage, scratch := tempDir(t), tempDir(t)
	stageFile(t, stage, lbBinary(t), "usr/bin/lb", 0o755)
	os.MkdirAll(filepath.Join(stage, "etc/lb"), 0o755)
	os.MkdirAll(filepath.Join(stage, "srv"), 0o755)
	writeFile(t, stage, "etc/lb/lb.toml", containerConfig, 0o644)
	build := exec.Command("go", "build", "-o", filepath.Join(stage, "srv/app"), "../../examples/go")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("cannot build examples/go: %v: %s", err, out)
	}
	script, err := filepath.Abs("container.sh")
	if err != nil {
		t.Fatal(err)
	}
	var output bytes.Buffer
	cmd := exec.Command(script, stage, scratch)
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC,
		Setsid:     true,
	}
	dieWithParent(cmd)
	if err := cmd.Start(); err != nil {
		t.Skip("cannot make namespaces: ", err)
	}
	c := &container{machine: machine{t: t, pid: cmd.Process.Pid, root: fmt.Sprintf("/proc/%d/root", cmd.Process.Pid)}, ended: make(chan error, 1)}
	gone := make(chan struct{})
	go func() { c.ended <- cmd.Wait(); close(gone) }()
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-gone
		if t.Failed() {
			t.Logf("output of lb:\n%s", &output)
		}
	})
	eventually(t, 3*patience, func() error {
		if r := c.do("lb", "status"); r.code != 0 || !strings.Contains(r.stdout, "2 of 2") && strings.Count(r.stdout, " up ") < 2 {
			return fmt.Errorf("lb status: got exit code %d, %s%s; want two workers up", r.code, r.stdout, r.stderr)
		}
		return nil
	})
	return c
}

// children are the host's pids of the first process's children that run a program.
func (c *container) children(program string) (pids []int) {
	tasks, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", c.pid))
	for _, task := range tasks {
		text, _ := os.ReadFile(task)
		for field := range strings.FieldsSeq(string(text)) {
			if comm, _ := os.ReadFile("/proc/" + field + "/comm"); strings.TrimSpace(string(comm)) == program {
				pid, _ := strconv.Atoi(field)
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// lb as the first process of a container, as an unprivileged user, with nothing else in its root: it serves,
// reaps strangers, restarts workers, upgrades itself in place, and ends with its container when it is
// stopped.
func TestContainer_LBIsTheFirstProcess(t *testing.T) {
	c := startContainer(t)
	dial := func() (net.Conn, error) { return c.dial("127.0.0.1:8080") }
	kept, single := startKeepers(t, 4, "", dial), startKeepers(t, 2, "Connection: close\r\n", dial)
	kept.many(t, 100)
	single.many(t, 20)

	// What somebody leaves in the container, as with docker exec, becomes a child of the first process.
	orphan := exec.Command("nsenter", "-t", strconv.Itoa(c.pid), "-p", "sh", "-c", "sleep 600 & :")
	if err := orphan.Run(); err != nil {
		t.Fatalf("nsenter: %v", err)
	}
	eventually(t, patience, func() error {
		if got := len(c.children("sleep")); got != 1 {
			return fmt.Errorf("orphans of lb: got %d; want 1", got)
		}
		return nil
	})
	syscall.Kill(c.children("sleep")[0], syscall.SIGKILL)
	eventually(t, patience, func() error {
		if left := c.children("sleep"); len(left) > 0 {
			return fmt.Errorf("processes that have ended: got %v; want them reaped", left)
		}
		return nil
	})

	c.must("lb", "restart", "app")
	c.must("lb", "reload")
	c.must("lb", "upgrade")
	kept.many(t, 100)
	single.many(t, 20)
	kept.wantNoFailure(t)
	single.wantNoFailure(t)

	began := time.Now()
	syscall.Kill(c.pid, syscall.SIGTERM) // docker stop
	select {
	case err := <-c.ended:
		if err != nil {
			t.Errorf("lb after SIGTERM: got %v; want exit code 0", err)
		}
	case <-time.After(2 * patience):
		t.Fatal("lb after SIGTERM: got it running; want its end")
	}
	t.Logf("stopped within %v", time.Since(began).Round(time.Millisecond))
}

// The configs of the container examples are ones that lb check likes.
func TestContainer_ConfigsAreChecked(t *testing.T) {
	for _, name := range []string{"front", "workers"} {
		file := "../../examples/container/" + name + ".toml"
		if r := run(t, patience, nil, lbBinary(t), "check", "-f", file); r.code != 0 {
			t.Errorf("%s: got exit code %d from lb check; want 0\n%s%s", file, r.code, r.stdout, r.stderr)
		}
	}
}
