package logs

import (
	"context"
	"os"
	"testing"

	"github.com/273ebdf9/lb/internal/leaktest"
)

// TestMain plays the orphan, or runs the tests and looks for what they leave behind.
func TestMain(m *testing.M) {
	if os.Getenv(orphanVariable) != "" {
		logIntoNothing()
	}
	os.Exit(leaktest.Run(m))
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
