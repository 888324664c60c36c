package proxy

// Hot path: how a loop waits. `make bench` holds what it costs at full load; docs/decisions.md has the
// figures for that and for low rates.

import (
	"os"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// A loop whose events are on average less than busyGap apart is busy, until they are more than idleGap
	// apart, or none has come for idleAfter.
	busyGap   = 2 * time.Millisecond
	idleGap   = 4 * time.Millisecond
	idleAfter = 20 * time.Millisecond

	// longestGap is what a longer gap counts as, so that a loop that has slept for an hour is busy again
	// after some fifty events.
	longestGap = time.Second

	// mostParked is how many loops park; more wait in a blocking system call when they are idle.
	// EPOLLEXCLUSIVE does not reach through a set in a set, so each connection wakes all that park. And the
	// kernel refuses a file a place in more than a hundred sets that are in a set that is in a set: a
	// listener would be lost to the loops beyond.
	mostParked = 16

	// manySessions: to put a set into another one the kernel looks at every file in it, under a lock that the
	// whole host shares; 10 000 sessions are some milliseconds. With fewer it is cheaper to take it out while
	// the loop is busy, as it makes each new file of a set dearer that is in another one.
	manySessions = 1000

	// yieldEvery is how often a loop that does not park goes through the scheduler.
	yieldEvery = 100 * time.Millisecond
)

// waiting is how a loop waits when there is nothing to do. docs/decisions.md ("idle loops park") says why.
// What must stay true:
//
//   - A busy loop waits in a raw system call and keeps its processor (the Go scheduler's P); an idle one parks in the runtime's
//     netpoller and keeps none, so that the runtime's monitor thread sleeps too.
//   - The netpoller watches a set of its own, which has the loop's set in it (epoll(7)) only while the loop is idle.
//   - Somebody must always wait in the netpoller. So a loop goes through the scheduler when it becomes busy, and every yieldEvery
//     while it does not park; GOMAXPROCS is above the number of loops (the caller of Proxy.Start sees to that).
type waiting struct {
	gap     time.Duration // between rounds with events, on average; 0 where a round found them waiting
	last    time.Duration // when the last one was
	slept   bool          // the last wait found nothing at first
	idle    bool
	parks   bool          // idle, as of the last linkIdle
	yieldAt time.Duration // when it has to go through the scheduler, if it has not parked by then

	parkFD int32    // the set that the netpoller watches
	park   *os.File // the same
	conn   syscall.RawConn
	linked bool // the loop's set is in it, and wakes it
	muted  bool // it is in it, and does not
	timed  bool // it has a deadline
	look   func(fd uintptr) bool
	looks  int // calls of look in a wait: from the second on, it has parked
	found  int // by look
}

// openWaiting makes what l waits with.
func (l *loop) openWaiting() error {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return err
	}
	if err := unix.SetNonblock(fd, true); err != nil { // else os.NewFile leaves it to blocking calls
		unix.Close(fd)
		return err
	}
	r := &l.waiting
	r.parkFD = int32(fd)
	r.park = os.NewFile(uintptr(fd), "park")
	err = r.park.SetReadDeadline(time.Time{}) // refused where the netpoller does not watch it
	if err == nil {
		r.conn, err = r.park.SyscallConn()
	}
	if err != nil {
		r.park.Close()
		return err
	}
	r.gap, r.idle = longestGap, true
	r.look = func(uintptr) bool {
		r.looks++
		r.found = epollWait(l.epfd, l.events, 0)
		return r.found > 0
	}
	return nil
}

// note takes in that a wait has ended at now with n events.
func (r *waiting) note(now time.Duration, n int) {
	gap := now - r.last
	if n == 0 {
		r.idle = r.idle || r.slept && gap > idleAfter
		return
	}
	r.last = now
	if !r.slept {
		gap = 0
	}
	r.gap += (min(gap, longestGap) - r.gap) / 8
	switch {
	case r.gap < busyGap:
		r.idle = false
	case r.gap > idleGap:
		r.idle = true
	}
}

// wait gives the number of events. It may return with none at any time, and does when a timer is due.
//
// A loop that is about to sleep first lets others run (sched_yield(2)): the clients and backends it has just
// fed answer meanwhile, and their answers are taken in one round instead of one sleep and wake-up each.
func (l *loop) wait() int {
	r := &l.waiting
	if r.idle != r.parks {
		l.linkIdle()
	}
	if l.now >= r.yieldAt {
		r.yieldAt = l.now + yieldEvery
		runtime.Gosched()
	}
	r.slept = false
	if n := epollWait(l.epfd, l.events, 0); n > 0 || len(l.ready) > 0 {
		return n
	}
	timeout := l.untilDue()
	if timeout == 0 {
		return 0
	}
	r.slept = true
	schedYield()
	switch {
	case r.linked:
		return l.parkFor(timeout)
	case r.idle:
		return epollWaitBlocking(l.epfd, l.events, timeout)
	}
	most := int(idleAfter / time.Millisecond)
	if timeout > 0 {
		most = min(most, timeout)
	}
	return epollWait(l.epfd, l.events, most)
}

// linkIdle prepares the loop for being idle, or busy. Where the kernel has no memory or no watch (epoll(7),
// max_user_watches) left for the set in the set, the idle loop waits in a blocking system call.
func (l *loop) linkIdle() {
	r := &l.waiting
	r.parks, r.yieldAt = r.idle, 0
	if !r.idle {
		if r.muted = r.linked && l.sessions.Load() >= manySessions; r.muted {
			epollCtl(r.parkFD, unix.EPOLL_CTL_MOD, l.epfd, 0, token{})
		} else if r.linked {
			epollCtl(r.parkFD, unix.EPOLL_CTL_DEL, l.epfd, 0, token{})
		}
		r.linked = false
		return
	}
	if l.id >= mostParked {
		return
	}
	op := unix.EPOLL_CTL_ADD
	if r.muted {
		op = unix.EPOLL_CTL_MOD
	}
	r.linked = epollCtl(r.parkFD, op, l.epfd, unix.EPOLLIN, token{}) == 0
}

// parkFor waits through the netpoller for timeout ms, or without end if it is -1.
func (l *loop) parkFor(timeout int) int {
	r := &l.waiting
	if timeout > 0 || r.timed {
		var at time.Time
		if r.timed = timeout > 0; r.timed {
			at = time.Now().Add(time.Duration(timeout) * time.Millisecond)
		}
		r.park.SetReadDeadline(at)
	}
	r.looks, r.found = 0, 0
	r.conn.Read(r.look) // an error is that of the deadline
	if r.looks > 1 {
		r.yieldAt = l.p.since() + yieldEvery
	}
	return r.found
}

// untilDue is how many ms the loop may sleep before a timer, the counters or a pause want it; -1 is without
// end.
func (l *loop) untilDue() int {
	due := l.wheel.due()
	if len(l.dirty) > 0 {
		due = min(due, l.countAt)
	}
	if l.resumeAt != 0 {
		due = min(due, l.resumeAt)
	}
	if l.retryAt != 0 {
		due = min(due, l.retryAt)
	}
	if len(l.probes) > 0 {
		due = min(due, l.nextProbe())
	}
	if due == never {
		return -1
	}
	return int((max(due-l.now, 0) + time.Millisecond - 1) / time.Millisecond)
}
