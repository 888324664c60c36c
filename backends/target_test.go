package backends_test

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// app is a user who is neither root nor lb.
const app = 65533

// asRoot skips a test that needs two users.
func asRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, to have files of another user")
	}
}

// listenAs is what a child of these tests does: listen at an address, say so, and end with its standard
// input.
const listenAs = "LB_TEST_LISTEN"

func listenForParent(address string) {
	name := strings.TrimPrefix(address, "unix:")
	syscall.Umask(0)
	ln, err := net.Listen("unix", name)
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("listening")
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	bufio.NewReader(os.Stdin).ReadByte()
	os.Exit(0) // the file stays
}

// serveAs runs a process of a user that listens at a path or "@name" until stop is called or the test ends.
func serveAs(t *testing.T, uid uint32, name string) (stop func()) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), listenAs+"="+name)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid, NoSetGroups: true}}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	line, _ := bufio.NewReader(out).ReadString('\n')
	ended := false
	stop = func() {
		if !ended {
			ended = true
			in.Close()
			cmd.Wait()
		}
	}
	t.Cleanup(stop)
	if line != "listening\n" {
		t.Fatalf("cannot listen at %q as user %d: %s", name, uid, line)
	}
	return stop
}

// open makes a directory with a short name that every user may enter.
func open(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// directory makes a directory of a user.
func directory(t *testing.T, path string, uid int, mode os.FileMode) string {
	t.Helper()
	if err := os.Mkdir(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Chown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// link makes a symbolic link that belongs to a user.
func link(t *testing.T, to, path string, uid int) {
	t.Helper()
	if err := os.Symlink(to, path); err != nil {
		t.Fatal(err)
	}
	if err := os.Lchown(path, uid, uid); err != nil {
		t.Fatal(err)
	}
}

// newTarget makes a backend at an address whose owner is named so.
func newTarget(t testing.TB, self *backends.Self, address, owner string) *backends.Backend {
	t.Helper()
	pool := backends.NewPool("p", backends.DefaultConfig(), nopPolicy{})
	pool.Self = self
	cfg := backends.DefaultBackendConfig()
	cfg.Address, cfg.Owner = address, owner
	b, err := pool.Add(cfg, backends.HealthUp)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

type nopPolicy struct{}

func (nopPolicy) Pick(*backends.Request) *backends.Backend { return nil }
func (nopPolicy) Update(*backends.Backend)                 {}
func (nopPolicy) Reset([]*backends.Backend)                {}

// connectTo connects to b, and returns what the kernel or lb said.
func connectTo(t testing.TB, b *backends.Backend) unix.Errno {
	t.Helper()
	family := unix.AF_UNIX
	if sa := b.Sockaddr(); sa != nil {
		family = sa.Family
	}
	fd, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	return b.Connect(int32(fd))
}

// wantConnected connects twice: verified, and as the proof has it.
func wantConnected(t *testing.T, b *backends.Backend) {
	t.Helper()
	for _, how := range []string{"verified", "proved"} {
		if errno := connectTo(t, b); errno != 0 {
			t.Errorf("%s: got %v, refusal %q; want a connection", how, errno, b.Refusal())
		}
	}
	if b.Refusal() != "" {
		t.Errorf("refusal: got %q; want none", b.Refusal())
	}
}

func wantRefused(t *testing.T, b *backends.Backend, want string) {
	t.Helper()
	for range 2 {
		if errno := connectTo(t, b); errno != backends.ErrUntrusted || !strings.Contains(b.Refusal(), want) {
			t.Errorf("got %v, refusal %q; want %q", errno, b.Refusal(), want)
		}
	}
}

func TestTarget_ConnectsToSocketsOfWhomItTrusts(t *testing.T) {
	asRoot(t)
	for name, set := range map[string]func(t *testing.T, dir string) (path, owner string){
		"root's, in a directory of root": func(t *testing.T, dir string) (string, string) {
			serveAs(t, 0, dir+"/s")
			return dir + "/s", ""
		},
		"the owner's, in a directory of root": func(t *testing.T, dir string) (string, string) {
			serveAs(t, 0, dir+"/s")
			os.Lchown(dir+"/s", app, app)
			return dir + "/s", fmt.Sprint(app)
		},
		"the owner's, in a directory of his": func(t *testing.T, dir string) (string, string) {
			serveAs(t, app, directory(t, dir+"/app", app, 0o755)+"/s")
			return dir + "/app/s", fmt.Sprint(app)
		},
		"the owner's, over a link of his": func(t *testing.T, dir string) (string, string) {
			directory(t, dir+"/app", app, 0o755)
			serveAs(t, app, directory(t, dir+"/app/v1", app, 0o755)+"/s")
			link(t, "v1", dir+"/app/current", app)
			return dir + "/app/current/s", fmt.Sprint(app)
		},
		"the owner's by name": func(t *testing.T, dir string) (string, string) {
			serveAs(t, 65534, directory(t, dir+"/app", 65534, 0o755)+"/s")
			return dir + "/app/s", "nobody"
		},
		"the owner's, in a directory that everybody may write to": func(t *testing.T, dir string) (string, string) {
			serveAs(t, app, directory(t, dir+"/all", 0, 0o777)+"/s")
			return dir + "/all/s", fmt.Sprint(app)
		},
		"root's, in a directory as /tmp": func(t *testing.T, dir string) (string, string) {
			serveAs(t, 0, directory(t, dir+"/tmp", 0, os.ModeSticky|0o777)+"/s")
			return dir + "/tmp/s", ""
		},
		"root's, over links of root": func(t *testing.T, dir string) (string, string) {
			serveAs(t, 0, directory(t, dir+"/real", 0, 0o755)+"/s")
			link(t, dir+"/real", dir+"/absolute", 0)
			link(t, "../"+filepath.Base(dir)+"/absolute", dir+"/relative", 0)
			return dir + "/relative/s", ""
		},
		"root's, in a directory of root that the owner may write to, named": func(t *testing.T, dir string) (string, string) {
			serveAs(t, 0, directory(t, dir+"/app", app, 0o755)+"/s")
			return dir + "/app/s", "root"
		},
		"the owner's, bound by root under another name": func(t *testing.T, dir string) (string, string) {
			directory(t, dir+"/app", app, 0o755)
			serveAs(t, 0, dir+"/app/new")
			os.Lchown(dir+"/app/new", app, app)
			os.Rename(dir+"/app/new", dir+"/app/s")
			return dir + "/app/s", fmt.Sprint(app)
		},
	} {
		t.Run(name, func(t *testing.T) {
			path, owner := set(t, open(t))
			wantConnected(t, newTarget(t, nil, "unix:"+path, owner))
		})
	}
	t.Run("abstract, the owner's", func(t *testing.T) {
		serveAs(t, app, "@lb-test-target-abstract")
		wantConnected(t, newTarget(t, nil, "unix:@lb-test-target-abstract", fmt.Sprint(app)))
	})
}

func TestTarget_RefusesSocketsThatSomebodyElseMayChoose(t *testing.T) {
	asRoot(t)
	for name, set := range map[string]func(t *testing.T, dir, admin string) (path, owner, want string){
		"a link at the end": func(t *testing.T, dir, admin string) (string, string, string) {
			link(t, admin, directory(t, dir+"/app", app, 0o755)+"/s", app)
			return dir + "/app/s", fmt.Sprint(app), "is a symbolic link"
		},
		"a link at the end that is root's": func(t *testing.T, dir, admin string) (string, string, string) {
			link(t, admin, dir+"/s", 0)
			return dir + "/s", "", "is a symbolic link"
		},
		"a link in the middle": func(t *testing.T, dir, admin string) (string, string, string) {
			link(t, filepath.Dir(admin), directory(t, dir+"/app", app, 0o755)+"/sub", app)
			return dir + "/app/sub/admin.sock", fmt.Sprint(app), "/app/ belongs to user"
		},
		"a link in the middle, with root named": func(t *testing.T, dir, admin string) (string, string, string) {
			link(t, filepath.Dir(admin), directory(t, dir+"/app", app, 0o755)+"/sub", app)
			return dir + "/app/sub/admin.sock", "root", "over a symbolic link"
		},
		"a link in /tmp": func(t *testing.T, dir, admin string) (string, string, string) {
			link(t, filepath.Dir(admin), directory(t, dir+"/tmp", 0, os.ModeSticky|0o777)+"/sub", app)
			return dir + "/tmp/sub/admin.sock", "", "/tmp/sub belongs to user"
		},
		"a hard link": func(t *testing.T, dir, admin string) (string, string, string) {
			if err := os.Link(admin, directory(t, dir+"/app", app, 0o755)+"/s"); err != nil {
				t.Fatal(err)
			}
			return dir + "/app/s", "root", "a hard link"
		},
		"a hard link in /tmp": func(t *testing.T, dir, admin string) (string, string, string) {
			if err := os.Link(admin, directory(t, dir+"/tmp", 0, os.ModeSticky|0o777)+"/s"); err != nil {
				t.Fatal(err)
			}
			return dir + "/tmp/s", "", "a hard link"
		},
		"root's, in a directory of another": func(t *testing.T, dir, _ string) (string, string, string) {
			serveAs(t, 0, directory(t, dir+"/app", app, 0o755)+"/s")
			return dir + "/app/s", fmt.Sprint(app), "may have it lead anywhere"
		},
		"root's, in a directory that everybody may write to": func(t *testing.T, dir, _ string) (string, string, string) {
			serveAs(t, 0, directory(t, dir+"/all", 0, 0o777)+"/s")
			return dir + "/all/s", "", "everybody may write to"
		},
		"root's, in a directory that a group may write to": func(t *testing.T, dir, _ string) (string, string, string) {
			serveAs(t, 0, directory(t, dir+"/group", 0, 0o755)+"/s")
			os.Chown(dir+"/group", 0, app)
			os.Chmod(dir+"/group", 0o775)
			return dir + "/group/s", "", fmt.Sprintf("group %d may write to", app)
		},
		"another's, whom nobody named": func(t *testing.T, dir, _ string) (string, string, string) {
			serveAs(t, app, directory(t, dir+"/app", app, 0o755)+"/s")
			return dir + "/app/s", "", fmt.Sprintf("write owner = \"%d\"", app)
		},
		"another's in /tmp, who came first": func(t *testing.T, dir, _ string) (string, string, string) {
			serveAs(t, app, directory(t, dir+"/tmp", 0, os.ModeSticky|0o777)+"/s")
			return dir + "/tmp/s", "nobody", "who is not its owner"
		},
		"behind /proc": func(t *testing.T, _, admin string) (string, string, string) {
			return fmt.Sprintf("/proc/%d/root%s", os.Getpid(), admin), "", "proc file system"
		},
		"behind /proc, by a link": func(t *testing.T, dir, admin string) (string, string, string) {
			link(t, fmt.Sprintf("/proc/%d/root", os.Getpid()), directory(t, dir+"/app", app, 0o755)+"/sub", app)
			return dir + "/app/sub" + admin, "root", "proc file system"
		},
		"a file": func(t *testing.T, dir, _ string) (string, string, string) {
			os.WriteFile(dir+"/s", nil, 0o644)
			return dir + "/s", "", "not a socket"
		},
		"a directory": func(t *testing.T, dir, _ string) (string, string, string) { return dir, "", "not a socket" },
		"a datagram socket": func(t *testing.T, dir, _ string) (string, string, string) {
			c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: dir + "/s", Net: "unixgram"})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return dir + "/s", "", "no stream socket"
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := open(t)
			admin := directory(t, dir+"/run", 0, 0o755) + "/admin.sock"
			serveAs(t, 0, admin)
			path, owner, want := set(t, dir, admin)
			wantRefused(t, newTarget(t, nil, "unix:"+path, owner), want)
		})
	}
	t.Run("abstract, another's", func(t *testing.T) {
		serveAs(t, app, "@lb-test-target-other")
		wantRefused(t, newTarget(t, nil, "unix:@lb-test-target-other", ""), "is served by user")
	})
}

// A bind mount needs a mount namespace of this thread's own.
func TestTarget_RefusesBindMounts(t *testing.T) {
	asRoot(t)
	dir := open(t)
	admin := directory(t, dir+"/run", 0, 0o755) + "/admin.sock"
	serveAs(t, 0, admin)
	directory(t, dir+"/app", app, 0o755)
	if err := errors.Join(os.WriteFile(dir+"/app/s", nil, 0o600), os.WriteFile(dir+"/run/other", nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	self := &backends.Self{}
	path, err := backends.ParseAddress("unix:" + admin)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNS | unix.CLONE_FS); err != nil {
			t.Error("no mount namespace:", err)
			return
		}
		if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
			t.Error(err)
			return
		}
		if err := unix.Mount(admin, dir+"/app/s", "", unix.MS_BIND, ""); err != nil {
			t.Error(err)
			return
		}
		wantRefused(t, newTarget(t, self, "unix:"+dir+"/app/s", fmt.Sprint(app)), "may have it lead anywhere")
		if err := unix.Mount(admin, dir+"/run/other", "", unix.MS_BIND, ""); err != nil {
			t.Error(err)
			return
		}
		wantRefused(t, newTarget(t, self, "unix:"+dir+"/run/other", fmt.Sprint(app)), "is a mount of a socket")
		wantConnected(t, newTarget(t, self, "unix:"+dir+"/run/other", "")) // root decides
		self.Set([]backends.Address{path})
		wantRefused(t, newTarget(t, self, "unix:"+dir+"/app/s", "root"), "a socket of lb itself")
	}()
	<-done
}

