//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"
)

// upgrades is how many upgrades lb has gone through.
func (l *lb) upgrades(t testing.TB) int {
	t.Helper()
	for name, n := range l.counters(t) {
		if name == "lb_upgrades_total" {
			return int(n)
		}
	}
	t.Fatal("metrics: got no lb_upgrades_total")
	return 0
}

// TestUpgrade_LosesNoSignal sends one at every moment of an upgrade: TERM must end lb, as it always does, and
// HUP must have it read its config.
func TestUpgrade_LosesNoSignal(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	const n = 24
	for i := range n {
		// Some processes have gone through an upgrade already, which makes a difference to their signal
		// masks.
		l := startLB(t, onePool(t, address))
		if i%3 == 2 {
			l.upgrade(t, "")
		}
		l.configure(t, func() lbConfig { c := l.config; c.Pools[0].Backends[0].Options = "weight = 7"; return c }())
		done := make(chan struct{})
		go func() {
			defer close(done)
			l.askUpgrade("")
		}()
		time.Sleep(time.Duration(i) * 5 * time.Millisecond)
		if i%2 == 0 {
			l.signal(t, syscall.SIGHUP)
			<-done
			eventually(t, patience, func() error {
				if !l.running() {
					t.Fatalf("SIGHUP %d ms after the upgrade began: got %v; want lb to go on", 5*i, l.cmd.ProcessState)
				}
				if s, err := l.readStatus(t); err != nil || s.backend(t, "w1").Weight != 7 {
					return fmt.Errorf("SIGHUP %d ms after the upgrade began: got %+v, %v; want the config read", 5*i, s, err)
				}
				return nil
			})
		}
		l.signal(t, syscall.SIGTERM)
		if code, _ := l.waitExit(t, patience); code != 0 {
			t.Errorf("SIGTERM %d ms after the upgrade began: got %v; want code 0", 5*i, l.cmd.ProcessState)
		}
		<-done
	}
}

// TestUpgrade_BurstsOfSignals sends all that lb knows while it upgrades again and again: none of them kills
// it, and it ends when it is told to.
func TestUpgrade_BurstsOfSignals(t *testing.T) {
	l := startLB(t, linesWorkers(t, 2, ""))
	l.waitUp(t, 2)
	held := dial(t, l.addr())
	if _, err := askOn(held); err != nil {
		t.Fatal(err)
	}
	load := startLoad(t, l.addr(), 1)
	burst := startAgain(t, "bursts", func() error {
		for _, sig := range []os.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGTTIN, syscall.SIGTTOU, syscall.SIGUSR2, syscall.SIGHUP} {
			if err := l.cmd.Process.Signal(sig); err != nil {
				return err
			}
			time.Sleep(time.Millisecond)
		}
		time.Sleep(20 * time.Millisecond)
		return nil
	})
	time.Sleep(4 * time.Second) // of bursts
	burst.wantAllGood(t)
	load.end()
	load.wantNoError(t)
	if _, err := askOn(held); err != nil {
		t.Errorf("session that was held: %v", err)
	}
	eventually(t, patience, func() error {
		if n := l.upgrades(t); n < 3 {
			return fmt.Errorf("upgrades: got %d; want many", n)
		}
		return nil
	})
	t.Logf("%d upgrades", l.upgrades(t))
	for range 3 {
		l.signal(t, syscall.SIGUSR2)
		l.signal(t, syscall.SIGHUP)
	}
	l.signal(t, syscall.SIGTERM)
	held.Close()
	if code, _ := l.waitExit(t, patience); code != 0 {
		t.Errorf("exit code: got %d; want 0", code)
	}
	if n := workerProcesses(t, l.socket); n != 0 {
		t.Errorf("workers after the end: got %d; want none", n)
	}
}

// TestUpgrade_OneAtATime asks for changes while others are under way: each is done or refused, and what was
// there stays.
func TestUpgrade_OneAtATime(t *testing.T) {
	config := linesWorkers(t, 3, "stop_timeout = \"1s\"\n")
	l := startLB(t, config)
	l.waitUp(t, 3)
	held := dial(t, l.addr())
	if _, err := askOn(held); err != nil {
		t.Fatal(err)
	}
	load := startLoad(t, l.addr(), 1)
	ask := func(wantConflict ...string) (done int) {
		t.Helper()
		type answer struct {
			status int
			u      upgraded
			err    error
		}
		answers := make(chan answer)
		const n = 4
		for range n {
			go func() {
				status, u, err := l.askUpgrade("")
				answers <- answer{status, u, err}
			}()
		}
		for range n {
			a := <-answers
			switch {
			case a.err == nil && a.status == http.StatusOK:
				done++
			case a.err == nil && a.status == http.StatusConflict && func() bool {
				for _, want := range wantConflict {
					if strings.Contains(a.u.Error, want) {
						return true
					}
				}
				return false
			}():
			default:
				t.Errorf("upgrade beside others: got %d, %q, %v; want it done, or refused with %q", a.status, a.u.Error, a.err, wantConflict)
			}
		}
		return done
	}
	if done := ask("an upgrade is under way"); done < 1 {
		t.Errorf("four upgrades at once: got %d done; want one at least", done)
	}
	t.Run("beside a reload", func(t *testing.T) {
		reloads := startAgain(t, "reloads", func() error {
			status, text, err := l.api("POST", "/v1/reload", "{}")
			if err == nil && status != http.StatusOK && !(status == http.StatusConflict && strings.Contains(string(text), "upgrade is under way")) {
				err = fmt.Errorf("reload: got %d %s", status, text)
			}
			return err
		})
		done := 0
		for range 3 {
			done += ask("an upgrade is under way", "a reload")
		}
		reloads.wantAllGood(t)
		if done < 1 {
			t.Error("upgrades beside reloads: got none done; want some")
		}
	})
	t.Run("beside a restart of workers", func(t *testing.T) {
		before := l.waitUp(t, 3).pids()
		r := l.mustCommand(t, "restart", "app", "--no-wait")
		if status, u, err := l.askUpgrade(""); err != nil || status != http.StatusConflict || !strings.Contains(u.Error, "under way") {
			t.Errorf("upgrade in a restart: got %d, %q, %v; want it refused (%s)", status, u.Error, err, r.stdout)
		}
		eventually(t, patience, func() error {
			if s := l.workers(t); s.Restarting {
				return errors.New("the restart goes on; want its end")
			}
			return nil
		})
		after := l.waitUp(t, 3).pids()
		for i := range after {
			if after[i] == before[i] {
				t.Errorf("pids after the restart: got %v after %v; want others", after, before)
			}
		}
		l.upgrade(t, "")
	})
	load.end()
	load.wantNoError(t)
	held.Close()
}

// TestUpgrade_DuringTheStop is refused.
func TestUpgrade_DuringTheStop(t *testing.T) {
	l, conns := startStop(t, "60s", 2)
	l.upgrade(t, "")
	wantAnswers(t, conns)
	l.signal(t, syscall.SIGTERM)
	l.waitRefused(t)
	if status, u, err := l.askUpgrade(""); err == nil && (status != http.StatusConflict || !strings.Contains(u.Error, "stopping")) {
		t.Errorf("upgrade while lb stops: got %d, %q; want it refused", status, u.Error)
	}
	wantAnswers(t, conns)
	for _, c := range conns {
		c.Close()
	}
	if code, _ := l.waitExit(t, patience); code != 0 {
		t.Errorf("exit code: got %d; want 0", code)
	}
}
