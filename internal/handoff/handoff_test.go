package handoff

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
)

func TestConnection_ComesBackAsItWas(t *testing.T) {
	for _, c := range []Connection{
		{},
		{ID: 1<<63 + 5, Listener: "web"},
		{ID: 7, Probe: true},
		{ID: 7, Client: netip.MustParseAddrPort("192.0.2.1:81"), Listener: strings.Repeat("n", maxName)},
		{ID: 7, Client: netip.MustParseAddrPort("[2001:db8::1]:65535")},
	} {
		b := AppendConnection(nil, &c)
		if len(b) > MaxConnection {
			t.Errorf("%+v has %d bytes; want %d at most", c, len(b), MaxConnection)
		}
		if got, err := ParseConnection(b); err != nil || got != c {
			t.Errorf("got %+v, %v; want %+v", got, err, c)
		}
		if id, ok := ConnectionID(b); !ok || id != c.ID {
			t.Errorf("got id %d, %v; want %d", id, ok, c.ID)
		}
	}
}

// The layout is written down in docs/handoff.md: whoever wrote an SDK relies on it.
func TestConnection_HasTheDocumentedLayout(t *testing.T) {
	c := Connection{ID: 0x0102030405060708, Client: netip.MustParseAddrPort("192.0.2.1:258"), Listener: "web"}
	want := "LBH\x01\x01\x03\x01\x02\x01\x02\x03\x04\x05\x06\x07\x08" +
		"\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x01" + "\x00\x00\x00\x00\x00\x00\x00\x00" + "web"
	if got := string(AppendConnection(nil, &c)); got != want {
		t.Errorf("got %q; want %q", got, want)
	}
}

func TestReply_OnlyWholeMessagesCount(t *testing.T) {
	end := End{ID: 5, Received: 6, Sent: 1 << 40}
	ended := AppendEnded(nil, end)
	if r, got, err := ParseReply(ended); r != Ended || got != end || err != nil {
		t.Errorf("got %v, %+v, %v", r, got, err)
	}
	for _, r := range []Reply{Taken, Hello, Refused} {
		if got, _, err := ParseReply([]byte{byte(r)}); got != r || err != nil {
			t.Errorf("got %v, %v; want %v", got, err, r)
		}
	}
	for _, bad := range [][]byte{nil, {0}, {5}, {1, 1}, ended[:24], append(ended, 0), {byte(Ended)}} {
		if _, _, err := ParseReply(bad); !errors.Is(err, ErrMalformed) {
			t.Errorf("%v: got %v; want ErrMalformed", bad, err)
		}
	}
}

// The lines are what Node 18, 20, 22, 24 and 26 write.
func TestParseNode_ReadsWhatNodeWrites(t *testing.T) {
	for line, want := range map[string]NodeMessage{
		`{"cmd":"NODE_CLUSTER","act":"online","seq":0}`:                 {Act: NodeOnline},
		`{"cmd":"NODE_HANDLE_ACK"}`:                                     {HandleAck: true},
		`{"cmd":"NODE_CLUSTER","ack":7,"accepted":true,"seq":3}`:        {Ack: 7, Accepted: true},
		`{"cmd":"NODE_CLUSTER","ack":7,"accepted":false,"seq":3}`:       {Ack: 7, Seq: 3},
		`{"ack":8,"accepted":true,"cmd":"NODE_CLUSTER","seq":4}`:        {Ack: 8, Accepted: true, Seq: 4},
		`{"cmd":"NODE_CLUSTER","act":"exitedAfterDisconnect","seq":11}`: {Act: NodeExited, Seq: 11},
		`{"cmd":"NODE_HANDLE","type":"net.Native","msg":{"a":1}}`:       {Handle: true},
		`"ready"`:         {Own: true, Ready: true},
		`{"cmd":"stats"}`: {Own: true},
		`{"seq":"text"}`:  {Own: true},
		`[1,2]`:           {Own: true},
		`{"cmd":"NODE_CLUSTER","act":"queryServer","index":0,"data":null,"address":null,"port":3000,"addressType":4,"flags":0,"seq":1}`: {
			Act: NodeQueryServer, Seq: 1, Port: 3000, AddressType: float64(4)},
		`{"cmd":"NODE_CLUSTER","act":"queryServer","index":1,"address":"::1","port":0,"addressType":6,"fd":-1,"seq":2}`: {
			Act: NodeQueryServer, Seq: 2, Address: "::1", AddressType: float64(6), FD: -1, Index: 1},
	} {
		if got, err := ParseNode([]byte(line)); err != nil || got != want {
			t.Errorf("%s: got %+v, %v; want %+v", line, got, err, want)
		}
	}
	for _, bad := range []string{"", "{", "x", `{"cmd":"NODE_CLUSTER"`, `{"cmd":"NODE_CLUSTER","ack":1,"accepted":true,"seq":x}`} {
		if m, err := ParseNode([]byte(bad)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%q: got %+v, %v; want ErrMalformed", bad, m, err)
		}
	}
}

