package access

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
)

func mustPrefixes(t testing.TB, entries ...string) *PrefixSet {
	t.Helper()
	s, err := ParsePrefixes("allow", entries)
	if err != nil {
		t.Fatalf("cannot parse %q: %v", entries, err)
	}
	return s
}

func TestPrefixSet_Contains(t *testing.T) {
	f := func(entries string, addr string, want bool) {
		t.Helper()
		s := mustPrefixes(t, strings.Fields(entries)...)
		var a netip.Addr
		if addr != "" {
			a = netip.MustParseAddr(addr)
		}
		if got := s.Contains(a); got != want {
			t.Errorf("{%s} contains %q: got %v; want %v", entries, addr, got, want)
		}
	}
	f("192.0.2.0/24", "192.0.1.255", false)
	f("192.0.2.0/24", "192.0.2.0", true)
	f("192.0.2.0/24", "192.0.2.255", true)
	f("192.0.2.0/24", "192.0.3.0", false)
	f("192.0.2.7", "192.0.2.7", true)
	f("192.0.2.7", "192.0.2.6", false)
	f("192.0.2.7", "192.0.2.8", false)
	f("0.0.0.0/0", "0.0.0.0", true)
	f("0.0.0.0/0", "255.255.255.255", true)
	f("255.255.255.255", "255.255.255.255", true)
	f("255.255.255.255 0.0.0.0", "0.0.0.1", false)

	// Overlapping, touching, nested and repeated prefixes, in any order.
	f("10.1.0.0/16 10.0.0.0/8 10.0.0.0/8 10.2.3.4", "10.255.255.255", true)
	f("10.0.1.0/24 10.0.0.0/24", "10.0.1.0", true)
	f("10.0.1.0/24 10.0.0.0/24", "10.0.2.0", false)
	f("10.0.0.0/8 172.16.0.0/12", "172.15.255.255", false)

	f("2001:db8::/32", "2001:db8:ffff:ffff:ffff:ffff:ffff:ffff", true)
	f("2001:db8::/32", "2001:db9::", false)
	f("2001:db8::/32", "2001:db7:ffff:ffff:ffff:ffff:ffff:ffff", false)
	f("2001:db8::1", "2001:db8::1", true)
	f("2001:db8::1", "2001:db8::2", false)
	f("2001:db8::/65", "2001:db8::7fff:ffff:ffff:ffff", true)
	f("2001:db8::/65", "2001:db8::8000:0:0:0", false)
	f("2001:db8::/65 2001:db8::8000:0:0:0/65", "2001:db8::8000:0:0:0", true)
	f("::/0", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff", true)

	// The families are apart, but an IPv4-mapped address is an IPv4 address.
	f("::/0", "192.0.2.7", false)
	f("0.0.0.0/0", "2001:db8::1", false)
	f("0.0.0.0/0", "::ffff:192.0.2.7", true)
	f("192.0.2.0/24", "::ffff:192.0.2.7", true)
	f("::/0", "::ffff:192.0.2.7", false)
	f("::ffff:192.0.2.0/120", "192.0.2.7", true)
	f("::ffff:192.0.2.0/120", "::ffff:192.0.3.7", false)
	f("::ffff:192.0.2.7", "192.0.2.7", true)
	f("::ffff:0:0/96", "198.51.100.1", true)

	// Clients of a Unix socket have no address.
	f("unix:", "", true)
	f("unix:", "127.0.0.1", false)
	f("0.0.0.0/0 ::/0", "", false)
	f("", "192.0.2.7", false)
	f("", "", false)
}

// TestPrefixSet_EqualsLinearScan compares with the plain meaning of a list of prefixes.
func TestPrefixSet_EqualsLinearScan(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		var entries []string
		var prefixes []netip.Prefix
		for range rng.IntN(60) {
			addr := netip.AddrFrom4([4]byte{10, byte(rng.IntN(4)), byte(rng.IntN(256)), byte(rng.IntN(256))})
			if rng.IntN(2) == 0 {
				addr = netip.AddrFrom16([16]byte{0x20, 1, 7: byte(rng.IntN(4)), 8: byte(rng.IntN(256)), 15: byte(rng.IntN(256))})
			}
			p, _ := addr.Prefix(addr.BitLen() - rng.IntN(20))
			prefixes, entries = append(prefixes, p), append(entries, p.String())
		}
		s := mustPrefixes(t, entries...)
		for range 300 {
			addr := netip.AddrFrom4([4]byte{10, byte(rng.IntN(4)), byte(rng.IntN(256)), byte(rng.IntN(256))})
			if rng.IntN(2) == 0 {
				addr = netip.AddrFrom16([16]byte{0x20, 1, 7: byte(rng.IntN(4)), 8: byte(rng.IntN(256)), 13: byte(rng.IntN(2)), 15: byte(rng.IntN(256))})
			}
			if len(prefixes) > 0 && rng.IntN(3) == 0 { // an edge
				if addr = prefixes[rng.IntN(len(prefixes))].Addr(); rng.IntN(2) == 0 {
					addr = addr.Prev()
				}
			}
			want := false
			for _, p := range prefixes {
				want = want || p.Contains(addr)
			}
			if got := s.Contains(addr); got != want {
				t.Fatalf("%q contains %v: got %v; want %v", entries, addr, got, want)
			}
		}
	}
}