func TestTarget_SeesThatTheNameLeadsElsewhere(t *testing.T) {
	asRoot(t)
	owner := fmt.Sprint(app)
	for name, tc := range map[string]struct {
		swap, back func(t *testing.T, dir, admin string)
		want       string
	}{
		"the socket is a link now": {
			swap: func(t *testing.T, dir, admin string) {
				os.Rename(dir+"/app/sub/s", dir+"/app/sub/aside")
				link(t, admin, dir+"/app/sub/s", app)
			},
			back: func(t *testing.T, dir, _ string) { os.Rename(dir+"/app/sub/aside", dir+"/app/sub/s") },
			want: "is a symbolic link",
		},
		"the directory is a link now": {
			swap: func(t *testing.T, dir, admin string) {
				os.Rename(dir+"/app/sub", dir+"/app/aside")
				link(t, filepath.Dir(admin), dir+"/app/sub", app)
			},
			back: func(t *testing.T, dir, _ string) {
				os.Remove(dir + "/app/sub")
				os.Rename(dir+"/app/aside", dir+"/app/sub")
			},
			want: "/app/ belongs to user",
		},
		"the socket is a hard link now": {
			swap: func(t *testing.T, dir, admin string) {
				os.Rename(dir+"/app/sub/s", dir+"/app/sub/aside")
				os.Link(admin, dir+"/app/sub/s")
			},
			back: func(t *testing.T, dir, _ string) { os.Rename(dir+"/app/sub/aside", dir+"/app/sub/s") },
			want: "a hard link",
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := open(t)
			admin := directory(t, dir+"/run", 0, 0o755) + "/s"
			serveAs(t, 0, admin)
			directory(t, dir+"/app", app, 0o755)
			serveAs(t, app, directory(t, dir+"/app/sub", app, 0o755)+"/s")
			b := newTarget(t, nil, "unix:"+dir+"/app/sub/s", owner)
			for range 2 {
				wantConnected(t, b)
				tc.swap(t, dir, admin)
				wantRefused(t, b, tc.want)
				tc.back(t, dir, admin)
			}
			wantConnected(t, b)
		})
	}
}

