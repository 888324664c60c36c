package supervisor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/eventually"
	"github.com/273ebdf9/lb/internal/sdnotify"
)

// A worker's user is a stranger: it may do to lb, and to the user that lb runs as, nothing but what lb asks
// of it. These tests are attacks by a second user; this host knows no name for it.
const strangerUID = 54321

// openForOthers makes a run-time directory and a copy of this binary where another user can get at them.
func openForOthers(t *testing.T) (dir *Dir, base, app string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to run workers as another user")
	}
	base, err := os.MkdirTemp("/tmp", "lb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(base) })
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(exe)
	if err != nil {
		t.Fatal(err)
	}
	app = filepath.Join(base, "app")
	syscall.ForkLock.RLock() // a child of another test must not have it open for writing when it is run
	err = errors.Join(os.Chmod(base, 0o755), os.WriteFile(app, text, 0o755))
	syscall.ForkLock.RUnlock()
	if err != nil {
		t.Fatal(err)
	}
	if dir, err = OpenDir(filepath.Join(base, "run")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dir.Close() })
	return dir, base, app
}

// strangerConfig runs workers as the stranger.
func strangerConfig(base, app string, words ...string) Config {
	cfg := workerConfig(words...)
	cfg.Command[0] = app
	cfg.Count, cfg.User, cfg.Dir = 1, strconv.Itoa(strangerUID), base
	cfg.StopTimeout, cfg.KillTimeout = 100*time.Millisecond, 100*time.Millisecond
	return cfg
}

// strangersCommand is this binary, to be run as the stranger, who attacks.
func strangersCommand(app string, args ...string) *exec.Cmd {
	cmd := exec.Command(app, append([]string{"attack"}, args...)...)
	cmd.Dir = filepath.Dir(app)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: strangerUID, Gid: strangerUID}}
	return cmd
}

// asStranger starts this binary as the stranger, to attack.
func asStranger(t *testing.T, app string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := strangersCommand(app, args...)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 1)); err != nil { // it has begun
		t.Fatal(err)
	}
	return cmd
}

// attack is what a process of the stranger does that is no worker.
func attack(what string, args []string) {
	switch what {
	case "swap": // what is at a name, for links to a victim, for ever
		folder, victim := args[0], args[1]
		fmt.Println("begun")
		for {
			time.Sleep(100 * time.Microsecond) // it must leave the others a processor
			for i := range 40 {
				path := fmt.Sprintf("%s/0.%d.sock", folder, i)
				for _, p := range []string{path, folder + "/notify"} {
					os.Remove(p)
					if i%2 == 0 {
						os.Symlink(victim, p)
					} else {
						os.Link(victim, p)
					}
				}
			}
		}
	case "trace": // a process, and never let it go
		pid, _ := strconv.Atoi(args[0])
		runtime.LockOSThread()
		_, _, err := unix.RawSyscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(pid), 0, 0, 0, 0)
		fmt.Println("traced:", err)
		select {}
	case "rest": // and say in a file, if one is named, that it does
		for _, path := range args {
			os.WriteFile(path, []byte(strconv.Itoa(os.Getpid())), 0o644)
		}
		select {}
	case "kill": // a process of root as lb kills what a worker has left, and say how often it is looked at
		pid, _ := strconv.Atoi(args[0])
		victim, err := readRelative(pid)
		looks := 0
		other := &session{pid: pid, start: victim.start, lookAfter: func() (relatives, error) {
			looks++
			return relatives{pid: victim}, err
		}}
		fmt.Print("begun\n")
		other.kill()
		fmt.Println("looks:", looks)
	case "headless": // end the first thread, and go on
		end := make(chan bool)
		for range 100 {
			go func() {
				runtime.LockOSThread() // never unlocked: each has a thread of its own
				if unix.Gettid() == unix.Getpid() {
					close(end)
					unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
				}
				select {}
			}()
		}
		if unix.Gettid() == unix.Getpid() {
			unix.Syscall(unix.SYS_EXIT, 0, 0, 0)
		}
		<-end
		select {}
	case "listen": // where a worker is to listen
		ln, err := net.Listen("tcp", args[0])
		fmt.Println("listens:", err)
		if err == nil {
			for {
				if c, err := ln.Accept(); err == nil {
					c.Close()
				}
			}
		}
	}
}

