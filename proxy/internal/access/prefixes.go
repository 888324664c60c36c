package access

// Hot path of new connections: one look-up a list. BenchmarkPrefixSet holds its cost.

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// unixPeers is the entry of a list that stands for every peer without an IP address, the clients of a Unix
// socket. The word is nginx's.
const unixPeers = "unix:"

// Rules say which clients a listener takes: deny wins, then an allow list that is there must have the
// address. The order in which the prefixes are written means nothing, unlike nginx's allow and deny, where
// the first match decides. A nil one takes everybody. Immutable, and safe for concurrent use.
type Rules struct {
	Allow *PrefixSet // nil takes everybody
	Deny  *PrefixSet // nil refuses nobody
}

// Permit says whether a client with this address may come in. The zero Addr is a client of a Unix socket:
// only a list with "unix:" has it.
func (r *Rules) Permit(addr netip.Addr) bool {
	if r == nil {
		return true
	}
	return !r.Deny.Contains(addr) && (r.Allow == nil || r.Allow.Contains(addr))
}

// PrefixSet is a set of addresses, written as prefixes. It holds them as sorted ranges that neither overlap
// nor touch, so that a look-up is one binary search, whatever was written. IPv4 and IPv6 are apart: "::/0"
// has no IPv4 address. A nil one is empty. Immutable, and safe for concurrent use; a reload swaps it through
// an atomic.Pointer.
type PrefixSet struct {
	v4   []addrRange[uint32]
	v6   []addrRange[uint128]
	unix bool
}

// addrRange is the addresses from first to last.
type addrRange[T any] struct{ first, last T }

// uint128 is an IPv6 address as a number.
type uint128 struct{ hi, lo uint64 }

func (a uint128) compare(b uint128) int {
	if a.hi != b.hi {
		return cmp.Compare(a.hi, b.hi)
	}
	return cmp.Compare(a.lo, b.lo)
}

// next is a + 1; 0 after the last.
func (a uint128) next() uint128 {
	lo, carry := bits.Add64(a.lo, 1, 0)
	return uint128{a.hi + carry, lo}
}

func addrNumber(addr netip.Addr) uint128 {
	b := addr.As16()
	return uint128{binary.BigEndian.Uint64(b[:8]), binary.BigEndian.Uint64(b[8:])}
}

// Contains says whether addr is in the set. An IPv4-mapped IPv6 address is looked up as IPv4; the zero Addr
// is a client of a Unix socket.
func (s *PrefixSet) Contains(addr netip.Addr) bool {
	if s == nil {
		return false
	}
	addr = addr.Unmap()
	switch {
	case addr.Is4():
		b := addr.As4()
		a := binary.BigEndian.Uint32(b[:])
		// r[i-1] is the last range that begins at a or before.
		r, i, end := s.v4, 0, len(s.v4)
		for i < end {
			if mid := int(uint(i+end) / 2); r[mid].first <= a {
				i = mid + 1
			} else {
				end = mid
			}
		}
		return i > 0 && a <= r[i-1].last
	case addr.Is6():
		a := addrNumber(addr)
		r, i, end := s.v6, 0, len(s.v6)
		for i < end {
			if mid := int(uint(i+end) / 2); r[mid].first.compare(a) <= 0 {
				i = mid + 1
			} else {
				end = mid
			}
		}
		return i > 0 && a.compare(r[i-1].last) <= 0
	}
	return s.unix
}

// ParsePrefixes makes a set of the entries of a list in the config: "192.0.2.0/24", "2001:db8::/32", single
// addresses, and "unix:". It finds every fault; each error begins with the key and the index of the entry. No
// entries give nil.
func ParsePrefixes(key string, entries []string) (*PrefixSet, error) {
	if len(entries) == 0 {
		return nil, nil
	}
	s := &PrefixSet{}
	var errs []error
	for i, entry := range entries {
		if entry == unixPeers {
			s.unix = true
			continue
		}
		p, err := parsePrefix(entry)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s[%d]: %w", key, i, err))
			continue
		}
		s.add(p)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	s.v4 = mergeRanges(s.v4, cmp.Compare[uint32], func(a uint32) uint32 { return a + 1 })
	s.v6 = mergeRanges(s.v6, uint128.compare, uint128.next)
	return s, nil
}

// parsePrefix reads one prefix or address. One that is IPv4-mapped comes back as IPv4.
func parsePrefix(entry string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(entry)
	if err != nil {
		addr, addrErr := netip.ParseAddr(entry)
		if addrErr != nil || addr.Zone() != "" {
			return netip.Prefix{}, fmt.Errorf("%q is no address and no prefix; write such as \"192.0.2.0/24\", \"2001:db8::/32\", \"192.0.2.7\" or %q", entry, unixPeers)
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p != p.Masked() {
		return netip.Prefix{}, fmt.Errorf("%q has bits set after the first %d; write %q for all of them, or %q for that one", entry, p.Bits(), p.Masked(), strings.Split(entry, "/")[0])
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p, nil
}

// add appends the range of p.
func (s *PrefixSet) add(p netip.Prefix) {
	if p.Addr().Is4() {
		b := p.Addr().As4()
		first := binary.BigEndian.Uint32(b[:])
		s.v4 = append(s.v4, addrRange[uint32]{first, first | uint32(uint64(1)<<(32-p.Bits())-1)})
		return
	}
	mask := prefixMask(p.Bits())
	first := addrNumber(p.Addr())
	s.v6 = append(s.v6, addrRange[uint128]{first, uint128{first.hi | ^mask.hi, first.lo | ^mask.lo}})
}

// prefixMask has the first n of 128 bits set.
func prefixMask(n int) uint128 {
	if n <= 64 {
		return uint128{^(^uint64(0) >> n), 0}
	}
	return uint128{^uint64(0), ^(^uint64(0) >> (n - 64))}
}

// mergeRanges sorts ranges and joins those that overlap or touch.
func mergeRanges[T comparable](ranges []addrRange[T], compare func(a, b T) int, next func(T) T) []addrRange[T] {
	slices.SortFunc(ranges, func(a, b addrRange[T]) int { return compare(a.first, b.first) })
	merged := ranges[:0]
	for _, r := range ranges {
		if n := len(merged); n > 0 {
			before := &merged[n-1]
			if compare(r.first, before.last) <= 0 || r.first == next(before.last) {
				if compare(r.last, before.last) > 0 {
					before.last = r.last
				}
				continue
			}
		}
		merged = append(merged, r)
	}
	return slices.Clip(merged)
}
