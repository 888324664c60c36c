package backends

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// clientKey returns a hash of a client's address that stays the same over restarts and on every host; an
// IPv4-mapped address has the key of the IPv4 one. Every address but the zero one is ok.
func clientKey(addr netip.Addr) (key uint64, ok bool) {
	if !addr.IsValid() {
		return 0, false
	}
	a := addr.As16()
	return mix(mix(binary.BigEndian.Uint64(a[:8])^mix1, binary.BigEndian.Uint64(a[8:])^mix2), mix1), true
}

// ClientKey returns a hash of the client's address that stays the same over restarts and on every host. ok is
// false if the client has no address.
func (r *Request) ClientKey() (key uint64, ok bool) { return clientKey(r.Client) }

// Constants of wyhash (Wang Yi, final version 4).
const (
	mix1 = 0xa0761d6478bd642f
	mix2 = 0xe7037ed1a0b428db
)

// mix folds the 128-bit product of two words, as wyhash does.
func mix(a, b uint64) uint64 {
	hi, lo := bits.Mul64(a, b)
	return hi ^ lo
}

// NameKey returns a hash of the backend's name that stays the same over restarts and on every host.
func (b *Backend) NameKey() uint64 { return nameKey(b.Name) }

// nameKey returns the FNV-1a hash of a name, mixed for names that differ in the last letter only.
func nameKey(name string) uint64 {
	h := uint64(14695981039346656037)
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	return mix(h^mix1, mix2)
}