// attacks are what a worker does before it serves.
var attacks = map[string]func(){
	"typist": func() { // types into the terminal that lb was started from
		tty, err := os.OpenFile("/dev/tty", os.O_RDWR, 0)
		if err == nil {
			for _, c := range []byte("id\n") {
				unix.Syscall(unix.SYS_IOCTL, tty.Fd(), unix.TIOCSTI, uintptr(unsafe.Pointer(&c)))
			}
		}
		fmt.Println("terminal:", err)
	},
	"early": func() { // says that it is ready, and listens nowhere
		sdnotify.FromEnv().Send(sdnotify.Message{Ready: true})
		select {}
	},
	"join": func() { // lb's process group, so that the one it had is empty
		group, _ := unix.Getpgid(unix.Getppid())
		fmt.Println("join:", unix.Setpgid(0, group))
	},
	"terminal": func() { // calls a terminal its output
		master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
		if err == nil {
			unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
			n, _ := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN) // a wrong number cannot be opened
			var slave int
			if slave, err = unix.Open(fmt.Sprintf("/dev/pts/%d", n), unix.O_RDWR|unix.O_NOCTTY, 0); err == nil {
				err = unix.Dup2(slave, 1)
			}
			runtime.KeepAlive(master)
			held = append(held, master)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "terminal:", err)
			os.Exit(1)
		}
	},
	"multiply": func() { // leaves processes of every kind that do not hear SIGTERM
		script := `trap '' TERM INT HUP; while :; do sleep 1; done`
		for _, attr := range []*syscall.SysProcAttr{{}, {Setpgid: true}, {Setsid: true}} {
			cmd := exec.Command("/bin/sh", "-c", script)
			cmd.SysProcAttr = attr
			if err := cmd.Start(); err != nil {
				fmt.Println(err)
			}
		}
	},
}

// held keeps files open.
var held []*os.File

func TestWorker_SwappedNamesChangeNoOtherFile(t *testing.T) {
	t.Parallel()
	dir, base, app := openForOthers(t)
	victim := filepath.Join(base, "victim")
	if err := errors.Join(os.WriteFile(victim, nil, 0o666), os.Chmod(victim, 0o666)); err != nil {
		// hard links need that one may write
		t.Fatal(err)
	}
	// An older lb left the directory to the worker's user.
	folder := filepath.Join(dir.path, "app")
	if err := errors.Join(os.Chmod(dir.path, 0o711), os.Mkdir(folder, 0o700), os.Chown(folder, strangerUID, strangerUID)); err != nil {
		t.Fatal(err)
	}
	asStranger(t, app, "swap", folder, victim)
	s := start(t, dir, strangerConfig(base, app))
	s.until("ready", allUp)
	for range 5 { // each makes a socket
		if err := s.pool.Restart(t.Context(), DefaultRestartOptions()); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(victim)
	if err != nil || st.Mode().Perm() != 0o666 || st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("got %v, %v; want the victim untouched", st.Mode(), err)
	}
}

func TestListen_InASwappedDirectoryIsRefused(t *testing.T) {
	t.Parallel()
	dir, base, app := openForOthers(t)
	s := start(t, dir, strangerConfig(base, app))
	s.until("ready", allUp)
	// Who may write to the directory above swaps the whole of it.
	other := filepath.Join(base, "other")
	if err := errors.Join(os.MkdirAll(other+"/app", 0o755), os.Rename(dir.path, dir.path+".old"), os.Symlink(other, dir.path)); err != nil {
		t.Fatal(err)
	}
	e := &endpoint{fd: -1, path: filepath.Join(s.pool.folder(), "0.99.sock")}
	if err := s.pool.listenUnix(e, "0.99.sock", identity{set: true, uid: strangerUID, gid: strangerUID}); err == nil {
		t.Errorf("got a socket in another directory; want an error")
	}
	if st, err := os.Lstat(other + "/app/0.99.sock"); err == nil && st.Sys().(*syscall.Stat_t).Uid != 0 {
		t.Errorf("lb has given away a file in another directory")
	}
	if err := errors.Join(os.Remove(dir.path), os.Rename(dir.path+".old", dir.path)); err != nil {
		t.Fatal(err)
	}
}