func TestTarget_FollowsTheNameToAnotherListener(t *testing.T) {
	asRoot(t)
	for name, uid := range map[string]uint32{"root's": 0, "the owner's": app} {
		t.Run(name, func(t *testing.T) {
			dir := directory(t, open(t)+"/app", int(uid), 0o755)
			stop := serveAs(t, uid, dir+"/s")
			b := newTarget(t, nil, "unix:"+dir+"/s", fmt.Sprint(app))
			wantConnected(t, b)
			serveAs(t, uid, dir+"/new")
			os.Rename(dir+"/new", dir+"/s")
			stop() // a connection to the one before would be refused
			wantConnected(t, b)
			os.Remove(dir + "/s")
			if errno := connectTo(t, b); errno != unix.ENOENT {
				t.Errorf("without a file: got %v; want ENOENT", errno)
			}
			serveAs(t, uid, dir+"/s")
			wantConnected(t, b)
		})
	}
}

func TestTarget_RefusesLbItselfInEverySpelling(t *testing.T) {
	dir := open(t)
	ln, err := net.Listen("unix", dir+"/admin.sock")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	if err := os.Symlink(dir, dir+"/link"); err != nil {
		t.Fatal(err)
	}
	if err := os.Link(dir+"/admin.sock", dir+"/hard"); err != nil {
		t.Fatal(err)
	}
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	port := tcp.Addr().(*net.TCPAddr).Port
	self := &backends.Self{}
	own := func(addresses ...string) {
		var all []backends.Address
		for _, text := range addresses {
			a, err := backends.ParseAddress(text)
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, a)
		}
		self.Set(all)
	}
	own("unix:"+dir+"/admin.sock", "unix:@lb-test-own", fmt.Sprintf("[::]:%d", port))
	for _, address := range []string{
		"unix:" + dir + "/admin.sock",
		"unix:" + dir + "/./link/../" + filepath.Base(dir) + "/admin.sock",
		"unix:" + dir + "/link/admin.sock",
		"unix:" + dir + "/hard",
		"unix:@lb-test-own",
		fmt.Sprintf("127.0.0.1:%d", port),
		fmt.Sprintf("127.0.0.9:%d", port),
		fmt.Sprintf("0.0.0.0:%d", port),
		fmt.Sprintf("[::1]:%d", port),
		fmt.Sprintf("[::ffff:127.0.0.1]:%d", port),
	} {
		b := newTarget(t, self, address, "")
		wantRefused(t, b, "of lb itself")
	}
	if b := newTarget(t, self, fmt.Sprintf("127.0.0.1:%d", port), ""); b.RefusesTCP(b.Address) == "" {
		t.Error("a probe may connect to lb itself")
	}
	// One that becomes lb's own while it is in use.
	own()
	b := newTarget(t, self, "unix:"+dir+"/admin.sock", "")
	wantConnected(t, b)
	own("unix:" + dir + "/admin.sock")
	wantRefused(t, b, "of lb itself")
	own(fmt.Sprintf("127.0.0.1:%d", port))
	wantConnected(t, b)
	wantRefused(t, newTarget(t, self, fmt.Sprintf("127.0.0.1:%d", port), ""), "of lb itself")
}