func TestNodeMessage_OnlyTCPIsServed(t *testing.T) {
	for line, want := range map[string]bool{
		`{"cmd":"NODE_CLUSTER","act":"queryServer","port":3000,"addressType":4}`:               true,
		`{"cmd":"NODE_CLUSTER","act":"queryServer","port":0,"addressType":6}`:                  true,
		`{"cmd":"NODE_CLUSTER","act":"queryServer","port":53,"addressType":"udp4"}`:            false,
		`{"cmd":"NODE_CLUSTER","act":"queryServer","port":-1,"addressType":-1,"address":"/s"}`: false,
	} {
		m, err := ParseNode([]byte(line))
		if err != nil || m.IsTCP() != want {
			t.Errorf("%s: got %v, %v; want %v", line, m.IsTCP(), err, want)
		}
	}
}

func TestNodeConnectionSeq_ReadsWhatWasWritten(t *testing.T) {
	for _, key := range []string{"::3000:4", `a"b,"seq":9}`, ""} {
		line := AppendNodeConnection(nil, key, 12345)
		if seq, ok := NodeConnectionSeq(line); !ok || seq != 12345 {
			t.Errorf("%s: got %d, %v; want 12345", line, seq, ok)
		}
	}
	if _, ok := NodeConnectionSeq(AppendNodeDisconnect(nil, 4)); ok {
		t.Error("a disconnect passed for a connection")
	}
}

func FuzzParseConnection(f *testing.F) {
	f.Add(AppendConnection(nil, &Connection{ID: 3, Listener: "web", Client: netip.MustParseAddrPort("[::1]:5")}))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConnection(data)
		if err != nil {
			return
		}
		again, err := ParseConnection(AppendConnection(nil, &c))
		if err != nil || again != c {
			t.Fatalf("got %+v, %v; want %+v", again, err, c)
		}
	})
}

func FuzzParseReply(f *testing.F) {
	f.Add([]byte{1})
	f.Add(AppendEnded(nil, End{ID: 1}))
	f.Fuzz(func(t *testing.T, data []byte) {
		if r, end, err := ParseReply(data); err == nil && r == Ended && string(AppendEnded(nil, end)) != string(data) {
			t.Fatalf("%v reads as %+v, which is another message", data, end)
		}
	})
}

func FuzzParseNode(f *testing.F) {
	f.Add([]byte(`{"cmd":"NODE_CLUSTER","ack":7,"accepted":true,"seq":3}`))
	f.Add([]byte(`{"cmd":"NODE_CLUSTER","act":"queryServer","port":3000,"addressType":4,"seq":1}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := ParseNode(data)
		if err == nil && m.Act == NodeQueryServer {
			line := AppendNodeServer(nil, &m, m.ServerKey(), netip.MustParseAddrPort("127.0.0.1:1"))
			if strings.Count(string(line), "\n") != 1 {
				t.Fatalf("the answer %q is not one line", line)
			}
		}
		NodeConnectionSeq(data)
	})
}
