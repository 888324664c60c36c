package proxy

// Hand-off: the accepted socket itself goes to a worker, over a channel (docs/handoff.md).

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/descriptor"
	"github.com/273ebdf9/lb/internal/handoff"
)

// ErrNoChannel means that a backend has no channel, or none any more.
var ErrNoChannel = errors.New("the worker's hand-off channel is closed")

// ChannelConfig is what a Channel is made of.
type ChannelConfig struct {
	Node  bool // it speaks Node's cluster protocol, else "lb"
	Front int  // lb's end; OpenChannel makes copies of both
	Back  int  // the worker's end, from which lb takes back what the worker does not take
	// Address is where clients connect to, for a Node program that asks where it listens.
	Address netip.AddrPort
}

// ChannelEvent is what a worker says of itself over its channel, or what lb finds there.
type ChannelEvent int

const (
	// ChannelListens means that a Node program listens: it takes connections from now on.
	ChannelListens ChannelEvent = iota
	// ChannelReady means that a Node program said process.send("ready").
	ChannelReady
	// ChannelLeaves means that a Node program has left Node's cluster, or closed its server: it takes nothing
	// new.
	ChannelLeaves
	// ChannelBroken means that the worker does not keep to the protocol. lb does not use the channel any
	// more.
	ChannelBroken
	// ChannelOther means that a Node program asked for something that lb does not do; the text says what.
	ChannelOther
)

// Channel is how lb gives accepted sockets to one worker, and hears that it has taken them.
//
// One loop reads it. Any loop gives connections. mu guards what they share, and is held for a system call at
// most.
//
// A connection is given with a message, and stays in untaken, with a descriptor of lb's own, until the worker
// says that it has taken it. lb also holds the worker's end: a message that the worker has not read, lb reads
// itself and gives the connection to another worker. The kernel's queue gives each message to one reader, so
// none is served twice. As that end shares its flags with the worker, lb never changes them and reads with
// MSG_DONTWAIT.
type Channel struct {
	p       *Proxy
	backend *backends.Backend
	loop    *loop
	node    bool
	address netip.AddrPort
	slot    int32 // its place in loop.channels

	mu      sync.Mutex
	front   int32 // -1 when closed
	back    int32
	untaken []*handed     // in the order in which they were given
	waiting []*handed     // chosen for this worker, and given when it has taken others: its window is full
	probe   *handed       // of untaken; nil: none is under way
	tookAt  time.Duration // the worker took one last
	buf     []byte        // of the message that is written
	broken  string        // why it is not used any more; empty: it is
	pending bool          // after an upgrade, until OpenChannel: what is given to the worker waits
	leaving leaving       // of a Node program
	seq     uint64        // of the last message to a Node program
	keys    []nodeKey     // of a Node program's servers, the first one first
	servers int           // how many it has asked for

	// Of the loop.
	watched bool
	paused  bool   // a flood, or a fault of the kernel: it is not read for a moment
	faults  int    // reads in a row that failed
	in      []byte // of a Node program: a line that is not complete
	lenient bool   // of a Node program that was taken over: the first line may have begun before
	heard   int    // bytes since heardAt
	heardAt time.Duration
	reports bool // the worker tells the ends of its connections
}

// handed is a connection that was given to a worker, from then on until it ends.
type handed struct {
	channel *Channel
	cookie  uint64
	// by which the worker's answer names it: of a Node program a number, else the cookie
	seq      uint64
	fd       int32          // lb's own descriptor, while it is not taken; -1 else. Guarded by Channel.mu
	since    time.Duration  // the worker was chosen
	given    time.Duration  // the worker was given it; 0: it waits. Guarded by Channel.mu
	client   netip.AddrPort // whom a PROXY header named; the zero value as a rule
	loop     *loop
	ref      sessionRef
	listener *Listener     // nil: it is a probe
	taken    atomic.Int64  // when, as a time.Duration since the epoch; 0: not yet
	done     chan struct{} // of a probe: closed when it is taken, or never will be
	lost     bool          // of a probe: it never will be; set before done is closed
	gone     bool          // nobody waits for it any more: its session has ended. Guarded by Channel.mu
}

