package proxy

// Connections that wait in a pool's queue for a slot of a backend. Nothing here runs unless max_conns is
// reached, or nobody is up and when_all_down is "queue".

import (
	"errors"

	"github.com/273ebdf9/lb/backends"
)

// waiter returns a waiter that is free. It stays in l.waiters until it is used.
func (l *loop) waiter() *backends.Waiter {
	if len(l.waiters) == 0 {
		l.waiters = append(l.waiters, &backends.Waiter{Grant: l.grant})
	}
	return l.waiters[len(l.waiters)-1]
}

// noBackend handles Acquire's answer that there is none, or none now.
func (l *loop) noBackend(s *session, w *backends.Waiter, err error) {
	switch {
	case errors.Is(err, backends.ErrQueued):
		l.waiters = l.waiters[:len(l.waiters)-1]
		s.phase = phaseQueued
		x := l.table.wait(s)
		x.waiter, x.queuedAt = w, l.now
		if errno := l.register(s, client, sessionEvents); errno != 0 {
			s.end = s.endedBy('R')
			l.close(s, true)
			return
		}
		l.wheel.arm(s, l.now+s.pool.Config().QueueTimeout)
		l.leaveIfGone(s) // what was seen of it before comes as no event again
		return
	case errors.Is(err, backends.ErrSaturated) && s.busy && l.now < s.budget+s.pool.Config().ConnectTimeout:
		l.waitForBacklog(s)
		return
	case s.short:
		s.end = s.endedBy('R')
	case errors.Is(err, backends.ErrQueueFull), errors.Is(err, backends.ErrSaturated) && len(s.tried()) == 0:
		s.end = termQueue
	default:
		s.end = termRefused
	}
	l.close(s, false)
}

// postGrant is a Waiter's Grant: it runs on whatever goroutine has freed the slot.
func (l *loop) postGrant(w *backends.Waiter, b *backends.Backend) {
	l.post(message{grant: w, slot: b})
}

// granted goes on with a session that has waited, with a slot of b. If it has ended meanwhile, the slot goes
// back.
func (l *loop) granted(w *backends.Waiter, b *backends.Backend) {
	s := l.table.find(unpackRef(w.Session))
	l.waiters = append(l.waiters, w)
	if s == nil {
		b.Pool().ReleaseUntaken(b)
		return
	}
	s.wait.waiter = nil
	s.phase = phaseConnecting
	s.queued += l.now - s.wait.queuedAt
	s.budget = l.now
	s.pool.Queue.Wait.Observe(l.now - s.wait.queuedAt)
	l.wheel.cancel(s)
	if l.take(s, b) {
		l.choose(s)
	}
}

// returnGrants gives back the slots whose grants came when the loop had ended already.
func (l *loop) returnGrants() {
	l.inbox.mu.Lock()
	msgs := l.inbox.msgs
	l.inbox.msgs = nil
	l.inbox.mu.Unlock()
	for _, m := range msgs {
		if m.grant != nil {
			m.slot.Pool().ReleaseUntaken(m.slot)
		}
	}
}

// leaveQueue ends the wait of a session that ends. If a grant is on its way, it finds nobody, and granted
// cleans up.
func (l *loop) leaveQueue(s *session) {
	s.queued += l.now - s.wait.queuedAt
	if s.pool.Leave(s.wait.waiter) {
		l.waiters = append(l.waiters, s.wait.waiter)
	}
	s.wait.waiter = nil
}

// queuedEvent handles an event of a client that waits.
func (l *loop) queuedEvent(s *session, mask uint32) {
	s.note(client, mask)
	l.leaveIfGone(s)
}

// leaveIfGone frees the place of a client that is gone. One that has sent something and then its FIN may have
// said all it wants to say, and stays; one that has sent nothing before it has left.
func (l *loop) leaveIfGone(s *session) {
	if s.clientGone() {
		s.end = termQueueGone
		l.close(s, s.ends[client].flags&endFailed != 0)
	}
}

// clientGone says whether the client has failed, or has ended its side with nothing left to deliver. A Unix
// socket that is closed shows a hang-up where TCP shows a FIN.
func (s *session) clientGone() bool {
	x := &s.ends[client]
	if x.flags&endFailed != 0 || x.flags&(endHalfClosed|endHungUp) == 0 {
		return x.flags&endFailed != 0
	}
	return inQueue(x.fd) == 0
}

// queueTimeout handles a wait that was too long. A grant that is on its way wins.
func (l *loop) queueTimeout(s *session) {
	if s.place() != nil { // it has one more try: lb may have stood still
		l.retryBacklog(s)
		return
	}
	if !s.pool.Leave(s.wait.waiter) {
		return
	}
	l.waiters = append(l.waiters, s.wait.waiter)
	s.wait.waiter = nil
	s.queued += l.now - s.wait.queuedAt
	s.pool.Queue.Timeouts.Add(1)
	s.end = termQueue
	l.close(s, false)
}
