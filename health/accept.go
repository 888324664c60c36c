package health

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
	"golang.org/x/sys/unix"
)

const (
	// "accept" looks at once whether its connection was taken, then after firstPause, then after twice the
	// time, up to maxPause. A worker of one thread can do nothing else while it waits for the probe to close,
	// so looks are frequent.
	firstPause = time.Millisecond
	maxPause   = 25 * time.Millisecond
)

// acceptProbe is the state of the "accept" probes of one backend. It belongs to the watch's goroutine.
//
// A connection that no process has accepted when its probe's time is over stays open, closed for writing, and
// the next probe looks at that one first: it tells whether the listener accepts between probes, and a
// listener that hangs has one connection of lb in its queue, not one more with every probe.
type acceptProbe struct {
	plan     *plan
	left     net.Conn         // in the listener's queue since an earlier probe; nil: none
	waiting  sockdiag.Waiting // the queue at the last look
	known    bool             // there was a last look, and its connection was not accepted at once
	listener uint32           // inode of the listening Unix socket; 0: not known
	stuck    time.Time        // since when nothing was seen to be accepted that waited; zero: it accepts
	noQueue  bool             // the queue cannot be seen
}

// CanSeeAccepts returns why the type "accept" sees no more than "connect" in this process, or nil if it sees
// more.
func CanSeeAccepts() error {
	sockets, err := sockdiag.Dial()
	if err != nil {
		return err
	}
	return sockets.Close()
}

// reset closes a connection that is left, and forgets everything.
func (a *acceptProbe) reset() {
	if a.left != nil {
		a.left.Close()
	}
	*a = acceptProbe{}
}

// probe connects to b and waits until a process accepts the connection. sockets is nil where the kernel does
// not say who accepts.
func (a *acceptProbe) probe(ctx context.Context, p *plan, b *backends.Backend, sockets *sockdiag.Conn) result {
	if a.plan != p {
		a.reset()
		a.plan = p
	}
	if sockets == nil {
		return connectOnly(ctx, p, b, "connected; this kernel or sandbox does not tell whether it was accepted")
	}
	start := time.Now()
	moved := a.known && a.look(p, b, sockets)
	conn := a.left
	a.left = nil
	if conn != nil {
		if taken, found := a.taken(p, b, conn, sockets); taken {
			conn.Close()
			conn, moved = nil, true
			if found.outcome == Failure { // the listener is gone
				a.stuck = time.Time{}
			}
		}
	}
	if moved {
		a.stuck = time.Time{}
	}
	for conn == nil {
		var err error
		conn, err = dialOnce(ctx, b, p.destination(b))
		if err == nil {
			_ = p.introduce(conn, b) // if it was closed already, it was accepted, as taken finds
			break
		}
		full := errors.Is(err, unix.EAGAIN) || isTimeout(err)
		moved = a.look(p, b, sockets) || moved
		switch inTime := full && pause(ctx, maxPause); {
		case inTime: // the queue is full: time tells whether it moves
		case !full || a.noQueue:
			a.reset()
			return p.connectFault(err)
		default:
			return a.verdict(nil, moved, start)
		}
	}
	// A backend that has nothing else to do has it by now.
	for wait := time.Duration(0); ; wait = min(max(2*wait, firstPause), maxPause) {
		inTime := wait == 0 || pause(ctx, wait)
		if taken, found := a.taken(p, b, conn, sockets); taken {
			closeProbe(conn)
			a.stuck, a.known = time.Time{}, false
			return found
		}
		if wait == 0 {
			continue
		}
		moved = a.look(p, b, sockets) || moved
		if !inTime {
			return a.verdict(conn, moved, start)
		}
	}
}

// verdict judges a probe whose time is over; conn is the connection that nobody has accepted, if it has one.
func (a *acceptProbe) verdict(conn net.Conn, moved bool, start time.Time) result {
	if conn != nil && !a.noQueue && a.waiting.Waiting == 0 {
		// No connection waits: the listener takes those that have sent something (TCP_DEFER_ACCEPT).
		closeProbe(conn)
		a.stuck = time.Time{}
		return success("connected; it accepts connections that have sent something")
	}
	if conn != nil {
		a.left = conn
		if half, ok := conn.(interface{ CloseWrite() error }); ok {
			_ = half.CloseWrite() // else a process that accepts it late waits for the next probe
		}
	}
	switch {
	case moved && conn == nil:
		a.stuck = time.Time{}
		return result{outcome: Inconclusive, reason: "saturated: its backlog is full"}
	case moved:
		a.stuck = time.Time{}
		return success("accepts; %d wait", a.waiting.Waiting)
	}
	if a.stuck.IsZero() {
		a.stuck = start
	}
	since := time.Since(a.stuck).Seconds()
	reason := fmt.Sprintf("does not accept: %d wait for %.1f s", a.waiting.Waiting, since)
	if a.noQueue {
		reason = fmt.Sprintf("does not accept for %.1f s", since)
	}
	return result{outcome: Failure, reason: reason, hung: true}
}

