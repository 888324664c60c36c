package admin

import (
	"errors"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// shares are how many connections a listener holds at once, and of whom. Who connects slowly, or never says
// anything, must not keep others from being served, and root from none of it.
type shares struct {
	total   int // of all
	reserve int // of total, what is left for those who may do everything
	each    int // of one user or address that may not
}

const (
	// acceptPauseMin and acceptPauseMax bound the pause after an accept that failed. The longest is below
	// what a caller waits for an answer.
	acceptPauseMin = 5 * time.Millisecond
	acceptPauseMax = 500 * time.Millisecond
	// refusalTimeout is how long a refusal may take to be written. It fits into the socket's buffer.
	refusalTimeout = 50 * time.Millisecond
	// silenceAllowed is how old a connection without a request may be before another takes its place.
	silenceAllowed = time.Second
	// placePatience is how long one of root waits for a place, looking again after each placePause.
	placePatience = silenceAllowed + 500*time.Millisecond
	placePause    = 10 * time.Millisecond
	// oldPatience is how long a socket that was replaced is accepted from.
	oldPatience = 50 * time.Millisecond
)

// limitListener accepts within its shares, and goes on after every error. A newcomer beyond a share takes the
// place of a connection that has no request under way, the oldest of the one that has the most; if there is
// none, it is refused with an answer. Nobody but root makes others wait in the kernel's queue, for root may
// stand behind.
//
// It can pause: then nobody is accepted, the socket goes on listening, and newcomers wait in the kernel's
// queue.
type limitListener struct {
	shares   shares
	identify func(net.Conn) Caller
	failed   func(error)  // told of each accept that failed
	refused  func(Caller) // told of each newcomer that was refused

	closeOnce sync.Once
	closeErr  error

	mu       sync.Mutex
	listener net.Listener // replaced where its file was lost
	old      net.Listener // the one before, while some wait in its queue; else nil
	pinned   bool         // it must not be replaced
	open     map[*limitedConn]struct{}
	paused   bool
	ended    chan struct{} // closed by pause and by Close; replaced by resume
}

func limitConns(l net.Listener, s shares) *limitListener {
	return &limitListener{
		listener: l, shares: s, identify: new(identifier).identify,
		failed: func(error) {}, refused: func(Caller) {},
		open: map[*limitedConn]struct{}{}, ended: make(chan struct{}),
	}
}

// inner returns the listening socket.
func (l *limitListener) inner() net.Listener {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.listener
}

func (l *limitListener) Addr() net.Addr { return l.inner().Addr() }

// Accept returns the next connection that is within the shares. While the listener is paused or closed, it
// fails with net.ErrClosed: package http would try again after a deadline. No other error is returned, for
// package http would end: accept(2) fails for want of memory, descriptors or watches too, and that passes.
func (l *limitListener) Accept() (net.Conn, error) {
	pause := acceptPauseMin
	for {
		l.mu.Lock()
		ended, inner := l.ended, l.listener
		if l.old != nil {
			inner = l.old
		}
		l.mu.Unlock()
		if over(ended) {
			return nil, net.ErrClosed
		}
		c, err := inner.Accept()
		switch {
		case err == nil:
			pause = acceptPauseMin
			if conn := l.admit(c, ended); conn != nil {
				return conn, nil
			}
			continue
		case over(ended):
			return nil, net.ErrClosed
		case l.inner() != inner: // replaced, and nobody waits in its queue any more
			l.dropOld()
			continue
		case errors.Is(err, os.ErrDeadlineExceeded): // of a pause that has ended
			continue
		}
		l.failed(err)
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ended:
		}
		timer.Stop()
		pause = min(2*pause, acceptPauseMax)
	}
}

// admit returns the connection with a place, or nil after it refused it. One of root waits for a place, if
// all are taken by root: whoever else comes then waits behind it, in the kernel's queue.
func (l *limitListener) admit(c net.Conn, ended <-chan struct{}) net.Conn {
	conn := &limitedConn{Conn: c, listener: l, caller: l.identify(c), since: time.Now()}
	for !l.place(conn) {
		if !conn.caller.privileged() || over(ended) || time.Since(conn.since) > placePatience {
			l.refused(conn.caller)
			// fails only on a closed connection, as the write does then
			c.SetWriteDeadline(time.Now().Add(refusalTimeout))
			if text, err := wholeAnswer(nil, refuse(http.StatusServiceUnavailable,
				"lb has as many connections of %s to its control API as it holds at once; close some, or try again", conn.caller.share())); err == nil {
				c.Write(text)
			}
			c.Close()
			return nil
		}
		time.Sleep(placePause)
	}
	return conn
}

