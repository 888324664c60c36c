package logs

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"
)

// TestMain checks that the tests left no goroutine and no descriptor behind.
func TestMain(m *testing.M) {
	if os.Getenv(orphanVariable) != "" {
		logIntoNothing()
	}
	goroutines, fds := runtime.NumGoroutine(), countFDs()
	code := m.Run()
	if flag.Lookup("test.fuzz").Value.String() != "" {
		os.Exit(code) // the fuzzer has goroutines of its own
	}
	for deadline := time.Now().Add(5 * time.Second); code == 0; runtime.Gosched() {
		g, f := runtime.NumGoroutine(), countFDs()
		if g <= goroutines && f <= fds {
			break
		}
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "left behind: %d goroutines, %d descriptors\n%s", g-goroutines, f-fds, stacks[:runtime.Stack(stacks, true)])
			code = 1
		}
	}
	os.Exit(code)
}

// countFDs counts the open descriptors but the runtime's own, which stay once they are there.
func countFDs() int {
	entries, _ := os.ReadDir("/proc/self/fd")
	n := 0
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		if err == nil && target != "anon_inode:[eventpoll]" && target != "anon_inode:[eventfd]" {
			n++
		}
	}
	return n
}

// closer is a Logger or an AccessLog.
type closer interface{ Close(context.Context) error }

func closeLog(t testing.TB, c closer) {
	t.Helper()
	if err := c.Close(t.Context()); err != nil {
		t.Errorf("Close: got %v; want nil", err)
	}
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}
