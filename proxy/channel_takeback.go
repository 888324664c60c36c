package proxy

import (
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/handoff"
)

// retract takes back all that the worker has not read, and gives it to others. With a reason, nothing is
// given to it any more. It may be called from any goroutine.
func (ch *Channel) retract(broken string) {
	ch.mu.Lock()
	if broken != "" && ch.broken == "" {
		ch.broken = broken
	}
	back := append(ch.readBackLocked(), ch.waiting...)
	ch.waiting = nil
	ch.mu.Unlock()
	for _, h := range back {
		h.again()
	}
}

// TakeBack gives to other workers what b's worker has not taken. b is down; without it they would wait for
// handoff_timeout, or end with b's sessions (CloseBackend). It may be called on a loop.
func (p *Proxy) TakeBack(b *backends.Backend) {
	if ch := channelOf(b); ch != nil {
		ch.retract("")
	}
}

// refused is told that the worker could not take the connection of that number, or the first one: it goes to
// another.
func (ch *Channel) refused(seq uint64, first bool) bool {
	ch.mu.Lock()
	var h *handed
	if first && len(ch.untaken) > 0 {
		h = ch.untaken[0]
		ch.untaken = ch.untaken[:copy(ch.untaken, ch.untaken[1:])]
	} else if !first {
		h = ch.removeLocked(seq)
	}
	probe := h != nil && (h.done != nil || h.gone)
	if probe {
		ch.dropLocked(h)
	}
	ch.mu.Unlock()
	if h != nil && !probe {
		h.again()
	}
	return h != nil
}

// readBackLocked reads what waits for the worker, and returns the connections in it, which the worker will
// never see.
func (ch *Channel) readBackLocked() (back []*handed) {
	if ch.back < 0 {
		return nil
	}
	take := func(seq uint64) {
		h := ch.removeLocked(seq)
		switch {
		case h == nil: // the worker wrote that itself
		case h.done != nil || h.gone:
			ch.dropLocked(h)
		default:
			back = append(back, h)
		}
	}
	var others []byte
	var lines []byte
	for buf := make([]byte, 64<<10); ; {
		n, errno := recvBack(ch.back, buf)
		if errno != 0 || n == 0 {
			break
		}
		if !ch.node {
			if id, ok := handoff.ConnectionID(buf[:n]); ok {
				take(id)
			}
			continue
		}
		lines = append(lines, buf[:n]...)
		lines = handoff.EachLine(lines, func(line []byte) {
			if seq, ok := handoff.NodeConnectionSeq(line); ok {
				take(seq)
			} else { // it may be taken off by nobody else, so it goes back
				others = append(append(others, line...), '\n')
			}
		})
	}
	if len(others) > 0 && ch.broken == "" {
		if errno := ch.writeLocked(others); errno != 0 {
			ch.broken = "cannot be written to: " + errno.Error()
		}
	}
	return back
}

// again has the loop of h's session give it to another worker.
func (h *handed) again() {
	h.loop.post(message{do: func(l *loop) { l.giveAgain(h) }})
}