// place finds a place for a connection, and closes the one that must go for it.
func (l *limitListener) place(conn *limitedConn) bool {
	l.mu.Lock()
	victim, ok := l.placeLocked(&conn.caller)
	if ok {
		l.open[conn] = struct{}{}
	}
	l.mu.Unlock()
	if victim != nil {
		victim.Close()
	}
	return ok
}

// placeLocked looks for a place. victim is the connection that must go for it, nil if there is room.
func (l *limitListener) placeLocked(p *Caller) (victim *limitedConn, ok bool) {
	of := map[string]int{}
	for c := range l.open {
		of[c.caller.share()]++
	}
	mine, privileged, room := p.share(), p.privileged(), l.shares.total
	if !privileged {
		room -= l.shares.reserve
		if of[mine] >= l.shares.each {
			victim = l.silentLocked(func(c *limitedConn, old bool) int {
				if old && c.caller.share() == mine {
					return 1
				}
				return 0
			})
			return victim, victim != nil
		}
	}
	if len(l.open) < room {
		return nil, true
	}
	victim = l.silentLocked(func(c *limitedConn, old bool) int {
		theirs := of[c.caller.share()]
		switch {
		case !privileged && c.caller.privileged():
			return 0
		case privileged && !c.caller.privileged():
			return theirs + l.shares.total // rather than one of root
		case old || theirs > of[mine]+1:
			return theirs
		}
		return 0
	})
	return victim, victim != nil
}

// silentLocked returns the connection with no request under way that counts most, the oldest of several; one
// that counts 0 is not taken. old says that it has been open for longer than a caller takes to ask.
func (l *limitListener) silentLocked(count func(c *limitedConn, old bool) int) (found *limitedConn) {
	best, now := 0, time.Now()
	for c := range l.open {
		if http.ConnState(c.state.Load()) == http.StateActive || c.taken.Load() {
			continue
		}
		n := count(c, now.Sub(c.since) > silenceAllowed)
		if n > best || n == best && n > 0 && c.since.Before(found.since) {
			found, best = c, n
		}
	}
	return found
}

// replace listens on another socket from now on, and closes the present one after it has accepted whoever
// waits in its queue. It reports whether it did; while the listener is pinned, paused, closed or replaced
// already it does not.
func (l *limitListener) replace(by net.Listener) bool {
	l.mu.Lock()
	if l.pinned || l.old != nil || over(l.ended) {
		l.mu.Unlock()
		return false
	}
	l.old, l.listener = l.listener, by
	if d, ok := l.old.(interface{ SetDeadline(time.Time) error }); ok {
		d.SetDeadline(time.Now().Add(oldPatience)) // who waits in its queue is accepted at once
	}
	l.mu.Unlock()
	return true
}

// dropOld closes the listener before the present one.
func (l *limitListener) dropOld() {
	l.mu.Lock()
	old := l.old
	l.old = nil
	l.mu.Unlock()
	if old != nil {
		old.Close()
	}
}

// pin keeps the present socket from being replaced, or no longer.
func (l *limitListener) pin(on bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pinned = on
}

// pause ends an Accept under way, and fails those to come until resume. A connection that was accepted at
// that moment is still given out.
func (l *limitListener) pause() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.paused || over(l.ended) {
		return
	}
	l.paused = true
	close(l.ended)
	l.setDeadline(time.Unix(1, 0))
}

// resume undoes pause.
func (l *limitListener) resume() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.paused {
		return
	}
	l.paused = false
	l.ended = make(chan struct{})
	l.setDeadline(time.Time{})
}

func (l *limitListener) setDeadline(t time.Time) {
	if d, ok := l.listener.(interface{ SetDeadline(time.Time) error }); ok {
		d.SetDeadline(t) // fails only on a closed one
	}
}

// Close closes the listener once; a second call returns the result of the first.
func (l *limitListener) Close() error {
	l.closeOnce.Do(func() {
		l.mu.Lock()
		if !over(l.ended) {
			close(l.ended)
		}
		l.paused = false
		inner := l.listener
		l.mu.Unlock()
		l.dropOld()
		l.closeErr = inner.Close()
	})
	return l.closeErr
}

// pausing is a limitListener for one http.Server, whose end only pauses it.
type pausing struct{ *limitListener }

func (l pausing) Close() error {
	l.pause()
	return nil
}

// limitedConn has a place of its listener's, and returns it when it is closed.
type limitedConn struct {
	net.Conn
	listener *limitListener
	caller   Caller
	since    time.Time
	state    atomic.Int32 // the http.ConnState
	taken    atomic.Bool  // given away: no request is seen any more, and it may not be closed
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.listener.mu.Lock()
	delete(c.listener.open, c)
	c.listener.mu.Unlock()
	return err
}

// changed is told of each state of a connection, as an http.Server has it.
func (c *limitedConn) changed(state http.ConnState) {
	c.state.Store(int32(state))
	if state == http.StateHijacked {
		c.taken.Store(true)
	}
}
