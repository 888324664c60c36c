//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// named is an lb whose config and state mention as many files as they can, with a session that lasts.
type named struct {
	*lb
	dir     string
	session net.Conn
	backend net.Conn
	asked   int
}

// startNamed starts it; change may change the config further.
func startNamed(t testing.TB, change func(toml string) string) *named {
	t.Helper()
	dir := tempDir(t)
	for _, sub := range []string{"log", "state", "token", "run", "listen"} {
		if err := os.Mkdir(filepath.Join(dir, sub), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	writeFile(t, filepath.Join(dir, "token"), "token", "0123456789abcdef0123456789abcdef\n", 0o600)
	back := startManual(t, "unix:"+dir+"/back.sock")
	config := onePool(t, "unix:"+dir+"/back.sock")
	config.Listeners = append(config.Listeners, lbListener{Name: "local", Bind: []string{"unix:" + dir + "/listen/in.sock"}, Pool: "app"})
	config.Options = fmt.Sprintf("[log]\noutput = %q\naccess = %q\n\n", dir+"/log/lb.log", dir+"/log/access.log") +
		fmt.Sprintf("[pools.work.workers]\ncommand = [%q]\ncount = 1\nlog = %q\n\n[listeners.work]\nbind = [%q]\npool = \"work\"\n", sampleWorker(t), dir+"/log/work.log", freePort(t, "127.0.0.1"))
	config.StateFile = dir + "/state/state"
	l := startLBWith(t, config, func(toml string) string {
		toml = strings.Replace(toml, "http = \"\"", fmt.Sprintf("http = %q\ntoken_file = %q\nrun_dir = %q\nsocket_group = \"root\"",
			freePort(t, "127.0.0.1"), dir+"/token/token", dir+"/run/workers"), 1)
		if change != nil {
			toml = change(toml)
		}
		return toml
	})
	n := &named{lb: l, dir: dir}
	l.waitHealth(t, "up", "w1")
	mustRun(t, patience, lbBinary(t), "weight", "-s", l.socket, "app/w1", "50") // the state file
	n.session, n.backend = back.session(t, l.addr())
	n.answers(t)
	return n
}

// answers has the session carry bytes both ways.
func (n *named) answers(t testing.TB) {
	t.Helper()
	n.asked++
	ask, reply := fmt.Sprintf("ask %d", n.asked), fmt.Sprintf("reply %d", n.asked)
	say(t, n.session, ask)
	hear(t, n.backend, ask)
	say(t, n.backend, reply)
	hear(t, n.session, reply)
}

// hurts are what happens to a file or a directory that lb has open, or has the name of.
var hurts = []struct {
	name string
	do   func(path string) error
}{
	{"gone", os.RemoveAll},
	{"unreadable", func(path string) error { return os.Chmod(path, 0) }},
	{"readable for all", func(path string) error { return os.Chmod(path, 0o666) }},
	{"a directory", func(path string) error { os.RemoveAll(path); return os.Mkdir(path, 0o755) }},
	{"a FIFO", func(path string) error { os.RemoveAll(path); return syscall.Mkfifo(path, 0o600) }},
	{"a link to nowhere", func(path string) error { os.RemoveAll(path); return os.Symlink("/none/none", path) }},
	{"a link to itself", func(path string) error { os.RemoveAll(path); return os.Symlink(path, path) }},
	{"another's", func(path string) error { return os.Lchown(path, appUser, appUser) }},
	{"an empty file", func(path string) error { os.RemoveAll(path); return os.WriteFile(path, nil, 0o600) }},
}

// Whatever has become of the files that lb has a name for: the new code takes over, or the upgrade is refused
// as its dry run says, and every session goes on.
func TestUpgrade_NeedsNoNames(t *testing.T) {
	for _, at := range []string{
		"log/lb.log", "log/access.log", "log/work.log", "log", "state/state", "state", "token/token", "token", "run/workers/lock", "run/workers/work",
		"run/workers/work/notify", "run/workers", "run", "listen/in.sock", "listen", "back.sock",
	} {
		t.Run(strings.ReplaceAll(at, "/", "_"), func(t *testing.T) {
			t.Parallel()
			n := startNamed(t, nil)
			for _, h := range hurts {
				if err := h.do(filepath.Join(n.dir, at)); err != nil && !os.IsNotExist(err) {
					t.Fatalf("%s: %v", h.name, err)
				}
				n.upgradeAgrees(t, h.name)
			}
			n.session.Close()
			n.backend.Close()
		})
	}
	t.Run("config and control socket", func(t *testing.T) {
		n := startNamed(t, nil)
		for _, h := range hurts {
			if err := h.do(n.file); err != nil && !os.IsNotExist(err) {
				t.Fatalf("%s: %v", h.name, err)
			}
			n.upgradeAgrees(t, "config: "+h.name)
		}
		for _, h := range hurts {
			aside := n.socket + ".aside"
			if err := os.Rename(n.socket, aside); err != nil {
				t.Fatal(err)
			}
			if h.do(n.socket); !exists(n.socket) { // lb makes it anew
				os.Rename(aside, n.socket)
				continue
			}
			before := n.upgradesBy(t, aside)
			n.signal(t, syscall.SIGUSR2)
			eventually(t, patience, func() error {
				if now := n.upgradesBy(t, aside); now != before+1 {
					return fmt.Errorf("upgrades with the control socket %s: got %d; want %d", h.name, now, before+1)
				}
				return nil
			})
			n.answers(t)
			os.RemoveAll(n.socket)
			if err := os.Rename(aside, n.socket); err != nil {
				t.Fatal(err)
			}
		}
		n.session.Close()
		n.backend.Close()
	})
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// upgradesBy returns how many upgrades there were, as lb says by another name of the control socket.
func (n *named) upgradesBy(t testing.TB, socket string) int {
	t.Helper()
	r := run(t, patience, nil, lbBinary(t), "status", "--json", "-s", socket)
	var count int
	if i := strings.Index(r.stdout, `"upgrades":`); i >= 0 {
		fmt.Sscanf(strings.TrimSpace(r.stdout[i+len(`"upgrades":`):]), "%d", &count)
	} else {
		count = -1
	}
	return count
}

// upgradeAgrees does a dry run and an upgrade, which must come to the same, and lb lives.
func (n *named) upgradeAgrees(t testing.TB, what string, args ...string) {
	t.Helper()
	ask := func(more ...string) result {
		return run(t, 3*patience, nil, lbBinary(t), append(append([]string{"upgrade", "-s", n.socket}, args...), more...)...)
	}
	dry := ask("--dry-run")
	done := ask()
	if dry.code != done.code {
		t.Errorf("%s: the dry run says %d %s\nand the upgrade %d %s", what, dry.code, dry.stderr, done.code, done.stderr)
	}
	if !n.running() {
		t.Fatalf("%s: lb has ended\n%s", what, n.tail())
	}
	n.answers(t)
}

// The file system of every name is full.
func TestUpgrade_WithAFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to mount a small file system")
	}
	dir := tempDir(t)
	small := filepath.Join(dir, "small")
	if err := os.Mkdir(small, 0o755); err != nil {
		t.Fatal(err)
	}
	back := startManual(t, "unix:"+dir+"/back.sock")
	config := onePool(t, "unix:"+dir+"/back.sock")
	config.Options = fmt.Sprintf("[log]\noutput = %q\naccess = %q\n", small+"/lb.log", small+"/access.log")
	config.StateFile = small + "/state"
	file := writeFile(t, dir, "lb.toml", config.toml(dir+"/a.sock"), 0o644)
	script := fmt.Sprintf("mount -t tmpfs -o size=64k,nr_inodes=20 none %s && exec %s run -f %s", small, lbBinary(t), file)
	l := &lb{config: config, file: file, socket: dir + "/a.sock"}
	l.process = startProcess(t, "lb", exec.Command("unshare", "-m", "--propagation", "private", "/bin/sh", "-c", script))
	l.waitStarted(t)
	n := &named{lb: l, dir: dir}
	n.session, n.backend = back.session(t, l.addr())
	n.answers(t)
	full := exec.Command("nsenter", "-m", "-t", fmt.Sprint(l.pid()), "/bin/sh", "-c", "cat /dev/zero > "+small+"/fill; true")
	if out, err := full.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for range 3 {
		n.upgradeAgrees(t, "a full disk")
	}
	n.session.Close()
	n.backend.Close()
	l.signal(t, syscall.SIGTERM)
	if code := l.exitCode(t, patience); code != 0 {
		t.Errorf("exit code of lb: got %d; want 0", code)
	}
}

// An lb that is not root, after a logrotate that made its files root's.
func TestUpgrade_AfterRootMadeItsFiles(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start lb as another user")
	}
	top, err := os.MkdirTemp("", "lb-names")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	os.Chmod(top, 0o755)
	dir := filepath.Join(top, "lb")
	os.Mkdir(dir, 0o755)
	binary := filepath.Join(top, "bin")
	if out, err := exec.Command("cp", lbBinary(t), binary).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	os.Chmod(binary, 0o755)
	back := startManual(t, "unix:"+dir+"/back.sock")
	config := onePool(t, "unix:"+dir+"/back.sock")
	config.Options = fmt.Sprintf("[log]\noutput = %q\naccess = %q\n", dir+"/lb.log", dir+"/access.log")
	file := writeFile(t, dir, "lb.toml", config.toml(dir+"/a.sock"), 0o644)
	for _, path := range []string{dir, file, dir + "/back.sock"} {
		os.Lchown(path, appUser, appUser)
	}
	cmd := exec.Command(binary, "run", "-f", file)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: appUser, Gid: appUser}}
	l := &lb{config: config, file: file, socket: dir + "/a.sock"}
	l.process = startProcess(t, "lb", cmd)
	l.waitStarted(t)
	n := &named{lb: l, dir: dir}
	n.session, n.backend = back.session(t, l.addr())
	n.answers(t)
	for _, name := range []string{"lb.log", "access.log"} {
		os.Rename(filepath.Join(dir, name), filepath.Join(dir, name+".1"))
		writeFile(t, dir, name, "", 0o640) // root's
	}
	n.upgradeAgrees(t, "logs that are root's")
	n.upgradeAgrees(t, "logs that are root's, again")
	if u := n.upgrades(t); u != 2 {
		t.Errorf("upgrades: got %d; want 2", u)
	}
	n.session.Close()
	n.backend.Close()
	l.signal(t, syscall.SIGTERM)
	if code := l.exitCode(t, patience); code != 0 {
		t.Errorf("exit code of lb: got %d; want 0", code)
	}
}

