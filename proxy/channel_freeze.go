package proxy

import (
	"cmp"
	"slices"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// SavedHanded is what is known of a connection that was handed over. It is in no epoll set, and, once it is
// taken, no descriptor of this process.
type SavedHanded struct {
	Cookie, Seq  uint64
	Since, Taken time.Duration
	// 0: it waited for room in the worker's window, or an lb before did not write it
	Given   time.Duration
	Untaken bool
	FD      int // while Untaken
	// among those that the worker has not taken; -1: it was taken back, and is to be given again
	Order int
}

// SavedChannel is a worker's channel, but for its descriptors, which its supervisor carries over.
type SavedChannel struct {
	Backend int
	Node    bool
	Seq     uint64
	Servers int
	Keys    []SavedNodeKey
	In      []byte // the beginning of a line
	Reports bool
	Broken  string
	Leaving leaving // of a Node program
	// Gone are connections that the worker will yet say it has taken, and that nobody waits for any more:
	// their sessions have ended, or they were to see that the worker takes connections.
	Gone []SavedGone
}

// SavedGone is one of them: its number, and its place among those that the worker has not taken.
type SavedGone struct {
	Seq   uint64
	Order int
}

// SavedNodeKey is a server of a Node program.
type SavedNodeKey struct {
	Name string
	Port int
	Up   bool
}

func (h *handed) save() SavedHanded {
	v := SavedHanded{Cookie: h.cookie, Seq: h.seq, Since: h.since, Taken: h.takenAt()}
	h.channel.mu.Lock()
	defer h.channel.mu.Unlock()
	if v.Taken == 0 {
		v.Given = h.given
		v.Untaken, v.FD, v.Order = true, int(h.fd), slices.Index(h.channel.untaken, h)
	}
	return v
}

func (w *saver) channel(ch *Channel) {
	if ch == nil {
		return
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	v := SavedChannel{
		Backend: w.backend(ch.backend), Node: ch.node, Seq: ch.seq, Servers: ch.servers, In: slices.Clone(ch.in),
		Reports: ch.reports, Broken: ch.broken, Leaving: ch.leaving,
	}
	for _, k := range ch.keys {
		v.Keys = append(v.Keys, SavedNodeKey{k.name, k.port, k.up})
	}
	for i, h := range ch.untaken {
		if h.gone || h.done != nil {
			v.Gone = append(v.Gone, SavedGone{h.seq, i})
		}
	}
	w.frozen.Channels = append(w.frozen.Channels, v)
}

// handed makes s what it was: its connection is a worker's, or on its way there.
func (t *takeover) handed(l *loop, s *session, v *SavedHanded) {
	b := s.backend
	h := &handed{
		cookie: v.Cookie, seq: v.Seq, since: v.Since, given: v.Given, fd: -1,
		loop: l, ref: s.ref(), listener: s.listener, channel: t.channelOf(s.backend),
	}
	h.taken.Store(int64(v.Taken))
	l.table.wait(s).handed = h
	t.p.handed.add(h)
	if !v.Untaken {
		t.p.handedOff.Add(1)
		s.pool.Retake(b)
		return
	}
	h.fd = int32(v.FD)
	s.pool.RetakeUntaken(b)
	if v.Order < 0 {
		h.again()
		return
	}
	if h.given == 0 {
		h.given = h.since
	}
	t.untaken = append(t.untaken, untakenPlace{h, v.Order})
}

// untakenPlace is a connection's place in its worker's channel.
type untakenPlace struct {
	h     *handed
	order int
}

// channelOf returns b's channel. It gets its descriptors from OpenChannel; what is given to the worker before
// waits.
func (t *takeover) channelOf(b *backends.Backend) *Channel {
	ch := channelOf(b)
	if ch == nil {
		ch = t.p.newChannel(b)
		ch.pending = true
		b.Channel = ch
		t.p.limitWindow(b)
	}
	return ch
}

// channels makes the channels what they were.
func (t *takeover) channels() {
	for i := range t.f.Channels {
		v := &t.f.Channels[i]
		b, err := t.backend(v.Backend)
		if err != nil || b == nil {
			continue
		}
		ch := t.channelOf(b)
		ch.leaving = v.Leaving
		ch.node, ch.seq, ch.servers, ch.in, ch.reports, ch.broken = v.Node, v.Seq, v.Servers, v.In, v.Reports, v.Broken
		for _, k := range v.Keys {
			ch.keys = append(ch.keys, nodeKey{k.Name, k.Port, k.Up})
		}
		for _, g := range v.Gone {
			h := &handed{seq: g.Seq, fd: -1, channel: ch, gone: true, given: t.p.since()}
			t.untaken = append(t.untaken, untakenPlace{h, g.Order})
		}
	}
	slices.SortFunc(t.untaken, func(x, y untakenPlace) int { return cmp.Compare(x.order, y.order) })
	for _, x := range t.untaken {
		x.h.channel.untaken = append(x.h.channel.untaken, x.h)
	}
}