func TestTarget_TakesAChangedOwner(t *testing.T) {
	asRoot(t)
	dir := directory(t, open(t)+"/app", app, 0o755)
	serveAs(t, app, dir+"/s")
	b := newTarget(t, nil, "unix:"+dir+"/s", "")
	wantRefused(t, b, "who is not its owner")
	pool := b.Pool()
	cfg := *pool.Config()
	cfg.Owner = fmt.Sprint(app)
	member := backends.DefaultBackendConfig()
	member.Address = b.Address.String()
	pool.ReplaceMembers(cfg, nil, []backends.Member{{Backend: b, Config: member}}, "test")
	wantConnected(t, b)
	member.Owner = "root"
	pool.ReplaceMembers(cfg, nil, []backends.Member{{Backend: b, Config: member}}, "test")
	wantRefused(t, b, "who is not its owner")
}

func TestTarget_ConnectAllocatesNothing(t *testing.T) {
	dir := t.TempDir()
	ln, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	b := newTarget(t, nil, "unix:"+dir+"/s", "")
	wantConnected(t, b)
	raw, err := ln.(*net.UnixListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if got := testing.AllocsPerRun(100, func() { connectAndAccept(t, raw, b.Connect) }); got != 0 {
		t.Errorf("allocations: got %v; want 0", got)
	}
}

// connectAndAccept connects by how, and takes the connection from the listener's queue.
func connectAndAccept(t testing.TB, ln syscall.RawConn, how func(fd int32) unix.Errno) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if errno := how(int32(fd)); errno != 0 {
		t.Fatal(errno)
	}
	unix.Close(fd)
	accept(t, ln)
}

