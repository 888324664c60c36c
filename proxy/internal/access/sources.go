package access

// Hot path of new connections: one acquire and one release a session. BenchmarkSourceTable holds its cost.

import (
	"encoding/binary"
	"hash/maphash"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// SourceTable counts the connections of each client address and limits how many it has and how fast it makes
// new ones. IPv6 addresses count together by their first bits, as one client has at least a /64.
//
// Memory: the table has a fixed number of entries and never grows, at most 48 bytes each (44 where the size
// is a power of two), and a few kilobytes; 65536 entries are 2.75 MiB.
//
// Replacement: an entry with live connections is never given away, so a limit once in force holds. A new
// address takes an entry that was never used, then the one that has been without connections and attempts for
// the longest time; what that one loses is its debt to the rate, which time would have forgiven anyway. Only
// if every entry of its shard has live connections is the newcomer let in without being counted. So an
// attacker with more addresses than entries gets what he could have in any case, one allowance an address,
// and locks nobody out; max_conns and rate still bound the listener as a whole.
//
// The table is in shards, each with its own mutex, by a hash with a random seed, so that nobody can choose
// addresses that meet in one shard. A nil table limits nothing. Safe for concurrent use.
type SourceTable struct {
	seed     maphash.Seed
	prefixV6 int
	mask     uint128 // of prefixV6
	limits   atomic.Pointer[SourceLimits]
	shards   []sourceShard
}

// SourceLimits are what each source may do.
type SourceLimits struct {
	MaxConns uint32 // at once; 0 is no limit
	Pace     Pace   // new ones
}

// Verdict is the answer to a new connection.
type Verdict uint8

const (
	Accepted Verdict = iota
	TooMany          // it has source_max_conns
	TooFast          // it exceeds source_rate
)

// SourceRef is the place of a live connection in the table; the zero value is none. It stays valid until
// release, as an entry with live connections is never given away. Nor is the table: a session that outlives
// it keeps it alive.
type SourceRef struct {
	shard *sourceShard
	slot  uint32
}

// SourceState is what the table knows of one source, as plain data.
type SourceState struct {
	Source netip.Prefix  // a /32, or an IPv6 prefix of the table's length
	Conns  int           // live
	Debt   time.Duration // how far it is ahead of an even pace; see RateLimiter.Debt
}

const (
	sourceShards     = 64   // at most; a power of two
	sourceShardFloor = 1024 // entries that a shard has at least, if it is not the only one
)

// sourceShard is a part of the table. Slots are numbered from 1; 0 is none.
type sourceShard struct {
	mu      sync.Mutex
	entries []sourceEntry // guarded by mu, as all below; slot i is entries[i-1]
	// the first slot of each chain of the hash table; a power of two, at least len(entries)
	heads     []uint32
	used      uint32 // slots that were ever taken; they are never given back
	idleFirst uint32 // the slots without connections, the one longest without any use first
	idleLast  uint32
	seed      maphash.Seed // the table's; fixed, as the lengths of entries and heads
	_         [48]byte     // fills two cache lines, so that shards do not share one
}

// sourceEntry is one source. It has no pointer, so that the garbage collector passes the table by.
type sourceEntry struct {
	key      uint128
	due      time.Duration // see Pace
	conns    uint32
	next     uint32 // in the chain
	idlePrev uint32 // in the list of idle entries, while conns is 0
	idleNext uint32
}

// NewSourceTable makes a table of at least size entries, which counts IPv6 addresses by their first prefixV6
// bits. Both are fixed; the limits may be changed at any time.
func NewSourceTable(size, prefixV6 int, limits SourceLimits) *SourceTable {
	n := sourceShards
	for n > 1 && size/n < sourceShardFloor {
		n /= 2
	}
	t := &SourceTable{seed: maphash.MakeSeed(), prefixV6: prefixV6, mask: prefixMask(prefixV6), shards: make([]sourceShard, n)}
	t.limits.Store(&limits)
	perShard := (max(size, 1) + n - 1) / n
	chains := 1 << bits.Len(uint(perShard-1))
	entries := make([]sourceEntry, n*perShard)
	heads := make([]uint32, n*chains)
	for i := range t.shards {
		s := &t.shards[i]
		s.seed = t.seed
		s.entries = entries[i*perShard : (i+1)*perShard]
		s.heads = heads[i*chains : (i+1)*chains]
	}
	return t
}

// SetLimits changes the limits. What a source has beyond them already, it keeps.
func (t *SourceTable) SetLimits(limits SourceLimits) { t.limits.Store(&limits) }

// Acquire counts a new connection of addr in, if the limits allow it. Each Accepted needs one release of the
// ref. A refused connection costs the source nothing. The zero Addr, a client of a Unix socket, has no
// limits. now counts from any fixed moment.
func (t *SourceTable) Acquire(addr netip.Addr, now time.Duration) (SourceRef, Verdict) {
	if t == nil || !addr.IsValid() {
		return SourceRef{}, Accepted
	}
	limits := t.limits.Load()
	key := t.key(addr)
	s, hash := t.locate(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.take(key, hash)
	if slot == 0 {
		return SourceRef{}, Accepted
	}
	e := &s.entries[slot-1]
	if limits.MaxConns > 0 && e.conns >= limits.MaxConns {
		return SourceRef{}, TooMany
	}
	due, ok := limits.Pace.take(e.due, now)
	if !ok {
		if e.conns == 0 { // it is in use: others go first
			s.removeIdle(slot)
			s.addIdle(slot)
		}
		return SourceRef{}, TooFast
	}
	e.due = due
	s.count(slot)
	return SourceRef{s, slot}, Accepted
}

// Restore counts a connection in that was let in before, by another process or another table, whatever the
// limits are.
func (t *SourceTable) Restore(addr netip.Addr) SourceRef {
	if t == nil || !addr.IsValid() {
		return SourceRef{}
	}
	key := t.key(addr)
	s, hash := t.locate(key)
	s.mu.Lock()
	defer s.mu.Unlock()
	slot := s.take(key, hash)
	if slot == 0 {
		return SourceRef{}
	}
	s.count(slot)
	return SourceRef{s, slot}
}

// Counted reports whether the ref is a connection's place, not the zero value.
func (r SourceRef) Counted() bool { return r.shard != nil }

// Release counts a connection out. It must be called once for each Accepted; on the zero ref it does nothing.
func (r SourceRef) Release() {
	s := r.shard
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	e := &s.entries[r.slot-1]
	if e.conns == 0 {
		panic("BUG: a source was released more often than acquired")
	}
	if e.conns--; e.conns == 0 {
		s.addIdle(r.slot)
	}
}

// Export lists the sources that have connections or a debt; the others are as good as unknown.
func (t *SourceTable) Export(now time.Duration) []SourceState {
	if t == nil {
		return nil
	}
	var states []SourceState
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		for j := range s.entries[:s.used] {
			e := &s.entries[j]
			if debt := max(e.due-now, 0); e.conns > 0 || debt > 0 {
				states = append(states, SourceState{t.source(e.key), int(e.conns), debt})
			}
		}
		s.mu.Unlock()
	}
	return states
}

// ImportDebts takes over the debts that another table exported, as far as this one's burst reaches. It leaves
// Conns aside: each connection that goes on here is counted by restore, and so is released like any other.
func (t *SourceTable) ImportDebts(states []SourceState, now time.Duration) {
	if t == nil {
		return
	}
	limits := t.limits.Load()
	for _, st := range states {
		debt := min(st.Debt, limits.Pace.ahead)
		if debt <= 0 || !st.Source.IsValid() {
			continue
		}
		key := t.key(st.Source.Addr())
		s, hash := t.locate(key)
		s.mu.Lock()
		if slot := s.take(key, hash); slot != 0 {
			e := &s.entries[slot-1]
			e.due = max(e.due, now+debt)
		}
		s.mu.Unlock()
	}
}

// key is the source that addr belongs to: an IPv4 address in its IPv4-mapped form, or the first bits of an
// IPv6 address.
func (t *SourceTable) key(addr netip.Addr) uint128 {
	k := addrNumber(addr)
	if addr.Is4() || addr.Is4In6() {
		return k
	}
	return uint128{k.hi & t.mask.hi, k.lo & t.mask.lo}
}

// source is what key made a key of.
func (t *SourceTable) source(key uint128) netip.Prefix {
	var b [16]byte
	binary.BigEndian.PutUint64(b[:8], key.hi)
	binary.BigEndian.PutUint64(b[8:], key.lo)
	addr := netip.AddrFrom16(b).Unmap()
	if addr.Is4() {
		return netip.PrefixFrom(addr, 32)
	}
	return netip.PrefixFrom(addr, t.prefixV6)
}

// locate is the shard of key, and the hash that finds it there.
func (t *SourceTable) locate(key uint128) (*sourceShard, uint64) {
	hash := maphash.Comparable(t.seed, key)
	return &t.shards[hash>>32&uint64(len(t.shards)-1)], hash
}

// chain is where the entries with this hash hang. The caller of it, and of all below, holds mu.
func (s *sourceShard) chain(hash uint64) *uint32 { return &s.heads[hash&uint64(len(s.heads)-1)] }

// take gives the slot of key, another one if it has none yet; 0 if there is none to be had.
func (s *sourceShard) take(key uint128, hash uint64) uint32 {
	chain := s.chain(hash)
	for slot := *chain; slot != 0; slot = s.entries[slot-1].next {
		if s.entries[slot-1].key == key {
			return slot
		}
	}
	var slot uint32
	switch {
	case int(s.used) < len(s.entries):
		s.used++
		slot = s.used
	case s.idleFirst != 0:
		slot = s.idleFirst
		s.removeIdle(slot)
		s.unchain(slot)
	default:
		return 0
	}
	s.entries[slot-1] = sourceEntry{key: key, next: *chain}
	*chain = slot
	s.addIdle(slot)
	return slot
}

// unchain takes a slot out of the hash table.
func (s *sourceShard) unchain(slot uint32) {
	e := &s.entries[slot-1]
	p := s.chain(maphash.Comparable(s.seed, e.key))
	for *p != slot {
		p = &s.entries[*p-1].next
	}
	*p = e.next
}

// count adds a connection to a slot.
func (s *sourceShard) count(slot uint32) {
	e := &s.entries[slot-1]
	if e.conns == 0 {
		s.removeIdle(slot)
	}
	e.conns++
}

// addIdle puts a slot at the end of the idle list.
func (s *sourceShard) addIdle(slot uint32) {
	e := &s.entries[slot-1]
	e.idlePrev, e.idleNext = s.idleLast, 0
	if s.idleLast != 0 {
		s.entries[s.idleLast-1].idleNext = slot
	} else {
		s.idleFirst = slot
	}
	s.idleLast = slot
}

// removeIdle takes a slot out of the idle list.
func (s *sourceShard) removeIdle(slot uint32) {
	e := &s.entries[slot-1]
	if e.idlePrev != 0 {
		s.entries[e.idlePrev-1].idleNext = e.idleNext
	} else {
		s.idleFirst = e.idleNext
	}
	if e.idleNext != 0 {
		s.entries[e.idleNext-1].idlePrev = e.idlePrev
	} else {
		s.idleLast = e.idlePrev
	}
}
