//go:build lbfault

package daemon

import (
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// takeOverTimeout is short: tests wait for it.
const takeOverTimeout = time.Second

// fault makes this binary, which only tests build, a bad one: LB_FAULT=STEP:KIND says at which step it fails,
// and how. The steps are "check"; "start", "takeover" and "built", before the first line of a takeover,
// before it reads the state, and before its last moment. The kinds are "error", "panic", "exit", "hang", and
// what no program survives: "kill", "segv", "fatal" and "term". With "format:other" it reads no state of this
// lb's.
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
	case "kill":
		syscall.Kill(os.Getpid(), syscall.SIGKILL)
		select {}
	case "segv":
		syscall.Kill(os.Getpid(), syscall.SIGSEGV)
		select {}
	case "fatal":
		new(sync.Mutex).Unlock()
	case "term": // to itself, at a moment when it may not listen yet
		syscall.Kill(os.Getpid(), syscall.SIGTERM)
	}
	return errors.New("a fault that a test wants")
}
