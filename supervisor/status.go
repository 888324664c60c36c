package supervisor

import (
	"time"

	"github.com/273ebdf9/lb/internal/sdnotify"
)

// Status is what is known of a pool's workers. It is plain data, a copy.
type Status struct {
	Slots []SlotStatus
	// Retired are the workers that have been replaced or are not wanted any more, and have not ended.
	Retired []WorkerStatus
	// Restarting says that a restart is under way, Done of Total.
	Restarting  bool
	Done, Total int
	// Stale says that workers run that are not of the current command, environment or directory as typed.
	Stale bool
	// Strays is how many workers are of another command, environment or directory than what last worked for
	// all: a Restart failed half-way. Rollback takes them back.
	Strays int
	// CanRollback says that Rollback has something to go back to.
	CanRollback bool
	// RecordError is why a killed lb's successor would not find all workers; empty: it would.
	RecordError string
}

// SlotStatus is one slot.
type SlotStatus struct {
	WorkerStatus
	// Deaths is how many quick ones there were in a row.
	Deaths int
	// Starts is how many workers this lb has started in the slot.
	Starts uint64
	// Exits counts those that have ended, by why: "crashed", "not_started", "not_ready", "hung", "broken" or
	// "stopped". CPU is what they used.
	Exits map[string]uint64
	CPU   time.Duration
	// Next is the worker that shall replace this one; nil if there is none.
	Next *WorkerStatus
	// Last is how the slot's last worker ended; its Time is zero if none did.
	Last Exit
}

// WorkerStatus is one worker.
type WorkerStatus struct {
	Slot int
	// State is as docs/workers-states.md has it, or "failed": waiting after five quick deaths, or "stopped":
	// none runs.
	State string
	// Since is when it came into State, Reason why.
	Since  time.Time
	Reason string
	// PID is 0 for one without a process.
	PID     int
	Started time.Time
	// UpSince is when it was first ready; zero if it was not.
	UpSince time.Time
	// Text is what it says of itself, STATUS= of sd_notify.
	Text string
	// Backend is its address; the zero value if it has none.
	Backend Backend
	// Dir is the directory it runs in, links followed; empty for lb's own.
	Dir     string
	Command []string
	// Due is when a waiting one starts.
	Due time.Time
}

// Counters are what came from a pool's workers.
type Counters struct {
	Lines   uint64 // of output
	Dropped uint64 // of these, dropped because what takes them is full or too slow
	Notify  sdnotify.Counts
}

// Counters returns the numbers so far.
func (p *Pool) Counters() Counters {
	c := Counters{Lines: p.lines.Load(), Dropped: p.dropped.Load()}
	if p.receiver != nil {
		c.Notify = p.receiver.Counts()
	}
	return c
}

// Status returns the pool's workers as they were after the last event. The caller must not change it.
func (p *Pool) Status() *Status { return p.status.Load() }

// publish stores a new Status.
func (p *Pool) publish() {
	st := &Status{Stale: p.stale(), Strays: len(p.strays())}
	st.CanRollback = p.previous != nil && !p.failed || st.Strays > 0
	st.RecordError = p.faults[faultRecord]
	if p.rollout != nil {
		st.Restarting, st.Done, st.Total = true, p.rollout.done, p.rollout.total
	}
	for _, s := range p.slots {
		ss := SlotStatus{Deaths: s.deaths, Starts: s.starts, Exits: s.everyExit(), CPU: s.cpu, Last: s.last}
		ss.Slot, ss.State = s.number, "stopped"
		if w := s.current; w != nil {
			ss.WorkerStatus = w.describe()
			if w.state == waiting && s.deaths >= failedAfter {
				ss.State = "failed"
			}
		}
		if s.next != nil {
			next := s.next.describe()
			ss.Next = &next
		}
		st.Slots = append(st.Slots, ss)
	}
	for _, w := range p.workers {
		if w.slot.removed || w.slot.current != w && w.slot.next != w {
			st.Retired = append(st.Retired, w.describe())
		}
	}
	p.status.Store(st)
}

func (w *worker) describe() WorkerStatus {
	ws := WorkerStatus{
		Slot: w.slot.number, State: w.state.String(), Since: w.since, Reason: w.reason, PID: w.pid(), Started: w.started,
		UpSince: w.upSince, Text: w.status, Dir: w.dir, Command: w.release.Command,
	}
	if w.end != nil {
		ws.Backend = w.end.backend
	}
	if w.state == waiting {
		ws.Due = w.since.Add(w.delay)
	}
	return ws
}
