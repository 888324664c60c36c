package handoff

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
)

// Names of the environment variables that make a Node program believe that it is a worker of Node's cluster
// module (lib/internal/process/pre_execution.js, lib/cluster.js).
const (
	EnvNodeFD            = "NODE_CHANNEL_FD"
	EnvNodeSerialization = "NODE_CHANNEL_SERIALIZATION_MODE" // "json"
	EnvNodeID            = "NODE_UNIQUE_ID"
)

// Acts of Node's cluster protocol (lib/internal/cluster/child.js), and others that lb tells apart.
const (
	NodeOnline      = "online"
	NodeQueryServer = "queryServer"
	NodeListening   = "listening"
	NodeClose       = "close"
	NodeExited      = "exitedAfterDisconnect"
)

// MaxNodeLine bounds what lb keeps of a line that is not complete, in bytes: a program may send messages of
// its own (process.send), which lb passes over.
const MaxNodeLine = 1 << 20

// NodeMessage is what a Node program says. One of its own (process.send) has Own set and nothing else.
type NodeMessage struct {
	Act       string // one of the acts above; empty in an answer
	Seq       uint64 // lb answers a message by it
	Ack       uint64 // it answers lb's message of that number; 0: it is no answer
	Accepted  bool   // of an answer to a connection: it has taken it
	HandleAck bool   // NODE_HANDLE_ACK: it has read a descriptor
	Handle    bool   // NODE_HANDLE: it sends a descriptor, which lb does not take
	Own       bool
	Ready     bool // Own: process.send("ready")

	// Of a queryServer, a listening and a close.
	Address     string
	Port        int
	AddressType any // 4 or 6 for TCP, "udp4" and "udp6", -1 for a Unix socket
	FD          int
	Index       int
	Key         string
}

// IsTCP reports whether a queryServer asks for a TCP port.
func (m *NodeMessage) IsTCP() bool {
	n, ok := m.AddressType.(float64)
	return ok && (n == 4 || n == 6) && m.Port >= 0
}

// ServerKey returns the key by which both sides know the server that a queryServer asks for.
func (m *NodeMessage) ServerKey() string {
	return fmt.Sprintf("%s:%d:%v:%d:%d", m.Address, m.Port, m.AddressType, m.FD, m.Index)
}

// nodeWire is the form of all messages.
type nodeWire struct {
	Cmd         string  `json:"cmd"`
	Act         string  `json:"act"`
	Seq         uint64  `json:"seq"`
	Ack         uint64  `json:"ack"`
	Accepted    bool    `json:"accepted"`
	Address     *string `json:"address"`
	Port        int     `json:"port"`
	AddressType any     `json:"addressType"`
	FD          int     `json:"fd"`
	Index       int     `json:"index"`
	Key         string  `json:"key"`
}

// ParseNode reads one line, without its end. The error wraps ErrMalformed: it is no JSON.
func ParseNode(line []byte) (NodeMessage, error) {
	if m, ok := parseNodeTaken(line); ok {
		return m, nil
	}
	if !json.Valid(line) {
		return NodeMessage{}, fmt.Errorf("%w: no JSON: %.40q", ErrMalformed, line)
	}
	var w nodeWire
	if json.Unmarshal(line, &w) != nil { // a message of the program's own may have any form
		return ownMessage(line), nil
	}
	switch w.Cmd {
	case "NODE_HANDLE_ACK":
		return NodeMessage{HandleAck: true}, nil
	case "NODE_HANDLE":
		return NodeMessage{Handle: true}, nil
	case "NODE_CLUSTER":
	default:
		return ownMessage(line), nil
	}
	m := NodeMessage{
		Act: w.Act, Seq: w.Seq, Ack: w.Ack, Accepted: w.Accepted, Port: w.Port, AddressType: w.AddressType,
		FD: w.FD, Index: w.Index, Key: w.Key,
	}
	if w.Address != nil {
		m.Address = *w.Address
	}
	return m, nil
}

func ownMessage(line []byte) NodeMessage {
	return NodeMessage{Own: true, Ready: bytes.Equal(bytes.TrimSpace(line), []byte(`"ready"`))}
}