func TestProbe_FollowsNoLinkOfAWorker(t *testing.T) {
	t.Parallel()
	dir, base, app := openForOthers(t)
	cfg := strangerConfig(base, app, "{socket}")
	cfg.Command = []string{"/bin/sh", "-c", "ln -s " + base + "/secret.sock $0; sleep 1000", "{socket}"}
	ln, err := net.Listen("unix", base+"/secret.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := start(t, dir, cfg)
	s.until("an address", func(st *Status) bool { return st.Slots[0].PID != 0 })
	link := strings.TrimPrefix(s.pool.Status().Slots[0].Backend.Address, "unix:")
	eventually.True(t, "the link is there", func() bool { _, err := os.Lstat(link); return err == nil })
	if c, err := s.pool.connectUnix(t.Context(), link, strangerUID); err == nil {
		c.Close()
		t.Error("got a connection to what the worker's link leads to; want an error")
	}
}

func TestWorker_HasNoTerminalAndCannotJoinLB(t *testing.T) {
	t.Parallel()
	f := func(word, want string) {
		t.Helper()
		s := start(t, open(t), workerConfig(word))
		s.until("ready", allUp)
		pid := s.pool.Status().Slots[0].PID
		if session, err := unix.Getsid(pid); err != nil || session != pid {
			t.Errorf("got session %d, %v; want %d, its own", session, err, pid)
		}
		s.untilSaid(want)
		s.stop()
	}
	f("join", "join: operation not permitted")
	// This process need not have a terminal itself; the front below does.
	master, slave := pty(t)
	defer master.Close()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "front", filepath.Join(t.TempDir(), "run"), "typist")
	cmd.Stdin, cmd.Env = slave, append(os.Environ(), "PRINT=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	slave.Close()
	said := ""
	for buf := make([]byte, 4096); !strings.Contains(said, "up\n") || strings.Count(said, "terminal:") < 2; {
		n, err := out.Read(buf)
		if said += string(buf[:n]); err != nil {
			break
		}
	}
	if strings.Count(said, "terminal: open /dev/tty: no such device or address") != 2 {
		t.Errorf("got %q; want that both workers have no terminal", said)
	}
	for _, line := range strings.Fields(said) {
		if pid, err := strconv.Atoi(line); err == nil {
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
}

// pty makes a terminal.
func pty(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip("no terminals here: ", err)
	}
	unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0)
	n, err := unix.IoctlGetUint32(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	return master, slave
}

// An lb without a terminal adopts workers of which one calls a terminal its output.
func TestOrphans_TheirTerminalDoesNotBecomeLBs(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "run")
	pids := front(t, path, "terminal")
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe, "front", path, "terminal")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
		for _, pid := range pids {
			unix.Kill(pid, unix.SIGKILL)
		}
	}()
	said := ""
	for buf := make([]byte, 4096); !strings.Contains(said, "up\n"); {
		n, err := out.Read(buf)
		if said += string(buf[:n]); err != nil {
			t.Fatal(said, err)
		}
	}
	if !strings.HasPrefix(said, strconv.Itoa(pids[0])+"\n") {
		t.Fatalf("got %q; want that the workers %v are adopted", said, pids)
	}
	stat := strings.Fields(readProc(t, cmd.Process.Pid, "stat"))
	if terminal := stat[6]; terminal != "0" {
		t.Errorf("got terminal %s; want none", terminal)
	}
}

func TestStop_EndsWhateverWorkersDo(t *testing.T) {
	t.Parallel()
	f := func(words []string, after func(s *stage, w WorkerStatus)) {
		t.Helper()
		cfg := workerConfig(words...)
		cfg.Count, cfg.KillTimeout = 1, 200*time.Millisecond
		s := start(t, open(t), cfg)
		s.until("ready", allUp)
		w := s.pool.Status().Slots[0].WorkerStatus
		if after != nil {
			after(s, w)
		}
		left := membersOf(t, w.PID)
		begun := time.Now()
		s.pool.Stop(background(t, 20*time.Second))
		if took := time.Since(begun); took > 9*time.Second {
			t.Errorf("%q: the stop took %v; want kill_timeout and a moment", words, took)
		}
		all, _ := everybody()
		for _, r := range left {
			if now, ok := all[r.pid]; ok && !now.ended && now.start == r.start {
				t.Errorf("%q: process %d is left", words, r.pid)
				unix.Kill(r.pid, unix.SIGKILL)
			}
		}
	}
	f([]string{"deaf"}, nil)
	f([]string{"deaf", "multiply"}, func(s *stage, w WorkerStatus) {
		if n := len(membersOf(t, w.PID)); n < 4 {
			t.Errorf("got %d processes; want the worker and three of its own", n)
		}
	})
	f([]string{"deaf"}, func(s *stage, w WorkerStatus) { unix.Kill(w.PID, unix.SIGSTOP) })
}

// What lb may not kill is a process of root that its worker has become.
func TestKill_ThatIsRefusedDoesNotSpin(t *testing.T) {
	t.Parallel()
	_, _, app := openForOthers(t)
	cmd := exec.Command("/bin/sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		cmd.Process.Kill()
		cmd.Wait()
	}()
	out, err := strangersCommand(app, "kill", strconv.Itoa(cmd.Process.Pid)).Output()
	_, text, _ := strings.Cut(string(out), "looks: ")
	looks, notOne := strconv.Atoi(strings.TrimSpace(text))
	// one a millisecond at most, and some at the end
	if most := int(killPatience/refusalPause) + 2*killRounds; err != nil || notOne != nil || looks < 2 || looks > most {
		t.Errorf("got %q, %v; want 2 to %d looks", out, err, most)
	}
}

