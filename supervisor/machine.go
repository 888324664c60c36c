package supervisor

import (
	"fmt"
	"strings"
	"time"
)

// A worker is in one state. What happens to it are events. The table below says what follows; nothing else
// changes a worker's state, and an event that the table does not have for a state changes nothing.

// state is the state of a worker, which is one process of a slot.
type state uint8

const (
	waiting  state = iota // for its time to start
	starting              // runs, and is not ready yet; its slot has no other
	joining               // runs, and is not ready yet; it shall replace the slot's worker
	proving               // ready to replace it, if it lives for a second more
	up                    // takes connections
	silent                // up, but health has it down
	draining              // takes nothing new, and finishes its connections
	stopping              // has its stop signal
	aborting              // has its SIGABRT
	killing               // has its SIGKILL
	gone                  // has ended
	numStates
)

var stateNames = [numStates]string{"waiting", "starting", "joining", "proving", "up", "silent", "draining", "stopping", "aborting", "killing", "gone"}

func (s state) String() string { return stateNames[s] }

var stateDocs = [numStates]string{
	waiting:  "no process yet: the back-off after a crash. Shown as `failed` from the fifth quick death in a row on",
	starting: "the process runs and is not ready; its slot has no other worker",
	joining:  "the process runs and is not ready; it shall replace the slot's worker, which goes on meanwhile",
	proving:  "ready to replace the slot's worker, if it lives for one second more",
	up:       "takes connections",
	silent:   "was up, and health has taken it offline: no heartbeat, or failed probes",
	draining: "takes nothing new, and finishes its connections",
	stopping: "its process group has been sent `stop_signal`; all that it has started may end in the same time",
	aborting: "its process group has been sent SIGABRT, to show where it hangs",
	killing:  "it and its process group have been sent SIGKILL",
	gone:     "has ended; what is left of its session is killed",
}

// event is what happens to a worker.
type event uint8

const (
	due       event = iota // its time to start has come
	ready                  // READY=1, or it accepts a connection
	late                   // it is not ready after start_timeout
	settled                // it lived for a second after it was ready
	down                   // health has taken it offline
	recovered              // health has it up again
	hung                   // it was silent for kill_after
	broken                 // WATCHDOG=trigger: it says itself that it is
	offline                // STOPPING=1: it says that it takes nothing new
	retire                 // it is not wanted any more: replaced, scaled away, stopped by hand, lb ends
	drained                // it has no connections left, or stop_timeout is over, or too many drain
	overdue                // it did not end in kill_timeout
	kill                   // it must end now
	exited                 // it has ended
	numEvents
)

var eventNames = [numEvents]string{"due", "ready", "late", "settled", "down", "recovered", "hung", "broken", "offline", "retire", "drained", "overdue", "kill", "exited"}

func (e event) String() string { return eventNames[e] }

var eventDocs = [numEvents]string{
	due:       "its time to start has come",
	ready:     "`READY=1`, or it accepts a connection",
	late:      "it was not ready after `start_timeout`",
	settled:   "it lived for one second after it was ready",
	down:      "health has it down",
	recovered: "health has it up again",
	hung:      "it was silent for `kill_after`",
	broken:    "`WATCHDOG=trigger`: it says itself that it is broken",
	offline:   "`STOPPING=1`: it says itself that it takes nothing new; or its socket is gone",
	retire:    "it is not wanted any more: replaced, recycled, scaled away, stopped by hand, or lb ends",
	drained:   "its last connection has ended, or `stop_timeout` is over, or more than `max_draining` drain",
	overdue:   "it did not end within `kill_timeout`, or not 10 s after SIGKILL: the kernel holds it",
	kill:      "it must end now",
	exited:    "its process has ended, or could not be started",
}

// action is one step that a transition takes.
type action uint8

const (
	doSpawn   action = iota // start the process
	doServe                 // tell that its address takes connections
	doOffline               // tell that its address takes nothing new
	doReplace               // give the slot its next worker, by the back-off
	doPromote               // it becomes the slot's worker, and the one before it retires
	doFail                  // tell the restart that it failed
	doStop                  // send stop_signal
	doAbort                 // send SIGABRT
	doKill                  // send SIGKILL to the process group
	doBury                  // clean up; the slot's own worker gets a successor, by the back-off
	numActions
)

var actionDocs = [numActions]string{
	doSpawn:   "start the process",
	doServe:   "its address takes connections",
	doOffline: "its address takes nothing new",
	doReplace: "the slot gets its next worker, by the back-off",
	doPromote: "it becomes the slot's worker; the one before it retires",
	doFail:    "the restart fails",
	doStop:    "send `stop_signal`",
	doAbort:   "send SIGABRT",
	doKill:    "SIGKILL to the process group",
	doBury:    "clean up; if it was the slot's worker, the slot gets its next one, by the back-off",
}

// rule is one line of the table.
type rule struct {
	from []state
	on   event
	to   state
	do   []action
}

