package supervisor

// Why a worker has ended, in Status and as a label of metrics.
const (
	exitCrashed    = "crashed"     // by itself
	exitNotStarted = "not_started" // its command could not be run
	exitNotReady   = "not_ready"   // lb ended it: start_timeout, or it listens elsewhere
	exitHung       = "hung"        // lb ended it: kill_after
	exitBroken     = "broken"      // lb ended it: WATCHDOG=trigger
	exitStopped    = "stopped"     // lb ended it, for a deploy, say; or it asked for a successor
)

// exitReasons are all of them.
var exitReasons = [...]string{exitCrashed, exitNotStarted, exitNotReady, exitHung, exitBroken, exitStopped}

// everyExit returns how many workers of the slot have ended for each reason, also those that there was none
// of: a rate over a counter needs its beginning.
func (s *slot) everyExit() map[string]uint64 {
	all := make(map[string]uint64, len(exitReasons))
	for _, reason := range exitReasons {
		all[reason] = s.exits[reason]
	}
	return all
}

// countExit counts that w, which was in a state, has ended.
func (p *Pool) countExit(w *worker, from state) {
	s := w.slot
	if s.exits == nil {
		s.exits = map[string]uint64{}
	}
	s.exits[w.exit(from)]++
	if w.process != nil {
		s.cpu += w.process.cpu
	}
}

func (w *worker) exit(from state) string {
	switch {
	case w.fault != "":
		return w.fault
	case w.orphan:
		return exitStopped
	}
	switch from {
	case starting, joining, proving, up, silent:
	default:
		return exitStopped
	}
	if w.upSince.IsZero() && (w.process == nil || w.process.status == exitCannotRun || w.process.status == exitNotFound) {
		return exitNotStarted
	}
	return exitCrashed
}
