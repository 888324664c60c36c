package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin/api"
)

// holderVariable makes this test binary a process that listens on the socket it names until its input ends.
const holderVariable = "LB_ADMIN_TEST_HOLD"

func holdSocket() {
	s, err := selfServing(NewServer(Config{Socket: os.Getenv(holderVariable), SocketMode: "0600"}, Sources{}))
	if err != nil {
		os.Stdout.WriteString(err.Error() + "\n")
		os.Exit(1)
	}
	os.Stdout.WriteString("ready\n")
	os.Stdin.Read(make([]byte, 1))
	runtime.KeepAlive(s) // its finalizer would close the listener
	os.Exit(0)           // as a process that is killed: the file stays
}

// holder is another lb, as far as its control socket goes.
type holder struct {
	cmd   *exec.Cmd
	stdin interface{ Close() error }
}

func startHolder(t *testing.T, socket string) *holder {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), holderVariable+"="+socket, "GORACE=atexit_sleep_ms=0")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := &holder{cmd, stdin}
	t.Cleanup(h.end)
	if line, err := bufio.NewReader(stdout).ReadString('\n'); line != "ready\n" {
		t.Fatalf("other process: got %q, %v; want it ready", line, err)
	}
	return h
}

func (h *holder) end() {
	h.stdin.Close()
	h.cmd.Wait()
}

func open(t *testing.T, path, mode string) (*Server, error) {
	t.Helper()
	s, err := selfServing(NewServer(Config{Socket: path, SocketMode: mode}, Sources{}))
	if err == nil {
		t.Cleanup(func() { s.Close(context.Background()) })
	}
	return s, err
}

func TestSocket_OfADeadProcessIsReplaced(t *testing.T) {
	path := socketPath(t)
	startHolder(t, path).end()
	if _, err := os.Lstat(path); err != nil {
		t.Fatalf("file of the dead process: got %v; want it there", err)
	}
	s, err := open(t, path, "0660")
	if err != nil {
		t.Fatalf("NewServer: got %v; want the dead socket replaced", err)
	}
	serve(t, s)
	if _, err := api.NewClient(path).Status(t.Context()); err != nil {
		t.Errorf("Status: got %v; want an answer", err)
	}
}

func TestSocket_OfALiveProcessIsRefused(t *testing.T) {
	path := socketPath(t)
	startHolder(t, path)
	_, err := open(t, path, "0660")
	if !errors.Is(err, ErrSocketInUse) {
		t.Fatalf("NewServer: got %v; want ErrSocketInUse", err)
	}
	if !strings.Contains(err.Error(), path) {
		t.Errorf("error: got %q; want it to name %q", err, path)
	}
	if c, err := net.Dial("unix", path); err != nil {
		t.Errorf("connect to the live one: got %v; want it untouched", err)
	} else {
		c.Close()
	}
}

func TestSocket_FileThatIsNoSocketIsKept(t *testing.T) {
	path := socketPath(t)
	if err := os.WriteFile(path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, path, "0660"); !errors.Is(err, ErrNotSocket) {
		t.Errorf("NewServer: got %v; want ErrNotSocket", err)
	}
	if got, _ := os.ReadFile(path); string(got) != "precious" {
		t.Errorf("file: got %q; want it untouched", got)
	}
}

func TestSocket_HasItsModeWhateverTheUmask(t *testing.T) {
	for _, mode := range []string{"0600", "0660", "0777"} {
		path := socketPath(t)
		old := unix.Umask(0o077)
		_, err := open(t, path, mode)
		unix.Umask(old)
		if err != nil {
			t.Fatal(err)
		}
		info, err := os.Lstat(path)
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%04o", info.Mode().Perm()); got != mode {
			t.Errorf("mode under umask 077: got %s; want %s", got, mode)
		}
	}
}

func TestSocket_DirectoryIsMade(t *testing.T) {
	path := filepath.Join(filepath.Dir(socketPath(t)), "lb", "admin.sock")
	if _, err := open(t, path, "0660"); err != nil {
		t.Errorf("NewServer: got %v; want the directory made", err)
	}
}

func TestSocket_OfManyStartersOneWins(t *testing.T) {
	path := socketPath(t)
	startHolder(t, path).end() // a stale file, which each of them sees
	var wg sync.WaitGroup
	servers, errs := make([]*Server, 8), make([]error, 8)
	for i := range servers {
		wg.Go(func() { servers[i], errs[i] = open(t, path, "0660") })
	}
	wg.Wait()
	won := 0
	for i := range servers {
		switch {
		case errs[i] == nil:
			won++
		case !errors.Is(errs[i], ErrSocketInUse):
			t.Errorf("NewServer: got %v; want ErrSocketInUse", errs[i])
		}
	}
	if won != 1 {
		t.Errorf("servers on one socket: got %d; want 1", won)
	}
}

func TestSocket_IsRemovedAtClose(t *testing.T) {
	path := socketPath(t)
	s, err := open(t, path, "0660")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("file after Close: got %v; want none", err)
	}
}

func TestSocket_OfASuccessorSurvivesClose(t *testing.T) {
	path := socketPath(t)
	old, err := open(t, path, "0660")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := open(t, path, "0660"); err != nil {
		t.Fatal(err)
	}
	old.Close(context.Background())
	if _, err := os.Lstat(path); err != nil {
		t.Errorf("file of the successor: got %v; want it there", err)
	}
}

