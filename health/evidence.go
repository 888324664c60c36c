package health

import (
	"fmt"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// evidence counts the signs of life of one backend and decides its health. It does no I/O, reads no clock,
// and has no lock: its watch guards it.
//
// A change of health needs a run of equal results: rise successes, or fall failures. Three things decide
// alone: the first result of all (fresh), an agent's word, and a run of failed connects of clients (passive).
type evidence struct {
	health backends.HealthState
	reason string // why health last changed
	silent bool   // down, and only because heartbeats were missed or connections not accepted
	blind  bool   // the last probe saw no more than a connect
	short  bool   // the last probe could not be made, as lb was out of something

	successes, failures int

	fresh    bool // nothing has decided since the start, or since maint
	awaiting bool // the worker said that it starts or stops; only its word ends that
	paused   bool // the admin state is maint
	passive  bool // taken down by failed connects of clients
	mute     bool // its worker was ready, and has sent no heartbeat since

	begun bool // it has had a schedule, here or in another process, that goes on

	agentDown  bool                // the last health word of the agent was not "up"
	agentAdmin backends.AdminState // what the agent set; ready if nothing

	// epoch changes whenever a probe under way looks at something that is no longer so. Its result is
	// dropped.
	epoch uint64
	next  time.Time // when the next probe or miss is due; zero when nothing is

	last     time.Time
	duration time.Duration
	outcome  Outcome
	said     string
}

// begin starts the schedule, or goes on with it; spread is how long a probe that is due may wait, so that
// many do not come at once.
func (e *evidence) begin(p *plan, now time.Time, spread time.Duration) {
	switch {
	case !e.begun:
		e.begun, e.fresh = true, true
	case e.awaiting || e.next.IsZero() || p.Type == typeNotify:
		// A heartbeat has its whole interval again: what came in between is read first.
	case e.next.After(now):
		// Go on in step, unless the wall clock was set meanwhile.
		e.next = earlier(e.next, now.Add(p.longest()))
		return
	case p.Type == typeNone:
		return // the hold is over
	}
	e.schedule(p, now, spread)
}

// schedule sets when something is due next, where the time that was set does not hold any more.
func (e *evidence) schedule(p *plan, now time.Time, first time.Duration) {
	e.next = time.Time{}
	switch {
	case e.awaiting:
	case p.Type == typeNotify:
		e.next = now.Add(p.Interval)
	case p.Type != typeNone:
		e.next = now.Add(first)
	case e.health == backends.HealthDown:
		e.next = now.Add(p.PassiveHold)
	case e.health == backends.HealthStarting:
		e.to(backends.HealthUp, "not probed")
	}
}

// replan goes on under a new plan: states and counts stay, and what is due comes no later than the new
// intervals say.
func (e *evidence) replan(old, p *plan, now time.Time) {
	if old.Type != p.Type {
		e.epoch++
		e.agentDown = false
		e.schedule(p, now, 0)
		return
	}
	switch {
	case e.next.IsZero():
	case p.Type == typeNotify:
		e.next = now.Add(p.Interval)
	case p.Type == typeNone:
		e.next = earlier(e.next, now.Add(p.PassiveHold))
	default:
		e.next = earlier(e.next, now.Add(e.interval(p)))
	}
}

// due does what is due at now, with the backend in that admin state. It reports whether to probe it.
func (e *evidence) due(p *plan, now time.Time, admin backends.AdminState) (probe bool) {
	if e.next.IsZero() || now.Before(e.next) {
		return false
	}
	if p.Type == typeNone {
		e.next, e.passive = time.Time{}, false
		e.to(backends.HealthUp, fmt.Sprintf("was down for %v", p.PassiveHold))
		return false
	}
	resumed := e.observe(admin)
	switch {
	case e.paused && !(p.Type == typeAgent && e.agentAdmin == backends.AdminMaint):
		e.next = now.Add(p.Interval) // to see whether it still is
		return false
	case p.Type != typeNotify: // in maint too, if the agent asked for it: it is the one that can end it
		return true
	case resumed:
		e.next = now.Add(p.Interval)
	case now.Sub(e.next) > standstill:
		// The heartbeats that came meanwhile were not read yet.
		e.note(now, 0, Inconclusive, stoodStill(now.Sub(e.next)))
		e.next = now.Add(p.Interval)
	default:
		e.miss(p, now)
	}
	return false
}

// observe pauses the counting in maint, and starts from the beginning after that: what was seen before means
// nothing any more. It reports whether it started from the beginning.
func (e *evidence) observe(admin backends.AdminState) (resumed bool) {
	switch was := e.paused; {
	case admin == backends.AdminMaint:
		e.paused = true
		e.successes, e.failures = 0, 0
	case was:
		e.paused, e.fresh = false, true
		e.epoch++
		return true
	}
	return false
}

// adminChanged observes a new admin state at once, which due would see later.
func (e *evidence) adminChanged(p *plan, now time.Time, admin backends.AdminState) {
	if p.Type != typeNone && e.observe(admin) {
		e.schedule(p, now, 0)
	}
}

// miss counts an interval without a heartbeat. The absence of a sign never decides alone.
func (e *evidence) miss(p *plan, now time.Time) {
	e.next = now.Add(p.Interval)
	if e.health == backends.HealthStarting {
		return // it has not said that it is ready
	}
	e.fresh = false
	e.failures++
	silent := time.Duration(e.failures) * p.Interval
	e.note(now, 0, Failure, fmt.Sprintf("no heartbeat for %v", silent))
	if e.successes = 0; e.failures >= p.Fall && e.health == backends.HealthUp {
		e.to(backends.HealthDown, e.said)
		e.silent = true
	}
}

// beat counts one heartbeat.
func (e *evidence) beat(p *plan, now time.Time, admin backends.AdminState) {
	e.mute = false // of whatever type: a reload may ask for heartbeats later
	if p.Type != typeNotify || e.awaiting {
		return
	}
	e.observe(admin)
	e.next = now.Add(p.Interval)
	e.result(p, now, 0, result{outcome: Success, reason: "heartbeat"}, false)
}

// probed counts the result of a probe that started at start, and schedules the next. final decides without a
// run.
func (e *evidence) probed(p *plan, start, now time.Time, found result, final bool, jitter func(time.Duration) time.Duration) {
	e.result(p, start, now.Sub(start), found, final)
	next := start.Add(jitter(e.interval(p)))
	if next.Before(now) {
		next = now
	}
	e.next = next
}

// result counts one result, and decides.
func (e *evidence) result(p *plan, at time.Time, took time.Duration, found result, final bool) {
	e.note(at, took, found.outcome, found.reason)
	e.blind, e.short = found.blind, found.shortage
	if e.paused {
		return
	}
	switch found.outcome {
	case Success:
		e.failures = 0
		e.successes++
		// A backend that clients could not reach is not up because its agent says so.
		if e.successes >= p.Rise || e.fresh || final && !e.passive {
			e.passive = false
			e.to(backends.HealthUp, inARow(found.reason, e.successes))
		}
		e.fresh = false
	case Failure:
		e.successes = 0
		e.failures++
		switch {
		case found.hung && e.failures >= p.Fall: // to be busy never decides alone
			if e.health != backends.HealthDown {
				e.to(backends.HealthDown, found.reason)
				e.silent = true
			}
		case found.hung:
		case e.failures >= p.Fall || e.fresh || final:
			e.to(backends.HealthDown, inARow(found.reason, e.failures))
			e.silent = false
		}
		e.fresh = false
	}
}

func inARow(reason string, n int) string {
	if n > 1 {
		return fmt.Sprintf("%s (%d in a row)", reason, n)
	}
	return reason
}

// connectFailed takes a backend down that clients cannot reach.
func (e *evidence) connectFailed(p *plan, now time.Time, why string, streak uint32) {
	reason := "connect failed: " + why
	if streak > 1 {
		reason = fmt.Sprintf("%d connects in a row failed, the last: %s", streak, why)
	}
	e.unreached(p, now, reason, false)
}

// unreached takes a backend down that was up and to which clients do not get, and schedules a probe soon.
// silent means that it only shows no sign of life.
func (e *evidence) unreached(p *plan, now time.Time, reason string, silent bool) {
	if e.awaiting || e.health != backends.HealthUp {
		return
	}
	e.passive, e.fresh = true, false
	e.successes, e.failures = 0, 0
	e.epoch++ // a probe under way may have looked before
	e.to(backends.HealthDown, reason)
	e.silent = silent
	switch {
	case p.Type == typeNone:
		e.next = now.Add(p.PassiveHold)
	case p.Type != typeNotify:
		e.next = earlier(e.next, now.Add(p.FastInterval))
	}
}

// weighAgent weighs an agent's words, as HAProxy does: a health word decides at once, whatever the counts;
// "down" stands until "up", however often the agent answers without either.
func (e *evidence) weighAgent(found result) (weighed result, final bool) {
	if found.agent == nil {
		return found, false
	}
	switch found.agent.health {
	case "up":
		e.agentDown = false
		return found, true
	case "":
		if e.agentDown {
			found.outcome = Inconclusive
			found.reason += "; its last health word was not up"
		}
		return found, false
	}
	e.agentDown = true
	found.outcome = Failure
	return found, true
}

// hold keeps the given state until the worker says otherwise.
func (e *evidence) hold(health backends.HealthState, reason string) {
	e.awaiting, e.passive, e.fresh, e.agentDown, e.silent = true, false, false, false, false
	e.successes, e.failures = 0, 0
	e.epoch++
	e.next = time.Time{}
	e.to(health, reason)
}

// ready ends a hold: the worker says that it takes connections. A first probe follows, and decides alone.
func (e *evidence) ready(p *plan, now time.Time, reason string) {
	e.awaiting, e.passive, e.agentDown, e.fresh, e.mute = false, false, false, true, true
	e.successes, e.failures = 0, 0
	e.epoch++
	e.to(backends.HealthUp, reason)
	e.schedule(p, now, 0)
}

func (e *evidence) to(health backends.HealthState, reason string) {
	if e.health != health {
		e.health, e.reason, e.silent = health, reason, false
	}
}

func (e *evidence) note(at time.Time, took time.Duration, outcome Outcome, said string) {
	e.last, e.duration, e.outcome, e.said = at, took, outcome, said
}

// interval returns the time from one probe's start to the next one's, before jitter: HAProxy's inter,
// fastinter, downinter.
func (e *evidence) interval(p *plan) time.Duration {
	switch {
	case e.fresh,
		e.health == backends.HealthUp && e.failures > 0,
		e.health != backends.HealthUp && e.successes > 0:
		return p.FastInterval
	case e.health == backends.HealthDown:
		return p.DownInterval
	}
	return p.Interval
}

func (e *evidence) status(p *plan) Status {
	sees := p.Type
	if e.blind {
		sees = typeConnect
	}
	return Status{
		Type: sees, Last: e.last, Duration: e.duration, Outcome: e.outcome, Reason: e.said, Shortage: e.short,
		Successes: e.successes, Failures: e.failures, Next: e.next,
		Awaiting: e.awaiting, Paused: e.paused, Passive: e.passive, Mute: e.mute,
	}
}

func (e *evidence) save(name string, p *plan) Saved {
	return Saved{
		Backend: name, Type: p.Type,
		Reason: e.reason, Silent: e.silent,
		Successes: e.successes, Failures: e.failures,
		Fresh: e.fresh, Awaiting: e.awaiting, Paused: e.paused, Passive: e.passive, Mute: e.mute,
		AgentDown: e.agentDown, AgentAdmin: e.agentAdmin.String(),
		// The monotonic clock means nothing to another process.
		Next: e.next.Round(0), Last: e.last.Round(0),
		Duration: e.duration, Outcome: e.outcome.String(), Said: e.said,
	}
}

// restore goes on with the counts of another process, of a backend with that health. If the type of watching
// was another, it takes what does not depend on it.
func (e *evidence) restore(s Saved, p *plan, health backends.HealthState) {
	*e = evidence{
		health: health, reason: s.Reason, silent: s.Silent && health == backends.HealthDown,
		successes: max(s.Successes, 0), failures: max(s.Failures, 0),
		fresh: s.Fresh, awaiting: s.Awaiting, paused: s.Paused, passive: s.Passive, mute: s.Mute,
		begun: true, epoch: e.epoch + 1,
		last: s.Last, duration: s.Duration, outcome: parseOutcome(s.Outcome), said: s.Said,
	}
	if admin, err := backends.ParseAdminState(s.AgentAdmin); err == nil {
		e.agentAdmin = admin
	}
	if s.Type == "" || s.Type == p.Type {
		e.agentDown, e.next = s.AgentDown, s.Next
	}
}

// earlier returns the earlier of two times; a zero one does not count.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
