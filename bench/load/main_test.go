package load

import (
	"fmt"
	"os"
	"testing"

	"github.com/273ebdf9/lb/internal/leaktest"
)

// TestMain lets the test binary play a worker.
func TestMain(m *testing.M) {
	if os.Getenv("LOAD_TEST_WORKER") != "" {
		if err := Serve(Worker{Number: 7, Factor: 2, Burn: os.Getenv("LOAD_TEST_WORKER") == "burn"}); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	// Built with -race, each of these workers would otherwise stay a second before it exits.
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	os.Exit(leaktest.Run(m))
}
