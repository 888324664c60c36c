package admin

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/273ebdf9/lb/internal/eventually"
)

// askVariable makes this test binary a caller: it asks GET /v1/status on "NETWORK ADDRESS" and prints the
// answer.
const askVariable = "LB_ADMIN_TEST_ASK"

func askAsProcess() {
	network, address, _ := strings.Cut(os.Getenv(askVariable), " ")
	status, body := askOn(network, address)
	fmt.Printf("%d %s", status, body)
	os.Exit(0)
}

// askOn asks GET /v1/status from this process.
func askOn(network, address string) (status int, body string) {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(context.Context, string, string) (net.Conn, error) { return net.Dial(network, address) },
	}}
	resp, err := client.Get("http://localhost/v1/status")
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return resp.StatusCode, string(text)
}

// askFromAnotherProcess asks as the user uid.
func askFromAnotherProcess(t *testing.T, uid uint32, network, address string) string {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), askVariable+"="+network+" "+address, "GORACE=atexit_sleep_ms=0")
	if uid != uint32(os.Getuid()) {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("caller: %v\n%s", err, out)
	}
	return string(out)
}

func TestSelf_IsServedByNoSpellingOfTheWay(t *testing.T) {
	var reports atomic.Int64
	cfg := Config{Socket: socketPath(t), SocketMode: "0666", HTTP: "[::]:0"}
	s, err := NewServer(cfg, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	s.src.Report = func(_ slog.Level, key, _ string, _ ...any) {
		if key == "admin self" {
			reports.Add(1)
		}
	}
	serve(t, s)
	dir := filepath.Dir(cfg.Socket)
	os.Symlink(cfg.Socket, dir+"/link")
	os.Link(cfg.Socket, dir+"/hard")
	os.Symlink(dir, dir+"/dir")
	_, port, _ := net.SplitHostPort(s.ends[1].listener.Addr().String())
	ways := [][2]string{
		{"unix", cfg.Socket}, {"unix", dir + "/link"}, {"unix", dir + "/hard"}, {"unix", dir + "/dir/dir/admin.sock"},
		{"unix", "/proc/self/root" + cfg.Socket}, {"unix", "/proc/self/cwd/../../../../../../../.." + cfg.Socket},
		{"tcp", "127.0.0.1:" + port}, {"tcp", "127.9.9.9:" + port}, {"tcp", "[::1]:" + port}, {"tcp", "[::ffff:127.0.0.1]:" + port}, {"tcp", "0.0.0.0:" + port},
	}
	if addrs, err := net.InterfaceAddrs(); err == nil {
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
				ways = append(ways, [2]string{"tcp", net.JoinHostPort(n.IP.String(), port)})
			}
		}
	}
	for _, way := range ways {
		before := reports.Load()
		if status, body := askOn(way[0], way[1]); status != http.StatusForbidden || !strings.Contains(body, "lb does not serve itself") {
			t.Errorf("lb itself by %v: got %d %s; want 403", way, status, body)
		}
		if reports.Load() == before {
			t.Errorf("lb itself by %v: got no line in the log; want one", way)
		}
		if strings.Contains(way[1], "/proc/self") { // of the other process
			continue
		}
		if got := askFromAnotherProcess(t, uint32(os.Getuid()), way[0], way[1]); !strings.HasPrefix(got, "200 ") {
			t.Errorf("another process by %v: got %s; want 200", way, got)
		}
	}
	if n := s.refused[refusedSelf].Load(); n != uint64(len(ways)) {
		t.Errorf("refusals of lb itself: got %d counted; want %d", n, len(ways))
	}
}

// hold opens n connections as the user uid, each with text sent, from one process until the test ends.
func hold(t *testing.T, uid int, n int, network, address, text string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to be two users")
	}
	asUser(t, uid, uid, func() {
		for range n {
			// The socket is of the user that this thread is; the goroutine stays on it.
			c, err := net.Dial(network, address)
			if err != nil {
				t.Errorf("attacker's connection: %v", err)
				return
			}
			io.WriteString(c, text)
			t.Cleanup(func() { c.Close() })
		}
	})
}

