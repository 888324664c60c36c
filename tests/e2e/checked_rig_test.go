//go:build e2e && (faults || soak)

package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// recoveryTime is by when lb must serve as before.
const recoveryTime = 2 * time.Second

// checkedRig is an lb with every kind of path: TCP and Unix backends, workers with heartbeats, files,
// listeners that come and go.
type checkedRig struct {
	*lb
	load    *checkedLoad
	clean   string   // a listener that only the test's own probes use
	more    lbConfig // the config with another listener
	files   map[string]string
	reports string // folder of strace's output
	// how long the process sleeps that each worker of "app" leaves in a session and a group of its own
	sleep string
}

func startCheckedRig(t *testing.T) *checkedRig {
	t.Helper()
	dir := tempDir(t)
	rig := &checkedRig{load: newCheckedLoad(), reports: dir, files: map[string]string{
		"log": filepath.Join(dir, "lb.log"), "access": filepath.Join(dir, "access.log"), "state": filepath.Join(dir, "state.json"),
		"new state": filepath.Join(dir, "state.json.new"), // it is written beside, and renamed
	}}
	pool := func(name string, addresses ...string) lbPool {
		p := lbPool{Name: name, Options: "queue_timeout = \"3s\"\nconnect_timeout = \"3s\"\n", Health: "type = \"connect\"\ninterval = \"300ms\"\nfall = 2\nrise = 1\n"}
		for i, address := range addresses {
			startCheckedBackend(t, address, rig.load)
			p.Backends = append(p.Backends, lbBackend{Name: fmt.Sprintf("%s%d", name, i+1), Address: address})
		}
		return p
	}
	// A service manager that hears lb, so that lb sends messages.
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(dir, "notify"), Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { manager.Close() })
	go io.Copy(io.Discard, manager)
	t.Setenv("NOTIFY_SOCKET", filepath.Join(dir, "notify"))
	rig.sleep = fmt.Sprintf("3600.%d", time.Now().UnixNano())
	unixAddress := func(name string) string { return "unix:" + filepath.Join(dir, name) }
	config := lbConfig{
		Options: fmt.Sprintf("[log]\noutput = %q\naccess = %q\n", rig.files["log"], rig.files["access"]),
		Listeners: []lbListener{
			{Name: "tcp", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "tcp"},
			{Name: "unix", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "unix"},
			{Name: "app", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "app"},
			{Name: "hand", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "hand"},
			{Name: "clean", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "tcp"},
		},
		Pools: []lbPool{
			pool("tcp", freePort(t, "127.0.0.1"), freePort(t, "127.0.0.1")),
			pool("unix", unixAddress("u1"), unixAddress("u2")),
			{Name: "app", Health: heartbeats, Options: fmt.Sprintf("[pools.app.workers]\ncommand = [\"sh\", \"-c\", %q]\n"+
				"count = 2\nready = \"notify\"\nkill_after = \"20s\"\nkill_timeout = \"1s\"\n", "setsid bash -c 'set -m; sleep "+rig.sleep+" & wait' & exec "+sampleWorker(t))},
			{Name: "hand", Health: heartbeats, Options: fmt.Sprintf("handoff = \"lb\"\n[pools.hand.workers]\ncommand = [%q]\n"+
				"count = 2\nready = \"notify\"\nkill_timeout = \"2s\"\nenv = { %s = %q }\n", self(t), roleVariable, roleChecked)},
		},
	}
	config.StateFile = rig.files["state"]
	rig.more = config
	rig.more.Listeners = append(rig.more.Listeners[:len(config.Listeners):len(config.Listeners)],
		lbListener{Name: "more", Bind: []string{freePort(t, "127.0.0.1"), unixAddress("more.sock")}, Pool: "unix"})
	rig.lb = startLB(t, config)
	rig.waitUp(t, 2)
	rig.clean = config.Listeners[4].Bind[0]
	rig.load.start(t, checkedKinds, config.Listeners[0].Bind[0], config.Listeners[1].Bind[0])
	rig.load.start(t, handedKinds, config.Listeners[3].Bind[0])
	return rig
}

// discard ends a rig that has failed, so that another one can be started.
func (rig *checkedRig) discard() {
	rig.load.end()
	rig.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-rig.done:
	case <-time.After(patience):
		rig.kill()
	}
	rig.ended = true
}

