package supervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/eventually"
	"github.com/273ebdf9/lb/internal/leaktest"
	"github.com/273ebdf9/lb/internal/sdnotify"
)

// workerConfig runs the test binary as worker.
func workerConfig(words ...string) Config {
	cfg := DefaultConfig()
	cfg.Command = append([]string{"/proc/self/exe", "worker"}, words...)
	if exe, err := os.Executable(); err == nil {
		cfg.Command[0] = exe
	}
	cfg.Count = 2
	cfg.KillTimeout = 2 * time.Second
	return cfg
}

// stage is a pool of real processes.
type stage struct {
	t    *testing.T
	pool *Pool
	dir  *Dir

	mu    sync.Mutex
	lines []Line
	beats int
}

// beatsSoFar returns how many heartbeats were heard.
func (s *stage) beatsSoFar() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.beats
}

func open(t *testing.T) *Dir {
	t.Helper()
	dir, err := OpenDir(filepath.Join(t.TempDir(), "run"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir
}

func start(t *testing.T, dir *Dir, cfg Config) *stage {
	t.Helper()
	return startWith(t, dir, cfg, 100*time.Millisecond)
}

// startWith starts a pool in which a successor has to live for trial.
func startWith(t *testing.T, dir *Dir, cfg Config, trial time.Duration) *stage {
	t.Helper()
	p, err := NewPool("app", cfg, dir)
	if err != nil {
		t.Fatal(err)
	}
	p.trial, p.every = trial, 100*time.Millisecond
	s := &stage{t: t, pool: p, dir: dir}
	p.Hooks.Output = func(lines []Line) uint64 {
		s.mu.Lock()
		s.lines = append(s.lines, lines...)
		s.mu.Unlock()
		return 0
	}
	p.Hooks.Beat = func(Backend) {
		s.mu.Lock()
		s.beats++
		s.mu.Unlock()
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			s.stop()
		}
		stopped = true
	})
	return s
}

// stop ends the pool, and looks for what it left in the run-time directory.
func (s *stage) stop() {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	s.pool.Stop(ctx)
	entries, _ := os.ReadDir(s.dir.path)
	for _, e := range entries {
		if e.Name() != "lock" {
			s.t.Errorf("left in the run-time directory: %s", e.Name())
		}
	}
}

// until waits for a status, without a clock of its own: each event wakes it.
func (s *stage) until(what string, ok func(*Status) bool) {
	s.t.Helper()
	err := s.pool.await(background(s.t, 30*time.Second), func() error { return nil }, func() (bool, error) {
		s.pool.publish()
		return ok(s.pool.Status()), nil
	}, nil)
	if err != nil {
		s.t.Fatalf("%s: %v; got %+v", what, err, s.pool.Status())
	}
}

func allUp(st *Status) bool {
	return !slices.ContainsFunc(st.Slots, func(s SlotStatus) bool { return s.State != "up" })
}

// get asks a worker.
func get(t *testing.T, b Backend, path string) string {
	t.Helper()
	network, address := "tcp", b.Address
	if p, ok := strings.CutPrefix(b.Address, "unix:"); ok {
		network, address = "unix", p
	}
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, network, address)
	}}}
	resp, err := client.Get("http://worker" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(body)
}

func TestWorker_ServesOnEachKindOfAddress(t *testing.T) {
	t.Parallel()
	f := func(change func(c *Config), wantPrefix string) {
		t.Helper()
		cfg := workerConfig()
		change(&cfg)
		s := start(t, open(t), cfg)
		s.until("ready", allUp)
		for _, slot := range s.pool.Status().Slots {
			if !strings.HasPrefix(slot.Backend.Address, wantPrefix) {
				t.Errorf("got address %q; want %s…", slot.Backend.Address, wantPrefix)
			}
			if got := get(t, slot.Backend, "/"); !strings.HasPrefix(got, strconv.Itoa(slot.PID)+" ") {
				t.Errorf("got %q; want an answer of pid %d", got, slot.PID)
			}
		}
	}
	f(func(*Config) {}, "unix:/")
	f(func(c *Config) { c.Command = append(c.Command, "{socket}") }, "unix:/")
	f(func(c *Config) { c.Env = map[string]string{"PORT": "{port}"} }, "127.0.0.1:")
	f(func(c *Config) { c.Ready = "notify"; c.Command = append(c.Command, "notify") }, "unix:/")
}

