// Package handoff speaks the two protocols in which lb gives an accepted socket to a worker: "lb", one
// SOCK_SEQPACKET message a connection (docs/handoff.md), and "node", the JSON lines of Node's cluster module.
//
// It is the form of messages only: it opens no socket, starts no goroutine, and keeps nothing.
package handoff

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
)

const (
	// EnvFD names the environment variable that says which descriptor is the worker's end of the channel.
	EnvFD = "LB_HANDOFF_FD"
	// EnvAddress names the environment variable that says where clients connect to: "127.0.0.1:8080".
	EnvAddress = "LB_HANDOFF_ADDRESS"
	// EnvReport names the environment variable that asks a worker to say Hello, and Ended of each connection:
	// "1". lb sets it where the kernel does not tell when connections end.
	EnvReport = "LB_HANDOFF_REPORT"
	// FD is the descriptor that lb gives to a worker.
	FD = 3

	// MaxConnection is the size of the longest message that says what the descriptor beside it is.
	MaxConnection = headerSize + maxName

	headerSize = 40
	maxName    = 64
	version    = 1
)

var magic = [4]byte{'L', 'B', 'H', version}

// Errors of the decoders. What was wrong is in their text.
var (
	// ErrMalformed means that bytes are no message of the protocol.
	ErrMalformed = errors.New("not a message of the hand-off protocol")
)

// Kinds of a message to a worker.
const (
	kindConnection = 1
	kindProbe      = 2
)

// Connection is what lb says of a socket that it gives to a worker. The zero value of a field is "not known".
type Connection struct {
	// ID names the connection: SO_COOKIE of the socket.
	ID uint64
	// Probe means that the connection is lb's own: lb wants to see that it is taken, and closes it.
	Probe bool
	// Client is who the client is where the socket's own peer is not: a PROXY header said so.
	Client netip.AddrPort
	// Listener is the name of the listener in lb's config.
	Listener string
}

// AppendConnection appends the message for c to b. A name that is too long is cut.
func AppendConnection(b []byte, c *Connection) []byte {
	kind := byte(kindConnection)
	if c.Probe {
		kind = kindProbe
	}
	name := c.Listener[:min(len(c.Listener), maxName)]
	b = append(b, magic[:]...)
	b = append(b, kind, byte(len(name)))
	b = binary.BigEndian.AppendUint16(b, c.Client.Port())
	b = binary.BigEndian.AppendUint64(b, c.ID)
	var address [16]byte
	if c.Client.IsValid() {
		address = c.Client.Addr().As16()
	}
	b = append(b, address[:]...)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // for what is to come
	return append(b, name...)
}

// ParseConnection reads the message that came with a socket. The error wraps ErrMalformed.
func ParseConnection(b []byte) (Connection, error) {
	if len(b) < headerSize || [4]byte(b[:4]) != magic {
		return Connection{}, fmt.Errorf("%w: %d bytes, which do not begin with %q", ErrMalformed, len(b), magic)
	}
	name := int(b[5])
	if name > maxName || len(b) < headerSize+name {
		return Connection{}, fmt.Errorf("%w: a name of %d bytes in a message of %d", ErrMalformed, name, len(b))
	}
	c := Connection{ID: binary.BigEndian.Uint64(b[8:]), Probe: b[4] == kindProbe, Listener: string(b[headerSize : headerSize+name])}
	if b[4] != kindConnection && b[4] != kindProbe {
		return Connection{}, fmt.Errorf("%w: kind %d", ErrMalformed, b[4])
	}
	if address := netip.AddrFrom16([16]byte(b[16:32])).Unmap(); !address.IsUnspecified() {
		c.Client = netip.AddrPortFrom(address, binary.BigEndian.Uint16(b[6:]))
	}
	return c, nil
}

// ConnectionID returns the ID in a message that AppendConnection made, without the rest.
func ConnectionID(b []byte) (id uint64, ok bool) {
	if len(b) < headerSize || [4]byte(b[:4]) != magic {
		return 0, false
	}
	return binary.BigEndian.Uint64(b[8:]), true
}

// Reply is the first byte of what a worker says.
type Reply byte

const (
	// Taken means that the worker has taken the connection that was given first of those that it has not
	// taken yet.
	Taken Reply = 1
	// Ended means that a connection has ended. Only workers where lb cannot see it itself say so.
	Ended Reply = 2
	// Hello means that the worker will say Ended of each connection.
	Hello Reply = 3
	// Refused is as Taken, but the worker could not take the connection, for want of descriptors for example.
	// lb gives it to another one.
	Refused Reply = 4
)

// EndedSize is the size of an Ended message.
const EndedSize = 1 + 3*8

// End is what an Ended message says.
type End struct {
	ID       uint64
	Received uint64 // bytes from the client
	Sent     uint64 // bytes to the client
}

// AppendEnded appends the message that says that a connection has ended.
func AppendEnded(b []byte, e End) []byte {
	b = append(b, byte(Ended))
	b = binary.BigEndian.AppendUint64(b, e.ID)
	b = binary.BigEndian.AppendUint64(b, e.Received)
	return binary.BigEndian.AppendUint64(b, e.Sent)
}

// ParseReply reads what a worker says; end is for Ended. The error wraps ErrMalformed.
func ParseReply(b []byte) (r Reply, end End, err error) {
	switch {
	case len(b) == 1 && Reply(b[0]) == Taken:
		return Taken, End{}, nil
	case len(b) == 1 && (Reply(b[0]) == Hello || Reply(b[0]) == Refused):
		return Reply(b[0]), End{}, nil
	case len(b) == EndedSize && Reply(b[0]) == Ended:
		return Ended, End{binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:]), binary.BigEndian.Uint64(b[17:])}, nil
	case len(b) == 0:
		return 0, End{}, fmt.Errorf("%w: an empty one", ErrMalformed)
	}
	return 0, End{}, fmt.Errorf("%w: %d bytes that begin with %d", ErrMalformed, len(b), b[0])
}
