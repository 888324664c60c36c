package proxy

// What a loop does with the channels that it reads: a worker's answers.

import (
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
)

// firstChannelID begins the ids of channels' tokens, downwards: far below those of listeners.
const firstChannelID = -1 << 30

const (
	// repliesARound is how many messages of one worker a loop reads in a round.
	repliesARound = 64
	// A worker that says more than floodBytes in floodTime is not read for as long. What it does not say, it
	// has not taken.
	floodBytes = 4 << 20
	floodTime  = time.Second
	// A channel that cannot be watched or read, as the kernel has no memory, is left alone for channelPause.
	// After channelFaults reads in a row that failed it is given up.
	channelPause  = 50 * time.Millisecond
	channelFaults = 40
)

// watchChannel begins to read ch.
func (l *loop) watchChannel(ch *Channel) {
	slot := -1
	for i, other := range l.channels {
		if other == nil {
			slot = i
			break
		}
	}
	if slot < 0 {
		slot = len(l.channels)
		l.channels = append(l.channels, nil)
	}
	l.channels[slot] = ch
	ch.slot = int32(slot)
	l.resumeChannel(ch)
}

func (l *loop) channelToken(ch *Channel) token { return token{id: firstChannelID - ch.slot} }

func (l *loop) resumeChannel(ch *Channel) {
	if ch.watched || ch.slot < 0 {
		return
	}
	errno := l.ctl(l.epfd, unix.EPOLL_CTL_ADD, ch.front, unix.EPOLLIN, l.channelToken(ch))
	if ch.watched = errno == 0; !ch.watched {
		l.restChannel(ch, channelPause)
	}
}

func (l *loop) pauseChannel(ch *Channel) {
	if ch.watched {
		epollCtl(l.epfd, unix.EPOLL_CTL_DEL, ch.front, 0, token{})
		ch.watched = false
	}
}

// unwatchChannel reads what the worker said last, and nothing more.
func (l *loop) unwatchChannel(ch *Channel) {
	if ch.slot < 0 {
		return
	}
	if ch.watched {
		l.readReplies(ch)
	}
	l.pauseChannel(ch)
	l.channels[ch.slot] = nil
	ch.slot = -1
}

// channelEvent handles an event of a channel, or of the netlink socket that tells when connections end.
func (l *loop) channelEvent(id int32) {
	if id == endsID {
		l.hearEnds()
		return
	}
	i := int(firstChannelID - id)
	if i >= len(l.channels) || l.channels[i] == nil {
		return // a late event
	}
	l.readReplies(l.channels[i])
}

// readReplies reads what the worker says, up to repliesARound messages: epoll tells of the rest again.
func (l *loop) readReplies(ch *Channel) {
	for range repliesARound {
		n, errno := recv(ch.front, l.scratch)
		if errno == unix.EAGAIN {
			return
		}
		if errno != 0 && ch.faults < channelFaults {
			// lb holds both ends: it is the kernel's fault, and passes
			ch.faults++
			l.restChannel(ch, channelPause)
			return
		}
		if errno != 0 {
			l.breakChannel(ch, "what its worker says cannot be read: "+errno.Error())
			return
		}
		ch.faults = 0
		if n == 0 {
			l.breakChannel(ch, "its worker has closed it")
			return
		}
		if fault := l.reply(ch, l.scratch[:n]); fault != "" {
			l.breakChannel(ch, fault)
			return
		}
		if l.now-ch.heardAt > floodTime {
			ch.heard, ch.heardAt = 0, l.now
		}
		if ch.heard += n; ch.heard > floodBytes {
			l.silence(ch)
			return
		}
		if ch.node && n < len(l.scratch) || !ch.owes() {
			return // there is nothing more, as a rule; else epoll tells
		}
	}
}

// owes reports whether the worker has connections that it has not taken yet.
func (ch *Channel) owes() bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return len(ch.untaken) > 0
}

// silence has a worker that floods its channel wait.
func (l *loop) silence(ch *Channel) {
	ch.heard = 0
	l.restChannel(ch, floodTime)
}

// restChannel leaves a channel alone for a while.
func (l *loop) restChannel(ch *Channel, pause time.Duration) {
	l.pauseChannel(ch)
	if ch.paused {
		return
	}
	ch.paused = true
	time.AfterFunc(pause, func() {
		l.post(message{do: func(l *loop) {
			if ch.paused && ch.slot >= 0 {
				ch.paused, ch.heardAt = false, l.now
				l.resumeChannel(ch)
			}
		}})
	})
}

// breakChannel gives a worker up that does not keep to the protocol. What it has taken goes on.
func (l *loop) breakChannel(ch *Channel, why string) {
	l.pauseChannel(ch)
	ch.retract(why)
	l.p.emitChannel(ch, ChannelBroken, why)
}

// emitChannel calls OnChannel.
func (p *Proxy) emitChannel(ch *Channel, event ChannelEvent, text string) {
	if p.OnChannel != nil {
		p.OnChannel(ch.backend, event, text)
	}
}

// reply handles what a worker says. It returns what is wrong with it, or "".
func (l *loop) reply(ch *Channel, data []byte) (fault string) {
	if ch.node {
		return l.nodeReply(ch, data)
	}
	r, end, err := handoff.ParseReply(data)
	if err != nil {
		return "its worker does not speak the protocol: " + err.Error()
	}
	const tooMany = "its worker takes more than it was given"
	switch r {
	case handoff.Taken:
		if !ch.tookFirst(l.now) {
			return tooMany
		}
	case handoff.Refused:
		if !ch.refused(0, true) {
			return tooMany
		}
	case handoff.Hello:
		if ch.reports {
			return "its worker begins twice"
		}
		ch.reports = true
	case handoff.Ended:
		if !ch.reports || !l.p.reported(ch, end) {
			return "its worker tells the end of a connection that it does not have"
		}
	}
	return ""
}