// What is no lb for this machine is refused, in the dry run and in the upgrade, and what is one by another
// name is taken.
func TestUpgrade_TakesOnlyALoadBalancer(t *testing.T) {
	n := startNamed(t, nil)
	whole, err := os.ReadFile(lbBinary(t))
	if err != nil {
		t.Fatal(err)
	}
	foreign := append([]byte(nil), whole...)
	foreign[18], foreign[19] = 2, 0 // SPARC (elf(5), e_machine)
	at := func(name string, data []byte) string {
		path := filepath.Join(n.dir, name)
		if err := os.WriteFile(path, data, 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	link := filepath.Join(n.dir, "link")
	fifo := filepath.Join(n.dir, "fifo")
	if err := errors.Join(os.Symlink(lbBinary(t), link), syscall.Mkfifo(fifo, 0o755)); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		path string
		want string // "": it is taken
	}{
		{at("script", []byte("#!/bin/sh\nexec "+lbBinary(t)+" \"$@\"\n")), "it is a script"},
		{at("env-script", []byte("#!/usr/bin/env -S "+lbBinary(t)+"\n")), "it is a script"},
		{at("truncated", whole[:len(whole)/2]), "no whole program"},
		{at("header", whole[:100]), "no whole program"},
		{at("empty", nil), "it is empty"},
		{at("text", []byte("lb\n")), "no program for this machine"},
		{at("foreign", foreign), "it is for EM_SPARC"},
		{n.dir, "no regular file"},
		{fifo, "no regular file"},
		{filepath.Join(n.dir, "none"), "no such file"},
		{"/bin/true", "does not know how to take over"},
		{"/bin/false", "cannot take over"},
		{link, ""},
		{at("copy", whole), ""},
		{"", ""},
	} {
		before := n.upgrades(t)
		args := []string{}
		if tc.path != "" {
			args = append(args, "--binary", tc.path)
		}
		n.upgradeAgrees(t, tc.path, args...)
		r := run(t, patience, nil, lbBinary(t), append([]string{"upgrade", "-s", n.socket, "--dry-run"}, args...)...)
		want := before
		if tc.want == "" {
			want++
		}
		if got := n.upgrades(t); got != want || (r.code == 0) != (tc.want == "") || !strings.Contains(r.stderr, tc.want) {
			t.Errorf("%s: got %d upgrades, dry run %d %q; want %d, and %q", tc.path, got-before, r.code, r.stderr, want-before, tc.want)
		}
	}
	n.session.Close()
	n.backend.Close()
}

// Whoever asked for the upgrade may die at any moment: it is done or it is not, and lb lives.
func TestUpgrade_TheCallerIsKilled(t *testing.T) {
	n := startNamed(t, nil)
	for i := range 25 {
		cmd := exec.Command(lbBinary(t), "upgrade", "-s", n.socket)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// over the check, the freeze, the exec and the answer
		time.Sleep(time.Duration(i) * 2 * time.Millisecond)
		cmd.Process.Kill()
		cmd.Wait()
		n.answers(t)
	}
	eventually(t, patience, func() error { // one may be under way
		if r := run(t, patience, nil, lbBinary(t), "upgrade", "-s", n.socket); r.code != 0 {
			return fmt.Errorf("afterwards: got %d %s; want it done", r.code, r.stderr)
		}
		return nil
	})
	n.answers(t)
	n.session.Close()
	n.backend.Close()
}

// With descriptors or memory short an upgrade is done or refused. The address space is not limited below what
// lb has already: the Go runtime ends a program that may map nothing more, whatever the program does.
func TestUpgrade_WithLittleLeft(t *testing.T) {
	n := startNamed(t, nil)
	for _, limit := range []string{"--fsize=1024:", "--fsize=65536:", "--fsize=unlimited:", "--nofile=48:", "--nofile=96:", "--nofile=1024:",
		"--as=4000000000:", "--as=unlimited:", "--nproc=1:", "--stack=65536:", "--stack=8388608:", "--memlock=0:", "--core=0:"} {
		mustRun(t, patience, "prlimit", "--pid", fmt.Sprint(n.pid()), limit)
		if strings.HasPrefix(limit, "--as=") && limit != "--as=unlimited:" {
			// The program itself may not start with so little: it must be refused by the check, not end lb.
			r := run(t, 3*patience, nil, lbBinary(t), "upgrade", "-s", n.socket)
			t.Logf("%s: %d %s", limit, r.code, r.stderr)
			if !n.running() {
				t.Fatalf("%s: lb has ended\n%s", limit, n.tail())
			}
			n.answers(t)
			continue
		}
		n.upgradeAgrees(t, limit)
	}
	n.session.Close()
	n.backend.Close()
}
