//go:build e2e

package e2e

import (
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// busy is clients that ask again as soon as they have their answer.
type busy struct {
	stop    atomic.Bool
	all     sync.WaitGroup
	longest []atomic.Int64 // by client: the longest that an answer took since the last look, in ns
	failed  atomic.Pointer[error]
	asked   atomic.Int64
}

func startBusy(t testing.TB, address string, clients int) *busy {
	t.Helper()
	b := &busy{longest: make([]atomic.Int64, clients)}
	for i := range clients {
		conn := dial(t, address)
		b.all.Go(func() {
			for !b.stop.Load() {
				start := time.Now()
				if _, err := askOn(conn); err != nil {
					b.failed.Store(&err)
					return
				}
				b.asked.Add(1)
				if took := time.Since(start).Nanoseconds(); took > b.longest[i].Load() {
					b.longest[i].Store(took)
				}
			}
		})
	}
	t.Cleanup(func() { b.stop.Store(true); b.all.Wait() })
	return b
}

// look gives the longest waits of the clients since the last look.
func (b *busy) look() (waits []time.Duration) {
	for i := range b.longest {
		waits = append(waits, time.Duration(b.longest[i].Swap(0)))
	}
	return waits
}

// end ends it, and fails the test if an answer was missing.
func (b *busy) end(t testing.TB) {
	t.Helper()
	b.stop.Store(true)
	b.all.Wait()
	if err := b.failed.Load(); err != nil {
		t.Errorf("busy session: %v", *err)
	}
}

// TestUpgrade_StandstillIsShort measures for how long sessions stand still. The limit is far above what is
// measured: it is no test of the machine.
func TestUpgrade_StandstillIsShort(t *testing.T) {
	const busyClients, each, limit = 200, 7, 2 * time.Second
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	l := startLB(t, onePool(t, address))
	f := startFleet(t, l.addr(), 1)
	b := startBusy(t, l.addr(), busyClients)
	var table strings.Builder
	fmt.Fprintf(&table, "%8s %8s   %22s   %22s   %s\n", "idle", "busy", "lb: median, most", "clients: median, most", "an answer otherwise: median, most")
	open := 0
	for _, idle := range []int{0, 2000, 4000, 8000} {
		open += f.open(t, idle-open).Open - open
		eventually(t, patience, func() error {
			if c := f.count(t); c.Served != idle {
				return fmt.Errorf("idle sessions: got %+v; want %d served", c, idle)
			}
			return nil
		})
		b.look()
		time.Sleep(300 * time.Millisecond)
		usual, usualMost := quantiles(b.look())
		var told, seen []time.Duration
		for range each {
			u := l.upgrade(t, "")
			if u.Sessions != idle+busyClients {
				t.Errorf("sessions carried over: got %d; want %d", u.Sessions, idle+busyClients)
			}
			told = append(told, time.Duration(u.Standstill*float64(time.Second)))
			before := b.asked.Load()
			eventually(t, patience, func() error {
				if n := b.asked.Load() - before; n < 4*busyClients {
					return fmt.Errorf("answers after an upgrade: got %d; want the clients busy again", n)
				}
				return nil
			})
			seen = append(seen, b.look()...)
		}
		tell, tellMost := quantiles(told)
		see, seeMost := quantiles(seen)
		fmt.Fprintf(&table, "%8d %8d   %10v, %10v   %10v, %10v   %v, %v\n", idle, busyClients, tell, tellMost, see, seeMost, usual, usualMost)
		if seeMost > limit {
			t.Errorf("standstill with %d idle sessions: got %v; want less than %v", idle, seeMost, limit)
		}
	}
	t.Logf("standstill\n%s", &table)
	b.end(t)
	if c := f.ping(t); c.Served != open || c.Ended != 0 {
		t.Errorf("idle sessions afterwards: got %+v; want all %d to answer", c, open)
	}
	f.closeAll(t)
}
