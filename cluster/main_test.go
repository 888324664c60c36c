package cluster

import (
	"os"
	"testing"

	"github.com/273ebdf9/lb/internal/leaktest"
)

func TestMain(m *testing.M) { os.Exit(leaktest.Run(m)) }
