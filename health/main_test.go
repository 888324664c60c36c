package health

import (
	"context"
	"os"
	"testing"

	"github.com/273ebdf9/lb/internal/leaktest"
)

// serveEnv makes the test binary the server of a test.
const serveEnv = "HEALTH_TEST_SERVE"

func TestMain(m *testing.M) {
	if os.Getenv(serveEnv) != "" {
		serveOnStdin()
		return
	}
	os.Exit(leaktest.Run(m))
}

// testContext is the test's context, with a way to end it earlier.
func testContext(t *testing.T) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	return ctx, cancel
}
