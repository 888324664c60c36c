package cli

import (
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestMain checks that the tests left no goroutine and no descriptor behind. This binary is also a worker of
// lb bench.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && (os.Args[1] == benchWorkerCommand || os.Args[1] == benchExecCommand) {
		// never the tests again
		os.Exit(Execute(os.Args[1:], os.Stdout, os.Stderr, Programs{}))
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		// and must not run the tests again
		fmt.Fprintf(os.Stderr, "this binary of tests cannot play %q\n", os.Args[1])
		os.Exit(2)
	}
	// The goroutine of package os/signal stays once it is there.
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGWINCH)
	signal.Stop(signals)
	goroutines, fds := runtime.NumGoroutine(), countFDs()
	code := m.Run()
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