var table = []rule{
	{[]state{waiting}, due, starting, []action{doSpawn}},
	{[]state{waiting}, retire, gone, []action{doBury}},
	{[]state{waiting}, kill, gone, []action{doBury}},

	{[]state{starting}, ready, up, []action{doServe}},
	{[]state{starting}, late, stopping, []action{doStop}},
	{[]state{starting}, broken, aborting, []action{doAbort}},
	{[]state{starting}, offline, draining, []action{doReplace}},
	{[]state{starting}, retire, stopping, []action{doStop}},

	{[]state{joining}, ready, proving, nil},
	{[]state{joining}, late, stopping, []action{doFail, doStop}},
	{[]state{proving}, settled, up, []action{doServe, doPromote}},
	{[]state{joining, proving}, broken, aborting, []action{doFail, doAbort}},
	{[]state{joining, proving}, offline, stopping, []action{doFail, doStop}},
	{[]state{joining, proving}, retire, stopping, []action{doFail, doStop}},
	{[]state{joining, proving}, exited, gone, []action{doFail, doBury}},
	{[]state{joining, proving}, kill, killing, []action{doFail, doKill}},

	{[]state{up}, down, silent, nil},
	{[]state{silent}, recovered, up, nil},
	{[]state{silent}, hung, aborting, []action{doOffline, doAbort}},
	{[]state{up, silent}, broken, aborting, []action{doOffline, doAbort}},
	{[]state{up, silent}, offline, draining, []action{doOffline, doReplace}},
	{[]state{up, silent}, retire, draining, []action{doOffline}},
	{[]state{up, silent}, exited, gone, []action{doOffline, doBury}},
	{[]state{up, silent}, kill, killing, []action{doOffline, doKill}},

	{[]state{draining}, drained, stopping, []action{doStop}},
	{[]state{stopping, aborting}, overdue, killing, []action{doKill}},
	{[]state{killing}, overdue, gone, []action{doBury}},
	{[]state{starting, draining, stopping, aborting}, kill, killing, []action{doKill}},
	{[]state{starting, draining, stopping, aborting, killing}, exited, gone, []action{doBury}},
}

// timers holds, for each state, the event that the clock brings, if any.
var timers = [numStates]struct {
	set   bool
	event event
	after func(c *Config, w *worker) time.Duration // 0: never
	doc   string
}{
	waiting:  {true, due, func(_ *Config, w *worker) time.Duration { return max(w.delay, 1) }, "the back-off"},
	starting: {true, late, func(c *Config, _ *worker) time.Duration { return c.StartTimeout }, "`start_timeout`"},
	joining:  {true, late, func(c *Config, _ *worker) time.Duration { return c.StartTimeout }, "`start_timeout`"},
	proving:  {true, settled, func(_ *Config, w *worker) time.Duration { return w.trial }, "1 s"},
	silent:   {true, hung, func(c *Config, _ *worker) time.Duration { return c.KillAfter }, "`kill_after`, 0 never"},
	draining: {true, drained, func(c *Config, _ *worker) time.Duration { return c.StopTimeout }, "`stop_timeout`"},
	stopping: {true, overdue, func(c *Config, _ *worker) time.Duration { return c.KillTimeout }, "`kill_timeout`"},
	aborting: {true, overdue, func(c *Config, _ *worker) time.Duration { return c.KillTimeout }, "`kill_timeout`"},
	killing:  {true, overdue, func(*Config, *worker) time.Duration { return KillPatience }, "10 s"},
}

// KillPatience is how long the kernel may take to end a process after SIGKILL; one that hangs in it, on a
// dead network disk for example, is left alone then.
const KillPatience = 10 * time.Second

// trialTime is how long a worker that is ready must live before it may replace another.
const trialTime = time.Second

// transition returns the rule for an event in a state; nil when the event changes nothing.
func transition(from state, on event) *rule {
	for i := range table {
		if table[i].on != on {
			continue
		}
		for _, s := range table[i].from {
			if s == from {
				return &table[i]
			}
		}
	}
	return nil
}

// document returns the text of docs/workers-states.md.
func document() string {
	var b strings.Builder
	b.WriteString(`# The states of a worker

<!-- Made from the table in supervisor/machine.go: go test ./supervisor -run TestDocument -update -->

A worker is one process of a slot. Each restart of a slot is another worker. This page is the whole of what can happen to
one: an event that is not listed for a state changes nothing. A slot without a worker is shown as ` + "`stopped`" + `.

## States

| state | what it is | the clock says | after |
|---|---|---|---|
`)
	for s := range numStates {
		e, after := "", ""
		if timers[s].set {
			e, after = timers[s].event.String(), timers[s].doc
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s |\n", s, stateDocs[s], e, after)
	}
	b.WriteString("\n## Events\n\n| event | what happened |\n|---|---|\n")
	for e := range numEvents {
		fmt.Fprintf(&b, "| `%s` | %s |\n", e, eventDocs[e])
	}
	b.WriteString("\n## Transitions\n\n| in | on | to | and |\n|---|---|---|---|\n")
	for s := range numStates {
		for e := range numEvents {
			r := transition(s, e)
			if r == nil {
				continue
			}
			var do []string
			for _, a := range r.do {
				do = append(do, actionDocs[a])
			}
			fmt.Fprintf(&b, "| `%s` | `%s` | `%s` | %s |\n", s, e, r.to, strings.Join(do, "; "))
		}
	}
	b.WriteString(`
## The back-off

A slot's next worker starts at once after the first death, then after 1 s, 1.5 s, 2.25 s and so on up to 30 s, each spread by
a fifth either way. A worker that was up for 30 s makes the slot forget its deaths. From the fifth death in a row on the slot
is shown as ` + "`failed`" + `; it is tried again at the cap all the same.

## A restart that fails

A worker is replaced once its successor is ready and has lived for a second; until then it goes on. So a restart whose first
successor fails, the canary of all slots or the one of ` + "`lb restart POOL/SLOT`" + `, has changed nothing, and ` + "`lb rollback`" + ` is refused
until the next restart: to go further back would take away what works. One that fails later, or that of a slot alone before, leaves
workers of something else than what last worked for all: ` + "`lb workers`" + ` counts them, and ` + "`lb rollback`" + ` takes back these, and no others.
`)
	return b.String()
}
