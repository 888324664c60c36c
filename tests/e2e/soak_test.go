//go:build e2e && soak

package e2e

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// disturbance is something that happens to lb or its workers in the soak. None of them may cost a checked
// client anything.
type disturbance struct {
	name string
	do   func(*soak, *testing.T)
}

var disturbances = []disturbance{
	{"reload with another listener", func(s *soak, t *testing.T) { s.reload(t, s.ask(t), s.more) }},
	{"reload back", func(s *soak, t *testing.T) { s.reload(t, s.ask(t), s.config) }},
	{"reload of a broken file", func(s *soak, t *testing.T) {
		if err := os.WriteFile(s.file, []byte("[pools.tcp]\nbalance = 7\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := s.command(t, "reload"); r.code != 1 {
			t.Errorf("reload of a broken file: got exit code %d; want 1", r.code)
		}
	}},
	{"upgrade", func(s *soak, t *testing.T) { s.reload(t, s.ask(t), s.config); s.ask(t)("upgrade") }},
	{"upgrade to a script", func(s *soak, t *testing.T) {
		script := writeFile(t, tempDir(t), "lb", "#!/bin/sh\nexit 0\n", 0o755)
		if r := s.command(t, "upgrade", "--binary", script); r.code != 1 {
			t.Errorf("upgrade to a script: got exit code %d; want 1", r.code)
		}
	}},
	{"rolling restart", func(s *soak, t *testing.T) { s.ask(t)("restart", "app", "--timeout", "20s") }},
	{"scale up and down", func(s *soak, t *testing.T) { s.ask(t)("scale", "app", "+1"); s.ask(t)("scale", "app", "-1") }},
	{"weight", func(s *soak, t *testing.T) {
		s.ask(t)("weight", "tcp/tcp1", strconv.Itoa(1+s.random.IntN(200)))
	}},
	{"drain and ready", func(s *soak, t *testing.T) { s.ask(t)("drain", "unix/unix1"); s.ask(t)("ready", "unix/unix1") }},
	{"kill -9 of a worker", func(s *soak, t *testing.T) { s.signalWorker(t, syscall.SIGKILL) }},
	{"a worker stopped for a while", func(s *soak, t *testing.T) {
		pid := s.signalWorker(t, syscall.SIGSTOP)
		time.Sleep(time.Second) // it stands still for so long
		syscall.Kill(pid, syscall.SIGCONT)
	}},
	{"lb stopped for a while", func(s *soak, t *testing.T) {
		s.signal(t, syscall.SIGSTOP)
		time.Sleep(time.Duration(200+s.random.IntN(2500)) * time.Millisecond) // it stands still for so long
		s.signal(t, syscall.SIGCONT)
	}},
	{"a cleaner removes the workers' sockets", func(s *soak, t *testing.T) {
		names, _ := filepath.Glob(filepath.Join(filepath.Dir(s.socket), "workers", "app", "*.sock"))
		for _, name := range names {
			os.Remove(name)
		}
	}},
	{"SIGUSR1 after a logrotate", func(s *soak, t *testing.T) {
		os.Rename(s.files["log"], s.files["log"]+".1")
		os.Rename(s.files["access"], s.files["access"]+".1")
		s.signal(t, syscall.SIGUSR1)
	}},
	{"1000 connections without a byte", func(s *soak, t *testing.T) { s.connections(t, 1000, false) }},
	{"300 resets", func(s *soak, t *testing.T) { s.connections(t, 300, true) }},
}

// soak is a long run under load with disturbances.
type soak struct {
	*checkedRig
	random *rand.Rand
	counts map[string]int
}

// TestSoak holds a byte-checking load for SOAK (5m if it is not set) while everything that operators and
// kernels do happens to lb. No exchange may fail, memory and descriptors must stay. Then lb is killed again
// and again, and must serve again at once.
func TestSoak(t *testing.T) {
	length := 5 * time.Minute
	if text := os.Getenv("SOAK"); text != "" {
		var err error
		if length, err = time.ParseDuration(text); err != nil {
			t.Fatalf("SOAK: %v", err)
		}
	}
	seed := uint64(time.Now().UnixNano())
	if text := os.Getenv("SOAK_SEED"); text != "" {
		seed, _ = strconv.ParseUint(text, 10, 64)
	}
	t.Logf("SOAK=%v SOAK_SEED=%d", length, seed)
	s := &soak{checkedRig: startCheckedRig(t), random: rand.New(rand.NewPCG(seed, 1)), counts: map[string]int{}}
	var done, failed atomic.Int64 // requests to workers, which are killed and stopped meanwhile
	visits := startAgain(t, "requests to workers", func() error {
		if _, err := getBody(&http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true}}, s.config.Listeners[2].Bind[0]); err != nil {
			failed.Add(1)
		}
		done.Add(1)
		time.Sleep(5 * time.Millisecond) // their pace
		return nil
	})
	s.recover(t, "at the start")
	start := time.Now()
	var descriptors, memory []int
	for n := 0; time.Since(start) < length*9/10; n++ {
		d := disturbances[s.random.IntN(len(disturbances))]
		d.do(s, t)
		s.counts[d.name]++
		time.Sleep(time.Duration(s.random.IntN(800)) * time.Millisecond) // disturbances come when they come
		if n%20 == 19 {
			s.reload(t, s.ask(t), s.config)
			s.recover(t, "after "+d.name)
			s.waitUp(t, 2)
			descriptors, memory = append(descriptors, s.descriptors(t)), append(memory, s.residentKiB(t))
		}
		if failed := s.load.counts[told].Load() + s.load.counts[unheard].Load(); failed > 0 || t.Failed() {
			t.Fatalf("after %v, in the last of %v: load: %v; want no failure\n%s", time.Since(start), s.counts, s.load, s.logTail())
		}
	}
	visits.end()
	t.Logf("%v of load: %v; requests to workers that were killed and stopped: %d done, %d failed", time.Since(start).Round(time.Second), s.load, done.Load(), failed.Load())
	for _, name := range sortedKeys(s.counts) {
		t.Logf("%5d × %s", s.counts[name], name)
	}
	t.Logf("descriptors %v, resident KiB %v", descriptors, memory)
	wantFlat(t, "descriptors", descriptors, 30)
	wantFlat(t, "resident KiB", memory, 16<<10)
	s.killAgainAndAgain(t, start.Add(length))
	for _, err := range s.load.takeWorst() {
		t.Errorf("load: %v", err)
	}
	s.load.end()
	t.Logf("at the end: load: %v", s.load)
}

