//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// workersPool is a pool named app whose workers are as the lines of TOML say.
func workersPool(t testing.TB, health, workers string) lbConfig {
	t.Helper()
	return lbConfig{
		Listeners: []lbListener{{Name: "web", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "app"}},
		Pools:     []lbPool{{Name: "app", Health: health, Options: "[pools.app.workers]\n" + workers}},
	}
}

// heartbeats is a health that a worker with lb's SDK answers.
const heartbeats = "type = \"notify\"\ninterval = \"200ms\"\n"

var sample struct {
	once sync.Once
	path string
	err  error
}

// sampleWorker is the binary of examples/go.
func sampleWorker(t testing.TB) string {
	t.Helper()
	sample.once.Do(func() {
		dir, err := os.MkdirTemp("", "lb-e2e-sample-")
		if err == nil {
			sample.path = filepath.Join(dir, "sample")
			var out []byte
			if out, err = exec.Command("go", "build", "-o", sample.path, "../../examples/go").CombinedOutput(); err != nil {
				err = fmt.Errorf("%w: %s", err, out)
			}
		}
		sample.err = err
	})
	if sample.err != nil {
		t.Fatalf("cannot build examples/go: %v", sample.err)
	}
	return sample.path
}

// workersStatus is what `lb workers POOL --json` prints, as far as the tests look.
type workersStatus struct {
	Slots []struct {
		Slot     int
		State    string
		PID      int
		Backend  string
		Dir      string
		Restarts int
		LastExit *struct {
			Reason string
			Lines  []string
		} `json:"last_exit"`
	}
	Retired    []struct{ PID int }
	Restarting bool
}

func (l *lb) workers(t testing.TB) (s workersStatus) {
	t.Helper()
	r := mustRun(t, patience, lbBinary(t), "workers", "app", "--json", "-s", l.socket)
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		t.Fatalf("cannot read the output of lb workers --json: %v: %s", err, r.stdout)
	}
	return s
}

func (s workersStatus) pids() (pids []int) {
	for i := range s.Slots {
		pids = append(pids, s.Slots[i].PID)
	}
	return pids
}

// waitUp waits until n workers and no other are up, and nobody drains any more.
func (l *lb) waitUp(t testing.TB, n int) (s workersStatus) {
	t.Helper()
	eventually(t, patience, func() error {
		s = l.workers(t)
		up := 0
		for i := range s.Slots {
			if s.Slots[i].State == "up" {
				up++
			}
		}
		if up != n || len(s.Slots) != n || len(s.Retired) > 0 {
			return fmt.Errorf("workers: got %+v; want %d, all up", s, n)
		}
		return nil
	})
	return s
}

// command runs a command of lb's CLI.
func (l *lb) command(t testing.TB, args ...string) result {
	t.Helper()
	return run(t, 2*patience, nil, lbBinary(t), append(args, "-s", l.socket)...)
}

func (l *lb) mustCommand(t testing.TB, args ...string) result {
	t.Helper()
	return mustRun(t, 2*patience, lbBinary(t), append(args, "-s", l.socket)...)
}

// requests is HTTP load by clients that keep their connections, and reconnect as browsers do.
type requests struct {
	stop, failed atomic.Int64
	done         atomic.Int64
	all          sync.WaitGroup
}

func startRequests(t testing.TB, address string, clients int, keepAlive bool) *requests {
	r := new(requests)
	for range clients {
		r.all.Go(func() {
			c := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: !keepAlive}}
			defer c.CloseIdleConnections()
			for r.stop.Load() == 0 {
				if _, err := getBody(&c, address); err == nil {
					r.done.Add(1)
				} else if r.failed.Add(1) <= 3 {
					t.Errorf("request: %v", err)
				}
			}
		})
	}
	t.Cleanup(func() { r.end() })
	return r
}

// end ends the load, and returns how many requests there were and how many failed.
func (r *requests) end() (done, failed int64) {
	r.stop.Store(1)
	r.all.Wait()
	return r.done.Load(), r.failed.Load()
}