// membersOf returns the processes of a worker.
func membersOf(t *testing.T, pid int) []relative {
	t.Helper()
	stat, err := readRelative(pid)
	if err != nil {
		t.Fatal(err)
	}
	list, _ := (&session{pid: pid, start: stat.start, look: everybody}).members()
	return list
}

func TestStop_EndsThoughAUsersOtherProcessTracesTheWorker(t *testing.T) {
	t.Parallel()
	dir, base, app := openForOthers(t)
	s := start(t, dir, strangerConfig(base, app))
	s.until("ready", allUp)
	w := s.pool.Status().Slots[0]
	tracer := asStranger(t, app, "trace", strconv.Itoa(w.PID))
	eventually.True(t, "the worker is traced", func() bool { return !strings.Contains(readProc(t, w.PID, "status"), "TracerPid:\t0\n") })
	begun := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	s.pool.Stop(ctx)
	if took := time.Since(begun); took > 9*time.Second {
		t.Errorf("the stop took %v", took)
	}
	tracer.Process.Kill() // now its exit status comes
	tracer.Wait()
	unix.Wait4(w.PID, nil, 0, nil)
}

func TestPort_OfAnotherUserIsNotTheWorkers(t *testing.T) {
	t.Parallel()
	dir, base, app := openForOthers(t)
	f := func(ready, listen string) {
		t.Helper()
		cfg := strangerConfig(base, app)
		cfg.User, cfg.Ready, cfg.Env = "54322", ready, map[string]string{"PORT": "{port}"}
		cfg.StartTimeout = time.Minute // it waits for the stranger
		cfg.Command = []string{"/bin/sh", "-c", "while [ ! -e " + base + "/go ]; do sleep .01; done; exec " + app + " worker early"}
		os.Remove(base + "/go")
		s := start(t, dir, cfg)
		s.until("an address", func(st *Status) bool { return st.Slots[0].PID != 0 })
		_, port, _ := net.SplitHostPort(s.pool.Status().Slots[0].Backend.Address)
		asStranger(t, app, "listen", listen+":"+port)
		if err := os.WriteFile(base+"/go", nil, 0o644); err != nil {
			t.Fatal(err)
		}
		s.until("it is found out", func(st *Status) bool { return st.Slots[0].State == "up" || st.Slots[0].Deaths > 0 })
		if got := s.pool.Status().Slots[0]; !strings.Contains(got.Last.Reason, "is taken by another process, of user 54321") {
			t.Errorf("%s: got %+v; want that the port is taken", listen, got)
		}
		s.stop()
	}
	f("connect", "127.0.0.1")
	f("connect", "[::]")
	f("notify", "0.0.0.0")
}

func TestWorker_OfAnUnknownUserHasNothingOfLBs(t *testing.T) {
	dir, base, app := openForOthers(t)
	t.Setenv("XDG_RUNTIME_DIR", "/run/user/0")
	s := start(t, dir, strangerConfig(base, app))
	s.until("ready", allUp)
	w := s.pool.Status().Slots[0]
	env := strings.Split(readProc(t, w.PID, "environ"), "\x00")
	if !slices.Contains(env, "HOME=/") {
		t.Error("its HOME is not /")
	}
	for _, kv := range env {
		if name, value, _ := strings.Cut(kv, "="); slices.Contains([]string{"USER", "LOGNAME", "XDG_RUNTIME_DIR", "MAIL"}, name) {
			t.Errorf("got %s=%s; want none", name, value)
		}
	}
	out, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", w.PID), unix.O_PATH, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if st, err := out.Stat(); err != nil || st.Sys().(*syscall.Stat_t).Uid != strangerUID {
		t.Errorf("its output is not its own: %v", err)
	}
}

// lb without root has capabilities of its service manager for its own sockets; they are not the workers'.
func TestWorker_InheritsNoCapabilities(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have capabilities")
	}
	done := make(chan string)
	go func() {
		runtime.LockOSThread() // never unlocked: its capabilities are its own
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var data [2]unix.CapUserData
		err := unix.Capget(&header, &data[0])
		data[0].Inheritable |= 1 << unix.CAP_NET_BIND_SERVICE
		err = errors.Join(err, unix.Capset(&header, &data[0]), unix.Prctl(unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, unix.CAP_NET_BIND_SERVICE, 0, 0))
		if err == nil {
			err = dropInherited()
		}
		if err != nil {
			done <- err.Error()
			return
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/status", unix.Gettid()))
		done <- string(status)
	}()
	status := <-done
	for _, set := range []string{"CapInh", "CapAmb"} {
		if !strings.Contains(status, set+":\t0000000000000000") {
			t.Errorf("got %s; want no %s", status, set)
		}
	}
}
