//go:build e2e

package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// appUser is somebody who is neither root nor lb.
const appUser = 65533

// asApp runs a shell command as appUser.
func asApp(t testing.TB, script string) {
	t.Helper()
	cmd := exec.Command("/bin/sh", "-ec", script)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: appUser, Gid: appUser}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
}

// appDirectory makes a directory of appUser with a backend in it that answers "app" to each connection, and
// returns the path of its socket.
func appDirectory(t testing.TB) string {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have a second user")
	}
	top, err := os.MkdirTemp("", "lb-trust")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dir := filepath.Join(top, "app")
	for _, err := range []error{os.Chmod(top, 0o755), os.Mkdir(dir, 0o755), os.Chown(dir, appUser, appUser)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	path := filepath.Join(dir, "w1.sock")
	ln := listenBackend(t, "unix:"+path)
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.WriteString(c, "app")
			c.Close()
		}
	}()
	if err := os.Lchown(path, appUser, appUser); err != nil {
		t.Fatal(err)
	}
	return path
}

// secret is a socket that only root may open, and remembers every byte that it is sent.
type secret struct {
	path string
	mu   sync.Mutex
	got  bytes.Buffer
}

func startSecret(t testing.TB) *secret {
	t.Helper()
	s := &secret{path: filepath.Join(tempDir(t), "w1.sock")}
	ln := listenBackend(t, "unix:"+s.path)
	if err := os.Chmod(s.path, 0o600); err != nil {
		t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				data, _ := io.ReadAll(c)
				s.mu.Lock()
				s.got.Write(data)
				s.mu.Unlock()
				io.WriteString(c, "secret")
				c.Close()
			}()
		}
	}()
	return s
}

// throughListener sends an upgrade request through lb's listener, as whoever wants root's lb to run his
// program would, and returns what comes back.
func throughListener(t testing.TB, l *lb) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", l.addr(), patience)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(patience))
	body := `{"binary":"/tmp/evil"}`
	fmt.Fprintf(c, "POST /v1/upgrade HTTP/1.1\r\nHost: lb\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s", len(body), body)
	c.(*net.TCPConn).CloseWrite()
	reply, _ := io.ReadAll(c) // a reset is an answer as well
	return string(reply)
}

// Who owns the directory of a backend's socket has lb connect to his own sockets and to nothing else.
func TestTrust_BackendsOwnerReachesNoOtherSocket(t *testing.T) {
	for _, tc := range []struct {
		name string
		// shell, of app: DIR/v1/w1.sock is the backend's socket, ADMIN lb's control socket, SECRET/w1.sock
		// another one of root
		swap string
		want string // in the log and in the status
	}{
		{"a link to the control socket", "mv DIR/v1/w1.sock DIR/aside; ln -s ADMIN DIR/v1/w1.sock", "is a symbolic link"},
		{"a link to a socket of root", "mv DIR/v1/w1.sock DIR/aside; ln -s SECRET/w1.sock DIR/v1/w1.sock", "is a symbolic link"},
		{"a directory that is a link to one of root's", "mv DIR/v1 DIR/aside; ln -s SECRET DIR/v1", "belongs to user"},
		{"a directory that is a link by way of /proc", "mv DIR/v1 DIR/aside; ln -s /proc/LB/rootSECRET DIR/v1", "proc file system"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			path := appDirectory(t)
			dir := filepath.Dir(path)
			hidden := startSecret(t)
			asApp(t, fmt.Sprintf("mkdir %s/v1; mv %s %s/v1/w1.sock", dir, path, dir))
			config := onePool(t, "unix:"+dir+"/v1/w1.sock")
			config.Pools[0].Options = fmt.Sprintf("owner = \"%d\"\n", appUser)
			config.Pools[0].Health = "interval = \"200ms\"\n"
			l := startLB(t, config)
			l.waitHealth(t, "up", "w1")
			if got := throughListener(t, l); !strings.Contains(got, "app") {
				t.Fatalf("before: got %q; want the backend's answer", got)
			}
			swap := strings.NewReplacer("ADMIN", l.socket, "SECRET", filepath.Dir(hidden.path), "LB", fmt.Sprint(l.pid()), "DIR", dir).Replace(tc.swap)
			asApp(t, swap)
			for range 20 {
				if got := throughListener(t, l); got != "" {
					t.Fatalf("got %q; want no answer", got)
				}
			}
			l.waitHealth(t, "down", "w1")
			status := mustRun(t, patience, lbBinary(t), "status", "-s", l.socket).stdout
			if !strings.Contains(status, "untrusted") || !strings.Contains(status, tc.want) {
				t.Errorf("status: got\n%s\nwant untrusted and %q", status, tc.want)
			}
			if log := l.tail(); !strings.Contains(log, "untrusted") || !strings.Contains(log, tc.want) {
				t.Errorf("log: got\n%s\nwant untrusted and %q", log, tc.want)
			}
			hidden.mu.Lock()
			if hidden.got.Len() > 0 {
				t.Errorf("the socket of root: got %q; want nothing", hidden.got.String())
			}
			hidden.mu.Unlock()
		})
	}
}