func (r *requests) wantNoFailure(t testing.TB) {
	t.Helper()
	done, failed := r.end()
	if failed != 0 || done < 100 {
		t.Errorf("requests: got %d that failed and %d answered; want none, and many", failed, done)
	}
	t.Logf("%d requests, %d failed", done, failed)
}

func getBody(c *http.Client, address string) (string, error) {
	resp, err := c.Get("http://" + address + "/")
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("status %d: %s", resp.StatusCode, text)
	}
	return string(text), err
}

// fresh asks over a connection of its own.
func fresh(t testing.TB, address string) string {
	t.Helper()
	text, err := getBody(&http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}, address)
	if err != nil {
		t.Fatalf("request: %v", err)
	}
	return text
}

// linesWorkers is a pool of n workers that are this binary in the role of a lines backend, each with its slot
// as name.
func linesWorkers(t testing.TB, n int, more string) lbConfig {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return workersPool(t, "", fmt.Sprintf("command = [%q, \"w{slot}\", \"unix:{socket}\"]\ncount = %d\nenv = { %s = %q }\n%s", self, n, roleVariable, roleLines, more))
}

func TestWorkers_KilledOneIsReplacedAndCostsOnlyItsOwnConnections(t *testing.T) {
	l := startLB(t, linesWorkers(t, 4, ""))
	before := l.waitUp(t, 4)
	d := startLoad(t, l.addr(), 8)
	d.waitMore(t, "w0", 20)
	var deaths []moment
	for slot := range 4 {
		from := time.Now()
		syscall.Kill(before.Slots[slot].PID, syscall.SIGKILL)
		for syscall.Kill(before.Slots[slot].PID, 0) == nil { // until lb has waited for it
			time.Sleep(time.Millisecond)
		}
		deaths = append(deaths, moment{from, time.Now()})
		eventually(t, patience, func() error {
			if w := l.workers(t).Slots[slot]; w.State != "up" || w.PID == before.Slots[slot].PID || w.Restarts != 1 || w.LastExit.Reason != "signal: killed" {
				return fmt.Errorf("worker %d: got %+v; want another process, up", slot, w)
			}
			return nil
		})
		d.waitMore(t, "w"+strconv.Itoa(slot), 20)
	}
	d.end()
	d.wantNoError(t, deaths...)
}

