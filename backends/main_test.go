package backends_test

import (
	"os"
	"testing"

	"github.com/273ebdf9/lb/internal/leaktest"
)

func TestMain(m *testing.M) {
	if address := os.Getenv(listenAs); address != "" {
		listenForParent(address)
	}
	os.Exit(leaktest.Run(m))
}