// While nothing but clients' connects finds it out.
func TestTrust_HoldsWithoutProbesWhileTheNameIsSwapped(t *testing.T) {
	path := appDirectory(t)
	hidden := startSecret(t)
	config := onePool(t, "unix:"+path)
	config.Pools[0].Options = fmt.Sprintf("owner = \"%d\"\nwhen_all_down = \"any\"\n", appUser)
	config.Pools[0].Health = "type = \"none\"\n"
	l := startLB(t, config)
	stop := make(chan struct{})
	var swapping sync.WaitGroup
	swapping.Go(func() {
		script := fmt.Sprintf("ln -sf %s %s.link; while [ ! -e %s.stop ]; do ln -f %s %s.keep; mv -f %s.link %s; ln -sf %s %s.link; mv -f %s.keep %s; done",
			hidden.path, path, path, path, path, path, path, hidden.path, path, path, path)
		asApp(t, script)
	})
	go func() {
		<-stop
		os.WriteFile(path+".stop", nil, 0o644)
	}()
	served, refused := 0, 0
	for began := time.Now(); time.Since(began) < 3*time.Second; {
		switch got := throughListener(t, l); got {
		case "app":
			served++
		case "":
			refused++
		default:
			t.Fatalf("got %q; want the backend's answer or none", got)
		}
	}
	close(stop)
	swapping.Wait()
	hidden.mu.Lock()
	defer hidden.mu.Unlock()
	if hidden.got.Len() > 0 {
		t.Errorf("the socket of root: got %q; want nothing", hidden.got.String())
	}
	t.Logf("%d served, %d refused", served, refused)
	if served == 0 || refused == 0 {
		t.Errorf("got %d served and %d refused; want both", served, refused)
	}
}

// Whoever has only the token may not have lb open a socket that he cannot.
func TestTrust_TokenAddsNoSocketOfTheHost(t *testing.T) {
	dir := tempDir(t)
	startHolder(t, "unix:"+dir+"/w1.sock")
	startHolder(t, "unix:"+dir+"/w2.sock")
	hidden := startSecret(t)
	config := onePool(t, "unix:"+dir+"/w1.sock")
	admin := freePort(t, "127.0.0.1")
	token := writeFile(t, dir, "token", "0123456789abcdef0123456789abcdef\n", 0o600)
	l := startLBWith(t, config, func(toml string) string {
		return strings.Replace(toml, "http = \"\"", fmt.Sprintf("http = %q\ntoken_file = %q", admin, token), 1)
	})
	add := func(name, address string) (int, string) {
		t.Helper()
		r, err := http.NewRequest("POST", "http://"+admin+"/v1/pools/app/backends", strings.NewReader(fmt.Sprintf(`{"name":%q,"address":%q}`, name, address)))
		if err != nil {
			t.Fatal(err)
		}
		r.Header.Set("Authorization", "Bearer 0123456789abcdef0123456789abcdef")
		r.Header.Set("Content-Type", "application/json")
		resp, err := http.DefaultClient.Do(r)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	for _, address := range []string{
		"unix:" + l.socket, "unix:" + hidden.path, "unix:" + dir + "/../" + filepath.Base(filepath.Dir(hidden.path)) + "/w1.sock",
		"unix:/run/docker.sock", "unix:@containerd", "unix:/proc/1/root/run/docker.sock",
	} {
		if code, body := add("evil", address); code != http.StatusForbidden || !strings.Contains(body, "control socket") {
			t.Errorf("%s: got %d %s; want 403 that says how it can be added", address, code, body)
		}
	}
	if code, body := add("w2", "unix:"+dir+"/w2.sock"); code != http.StatusOK && code != http.StatusCreated {
		t.Errorf("beside the pool's own: got %d %s; want it added", code, body)
	}
	l.waitHealth(t, "up", "w1", "w2")
	if code, body := add("self", admin); code/100 == 2 { // TCP: may be added, and leads nowhere
		l.waitHealth(t, "down", "self")
		status := mustRun(t, patience, lbBinary(t), "status", "-s", l.socket).stdout
		if !strings.Contains(status, "lb itself") {
			t.Errorf("status: got\n%s\nwant that it is lb itself", status)
		}
	} else if !strings.Contains(body, "lb's own") {
		t.Errorf("lb's own address: got %d %s; want that it is lb's own", code, body)
	}
}