func TestWorker_GetsAnAbsolutePWD(t *testing.T) {
	t.Parallel()
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(filepath.Dir(here), "config")
	for dir, want := range map[string]string{"../config": config, ".": here, here: here, config + "/internal": config + "/internal"} {
		cfg := workerConfig()
		cfg.Count, cfg.Dir = 1, dir
		s := start(t, open(t), cfg)
		s.until("ready", allUp)
		env := strings.Split(get(t, s.pool.Status().Slots[0].Backend, "/env"), "\n")
		if !slices.Contains(env, "PWD="+want) {
			t.Errorf("PWD of a worker with dir = %q: got another; want %s", dir, want)
		}
	}
}

func TestWorker_GetsItsEnvironmentAndNothingElse(t *testing.T) {
	t.Setenv("NOTIFY_SOCKET", "/run/systemd/notify")
	t.Setenv("LISTEN_FDS", "7")
	leak, err := os.Open("/etc/hostname")
	if err != nil {
		t.Skip(err)
	}
	defer leak.Close()
	if _, err := unix.FcntlInt(leak.Fd(), unix.F_SETFD, 0); err != nil { // lb's own parent left one open
		t.Fatal(err)
	}
	cfg := workerConfig("slot={slot}")
	cfg.Watchdog = 3 * time.Second
	cfg.Umask, cfg.Nice, cfg.RlimitNofile = "027", 3, 512
	cfg.Env = map[string]string{"COLOR": "blue", "WHERE": "{slot}"}
	dir := open(t)
	s := start(t, dir, cfg)
	s.until("ready", allUp)
	w := s.pool.Status().Slots[1]
	env := strings.Split(get(t, w.Backend, "/env"), "\n")
	for _, want := range []string{
		"LB_WORKER_ID=1", "LB_WORKER_SOCKET=" + strings.TrimPrefix(w.Backend.Address, "unix:"), "NOTIFY_SOCKET=" + dir.path + "/app/notify",
		"WATCHDOG_USEC=3000000", fmt.Sprintf("WATCHDOG_PID=%d", w.PID), "LISTEN_FDS=1", "LISTEN_FDNAMES=app",
		fmt.Sprintf("LISTEN_PID=%d", w.PID), "COLOR=blue", "WHERE=1",
	} {
		if !slices.Contains(env, want) {
			t.Errorf("the environment lacks %s", want)
		}
	}
	status := readProc(t, w.PID, "status")
	if !strings.Contains(status, "Umask:\t0027") {
		t.Error("the umask is not 027")
	}
	if limits := readProc(t, w.PID, "limits"); !strings.Contains(strings.Join(strings.Fields(limits), " "), "Max open files 512 512") {
		t.Errorf("got limits %s; want 512 files", limits)
	}
	if nice, _ := unix.Getpriority(unix.PRIO_PROCESS, w.PID); nice != 20-3 {
		t.Errorf("got niceness %d; want 3", 20-nice)
	}
	if group, _ := unix.Getpgid(w.PID); group != w.PID {
		t.Errorf("got process group %d; want its own", group)
	}
	for _, fd := range openFDs(strconv.Itoa(w.PID)) {
		n, target, _ := strings.Cut(fd, " ")
		switch {
		case n == "0" && target == "/dev/null", (n == "1" || n == "2") && strings.HasPrefix(target, "pipe:"), n == "3" && strings.HasPrefix(target, "socket:"):
		case strings.HasPrefix(target, "anon_inode:"), strings.HasPrefix(target, "/sys/fs/cgroup/cpu"):
			// Go's own
		case strings.HasPrefix(target, "socket:"): // it serves
		default:
			t.Errorf("descriptor %s has leaked into the worker", fd)
		}
	}
}

