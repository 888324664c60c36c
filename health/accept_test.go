package health

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/eventually"
	"github.com/273ebdf9/lb/internal/sockdiag"
	"golang.org/x/sys/unix"
)

// kernel is what asks the kernel about sockets.
func kernel(t *testing.T) *sockdiag.Conn {
	t.Helper()
	c, err := sockdiag.Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// acceptRig is a listener that accepts when the test says so, and the probes of it.
type acceptRig struct {
	t *testing.T
	net.Listener
	prober
	plan    *plan
	backend *backends.Backend
}

func newAcceptRig(t *testing.T, network, address string, change func(c *backends.Config)) *acceptRig {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return probesOf(t, l, change)
}

func probesOf(t *testing.T, l net.Listener, change func(c *backends.Config)) *acceptRig {
	t.Helper()
	address := l.Addr().String()
	if l.Addr().Network() == "unix" {
		address = "unix:" + address
	}
	cfg := exact(func(c *Config) { c.Timeout = 60 * time.Millisecond })
	p, err := cfg.plan()
	if err != nil {
		t.Fatal(err)
	}
	poolConfig := backends.DefaultConfig()
	if change != nil {
		change(&poolConfig)
	}
	pool := backends.NewPool("p", poolConfig, anyPolicy{})
	bc := backends.DefaultBackendConfig()
	bc.Address = address
	b, err := pool.Add(bc, backends.HealthUp)
	if err != nil {
		t.Fatal(err)
	}
	r := &acceptRig{t: t, Listener: l, prober: prober{sockets: kernel(t)}, plan: p, backend: b}
	t.Cleanup(r.prober.close)
	return r
}

func (r *acceptRig) probe() result {
	r.t.Helper()
	return r.prober.probe(r.t.Context(), r.plan, r.backend)
}

func (r *acceptRig) accept() net.Conn {
	r.t.Helper()
	conn, err := r.Accept()
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { conn.Close() })
	return conn
}

func (r *acceptRig) wait(n int) {
	r.t.Helper()
	for range n {
		conn, err := net.Dial(r.Addr().Network(), r.Addr().String())
		if err != nil {
			r.t.Fatal(err)
		}
		r.t.Cleanup(func() { conn.Close() })
	}
}

func (r *acceptRig) want(outcome Outcome, reason string) {
	r.t.Helper()
	if got := r.probe(); got.outcome != outcome || !strings.HasPrefix(got.reason, reason) || got.hung != (outcome == Failure) {
		r.t.Errorf("got %v %q; want %v %q", got.outcome, got.reason, outcome, reason)
	}
}

// listeners calls f with a listener of each kind.
func listeners(t *testing.T, f func(t *testing.T, r *acceptRig)) {
	for _, a := range [][2]string{
		{"unix", filepath.Join(t.TempDir(), "s")}, {"unix", fmt.Sprintf("@health-accept-%d", unix.Getpid())},
		{"tcp", "127.0.0.1:0"}, {"tcp", "[::1]:0"},
	} {
		t.Run(a[0]+" "+a[1], func(t *testing.T) { f(t, newAcceptRig(t, a[0], a[1], nil)) })
	}
}

func TestAccept_OneThatAcceptsIsUp(t *testing.T) {
	listeners(t, func(t *testing.T, r *acceptRig) {
		ended := make(chan error, 1)
		go func() {
			conn, err := r.Accept()
			if err == nil {
				_, err = conn.Read(make([]byte, 1))
				conn.Close()
			}
			ended <- err
		}()
		r.want(Success, "accepted")
		select { // the probe has closed its connection: a server of one thread can go on
		case err := <-ended:
			if err == nil {
				t.Error("the server got a byte; want the end of the connection")
			}
		case <-time.After(10 * time.Second):
			t.Error("the probe keeps its connection open")
		}
	})
}

func TestAccept_OneThatAcceptsAndClosesIsUp(t *testing.T) {
	for _, sendProxy := range []string{"", "v1", "v2"} {
		for _, a := range [][2]string{{"unix", filepath.Join(t.TempDir(), "s")}, {"tcp", "127.0.0.1:0"}} {
			r := newAcceptRig(t, a[0], a[1], func(c *backends.Config) { c.SendProxy = sendProxy })
			go acceptAll(r.Listener, func(net.Conn) {}) // with a reset where a header was not read
			for range 5 {
				r.want(Success, "accepted")
			}
			r.Close()
		}
	}
}

// A backend that hangs has one connection of lb in its queue, however often it is probed, and is up again
// when it has taken that.
func TestAccept_OneThatHangsFailsUntilItAccepts(t *testing.T) {
	listeners(t, func(t *testing.T, r *acceptRig) {
		r.wait(2)
		for range 3 {
			r.want(Failure, "does not accept: 3 wait for 0.")
		}
		for range 3 {
			conn := r.accept()
			go func() { _, _ = io.Copy(io.Discard, conn); conn.Close() }()
		}
		go acceptAll(r.Listener, func(net.Conn) {})
		eventually.True(t, "a probe succeeds", func() bool { return r.probe().outcome == Success })
		r.Close()
	})
}

