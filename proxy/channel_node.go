package proxy

// The parent's side of Node's cluster protocol (lib/internal/cluster/child.js).

import (
	"fmt"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
)

// nodeKey names one server of a Node program, to which connections can be given.
type nodeKey struct {
	name string // by which the program knows it
	port int    // that it asked for
	up   bool   // it listens
}

// keyName is the name of a program's n-th server. An lb that comes after one that was killed knows the first
// one's.
func keyName(n int) string { return fmt.Sprintf("lb:%d", n) }

// takeOverNode is for a Node program that an lb before has told where it listens.
func (ch *Channel) takeOverNode() {
	if ch.node {
		ch.keys, ch.lenient = []nodeKey{{name: keyName(0), up: true}}, true
	}
}

// key returns the name of the server that connections go to: the one at the port that clients connect to,
// else the first. The caller holds mu.
func (ch *Channel) key() string {
	if i := slices.IndexFunc(ch.keys, func(k nodeKey) bool { return k.port == int(ch.address.Port()) }); i >= 0 {
		return ch.keys[i].name
	}
	return ch.keys[0].name
}

// nodeReply handles bytes of a Node program. It returns what is wrong with them, or "".
func (l *loop) nodeReply(ch *Channel, data []byte) (fault string) {
	if len(ch.in) > 0 {
		data = append(ch.in, data...)
	}
	rest := handoff.EachLine(data, func(line []byte) {
		if fault == "" {
			fault = l.nodeLine(ch, line)
		}
	})
	if len(rest) > handoff.MaxNodeLine {
		return fmt.Sprintf("its worker sends a message of more than %d bytes", handoff.MaxNodeLine)
	}
	if len(rest) == 0 && cap(ch.in) > 64<<10 {
		ch.in = nil
	}
	ch.in = append(ch.in[:0], rest...)
	return fault
}

// nodeLine handles one message.
func (l *loop) nodeLine(ch *Channel, line []byte) (fault string) {
	m, err := handoff.ParseNode(line)
	lenient := ch.lenient
	ch.lenient = false
	if err != nil {
		if lenient {
			return ""
		}
		return "its worker does not speak Node's protocol: " + err.Error()
	}
	switch {
	case m.HandleAck:
		return ""
	case m.Handle:
		return ch.answerNode(handoff.AppendNodeHandleAck(nil)) // what it sends was closed when it was read
	case m.Own:
		if m.Ready {
			l.p.emitChannel(ch, ChannelReady, "")
		}
		return ""
	case m.Ack != 0 && m.Accepted:
		if !ch.took(m.Ack, l.now) && !lenient {
			return "its worker takes a connection that it was not given"
		}
		return ""
	case m.Ack != 0:
		ch.refused(m.Ack, false) // nobody's: an answer to a disconnect
		return ""
	}
	switch m.Act {
	case handoff.NodeQueryServer:
		return l.nodeServer(ch, &m)
	case handoff.NodeListening:
		return l.nodeListens(ch, &m)
	case handoff.NodeClose:
		ch.mu.Lock()
		ch.keys = slices.DeleteFunc(ch.keys, func(k nodeKey) bool { return k.name == m.Key })
		none := len(ch.keys) == 0
		ch.mu.Unlock()
		if none {
			l.p.emitChannel(ch, ChannelLeaves, "its server is closed")
		}
	case handoff.NodeExited:
		l.p.emitChannel(ch, ChannelLeaves, "it has left Node's cluster")
		return ch.answerNode(handoff.AppendNodeAck(nil, m.Seq))
	}
	return ""
}

// maxNodeKeys bounds how many servers a program may have.
const maxNodeKeys = 256

// nodeServer answers a program that wants to listen.
func (l *loop) nodeServer(ch *Channel, m *handoff.NodeMessage) string {
	if !m.IsTCP() {
		l.p.emitChannel(ch, ChannelOther, fmt.Sprintf("it wants to listen at %v %s, which lb does not share: use exclusive: true", m.AddressType, m.Address))
		return ch.answerNode(handoff.AppendNodeRefusal(nil, m.Seq, m.ServerKey(), -int(unix.ENOTSUP)))
	}
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if len(ch.keys) >= maxNodeKeys {
		return "its worker opens too many servers"
	}
	name := keyName(ch.servers)
	ch.servers++
	ch.keys = append(ch.keys, nodeKey{name: name, port: m.Port})
	if ch.writeLocked(handoff.AppendNodeServer(nil, m, name, ch.address)) != 0 {
		return unreadable
	}
	return ""
}

// nodeListens notes that a server listens.
func (l *loop) nodeListens(ch *Channel, m *handoff.NodeMessage) string {
	ch.mu.Lock()
	for i := range ch.keys {
		ch.keys[i].up = ch.keys[i].up || ch.keys[i].port == m.Port || ch.keys[i].port == 0
	}
	several := len(ch.keys)
	ch.mu.Unlock()
	if several > 1 {
		l.p.emitChannel(ch, ChannelOther, fmt.Sprintf("it listens at %d ports; clients of lb go to the one that lb listens at, else to the first", several))
	}
	l.p.emitChannel(ch, ChannelListens, "")
	return ""
}

const unreadable = "its worker does not read what lb says"

func (ch *Channel) answerNode(line []byte) (fault string) {
	ch.mu.Lock()
	defer ch.mu.Unlock()
	if ch.writeLocked(line) != 0 {
		return unreadable
	}
	return ""
}
