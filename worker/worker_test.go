package worker

import (
	"context"
	"errors"
	"fmt"
	"io"
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

	"github.com/273ebdf9/lb/internal/leaktest"
	"github.com/273ebdf9/lb/internal/sdnotify"
)

// TestMain is a worker too, for the tests that start one.
func TestMain(m *testing.M) {
	if os.Getenv("PLAY_WORKER") == "" {
		os.Exit(leaktest.Run(m))
	}
	os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid()))
	w, err := Listen(context.Background())
	if err == nil {
		server := &http.Server{Handler: http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { fmt.Fprint(rw, "hello") })}
		err = w.Serve(server.Serve, server.Shutdown)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// supervise is a supervisor's notify socket.
func supervise(t *testing.T) (path string, messages chan sdnotify.Message) {
	t.Helper()
	r, err := sdnotify.Listen(filepath.Join(t.TempDir(), "notify"), nil)
	if err != nil {
		t.Fatal(err)
	}
	messages = make(chan sdnotify.Message, 1000)
	r.Notify = func(_ int, m sdnotify.Message) bool { messages <- m; return true }
	done := make(chan struct{})
	go func() { defer close(done); r.Run() }()
	t.Cleanup(func() {
		r.Close()
		<-done
	})
	return r.Path(), messages
}

// next is the next message but heartbeats.
func next(t *testing.T, messages chan sdnotify.Message) sdnotify.Message {
	t.Helper()
	for {
		select {
		case m := <-messages:
			if m != (sdnotify.Message{Watchdog: true}) {
				return m
			}
		case <-time.After(10 * time.Second):
			t.Fatal("no message came")
		}
	}
}

func clear(t *testing.T) {
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID", "LB_WORKER_SOCKET", "NOTIFY_SOCKET"} {
		t.Setenv(name, "")
	}
}

func TestListen_WithoutSupervisorTakesTheAddress(t *testing.T) {
	clear(t)
	if _, err := Listen(context.Background()); !errors.Is(err, ErrNoAddress) {
		t.Errorf("got %v; want ErrNoAddress", err)
	}
	for _, address := range []string{"127.0.0.1:0", "unix:" + filepath.Join(t.TempDir(), "s")} {
		w, err := Listen(context.Background(), Options{Address: address})
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(w.Ready(), w.Status("fine"), w.Offline(), w.Close(), w.Close()); err != nil {
			t.Errorf("%s: %v", address, err)
		}
	}
}

func TestListen_BindsTheNamedSocketAnew(t *testing.T) {
	clear(t)
	path := filepath.Join(t.TempDir(), "s")
	stale, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	stale.Close()
	t.Setenv("LB_WORKER_SOCKET", path)
	w, err := Listen(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if got := w.Addr().String(); got != path {
		t.Errorf("got %q; want %q", got, path)
	}
}

// A program that is run by hand in a shell where another socket is named must not take that one's place.
func TestListen_LeavesASocketThatIsServed(t *testing.T) {
	f := func(network string) {
		t.Helper()
		clear(t)
		path := filepath.Join(t.TempDir(), "s")
		var served io.Closer
		var err error
		if network == "unix" {
			served, err = net.Listen(network, path)
		} else {
			served, err = net.ListenUnixgram(network, &net.UnixAddr{Name: path, Net: network})
		}
		if err != nil {
			t.Fatal(err)
		}
		defer served.Close()
		t.Setenv("LB_WORKER_SOCKET", path)
		if w, err := Listen(context.Background()); err == nil {
			w.Close()
			t.Errorf("%s: got a worker; want an error", network)
		}
		if _, err := os.Lstat(path); err != nil {
			t.Errorf("%s: the socket is gone: %v", network, err)
		}
	}
	f("unix")
	f("unixgram")
}

// A worker on descriptor 3, from its start to its end.
func TestWorker_OnInheritedSocket(t *testing.T) {
	notify, messages := supervise(t)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.UnixListener).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "PLAY_WORKER=1", "LISTEN_FDS=1", "NOTIFY_SOCKET="+notify)
	cmd.ExtraFiles = []*os.File{f}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if m := next(t, messages); !m.Ready {
		t.Errorf("got %+v; want READY=1", m)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial("unix", path) }}}
	resp, err := client.Get("http://worker/")
	if err != nil {
		t.Fatal(err)
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body.Close()
	if string(body) != "hello" {
		t.Errorf("got %q", body)
	}
	cmd.Process.Signal(syscall.SIGTERM)
	if m := next(t, messages); !m.Stopping {
		t.Errorf("got %+v; want STOPPING=1", m)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("the worker has removed the supervisor's socket: %v", err)
	}
}

func TestWorker_BeatsWhileAlive(t *testing.T) {
	clear(t)
	notify, messages := supervise(t)
	t.Setenv("NOTIFY_SOCKET", notify)
	t.Setenv("WATCHDOG_USEC", "4000")
	var dead atomic.Bool
	asked := make(chan struct{}, 1000)
	w, err := Listen(context.Background(), Options{Address: "127.0.0.1:0", Alive: func() bool { asked <- struct{}{}; return !dead.Load() }})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if os.Getenv("WATCHDOG_USEC") != "" {
		t.Error("WATCHDOG_USEC is still there, for children to misunderstand")
	}
	if err := w.Ready(); err != nil {
		t.Fatal(err)
	}
	if m := <-messages; !m.Ready {
		t.Errorf("got %+v; want READY=1 before all heartbeats", m)
	}
	for range 5 {
		if m := <-messages; !m.Watchdog {
			t.Errorf("got %+v; want WATCHDOG=1", m)
		}
	}
	dead.Store(true)
	for len(asked) > 0 {
		<-asked
	}
	for range 3 { // asked, and silent
		<-asked
	}
	for len(messages) > 0 {
		<-messages
	}
	for range 3 {
		<-asked
	}
	if len(messages) != 0 {
		t.Error("a heartbeat came of a worker that is not alive")
	}
}

func TestWorker_StopsWithItsContext(t *testing.T) {
	clear(t)
	notify, messages := supervise(t)
	t.Setenv("NOTIFY_SOCKET", notify)
	ctx, cancel := context.WithCancel(context.Background())
	w, err := Listen(ctx, Options{Address: "127.0.0.1:0", WaitReady: true})
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	server := &http.Server{}
	if err := w.Serve(server.Serve, server.Shutdown); err != nil {
		t.Error(err)
	}
	if m := next(t, messages); !m.Stopping {
		t.Errorf("got %+v; want STOPPING=1", m)
	}
}

func TestWorker_ServeTellsWhatFailed(t *testing.T) {
	clear(t)
	w, err := Listen(context.Background(), Options{Address: "127.0.0.1:0"})
	if err != nil {
		t.Fatal(err)
	}
	err = w.Serve(func(net.Listener) error { return io.ErrUnexpectedEOF }, nil)
	if !errors.Is(err, io.ErrUnexpectedEOF) || strings.Contains(err.Error(), "closed") {
		t.Errorf("got %v; want serve's error", err)
	}
}
