package proxy_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"runtime/pprof"
	"testing"
	"time"
)

// TestMain looks for goroutines and descriptors that the tests leave behind.
func TestMain(m *testing.M) {
	// Two loops sleep with their processors in hand; the tests need others, as internal/daemon arranges it.
	runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0)))
	// What the runtime opens on first use stays open: have it now.
	if ln, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		ln.Close()
	}
	goroutines, fds := runtime.NumGoroutine(), openFDs()
	code := m.Run()
	if code == 0 {
		if !within(5*time.Second, func() bool { return runtime.NumGoroutine() <= goroutines }) {
			fmt.Fprintf(os.Stderr, "goroutines left by the tests: got %d; want %d\n", runtime.NumGoroutine(), goroutines)
			pprof.Lookup("goroutine").WriteTo(os.Stderr, 1)
			code = 1
		}
		if !within(5*time.Second, func() bool { return len(openFDs()) <= len(fds) }) {
			fmt.Fprintf(os.Stderr, "descriptors left by the tests: got %v; want %v\n", openFDs(), fds)
			code = 1
		}
	}
	os.Exit(code)
}

// openFDs are this process's open descriptors, and what each is.
func openFDs() map[string]string {
	fds := map[string]string{}
	names, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		panic(err)
	}
	for _, e := range names {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil { // but for the directory itself
			fds[e.Name()] = target
		}
	}
	return fds
}

// within polls until ok says yes, at most for d.
func within(d time.Duration, ok func() bool) bool {
	for deadline := time.Now().Add(d); !ok(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			return false
		}
	}
	return true
}

// eventually is within with a failure that says what did not happen.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	if !within(10*time.Second, ok) {
		t.Fatalf("%s: still not so after 10s", what)
	}
}
