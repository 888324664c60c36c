//go:build lbfault

package daemon

import (
	"errors"
	"os"
	"strings"
	"time"
)

// takeOverTimeout is short: tests wait for it.
const takeOverTimeout = time.Second

// fault makes this binary, which only tests build, a bad one: LB_FAULT=STEP:KIND says at which step, "check"
// or "takeover", it fails, and how: "error", "panic", "exit" or "hang". With "format:other" it reads no state
// of this lb's.
func fault(step string) error {
	at, kind, _ := strings.Cut(os.Getenv("LB_FAULT"), ":")
	if at != step {
		return nil
	}
	switch kind {
	case "panic":
		panic("a fault that a test wants")
	case "exit":
		os.Exit(3)
	case "hang":
		time.Sleep(time.Hour)
	}
	return errors.New("a fault that a test wants")
}
