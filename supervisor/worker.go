package supervisor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// worker is one process of a slot, from the plan to start it until it is gone. It belongs to the pool's
// goroutine, but for notes.
type worker struct {
	slot       *slot
	release    *Release
	dir        string // Release.Dir as it was followed at the start
	end        *endpoint
	backend    Backend       // of end; written before the process starts, and never again
	delay      time.Duration // in waiting
	state      state
	since      time.Time     // when it came into state
	reason     string        // why
	cause      string        // that it was made to end for, if it was at fault
	fault      string        // the same, as exits are counted
	started    time.Time     // zero: no process
	upSince    time.Time     // zero: not been up
	conns      uint64        // that its address had before it
	spread     float64       // -1..1, of recycle
	trial      time.Duration // Pool.trial
	status     string        // STATUS=
	invocation string        // INVOCATION_ID of its processes; empty: of an lb that knew none
	attempt    *attempt      // that it was started for; nil when decided
	process    *process      // nil: none
	out        *output
	// watchdog is what it was told of the interval of heartbeats; nil: not known, for it is of an lb before.
	watchdog  *time.Duration
	orphan    bool // of an lb before, and not wanted: its end is no death
	quiet     int  // looks in a row that found no connection, in draining
	announced bool // it was sent drain_signal

	timer    *time.Timer // nil: none
	deadline time.Time   // of timer
	epoch    uint64      // of state, so that a timer of another one is told apart
	halt     context.CancelFunc

	notes notes
}

func (w *worker) pid() int {
	if w.process == nil {
		return 0
	}
	return w.process.pid
}

// fire applies an event to w, by the table.
func (p *Pool) fire(w *worker, on event, reason string) {
	r := transition(w.state, on)
	if r == nil {
		return
	}
	switch on {
	case late, hung:
		if on == late {
			if where := w.elsewhere(); where != "" {
				reason += ": " + where
			}
		}
		w.cause, w.fault = reason, map[event]string{late: exitNotReady, hung: exitHung}[on]
	case broken:
		w.cause, w.fault = "broken by its own word", exitBroken
	case exited:
		if w.cause != "" { // the signal alone would be a riddle
			reason += "; it was " + w.cause
		}
	}
	from := w.state
	p.enter(w, r.to, reason)
	p.report(w, from)
	if r.to == gone && !w.started.IsZero() {
		p.countExit(w, from)
	}
	for _, a := range r.do {
		p.act(w, a, reason)
	}
}

func (p *Pool) report(w *worker, from state) {
	if p.Hooks.Changed != nil {
		p.Hooks.Changed(Change{Time: w.since, Pool: p.Name, Slot: w.slot.number, PID: w.pid(), From: from.String(), To: w.state.String(), Reason: w.reason})
	}
}

// enter puts w into a state and arms the state's timer.
func (p *Pool) enter(w *worker, to state, reason string) {
	w.stopTimer()
	if w.state != to && (w.state == starting || w.state == joining) {
		w.stopProbe()
	}
	w.state, w.since, w.reason = to, time.Now(), reason
	p.changes++
	switch to {
	case up:
		if w.upSince.IsZero() {
			w.upSince = w.since
		}
	case draining:
		p.announceDrain(w)
		w.quiet = 0
		p.boundDraining()
		p.lookSoon()
	}
	p.arm(w, 0)
}

// arm sets the timer of w's state, to what is left of its time; 0: all of it.
func (p *Pool) arm(w *worker, left time.Duration) {
	t := timers[w.state]
	if !t.set {
		return
	}
	d := t.after(&p.cfg, w)
	if d == 0 {
		return
	}
	epoch := w.epoch
	why := map[event]string{
		due: w.reason, late: fmt.Sprintf("not ready after %v (start_timeout)", d), settled: "lived for a second after it was ready",
		hung: fmt.Sprintf("down for %v (kill_after)", d), drained: fmt.Sprintf("still has connections after %v (stop_timeout)", d),
		overdue: overdueReason(w.state, d),
	}[t.event]
	if left > 0 {
		d = left
	}
	w.deadline = time.Now().Add(d)
	w.timer = time.AfterFunc(d, func() {
		p.post(func() {
			if w.epoch == epoch {
				p.fire(w, t.event, why)
			}
		})
	})
}

func overdueReason(s state, d time.Duration) string {
	if s == killing {
		return fmt.Sprintf("did not end %v after SIGKILL: the kernel holds it; lb goes on without it", d)
	}
	return fmt.Sprintf("did not end in %v (kill_timeout)", d)
}

func (w *worker) stopTimer() {
	w.epoch++
	if w.timer != nil {
		w.timer.Stop()
		w.timer = nil
	}
}

func (w *worker) stopProbe() {
	if w.halt != nil {
		w.halt()
		w.halt = nil
	}
}

// act carries out one action of a rule.
func (p *Pool) act(w *worker, a action, reason string) {
	switch a {
	case doSpawn:
		p.start(w, reason)
	case doServe:
		if p.Hooks.Ready != nil {
			p.Hooks.Ready(w.end.backend, reason)
		}
		p.served(w)
		p.forgetSoon(w)
	case doOffline:
		if p.Hooks.Offline != nil {
			p.Hooks.Offline(w.end.backend, reason)
		}
	case doReplace:
		p.replace(w, reason)
	case doPromote:
		p.promote(w)
	case doFail:
		w.decide(fmt.Errorf("worker %d (pid %d): %s", w.slot.number, w.pid(), reason))
	case doStop:
		w.signal(signalNamed(p.cfg.StopSignal), true) // a wrapper, a shell for example, does not pass it on
		w.signal(unix.SIGCONT, true)                  // a stopped process could not obey
	case doAbort:
		w.signal(unix.SIGABRT, true)
		w.signal(unix.SIGCONT, true)
	case doKill:
		w.signal(unix.SIGKILL, true)
	case doBury:
		p.bury(w, reason)
	}
}