// reload changes lb's config file and has lb read it.
func (rig *checkedRig) reload(t *testing.T, ask func(...string), config lbConfig) {
	t.Helper()
	if err := os.WriteFile(rig.file, []byte(config.toml(rig.socket)), 0o644); err != nil {
		t.Fatal(err)
	}
	ask("reload")
}

// listens reports whether lb has a listener of that name.
func (rig *checkedRig) listens(t *testing.T, name string) bool {
	s, err := rig.readStatus(t)
	if err != nil {
		return false
	}
	for _, l := range s.Listeners {
		if l.Name == name {
			return true
		}
	}
	return false
}

// strays returns how many processes there are that workers of "app" have left in sessions of their own.
func (rig *checkedRig) strays() (n int) {
	want := []byte("sleep\x00" + rig.sleep + "\x00")
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, name := range lines {
		if line, err := os.ReadFile(name); err == nil && bytes.Equal(line, want) {
			n++
		}
	}
	return n
}

func (rig *checkedRig) cleanExchange() error {
	conn, err := net.DialTimeout("tcp", rig.clean, recoveryTime)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = exchangeOn(conn, 1, 100, 20_000)
	return err
}

func (rig *checkedRig) descriptors(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", rig.pid()))
	if err != nil {
		t.Fatalf("cannot count the descriptors of lb: %v", err)
	}
	return len(entries)
}

func (rig *checkedRig) describeDescriptors() string {
	dir := fmt.Sprintf("/proc/%d/fd", rig.pid())
	entries, _ := os.ReadDir(dir)
	var b strings.Builder
	for _, e := range entries {
		target, _ := os.Readlink(filepath.Join(dir, e.Name()))
		fmt.Fprintf(&b, "%s %s\n", e.Name(), target)
	}
	return b.String()
}

// logTail returns the end of lb's own log file.
func (rig *checkedRig) logTail() string {
	text, _ := os.ReadFile(rig.files["log"])
	if most := 4 << 10; len(text) > most {
		text = text[len(text)-most:]
	}
	return string(text) + rig.tail()
}

// recover fails the test unless lb soon serves as before, within recoveryTime of the fault's end.
func (rig *checkedRig) recover(t *testing.T, after string) {
	t.Helper()
	start := time.Now()
	if !rig.running() {
		t.Fatalf("%s: lb has ended: %v\n%s", after, rig.cmd.ProcessState, rig.logTail())
	}
	goodSince := 0
	for goodSince < 5 { // new connections, one after the other, that all go well
		if err := rig.cleanExchange(); err != nil {
			goodSince = 0
			if time.Since(start) > recoveryTime+3*time.Second { // the machine is shared: see the report below
				t.Fatalf("%s: exchanges %v after the fault: got %v; want them to go well\n%s", after, time.Since(start), err, rig.logTail())
			}
			continue
		}
		goodSince++
	}
	if took := time.Since(start); took > recoveryTime {
		t.Errorf("%s: new connections went well again after %v; want within %v", after, took, recoveryTime)
	}
	done := rig.load.done()
	eventually(t, patience, func() error { // the load itself goes on
		if rig.load.done() < done+20 {
			return fmt.Errorf("%s: load: got %v; want it to go on", after, rig.load)
		}
		return nil
	})
	for _, err := range rig.load.takeWorst() {
		t.Errorf("%s: %v", after, err)
	}
	eventually(t, patience, func() error { // everything is up again, restarts have their back-off
		s, err := rig.readStatus(t)
		for _, pool := range s.Pools {
			for _, b := range pool.Backends {
				if b.Health != "up" && b.Admin == "ready" {
					err = errors.Join(err, fmt.Errorf("%s: backend %s/%s: got %q; want up", after, pool.Name, b.Name, b.Health))
				}
			}
		}
		return err
	})
	eventually(t, patience, func() error { // what workers leave behind is killed with them
		if n := rig.strays(); n > 2 {
			return fmt.Errorf("%s: processes that workers left behind: got %d for 2 workers; want one for each", after, n)
		}
		return nil
	})
	if rig.listens(t, "more") { // taken away again, so that the next reload makes it anew
		rig.reload(t, func(args ...string) { rig.command(t, args...) }, rig.config)
		if rig.listens(t, "more") {
			t.Errorf("%s: listener %q after a reload without it: got it; want none", after, "more")
		}
	}
}