// parseNodeTaken reads the two messages that answer each connection, as Node writes them, without a JSON
// decoder.
func parseNodeTaken(line []byte) (NodeMessage, bool) {
	if string(line) == `{"cmd":"NODE_HANDLE_ACK"}` {
		return NodeMessage{HandleAck: true}, true
	}
	rest, ok := bytes.CutPrefix(line, []byte(`{"cmd":"NODE_CLUSTER","ack":`))
	if !ok {
		return NodeMessage{}, false
	}
	digits := 0
	var ack uint64
	for digits < len(rest) && digits < 18 && rest[digits] >= '0' && rest[digits] <= '9' {
		ack = ack*10 + uint64(rest[digits]-'0')
		digits++
	}
	rest, ok = bytes.CutPrefix(rest[digits:], []byte(`,"accepted":true,"seq":`))
	if !ok || digits == 0 || len(rest) < 2 || rest[len(rest)-1] != '}' {
		return NodeMessage{}, false
	}
	for _, c := range rest[:len(rest)-1] {
		if c < '0' || c > '9' {
			return NodeMessage{}, false
		}
	}
	return NodeMessage{Ack: ack, Accepted: true}, true
}

// AppendNodeConnection appends the line that gives the descriptor beside it to the server key. Node answers
// it with an Ack of seq.
func AppendNodeConnection(b []byte, key string, seq uint64) []byte {
	b = append(b, `{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"cmd":"NODE_CLUSTER","act":"newconn","key":`...)
	b = appendJSON(b, key)
	b = append(b, `,"seq":`...)
	b = strconv.AppendUint(b, seq, 10)
	return append(b, "}}\n"...)
}

// NodeConnectionSeq returns the number in a line that AppendNodeConnection made, with or without its end.
func NodeConnectionSeq(line []byte) (seq uint64, ok bool) {
	rest, ok := bytes.CutPrefix(line, []byte(`{"cmd":"NODE_HANDLE"`))
	if !ok {
		return 0, false
	}
	at := bytes.LastIndex(rest, []byte(`,"seq":`))
	if at < 0 {
		return 0, false
	}
	digits, _, ok := bytes.Cut(rest[at+len(`,"seq":`):], []byte("}"))
	if !ok {
		return 0, false
	}
	n, err := strconv.ParseUint(string(digits), 10, 64)
	return n, err == nil
}

// AppendNodeServer appends the answer to the queryServer m: connections for it will come under key, and
// sockname is where it listens. Node insists on the port that it asked for, so it gets that one.
func AppendNodeServer(b []byte, m *NodeMessage, key string, sockname netip.AddrPort) []byte {
	family := "IPv4"
	if sockname.Addr().Is6() {
		family = "IPv6"
	}
	port := int(sockname.Port())
	if m.Port > 0 {
		port = m.Port
	}
	return appendLine(b, map[string]any{
		"cmd": "NODE_CLUSTER", "ack": m.Seq, "errno": 0, "key": key, "data": nil,
		"sockname": map[string]any{"address": sockname.Addr().String(), "family": family, "port": port},
	})
}

// AppendNodeRefusal appends the answer to a queryServer that lb does not serve. errno is negative, as libuv
// has it.
func AppendNodeRefusal(b []byte, seq uint64, key string, errno int) []byte {
	return appendLine(b, map[string]any{"cmd": "NODE_CLUSTER", "ack": seq, "errno": errno, "key": key, "data": nil})
}

// AppendNodeAck appends the answer to a message that wants nothing but one.
func AppendNodeAck(b []byte, seq uint64) []byte {
	return appendLine(b, map[string]any{"cmd": "NODE_CLUSTER", "ack": seq})
}

// AppendNodeHandleAck appends the answer to a descriptor: without it Node keeps back all further messages.
func AppendNodeHandleAck(b []byte) []byte { return append(b, "{\"cmd\":\"NODE_HANDLE_ACK\"}\n"...) }

// AppendNodeDisconnect appends the message that has the program close its servers and its idle connections,
// finish the others, and end.
func AppendNodeDisconnect(b []byte, seq uint64) []byte {
	return appendLine(b, map[string]any{"cmd": "NODE_CLUSTER", "act": "disconnect", "seq": seq})
}

func appendLine(b []byte, m map[string]any) []byte {
	return append(appendJSON(b, m), '\n')
}

func appendJSON(b []byte, v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic("BUG: handoff: " + err.Error())
	}
	return append(b, text...)
}

// EachLine calls each for every whole line of data, without its end, and returns what is left.
func EachLine(data []byte, each func(line []byte)) (rest []byte) {
	for {
		line, after, ok := bytes.Cut(data, []byte("\n"))
		if !ok {
			return data
		}
		each(line)
		data = after
	}
}
