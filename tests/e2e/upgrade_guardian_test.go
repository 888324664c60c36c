//go:build e2e

package e2e

import (
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// startGuarded starts an lb with workers, and with backends that check what they get. The load is checked,
// too.
func startGuarded(t *testing.T) (*lb, *checkedLoad) {
	t.Helper()
	load := newCheckedLoad()
	config := linesWorkers(t, 2, "")
	over := "unix:" + filepath.Join(tempDir(t), "checked")
	startCheckedBackend(t, over, load)
	config.Listeners = append(config.Listeners, lbListener{Name: "checked", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "checked"})
	config.Pools = append(config.Pools, lbPool{Name: "checked", Backends: []lbBackend{{Name: "c1", Address: over}}})
	l := startLB(t, config)
	l.waitUp(t, 2)
	load.start(t, checkedKinds, config.Listeners[len(config.Listeners)-1].Bind[0])
	return l, load
}

// wantAllExchanged ends the load, of which every exchange must have gone through.
func (d *checkedLoad) wantAllExchanged(t testing.TB) {
	t.Helper()
	d.end()
	for _, err := range d.takeWorst() {
		t.Errorf("load: %v", err)
	}
	for how := told; how <= stuck; how++ {
		if n := d.counts[how].Load(); n > 0 {
			t.Errorf("load: got %v; want all exchanges to go through", d)
			break
		}
	}
	t.Logf("load: %v", d)
}

// TestUpgrade_NewCodeThatDiesCostsNoSession has the new code end at each step in ways that no program
// survives: the code before goes on in another process, with every session, and the service manager hears of
// it.
func TestUpgrade_NewCodeThatDiesCostsNoSession(t *testing.T) {
	dir := tempDir(t)
	faulty := buildLB(t, dir, "faulty", nil, "-tags", "lbfault")
	for _, c := range []struct{ fault, want string }{
		{"start:kill", "was ended by a signal (killed)"},
		{"start:fatal", "ended with exit status 2"},
		{"takeover:segv", "before it had taken over"},
		{"takeover:exit", "ended with exit status 3"},
		{"built:kill", "was ended by a signal (killed)"},
		{"built:fatal", "ended with exit status 2"},
	} {
		t.Run(strings.ReplaceAll(c.fault, ":", "_"), func(t *testing.T) {
			manager := startNotify(t)
			t.Setenv("WATCHDOG_USEC", "400000")
			t.Setenv("LB_FAULT", c.fault)
			l, load := startGuarded(t)
			workers := l.waitUp(t, 2).pids()
			idle := dial(t, l.addr())
			defer idle.Close()
			if _, err := askOn(idle); err != nil {
				t.Fatal(err)
			}
			status, u, err := l.askUpgrade(faulty)
			if err != nil || status != http.StatusConflict || !strings.Contains(u.Error, c.want) {
				t.Fatalf("upgrade: got %d, %q, %v; want a conflict that says %q", status, u.Error, err, c.want)
			}
			l.waitExit(t, patience) // its parent hears of its end
			manager.wait(t, "MAINPID=", 1)
			manager.wait(t, "READY=1", 2)
			manager.wait(t, "WATCHDOG=1", manager.count("WATCHDOG=1")+2)
			if _, err := askOn(idle); err != nil {
				t.Errorf("idle session: %v", err)
			}
			if got := l.waitUp(t, 2).pids(); fmt.Sprint(got) != fmt.Sprint(workers) {
				t.Errorf("workers: got %v; want %v as before", got, workers)
			}
			// Another upgrade goes through, and lb ends when it is told to, with its workers.
			if status, u, err := l.askUpgrade(""); err != nil || status != http.StatusOK || manager.count(fmt.Sprintf("MAINPID=%d", u.PID)) != 1 {
				t.Errorf("upgrade afterwards: got %d, %+v, %v; want it done by the process that the service manager was told of", status, u, err)
			}
			if _, err := askOn(idle); err != nil {
				t.Errorf("idle session: %v", err)
			}
			load.wantAllExchanged(t)
			idle.Close()
			l.mustCommand(t, "stop")
			eventually(t, patience, func() error {
				if n := workerProcesses(t, l.socket); n != 0 {
					return fmt.Errorf("workers after the end: got %d; want none", n)
				}
				return nil
			})
		})
	}
}

// TestUpgrade_ASignalInTheExecIsHeardAfterIt has a signal to stop come at a moment when the new code cannot
// hear it: sessions go over, and then have their time to end.
func TestUpgrade_ASignalInTheExecIsHeardAfterIt(t *testing.T) {
	dir := tempDir(t)
	faulty := buildLB(t, dir, "faulty", nil, "-tags", "lbfault")
	for _, step := range []string{"start", "takeover", "built"} {
		t.Run(step, func(t *testing.T) {
			t.Setenv("LB_FAULT", step+":term")
			l, load := startGuarded(t)
			idle := dial(t, l.addr())
			defer idle.Close()
			if _, err := askOn(idle); err != nil {
				t.Fatal(err)
			}
			l.askUpgrade(faulty) // refused or done; the answer may not come any more
			l.waitRefused(t)
			if _, err := askOn(idle); err != nil {
				t.Errorf("session of an lb that stops: %v", err)
			}
			load.quitSoon()
			idle.Close()
			if code, _ := l.waitExit(t, patience); code != 0 {
				t.Errorf("exit code: got %d; want 0", code)
			}
		})
	}
}

// quitSoon has clients begin nothing new.
func (d *checkedLoad) quitSoon() {
	if !d.ending() {
		close(d.quit)
	}
}

// TestUpgrade_NoSignalInABurstEndsIt sends thousands while upgrades go on.
func TestUpgrade_NoSignalInABurstEndsIt(t *testing.T) {
	l, load := startGuarded(t)
	idle := dial(t, l.addr())
	defer idle.Close()
	enough, sent := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for ; ; n++ {
			select {
			case <-enough:
				sent <- n
				return
			default:
				l.cmd.Process.Signal([]syscall.Signal{syscall.SIGUSR1, syscall.SIGHUP}[n%2])
			}
		}
	}()
	for range 3 {
		l.askUpgrade("") // a reload may be under way
	}
	close(enough)
	t.Logf("%d signals", <-sent)
	l.upgrade(t, "")
	if _, err := askOn(idle); err != nil {
		t.Errorf("session: %v", err)
	}
	load.wantAllExchanged(t)
}