// killAgainAndAgain kills lb and starts it, until the end of the soak.
func (s *soak) killAgainAndAgain(t *testing.T, end time.Time) {
	kills := 0
	s.load.killed.Store(true)
	for ; time.Now().Before(end) || kills == 0; kills++ {
		s.kill()
		s.ended = true
		s.lb = s.restart(t)
		s.recover(t, fmt.Sprintf("kill %d of lb", kills+1))
		s.waitUp(t, 2)
	}
	t.Logf("%d × kill -9 of lb", kills)
}

// ask returns a function that has lb do something, which it must.
func (s *soak) ask(t *testing.T) func(...string) {
	return func(args ...string) {
		t.Helper()
		s.mustCommand(t, args...)
	}
}

// signalWorker sends a signal to one of the workers and returns its pid.
func (s *soak) signalWorker(t *testing.T, signal syscall.Signal) int {
	t.Helper()
	pids := slices.DeleteFunc(s.workers(t).pids(), func(pid int) bool { return pid <= 1 })
	if len(pids) == 0 {
		return -1 << 30 // all are between two lives: nobody has this pid
	}
	pid := pids[s.random.IntN(len(pids))]
	syscall.Kill(pid, signal)
	return pid
}

// connections opens n connections and closes them.
func (s *soak) connections(t *testing.T, n int, reset bool) {
	t.Helper()
	for range n {
		conn, err := net.DialTimeout("tcp", s.config.Listeners[s.random.IntN(2)].Bind[0], patience)
		if err != nil {
			t.Errorf("connect: %v", err)
			return
		}
		if reset {
			conn.(*net.TCPConn).SetLinger(0)
		}
		conn.Close()
	}
}

// residentKiB returns VmRSS of lb.
func (s *soak) residentKiB(t *testing.T) int {
	t.Helper()
	for line := range strings.Lines(readFile(t, fmt.Sprintf("/proc/%d/status", s.pid()))) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.Atoi(strings.Fields(rest)[0])
			return n
		}
	}
	t.Fatal("VmRSS of lb: got none; want it")
	return 0
}

// wantFlat fails the test if the later half of the values is more than slack above the earlier one.
func wantFlat(t *testing.T, what string, values []int, slack int) {
	t.Helper()
	if len(values) < 4 {
		return // a run this short shows nothing
	}
	early, late := slices.Max(values[:len(values)/2]), slices.Min(values[len(values)/2:])
	if late > early+slack {
		t.Errorf("%s: got at least %d in the later half after at most %d in the earlier one; want no growth\n%v", what, late, early, values)
	}
}

func sortedKeys(m map[string]int) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
