package fairness

import (
	"context"
	"sync"
	"time"

	"github.com/273ebdf9/lb/bench"
)

// meterEvery is how often a meter reads: a process that ends has spent up to that much time unseen.
const meterEvery = 100 * time.Millisecond

// meter adds up the CPU time of processes that come and go.
type meter struct {
	tree int  // the root of a tree whose descendants count; 0 is none
	root bool // the root counts too

	mu   sync.Mutex // guards the fields below
	last map[int]time.Duration
}

func newMeter() *meter { return &meter{last: make(map[int]time.Duration)} }

// add takes a process in.
func (m *meter) add(pid int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last[pid] = 0
}

// read brings the times up to date and returns their sum.
func (m *meter) read() time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.tree != 0 {
		if pids, err := bench.Tree(m.tree); err == nil { // else it is gone, and that shows elsewhere
			for _, pid := range pids {
				if _, known := m.last[pid]; !known && (m.root || pid != m.tree) {
					m.last[pid] = 0
				}
			}
		}
	}
	var sum time.Duration
	for pid, before := range m.last {
		// A process that is gone keeps what was seen last; a new one with its pid would show less.
		if cpu, err := bench.ProcessCPU(pid); err == nil && cpu > before {
			m.last[pid] = cpu
		}
		sum += m.last[pid]
	}
	return sum
}

// run reads until ctx is over.
func (m *meter) run(ctx context.Context) {
	tick := time.NewTicker(meterEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			m.read()
		case <-ctx.Done():
			return
		}
	}
}
