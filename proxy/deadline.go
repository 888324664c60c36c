package proxy

import "time"

const (
	// stallAfter is how late a deadline is judged where lb, or the machine, stood still, and maxStallGrace
	// how much time the peers, and the other loops, get then.
	stallAfter    = 3 * wheelTick
	maxStallGrace = time.Second
)

// expire handles the timers that are due, after everything that has arrived by then: after lb, or the whole
// machine, stood still, the bytes that a deadline waits for may be here. Where it comes much too late, the
// others may have stood still too: no deadline is judged for as long again, up to maxStallGrace.
func (l *loop) expire(fire func(*session)) {
	switch late := l.now - l.wheel.due(); {
	case l.graceUntil == 0 && late > stallAfter && !l.takenOver:
		l.graceUntil = l.now + min(late, maxStallGrace)
	case l.now >= l.graceUntil: // judge now, however late: a loop that is always late must end sessions too
		l.graceUntil = 0
	}
	l.takenOver = false
	most := 2*l.table.used/len(l.events) + 2 // enough for every end to be heard
	for n := len(l.events); n == len(l.events) && most > 0; most-- {
		n = epollWait(l.epfd, l.events, 0)
		l.dispatchAll(n)
	}
	l.wheel.expire(l.now, fire)
}

// armIdle sets the timer to the earliest moment at which the session could have been idle for too long.
// Moving bytes does not touch the timer: when it fires, s.active tells how long the silence really was.
func (l *loop) armIdle(s *session) {
	if at := l.deadline(s); at != never {
		l.wheel.arm(s, at)
	} else {
		l.wheel.cancel(s)
	}
}

// deadline is when the session has been idle or alive for too long, if nothing moves until then.
func (l *loop) deadline(s *session) time.Duration {
	at := never
	if limit := l.idleLimit(s); limit > 0 {
		at = s.active + limit
	}
	if s.expires > 0 {
		at = min(at, s.expires)
	}
	if recheck := s.recheck(); recheck > 0 {
		at = min(at, recheck)
	}
	return at
}

// idleLimit is how long the session may be silent; 0 is for ever.
func (l *loop) idleLimit(s *session) time.Duration {
	cfg := s.pool.Config()
	limit := cfg.IdleTimeout
	if s.halfOpen {
		limit = cfg.HalfClosedTimeout
	}
	if (s.dirs[client].flags|s.dirs[backend].flags)&dirBroken != 0 || s.ends[client].flags&endFailed != 0 {
		limit = l.endLimit(s, limit)
	}
	return limit
}

// expired handles a timer that has fired.
func (l *loop) expired(s *session) {
	if l.now < l.graceUntil && !l.onlyLooks(s) {
		l.wheel.arm(s, l.graceUntil)
		return
	}
	switch s.phase {
	case phaseHeader:
		l.refuse(s, RefusedHeaderTimeout)
		return
	case phaseQueued:
		l.queueTimeout(s)
		return
	case phaseConnecting:
		l.connectTimeout(s)
		return
	case phaseHandedOff:
		l.untakenTooLong(s)
		return
	}
	if l.deadline(s) > l.now {
		l.armIdle(s)
		return
	}
	aged := s.expires > 0 && s.expires <= l.now
	if (s.dirs[client].flags|s.dirs[backend].flags)&dirQueued != 0 && !aged {
		// it has bytes, and waits for its turn
		l.wheel.arm(s, l.now+wheelTick)
		return
	}
	if recheck := s.recheck(); recheck > 0 && recheck <= l.now && !aged {
		l.look(s)
		return
	}
	if s.end != (Termination{}) { // it was about to end
		l.timedOutEnding(s)
		return
	}
	s.end = termClientIdle
	if aged {
		s.end = termAge
	} else if s.dirs[client].blocked() || s.lastFrom == client && !s.dirs[backend].blocked() {
		s.end = termBackendIdle
	}
	l.close(s, false)
}

// onlyLooks reports whether the session's timer wants it to be looked at, and judges no deadline.
func (l *loop) onlyLooks(s *session) bool {
	return s.phase == phaseRelaying && (l.deadline(s) > l.now || s.recheck() > 0 && s.recheck() <= l.now)
}
