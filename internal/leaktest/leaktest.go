// Package leaktest fails a test run when something that the tests started outlives them: a goroutine, a file
// descriptor or a child process. Only a TestMain uses it.
//
//	func TestMain(m *testing.M) { os.Exit(leaktest.Run(m)) }
package leaktest

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience is how long Run waits for what is already on its way to its end.
const patience = 5 * time.Second

// Run runs m's tests and returns their exit code, or 1 when they passed and left something behind. It says
// then on standard error what is left. A run that fuzzes is not checked: the fuzzer has goroutines and
// children of its own.
func Run(m *testing.M) int {
	before := look()
	code := m.Run()
	if fuzz := flag.Lookup("test.fuzz"); code != 0 || fuzz != nil && fuzz.Value.String() != "" {
		return code
	}
	if left := before.await(patience); left != "" {
		fmt.Fprintf(os.Stderr, "The tests left behind:\n%s", left)
		return 1
	}
	return 0
}

// snapshot is what the process has.
type snapshot struct {
	goroutines map[string]string // stack by number
	files      map[string]string // what each descriptor leads to
	children   map[int]string
}

func look() snapshot {
	return snapshot{goroutines: goroutines(), files: Files(), children: Children()}
}

// await waits until nothing is left that was not there before. It returns what is left after patience.
func (before snapshot) await(patience time.Duration) string {
	for deadline := time.Now().Add(patience); ; time.Sleep(time.Millisecond) {
		left := before.left(look())
		if left == "" || time.Now().After(deadline) {
			return left
		}
	}
}

// left describes what is in now and not in before.
func (before snapshot) left(now snapshot) string {
	var b strings.Builder
	for number, stack := range now.goroutines {
		if _, ok := before.goroutines[number]; !ok {
			fmt.Fprintf(&b, "%s\n\n", stack)
		}
	}
	// A descriptor's number is taken again by another file, so that only the files are compared.
	had := map[string]int{}
	for _, target := range before.files {
		had[target]++
	}
	for fd, target := range now.files {
		if had[target]--; had[target] < 0 {
			fmt.Fprintf(&b, "descriptor %s: %s\n", fd, target)
		}
	}
	for pid, state := range now.children {
		if _, ok := before.children[pid]; !ok {
			fmt.Fprintf(&b, "child process %d, state %s\n", pid, state)
		}
	}
	return b.String()
}

// goroutines returns the stacks of all goroutines but the caller's and the one of package os/signal, which
// stays.
func goroutines() map[string]string {
	buf := make([]byte, 1<<20)
	for n := runtime.Stack(buf, true); ; n = runtime.Stack(buf, true) {
		if n < len(buf) {
			buf = buf[:n]
			break
		}
		buf = make([]byte, 2*len(buf))
	}
	all := map[string]string{}
	for _, stack := range bytes.Split(buf, []byte("\n\n"))[1:] {
		s := string(stack)
		if !strings.Contains(s, "os/signal.loop(") {
			all[strings.Fields(s)[1]] = s
		}
	}
	return all
}

// Files returns the open descriptors, but for those that the runtime opens once and keeps: its epoll set, its
// eventfd, and what it reads random numbers and processors from.
func Files() map[string]string {
	all := map[string]string{}
	entries, _ := os.ReadDir("/proc/self/fd")
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		kept := []string{"anon_inode:[eventpoll]", "anon_inode:[eventfd]", "/dev/urandom"}
		if err == nil && !slices.Contains(kept, target) { // an error: it was the directory itself
			all[e.Name()] = target
		}
	}
	return all
}

// Children returns the processes whose parent is this one, zombies too, with their states.
func Children() map[int]string {
	all := map[int]string{}
	self := strconv.Itoa(os.Getpid())
	stats, _ := filepath.Glob("/proc/[0-9]*/stat")
	for _, path := range stats {
		text, err := os.ReadFile(path)
		if err != nil {
			continue
		}
		fields := strings.Fields(string(text[bytes.LastIndexByte(text, ')')+1:]))
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil && len(fields) > 1 && fields[1] == self {
			all[pid] = fields[0]
		}
	}
	return all
}