func (w *worker) signal(sig unix.Signal, group bool) {
	if w.process != nil {
		w.process.signal(sig, group)
	}
}

// decide ends the attempt that w was started for; err is why it failed, or nil.
func (w *worker) decide(err error) {
	if w.attempt == nil {
		return
	}
	if err != nil && w.out != nil {
		w.attempt.lines = w.out.lines()
	}
	w.attempt.decided, w.attempt.err = true, err
	w.attempt = nil
}

// start starts w's process. If that fails, w counts as exited.
func (p *Pool) start(w *worker, reason string) {
	s := w.slot
	fail := func(err error) {
		p.post(func() { p.fire(w, exited, err.Error()) })
	}
	w.started = time.Now()
	watchdog := p.cfg.Watchdog
	w.watchdog = &watchdog
	s.starts++
	if w.end != nil { // of the worker before
		if reason := p.host.lost(w.end, false); reason != "" {
			p.dispose(w.end, reason)
			w.end = nil
		}
	}
	if w.end == nil {
		end, err := p.host.open(s, w.release)
		if err != nil {
			fail(err)
			return
		}
		w.end = end
		if p.Hooks.Added != nil {
			p.Hooks.Added(end.backend)
		}
	}
	w.backend = w.end.backend
	if p.Hooks.Starting != nil {
		p.Hooks.Starting(w.end.backend, reason)
	}
	if p.Hooks.Connections != nil {
		w.conns = p.Hooks.Connections(w.end.backend)
	}
	proc, err := p.host.spawn(w)
	if err != nil {
		fail(err)
		return
	}
	w.process = proc
	p.publishPIDs()
	// Recorded before it runs the command: an lb that is killed in between leaves nobody behind, as the shim
	// then ends.
	p.saveRecord()
	proc.release()
	p.attend(w)
}

// attend starts the goroutines that w's process needs, those that a freeze ended among them.
func (p *Pool) attend(w *worker) {
	ctx := p.round
	if ctx.Err() != nil { // frozen
		return
	}
	if w.process != nil && w.process.watch != nil {
		watch := w.process.watch
		p.running.Go(func() { watch(ctx) })
	}
	if out := w.out; out != nil {
		p.running.Go(func() { out.read(ctx) })
	}
	if w.process != nil && (w.state == starting || w.state == joining) {
		p.probe(w)
	}
}

// probe asks w's address until it is ready.
func (p *Pool) probe(w *worker) {
	if p.cfg.Ready != readyConnect {
		return
	}
	ctx, halt := context.WithCancel(p.round)
	w.halt = halt
	accepts := p.host.probe(w)
	p.running.Go(func() {
		err := accepts(ctx)
		switch {
		case err == nil:
			p.post(func() { p.fire(w, ready, "accepts connections") })
		case ctx.Err() == nil:
			p.post(func() { p.fire(w, late, err.Error()) })
		}
	})
}

// claimReady makes w ready on its own word, unless it has a port at which another process listens.
func (p *Pool) claimReady(w *worker, reason string) {
	if w.end == nil || w.end.port == 0 || w.process == nil || w.state != starting && w.state != joining {
		p.fire(w, ready, reason)
		return
	}
	p.running.Go(func() {
		if err := p.host.owns(w); err != nil {
			p.post(func() { p.fire(w, late, err.Error()) })
			return
		}
		p.post(func() { p.fire(w, ready, reason) })
	})
}

// bury removes w, which has ended, and plans its successor.
func (p *Pool) bury(w *worker, reason string) {
	s := w.slot
	w.decide(fmt.Errorf("worker %d: %s", s.number, reason))
	p.workers = slices.DeleteFunc(p.workers, func(x *worker) bool { return x == w })
	p.publishPIDs()
	if !w.started.IsZero() {
		s.ended(w)
	}
	if s.next == w {
		s.next = nil
	}
	again := s.current == w && s.wanted && !p.ending
	if s.current == w {
		s.current = nil
	}
	end := w.end
	w.end = nil
	if end != nil && (!again || end.fd < 0 || end.handoff != "") {
		// who takes from a channel has begun to speak on it
		p.dispose(end, reason)
		end = nil
	}
	if again { // what waits in the queue of a socket that lb bound is for the next one
		p.plan(s, p.backoff(s, w), end, reason)
	}
}

// dispose closes an address and reports that it is gone.
func (p *Pool) dispose(end *endpoint, reason string) {
	if end.handoff == "" {
		p.host.close(end)
	}
	if p.Hooks.Removed != nil {
		p.Hooks.Removed(end.backend, reason)
	}
	if end.handoff != "" { // what the worker had not taken is out of it now
		p.host.close(end)
	}
}

// SetHealth tells that health has the worker at the backend of that name up or down. A worker that stays down
// for kill_after is killed and replaced. It never blocks.
func (p *Pool) SetHealth(name string, isUp bool, reason string) {
	p.post(func() {
		for _, w := range p.workers {
			if w.end != nil && w.end.backend.Name == name {
				if isUp {
					p.fire(w, recovered, reason)
				} else {
					p.fire(w, down, reason)
				}
				return
			}
		}
	})
}
