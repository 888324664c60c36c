package admin

import (
	"net"
	"sync"
	"time"
)

// limitListener accepts while fewer than a number of its connections are open. It can pause: then nobody is accepted, the
// socket goes on listening, and newcomers wait in the kernel's queue.
type limitListener struct {
	net.Listener
	slots     chan struct{} // one element for each open connection
	closeOnce sync.Once
	closeErr  error

	mu     sync.Mutex
	paused bool
	ended  chan struct{} // closed by pause and by Close; replaced by resume
}

func limitConns(l net.Listener, n int) *limitListener {
	return &limitListener{Listener: l, slots: make(chan struct{}, n), ended: make(chan struct{})}
}

// Accept waits for a free slot first, so that newcomers stay in the kernel's queue. While it is paused or closed, it
// fails with net.ErrClosed: package http would try again after a deadline.
func (l *limitListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	ended := l.ended
	l.mu.Unlock()
	select {
	case <-ended: // also when there is a slot
		return nil, net.ErrClosed
	default:
	}
	select {
	case l.slots <- struct{}{}:
	case <-ended:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		if over(ended) {
			err = net.ErrClosed
		}
		return nil, err
	}
	return &limitedConn{Conn: c, listener: l}, nil
}

// pause ends an Accept under way, and fails those to come until resume. A connection that was accepted at that moment is
// still given out.
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
	if d, ok := l.Listener.(interface{ SetDeadline(time.Time) error }); ok {
		d.SetDeadline(t) // fails only on a closed one
	}
}

// Close closes the listener once; a second call gives the result of the first.
func (l *limitListener) Close() error {
	l.closeOnce.Do(func() {
		l.mu.Lock()
		if !over(l.ended) {
			close(l.ended)
		}
		l.paused = false
		l.mu.Unlock()
		l.closeErr = l.Listener.Close()
	})
	return l.closeErr
}

// pausing is a limitListener for one http.Server, whose end only pauses it.
type pausing struct{ *limitListener }

func (l pausing) Close() error {
	l.pause()
	return nil
}

// limitedConn gives its slot back when it is closed.
type limitedConn struct {
	net.Conn
	listener *limitListener
	release  sync.Once
}

func (c *limitedConn) Close() error {
	err := c.Conn.Close()
	c.release.Do(func() { <-c.listener.slots })
	return err
}
