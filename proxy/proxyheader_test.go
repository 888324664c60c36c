package proxy

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/pires/go-proxyproto"
)

// v2Block is a header of version 2 as the spec's 2.2 draws it.
func v2Block(command, family byte, block ...[]byte) string {
	all := slices.Concat(block...)
	h := append([]byte("\r\n\r\n\x00\r\nQUIT\n"), command, family, 0, 0)
	binary.BigEndian.PutUint16(h[14:], uint16(len(all)))
	return string(append(h, all...))
}

func tlv(kind proxyproto.PP2Type, value string) []byte {
	return append([]byte{byte(kind), byte(len(value) >> 8), byte(len(value))}, value...)
}

// withChecksum fills in the checksum of a header that has one in its last TLV.
func withChecksum(header string) string {
	b := []byte(header)
	binary.BigEndian.PutUint32(b[len(b)-4:], crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)))
	return string(b)
}

var (
	block4    = []byte{192, 0, 2, 7, 198, 51, 100, 1, 0xdc, 0x04, 0x01, 0xbb}
	block6    = slices.Concat(netip.MustParseAddr("2001:db8::7").AsSlice(), netip.MustParseAddr("2001:db8::1").AsSlice(), []byte{0xdc, 0x04, 0x01, 0xbb})
	blockUnix = slices.Concat([]byte("/run/client"), make([]byte, 97), []byte("/run/server"), make([]byte, 97))
	uniqueID  = tlv(proxyproto.PP2_TYPE_UNIQUE_ID, "7f-03")
	noSum     = tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00\x00\x00")
)

// awsTLVs are what an AWS Network Load Balancer sends: a checksum in front, the endpoint's id, padding.
var awsTLVs = "\x03\x00\x04\xe8\xd6\x89\x2d\xea\x00\x17\x01vpce-08d2bf15fac5001c9\x04\x00\x24" + strings.Repeat("\x00", 36)

