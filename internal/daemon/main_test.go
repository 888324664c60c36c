package daemon

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/internal/leaktest"
	"github.com/273ebdf9/lb/supervisor"
)

// TestMain is three programs: the shim of workers, a worker, and the tests.
func TestMain(m *testing.M) {
	if len(os.Args) > 2 && os.Args[1] == supervisor.ExecArg {
		supervisor.Exec(os.Args[2:])
	}
	if len(os.Args) > 1 && os.Args[1] == testWorker {
		playWorker(os.Args[2:])
		return
	}
	if len(os.Args) > 1 && !strings.HasPrefix(os.Args[1], "-") {
		// and must not run the tests again
		fmt.Fprintf(os.Stderr, "this binary of tests cannot play %q\n", os.Args[1])
		os.Exit(2)
	}
	installResolver()
	flag.Parse()
	flag.Set("test.parallel", "8") // the tests wait for workers more than they work
	os.Exit(leaktest.Run(m))
}
