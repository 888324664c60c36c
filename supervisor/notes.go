package supervisor

import (
	"sync"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/sdnotify"
)

// notes are what the worker's messages said that the pool's goroutine has not read yet. Each kind is kept
// once, so that a flood of them takes no room.
type notes struct {
	mu                       sync.Mutex
	posted                   bool
	ready, stopping, trigger bool
	status                   string
	hasStatus                bool
}

// publishPIDs gives other goroutines the pids of all workers.
func (p *Pool) publishPIDs() {
	pids := make(map[int]*worker, len(p.workers))
	for _, w := range p.workers {
		if w.process != nil {
			pids[w.process.pid] = w
		}
	}
	p.pids.Store(&pids)
}

// Has reports whether a process is a worker of the pool that has not ended, or whose end the pool has not
// heard of yet. It may be called on any goroutine.
func (p *Pool) Has(pid int) bool { return (*p.pids.Load())[pid] != nil }

// notified takes a message, on the notify socket's goroutine. A process in a worker's session speaks for it.
func (p *Pool) notified(pid int, m sdnotify.Message) bool {
	pids := *p.pids.Load()
	w := pids[pid]
	if w == nil {
		if session, err := unix.Getsid(pid); err == nil {
			w = pids[session]
		}
		if group, err := unix.Getpgid(pid); w == nil && err == nil { // an older lb gave workers no session
			w = pids[group]
		}
		if w == nil {
			return false
		}
	}
	n := &w.notes
	if m.Watchdog && p.Hooks.Beat != nil {
		p.Hooks.Beat(w.backend)
	}
	if !m.Ready && !m.Stopping && !m.Trigger && !m.HasStatus {
		return true
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.ready = n.ready || m.Ready
	n.stopping = n.stopping || m.Stopping
	n.trigger = n.trigger || m.Trigger
	if m.HasStatus {
		n.status, n.hasStatus = m.Status, true
	}
	if !n.posted {
		n.posted = p.post(func() { p.readNotes(w) })
	}
	return true
}

// readNotes applies to w what its messages said.
func (p *Pool) readNotes(w *worker) {
	n := &w.notes
	n.mu.Lock()
	isReady, stops, trigger := n.ready, n.stopping, n.trigger
	if n.hasStatus {
		w.status = n.status
	}
	n.posted, n.ready, n.stopping, n.trigger, n.hasStatus = false, false, false, false, false
	n.mu.Unlock()
	if isReady {
		p.claimReady(w, "READY=1")
	}
	if stops {
		p.fire(w, offline, "STOPPING=1")
	}
	if trigger {
		p.fire(w, broken, "WATCHDOG=trigger")
	}
}
