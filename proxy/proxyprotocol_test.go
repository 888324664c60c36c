package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"

	"github.com/273ebdf9/lb/proxy"
)

// The client and the server of the headers in these tests.
var (
	farClient4, farServer4 = netip.MustParseAddrPort("192.0.2.7:4711"), netip.MustParseAddrPort("198.51.100.9:443")
	farClient6, farServer6 = netip.MustParseAddrPort("[2001:db8::7]:4711"), netip.MustParseAddrPort("[2001:db8::9]:443")
)

// someTLVs are an ALPN and a unique id.
var someTLVs = []proxyproto.TLV{{Type: proxyproto.PP2_TYPE_ALPN, Value: []byte("h2")}, {Type: proxyproto.PP2_TYPE_UNIQUE_ID, Value: []byte("id-0123456789")}}

// header makes a PROXY header as another program would.
func header(t testing.TB, version byte, client, server netip.AddrPort, tlvs ...proxyproto.TLV) string {
	t.Helper()
	h := proxyproto.HeaderProxyFromAddrs(version, net.TCPAddrFromAddrPort(client), net.TCPAddrFromAddrPort(server))
	if len(tlvs) > 0 {
		if err := h.SetTLVs(tlvs); err != nil {
			t.Fatal(err)
		}
	}
	b, err := h.Format()
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const v2Signature = "\r\n\r\n\x00\r\nQUIT\n"

// acceptsProxy is a rig whose listener wants PROXY headers.
func acceptsProxy(t *testing.T, change func(*setup)) *rig {
	t.Helper()
	return newRig(t, func(s *setup) {
		s.listener.AcceptProxy = true
		if change != nil {
			change(s)
		}
	}, serve(t, unixSocket, echo).address)
}

// exchange sends a word behind what was sent already, and wants nothing but the word back.
func (r *rig) exchange(c conn, word string) {
	r.Helper()
	send(r, c, []byte(word))
	receive(r, c, word)
	c.CloseWrite()
	wantEOF(r, c)
	c.Close()
}

func TestProxyIn_TakesTheClientFromTheHeader(t *testing.T) {
	for _, tc := range []struct {
		name, header string
		client       netip.AddrPort // the zero value: the peer
	}{
		{"v1 TCP4", header(t, 1, farClient4, farServer4), farClient4},
		{"v1 TCP6", header(t, 1, farClient6, farServer6), farClient6},
		{"v1 UNKNOWN", "PROXY UNKNOWN\r\n", netip.AddrPort{}},
		{"v1 UNKNOWN with more", "PROXY UNKNOWN ffff:f...f:ffff 65535 65535\r\n", netip.AddrPort{}},
		{"v2 TCP4", header(t, 2, farClient4, farServer4), farClient4},
		{"v2 TCP6", header(t, 2, farClient6, farServer6), farClient6},
		{"v2 with TLVs", header(t, 2, farClient4, farServer4, someTLVs...), farClient4},
		{"v2 LOCAL", v2Signature + "\x20\x00\x00\x00", netip.AddrPort{}},
		{"v2 LOCAL with addresses", v2Signature + "\x20\x11\x00\x0c" + "\x01\x02\x03\x04\x05\x06\x07\x08\x00\x01\x00\x02", netip.AddrPort{}},
		{"v2 UNSPEC", v2Signature + "\x21\x00\x00\x00", netip.AddrPort{}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := acceptsProxy(t, nil)
			c := r.dial()
			if !tc.client.IsValid() {
				tc.client = netip.MustParseAddrPort(c.LocalAddr().String())
			}
			send(t, c, []byte(tc.header))
			r.exchange(c, "word")
			rec := r.wantTermination("--")
			if rec.Client != tc.client {
				t.Errorf("client: got %v; want %v", rec.Client, tc.client)
			}
			if rec.BytesIn != 4 || rec.BytesOut != 4 {
				t.Errorf("bytes: got %d in, %d out; want 4, the header not among them", rec.BytesIn, rec.BytesOut)
			}
			r.wantRefused(nil)
		})
	}
}