var acceptOne = func(ln uintptr) {
	if r, _, e := unix.RawSyscall6(unix.SYS_ACCEPT4, ln, 0, 0, unix.SOCK_CLOEXEC, 0, 0); e == 0 {
		unix.RawSyscall(unix.SYS_CLOSE, r, 0, 0)
	}
}

func accept(t testing.TB, ln syscall.RawConn) {
	if err := ln.Control(acceptOne); err != nil {
		t.Fatal(err)
	}
}

// BenchmarkTarget is a connect with its socket and the accept: "plain" is connect(2) alone, as lb did it
// once.
func BenchmarkTarget(b *testing.B) {
	dir := b.TempDir()
	ln, err := net.Listen("unix", dir+"/s")
	if err != nil {
		b.Fatal(err)
	}
	defer ln.Close()
	raw, err := ln.(*net.UnixListener).SyscallConn()
	if err != nil {
		b.Fatal(err)
	}
	target := newTarget(b, nil, "unix:"+dir+"/s", "")
	sa := &unix.SockaddrUnix{Name: dir + "/s"}
	for _, bc := range []struct {
		name string
		how  func(fd int32) unix.Errno
	}{
		{"plain", func(fd int32) unix.Errno {
			if err := unix.Connect(int(fd), sa); err != nil {
				return err.(unix.Errno)
			}
			return 0
		}},
		{"proved", target.Connect},
		{"verified", target.ConnectVerified},
	} {
		b.Run(bc.name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				connectAndAccept(b, raw, bc.how)
			}
		})
	}
}
