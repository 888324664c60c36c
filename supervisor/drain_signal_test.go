package supervisor

import (
	"bufio"
	"context"
	"fmt"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

func TestDrainSignal_IsSentOnceAtTheStartOfADrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count, c.DrainSignal, c.StopTimeout = 1, "SIGUSR2", time.Minute })
		time.Sleep(time.Second)
		old := r.pids()[0]
		r.do(func() { r.pool.Hooks.Sessions = func(b Backend) int { return map[string]int{"0.1": 1}[b.Name] } })
		if err := r.pool.Restart(context.Background(), DefaultRestartOptions()); err != nil {
			t.Fatal(err)
		}
		want := []string{fmt.Sprintf("SIGUSR2 %d", old)}
		r.do(func() {
			if !slices.Equal(r.signals, want) {
				t.Errorf("signals after the restart: got %q; want %q", r.signals, want)
			}
		})
		time.Sleep(time.Minute)
		synctest.Wait()
		want = append(want, fmt.Sprintf("SIGTERM %d", old), fmt.Sprintf("SIGCONT %d", old))
		r.do(func() {
			if !slices.Equal(r.signals, want) {
				t.Errorf("signals after stop_timeout: got %q; want %q", r.signals, want)
			}
		})
		r.stop()
	})
}

func TestDrainSignal_IsSentAheadOfAStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.DrainSignal = "USR2" })
		time.Sleep(time.Second)
		pids := r.pids()
		r.pool.AnnounceDrain()
		want := []string{fmt.Sprintf("SIGUSR2 %d", pids[0]), fmt.Sprintf("SIGUSR2 %d", pids[1])}
		r.do(func() {
			if !slices.Equal(r.signals, want) || r.states() != "up up" {
				t.Errorf("got signals %q, workers %s; want %q, both up", r.signals, r.states(), want)
			}
		})
		r.stop()
		for _, pid := range pids {
			sent := 0
			for _, s := range r.signals {
				if s == fmt.Sprintf("SIGUSR2 %d", pid) {
					sent++
				}
			}
			if sent != 1 {
				t.Errorf("SIGUSR2 to %d: got it %d times; want once", pid, sent)
			}
		}
	})
}

func TestDrainSignal_SaysWhyItIsNotSent(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRig(t, func(c *Config) { c.Count, c.DrainSignal = 1, "USR2" }, func(int, *Release) behaviour { return behaviour{unhandled: true} })
		var reasons []string
		r.do(func() {
			r.pool.Hooks.Changed = func(c Change) {
				if c.To == "draining" {
					reasons = append(reasons, c.Reason)
				}
			}
		})
		time.Sleep(time.Second)
		r.pool.AnnounceDrain()
		r.stop()
		if len(reasons) != 1 || !strings.Contains(reasons[0], `drain_signal = "USR2" was not sent: it has no handler`) {
			t.Errorf("reasons of the drain: got %q; want one that says that there is no handler", reasons)
		}
		if slices.ContainsFunc(r.signals, func(s string) bool { return strings.HasPrefix(s, "SIGUSR2") }) {
			t.Errorf("signals: got %q; want no SIGUSR2", r.signals)
		}
	})
}

func TestHandles_TellsWhetherASignalWouldEndAProcess(t *testing.T) {
	f := func(script string, want bool) {
		t.Helper()
		cmd := exec.Command("sh", "-c", script+"; echo set; read _")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		defer cmd.Wait()
		defer in.Close()
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("%s: got %q, %v; want it to run", script, line, err)
		}
		if got := handles(cmd.Process.Pid, unix.SIGUSR2); got != want {
			t.Errorf("handles, after %q: got %v; want %v", script, got, want)
		}
	}
	f("trap : USR2", true)
	f("trap '' USR2", true)
	f("trap : USR1", false)
	f(":", false)
}

// A worker that has no handler for the signal drains as without one; one that has it gets it.
func TestDrainSignal_ReachesARealProcessThatHandlesIt(t *testing.T) {
	t.Parallel()
	f := func(what string, change func(c *Config), ok func(w WorkerStatus) bool) {
		t.Helper()
		cfg := workerConfig("drains")
		cfg.Count, cfg.DrainSignal, cfg.StopTimeout = 1, "SIGUSR2", time.Minute
		change(&cfg)
		s := start(t, open(t), cfg)
		s.until("ready", allUp)
		s.pool.await(context.Background(), func() error { s.pool.Hooks.Sessions = func(Backend) int { return 1 }; return nil }, now, nil)
		if err := s.pool.Restart(background(t, time.Minute), DefaultRestartOptions()); err != nil {
			t.Fatal(err)
		}
		s.until(what, func(st *Status) bool {
			return len(st.Retired) == 1 && st.Retired[0].State == "draining" && ok(st.Retired[0])
		})
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		s.pool.Stop(ctx)
	}
	f("it heard the signal", func(*Config) {}, func(w WorkerStatus) bool { return w.Text == "draining" })
	shell := func(c *Config) { c.Command = []string{"sh", "-c", `"$0" worker & wait`, c.Command[0], "{socket}"} }
	f("it was spared", shell, func(w WorkerStatus) bool { return strings.Contains(w.Reason, "has no handler") })
}
