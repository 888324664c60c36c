//go:build e2e

package e2e

import (
	"bytes"
	"encoding/json"
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
	return throughAddress(t, l.addr())
}

func throughAddress(t testing.TB, address string) string {
	t.Helper()
	c, err := net.DialTimeout("tcp", address, patience)
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
		{"a hard link to a socket of root", "mv DIR/v1/w1.sock DIR/aside; sudo: ln SECRET/w1.sock DIR/v1/w1.sock", "has a second name (a hard link)"},
		{"a hard link to the control socket", "mv DIR/v1/w1.sock DIR/aside; sudo: ln ADMIN DIR/v1/w1.sock", "a socket of lb itself"},
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
			// what a host without protected_hardlinks lets app do
			swap, asRoot, _ := strings.Cut(swap, "sudo: ")
			asApp(t, swap)
			mustRun(t, patience, "/bin/sh", "-ec", asRoot)
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

// Whoever has a socket of root, or lb's own, mounted over the one of a backend or a worker has lb connect to
// neither.
func TestTrust_MountedSocketsAreRefused(t *testing.T) {
	const python = "/usr/bin/python3" // one that the second user may run
	if _, err := os.Stat(python); err != nil {
		t.Skip(err)
	}
	path := appDirectory(t)
	hidden := startSecret(t)
	config := onePool(t, "unix:"+path)
	config.Private = true
	config.Pools[0].Options = fmt.Sprintf("owner = \"%d\"\n", appUser)
	config.Pools[0].Health = "interval = \"200ms\"\n"
	serve := "import socket\nl = socket.socket(fileno=3)\nwhile True:\n c = l.accept()[0]\n try: c.recv(4096); c.sendall(b'app')\n except OSError: pass\n c.close()\n"
	config.Listeners = append(config.Listeners, lbListener{Name: "work", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "work"})
	config.Pools = append(config.Pools, lbPool{Name: "work", Health: "interval = \"200ms\"\n", Options: fmt.Sprintf(
		"[pools.work.workers]\ncommand = [%q, \"-c\", %q]\nuser = \"%d\"\ndir = \"/\"\ncount = 1\n", python, serve, appUser)})
	l := startLB(t, config)
	l.waitHealth(t, "up", "w1")
	var status workersStatus
	eventually(t, patience, func() error {
		if err := json.Unmarshal([]byte(l.mustCommand(t, "workers", "work", "--json").stdout), &status); err != nil {
			return err
		}
		if status.Slots[0].State != "up" {
			return fmt.Errorf("worker: got %q; want it up", status.Slots[0].State)
		}
		return nil
	})
	environ, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", status.Slots[0].PID))
	_, worker, ok := strings.Cut(string(environ), "LB_WORKER_SOCKET=")
	if worker, _, _ = strings.Cut(worker, "\x00"); !ok || err != nil {
		t.Fatalf("the worker's socket: got %q, %v; want its path", worker, err)
	}
	inside := func(words ...string) { // lb's mount namespace
		t.Helper()
		mustRun(t, patience, "nsenter", append([]string{"-m", "-t", fmt.Sprint(l.pid())}, words...)...)
	}
	for _, at := range []struct{ address, path, backend string }{
		{config.Listeners[0].Bind[0], path, "app/w1"}, {config.Listeners[1].Bind[0], worker, "work/0"},
	} {
		for _, over := range []struct{ path, want string }{
			{l.socket, "is a socket of lb itself"}, {hidden.path, "user root (0)"},
		} {
			if got := throughAddress(t, at.address); got != "app" {
				t.Fatalf("%s before: got %q; want the backend's answer", at.backend, got)
			}
			inside("mount", "--bind", over.path, at.path)
			for range 5 {
				if got := throughAddress(t, at.address); got != "" {
					t.Errorf("%s over %s: got %q; want no answer", over.path, at.path, got)
				}
			}
			eventually(t, patience, func() error {
				for line := range strings.Lines(l.tail()) {
					if strings.Contains(line, at.backend) && strings.Contains(line, "untrusted") && strings.Contains(line, over.want) {
						return nil
					}
				}
				return fmt.Errorf("log: got\n%s\nwant a line with %s, untrusted and %q", l.tail(), at.backend, over.want)
			})
			inside("umount", at.path)
			eventually(t, patience, func() error {
				if got := throughAddress(t, at.address); got != "app" {
					return fmt.Errorf("%s afterwards: got %q; want the backend's answer", at.backend, got)
				}
				return nil
			})
		}
	}
	hidden.mu.Lock()
	defer hidden.mu.Unlock()
	if hidden.got.Len() > 0 {
		t.Errorf("the socket of root: got %q; want nothing", hidden.got.String())
	}
}

// Who takes an abstract name before its owner does gets no client.
func TestTrust_AnAbstractNameOfAnotherIsRefused(t *testing.T) {
	const python = "/usr/bin/python3"
	if _, err := os.Stat(python); err != nil {
		t.Skip(err)
	}
	path := appDirectory(t) // for its user
	name := fmt.Sprintf("lb-trust-%d", os.Getpid())
	serve := "import socket, sys\nl = socket.socket(socket.AF_UNIX)\nl.bind('\\0' + sys.argv[1])\nl.listen()\nopen(sys.argv[2], 'w').close()\n" +
		"while True:\n c = l.accept()[0]\n try: c.sendall(b'thief')\n except OSError: pass\n c.close()\n"
	said := path + ".said"
	thief := exec.Command(python, "-c", serve, name, said)
	thief.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: appUser, Gid: appUser}}
	startProcess(t, "thief", thief)
	eventually(t, patience, func() error { _, err := os.Stat(said); return err })
	config := onePool(t, "unix:@"+name)
	config.Pools[0].Options = fmt.Sprintf("owner = \"%d\"\n", appUser-1)
	l := startLB(t, config)
	l.waitHealth(t, "down", "w1")
	for range 5 {
		if got := throughListener(t, l); got != "" {
			t.Errorf("got %q; want no answer", got)
		}
	}
	if log := l.tail(); !strings.Contains(log, "untrusted") || !strings.Contains(log, "is served by user") {
		t.Errorf("log: got\n%s\nwant untrusted, and by whom it is served", log)
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