// A server of one thread that is busy for longer than the timeout accepts between two probes.
func TestAccept_OneThatAcceptsInItsSpareTimeIsUp(t *testing.T) {
	listeners(t, func(t *testing.T, r *acceptRig) {
		r.wait(20)
		r.want(Failure, "does not accept: 21 wait") // nothing was seen of it yet
		for range 10 {
			r.accept() // one request ends, the next begins
			r.want(Success, "accepts; ")
		}
		r.want(Failure, "does not accept")
	})
}

// A queue that is always full moves all the same.
func TestAccept_FullQueueThatMovesIsNoFailure(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), path)
	defer file.Close()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 2); err != nil {
		t.Fatal(err)
	}
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	r := probesOf(t, l, nil)
	r.wait(3) // a backlog of 2 takes 3
	r.want(Failure, "does not accept: 3 wait")
	r.accept()
	r.wait(1)
	r.want(Inconclusive, "saturated")
	r.want(Failure, "does not accept: 3 wait")
}

func TestAccept_NobodyListensIsAFailureOfAnotherKind(t *testing.T) {
	listeners(t, func(t *testing.T, r *acceptRig) {
		r.want(Failure, "does not accept: 1 wait")
		r.Close()
		if got := r.probe(); got.outcome != Failure || got.hung {
			t.Errorf("got %+v; want a failure that is no hang", got)
		}
	})
}

// A listener that takes only connections which have sent something leaves those of probes where nobody waits.
func TestAccept_DeferredAcceptIsNoHang(t *testing.T) {
	r := newAcceptRig(t, "tcp", "127.0.0.1:0", nil)
	raw, err := r.Listener.(*net.TCPListener).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	_ = raw.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_DEFER_ACCEPT, 30) })
	if err != nil {
		t.Fatal(err)
	}
	r.want(Success, "connected; it accepts")
}

func TestAccept_WithoutTheKernelsWordIsConnect(t *testing.T) {
	r := newAcceptRig(t, "tcp", "127.0.0.1:0", nil)
	r.prober.sockets = nil
	r.want(Success, "connected; this kernel or sandbox does not tell")
	r.Close()
	if got := r.probe(); got.outcome != Failure || got.reason != "connection refused" {
		t.Errorf("got %v %q; want connection refused", got.outcome, got.reason)
	}
}

func TestAccept_CutOffLeavesNothingBehind(t *testing.T) {
	r := newAcceptRig(t, "unix", filepath.Join(t.TempDir(), "s"), nil)
	r.want(Failure, "does not accept: 1 wait")
	r.prober.close()
	conn := r.accept()
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("got %v; want the end of the connection", err)
	}
}

// serveOnStdin is the program of a process that the test stops: it accepts, on the socket that is its
// standard input, whatever comes.
func serveOnStdin() {
	l, err := net.FileListener(os.Stdin)
	if err != nil {
		os.Exit(1)
	}
	fmt.Println("serves")
	acceptAll(l, func(net.Conn) {})
}

// From the stopped process to the pool: off within fall intervals and a timeout, and on again.
func TestChecker_TakesAStoppedProcessOfflineAndBack(t *testing.T) {
	for _, a := range [][2]string{{"unix", filepath.Join(t.TempDir(), "s")}, {"tcp", "127.0.0.1:0"}} {
		l, err := net.Listen(a[0], a[1])
		if err != nil {
			t.Fatal(err)
		}
		file, err := l.(interface{ File() (*os.File, error) }).File()
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), serveEnv+"=1")
		cmd.Stdin = file
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		address := l.Addr().String()
		if a[0] == "unix" {
			address = "unix:" + address
		}
		pool := newPool(t, backends.HealthUp, address)
		changes := make(chan backends.Change, 10)
		pool.OnChange = func(c backends.Change) {
			if c.Field == "health" {
				changes <- c
			}
		}
		cfg := DefaultConfig()
		cfg.Interval, cfg.Timeout = 50*time.Millisecond, 25*time.Millisecond
		checker, err := NewChecker(pool, cfg)
		if err != nil {
			t.Fatal(err)
		}
		checker.Sockets = kernel(t)
		ended := make(chan struct{})
		ctx, cancel := testContext(t)
		go runTo(ctx, checker, ended)
		b := pool.Backends()[0]
		eventually.True(t, "it accepts", func() bool { return checker.Status(b).Reason == "accepted" })
		for range 2 {
			if err := cmd.Process.Signal(unix.SIGSTOP); err != nil {
				t.Fatal(err)
			}
			if c := <-changes; c.To != "down" || !strings.HasPrefix(c.Reason, "does not accept: 1 wait for 0.") {
				t.Errorf("%s: got %s: %s; want down, as it does not accept", a[0], c.To, c.Reason)
			}
			if !b.LastResort() {
				t.Errorf("%s: it is no last resort, though nobody else is there", a[0])
			}
			if err := cmd.Process.Signal(unix.SIGCONT); err != nil {
				t.Fatal(err)
			}
			if c := <-changes; c.To != "up" {
				t.Errorf("%s: got %s: %s; want up", a[0], c.To, c.Reason)
			}
		}
		cancel()
		<-ended
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		file.Close()
		l.Close()
	}
}