func TestSocket_LockThatIsHeldIsAnErrorAndNoHang(t *testing.T) {
	path := socketPath(t)
	unlock, err := lockSocket(path, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockSocket(path, 20*time.Millisecond); !errors.Is(err, ErrSocketLocked) {
		t.Errorf("second lock: got %v; want ErrSocketLocked", err)
	}
	unlock()
	unlock, err = lockSocket(path, 0)
	if err != nil {
		t.Fatalf("lock after unlock: got %v; want it", err)
	}
	unlock()
	if _, err := os.Lstat(path + lockSuffix); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("lock file afterwards: got %v; want none", err)
	}
}

// TestSocket_NobodyElseKeepsLbFromItsStart has another user lock whatever that user can open, and put
// whatever it can make at the place of the lock.
func TestSocket_NobodyElseKeepsLbFromItsStart(t *testing.T) {
	const uid = 65534
	if os.Getuid() != 0 {
		t.Skip("needs root, to be two users")
	}
	flock := func(t *testing.T, path string) {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return // it cannot be opened: so much the better
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB); err != nil {
			t.Errorf("flock of %s: got %v; want the attacker to have it", path, err)
		}
	}
	for name, attack := range map[string]func(t *testing.T, path string){
		"locks the directory": func(t *testing.T, path string) { flock(t, filepath.Dir(path)) },
		"locks a file of its own at the lock's path": func(t *testing.T, path string) {
			os.WriteFile(path+lockSuffix, nil, 0o666)
			flock(t, path+lockSuffix)
		},
		"makes a file that lb may not open":     func(t *testing.T, path string) { os.WriteFile(path+lockSuffix, nil, 0) },
		"makes a symbolic link to another file": func(t *testing.T, path string) { os.Symlink("/etc/passwd", path+lockSuffix) },
		"makes a symbolic link to nowhere":      func(t *testing.T, path string) { os.Symlink("/nowhere/at/all", path+lockSuffix) },
		"makes a FIFO":                          func(t *testing.T, path string) { unix.Mkfifo(path+lockSuffix, 0o666) },
		"makes a hard link": func(t *testing.T, path string) {
			os.WriteFile(path+".x", nil, 0o666)
			os.Link(path+".x", path+lockSuffix)
			flock(t, path+".x")
		},
	} {
		t.Run(name, func(t *testing.T) {
			path := socketPath(t)
			if err := os.Chmod(filepath.Dir(path), 0o777|os.ModeSticky); err != nil {
				t.Fatal(err)
			}
			asUser(t, uid, uid, func() { attack(t, path) })
			s, err := selfServing(NewServer(Config{Socket: path, SocketMode: "0660"}, Sources{}))
			if err != nil {
				t.Fatalf("NewServer: got %v; want it to start", err)
			}
			if err := s.Close(context.Background()); err != nil {
				t.Errorf("Close: got %v; want nil", err)
			}
		})
	}
	t.Run("opens the lock while it is held", func(t *testing.T) {
		path := socketPath(t)
		os.Chmod(filepath.Dir(path), 0o755)
		unlock, err := lockSocket(path, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unlock()
		asUser(t, uid, uid, func() {
			if fd, err := unix.Open(path+lockSuffix, unix.O_RDONLY, 0); err != unix.EACCES {
				t.Errorf("open by another user: got %d, %v; want EACCES", fd, err)
			}
		})
	})
}

func TestSocket_FileThatIsGoneIsMadeAnew(t *testing.T) {
	path := socketPath(t)
	s, err := open(t, path, "0600")
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	e := s.ends[0]
	for name, lose := range map[string]func(){
		"removed": func() { os.Remove(path) },
		"removed with its directory": func() {
			os.Remove(path)
			if err := os.Remove(filepath.Dir(path)); err != nil {
				t.Error(err)
			}
		},
		"replaced by a dead one": func() {
			os.Remove(path)
			startHolder(t, path).end()
		},
	} {
		before, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		lose()
		s.healSocket(e)
		if _, err := api.NewClient(path).Status(t.Context()); err != nil {
			t.Errorf("file %s: got %v; want an answer on a new one", name, err)
		}
		fmt.Fprintf(before, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		if line, err := bufio.NewReader(before).ReadString('\n'); err != nil || !strings.Contains(line, "200") {
			t.Errorf("connection of before the file was %s: got %q, %v; want it to go on", name, line, err)
		}
		before.Close()
		if info, err := os.Lstat(path); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("file %s: got %v, %v; want one of mode 0600", name, info, err)
		}
	}
}

func TestSocket_WhatIsAnothersIsNotTakenBack(t *testing.T) {
	for name, replace := range map[string]func(path string){
		"a socket that is served": func(path string) { startHolder(t, path) },
		"a file":                  func(path string) { os.WriteFile(path, []byte("precious"), 0o600) },
		"a symbolic link":         func(path string) { os.Symlink("/etc/passwd", path) },
		"a directory":             func(path string) { os.Mkdir(path, 0o700) },
	} {
		path := socketPath(t)
		s, err := selfServing(NewServer(Config{Socket: path, SocketMode: "0600"}, Sources{}))
		if err != nil {
			t.Fatal(err)
		}
		told := 0
		s.src.Report = func(_ slog.Level, key, _ string, _ ...any) {
			if key == "admin socket" {
				told++
			}
		}
		os.Remove(path)
		replace(path)
		before, _ := os.Lstat(path)
		s.healSocket(s.ends[0])
		s.Close(context.Background())
		if after, err := os.Lstat(path); err != nil || !os.SameFile(before, after) || told != 1 {
			t.Errorf("%s in the socket's place: got %v, %v, told %d times; want it untouched, and told once", name, after, err, told)
		}
	}
}
