package admin

import (
	"net"
	"sync"
)

// limitListener accepts while fewer than a number of its connections are open.
type limitListener struct {
	net.Listener
	slots     chan struct{} // one element for each open connection
	closeOnce sync.Once
	closed    chan struct{}
	closeErr  error
}

func limitConns(l net.Listener, n int) *limitListener {
	return &limitListener{Listener: l, slots: make(chan struct{}, n), closed: make(chan struct{})}
}

// Accept waits for a free slot first, so that newcomers stay in the kernel's queue.
func (l *limitListener) Accept() (net.Conn, error) {
	select {
	case l.slots <- struct{}{}:
	case <-l.closed:
		return nil, net.ErrClosed
	}
	c, err := l.Listener.Accept()
	if err != nil {
		<-l.slots
		return nil, err
	}
	return &limitedConn{Conn: c, listener: l}, nil
}

// Close closes the listener once; a second call gives the result of the first.
func (l *limitListener) Close() error {
	l.closeOnce.Do(func() {
		close(l.closed)
		l.closeErr = l.Listener.Close()
	})
	return l.closeErr
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