func readProc(t *testing.T, pid int, name string) string {
	t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", pid, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

func TestWorker_OfAnotherUserReachesItsSocketsAlone(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	dir, base, app := openForOthers(t)
	cfg := workerConfig("notify", "{socket}")
	cfg.Command[0] = app
	cfg.Ready, cfg.User, cfg.Dir = "notify", "65534", base
	s := start(t, dir, cfg)
	s.until("ready", allUp)
	w := s.pool.Status().Slots[0]
	if got := get(t, w.Backend, "/"); !strings.HasPrefix(got, strconv.Itoa(w.PID)) {
		t.Errorf("got %q", got)
	}
	if status := strings.Join(strings.Fields(readProc(t, w.PID, "status")), " "); !strings.Contains(status, "Uid: 65534 65534 65534 65534") {
		t.Error("it runs as another user than 65534")
	}
	st, err := os.Stat(s.pool.folder())
	if err != nil || st.Mode().Perm() != 0o710 || st.Sys().(*syscall.Stat_t).Uid != 0 || st.Sys().(*syscall.Stat_t).Gid != 65534 {
		t.Errorf("got %v, %v; want 0710 of root and group 65534", st.Mode(), err)
	}
	s.stop()
}

func TestWorker_CrashIsSeenWithItsLastWords(t *testing.T) {
	t.Parallel()
	s := start(t, open(t), workerConfig("fail"))
	s.until("deaths", func(st *Status) bool { return st.Slots[0].Deaths >= 2 && st.Slots[1].Deaths >= 2 })
	last := s.pool.Status().Slots[0].Last
	if last.Reason != "exit status 3" || !slices.Equal(last.Lines, []string{"no configuration"}) {
		t.Errorf("got %+v; want exit status 3 and its line", last)
	}
}

func TestWorker_CommandThatIsNotThere(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	cfg.Command = []string{"./no-such-program"}
	s := start(t, open(t), cfg)
	s.until("deaths", func(st *Status) bool { return st.Slots[0].Deaths >= 1 })
	last := s.pool.Status().Slots[0].Last
	if last.Reason != "exit status 127" || len(last.Lines) != 1 || !strings.Contains(last.Lines[0], "no-such-program") {
		t.Errorf("got %+v; want 127 and the reason", last)
	}
}

func TestWorker_KilledOneLeavesNoGroup(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	cfg.Command = []string{"/bin/sh", "-c", "sleep 1000 & echo $!; wait"}
	cfg.Ready, cfg.Count = "notify", 1
	s := start(t, open(t), cfg)
	eventually.True(t, "the worker says its child's pid", func() bool { return len(s.texts()) > 0 })
	pid, _ := strconv.Atoi(s.texts()[0])
	s.stop()
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(time.Millisecond) {
		stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
		if err != nil || strings.Contains(string(stat), ") Z ") { // this container's pid 1 may take its time
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("its child %d still lives", pid)
		}
	}
}

func TestWorker_FloodOfOutputLosesNoLineAndStopsNobody(t *testing.T) {
	t.Parallel()
	s := start(t, open(t), workerConfig())
	s.until("ready", allUp)
	slots := s.pool.Status().Slots
	get(t, slots[0].Backend, "/flood")
	if got := get(t, slots[0].Backend, "/print?text=after"); !strings.HasPrefix(got, strconv.Itoa(slots[0].PID)) {
		t.Errorf("got %q", got)
	}
	s.untilSaid("after")
	c := s.pool.Counters()
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.Lines != 100_001 || c.Dropped != 0 || uint64(len(s.lines)) != c.Lines {
		t.Errorf("got %+v and %d lines; want each of 100001 passed on", c, len(s.lines))
	}
}

func TestWorker_LongLinesAreCut(t *testing.T) {
	t.Parallel()
	cfg := workerConfig()
	cfg.Count = 1
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	get(t, s.pool.Status().Slots[0].Backend, "/print?text="+strings.Repeat("y", 20_000))
	s.stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.lines) != 1 || len(s.lines[0].Text) != maxLine || !s.lines[0].Cut {
		t.Errorf("got %d lines; want one, cut", len(s.lines))
	}
}

