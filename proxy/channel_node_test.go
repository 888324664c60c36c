package proxy_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

// nodeTalk is a program that speaks Node's cluster protocol as a test says, line by line.
type nodeTalk struct {
	*rig
	back   int
	in     []byte
	fds    []int // that came and were not used yet
	events chan string
}

func newNodeTalk(t *testing.T) *nodeTalk {
	t.Helper()
	n := &nodeTalk{events: make(chan string, 100)}
	n.rig = newRig(t, func(s *setup) {
		handsOff(s)
		s.pool.Handoff = backends.HandoffNode
		s.pool.HandoffTimeout = ioTimeout
		s.prepare = func(p *proxy.Proxy) {
			p.OnChannel = func(_ *backends.Backend, event proxy.ChannelEvent, text string) {
				n.events <- fmt.Sprint(event, " ", text)
			}
		}
	})
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	n.back = pair[1]
	unix.SetsockoptTimeval(n.back, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: int64(ioTimeout / time.Second)})
	cfg := backends.DefaultBackendConfig()
	cfg.Name, cfg.Address = "w0", "unix:/nowhere/w0"
	b, err := n.pool.Add(cfg, backends.HealthStarting)
	if err != nil {
		t.Fatal(err)
	}
	if err := n.proxy.OpenChannel(b, proxy.ChannelConfig{Node: true, Front: pair[0], Back: pair[1]}); err != nil {
		t.Skipf("this host tells of no ends of connections: %v", err)
	}
	n.pool.SetHealth(b, backends.HealthUp, "test")
	t.Cleanup(func() {
		for _, fd := range n.fds {
			unix.Close(fd)
		}
		n.proxy.CloseChannel(b)
		unix.Close(pair[0])
		unix.Close(pair[1])
	})
	return n
}

func (n *nodeTalk) say(format string, args ...any) {
	n.Helper()
	if _, err := unix.Write(n.back, fmt.Appendf(nil, format+"\n", args...)); err != nil {
		n.Fatal(err)
	}
}

