//go:build !lbfault

package daemon

import "time"

// takeOverTimeout bounds how long sessions stand still before the new code is given up.
const takeOverTimeout = 10 * time.Second

// fault is where a test build fails on purpose; see fault_on.go.
func fault(string) error { return nil }