// look asks for the queue. It reports whether the queue has moved since the last look.
func (a *acceptProbe) look(p *plan, b *backends.Backend, sockets *sockdiag.Conn) (moved bool) {
	now, err := a.queue(p, b, sockets)
	a.noQueue = err != nil
	if err != nil {
		a.waiting, a.known = sockdiag.Waiting{}, false
		return false
	}
	moved = a.known && now.MovedSince(a.waiting)
	a.waiting, a.known = now, true
	return moved
}

// queue returns the queue of the listener that b's probes go to.
func (a *acceptProbe) queue(p *plan, b *backends.Backend, sockets *sockdiag.Conn) (sockdiag.Waiting, error) {
	addr := p.destination(b)
	if !addr.IsUnix() {
		ip, err := netip.ParseAddr(addr.Host) // a host name is one that has not been resolved
		if err != nil || !backends.IsLocalIP(ip) {
			return sockdiag.Waiting{}, sockdiag.ErrNotFound
		}
		q, err := sockets.TCPQueue(netip.AddrPortFrom(ip, addr.Port))
		return sockdiag.Waiting{Queue: q}, err
	}
	if a.listener != 0 {
		if w, err := sockets.UnixWaiting(a.listener); err == nil {
			return w, nil
		}
	}
	var err error
	if a.listener, err = sockets.UnixListener(addr.Path); err != nil {
		a.listener = 0
		return sockdiag.Waiting{}, err
	}
	return sockets.UnixWaiting(a.listener)
}

// taken reports whether conn has left the queue, and what the probe found then.
func (a *acceptProbe) taken(p *plan, b *backends.Backend, conn net.Conn, sockets *sockdiag.Conn) (bool, result) {
	raw, err := conn.(syscall.Conn).SyscallConn()
	if err != nil {
		return true, failure("%v", err)
	}
	accepted, asked, heard := false, error(nil), error(nil)
	err = raw.Control(func(fd uintptr) {
		accepted, asked = sockets.Accepted(int(fd))
		heard = peek(int(fd))
	})
	var errno unix.Errno
	switch {
	case err != nil:
		return true, failure("%v", err)
	case accepted, heard == nil, heard == io.EOF:
		return true, success("accepted")
	case heard == unix.EAGAIN && asked == nil:
		return false, result{}
	case heard == unix.EAGAIN:
		found := success("connected; its listener is not in this network namespace")
		if !errors.Is(asked, sockdiag.ErrNotFound) {
			found.reason = "connected; whether it was accepted is not known: " + asked.Error()
		}
		found.blind = true
		return true, found
	case !errors.As(heard, &errno):
		return true, failure("%v", heard)
	}
	// It was reset: by a process that took it and did not read what was sent, or because nothing listens any
	// more.
	if _, err := a.queue(p, b, sockets); err == nil {
		return true, success("accepted, and closed")
	}
	return true, failure("%s while it waited to be accepted", errno.Error())
}

// peek returns what a read of fd would find: nil for data, io.EOF if the other side has closed, EAGAIN for
// nothing yet.
func peek(fd int) error {
	var b [1]byte
	n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
	if err == nil && n == 0 {
		return io.EOF
	}
	return err
}

// connectOnly is an "accept" probe that sees no more than a "connect".
func connectOnly(ctx context.Context, p *plan, b *backends.Backend, reason string) result {
	conn, err := dialOnce(ctx, b, p.destination(b))
	if err != nil {
		return p.connectFault(err)
	}
	defer closeProbe(conn)
	if err := p.introduce(conn, b); err != nil {
		return p.exchangeFault(err, "a connection", nil)
	}
	found := success("%s", reason)
	found.blind = true
	return found
}

// pause waits for d. It reports false if ctx is done before.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
