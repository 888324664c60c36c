package proxy

// Connections that wait because the backlog of every backend that they could have is full: the backends are
// busy, not gone, and the kernel does not tell when there is room (connect(2), EAGAIN). Nothing here runs
// unless that happens.
//
// Of each pool's waiters the oldest alone tries, again and again, and the others in turn once it was served.
// So a connection that waits costs nothing, however many do.

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/273ebdf9/lb/backends"
)

const (
	// A try that finds every backlog full is made again after minBacklogPause, then after the double, up to
	// maxBacklogPause; and never so often that it takes more than a probeShare-th of the loop's time.
	minBacklogPause = 2 * time.Millisecond
	maxBacklogPause = 64 * time.Millisecond
	probeShare      = 20
	// probeBatch is how many waiters are served before other events have their turn.
	probeBatch = 32
)

// backlogs are the queues of all pools of which connections wait for a backlog.
type backlogs struct {
	waiting atomic.Int64 // in all queues; 0 as a rule, so that a newcomer pays one load

	mu    sync.Mutex
	pools map[*backends.Pool]*backlogQueue // guarded by mu, with all that is in it
}

// backlogQueue is the queue of one pool. While it is in the map, one loop has a probe for it, or a message
// that makes it have one: that loop takes the queue out of the map when nobody waits any more.
type backlogQueue struct {
	head, tail *backlogPlace
}

// backlogPlace is a session's place in its pool's queue.
type backlogPlace struct {
	loop       *loop
	session    sessionRef
	prev, next *backlogPlace
}

// probe is a loop's duty to try for the oldest that waits for a backlog of a pool.
type probe struct {
	pool  *backends.Pool
	at    time.Duration
	pause time.Duration
}

// add puts a session at the end of its pool's queue, or at its head. It reports whether the loop must begin
// to probe.
func (b *backlogs) add(l *loop, s *session, first bool) (begin bool) {
	place := &backlogPlace{loop: l, session: s.ref()}
	l.table.wait(s).place = place
	b.waiting.Add(1)
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.pools[s.pool]
	if begin = q == nil; begin {
		if b.pools == nil {
			b.pools = map[*backends.Pool]*backlogQueue{}
		}
		q = &backlogQueue{}
		b.pools[s.pool] = q
	}
	switch {
	case q.head == nil:
		q.head, q.tail = place, place
	case first:
		place.next, q.head.prev = q.head, place
		q.head = place
	default:
		place.prev, q.tail.next = q.tail, place
		q.tail = place
	}
	return begin
}

// remove takes a session out of its pool's queue.
func (b *backlogs) remove(s *session) {
	b.mu.Lock()
	q := b.pools[s.pool]
	x := s.wait.place
	if x.prev != nil {
		x.prev.next = x.next
	} else {
		q.head = x.next
	}
	if x.next != nil {
		x.next.prev = x.prev
	} else {
		q.tail = x.prev
	}
	b.mu.Unlock()
	s.wait.place = nil
	b.waiting.Add(-1)
}

// oldest returns the place of the session that has waited longest; nil where none waits, and then the probe
// is over.
func (b *backlogs) oldest(pool *backends.Pool) *backlogPlace {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.pools[pool]
	if q.head == nil {
		delete(b.pools, pool)
	}
	return q.head
}

// busy reports whether connections wait for a backlog of the pool.
func (b *backlogs) busy(pool *backends.Pool) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	q := b.pools[pool]
	return q != nil && q.head != nil
}

// waitForBacklog has a session wait until a backend that it could have has room in its backlog, within
// connect_timeout.
func (l *loop) waitForBacklog(s *session) {
	s.phase = phaseQueued
	l.table.wait(s).queuedAt = l.now
	s.busy = false
	if begin := l.p.backlogs.add(l, s, l.probing); begin {
		l.probes = append(l.probes, probe{s.pool, l.now + minBacklogPause, minBacklogPause})
	}
	if errno := l.register(s, client, sessionEvents); errno != 0 {
		s.end = s.endedBy('R')
		l.close(s, true)
		return
	}
	l.wheel.arm(s, s.budget+s.pool.Config().ConnectTimeout)
	l.leaveIfGone(s) // what was seen of it before comes as no event again
}

// leaveBacklog ends a session's wait for a backlog.
func (l *loop) leaveBacklog(s *session) {
	l.p.backlogs.remove(s)
	s.queued += l.now - s.wait.queuedAt
}

// retryBacklog tries the backends again for a session that waits for a backlog.
func (l *loop) retryBacklog(s *session) {
	l.leaveBacklog(s)
	l.wheel.cancel(s)
	s.phase = phaseConnecting
	s.wait.tried = s.wait.tried[:0]
	l.choose(s)
}

// runProbes tries for those that wait for a backlog, where it is time to.
func (l *loop) runProbes() {
	for i := 0; i < len(l.probes); i++ {
		if l.probes[i].at > l.now {
			continue
		}
		if !l.runProbe(i) {
			last := len(l.probes) - 1
			l.probes[i] = l.probes[last]
			l.probes[last] = probe{}
			l.probes = l.probes[:last]
			i--
		}
	}
}

// runProbe serves those that have waited longest while there is room. It reports whether the probe is still
// this loop's.
func (l *loop) runProbe(i int) bool {
	pool := l.probes[i].pool
	started := l.p.since()
	for range probeBatch {
		place := l.p.backlogs.oldest(pool)
		if place == nil {
			return false
		}
		if place.loop != l {
			place.loop.post(message{do: func(l *loop) {
				l.probes = append(l.probes, probe{pool, l.now, minBacklogPause})
			}})
			return false
		}
		s := l.table.find(place.session)
		l.probing = true
		l.retryBacklog(s)
		l.probing = false
		x := &l.probes[i]
		if s.place() != nil && s.ref() == place.session { // every backlog is full
			cost := l.p.since() - started
			x.at = l.now + max(x.pause, probeShare*cost)
			x.pause = min(2*x.pause, maxBacklogPause)
			return true
		}
		x.pause = minBacklogPause
	}
	l.probes[i].at = l.now // after the events of the next round
	return true
}

// nextProbe is when a probe is due; never where there is none.
func (l *loop) nextProbe() time.Duration {
	at := never
	for i := range l.probes {
		at = min(at, l.probes[i].at)
	}
	return at
}