func TestShares_SlowCallersOfOneUserStarveNobodyElse(t *testing.T) {
	for name, text := range map[string]string{
		"that say nothing":      "",
		"with half a header":    "GET /metrics HTTP/1.1\r\nHost: localhost\r\n",
		"with half a body":      "PUT /v1/log-level HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{",
		"with a body of no use": "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nContent-Length: 10\r\n\r\n{",
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{Socket: socketPath(t), SocketMode: "0666", HTTP: "127.0.0.1:0"}
			os.Chmod(filepath.Dir(cfg.Socket), 0o755)
			s, err := NewServer(cfg, Sources{})
			if err != nil {
				t.Fatal(err)
			}
			serve(t, s)
			http := s.ends[1].listener.Addr().String()
			hold(t, 4711, 2*maxConns, "tcp", http, text)
			hold(t, 4711, 2*maxControlConns, "unix", cfg.Socket, text)
			for _, uid := range []uint32{0, 4712} {
				start := time.Now()
				for _, way := range [][2]string{{"tcp", http}, {"unix", cfg.Socket}} {
					if got := askFromAnotherProcess(t, uid, way[0], way[1]); !strings.HasPrefix(got, "200 ") {
						t.Errorf("user %d over %s: got %s; want 200", uid, way[0], got)
					}
				}
				if took := time.Since(start); took > 4*time.Second {
					t.Errorf("user %d: got answers after %v; want them soon", uid, took)
				}
			}
			if n := s.refused[refusedShare].Load(); n == 0 {
				t.Error("refusals: got none counted; want those beyond the share")
			}
		})
	}
}

func TestShares_ReserveIsRootsWhateverManyUsersDo(t *testing.T) {
	cfg := Config{Socket: socketPath(t), SocketMode: "0666"}
	os.Chmod(filepath.Dir(cfg.Socket), 0o755)
	s, err := NewServer(cfg, Sources{})
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	for uid := 4711; uid < 4716; uid++ { // with requests under way, which nothing ends before its deadline
		hold(t, uid, 60, "unix", cfg.Socket, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: localhost\r\n\r\n")
	}
	eventually.NoError(t, func() error {
		if n := s.ends[0].listener.held(); n < controlShares.total-controlShares.reserve-5*controlShares.each/2 {
			return fmt.Errorf("%d connections", n)
		}
		return nil
	})
	if got := askFromAnotherProcess(t, 0, "unix", cfg.Socket); !strings.HasPrefix(got, "200 ") {
		t.Errorf("root: got %s; want 200", got)
	}
}

// flaky is a listener whose accepts fail at first.
type flaky struct {
	net.Listener
	fail atomic.Int64
	err  error
}

func (l *flaky) Accept() (net.Conn, error) {
	if l.fail.Add(-1) >= 0 {
		return nil, &net.OpError{Op: "accept", Net: "unix", Err: os.NewSyscallError("accept4", l.err)}
	}
	return l.Listener.Accept()
}

func TestServer_GoesOnAfterEveryAcceptError(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOMEM, syscall.ENOBUFS, syscall.EPERM, syscall.EPROTO, syscall.ENOSPC, syscall.EMFILE,
		syscall.ENFILE, syscall.ECONNABORTED, syscall.EINVAL, syscall.EAGAIN, syscall.ENETDOWN, syscall.EIO} {
		inner, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		l := &flaky{Listener: inner, err: errno}
		l.fail.Store(3)
		s := &Server{done: make(chan struct{})}
		s.ServeSelf()
		var reports atomic.Int64
		s.src.Report = func(slog.Level, string, string, ...any) { reports.Add(1) }
		s.add(httpName, l, httpShares, s.mux(s.routes()))
		serve(t, s)
		if status, body := ask(t, "GET", inner.Addr().String(), "/healthz", "", ""); status != 200 {
			t.Errorf("after %v: got %d %s; want 200", errno, status, body)
		}
		if n := s.failures.http.Load(); n != 3 || reports.Load() != 3 {
			t.Errorf("%v: got %d counted, %d told; want 3", errno, n, reports.Load())
		}
	}
}