func TestWorkers_HungOneGoesOfflineAndIsReplaced(t *testing.T) {
	l := startLB(t, workersPool(t, heartbeats, fmt.Sprintf("command = [%q]\ncount = 4\nkill_after = \"3s\"\nkill_timeout = \"1s\"\n", sampleWorker(t))))
	before := l.waitUp(t, 4).Slots[2]
	hung := time.Now()
	syscall.Kill(before.PID, syscall.SIGSTOP)
	eventually(t, patience, func() error {
		if b := l.status(t).backend(t, before.Backend); b.Health != "down" {
			return fmt.Errorf("health of a stopped worker: got %q; want down", b.Health)
		}
		return nil
	})
	// By lb's own clock: the question itself takes time.
	for dec := json.NewDecoder(strings.NewReader(l.mustCommand(t, "events", "--json").stdout)); dec.More(); {
		var e struct {
			Time                time.Time
			Kind, Subject, Text string
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if e.Kind == "health" && e.Subject == "app/"+before.Backend && strings.HasPrefix(e.Text, "up → down") {
			t.Logf("offline %v after it was stopped", e.Time.Sub(hung))
			if took := e.Time.Sub(hung); took > time.Second {
				t.Errorf("offline: got it after %v; want it after 3 missed beats of 200 ms", took)
			}
		}
	}
	for range 20 {
		if text := fresh(t, l.addr()); strings.Contains(text, "worker 2 ") {
			t.Fatalf("while worker 2 hangs: got an answer of it, %q; want another's", text)
		}
	}
	eventually(t, patience, func() error {
		if w := l.workers(t).Slots[2]; w.State != "up" || w.PID == before.PID {
			return fmt.Errorf("worker 2: got %+v; want another process, up", w)
		}
		return nil
	})
	if exit := l.workers(t).Slots[2].LastExit; !strings.HasPrefix(exit.Reason, "signal: aborted") && !strings.HasPrefix(exit.Reason, "exit status 2; it was down for 3s") {
		t.Errorf("end of the one that hung: got %q with %q; want SIGABRT", exit.Reason, exit.Lines)
	} else if !strings.Contains(strings.Join(exit.Lines, "\n"), "goroutine") {
		t.Errorf("its last output: got %q; want the dump of its goroutines", exit.Lines)
	}
}

// The last one is not taken offline by a heartbeat alone.
func TestWorkers_LastOneWithoutAHeartbeatIsALastResort(t *testing.T) {
	// it serves, and beats for nobody
	command := fmt.Sprintf("command = [\"env\", \"-u\", \"NOTIFY_SOCKET\", %q]\n", sampleWorker(t))
	l := startLB(t, workersPool(t, heartbeats, command+"count = 2\nkill_after = \"0s\"\n"))
	eventually(t, patience, func() error {
		text := l.mustCommand(t, "status", "app").stdout
		if strings.Count(text, "down,last resort") != 2 {
			return fmt.Errorf("status: got\n%s\nwant both workers down, a last resort", text)
		}
		return nil
	})
	for range 10 {
		fresh(t, l.addr())
	}
	if events := l.mustCommand(t, "events").stdout; !strings.Contains(events, "last resort: every backend of app is down") {
		t.Errorf("events: got\n%s\nwant the last resort told", events)
	}
}

func TestWorkers_RollingRestartUnderLoad(t *testing.T) {
	good := fmt.Sprintf("command = [%q]\n", sampleWorker(t))
	more := "count = 8\nstart_timeout = \"2s\"\nstop_timeout = \"2s\"\n"
	config := workersPool(t, heartbeats, good+more)
	l := startLB(t, config)
	before := l.waitUp(t, 8).pids()
	wrk := startWrk(t, "http://"+l.addr()+"/", "-H", "Connection: close")
	keep := startRequests(t, l.addr(), 8, true)

	r := l.mustCommand(t, "restart", "app")
	if !strings.Contains(r.stdout, "app: 8 workers replaced") || strings.Count(r.stdout, "\n") != 17 {
		t.Errorf("lb restart: got\n%s\nwant a line for each step", r.stdout)
	}
	after := l.waitUp(t, 8).pids()
	for _, pid := range after {
		if slices.Contains(before, pid) {
			t.Errorf("pids: got %v after %v; want others", after, before)
		}
	}
	for _, bad := range []struct{ name, command, want string }{
		{"fails", `["sh", "-c", "echo no database >&2; exit 3"]`, "no database"},
		{"crashes after 500 ms", `["sh", "-c", "echo fine so far; exec timeout 0.5 socat UNIX-LISTEN:{socket},fork EXEC:cat"]`, "fine so far"},
		{"never becomes ready", `["sh", "-c", "echo loading; exec sleep 1000"]`, "not ready after 2s"},
	} {
		config.Pools[0].Options = "[pools.app.workers]\ncommand = " + bad.command + "\n" + more
		writeFile(t, filepath.Dir(l.file), "lb.toml", config.toml(l.socket), 0o644)
		r := l.command(t, "reload")
		if r.code != 1 || !strings.Contains(r.stderr, bad.want) {
			t.Errorf("reload with a command that %s: got %d and %q; want 1 and %q", bad.name, r.code, r.stderr, bad.want)
		}
		if got := l.waitUp(t, 8).pids(); !slices.Equal(got, after) {
			t.Errorf("pids after a command that %s: got %v; want %v as before", bad.name, got, after)
		}
	}
	// Back to what runs: nothing to restart.
	config.Pools[0].Options = "[pools.app.workers]\n" + good + more
	writeFile(t, filepath.Dir(l.file), "lb.toml", config.toml(l.socket), 0o644)
	l.mustCommand(t, "reload")
	if got := l.waitUp(t, 8).pids(); !slices.Equal(got, after) {
		t.Errorf("pids after the good command is back: got %v; want %v as before", got, after)
	}
	keep.wantNoFailure(t)
	stopWrk(t, wrk)
}

func TestWorkers_InterruptedRestartLeavesNothing(t *testing.T) {
	config := workersPool(t, "", fmt.Sprintf("command = [%q]\ncount = 2\n", sampleWorker(t)))
	l := startLB(t, config)
	before := l.waitUp(t, 2).pids()
	config.Pools[0].Options = "[pools.app.workers]\ncommand = [\"sleep\", \"1000\"]\ncount = 2\n"
	writeFile(t, filepath.Dir(l.file), "lb.toml", config.toml(l.socket), 0o644)
	p := startProcess(t, "lb reload", exec.Command(lbBinary(t), "reload", "-s", l.socket))
	eventually(t, patience, func() error {
		if !l.workers(t).Restarting {
			return errors.New("workers: got no restart under way; want one")
		}
		return nil
	})
	if r := l.command(t, "restart", "app"); r.code != 1 || !strings.Contains(r.stderr, "a restart of this pool is under way") {
		t.Errorf("second restart: got %d and %q; want it refused", r.code, r.stderr)
	}
	p.signal(t, syscall.SIGINT)
	if code := p.exitCode(t, patience); code != 1 {
		t.Errorf("exit code of an interrupted restart: got %d; want 1", code)
	}
	if got := l.waitUp(t, 2).pids(); !slices.Equal(got, before) {
		t.Errorf("pids: got %v; want %v as before", got, before)
	}
}

func TestWorkers_CrashLoopCostsNextToNothing(t *testing.T) {
	dir := tempDir(t)
	startLines(t, "w1", socketPath(dir, "w1"))
	config := onePool(t, socketPath(dir, "w1"))
	config.Listeners = append(config.Listeners, lbListener{Name: "bomb", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "bomb"})
	config.Pools = append(config.Pools, lbPool{Name: "bomb", Options: "[pools.bomb.workers]\ncommand = [\"false\"]\ncount = 8\n"})
	dir = tempDir(t)
	l := &lb{config: config, socket: filepath.Join(dir, "admin.sock")}
	l.file = writeFile(t, dir, "lb.toml", config.toml(l.socket), 0o644)
	l = l.restart(t) // nobody waits for the workers to be ready
	share := l.cpuShare(t, 30*time.Second)
	t.Logf("lb uses %.2f %% of a CPU over its first 30 seconds", 100*share)
	// 0.5 to 1 % on a quiet machine: each death costs a look at what lb's workers have started, not at every
	// process of the host. One that is busy makes all of it dearer, and deaths without pauses cost ten times
	// as much.
	if share >= 0.03 {
		t.Errorf("CPU of lb: got %.2f %%; want less than 3 %%", 100*share)
	}
	text := l.mustCommand(t, "workers", "bomb").stdout
	if strings.Count(text, "failed") != 8 || !strings.Contains(text, "exit status 1") {
		t.Errorf("lb workers: got\n%s\nwant 8 that failed, with their exit", text)
	}
	for range 20 {
		if who, err := askLine(l.addr(), patience); who != "w1" || err != nil {
			t.Errorf("the other pool: got %q, %v; want its answer", who, err)
		}
	}
}

// restart starts lb, again with the files of one that was killed, and waits until it answers.
func (l *lb) restart(t testing.TB) *lb {
	t.Helper()
	again := &lb{config: l.config, file: l.file, socket: l.socket}
	again.process = startProcess(t, "lb", exec.Command(lbBinary(t), "run", "-f", l.file))
	eventually(t, patience, func() error {
		_, err := again.readStatus(t)
		return err
	})
	t.Cleanup(func() { again.finish(t) })
	return again
}

func TestWorkers_KilledLBFindsThemAgain(t *testing.T) {
	l := startLB(t, linesWorkers(t, 4, ""))
	before := l.waitUp(t, 4).pids()
	d := startLoad(t, l.addr(), 4)
	for range 2 {
		d.waitMore(t, "w0", 20)
		death := time.Now()
		l.kill()
		l.ended = true
		l = l.restart(t)
		back := time.Now()
		if got := l.waitUp(t, 4).pids(); !slices.Equal(got, before) {
			t.Fatalf("pids of the workers: got %v; want %v as before", got, before)
		}
		for i := range 4 {
			d.waitMore(t, "w"+strconv.Itoa(i), 20)
		}
		d.mu.Lock()
		for _, e := range d.errors {
			if e.started.After(back) {
				t.Errorf("connection after the new start: got %v; want an answer", e.err)
			}
		}
		d.errors = nil
		d.mu.Unlock()
		t.Logf("lb was away for %v", back.Sub(death))
	}
	d.end()
	if got := workerProcesses(t, l.socket); got != 4 {
		t.Errorf("processes of workers: got %d; want 4", got)
	}
}

// workerProcesses counts the processes whose command names a worker's socket of that lb.
func workerProcesses(t testing.TB, adminSocket string) (n int) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if text, err := os.ReadFile(file); err == nil && strings.Contains(string(text), filepath.Join(filepath.Dir(adminSocket), "workers")) {
			n++
		}
	}
	return n
}