// hear returns lb's next line.
func (n *nodeTalk) hear() (m map[string]any) {
	n.Helper()
	for !bytes.Contains(n.in, []byte("\n")) {
		buf, oob := make([]byte, 4096), make([]byte, 256)
		size, rights, _, _, err := unix.Recvmsg(n.back, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR { // a signal of the Go runtime
			continue
		}
		if err != nil || size == 0 {
			n.Fatalf("lb says nothing: %v", err)
		}
		n.in = append(n.in, buf[:size]...)
		if messages, err := unix.ParseSocketControlMessage(oob[:rights]); err == nil && len(messages) > 0 {
			fds, _ := unix.ParseUnixRights(&messages[0])
			n.fds = append(n.fds, fds...)
		}
	}
	line, rest, _ := bytes.Cut(n.in, []byte("\n"))
	n.in = rest
	if err := json.Unmarshal(line, &m); err != nil {
		n.Fatalf("lb says %q: %v", line, err)
	}
	return m
}

func (n *nodeTalk) event(want string) {
	n.Helper()
	select {
	case got := <-n.events:
		if got != want {
			n.Fatalf("event: got %q; want %q", got, want)
		}
	case <-time.After(ioTimeout):
		n.Fatalf("event: got none; want %q", want)
	}
}

// listens has the program listen at a port, and returns the key of its server.
func (n *nodeTalk) listens(port int) (key string) {
	n.Helper()
	n.say(`{"cmd":"NODE_CLUSTER","act":"online","seq":1}`)
	n.say(`{"cmd":"NODE_CLUSTER","act":"queryServer","address":null,"port":%d,"addressType":4,"fd":-1,"index":0,"data":null,"seq":2}`, port)
	m := n.hear()
	name, _ := m["sockname"].(map[string]any)
	if m["ack"] != 2.0 || m["errno"] != 0.0 || name["port"] != float64(port) {
		n.Fatalf("answer to queryServer: got %v; want an ack of 2 with port %d", m, port)
	}
	n.say(`{"cmd":"NODE_CLUSTER","act":"listening","address":null,"port":%d,"addressType":4,"fd":-1,"seq":3}`, port)
	n.event(fmt.Sprint(proxy.ChannelListens, " "))
	return m["key"].(string)
}

func TestNode_TakesAndRefusesConnections(t *testing.T) {
	n := newNodeTalk(t)
	key := n.listens(3000)
	n.client()
	for i, accepted := range []bool{false, true} { // who refuses is tried again when nobody else is there
		m := n.hear()
		inner, _ := m["msg"].(map[string]any)
		if m["cmd"] != "NODE_HANDLE" || m["type"] != "net.Native" || inner["act"] != "newconn" || inner["key"] != key || len(n.fds) != i+1 {
			t.Fatalf("a connection: got %v with %d descriptors; want newconn for %s with one", m, len(n.fds)-i, key)
		}
		n.say(`{"cmd":"NODE_HANDLE_ACK"}`)
		n.say(`{"cmd":"NODE_CLUSTER","ack":%.0f,"accepted":%v,"seq":%d}`, inner["seq"], accepted, 4+i)
	}
	b := n.pool.Get("w0")
	eventually(t, "it is taken", func() bool { return b.Counters.Connections.Load() == 1 && b.Untaken() == 0 })
}

func TestNode_ReadyLeavesAndExits(t *testing.T) {
	n := newNodeTalk(t)
	key := n.listens(3000)
	n.say(`"ready"`)
	n.event(fmt.Sprint(proxy.ChannelReady, " "))
	n.say(`{"my":"own message"}`) // nothing comes of it
	n.say(`{"cmd":"NODE_CLUSTER","act":"close","key":%q,"seq":9}`, key)
	n.event(fmt.Sprint(proxy.ChannelLeaves, " its server is closed"))
	n.say(`{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":10}`)
	n.event(fmt.Sprint(proxy.ChannelLeaves, " it has left Node's cluster"))
	if m := n.hear(); m["ack"] != 10.0 {
		t.Errorf("answer: got %v; want an ack of 10", m)
	}
}

func TestNode_IsToldToDisconnectOnce(t *testing.T) {
	n := newNodeTalk(t)
	n.listens(3000)
	for range 2 {
		n.proxy.Disconnect(n.pool.Get("w0"))
	}
	if m := n.hear(); m["act"] != "disconnect" {
		t.Errorf("got %v; want a disconnect", m)
	}
	n.say(`{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":10}`)
	if m := n.hear(); m["ack"] != 10.0 {
		t.Errorf("next: got %v; want an ack of 10, and no second disconnect", m)
	}
}

func TestNode_WhatBreaksTheProtocolEndsItsUse(t *testing.T) {
	for name, line := range map[string]string{
		"nonsense":                          "HTTP/1.1 200 OK",
		"a connection that it has not been": `{"cmd":"NODE_CLUSTER","ack":12345,"accepted":true,"seq":9}`,
	} {
		t.Run(name, func(t *testing.T) {
			n := newNodeTalk(t)
			n.listens(3000)
			n.say("%s", line)
			select {
			case got := <-n.events:
				if want := fmt.Sprint(proxy.ChannelBroken); got[:len(want)] != want {
					t.Errorf("event: got %q; want that the channel is broken", got)
				}
			case <-time.After(ioTimeout):
				t.Error("nobody noticed")
			}
		})
	}
}

func TestNode_UnixAndUDPSocketsAreRefused(t *testing.T) {
	n := newNodeTalk(t)
	for seq, kind := range []string{`-1`, `"udp4"`} {
		n.say(`{"cmd":"NODE_CLUSTER","act":"queryServer","address":"/x","port":-1,"addressType":%s,"fd":-1,"index":0,"seq":%d}`, kind, seq+1)
		if m := n.hear(); m["ack"] != float64(seq+1) || m["errno"] != -float64(unix.ENOTSUP) {
			t.Errorf("answer for %s: got %v; want ENOTSUP", kind, m)
		}
	}
}
