package supervisor

import (
	"context"
	"time"
)

// Backend is an address at which a slot's worker takes connections. It is a comparable value, the same for as
// long as the address lives: a worker that crashes hands the socket that lb bound for it to the next one.
type Backend struct {
	Pool string
	Slot int
	// Name is unique in the pool, and never used again by this lb: "SLOT.NUMBER".
	Name string
	// Address is "unix:/path" or "127.0.0.1:port".
	Address string
	// Handoff is how the worker is given accepted sockets, HandoffLB or HandoffNode; empty: it is connected
	// to at Address, where there is nothing otherwise. Front and Back are lb's and the worker's end of its
	// channel then, which the pool closes after Removed; -1 if they could not be had from a worker that ran
	// before.
	Handoff     string
	Front, Back int
}

// Hooks are the facts that flow up, and the questions that go there. Each may be nil. They are called on the
// pool's goroutine, in order, but for Beat and Output, and by Start itself for workers that it takes over;
// they must not block, and may call SetHealth and Status only.
type Hooks struct {
	// Added: there is a new address, which takes no connections yet.
	Added func(b Backend)
	// Resumed: b, of before a freeze, goes on as it stands. Nil: Added is called instead, and then Starting,
	// Ready or Offline.
	Resumed func(b Backend, s Standing)
	// Starting: a worker has been started at b, which is not ready yet.
	Starting func(b Backend, reason string)
	// Ready: b takes connections from now on.
	Ready func(b Backend, reason string)
	// TakenOver: b's worker, to which sockets were handed over by an lb that was killed, holds these, by
	// their inodes. Called after Added.
	TakenOver func(b Backend, sockets map[uint32]bool)
	// Probe hands b's worker a connection of lb's own over the hand-off channel, and returns when it has
	// taken it. Called on a goroutine of its own.
	Probe func(ctx context.Context, b Backend) error
	// Beat: b's worker sent a heartbeat. Called on the goroutine of the notify socket.
	Beat func(b Backend)
	// Offline: b takes no new connections. It keeps those that it has.
	Offline func(b Backend, reason string)
	// Removed: b is no more, and its worker has ended.
	Removed func(b Backend, reason string)
	// HandoffAddress returns where clients connect to, for a worker that is about to be started, where
	// Config.HandoffAddress is not that: its port is 0.
	HandoffAddress func() string
	// Sessions is how many connections b has now. Nil: none, ever.
	Sessions func(b Backend) int
	// Connections is how many b has had, for recycle.conns. Nil: none.
	Connections func(b Backend) uint64
	// Output takes lines that a worker wrote, and returns how many of these or of earlier ones it had to
	// drop. It is called on a goroutine of that worker, which waits for its return, and must not keep the
	// slice.
	Output func([]Line) (dropped uint64)
	// Pace notes what output cost lb, and returns how long its worker must wait if it writes more than
	// others. Nil is never.
	Pace func(cost time.Duration) (wait time.Duration)
	// Fault: lb cannot do something for the pool, and tries again: "record" (write down its workers),
	// "directory" (make what was removed from the run-time directory again), "notify socket" (read it). A nil
	// err: it works again. It may be called on another goroutine.
	Fault func(what string, err error)
	// Changed tells of every change of a worker's state.
	Changed func(Change)
}

// Change is one change of a worker's state.
type Change struct {
	Time   time.Time
	Pool   string
	Slot   int
	PID    int // 0: it has no process
	From   string
	To     string
	Reason string
}