func TestNotify_OthersChangeNothingAndAreCounted(t *testing.T) {
	t.Parallel()
	cfg := workerConfig("notify")
	cfg.Ready = "notify"
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	before := s.pool.Status()
	enemy := sdnotify.NewSender(s.pool.receiver.Path()) // of this process, which is no worker
	defer enemy.Close()
	for range 5000 {
		enemy.Send(sdnotify.Message{Stopping: true, Trigger: true, Watchdog: true})
	}
	if err := enemy.Barrier(background(t, 5*time.Second)); err != nil {
		t.Fatal(err)
	}
	s.until("still up", allUp)
	after := s.pool.Status()
	for i := range after.Slots {
		if after.Slots[i].PID != before.Slots[i].PID || after.Slots[i].Text != "serving" {
			t.Errorf("got %+v; want it as before", after.Slots[i])
		}
	}
	if c := s.pool.Counters().Notify; c.Unknown < 5000 || c.Received != c.Unknown+2 && c.Received != c.Unknown+3 {
		t.Errorf("got %+v; want 5000 unknown", c)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.beats != 2 {
		t.Errorf("got %d heartbeats; want 2, one a worker", s.beats)
	}
}

func TestNotify_StoppingBringsASuccessor(t *testing.T) {
	t.Parallel()
	s := start(t, open(t), workerConfig())
	s.until("ready", allUp)
	w := s.pool.Status().Slots[0]
	get(t, w.Backend, "/stopping")
	s.until("replaced", func(st *Status) bool { return allUp(st) && st.Slots[0].PID != w.PID && len(st.Retired) == 0 })
}

func TestRestart_MovesEveryWorkerToWhereTheLinkLeads(t *testing.T) {
	t.Parallel()
	base := t.TempDir()
	swap := func(v string) {
		t.Helper()
		os.Mkdir(filepath.Join(base, v), 0o755)
		if err := errors.Join(os.Symlink(v, filepath.Join(base, "new")), os.Rename(filepath.Join(base, "new"), filepath.Join(base, "current"))); err != nil {
			t.Fatal(err)
		}
	}
	swap("v1")
	cfg := workerConfig()
	cfg.Dir = filepath.Join(base, "current")
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	check := func(v string) {
		t.Helper()
		for _, slot := range s.pool.Status().Slots {
			if got := get(t, slot.Backend, "/"); !strings.HasSuffix(got, "/"+v) {
				t.Errorf("slot %d: got %q; want %s", slot.Slot, got, v)
			}
		}
	}
	crash := func() {
		t.Helper()
		pid := s.pool.Status().Slots[0].PID
		syscall.Kill(pid, syscall.SIGKILL)
		s.until("crashed", func(st *Status) bool { return allUp(st) && st.Slots[0].PID != pid })
	}
	check("v1")
	swap("v2")
	o := DefaultRestartOptions()
	if err := s.pool.Restart(background(t, 10*time.Second), o); err != nil {
		t.Fatal(err)
	}
	check("v2")
	crash()
	check("v2")
	o.Surge = 0
	if err := s.pool.Rollback(background(t, 10*time.Second), o); err != nil {
		t.Fatal(err)
	}
	check("v1")
	crash()
	check("v1")
}

func TestRestart_FailingCommandSaysWhy(t *testing.T) {
	t.Parallel()
	s := start(t, open(t), workerConfig())
	s.until("ready", allUp)
	before := s.pool.Status()
	if _, err := s.pool.Update(workerConfig("fail")); err != nil {
		t.Fatal(err)
	}
	err := s.pool.Restart(background(t, 10*time.Second), DefaultRestartOptions())
	if !errors.Is(err, ErrRestart) || !strings.Contains(err.Error(), "exit status 3") || !strings.Contains(err.Error(), "no configuration") {
		t.Errorf("got %v; want the exit status and the last line", err)
	}
	for i, slot := range s.pool.Status().Slots {
		if slot.PID != before.Slots[i].PID {
			t.Errorf("slot %d was replaced", i)
		}
	}
}

// playFront is an lb that runs the workers of a directory, says so, and waits to be killed.
func playFront(args []string) {
	dir, err := OpenDir(args[0])
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p, err := NewPool("app", workerConfig(args[1:]...), dir)
	if err == nil {
		if os.Getenv("PRINT") != "" {
			p.Hooks.Output = func(lines []Line) uint64 {
				for _, l := range lines {
					fmt.Println(l.Text)
				}
				return 0
			}
		}
		err = p.Start()
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	p.await(context.Background(), func() error { return nil }, func() (bool, error) {
		p.publish()
		return allUp(p.Status()), nil
	}, nil)
	for _, s := range p.Status().Slots {
		fmt.Println(s.PID)
	}
	fmt.Println("up")
	select {}
}

// front starts an lb in a directory and kills it when its workers are up. It gives their pids.
func front(t *testing.T, path string, words ...string) []int {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, append([]string{"front", path}, words...)...)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var pids []int
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if lines.Text() == "up" {
			break
		}
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			t.Fatal(lines.Text())
		}
		pids = append(pids, pid)
	}
	cmd.Process.Kill()
	cmd.Wait()
	if len(pids) == 0 {
		t.Fatal("no workers")
	}
	return pids
}

