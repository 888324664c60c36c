package proxy

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// message is what reaches a loop from outside: a connection to take over, or something to do on the loop.
type message struct {
	do    func(*loop) // if set, all else is unset
	grant *backends.Waiter
	slot  *backends.Backend // of grant, acquired
	conn  accepted
}

// post puts m into the loop's inbox and wakes it. Safe for concurrent use.
func (l *loop) post(m message) {
	l.inbox.mu.Lock()
	l.inbox.msgs = append(l.inbox.msgs, m)
	first := len(l.inbox.msgs) == 1
	l.inbox.mu.Unlock()
	if first {
		l.wake()
	}
}

// wakeAgain is when a loop is woken again where the write that wakes it has failed.
const wakeAgain = 5 * time.Millisecond

// wake has the loop look into its inbox.
func (l *loop) wake() {
	one := [8]byte{1}
	if _, err := unix.Write(int(l.wakefd), one[:]); err != nil {
		time.AfterFunc(wakeAgain, func() {
			l.inbox.mu.Lock()
			defer l.inbox.mu.Unlock()
			if !l.inbox.closed {
				l.wake()
			}
		})
	}
}

// call runs f on the loop and waits for it. The caller holds Proxy.mu, or the loop runs and does not end.
func (l *loop) call(f func(*loop)) {
	if !l.p.started {
		f(l)
		return
	}
	done := make(chan struct{})
	l.post(message{do: func(l *loop) { f(l); close(done) }})
	<-done
}

// readInbox does what was posted.
func (l *loop) readInbox() {
	var count [8]byte
	unix.Read(int(l.wakefd), count[:])
	l.inbox.mu.Lock()
	msgs := l.inbox.msgs
	l.inbox.msgs = l.inboxSpare[:0]
	l.inbox.mu.Unlock()
	for i := range msgs {
		switch m := &msgs[i]; {
		case m.do != nil:
			m.do(l)
		case m.grant != nil:
			l.granted(m.grant, m.slot)
		default:
			l.open(m.conn)
		}
		msgs[i] = message{}
	}
	l.inboxSpare = msgs
}
