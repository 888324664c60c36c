//go:build e2e

// Package e2e drives the built lb binary from outside, with the programs that people run behind it.
//
// Every test starts its own lb and its own backends in a temporary folder, on free loopback ports and Unix
// sockets, and stops what it started by process id. A program that is missing fails the test: install.sh
// installs them all. The tests know lb only by its command line, its config file, its sockets and its exit
// code; they never import it and never read its log.
//
//	lb_test.go         start lb with a config, ask its status, stop it
//	process_test.go    start, watch and stop any process
//	roles_test.go      this test binary run again as a backend or as many clients
//	backends_test.go   backends inside the test process
//	programs_test.go   nginx, redis, PostgreSQL, sshd, node, openssl
//
// Every other file is one subject.
package e2e

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		os.Exit(runRole(role, os.Args[1:]))
	}
	path := os.Getenv("LB_BINARY")
	if info, err := os.Stat(path); err != nil || info.IsDir() || info.Mode()&0o111 == 0 {
		fmt.Fprintf(os.Stderr, "LB_BINARY is %q, which is no program; run: make e2e\n", path)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// lbBinary returns the absolute path of the lb under test.
func lbBinary(t testing.TB) string {
	t.Helper()
	path, err := filepath.Abs(os.Getenv("LB_BINARY"))
	if err != nil {
		t.Fatalf("cannot find LB_BINARY: %v", err)
	}
	return path
}

// patience is how long a condition that should hold soon may take on a busy machine.
const patience = 20 * time.Second

// eventually polls check until it returns nil, and fails the test with its last error after timeout.
func eventually(t testing.TB, timeout time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(timeout)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("after %v: %v", timeout, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// tempDir returns a new folder with a short path, for a Unix socket's path holds at most 107 bytes, which
// every user may enter, for PostgreSQL does not run as root. It is removed at the end of the test.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lb-e2e-")
	if err != nil {
		t.Fatalf("cannot make a temporary folder: %v", err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatalf("cannot open the temporary folder %q: %v", dir, err)
	}
	return dir
}

// writeFile writes text to dir/name and returns its path.
func writeFile(t testing.TB, dir, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatalf("cannot write %q: %v", path, err)
	}
	return path
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("cannot read %q: %v", path, err)
	}
	return string(text)
}

// ports remembers which ports this test process gave away.
var ports struct {
	mu    sync.Mutex
	given map[int]bool
}

// freePort returns "host:port" with a port that nobody listens on. It stays below the range from which the
// kernel takes the local ports of outgoing connections (32768 up), so that no client occupies it before the
// server binds it.
func freePort(t testing.TB, host string) string {
	t.Helper()
	ports.mu.Lock()
	defer ports.mu.Unlock()
	if ports.given == nil {
		ports.given = make(map[int]bool)
	}
	for range 1000 {
		port := 20000 + rand.IntN(12000)
		if ports.given[port] {
			continue
		}
		address := net.JoinHostPort(host, strconv.Itoa(port))
		l, err := net.Listen("tcp", address)
		if errors.Is(err, syscall.EADDRINUSE) {
			continue
		}
		if err != nil {
			t.Fatalf("cannot listen on %q: %v", address, err)
		}
		l.Close()
		ports.given[port] = true
		return address
	}
	t.Fatalf("cannot find a free port on %q", host)
	return ""
}

// splitAddress turns an address as lb's config writes it, "unix:/path", "unix:@name" or "host:port", into the
// network and address that package net wants.
func splitAddress(address string) (network, addr string) {
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return "unix", path
	}
	return "tcp", address
}

// dial connects to an address as lb's config writes it. The connection is closed at the end of the test, if
// the test did not close it, and gives up after patience.
func dial(t testing.TB, address string) net.Conn {
	t.Helper()
	network, addr := splitAddress(address)
	conn, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		t.Fatalf("cannot connect to %q: %v", address, err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(3 * patience))
	return conn
}

// refused says whether nobody listens on address (any more).
func refused(address string) error {
	network, addr := splitAddress(address)
	conn, err := net.DialTimeout(network, addr, patience)
	if err == nil {
		conn.Close()
		return fmt.Errorf("connect to %q: got a connection; want it refused", address)
	}
	if errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return fmt.Errorf("connect to %q: got %w; want it refused", address, err)
}

// accepts says whether somebody listens on address.
func accepts(address string) error {
	network, addr := splitAddress(address)
	conn, err := net.DialTimeout(network, addr, patience)
	if err != nil {
		return fmt.Errorf("connect to %q: got %w; want a connection", address, err)
	}
	return conn.Close()
}
