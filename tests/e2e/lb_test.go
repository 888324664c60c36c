//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// lbConfig is a config file of lb. Its Options fields take lines of TOML as they are, so that a test can set
// what this file has no name for.
type lbConfig struct {
	Loops       int    // 0: 2
	StopTimeout string // "": 10s
	StateFile   string // "": none
	Proxy       string // lines of [proxy]
	Options     string // whole sections, such as "[log]\naccess = \"stdout\"\n"
	Listeners   []lbListener
	Pools       []lbPool

	NoFile  int  // RLIMIT_NOFILE of the lb process, soft and hard; 0: that of this process
	Private bool // run in a mount namespace of its own
}

type lbListener struct {
	Name    string
	Bind    []string
	Pool    string // "": Options has a split
	Options string
}

type lbPool struct {
	Name     string
	Options  string // lines of [pools.NAME]
	Health   string // lines of [pools.NAME.health]
	Backends []lbBackend
}

type lbBackend struct {
	Name    string
	Address string
	Options string // such as "weight = 300"
}

// onePool returns a config with the listener "web" on a free port and the pool "app" of backends "w1", "w2"
// and so on at the given addresses.
func onePool(t testing.TB, addresses ...string) lbConfig {
	t.Helper()
	pool := lbPool{Name: "app"}
	for i, address := range addresses {
		pool.Backends = append(pool.Backends, lbBackend{Name: "w" + strconv.Itoa(i+1), Address: address})
	}
	return lbConfig{
		Listeners: []lbListener{{Name: "web", Bind: []string{freePort(t, "127.0.0.1")}, Pool: pool.Name}},
		Pools:     []lbPool{pool},
	}
}

// toml writes the config as lb reads it.
func (c lbConfig) toml(adminSocket string) string {
	loops, stopTimeout := c.Loops, c.StopTimeout
	if loops == 0 {
		loops = 2
	}
	if stopTimeout == "" {
		stopTimeout = "10s"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "[proxy]\nloops = %d\nstop_timeout = %q\n%s\n", loops, stopTimeout, c.Proxy)
	fmt.Fprintf(&b, "[admin]\nsocket = %q\nhttp = \"\"\nstate_file = %q\n\n", adminSocket, c.StateFile)
	fmt.Fprintf(&b, "%s\n", c.Options)
	for _, l := range c.Listeners {
		binds := make([]string, len(l.Bind))
		for i, bind := range l.Bind {
			binds[i] = strconv.Quote(bind)
		}
		fmt.Fprintf(&b, "[listeners.%s]\nbind = [%s]\n", l.Name, strings.Join(binds, ", "))
		if l.Pool != "" {
			fmt.Fprintf(&b, "pool = %q\n", l.Pool)
		}
		fmt.Fprintf(&b, "%s\n", l.Options)
	}
	for _, p := range c.Pools {
		fmt.Fprintf(&b, "[pools.%s]\n%s\n[pools.%s.health]\n%s\n", p.Name, p.Options, p.Name, p.Health)
		for _, w := range p.Backends {
			fmt.Fprintf(&b, "[[pools.%s.backends]]\nname = %q\naddress = %q\n%s\n", p.Name, w.Name, w.Address, w.Options)
		}
	}
	return b.String()
}

// lb is a running lb.
type lb struct {
	*process
	config lbConfig
	file   string // its config file
	socket string // its admin socket
	ended  bool   // the test itself waited for its end
}

// startLB starts lb and waits until it answers on its admin socket and knows of each backend whether it is
// up. At the end of a test that has not stopped it, lb must have released every session, and must end with
// exit code 0 on SIGTERM.
func startLB(t testing.TB, config lbConfig) *lb {
	t.Helper()
	return startLBWith(t, config, func(toml string) string { return toml })
}

// startLBWith is startLB with a change of the file that config makes.
func startLBWith(t testing.TB, config lbConfig, change func(toml string) string) *lb {
	t.Helper()
	dir := tempDir(t)
	l := &lb{config: config, socket: filepath.Join(dir, "admin.sock")}
	l.file = writeFile(t, dir, "lb.toml", change(config.toml(l.socket)), 0o644)
	args := []string{lbBinary(t), "run", "-f", l.file}
	if config.NoFile > 0 {
		// The shell sets its own limit and becomes lb, which so has the pid that was started.
		limited := fmt.Sprintf(`ulimit -n %d && exec "$0" "$@"`, config.NoFile)
		args = append([]string{"/bin/sh", "-c", limited}, args...)
	}
	if config.Private {
		args = append([]string{"unshare", "-m", "--propagation", "private"}, args...)
	}
	l.process = startProcess(t, "lb", exec.Command(args[0], args[1:]...))
	l.waitStarted(t)
	t.Cleanup(func() { l.finish(t) })
	return l
}