func TestProxyIn_HeaderSplitAtEveryByte(t *testing.T) {
	for _, version := range []byte{1, 2} {
		t.Run(fmt.Sprintf("v%d", version), func(t *testing.T) {
			r := acceptsProxy(t, nil)
			var tlvs []proxyproto.TLV
			if version == 2 {
				tlvs = someTLVs
			}
			whole := header(t, version, farClient4, farServer4, tlvs...) + "word"
			for at := 1; at < len(whole); at++ {
				c := r.dial()
				send(t, c, []byte(whole[:at]))
				r.proxy.Settle()
				send(t, c, []byte(whole[at:]))
				receive(t, c, "word")
				c.Close()
				if rec := r.last(at, "--"); rec.Client != farClient4 || rec.BytesIn != 4 {
					t.Errorf("split after %d bytes: got client %v, %d bytes; want %v, 4", at, rec.Client, rec.BytesIn, farClient4)
				}
			}
			c := r.dial()
			for i := range whole {
				send(t, c, []byte(whole[i:i+1]))
				r.proxy.Settle()
			}
			receive(t, c, "word")
			c.Close()
			r.last(len(whole), "--")
			r.wantRefused(nil)
		})
	}
}

func TestProxyIn_MuchBehindTheHeaderArrivesIntact(t *testing.T) {
	r := acceptsProxy(t, nil)
	c := r.dial()
	up, down := newStream(3), newStream(3)
	got := make(chan error, 1)
	go func() {
		_, err := down.receiveFrom(c)
		got <- err
	}()
	send(t, c, append([]byte(header(t, 2, farClient6, farServer6, someTLVs...)), up.next(100_000)...))
	if err := up.sendTo(c, 3_000_000); err != nil {
		t.Fatal(err)
	}
	c.CloseWrite()
	if err := await(t, "echo", got); err != nil || down.pos != up.pos {
		t.Errorf("echo: got %d bytes, %v; want %d", down.pos, err, up.pos)
	}
	r.wantTermination("--")
}

func TestProxyIn_LargestHeaderThatFits(t *testing.T) {
	r := acceptsProxy(t, nil)
	c := r.dial()
	big := proxyproto.TLV{Type: proxyproto.PP2Type(0xE0), Value: make([]byte, 4096-12-3)}
	send(t, c, []byte(header(t, 2, farClient4, farServer4, big)))
	r.exchange(c, "word")
	if rec := r.wantTermination("--"); rec.Client != farClient4 {
		t.Errorf("client: got %v; want %v", rec.Client, farClient4)
	}
}

func TestProxyIn_BackendMaySpeakFirst(t *testing.T) {
	r := newRig(t, func(s *setup) { s.listener.AcceptProxy = true }, serve(t, unixSocket, func(c conn) {
		send(t, c, []byte("220 ready"))
		echo(c)
	}).address)
	c := r.dial()
	send(t, c, []byte(header(t, 1, farClient4, farServer4)))
	receive(t, c, "220 ready")
	r.exchange(c, "QUIT")
	r.wantTermination("--")
}

func TestProxyIn_BadHeaderCloses(t *testing.T) {
	corrupt := []byte(header(t, 2, farClient4, farServer4, proxyproto.TLV{Type: proxyproto.PP2_TYPE_CRC32C, Value: []byte{1, 2, 3, 4}}))
	for name, bytes := range map[string]string{
		"none":                  "GET / HTTP/1.1\r\n\r\n",
		"one wrong byte":        "X",
		"wrong at its end":      "PROXY TCP4 192.0.2.1 192.0.2.2 1 x\r\n",
		"v1 too long":           "PROXY TCP4 " + strings.Repeat("1", 120),
		"v2 of a wrong version": v2Signature + "\x31\x11\x00\x0c123456789012",
		"v2 too long":           v2Signature + "\x21\x11\xff\xff",
		"v2 wrong checksum":     string(corrupt),
	} {
		t.Run(name, func(t *testing.T) {
			s := serve(t, unixSocket, echo)
			r := newRig(t, func(cfg *setup) { cfg.listener.AcceptProxy = true }, s.address)
			c := r.dial()
			send(t, c, []byte(bytes))
			io.Copy(io.Discard, c) // EOF, or the reset that unread bytes cause
			if rec := r.wantTermination("PR"); rec.Pool != nil || s.served.Load() != 0 {
				t.Errorf("record: got pool %v, %d connections to the backend; want none", rec.Pool, s.served.Load())
			}
			r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedHeader: 1})
		})
	}
}