func TestWorkers_DeployBySymlink(t *testing.T) {
	dir := tempDir(t)
	script := readFile(t, "../../examples/shell/app.sh")
	for _, version := range []string{"v1", "v2"} {
		if err := os.Mkdir(filepath.Join(dir, version), 0o755); err != nil {
			t.Fatal(err)
		}
		writeFile(t, filepath.Join(dir, version), "app.sh", strings.Replace(script, "hello from", version+" from", 1), 0o755)
	}
	link := func(version string) {
		t.Helper()
		next := filepath.Join(dir, "next")
		if err := os.Symlink(version, next); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(next, filepath.Join(dir, "current")); err != nil {
			t.Fatal(err)
		}
	}
	link("v1")
	l := startLB(t, workersPool(t, "", fmt.Sprintf("command = [\"sh\", \"./app.sh\", \"{socket}\"]\ncount = 3\ndir = %q\n", filepath.Join(dir, "current"))))
	want := func(version string) workersStatus {
		t.Helper()
		s := l.waitUp(t, 3)
		for _, w := range s.Slots {
			if w.Dir != filepath.Join(dir, version) {
				t.Errorf("directory of worker %d: got %q; want that of %s", w.Slot, w.Dir, version)
			}
		}
		for range 6 {
			if text := fresh(t, l.addr()); !strings.HasPrefix(text, version+" ") {
				t.Errorf("answer: got %q; want one of %s", text, version)
			}
		}
		return s
	}
	want("v1")
	if r := l.command(t, "rollback", "app"); r.code != 1 || !strings.Contains(r.stderr, "nothing to roll back to") {
		t.Errorf("rollback at first: got %d, %q; want it refused", r.code, r.stderr)
	}
	link("v2")
	l.mustCommand(t, "restart", "app", "--surge", "all")
	pid := want("v2").Slots[1].PID
	syscall.Kill(pid, syscall.SIGKILL)
	eventually(t, patience, func() error {
		if w := l.workers(t).Slots[1]; w.PID == pid || w.State != "up" {
			return fmt.Errorf("worker 1: got %+v; want another process", w)
		}
		return nil
	})
	want("v2")
	l.mustCommand(t, "rollback", "app", "--surge", "all")
	want("v1")
}

