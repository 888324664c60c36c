package fairness

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/bench/load"
	"github.com/273ebdf9/lb/internal/leaktest"
)

// TestMain lets the test binary play the worker.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == "worker" {
		number, err := strconv.Atoi(os.Getenv("LB_WORKER_ID"))
		if err == nil {
			err = load.Serve(load.Worker{Number: number})
		}
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if len(os.Args) > 2 && os.Args[1] == "exec" {
		fmt.Println(Exec(os.Args[2:]))
		os.Exit(1)
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		fmt.Printf("this binary of tests cannot play %q\n", os.Args[1]) // and must not run the tests again
		os.Exit(2)
	}
	os.Setenv("GORACE", "atexit_sleep_ms=0")
	// The tests wait more than they work.
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		f.Value.Set("8")
	}
	os.Exit(leaktest.Run(m))
}