func TestProxyIn_HeaderThatEndsEarlyCloses(t *testing.T) {
	whole := header(t, 1, farClient4, farServer4)
	for _, part := range []string{"", whole[:1], whole[:20], whole[:len(whole)-1]} {
		t.Run(fmt.Sprintf("after %d bytes", len(part)), func(t *testing.T) {
			r := acceptsProxy(t, nil)
			c := r.dial()
			send(t, c, []byte(part))
			c.CloseWrite()
			io.Copy(io.Discard, c)
			r.wantTermination("PR")
			r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedHeader: 1})
		})
	}
}

func TestProxyIn_ClientThatResetsIsNoRefusal(t *testing.T) {
	for _, part := range []string{"", "PROXY TCP4"} {
		t.Run(fmt.Sprintf("after %d bytes", len(part)), func(t *testing.T) {
			r := acceptsProxy(t, nil)
			c := r.dial()
			send(t, c, []byte(part))
			eventually(t, "the session is there", func() bool { return len(r.proxy.SessionList()) == 1 })
			reset(c)
			r.wantTermination("CR")
			r.wantRefused(nil)
		})
	}
}

func TestProxyIn_Timeout(t *testing.T) {
	t.Parallel()
	for _, part := range []string{"", v2Signature + "\x21\x11"} {
		t.Run(fmt.Sprintf("after %d bytes", len(part)), func(t *testing.T) {
			r := acceptsProxy(t, func(s *setup) { s.listener.ProxyTimeout = 50 * time.Millisecond })
			c := r.dial()
			send(t, c, []byte(part))
			io.Copy(io.Discard, c)
			wantLasted(t, r.wantTermination("cR"), 50*time.Millisecond)
			r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedHeaderTimeout: 1})
		})
	}
}

func TestProxyIn_TimeoutIsOverOnceTheHeaderIsRead(t *testing.T) {
	t.Parallel()
	r := acceptsProxy(t, func(s *setup) { s.listener.ProxyTimeout = 40 * time.Millisecond })
	c := r.dial()
	send(t, c, []byte(header(t, 1, farClient4, farServer4)))
	start := time.Now()
	for time.Since(start) < 100*time.Millisecond {
		talk(t, c)
	}
	c.Close()
	r.wantTermination("--")
}

func TestProxyIn_OnlyFromTheProxiesInFront(t *testing.T) {
	r := acceptsProxy(t, func(s *setup) { s.listener.ProxyFrom = []string{"127.0.1.0/24"} })
	c := r.dialFrom("127.0.1.9")
	send(t, c, []byte(header(t, 1, farClient4, farServer4)))
	r.exchange(c, "word")
	r.last(1, "--")
	r.wantClosed(r.dialFrom("127.0.0.1"))
	r.last(2, "PR")
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedProxyFrom: 1})
}

// TestProxyIn_RulesAndLimitsHoldForTheClientOfTheHeader lets one peer speak for several clients.
func TestProxyIn_RulesAndLimitsHoldForTheClientOfTheHeader(t *testing.T) {
	r := acceptsProxy(t, func(s *setup) {
		s.listener.Deny = []string{"192.0.2.66"}
		s.listener.SourceMaxConns = 1
	})
	from := func(ip string) conn {
		c := r.dial()
		send(t, c, []byte(header(t, 2, netip.AddrPortFrom(netip.MustParseAddr(ip), 1), farServer4)))
		return c
	}
	one, two := from("192.0.2.1"), from("192.0.2.2")
	talk(t, one)
	talk(t, two)
	r.wantClosed(from("192.0.2.1"))
	r.last(1, "PR")
	r.wantClosed(from("192.0.2.66"))
	if rec := r.last(2, "PR"); rec.Client.Addr().String() != "192.0.2.66" {
		t.Errorf("client of the record: got %v; want that of the header", rec.Client)
	}
	one.Close()
	r.last(3, "--")
	again := from("192.0.2.1")
	talk(t, again)
	again.Close()
	two.Close()
	r.ended(5)
	r.wantRefused(map[proxy.Refusal]uint64{proxy.RefusedDeny: 1, proxy.RefusedSourceMaxConns: 1})
}