// waitStarted waits until lb answers on its admin socket and knows of each backend whether it is up.
func (l *lb) waitStarted(t testing.TB) {
	t.Helper()
	eventually(t, patience, func() error {
		if !l.running() {
			t.Fatalf("lb: got %v at its start; want it to run\n%s", l.cmd.ProcessState, l.tail())
		}
		s, err := l.readStatus(t)
		for _, pool := range s.Pools {
			for _, b := range pool.Backends {
				if b.Health == "starting" {
					err = fmt.Errorf("health of the backend %q: got %q; want it known", b.Name, b.Health)
				}
			}
		}
		return err
	})
}

// finish is the end of an lb that the test left running.
func (l *lb) finish(t testing.TB) {
	if t.Failed() {
		return // process.end stops it
	}
	if !l.running() {
		if !l.ended {
			t.Errorf("lb: got %v; want it to run to the end of the test", l.cmd.ProcessState)
		}
		return
	}
	l.waitReleased(t)
	l.signal(t, l.stop)
	if code := l.exitCode(t, patience); code != 0 {
		t.Errorf("exit code of lb: got %d; want 0", code)
	}
}

// addr returns the first address of the first listener.
func (l *lb) addr() string { return l.config.Listeners[0].Bind[0] }

// lbStatus is what `lb status --json` prints, as far as the tests look.
type lbStatus struct {
	Batching  string
	Listeners []struct {
		Name        string
		Active      int
		Connections int
	}
	Pools []struct {
		Name     string
		Backends []backendStatus
	}
}

type backendStatus struct {
	Name        string
	Address     string
	Admin       string
	Health      string
	Weight      int
	Active      int
	Connections int
}

// backend returns the status of one backend, by name, of whichever pool.
func (s lbStatus) backend(t testing.TB, name string) backendStatus {
	t.Helper()
	for _, pool := range s.Pools {
		for _, b := range pool.Backends {
			if b.Name == name {
				return b
			}
		}
	}
	t.Fatalf("status: got no backend %q in %+v; want it", name, s)
	return backendStatus{}
}

// active returns the number of sessions by backend name.
func (s lbStatus) active() map[string]int {
	counts := make(map[string]int)
	for _, pool := range s.Pools {
		for _, b := range pool.Backends {
			counts[b.Name] = b.Active
		}
	}
	return counts
}

// total returns the number of sessions on all backends.
func (s lbStatus) total() int {
	n := 0
	for _, pool := range s.Pools {
		for _, b := range pool.Backends {
			n += b.Active
		}
	}
	return n
}

func (l *lb) readStatus(t testing.TB) (lbStatus, error) {
	var s lbStatus
	r := run(t, patience, nil, lbBinary(t), "status", "--json", "-s", l.socket)
	if r.code != 0 {
		return s, fmt.Errorf("exit code of lb status: got %d; want 0: %s", r.code, r.stderr)
	}
	if err := json.Unmarshal([]byte(r.stdout), &s); err != nil {
		return s, fmt.Errorf("cannot read the output of lb status --json: %w: %s", err, r.stdout)
	}
	return s, nil
}

// status asks lb with `lb status --json`.
func (l *lb) status(t testing.TB) lbStatus {
	t.Helper()
	s, err := l.readStatus(t)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// waitActive waits until lb has exactly n sessions.
func (l *lb) waitActive(t testing.TB, n int) lbStatus {
	t.Helper()
	var s lbStatus
	eventually(t, patience, func() error {
		s = l.status(t)
		if got := s.total(); got != n {
			return fmt.Errorf("sessions: got %d, by backend %v; want %d", got, s.active(), n)
		}
		return nil
	})
	return s
}

// waitReleased waits until no backend and no listener has a session any more.
func (l *lb) waitReleased(t testing.TB) {
	t.Helper()
	s := l.waitActive(t, 0)
	for name, n := range s.active() {
		if n != 0 {
			t.Errorf("sessions of the backend %q after all are closed: got %d; want 0", name, n)
		}
	}
	eventually(t, patience, func() error {
		for _, listener := range l.status(t).Listeners {
			if listener.Active != 0 {
				return fmt.Errorf("sessions of the listener %q: got %d; want 0", listener.Name, listener.Active)
			}
		}
		return nil
	})
}

// waitHealth waits until lb sees each of the backends in the given state; without names, all of them.
func (l *lb) waitHealth(t testing.TB, want string, names ...string) {
	t.Helper()
	if len(names) == 0 {
		for _, pool := range l.config.Pools {
			for _, b := range pool.Backends {
				names = append(names, b.Name)
			}
		}
	}
	eventually(t, patience, func() error {
		s := l.status(t)
		for _, name := range names {
			if got := s.backend(t, name).Health; got != want {
				return fmt.Errorf("health of the backend %q: got %q; want %q", name, got, want)
			}
		}
		return nil
	})
}

// waitExit waits for the end of an lb that the test has told to stop, and returns its exit code and how long
// it took.
func (l *lb) waitExit(t testing.TB, timeout time.Duration) (int, time.Duration) {
	t.Helper()
	start := time.Now()
	code := l.exitCode(t, timeout)
	l.ended = true
	return code, time.Since(start)
}
