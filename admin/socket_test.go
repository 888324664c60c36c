package admin

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
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
	s, err := NewServer(Config{Socket: os.Getenv(holderVariable), SocketMode: "0600"}, Sources{})
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
	s, err := NewServer(Config{Socket: path, SocketMode: mode}, Sources{})
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

func TestSocket_LockedDirectoryIsAnErrorAndNoHang(t *testing.T) {
	dir := filepath.Dir(socketPath(t))
	unlock, err := lockDir(dir, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := lockDir(dir, 20*time.Millisecond); !errors.Is(err, ErrSocketLocked) {
		t.Errorf("second lock: got %v; want ErrSocketLocked", err)
	}
	unlock()
	unlock, err = lockDir(dir, 0)
	if err != nil {
		t.Fatalf("lock after unlock: got %v; want it", err)
	}
	unlock()
}