// told is what a backend was told of a client.
type told struct {
	version        byte
	local          bool
	client, server net.Addr
	tlvs           []proxyproto.TLV
}

// serveProxy runs a backend that wants a PROXY header of each connection, tells it, and then handles the
// rest.
func serveProxy(t testing.TB, kind string, heard chan<- told, banner string) *server {
	return serve(t, kind, func(c conn) {
		in := bufio.NewReader(c)
		h, err := proxyproto.Read(in)
		if failIf(t, err, "backend: PROXY header") {
			return
		}
		tlvs, err := h.TLVs()
		failIf(t, err, "backend: TLVs")
		heard <- told{h.Version, h.Command.IsLocal() || h.TransportProtocol.IsUnspec(), h.SourceAddr, h.DestinationAddr, tlvs}
		io.WriteString(c, banner)
		io.Copy(c, struct{ io.Reader }{in})
		c.CloseWrite()
	})
}

func TestProxyOut_TellsTheBackendWhoTheClientIs(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		for _, kind := range []string{unixSocket, tcpSocket} {
			for _, front := range []string{tcpSocket, tcp6Socket, unixSocket} {
				t.Run(version+" from "+front+" to "+kind, func(t *testing.T) {
					heard := make(chan told, 1)
					r := newRig(t, func(s *setup) {
						s.pool.SendProxy = version
						s.listener.Bind = []string{bindAddress(t, front)}
					}, serveProxy(t, kind, heard, "").address)
					c := r.dial()
					up, down := newStream(5), newStream(5)
					if err := up.sendTo(c, 300_000); err != nil {
						t.Fatal(err)
					}
					c.CloseWrite()
					if n, err := down.receiveFrom(c); err != nil || n != 300_000 {
						t.Errorf("echo: got %d bytes, %v; want 300000", n, err)
					}
					got := await(t, "header", heard)
					if fmt.Sprintf("v%d", got.version) != version {
						t.Errorf("version: got %d; want %s", got.version, version)
					}
					if front == unixSocket {
						if !got.local {
							t.Errorf("header: got %+v; want one that tells no address", got)
						}
					} else if got.local || got.client.String() != c.LocalAddr().String() || got.server.String() != c.RemoteAddr().String() {
						t.Errorf("header: got %v to %v; want %v to %v", got.client, got.server, c.LocalAddr(), c.RemoteAddr())
					}
					if rec := r.wantTermination("--"); rec.BytesIn != 300_000 {
						t.Errorf("bytes in: got %d; want 300000, the header not among them", rec.BytesIn)
					}
				})
			}
		}
	}
}

func TestProxyOut_ComesBeforeTheClientSpeaks(t *testing.T) {
	for _, kind := range []string{unixSocket, tcpSocket} {
		for _, version := range []string{"v1", "v2"} {
			t.Run(version+" to "+kind, func(t *testing.T) {
				heard := make(chan told, 1)
				r := newRig(t, func(s *setup) { s.pool.SendProxy = version }, serveProxy(t, kind, heard, "220 ready").address)
				c := r.dial()
				receive(t, c, "220 ready")
				if got := await(t, "header", heard); got.client.String() != c.LocalAddr().String() {
					t.Errorf("client: got %v; want %v", got.client, c.LocalAddr())
				}
				r.exchange(c, "HELO")
				r.wantTermination("--")
			})
		}
	}
}

func TestProxyOut_EveryBackendThatIsTriedHearsIt(t *testing.T) {
	heard := make(chan told, 1)
	r := newRig(t, func(s *setup) { s.pool.SendProxy = "v2" }, nobody(t, tcpSocket), nobody(t, unixSocket), serveProxy(t, tcpSocket, heard, "").address)
	c := r.dial()
	r.exchange(c, "word")
	await(t, "header", heard)
	if rec := r.wantTermination("--"); rec.Backend.Name != "b2" {
		t.Errorf("backend: got %s; want b2", rec.Backend.Name)
	}
}