// proxyHeaderCases are headers, and what they say or why they are refused. In all of them, each part of the
// input but the last byte is too short to tell, or is refused as the whole is.
var proxyHeaderCases = []struct {
	name           string
	in             string
	client, server string // "" for the zero value
	tlvs           string
	err            error
}{
	{name: "v1, the spec's example", in: "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n", client: "192.168.0.1:56324", server: "192.168.0.11:443"},
	{name: "v1, the longest TCP4", in: "PROXY TCP4 255.255.255.255 255.255.255.255 65535 65535\r\n", client: "255.255.255.255:65535", server: "255.255.255.255:65535"},
	{name: "v1, the longest TCP6", in: "PROXY TCP6 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n", client: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535", server: "[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535"},
	{name: "v1, TCP6", in: "PROXY TCP6 2001:DB8::7 2001:db8::1 0 1\r\n", client: "[2001:db8::7]:0", server: "[2001:db8::1]:1"},
	{name: "v1, IPv4-mapped", in: "PROXY TCP6 ::ffff:192.0.2.7 ::ffff:c633:6401 1 2\r\n", client: "192.0.2.7:1", server: "198.51.100.1:2"},
	{name: "v1, UNKNOWN", in: "PROXY UNKNOWN\r\n"},
	{name: "v1, the longest UNKNOWN", in: "PROXY UNKNOWN ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff 65535 65535\r\n"},
	{name: "v1, UNKNOWN and anything", in: "PROXY UNKNOWN \x00\xff what ever\r\n"},

	{name: "v1, too long", in: "PROXY UNKNOWN " + strings.Repeat("f", 94) + "\r\n", err: errProxyTooLong},
	{name: "v1, no end", in: "PROXY TCP4 " + strings.Repeat("1", 96), err: errProxyTooLong},
	{name: "v1, LF alone", in: "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\n", err: errProxyInvalid},
	{name: "v1, CR alone", in: "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r \r\n", err: errProxyInvalid},
	{name: "v1, no protocol", in: "PROXY \r\n", err: errProxyInvalid},
	{name: "v1, another protocol", in: "PROXY UDP4 192.0.2.7 198.51.100.1 1 2\r\n", err: errProxyInvalid},
	{name: "v1, lower case", in: "PROXY tcp4 192.0.2.7 198.51.100.1 1 2\r\n", err: errProxyInvalid},
	{name: "v1, two spaces", in: "PROXY TCP4  192.0.2.7 198.51.100.1 1 2\r\n", err: errProxyInvalid},
	{name: "v1, space at the end", in: "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 \r\n", err: errProxyInvalid},
	{name: "v1, a field more", in: "PROXY TCP4 192.0.2.7 198.51.100.1 1 2 3\r\n", err: errProxyInvalid},
	{name: "v1, a field less", in: "PROXY TCP4 192.0.2.7 198.51.100.1 1\r\n", err: errProxyInvalid},
	{name: "v1, port above 65535", in: "PROXY TCP4 192.0.2.7 198.51.100.1 65536 2\r\n", err: errProxyInvalid},
	{name: "v1, port with a zero in front", in: "PROXY TCP4 192.0.2.7 198.51.100.1 01 2\r\n", err: errProxyInvalid},
	{name: "v1, signed port", in: "PROXY TCP4 192.0.2.7 198.51.100.1 +1 2\r\n", err: errProxyInvalid},
	{name: "v1, address with a zero in front", in: "PROXY TCP4 192.0.02.7 198.51.100.1 1 2\r\n", err: errProxyInvalid},
	{name: "v1, IPv6 in TCP4", in: "PROXY TCP4 2001:db8::7 2001:db8::1 1 2\r\n", err: errProxyInvalid},
	{name: "v1, IPv4 in TCP6", in: "PROXY TCP6 192.0.2.7 198.51.100.1 1 2\r\n", err: errProxyInvalid},
	{name: "v1, address with a zone", in: "PROXY TCP6 fe80::1%lo fe80::2 1 2\r\n", err: errProxyInvalid},

	{name: "v2, TCP over IPv4", in: v2Block(0x21, 0x11, block4), client: "192.0.2.7:56324", server: "198.51.100.1:443"},
	{name: "v2, TCP over IPv6", in: v2Block(0x21, 0x21, block6), client: "[2001:db8::7]:56324", server: "[2001:db8::1]:443"},
	{name: "v2, IPv4-mapped", in: v2Block(0x21, 0x21, []byte("\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\xff\xff\xc0\x00\x02\x07"), block6[16:]), client: "192.0.2.7:56324", server: "[2001:db8::1]:443"},
	{name: "v2, TLVs", in: v2Block(0x21, 0x11, block4, uniqueID, tlv(0xE1, "")), client: "192.0.2.7:56324", server: "198.51.100.1:443", tlvs: string(uniqueID) + "\xe1\x00\x00"},
	{name: "v2, the most", in: v2Block(0x21, 0x11, block4, tlv(0xE1, strings.Repeat("x", 4096-12-3))), client: "192.0.2.7:56324", server: "198.51.100.1:443", tlvs: string(tlv(0xE1, strings.Repeat("x", 4096-12-3)))},
	{name: "v2, UDP", in: v2Block(0x21, 0x12, block4, uniqueID), tlvs: string(uniqueID)},
	{name: "v2, Unix stream", in: v2Block(0x21, 0x31, blockUnix, uniqueID), tlvs: string(uniqueID)},
	{name: "v2, Unix datagram", in: v2Block(0x21, 0x32, blockUnix)},
	{name: "v2, LOCAL", in: v2Block(0x20, 0x00)},
	{name: "v2, LOCAL with TLVs", in: v2Block(0x20, 0x00, uniqueID), tlvs: string(uniqueID)},
	{name: "v2, LOCAL with addresses", in: v2Block(0x20, 0x11, block4)},
	{name: "v2, LOCAL with addresses and TLVs", in: v2Block(0x20, 0x21, block6, uniqueID), tlvs: string(uniqueID)},
	{name: "v2, LOCAL with a family and nothing", in: v2Block(0x20, 0x11)},
	{name: "v2, LOCAL with anything", in: v2Block(0x20, 0x00, []byte("any\xffthing"))},
	{name: "v2, UNSPEC", in: v2Block(0x21, 0x00)},
	{name: "v2, UNSPEC with TLVs", in: v2Block(0x21, 0x00, uniqueID), tlvs: string(uniqueID)},
	{name: "v2, UNSPEC with anything", in: v2Block(0x21, 0x00, []byte("any\xffthing"))},
	{name: "v2, checksum", in: withChecksum(v2Block(0x21, 0x11, block4, uniqueID, noSum)), client: "192.0.2.7:56324", server: "198.51.100.1:443",
		tlvs: withChecksum(v2Block(0x21, 0x11, block4, uniqueID, noSum))[28:]},
	{name: "v2, of an AWS Network Load Balancer", in: v2Block(0x21, 0x11, []byte("\xac\x1f\x07\x71\xac\x1f\x0a\x1f\xc8\xf2\x00\x50"), []byte(awsTLVs)),
		client: "172.31.7.113:51442", server: "172.31.10.31:80", tlvs: awsTLVs},

	{name: "v2, too long", in: v2Block(0x21, 0x11, block4, tlv(0xE1, strings.Repeat("x", 4096-12-3+1))), err: errProxyTooLong},
	{name: "v2, version 1", in: v2Block(0x11, 0x11, block4), err: errProxyInvalid},
	{name: "v2, version 3", in: v2Block(0x31, 0x11, block4), err: errProxyInvalid},
	{name: "v2, another command", in: v2Block(0x22, 0x11, block4), err: errProxyInvalid},
	{name: "v2, another family", in: v2Block(0x21, 0x41, block4), err: errProxyInvalid},
	{name: "v2, another transport", in: v2Block(0x21, 0x13, block4), err: errProxyInvalid},
	{name: "v2, family without transport", in: v2Block(0x21, 0x10, block4), err: errProxyInvalid},
	{name: "v2, too short for IPv4", in: v2Block(0x21, 0x11, block4[:11]), err: errProxyInvalid},
	{name: "v2, too short for IPv6", in: v2Block(0x21, 0x21, block4), err: errProxyInvalid},
	{name: "v2, too short for Unix", in: v2Block(0x21, 0x31, block6), err: errProxyInvalid},
	{name: "v2, TLV cut in its value", in: v2Block(0x21, 0x11, block4, uniqueID[:7]), err: errProxyInvalid},
	{name: "v2, TLV cut in its head", in: v2Block(0x21, 0x11, block4, uniqueID, []byte{5, 0}), err: errProxyInvalid},
	{name: "v2, wrong checksum", in: v2Block(0x21, 0x11, block4, uniqueID, noSum), err: errProxyChecksum},
	{name: "v2, wrong after the checksum", in: v2Block(0x21, 0x11, []byte("\xac\x1f\x07\x71\xac\x1f\x0a\x1f\xc8\xf2\x00\x50"), []byte(strings.Replace(awsTLVs, "vpce", "VPCE", 1))), err: errProxyChecksum},
	{name: "v2, LOCAL with a wrong checksum", in: v2Block(0x20, 0x00, noSum), err: errProxyChecksum},
	{name: "v2, short checksum", in: v2Block(0x21, 0x11, block4, tlv(proxyproto.PP2_TYPE_CRC32C, "\x00\x00")), err: errProxyInvalid},
	{name: "v2, two checksums", in: withChecksum(v2Block(0x21, 0x11, block4, noSum, noSum)), err: errProxyChecksum},

	{name: "HTTP", in: "GET / HTTP/1.1\r\n", err: errProxyMissing},
	{name: "HTTP that begins alike", in: "PROPFIND / HTTP/1.1\r\n", err: errProxyMissing},
	{name: "PROXY and more", in: "PROXYS TCP4 192.0.2.7 198.51.100.1 1 2\r\n", err: errProxyMissing},
	{name: "PROXY and no space", in: "PROXY\r\n", err: errProxyMissing},
	{name: "TLS", in: "\x16\x03\x01\x02\x00\x01", err: errProxyMissing},
	{name: "nearly v2", in: "\r\n\r\n\x00\r\nQUIT\r", err: errProxyMissing},
	{name: "two empty lines", in: "\r\n\r\nGET /", err: errProxyMissing},
	{name: "a NUL", in: "\x00", err: errProxyMissing},
}

func addrPort(s string) netip.AddrPort {
	if s == "" {
		return netip.AddrPort{}
	}
	return netip.MustParseAddrPort(s)
}

func TestProxyHeader_Read(t *testing.T) {
	var r proxyHeaderReader
	for _, c := range proxyHeaderCases {
		t.Run(c.name, func(t *testing.T) {
			for _, payload := range []string{"", "P", "GET / HTTP/1.1\r\n\r\n", c.in} {
				h, n, err := r.read([]byte(c.in + payload))
				if c.err != nil {
					if !errors.Is(err, c.err) || n != 0 {
						t.Fatalf("got %+v, %d, %v; want %v", h, n, err, c.err)
					}
					continue
				}
				if err != nil || n != len(c.in) {
					t.Fatalf("with %q behind: got %d bytes, %v; want %d", payload, n, err, len(c.in))
				}
				if h.Client != addrPort(c.client) || h.Server != addrPort(c.server) || string(h.TLVs) != c.tlvs {
					t.Errorf("got %v, %v, %q; want %v, %v, %q", h.Client, h.Server, h.TLVs, c.client, c.server, c.tlvs)
				}
				if want := uint8(strings.Index("-12", c.name[1:2])); h.Version != want {
					t.Errorf("got version %d; want %d", h.Version, want)
				}
			}
		})
	}
}

// TestProxyHeader_SplitAnywhere cuts every header at every byte.
func TestProxyHeader_SplitAnywhere(t *testing.T) {
	var r proxyHeaderReader
	for _, c := range proxyHeaderCases {
		for _, payload := range []string{"", "hello"} {
			checkSplits(t, &r, []byte(c.in+payload))
		}
		for cut := range len(c.in) {
			if _, n, err := r.read([]byte(c.in[:cut])); c.err == nil && (n != 0 || err != nil) {
				t.Errorf("%s, first %d of %d bytes: got %d, %v; want more", c.name, cut, len(c.in), n, err)
			}
		}
	}
}

// checkSplits feeds b in parts of every length (of some lengths, beyond 300 bytes): each either asks for more
// or gives what b as a whole gives, and once it was not more that it asked for, so does every longer one.
func checkSplits(t *testing.T, r *proxyHeaderReader, b []byte) {
	t.Helper()
	want, wantN, wantErr := r.read(b)
	decided := false
	for cut := 0; cut <= len(b); cut++ {
		if rest := len(b) - cut; cut > 300 && rest > 50 {
			cut += rest / 20
		}
		h, n, err := r.read(b[:cut:cut])
		if n == 0 && err == nil {
			if decided {
				t.Fatalf("%q: asks for more after %d bytes, when less was enough", b, cut)
			}
			continue
		}
		decided = true
		if n != wantN || n > cut || h.Version != want.Version || h.Client != want.Client || h.Server != want.Server || !bytes.Equal(h.TLVs, want.TLVs) {
			t.Fatalf("%q: first %d bytes: got %+v, %d; want %+v, %d", b, cut, h, n, want, wantN)
		}
		for _, kind := range []error{nil, errProxyMissing, errProxyTooLong, errProxyInvalid, errProxyChecksum} {
			if errors.Is(err, kind) != errors.Is(wantErr, kind) {
				t.Fatalf("%q: first %d bytes: got %v; want %v", b, cut, err, wantErr)
			}
		}
	}
	if decided != (wantN > 0 || wantErr != nil) {
		t.Fatalf("%q: decided in parts: %v; as a whole: %d, %v", b, decided, wantN, wantErr)
	}
}

// TestProxyHeader_RefusesEarly: what can be no header is refused at its first wrong byte, without waiting for
// more.
func TestProxyHeader_RefusesEarly(t *testing.T) {
	f := func(in string, want error) {
		t.Helper()
		var r proxyHeaderReader
		if _, n, err := r.read([]byte(in)); n != 0 || !errors.Is(err, want) {
			t.Errorf("%q: got %d, %v; want %v", in, n, err, want)
		}
		if _, n, err := r.read([]byte(in[:len(in)-1])); n != 0 || err != nil {
			t.Errorf("%q: got %d, %v; want more", in[:len(in)-1], n, err)
		}
	}
	f("G", errProxyMissing)
	f("PROXI", errProxyMissing)
	f("\r\n\r\nQ", errProxyMissing)
	f("PROXY UNKNOWN "+strings.Repeat("x", 93), errProxyTooLong)
	f(v2Block(0x21, 0x11, make([]byte, 4097))[:16], errProxyTooLong)
	f(v2Block(0x21, 0x11, make([]byte, 65535))[:16], errProxyTooLong)
}

// TestProxyHeader_LibraryTakesWhatFits: the library refuses nothing for its size that is within the limit
// here.
func TestProxyHeader_LibraryTakesWhatFits(t *testing.T) {
	if proxyproto.MaxV2HeaderSize != maxProxyV2 {
		t.Errorf("the library's limit is %d; here it is %d", proxyproto.MaxV2HeaderSize, maxProxyV2)
	}
}

func TestProxyHeader_Append(t *testing.T) {
	f := func(version uint8, client, server string, tlvs []byte, want string) {
		t.Helper()
		got, err := appendProxyHeader([]byte("before "), version, addrPort(client), addrPort(server), tlvs)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != "before "+want {
			t.Errorf("got\n%swant\n%s", hex.Dump(got[7:]), hex.Dump([]byte(want)))
		}
	}
	f(1, "192.168.0.1:56324", "192.168.0.11:443", uniqueID, "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n")
	f(1, "[2001:db8::7]:1", "[2001:db8::1]:2", nil, "PROXY TCP6 2001:db8::7 2001:db8::1 1 2\r\n")
	f(1, "192.0.2.7:1", "[2001:db8::1]:2", nil, "PROXY TCP6 ::ffff:192.0.2.7 2001:db8::1 1 2\r\n")
	f(1, "[::ffff:192.0.2.7]:1", "198.51.100.1:2", nil, "PROXY TCP4 192.0.2.7 198.51.100.1 1 2\r\n")
	f(1, "", "", nil, "PROXY UNKNOWN\r\n")
	f(1, "192.0.2.7:1", "", nil, "PROXY UNKNOWN\r\n")

	f(2, "192.0.2.7:56324", "198.51.100.1:443", nil, v2Block(0x21, 0x11, block4))
	f(2, "[2001:db8::7]:56324", "[2001:db8::1]:443", nil, v2Block(0x21, 0x21, block6))
	f(2, "192.0.2.7:56324", "198.51.100.1:443", uniqueID, v2Block(0x21, 0x11, block4, uniqueID))
	f(2, "", "", nil, v2Block(0x20, 0x00))
	f(2, "", "198.51.100.1:443", uniqueID, v2Block(0x20, 0x00, uniqueID))

	// A checksum is made anew, for the header that it stands in.
	f(2, "192.0.2.7:56324", "198.51.100.1:443", slices.Concat(uniqueID, tlv(proxyproto.PP2_TYPE_CRC32C, "old!")),
		withChecksum(v2Block(0x21, 0x11, block4, uniqueID, noSum)))
	f(2, "", "", tlv(proxyproto.PP2_TYPE_CRC32C, "old!"), withChecksum(v2Block(0x20, 0x00, noSum)))

	if out, err := appendProxyHeader([]byte("x"), 2, addrPort(""), addrPort(""), []byte{1, 0, 9}); err == nil || string(out) != "x" {
		t.Errorf("TLV cut short: got %q, %v; want an error", out, err)
	}
}

// FuzzProxyHeader: no input panics, is read beyond its end, or depends on how it arrives; what is understood
// can be passed on, and is understood there in the same way.
func FuzzProxyHeader(f *testing.F) {
	for _, c := range proxyHeaderCases {
		f.Add([]byte(c.in))
		f.Add([]byte(c.in + "payload"))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > maxProxyBytes+16 {
			return
		}
		var r proxyHeaderReader
		checkSplits(t, &r, b)
		h, n, err := r.read(b)
		if err != nil || n == 0 {
			return
		}
		if n > maxProxyBytes || h.Client.IsValid() != h.Server.IsValid() || h.Client.Addr().Is4In6() || h.Client.Addr().Zone() != "" {
			t.Fatalf("got %+v, %d", h, n)
		}
		for version := uint8(1); version <= 2; version++ {
			out, err := appendProxyHeader(nil, version, h.Client, h.Server, h.TLVs)
			if err != nil {
				t.Fatal(err)
			}
			again, n, err := r.read(out)
			if err != nil || n != len(out) || again.Client != h.Client || again.Server != h.Server {
				t.Fatalf("version %d: got %+v, %d, %v; want %+v", version, again, n, err, h)
			}
			if version == 2 && !slices.EqualFunc(lastingTLVs(t, h.TLVs), lastingTLVs(t, again.TLVs), func(a, b proxyproto.TLV) bool {
				return a.Type == b.Type && bytes.Equal(a.Value, b.Value)
			}) {
				t.Fatalf("TLVs: got %x; want %x", again.TLVs, h.TLVs)
			}
		}
	})
}

// lastingTLVs are the TLVs without what changes on the way: the value of the checksum and those of NOOPs.
func lastingTLVs(t *testing.T, raw []byte) []proxyproto.TLV {
	t.Helper()
	tlvs, err := proxyproto.SplitTLVs(raw)
	if err != nil {
		t.Fatal(err)
	}
	for i := range tlvs {
		if tlvs[i].Type == proxyproto.PP2_TYPE_CRC32C {
			tlvs[i].Value = nil
		}
	}
	return tlvs
}

func BenchmarkProxyHeader(b *testing.B) {
	for _, c := range []struct{ name, in string }{
		{"v1", "PROXY TCP4 192.168.0.1 192.168.0.11 56324 443\r\n"},
		{"v2", v2Block(0x21, 0x11, block4)},
		{"v2 with TLVs", withChecksum(v2Block(0x21, 0x11, block4, uniqueID, noSum))},
	} {
		b.Run("read "+c.name, func(b *testing.B) {
			var r proxyHeaderReader
			in := []byte(c.in)
			b.ReportAllocs()
			for b.Loop() {
				if _, n, err := r.read(in); n != len(in) || err != nil {
					b.Fatal(n, err)
				}
			}
		})
		b.Run("append "+c.name, func(b *testing.B) {
			var r proxyHeaderReader
			h, _, err := r.read([]byte(c.in))
			if err != nil {
				b.Fatal(err)
			}
			var out []byte
			b.ReportAllocs()
			for b.Loop() {
				if out, err = appendProxyHeader(out[:0], h.Version, h.Client, h.Server, h.TLVs); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
	b.Run("more", func(b *testing.B) {
		var r proxyHeaderReader
		in := []byte(v2Block(0x21, 0x11, block4))[:20]
		b.ReportAllocs()
		for b.Loop() {
			if _, n, err := r.read(in); n != 0 || err != nil {
				b.Fatal(n, err)
			}
		}
	})
}