func TestOrphans_AreAdoptedWithTheirSockets(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "run")
	pids := front(t, path)
	dir, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	s := start(t, dir, workerConfig())
	s.until("adopted", allUp)
	for i, slot := range s.pool.Status().Slots {
		if slot.PID != pids[i] {
			t.Errorf("slot %d: got pid %d; want %d", i, slot.PID, pids[i])
		}
		get(t, slot.Backend, "/print?text=hello")
	}
	// A write to an output whose reader was killed must not have ended it; its lines come through again.
	eventually.True(t, "the output of both adopted workers is read", func() bool { return len(s.texts()) == 2 })
	// What becomes of one is seen, and its socket goes on where the kernel lets it.
	before := s.pool.Status().Slots[0].Backend
	syscall.Kill(pids[0], syscall.SIGKILL)
	s.until("replaced", func(st *Status) bool { return allUp(st) && st.Slots[0].PID != pids[0] })
	if after := s.pool.Status().Slots[0].Backend; os.Geteuid() == 0 && after != before {
		t.Errorf("got backend %v; want %v", after, before)
	}
	s.stop()
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err == nil && !strings.Contains(readProc(t, pid, "stat"), ") Z ") {
			t.Errorf("worker %d still lives", pid)
		}
	}
}

// The boot is unknown where /proc has no more than processes, and the next lb may see more of it, or less.
func TestOrphans_AreAdoptedWhereTheBootIsUnknown(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "run")
	pids := front(t, path)
	file := filepath.Join(path, "app.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	blind := strings.Replace(string(text), `"boot":"`+bootID()+`"`, `"boot":""`, 1)
	if err := os.WriteFile(file, []byte(blind), 0o600); err != nil || blind == string(text) {
		t.Fatal(err, blind)
	}
	dir, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	s := start(t, dir, workerConfig())
	s.until("adopted", allUp)
	for i, slot := range s.pool.Status().Slots {
		if slot.PID != pids[i] {
			t.Errorf("slot %d: got pid %d; want %d", i, slot.PID, pids[i])
		}
	}
	s.stop()
}

func TestOrphans_AreStoppedIfWanted(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "run")
	pids := front(t, path, "deaf")
	dir, err := OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	cfg := workerConfig()
	cfg.Orphans, cfg.KillTimeout = "stop", 100*time.Millisecond
	s := start(t, dir, cfg)
	s.until("replaced", func(st *Status) bool {
		return allUp(st) && !slices.Contains(pids, st.Slots[0].PID) && !slices.Contains(pids, st.Slots[1].PID)
	})
	if st := s.pool.Status(); st.Slots[0].Deaths != 0 || len(st.Retired) != 0 {
		t.Errorf("got %+v; want no deaths", st)
	}
}