// OpenChannel gives b, which takes no connections yet, a channel. It works on copies of the descriptors. The
// error says why lb cannot see when handed-off connections end; then only a worker of the "lb" protocol can
// be given any.
func (p *Proxy) OpenChannel(b *backends.Backend, cfg ChannelConfig) error {
	if err := p.watchEnds(); err != nil && cfg.Node {
		return err
	}
	front, err := descriptor.Copy(cfg.Front)
	if err != nil {
		return fmt.Errorf("cannot keep the channel of worker %q: %w", b.Name, err)
	}
	back, err := descriptor.Copy(cfg.Back)
	if err != nil {
		unix.Close(front)
		return fmt.Errorf("cannot keep the channel of worker %q: %w", b.Name, err)
	}
	ch := channelOf(b) // what Adopt has made of it
	if ch == nil {
		ch = p.newChannel(b)
	}
	ch.mu.Lock()
	ch.node, ch.address, ch.front, ch.back = cfg.Node, cfg.Address, int32(front), int32(back)
	ch.pending = false
	ch.nextLocked(p.since())
	goOnLeaving := ch.leaving == leavingSoon
	ch.mu.Unlock()
	if goOnLeaving {
		ch.disconnectSoon()
	}
	b.Channel = ch
	p.limitWindow(b)
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.stopped {
		ch.loop.call(func(l *loop) { l.watchChannel(ch) })
	}
	return nil
}

// noLimit is a window that is never full.
const noLimit = 1 << 30

// limitWindow says how many connections the pool may choose b for before it has taken them. With a
// handoff_window of 1 that is one: whoever is free takes the oldest that waits. Above, the choice stays exact
// in a burst: a connection waits for the least loaded worker while its window is full, as long as that one
// goes on taking (windowPatience).
func (p *Proxy) limitWindow(b *backends.Backend) {
	limit := noLimit
	if b.Pool().Config().HandoffWindow == 1 {
		limit = 1
	}
	b.Pool().SetWindow(b, limit)
}

// window is how many connections may be with the worker and not be taken.
func (ch *Channel) window() int { return ch.backend.Pool().Config().HandoffWindow }

// newChannel makes a channel without descriptors. Loops take turns.
func (p *Proxy) newChannel(b *backends.Backend) *Channel {
	return &Channel{
		p: p, backend: b, front: -1, back: -1, slot: -1,
		loop: p.loops[int(p.channels.Add(1))%len(p.loops)], seq: uint64(time.Now().Unix()) << 20 & (1<<53 - 1),
	}
}

// channelOf returns b's channel, or nil: clients' bytes are carried to it.
func channelOf(b *backends.Backend) *Channel {
	ch, _ := b.Channel.(*Channel)
	return ch
}

// CloseChannel ends the use of b's channel, whose worker has ended. What it has not taken goes to others, and
// so does what it has read from the channel and not touched.
func (p *Proxy) CloseChannel(b *backends.Backend) {
	ch := channelOf(b)
	if ch == nil {
		return
	}
	p.mu.Lock()
	if !p.loopsEnd { // a worker may end while Stop waits for the sessions
		ch.loop.call(func(l *loop) { l.unwatchChannel(ch) })
	}
	p.mu.Unlock()
	ch.retract(ErrNoChannel.Error())
	ch.mu.Lock()
	rest := ch.untaken
	ch.untaken, ch.pending = nil, false
	var again []*handed
	for _, h := range rest { // it died with them, or took them and said nothing
		if h.done == nil && !h.gone && ch.front >= 0 && untouched(h.fd) {
			again = append(again, h)
		} else {
			ch.dropLocked(h)
		}
	}
	front, back := ch.front, ch.back
	ch.front, ch.back = -1, -1
	ch.mu.Unlock()
	for _, h := range again {
		h.again()
	}
	if front >= 0 {
		closeFD(front)
		closeFD(back)
	}
}

// dropLocked gives up what the worker will never say that it has taken.
func (ch *Channel) dropLocked(h *handed) {
	if h.fd >= 0 {
		closeFD(h.fd)
		h.fd = -1
	}
	if h.done != nil {
		h.lost = true
		close(h.done)
		if ch.probe == h {
			ch.probe = nil
		}
	}
}

// give sends the connection fd to the worker, or has it wait while the worker's window is full. On success fd
// belongs to h, and h to the channel.
func (ch *Channel) give(h *handed, fd int32, now time.Duration) (waits bool, errno unix.Errno) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	h.channel, h.fd = ch, fd
	if ch.pending && h.done == nil {
		ch.waiting = append(ch.waiting, h)
		return true, 0
	}
	if ch.front < 0 || ch.broken != "" || ch.node && len(ch.keys) == 0 {
		errno = unix.ECONNREFUSED
	} else if h.done == nil && len(ch.untaken) >= ch.window() {
		ch.waiting = append(ch.waiting, h)
		return true, 0
	} else {
		errno = ch.sendLocked(h, now)
	}
	if errno != 0 {
		h.fd = -1
	}
	return false, errno
}

