package proxy

import (
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/handoff"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

// leaving is how far a Node program is on its way out. The numbers are part of the form of SavedChannel.
type leaving uint8

const (
	leavingNot  leaving = iota
	leavingSoon         // it is told to disconnect when it has read what its clients have said
	leavingTold
)

const (
	minSettle = 10 * time.Millisecond // the first pause between two looks at a program's connections
	maxSettle = 100 * time.Millisecond
)

// Disconnect has b's worker, if it is a Node program, close its servers and its idle connections, finish the
// others, and end. Other workers are told nothing.
//
// A connection is idle for Node when its client has asked nothing yet: it would reset a connection that it
// has just taken, whose request it has not read. So it is told when each of its connections has brought a
// request and it has read what came, but after the pool's handoff_timeout in any case.
func (p *Proxy) Disconnect(b *backends.Backend) {
	ch := channelOf(b)
	if ch == nil || !ch.node {
		return
	}
	ch.mu.Lock()
	first := ch.leaving == leavingNot
	if first {
		ch.leaving = leavingSoon
	}
	ch.mu.Unlock()
	if first {
		ch.disconnectSoon()
	}
}

// disconnectSoon looks at the program's connections again and again until they are settled.
func (ch *Channel) disconnectSoon() {
	until := ch.p.since() + ch.backend.Pool().Config().HandoffTimeout
	pause := minSettle
	var look func()
	look = func() {
		if ch.p.since() < until && !ch.settled() {
			time.AfterFunc(pause, look)
			pause = min(2*pause, maxSettle)
			return
		}
		ch.disconnect()
	}
	time.AfterFunc(0, look)
}

// settled reports whether the worker has taken all that it was given, and has read all that has come, and of
// each connection something. Where the kernel does not tell, it is.
func (ch *Channel) settled() bool {
	ch.mu.Lock()
	open, untaken := ch.front >= 0, len(ch.untaken)
	ch.mu.Unlock()
	if !open || untaken > 0 {
		return !open
	}
	own := map[uint64]bool{}
	ch.p.handed.mu.Lock()
	for cookie, h := range ch.p.handed.all {
		if h.channel == ch {
			own[cookie] = true
		}
	}
	ch.p.handed.mu.Unlock()
	ch.p.mu.Lock()
	diag := ch.p.diag
	ch.p.mu.Unlock()
	if len(own) == 0 || diag == nil {
		return true
	}
	settled := true
	for port := range ch.p.handed.portsNow() {
		err := diag.Sockets(port, func(s *sockdiag.Socket) {
			if own[s.Cookie] && (s.Received == 0 || s.Unread() > 0) {
				settled = false
			}
		})
		if err != nil {
			return true
		}
	}
	return settled
}

// disconnect tells the program, once. While everything is frozen it waits: what was written down stays true.
func (ch *Channel) disconnect() {
	ch.p.mu.Lock()
	defer ch.p.mu.Unlock()
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.leaving != leavingSoon {
		return
	}
	ch.leaving = leavingTold
	ch.seq++
	ch.keys = nil
	// one that does not read is stopped by a signal later
	_ = ch.writeLocked(handoff.AppendNodeDisconnect(nil, ch.seq))
}