func TestOpenDir_IsForOneAtATime(t *testing.T) {
	dir := open(t)
	if _, err := OpenDir(dir.Path()); !errors.Is(err, ErrDirInUse) {
		t.Errorf("got %v; want ErrDirInUse", err)
	}
	st, err := os.Stat(dir.Path())
	if err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("got mode %v, %v; want 0700", st.Mode(), err)
	}
}

func TestReap_TakesWhatNobodyWaitsFor(t *testing.T) {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		t.Skip(err)
	}
	defer unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	kept := exec.Command("true")
	if err := kept.Start(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Waitid(unix.P_PID, kept.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil); err != nil {
		t.Fatal(err)
	}
	go func() {
		Reap(ctx, func(pid int) bool { return pid == kept.Process.Pid })
		close(done)
	}()
	// it is waited for here, its child by nobody
	out, err := exec.Command("/bin/sh", "-c", "sleep 0 >/dev/null & echo $!").Output()
	if err != nil {
		t.Fatal(err)
	}
	pid := strings.TrimSpace(string(out))
	for deadline := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat("/proc/" + pid); err != nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is still a zombie")
		}
	}
	cancel()
	<-done
	if err := kept.Wait(); err != nil {
		t.Errorf("the exit status of a process that is watched: %v; want it left", err)
	}
}

// Whatever is done to it, a pool leaves no process, descriptor, goroutine or file; the sum is in TestMain and
// stop.
func TestPool_RandomCommandsLeaveNothing(t *testing.T) {
	seed := time.Now().UnixNano()
	t.Logf("seed %d", seed)
	random := rand.New(rand.NewSource(seed))
	cfg := workerConfig()
	cfg.StopTimeout, cfg.StartTimeout = 100*time.Millisecond, 2*time.Second
	s := start(t, open(t), cfg)
	s.until("ready", allUp)
	fds := len(openFDs("self"))
	n := 0
	for end := time.Now().Add(1500 * time.Millisecond); time.Now().Before(end); n++ {
		ctx, cancel := context.WithTimeout(context.Background(), time.Duration(random.Intn(300))*time.Millisecond)
		switch random.Intn(6) {
		case 0:
			s.pool.Scale(ctx, 1+random.Intn(4))
		case 1:
			o := DefaultRestartOptions()
			o.Surge = random.Intn(3)
			s.pool.Restart(ctx, o)
		case 2:
			s.pool.StopSlot(ctx, random.Intn(2))
		case 3:
			s.pool.StartSlot(ctx, random.Intn(2))
		default:
			if slots := s.pool.Status().Slots; len(slots) > 0 {
				if pid := slots[random.Intn(len(slots))].PID; pid > 1 {
					syscall.Kill(pid, []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGSTOP}[random.Intn(3)])
				}
			}
		}
		cancel()
	}
	t.Logf("%d commands", n)
	ctx := background(t, 20*time.Second)
	if err := s.pool.Scale(ctx, 2); err != nil {
		t.Logf("scale: %v", err)
	}
	for slot := range 2 {
		s.pool.StartSlot(ctx, slot)
	}
	s.until("up again", func(st *Status) bool {
		// A restart that was cut off may still be ending its new worker.
		return allUp(st) && len(st.Slots) == 2 && len(st.Retired) == 0 && st.Slots[0].Next == nil && st.Slots[1].Next == nil
	})
	sockets, err := filepath.Glob(s.pool.folder() + "/*.sock")
	if err != nil || len(sockets) != 2 {
		t.Errorf("got sockets %q; want two", sockets)
	}
	wantFDs(t, fds+1)
	if children := leaktest.Children(); len(children) != 2 {
		t.Errorf("got children %v; want the two workers", children)
	}
}

func TestAgain_AsksUntilItIsDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := func(n, refused, want int) {
			t.Helper()
			calls := 0
			again(n, func() error {
				if calls++; calls <= refused {
					return unix.EPERM
				}
				return nil
			})
			time.Sleep(time.Duration(n+1) * killPause)
			synctest.Wait()
			if calls != want {
				t.Errorf("up to %d calls of which %d are refused: got %d; want %d", n, refused, calls, want)
			}
		}
		f(10, 0, 1)
		f(10, 3, 4)
		f(2, 3, 2)
	})
}