// sendLocked sends the worker a connection.
func (ch *Channel) sendLocked(h *handed, now time.Duration) unix.Errno {
	if ch.node {
		ch.seq++
		h.seq = ch.seq
		ch.buf = handoff.AppendNodeConnection(ch.buf[:0], ch.key(), h.seq)
	} else {
		h.seq = h.cookie
		c := handoff.Connection{ID: h.cookie, Probe: h.done != nil, Client: h.client}
		if h.listener != nil {
			c.Listener = h.listener.Name
		}
		ch.buf = handoff.AppendConnection(ch.buf[:0], &c)
	}
	if errno := sendFD(ch.front, ch.buf, h.fd); errno != 0 {
		return errno
	}
	h.given = now
	ch.untaken = append(ch.untaken, h)
	return 0
}

// nextLocked gives the worker what waits, as far as its window allows.
func (ch *Channel) nextLocked(now time.Duration) {
	for len(ch.waiting) > 0 && len(ch.untaken) < ch.window() && ch.front >= 0 && ch.broken == "" {
		h := ch.waiting[0]
		ch.waiting = ch.waiting[:copy(ch.waiting, ch.waiting[1:])]
		if h.gone {
			ch.dropLocked(h)
		} else if ch.node && len(ch.keys) == 0 || ch.sendLocked(h, now) != 0 {
			h.again()
		}
	}
}

// stopWaiting takes h out of those that wait for room in the worker's window. It reports whether it was
// there.
func (ch *Channel) stopWaiting(h *handed) bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	i := slices.Index(ch.waiting, h)
	if i >= 0 {
		ch.waiting = slices.Delete(ch.waiting, i, i+1)
	}
	return i >= 0
}

// hasRoom reports whether the worker would be given a connection at once.
func (ch *Channel) hasRoom() bool {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	return len(ch.untaken) < ch.window() && len(ch.waiting) == 0 && ch.front >= 0 && ch.broken == ""
}

// writeLocked sends the worker a message without a descriptor. The caller holds mu.
func (ch *Channel) writeLocked(message []byte) unix.Errno {
	if ch.front < 0 {
		return unix.ECONNREFUSED
	}
	n, errno := send(ch.front, message, 0)
	if errno == 0 && n < len(message) {
		errno = unix.EMSGSIZE // half of a line: nothing after it can be understood
	}
	return errno
}

// tookFirst is told that the worker has taken what it was given first. It reports whether there was
// something.
func (ch *Channel) tookFirst(now time.Duration) bool {
	ch.mu.Lock()
	if len(ch.untaken) == 0 {
		ch.mu.Unlock()
		return false
	}
	h := ch.untaken[0]
	ch.untaken = ch.untaken[:copy(ch.untaken, ch.untaken[1:])]
	fd := ch.tookLocked(h, now)
	ch.mu.Unlock()
	closeTaken(fd)
	return true
}

// took is told that the worker has taken the connection of that number. It reports whether there is one.
func (ch *Channel) took(seq uint64, now time.Duration) bool {
	ch.mu.Lock()
	h := ch.removeLocked(seq)
	if h == nil {
		ch.mu.Unlock()
		return false
	}
	fd := ch.tookLocked(h, now)
	ch.mu.Unlock()
	closeTaken(fd)
	return true
}

// closeTaken closes lb's own descriptor of a connection that is taken. Where the worker has closed its one
// already, the kernel says goodbye to the client in this call: nobody else should wait for it.
func closeTaken(fd int32) {
	if fd >= 0 {
		closeFD(fd)
	}
}

func (ch *Channel) removeLocked(seq uint64) *handed {
	for i, h := range ch.untaken {
		if h.seq == seq {
			ch.untaken = append(ch.untaken[:i], ch.untaken[i+1:]...)
			return h
		}
	}
	return nil
}

// tookLocked hands a connection over for good: from here on only the worker holds it. The caller closes fd
// when it has unlocked mu.
func (ch *Channel) tookLocked(h *handed, now time.Duration) (fd int32) {
	fd = h.fd
	h.fd, ch.tookAt = -1, now
	ch.nextLocked(now)
	if h.done != nil {
		close(h.done)
		ch.probe = nil
		return fd
	}
	if h.gone {
		return fd
	}
	h.setTaken(now)
	ch.p.countHandedOff()
	b := ch.backend
	b.Connected(now - h.since)
	h.listener.Counters.Connections.Add(1)
	b.Pool().Taken(b)
	if ch.p.endings == nil && !ch.reports {
		// Nobody will tell its end: it counts while it is given, and no longer.
		ch.p.handed.remove(h)
		h.loop.post(message{do: func(l *loop) { l.handedEnded([]handedEnd{{h: h}}) }})
	}
	return fd
}
