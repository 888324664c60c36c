//go:build e2e

package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// askAs sends a line of its own over a connection to a taker, and returns who answered it.
func askAs(conn net.Conn, line string) (who string, err error) {
	if _, err := fmt.Fprintln(conn, line); err != nil {
		return "", err
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", err
	}
	who, echo, _ := strings.Cut(strings.TrimSpace(answer), " ")
	if echo != line {
		return "", fmt.Errorf("answer: got %q; want %q", echo, line)
	}
	return who, nil
}

// numbered is a load of new connections at a steady rate, each with a line of its own.
type numbered struct {
	all     sync.WaitGroup
	quit    chan struct{}
	began   atomic.Int64 // how many have begun
	mu      sync.Mutex
	who     map[string]string // guarded by mu: who answered each line
	failed  []error           // guarded by mu
	address string
}

func startNumbered(t testing.TB, address string, every time.Duration) *numbered {
	d := &numbered{address: address, quit: make(chan struct{}), who: map[string]string{}}
	d.all.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		for {
			select {
			case <-d.quit:
				return
			case <-tick.C:
				line := fmt.Sprintf("id-%d", d.began.Add(1))
				d.all.Go(func() { d.ask(line) })
			}
		}
	})
	t.Cleanup(d.end)
	return d
}

func (d *numbered) ask(line string) {
	conn, err := net.DialTimeout("tcp", d.address, patience)
	var who string
	if err == nil {
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(2 * patience))
		who, err = askAs(conn, line)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil {
		d.failed = append(d.failed, fmt.Errorf("%s: %w", line, err))
		return
	}
	d.who[line] = who
}

// end begins no more connections, and waits for those that have begun.
func (d *numbered) end() {
	select {
	case <-d.quit:
	default:
		close(d.quit)
	}
	d.all.Wait()
}

// waitBegun waits until the load has begun n connections in all.
func (d *numbered) waitBegun(t testing.TB, n int64) {
	t.Helper()
	eventually(t, patience, func() error {
		if got := d.began.Load(); got < n {
			return fmt.Errorf("connections begun: got %d; want %d", got, n)
		}
		return nil
	})
}

// unanswered returns the lines from the first to the last number that have no answer yet.
func (d *numbered) unanswered(first, last int64) (lines []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for n := first; n <= last; n++ {
		if line := fmt.Sprintf("id-%d", n); d.who[line] == "" {
			lines = append(lines, line)
		}
	}
	return lines
}

// failures returns what has failed so far.
func (d *numbered) failures() []error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.failed)
}

// wantEachOnce wants every connection to have been answered, and served by one worker.
func (d *numbered) wantEachOnce(t testing.TB, log string) {
	t.Helper()
	d.end()
	for _, err := range d.failed[:min(3, len(d.failed))] {
		t.Error(err)
	}
	if len(d.failed) > 0 {
		t.Errorf("connections that failed: got %d of %d; want none", len(d.failed), d.began.Load())
	}
	times := served(t, log)
	for line := range d.who {
		if times[line] != 1 {
			t.Errorf("%s: served %d times; want once", line, times[line])
		}
	}
}

// A worker that is stopped keeps what it has taken. All else goes to others, and none is served twice when it
// goes on.
func TestHandOff_AStoppedWorkerKeepsOnlyWhatItHasTaken(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		log := newLog(t)
		l := startLB(t, handoffPool(t, mode, `handoff_timeout = "300ms"`, takers(t, mode, log)+"count = 4\n"))
		w := l.waitUp(t, 4).Slots[2]
		d := startNumbered(t, l.addr(), 2*time.Millisecond)
		d.waitBegun(t, 200)
		stopProcess(t, w.PID)
		first := d.began.Load() + 1
		d.waitBegun(t, first+499)
		eventually(t, patience, func() error {
			if open := d.unanswered(first, first+499); len(open) > 0 {
				return fmt.Errorf("connections that began after the stop and have no answer: got %d, such as %v, and of all failed %v; want none", len(open), open[0], d.failures())
			}
			return nil
		})
		// by its probes, if it has more sessions than others and is given none
		l.waitHealth(t, "down", w.Backend)
		syscall.Kill(w.PID, syscall.SIGCONT)
		l.waitHealth(t, "up", w.Backend)
		before := len(served(t, log))
		eventually(t, patience, func() error {
			if n := len(served(t, log)); n < before+100 {
				return fmt.Errorf("connections served since it goes on: got %d; want 100", n-before)
			}
			return nil
		})
		d.wantEachOnce(t, log)
	})
}

// While no worker takes anything, as on a machine that has no time for them, clients wait and are not
// refused.
func TestHandOff_ClientsWaitWhileNoWorkerTakesThem(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		log := newLog(t)
		const options = "handoff_timeout = \"300ms\"\nconnect_timeout = \"1m\""
		l := startLB(t, handoffPool(t, mode, options, takers(t, mode, log)+"count = 2\n"))
		workers := l.waitUp(t, 2).Slots
		for _, w := range workers {
			stopProcess(t, w.PID)
		}
		d := &numbered{address: l.addr(), quit: make(chan struct{}), who: map[string]string{}}
		t.Cleanup(d.end)
		begin := func() {
			for range 20 {
				line := fmt.Sprintf("id-%d", d.began.Add(1))
				d.all.Go(func() { d.ask(line) })
			}
		}
		begin()
		l.waitHealth(t, "down", workers[0].Backend, workers[1].Backend)
		begin()
		eventually(t, patience, func() error {
			if got, failed := len(l.sessions(t)), d.failures(); got+len(failed) < 40 {
				return fmt.Errorf("connections that wait: got %d, and %v failed; want 40", got, failed)
			}
			return nil
		})
		for _, w := range workers {
			syscall.Kill(w.PID, syscall.SIGCONT)
		}
		d.wantEachOnce(t, log)
	})
}