func TestProxyOut_AfterAWaitInTheQueue(t *testing.T) {
	heard := make(chan told, 2)
	r := newRig(t, func(s *setup) { s.pool.SendProxy, s.pool.MaxConns = "v1", 1 }, serveProxy(t, unixSocket, heard, "").address)
	first := r.dial()
	talk(t, first)
	await(t, "first header", heard)
	second := r.dial()
	send(t, second, []byte("word"))
	r.waits(1)
	first.Close()
	receive(t, second, "word")
	if got := await(t, "second header", heard); got.client.String() != second.LocalAddr().String() {
		t.Errorf("client: got %v; want %v", got.client, second.LocalAddr())
	}
	second.Close()
	r.ended(2)
}

func TestProxyChain_KeepsClientAndServerAndTLVs(t *testing.T) {
	for _, tc := range []struct {
		name   string
		in     string
		out    string
		client netip.AddrPort // the zero value: the peer
		server netip.AddrPort
		tlvs   []proxyproto.TLV
	}{
		{"v1 to v1", header(t, 1, farClient4, farServer4), "v1", farClient4, farServer4, nil},
		{"v1 to v2", header(t, 1, farClient6, farServer6), "v2", farClient6, farServer6, nil},
		{"v2 to v1", header(t, 2, farClient6, farServer6, someTLVs...), "v1", farClient6, farServer6, nil},
		{"v2 to v2", header(t, 2, farClient4, farServer4, someTLVs...), "v2", farClient4, farServer4, someTLVs},
		{"UNKNOWN to v2", "PROXY UNKNOWN\r\n", "v2", netip.AddrPort{}, netip.AddrPort{}, nil},
		{"LOCAL to v1", v2Signature + "\x20\x00\x00\x00", "v1", netip.AddrPort{}, netip.AddrPort{}, nil},
		{"LOCAL with TLVs to v2", v2Signature + "\x20\x00\x00\x05" + "\x01\x00\x02h2", "v2", netip.AddrPort{}, netip.AddrPort{}, someTLVs[:1]},
	} {
		for _, kind := range []string{unixSocket, tcpSocket} {
			t.Run(tc.name+" over "+kind, func(t *testing.T) {
				heard := make(chan told, 1)
				r := newRig(t, func(s *setup) {
					s.listener.AcceptProxy = true
					s.pool.SendProxy = tc.out
				}, serveProxy(t, kind, heard, "").address)
				c := r.dial()
				client, server := tc.client.String(), tc.server.String()
				if !tc.client.IsValid() {
					client, server = c.LocalAddr().String(), c.RemoteAddr().String()
				}
				send(t, c, []byte(tc.in+"first"))
				receive(t, c, "first")
				r.exchange(c, "second")
				got := await(t, "header", heard)
				if fmt.Sprintf("v%d", got.version) != tc.out || got.client.String() != client || got.server.String() != server {
					t.Errorf("header: got v%d %v to %v; want %s %v to %v", got.version, got.client, got.server, tc.out, client, server)
				}
				same := func(a, b proxyproto.TLV) bool { return a.Type == b.Type && string(a.Value) == string(b.Value) }
				if !slices.EqualFunc(got.tlvs, tc.tlvs, same) {
					t.Errorf("TLVs: got %v; want %v", got.tlvs, tc.tlvs)
				}
				if rec := r.wantTermination("--"); rec.BytesIn != 11 {
					t.Errorf("bytes in: got %d; want 11", rec.BytesIn)
				}
			})
		}
	}
}

// TestProxyOut_BackendThatClosesAtOnceEndsTheSession accepts and closes without a look at the header.
func TestProxyOut_BackendThatClosesAtOnceEndsTheSession(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, func(s *setup) { s.pool.SendProxy = "v2" }, serve(t, kind, func(conn) {}).address)
		for range 20 {
			c, err := net.Dial("tcp", r.ln.Addresses()[0])
			if err != nil {
				continue // the reset was faster
			}
			if n, err := c.Read(make([]byte, 1)); n != 0 || err == nil {
				t.Errorf("read: got %d bytes, %v; want an end", n, err)
			}
			c.Close()
		}
		r.ended(20)
	})
}