func TestParsePrefixes_NamesEveryFault(t *testing.T) {
	_, err := ParsePrefixes("deny", []string{"192.0.2.0/24", "192.0.2.1/24", "localhost", "fe80::1%eth0", "10.0.0.0/33", "", "2001:db8::1/64", "unix:/run/x", "010.0.0.1"})
	if err == nil {
		t.Fatal("got no error")
	}
	got := strings.Split(err.Error(), "\n")
	want := []string{
		`deny[1]: "192.0.2.1/24" has bits set after the first 24; write "192.0.2.0/24" for all of them, or "192.0.2.1" for that one`,
		`deny[2]: "localhost" is no`, `deny[3]: "fe80::1%eth0" is no`, `deny[4]: "10.0.0.0/33" is no`, `deny[5]: "" is no`,
		`deny[6]: "2001:db8::1/64" has bits`, `deny[7]: "unix:/run/x" is no`, `deny[8]: "010.0.0.1" is no`,
	}
	if len(got) != len(want) {
		t.Fatalf("got %d errors; want %d:\n%v", len(got), len(want), err)
	}
	for i := range want {
		if !strings.HasPrefix(got[i], want[i]) {
			t.Errorf("got %q; want %q …", got[i], want[i])
		}
	}
	if s, err := ParsePrefixes("deny", nil); s != nil || err != nil {
		t.Errorf("no entries: got %v, %v; want nil", s, err)
	}
}

func TestAccessRules_DenyWinsThenAllowMustMatch(t *testing.T) {
	f := func(allow, deny, addr string, want bool) {
		t.Helper()
		r := &Rules{Allow: mustPrefixes(t, strings.Fields(allow)...), Deny: mustPrefixes(t, strings.Fields(deny)...)}
		var a netip.Addr
		if addr != "" {
			a = netip.MustParseAddr(addr)
		}
		if got := r.Permit(a); got != want {
			t.Errorf("allow {%s} deny {%s} %q: got %v; want %v", allow, deny, addr, got, want)
		}
	}
	f("", "", "192.0.2.7", true)
	f("", "", "", true)
	f("", "192.0.2.0/24", "192.0.2.7", false)
	f("", "192.0.2.0/24", "192.0.3.7", true)
	f("", "192.0.2.0/24", "", true)
	f("192.0.2.0/24", "", "192.0.2.7", true)
	f("192.0.2.0/24", "", "192.0.3.7", false)
	f("192.0.2.0/24", "", "2001:db8::1", false)
	f("192.0.2.0/24", "", "", false)
	f("192.0.2.0/24 unix:", "", "", true)
	f("192.0.2.0/24", "192.0.2.7", "192.0.2.7", false)
	f("192.0.2.0/24", "192.0.2.7", "192.0.2.8", true)
	f("192.0.2.7", "192.0.2.0/24", "192.0.2.7", false) // a longer allow does not win
	f("", "unix:", "", false)

	var none *Rules
	if !none.Permit(netip.MustParseAddr("192.0.2.7")) {
		t.Error("no rules: refused")
	}
}

func TestPrefixSet_HundredThousandPrefixes(t *testing.T) {
	entries, addrs := manyPrefixes(100_000)
	s := mustPrefixes(t, entries...)
	for _, addr := range addrs {
		if !s.Contains(addr) {
			t.Fatalf("%v is missing", addr)
		}
		if s.Contains(addr.Next().Next().Next().Next()) {
			t.Fatalf("%v + 4 is in the set", addr)
		}
	}
}

// manyPrefixes makes n prefixes, half of them IPv6, that neither overlap nor touch, and an address in each.
func manyPrefixes(n int) (entries []string, addrs []netip.Addr) {
	for i := range n {
		var b [16]byte
		var addr netip.Addr
		if i%2 == 0 {
			binary.BigEndian.PutUint32(b[:4], 0x0a000000+uint32(i)*64)
			addr = netip.AddrFrom4([4]byte(b[:4]))
			entries = append(entries, fmt.Sprintf("%v/30", addr))
		} else {
			binary.BigEndian.PutUint64(b[:8], 0x20010db8_00000000+uint64(i)*64)
			addr = netip.AddrFrom16(b)
			entries = append(entries, fmt.Sprintf("%v/126", addr))
		}
		addrs = append(addrs, addr)
	}
	return entries, addrs
}

func BenchmarkPrefixSet(b *testing.B) {
	for _, n := range []int{1, 10, 100, 1000, 10_000, 100_000} {
		entries, all := manyPrefixes(max(n, 2))
		s := mustPrefixes(b, entries[:n]...)
		rng := rand.New(rand.NewPCG(1, 2))
		var addrs [4096]netip.Addr // random, and few enough that fetching them costs nothing
		for i := range addrs {
			addrs[i] = all[rng.IntN(len(all))]
			if rng.IntN(2) == 0 {
				addrs[i] = netip.AddrFrom4([4]byte{11, byte(rng.Uint32()), byte(rng.Uint32()), byte(rng.Uint32())})
			}
		}
		b.Run(fmt.Sprintf("prefixes=%d", n), func(b *testing.B) {
			b.ReportAllocs()
			i, found := 0, 0
			for b.Loop() {
				if s.Contains(addrs[i%len(addrs)]) {
					found++
				}
				i++
			}
			_ = found
		})
	}
}
