package proxy_test

import (
	"flag"
	"os"
	"runtime"
	"testing"

	poll "github.com/273ebdf9/lb/internal/eventually"
	"github.com/273ebdf9/lb/internal/leaktest"
)

// batching is how the tests relay: most of them carry little, which no batch would be made of.
var batching = flag.String("batching", "all", "relay in batches: all, off")

// TestMain looks for goroutines and descriptors that the tests leave behind.
func TestMain(m *testing.M) {
	// Two loops sleep with their processors in hand; the tests need others, as internal/daemon arranges it.
	runtime.GOMAXPROCS(max(4, runtime.GOMAXPROCS(0)))
	flag.Parse()
	flag.Set("test.parallel", "8") // those that run beside others wait
	os.Exit(leaktest.Run(m))
}

// openFDs returns the open descriptors, and what each leads to.
func openFDs() map[string]string { return leaktest.Files() }

// eventually waits until ok returns true. It fails the test where that does not happen.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	poll.True(t, what, ok)
}