func TestWorkers_CommandsAndSignals(t *testing.T) {
	logs := filepath.Join(tempDir(t), "app.log")
	more := fmt.Sprintf("log = %q\n", logs)
	l := startLB(t, workersPool(t, heartbeats, fmt.Sprintf("command = [\"sh\", \"-c\", \"echo worker {slot} starts; exec %s\"]\ncount = 2\nready = \"notify\"\n%s", sampleWorker(t), more)))
	l.waitUp(t, 2)
	l.mustCommand(t, "scale", "app", "+1")
	l.waitUp(t, 3)
	l.mustCommand(t, "scale", "app", "-2")
	l.waitUp(t, 1)
	l.signal(t, syscall.SIGTTIN)
	l.waitUp(t, 2)
	l.signal(t, syscall.SIGTTOU)
	l.waitUp(t, 1)
	l.mustCommand(t, "scale", "app", "2")

	// What the operator wants of a slot goes on to its next worker, and a manual stop stays.
	l.mustCommand(t, "weight", "app/1", "30")
	l.mustCommand(t, "restart", "app/1")
	if b := l.status(t).backend(t, l.waitUp(t, 2).Slots[1].Backend); b.Weight != 30 {
		t.Errorf("weight of the next worker: got %d; want 30", b.Weight)
	}
	l.mustCommand(t, "stop", "app/1")
	if w := l.workers(t).Slots[1]; w.State != "stopped" || w.PID != 0 {
		t.Errorf("worker after lb stop: got %+v; want none", w)
	}
	l.mustCommand(t, "start", "app/1")
	l.waitUp(t, 2)

	if text := l.mustCommand(t, "logs", "app/1").stdout; !strings.Contains(text, "worker 1 starts") || strings.Contains(text, "worker 0 starts") {
		t.Errorf("lb logs app/1: got\n%s\nwant what worker 1 wrote", text)
	}
	if err := os.Rename(logs, logs+".old"); err != nil {
		t.Fatal(err)
	}
	l.signal(t, syscall.SIGUSR1)
	eventually(t, patience, func() error {
		_, err := os.Stat(logs)
		return err
	})
	follow := startProcess(t, "lb logs -f", exec.Command(lbBinary(t), "logs", "-f", "app/0", "-s", l.socket))
	follow.stop = syscall.SIGINT
	l.mustCommand(t, "restart", "app/0")
	eventually(t, patience, func() error {
		if text := follow.tail(); strings.Count(text, "worker 0 starts") < 2 {
			return fmt.Errorf("lb logs -f: got %q; want the start of both processes", text)
		}
		return nil
	})
	if text := readFile(t, logs); strings.Count(text, "worker 0 starts") != 1 {
		t.Errorf("log file after USR1: got %q; want what was written since", text)
	}
	// The end of lb is that of its workers.
	pids := l.waitUp(t, 2).pids()
	l.signal(t, syscall.SIGTERM)
	if code, _ := l.waitExit(t, patience); code != 0 {
		t.Errorf("exit code: got %d; want 0", code)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil {
			t.Errorf("worker %d: got it alive; want it gone with lb", pid)
		}
	}
	if left, _ := filepath.Glob(filepath.Join(filepath.Dir(l.socket), "workers", "app*")); len(left) > 0 {
		t.Errorf("run-time directory: got %q left; want nothing of the pool", left)
	}
}

// The programs of examples/, as their own comments have lb start them.
func TestWorkers_Samples(t *testing.T) {
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name, health string
		command      []string
	}{
		{"Go", heartbeats, []string{sampleWorker(t)}},
		{"Node", "", []string{program(t, "node"), "examples/node/app.js", "{socket}"}},
		{"Python", "", []string{program(t, "python3"), "examples/python/app.py"}},
		{"shell", "", []string{"sh", "examples/shell/app.sh", "{socket}"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			command, _ := json.Marshal(c.command)
			l := startLB(t, workersPool(t, c.health, fmt.Sprintf("command = %s\ncount = 2\ndir = %q\n", command, root)))
			l.waitUp(t, 2)
			seen := map[string]bool{}
			for range 8 {
				text := fresh(t, l.addr())
				if !strings.HasPrefix(text, "hello from "+c.name+" worker ") {
					t.Fatalf("answer: got %q; want the sample's", text)
				}
				seen[strings.Fields(text)[4]] = true
			}
			if len(seen) != 2 {
				t.Errorf("workers that answered: got %v; want both", seen)
			}
		})
	}
}
