package health

import (
	"fmt"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// record is what the signs of life of one backend have come to. It decides; it does no I/O, reads no clock, and has no
// lock: its watch guards it.
//
// A change of health needs a run of equal results: rise successes, or fall failures. Three things decide alone: the
// first result of all (fresh), an agent's word, and a run of failed connects of clients (passive).
type record struct {
	health backends.HealthState
	reason string // why health last changed
	silent bool   // down, and only because heartbeats were missed or connections not accepted
	blind  bool   // the last probe saw no more than a connect
	short  bool   // the last probe could not be made, as lb was out of something

	successes, failures int

	fresh   bool // nothing has decided since the start, or since maint
	held    bool // the worker said that it starts or stops; only its word ends that
	paused  bool // the admin state is maint
	passive bool // taken down by failed connects of clients

	begun bool // it has had a schedule, here or in another process, that goes on

	agentDown  bool                // the last health word of the agent was not "up"
	agentAdmin backends.AdminState // what the agent set; ready if nothing

	// epoch changes whenever a probe under way looks at something that is no longer so. Its result is dropped.
	epoch uint64
	next  time.Time // when the next probe or miss is due; zero when nothing is

	last     time.Time
	duration time.Duration
	outcome  Outcome
	said     string
}

// begin starts the schedule, or goes on with it; spread is how long a probe that is due may wait, so that many do not
// come at once.
func (r *record) begin(p *plan, now time.Time, spread time.Duration) {
	switch {
	case !r.begun:
		r.begun, r.fresh = true, true
	case r.held || r.next.IsZero() || p.Type == typeNotify:
		// A heartbeat has its whole interval again: what came in between is read first.
	case r.next.After(now):
		// Go on in step, unless the wall clock was set meanwhile.
		r.next = earlier(r.next, now.Add(p.longest()))
		return
	case p.Type == typeNone:
		return // the hold is over
	}
	r.schedule(p, now, spread)
}

// schedule says what comes next, for a record whose present plan is not known to be right.
func (r *record) schedule(p *plan, now time.Time, first time.Duration) {
	r.next = time.Time{}
	switch {
	case r.held:
	case p.Type == typeNotify:
		r.next = now.Add(p.Interval)
	case p.Type != typeNone:
		r.next = now.Add(first)
	case r.health == backends.HealthDown:
		r.next = now.Add(p.PassiveHold)
	case r.health == backends.HealthStarting:
		r.to(backends.HealthUp, "not probed")
	}
}

// replan goes on under a new plan: states and counts stay, and what is due comes no later than the new intervals say.
func (r *record) replan(old, p *plan, now time.Time) {
	if old.Type != p.Type {
		r.epoch++
		r.agentDown = false
		r.schedule(p, now, 0)
		return
	}
	switch {
	case r.next.IsZero():
	case p.Type == typeNotify:
		r.next = now.Add(p.Interval)
	case p.Type == typeNone:
		r.next = earlier(r.next, now.Add(p.PassiveHold))
	default:
		r.next = earlier(r.next, now.Add(r.interval(p)))
	}
}

// due does what is due at now, with the backend in that admin state, and says whether to probe it.
func (r *record) due(p *plan, now time.Time, admin backends.AdminState) (probe bool) {
	if r.next.IsZero() || now.Before(r.next) {
		return false
	}
	if p.Type == typeNone {
		r.next, r.passive = time.Time{}, false
		r.to(backends.HealthUp, fmt.Sprintf("was down for %v", p.PassiveHold))
		return false
	}
	resumed := r.observe(admin)
	switch {
	case r.paused && !(p.Type == typeAgent && r.agentAdmin == backends.AdminMaint):
		r.next = now.Add(p.Interval) // to see whether it still is
		return false
	case p.Type != typeNotify: // in maint too, if the agent asked for it: it is the one that can end it
		return true
	case resumed:
		r.next = now.Add(p.Interval)
	case now.Sub(r.next) > standstill:
		// The heartbeats that came meanwhile were not read yet.
		r.note(now, 0, Inconclusive, stoodStill(now.Sub(r.next)))
		r.next = now.Add(p.Interval)
	default:
		r.miss(p, now)
	}
	return false
}

// observe pauses the counting in maint, and starts it anew after that: what was seen before says nothing any more. It
// says whether it started anew.
func (r *record) observe(admin backends.AdminState) (resumed bool) {
	switch was := r.paused; {
	case admin == backends.AdminMaint:
		r.paused = true
		r.successes, r.failures = 0, 0
	case was:
		r.paused, r.fresh = false, true
		r.epoch++
		return true
	}
	return false
}

// adminChanged observes at once what due would see later.
func (r *record) adminChanged(p *plan, now time.Time, admin backends.AdminState) {
	if p.Type != typeNone && r.observe(admin) {
		r.schedule(p, now, 0)
	}
}

// miss counts an interval without a heartbeat. The absence of a sign never decides alone.
func (r *record) miss(p *plan, now time.Time) {
	r.next = now.Add(p.Interval)
	if r.health == backends.HealthStarting {
		return // it has not said that it is ready
	}
	r.fresh = false
	r.failures++
	silent := time.Duration(r.failures) * p.Interval
	r.note(now, 0, Failure, fmt.Sprintf("no heartbeat for %v", silent))
	if r.successes = 0; r.failures >= p.Fall && r.health == backends.HealthUp {
		r.to(backends.HealthDown, r.said)
		r.silent = true
	}
}

// beat counts a heartbeat.
func (r *record) beat(p *plan, now time.Time, admin backends.AdminState) {
	if p.Type != typeNotify || r.held {
		return
	}
	r.observe(admin)
	r.next = now.Add(p.Interval)
	r.result(p, now, 0, result{outcome: Success, reason: "heartbeat"}, false)
}

// probed takes in the result of a probe that started at start, and schedules the next. Final decides without a run.
func (r *record) probed(p *plan, start, now time.Time, found result, final bool, jitter func(time.Duration) time.Duration) {
	r.result(p, start, now.Sub(start), found, final)
	next := start.Add(jitter(r.interval(p)))
	if next.Before(now) {
		next = now
	}
	r.next = next
}

// result counts, and decides.
func (r *record) result(p *plan, at time.Time, took time.Duration, found result, final bool) {
	r.note(at, took, found.outcome, found.reason)
	r.blind, r.short = found.blind, found.shortage
	if r.paused {
		return
	}
	switch found.outcome {
	case Success:
		r.failures = 0
		r.successes++
		// What clients could not reach is not up because an agent says so.
		if r.successes >= p.Rise || r.fresh || final && !r.passive {
			r.passive = false
			r.to(backends.HealthUp, inARow(found.reason, r.successes))
		}
		r.fresh = false
	case Failure:
		r.successes = 0
		r.failures++
		switch {
		case found.hung && r.failures >= p.Fall: // to be busy never decides alone
			if r.health != backends.HealthDown {
				r.to(backends.HealthDown, found.reason)
				r.silent = true
			}
		case found.hung:
		case r.failures >= p.Fall || r.fresh || final:
			r.to(backends.HealthDown, inARow(found.reason, r.failures))
			r.silent = false
		}
		r.fresh = false
	}
}

func inARow(reason string, n int) string {
	if n > 1 {
		return fmt.Sprintf("%s (%d in a row)", reason, n)
	}
	return reason
}

// connectFailed takes an up backend down because clients cannot reach it, and has a probe look soon.
func (r *record) connectFailed(p *plan, now time.Time, why string, streak uint32) {
	if r.held || r.health != backends.HealthUp {
		return
	}
	r.passive, r.fresh = true, false
	r.successes, r.failures = 0, 0
	r.epoch++ // a probe under way may have looked before
	reason := "connect failed: " + why
	if streak > 1 {
		reason = fmt.Sprintf("%d connects in a row failed, the last: %s", streak, why)
	}
	r.to(backends.HealthDown, reason)
	switch {
	case p.Type == typeNone:
		r.next = now.Add(p.PassiveHold)
	case p.Type != typeNotify:
		r.next = earlier(r.next, now.Add(p.FastInterval))
	}
}

// heed weighs an agent's words, as HAProxy does: a health word decides at once, whatever the counts; "down" stands until
// "up", however often the agent answers without either.
func (r *record) heed(found result) (weighed result, final bool) {
	if found.agent == nil {
		return found, false
	}
	switch found.agent.health {
	case "up":
		r.agentDown = false
		return found, true
	case "":
		if r.agentDown {
			found.outcome = Inconclusive
			found.reason += "; its last health word was not up"
		}
		return found, false
	}
	r.agentDown = true
	found.outcome = Failure
	return found, true
}

// hold waits for the worker's word in the given state.
func (r *record) hold(health backends.HealthState, reason string) {
	r.held, r.passive, r.fresh, r.agentDown, r.silent = true, false, false, false, false
	r.successes, r.failures = 0, 0
	r.epoch++
	r.next = time.Time{}
	r.to(health, reason)
}

// ready ends a hold: the worker says that it takes connections. A first probe follows, and decides alone.
func (r *record) ready(p *plan, now time.Time, reason string) {
	r.held, r.passive, r.agentDown, r.fresh = false, false, false, true
	r.successes, r.failures = 0, 0
	r.epoch++
	r.to(backends.HealthUp, reason)
	r.schedule(p, now, 0)
}

func (r *record) to(health backends.HealthState, reason string) {
	if r.health != health {
		r.health, r.reason, r.silent = health, reason, false
	}
}

func (r *record) note(at time.Time, took time.Duration, outcome Outcome, said string) {
	r.last, r.duration, r.outcome, r.said = at, took, outcome, said
}

// interval is from one probe's start to the next one's, before jitter: HAProxy's inter, fastinter and downinter.
func (r *record) interval(p *plan) time.Duration {
	switch {
	case r.fresh,
		r.health == backends.HealthUp && r.failures > 0,
		r.health != backends.HealthUp && r.successes > 0:
		return p.FastInterval
	case r.health == backends.HealthDown:
		return p.DownInterval
	}
	return p.Interval
}

func (r *record) status(p *plan) Status {
	sees := p.Type
	if r.blind {
		sees = typeConnect
	}
	return Status{
		Type: sees, Last: r.last, Duration: r.duration, Outcome: r.outcome, Reason: r.said, Shortage: r.short,
		Successes: r.successes, Failures: r.failures, Next: r.next,
		Held: r.held, Paused: r.paused, Passive: r.passive,
	}
}

func (r *record) save(name string, p *plan) Saved {
	return Saved{
		Backend: name, Type: p.Type,
		Reason: r.reason, Silent: r.silent,
		Successes: r.successes, Failures: r.failures,
		Fresh: r.fresh, Held: r.held, Paused: r.paused, Passive: r.passive,
		AgentDown: r.agentDown, AgentAdmin: r.agentAdmin.String(),
		// The monotonic clock means nothing to another process.
		Next: r.next.Round(0), Last: r.last.Round(0),
		Duration: r.duration, Outcome: r.outcome.String(), Said: r.said,
	}
}

// restore takes the counts of another process up, of a backend whose health is that. Of other signs of life than those
// of now it takes what does not depend on them.
func (r *record) restore(s Saved, p *plan, health backends.HealthState) {
	*r = record{
		health: health, reason: s.Reason, silent: s.Silent && health == backends.HealthDown,
		successes: max(s.Successes, 0), failures: max(s.Failures, 0),
		fresh: s.Fresh, held: s.Held, paused: s.Paused, passive: s.Passive,
		begun: true, epoch: r.epoch + 1,
		last: s.Last, duration: s.Duration, outcome: parseOutcome(s.Outcome), said: s.Said,
	}
	if admin, err := backends.ParseAdminState(s.AgentAdmin); err == nil {
		r.agentAdmin = admin
	}
	if s.Type == "" || s.Type == p.Type {
		r.agentDown, r.next = s.AgentDown, s.Next
	}
}

// earlier is the earlier of two times, of which a zero one is none.
func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}
