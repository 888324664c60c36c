package health

import (
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain fails the run when a goroutine or a file descriptor outlives the tests.
func TestMain(m *testing.M) {
	fds := openFDs()
	code := m.Run()
	if code == 0 {
		code = checkLeaks(fds)
	}
	os.Exit(code)
}

func checkLeaks(fds int) int {
	deadline := time.Now().Add(2 * time.Second)
	for {
		leaked := leakedGoroutines()
		// The runtime's own epoll set and eventfd come with the first socket.
		if len(leaked) == 0 && openFDs() <= fds+2 {
			return 0
		}
		if time.Now().After(deadline) {
			fmt.Fprintf(os.Stderr, "leaked: %d fds (%d at start), goroutines:\n%s\n", openFDs(), fds, strings.Join(leaked, "\n\n"))
			return 1
		}
		time.Sleep(time.Millisecond) // goroutines that have been told to end are on their way
	}
}

// leakedGoroutines are the ones that run code of this module, but for the caller's.
func leakedGoroutines() []string {
	buf := make([]byte, 1<<20)
	stacks := strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n")
	var leaked []string
	for _, s := range stacks[1:] {
		if strings.Contains(s, "273ebdf9/lb/") || strings.Contains(s, "net/http.") {
			leaked = append(leaked, s)
		}
	}
	return leaked
}

func openFDs() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(entries)
}