// stopProcess stops a process, and returns when all of its threads stand still.
func stopProcess(t testing.TB, pid int) {
	t.Helper()
	if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
		t.Fatalf("cannot stop process %d: %v", pid, err)
	}
	eventually(t, patience, func() error {
		threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pid))
		if err != nil || len(threads) == 0 {
			t.Fatalf("threads of process %d: got none, %v; want some", pid, err)
		}
		for _, file := range threads {
			stat, _ := os.ReadFile(file)
			if _, state, _ := strings.Cut(string(stat), ") "); !strings.HasPrefix(state, "T") {
				return fmt.Errorf("a thread of the stopped process %d: got %.20q; want it stopped", pid, state)
			}
		}
		return nil
	})
}

// untaken returns how many connections lb has given to the backend's worker that it has not taken.
func (l *lb) untaken(t testing.TB, backend string) (n int) {
	t.Helper()
	var s struct {
		Pools []struct {
			Backends []struct {
				Name        string
				AcceptQueue struct{ Waiting int } `json:"accept_queue"`
			}
		}
	}
	if err := json.Unmarshal([]byte(l.mustCommand(t, "status", "--json").stdout), &s); err != nil {
		t.Fatal(err)
	}
	for _, p := range s.Pools {
		for _, b := range p.Backends {
			if b.Name == backend {
				return b.AcceptQueue.Waiting
			}
		}
	}
	t.Fatalf("status: got no backend %s; want it", backend)
	return 0
}

func TestHandOff_AKilledWorkerLosesNothingThatItHasNotTaken(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		log := newLog(t)
		l := startLB(t, handoffPool(t, mode, `handoff_timeout = "20s"`, takers(t, mode, log)+"count = 2\n"))
		w := l.waitUp(t, 2).Slots[0]
		stopProcess(t, w.PID)
		var asked sync.WaitGroup
		errs := make([]error, 16)
		for i, conn := range dialAll(t, l.addr(), len(errs)) {
			asked.Go(func() { _, errs[i] = askAs(conn, fmt.Sprintf("id-%d", i)) })
		}
		eventually(t, patience, func() error {
			if n := l.untaken(t, w.Backend); n != 8 {
				return fmt.Errorf("connections with the stopped worker: got %d; want its window of 8", n)
			}
			return nil
		})
		syscall.Kill(w.PID, syscall.SIGKILL)
		asked.Wait()
		times := served(t, log)
		for i, err := range errs {
			if n := times[fmt.Sprintf("id-%d", i)]; err != nil || n != 1 {
				t.Errorf("connection %d: got %v, served %d times; want one answer", i, err, n)
			}
		}
	})
}

// lb is not on the path of what it has handed over: it may stand still, be killed and be started again.
func TestHandOff_SessionsGoOnWithoutLB(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		l := startLB(t, handoffPool(t, mode, "", takers(t, mode, "")+"count = 2\n"))
		before := l.waitUp(t, 2)
		conns := dialAll(t, l.addr(), 20)
		askAll(t, conns)
		l.waitActive(t, 20)
		l.signal(t, syscall.SIGSTOP)
		askAll(t, conns)
		l.kill()
		l.ended = true
		askAll(t, conns)

		l = l.restart(t)
		after := l.waitUp(t, 2)
		for i := range before.Slots {
			if after.Slots[i].PID != before.Slots[i].PID {
				t.Errorf("pid of worker %d: got %d; want %d as before", i, after.Slots[i].PID, before.Slots[i].PID)
			}
		}
		for name, n := range l.waitActive(t, 20).active() {
			if n != 10 {
				t.Errorf("sessions of %s: got %d; want 10 as before", name, n)
			}
		}
		askAll(t, append(conns, dialAll(t, l.addr(), 20)...))
		for name, n := range l.waitActive(t, 40).active() {
			if n != 20 {
				t.Errorf("sessions of %s: got %d; want 20", name, n)
			}
		}
		for _, conn := range conns {
			conn.Close()
		}
		l.waitActive(t, 20)
	})
}

func TestHandOff_UpgradesUnderLoadFailNothing(t *testing.T) {
	upgrade := func(t *testing.T, mode, options string, times int) {
		log := newLog(t)
		l := startLB(t, handoffPool(t, mode, options, takers(t, mode, log)+"count = 2\n"))
		l.waitUp(t, 2)
		conns := dialAll(t, l.addr(), 20)
		d := startNumbered(t, l.addr(), 2*time.Millisecond)
		held := startAgain(t, "exchange on sessions that go on", func() error {
			for _, conn := range conns {
				if _, err := askOn(conn); err != nil {
					return err
				}
			}
			return nil
		})
		for range times {
			if u := l.upgrade(t, ""); u.Sessions < 20 {
				t.Errorf("sessions carried over: got %d; want at least 20", u.Sessions)
			}
		}
		held.wantAllGood(t)
		d.wantEachOnce(t, log)
		l.waitActive(t, 20)
	}
	eachMode(t, func(t *testing.T, mode string) {
		upgrade(t, mode, "", 20)
		t.Run("window 1", func(t *testing.T) { upgrade(t, mode, "handoff_window = 1", 5) })
	})
}
