package access

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"
	"unsafe"
)

// sourceN is the n-th of many client addresses.
func sourceN(n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0x0a000000+uint32(n))
	return netip.AddrFrom4(b)
}

func wantVerdict(t *testing.T, got, want Verdict) {
	t.Helper()
	if got != want {
		t.Errorf("got verdict %v; want %v", got, want)
	}
}

func TestSourceTable_LimitsConnectionsOfEachSource(t *testing.T) {
	st := NewSourceTable(1024, 64, SourceLimits{MaxConns: 2})
	a, b := sourceN(1), sourceN(2)
	ref1, v := st.Acquire(a, 0)
	wantVerdict(t, v, Accepted)
	ref2, v := st.Acquire(a, 0)
	wantVerdict(t, v, Accepted)
	_, v = st.Acquire(a, 0)
	wantVerdict(t, v, TooMany)
	_, v = st.Acquire(netip.MustParseAddr("::ffff:10.0.0.1"), 0) // a in its other form
	wantVerdict(t, v, TooMany)
	_, v = st.Acquire(b, 0)
	wantVerdict(t, v, Accepted)
	ref2.Release()
	ref3, v := st.Acquire(a, 0)
	wantVerdict(t, v, Accepted)
	ref1.Release()
	ref3.Release()
	if got, want := contentOf(st).live, 1; got != want {
		t.Errorf("live: got %d; want %d", got, want)
	}
}

func TestSourceTable_LimitsRateOfEachSource(t *testing.T) {
	st := NewSourceTable(1024, 64, SourceLimits{MaxConns: 1, Pace: NewPace(10, 2)})
	a, b := sourceN(1), sourceN(2)
	now := time.Hour
	ref, v := st.Acquire(a, now)
	wantVerdict(t, v, Accepted)
	_, v = st.Acquire(a, now)
	wantVerdict(t, v, TooMany) // which costs nothing of the rate
	ref.Release()
	ref, v = st.Acquire(a, now)
	wantVerdict(t, v, Accepted)
	ref.Release()
	_, v = st.Acquire(a, now)
	wantVerdict(t, v, TooFast)
	_, v = st.Acquire(b, now)
	wantVerdict(t, v, Accepted)
	_, v = st.Acquire(a, now+99*time.Millisecond)
	wantVerdict(t, v, TooFast)
	ref, v = st.Acquire(a, now+100*time.Millisecond)
	wantVerdict(t, v, Accepted)
	ref.Release()
}

func TestSourceTable_IPv6CountsByPrefix(t *testing.T) {
	f := func(prefixV6 int, a, b string, same bool) {
		t.Helper()
		st := NewSourceTable(1024, prefixV6, SourceLimits{MaxConns: 1})
		_, v := st.Acquire(netip.MustParseAddr(a), 0)
		wantVerdict(t, v, Accepted)
		_, v = st.Acquire(netip.MustParseAddr(b), 0)
		if got := v == TooMany; got != same {
			t.Errorf("/%d: %s and %s are one source: got %v; want %v", prefixV6, a, b, got, same)
		}
	}
	f(64, "2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", true)
	f(64, "2001:db8::1", "2001:db8:0:1::1", false)
	f(48, "2001:db8::1", "2001:db8:0:1::1", true)
	f(48, "2001:db8::1", "2001:db8:1::1", false)
	f(128, "2001:db8::1", "2001:db8::2", false)
	f(128, "2001:db8::1", "2001:db8::1", true)
	f(96, "2001:db8::1", "2001:db8::2", true)
	f(1, "2001:db8::1", "3fff::", true)
	f(64, "10.0.0.1", "10.0.0.2", false) // IPv4 is never put together
	f(1, "10.0.0.1", "::1", false)
	f(64, "::", "::1", true)
}

func TestSourceTable_UnixClientsAndNilTableHaveNoLimits(t *testing.T) {
	for _, st := range []*SourceTable{nil, NewSourceTable(1024, 64, SourceLimits{MaxConns: 1, Pace: NewPace(1, 1)})} {
		for range 3 {
			ref, v := st.Acquire(netip.Addr{}, 0)
			wantVerdict(t, v, Accepted)
			ref.Release()
			st.Restore(netip.Addr{}).Release()
		}
	}
	var st *SourceTable
	for range 3 {
		_, v := st.Acquire(sourceN(1), 0)
		wantVerdict(t, v, Accepted)
	}
	if st.Export(0) != nil {
		t.Error("a nil table has content")
	}
	st.ImportDebts([]SourceState{{Source: netip.MustParsePrefix("10.0.0.1/32"), Debt: 1}}, 0)
}

// TestSourceTable_FullOfLiveSourcesLetsNewcomersIn: whoever fills the table locks nobody out, and gets no
// more himself.
func TestSourceTable_FullOfLiveSourcesLetsNewcomersIn(t *testing.T) {
	st := NewSourceTable(100, 64, SourceLimits{MaxConns: 1})
	var attackers []SourceRef
	for i := range 100 {
		ref, v := st.Acquire(sourceN(i), 0)
		wantVerdict(t, v, Accepted)
		attackers = append(attackers, ref)
	}
	var newcomers []SourceRef
	for i := 100; i < 200; i++ {
		ref, v := st.Acquire(sourceN(i), 0)
		wantVerdict(t, v, Accepted)
		newcomers = append(newcomers, ref)
	}
	for i := range 100 {
		_, v := st.Acquire(sourceN(i), 0)
		wantVerdict(t, v, TooMany)
	}
	if got, want := contentOf(st), (tableContent{entries: 100, used: 100, live: 100}); got != want {
		t.Errorf("got %+v; want %+v", got, want)
	}
	for _, ref := range newcomers { // they were not counted, so there is nothing to count out
		ref.Release()
	}
	if got := contentOf(st).live; got != 100 {
		t.Errorf("live after the newcomers left: got %d; want 100", got)
	}
	for _, ref := range attackers {
		ref.Release()
	}
	for i := 100; i < 200; i++ {
		_, v := st.Acquire(sourceN(i), 0)
		wantVerdict(t, v, Accepted)
	}
	if got, want := contentOf(st), (tableContent{entries: 100, used: 100, live: 100}); got != want {
		t.Errorf("got %+v; want %+v", got, want)
	}
}

// TestSourceTable_KeepsLiveSourcesAndThoseThatTry: addresses that come once push out neither a source with
// connections nor one that keeps trying.
func TestSourceTable_KeepsLiveSourcesAndThoseThatTry(t *testing.T) {
	st := NewSourceTable(100, 64, SourceLimits{MaxConns: 1, Pace: NewPace(MinRate, 1)})
	live, _ := st.Acquire(sourceN(0), 0)
	ref, _ := st.Acquire(sourceN(1), 0)
	ref.Release()
	for i := range 10_000 {
		ref, v := st.Acquire(sourceN(10+i), 0)
		wantVerdict(t, v, Accepted)
		ref.Release()
		if i%50 == 0 {
			_, v = st.Acquire(sourceN(1), 0)
			wantVerdict(t, v, TooFast)
		}
	}
	_, v := st.Acquire(sourceN(0), 0)
	wantVerdict(t, v, TooMany)
	live.Release()
}

func TestSourceTable_ReleaseTwiceIsABug(t *testing.T) {
	st := NewSourceTable(1024, 64, SourceLimits{})
	ref, _ := st.Acquire(sourceN(1), 0)
	ref.Release()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	ref.Release()
}

// tableContent is what a table holds.
type tableContent struct{ entries, used, live int }

func contentOf(t *SourceTable) (c tableContent) {
	for i := range t.shards {
		s := &t.shards[i]
		c.entries += len(s.entries)
		c.used += int(s.used)
	}
	for _, source := range t.Export(1 << 62) { // late enough for nobody to have a debt
		if source.Conns > 0 {
			c.live++
		}
	}
	return c
}

// bytesOf returns the memory that a table takes.
func bytesOf(t *SourceTable) int {
	n := int(unsafe.Sizeof(*t))
	for i := range t.shards {
		s := &t.shards[i]
		n += int(unsafe.Sizeof(*s)) + len(s.entries)*int(unsafe.Sizeof(sourceEntry{})) + len(s.heads)*4
	}
	return n
}

// sourceModel is a table of one shard as a map and a slice.
type sourceModel struct {
	size    int
	limits  SourceLimits
	sources map[netip.Addr]*modelSource
	idle    []netip.Addr
}

type modelSource struct {
	conns int
	due   time.Duration
}

// touch moves addr to the end of the idle list, or takes it out if it is live.
func (m *sourceModel) touch(addr netip.Addr) {
	m.idle = slices.DeleteFunc(m.idle, func(a netip.Addr) bool { return a == addr })
	if m.sources[addr].conns == 0 {
		m.idle = append(m.idle, addr)
	}
}

func (m *sourceModel) Acquire(addr netip.Addr, now time.Duration) (tracked bool, v Verdict) {
	s := m.sources[addr]
	if s == nil {
		if len(m.sources) == m.size {
			if len(m.idle) == 0 {
				return false, Accepted
			}
			delete(m.sources, m.idle[0])
			m.idle = m.idle[1:]
		}
		s = &modelSource{}
		m.sources[addr] = s
	}
	defer m.touch(addr)
	if m.limits.MaxConns > 0 && s.conns >= int(m.limits.MaxConns) {
		return false, TooMany
	}
	if p := m.limits.Pace; p.interval > 0 {
		if max(s.due, now)+p.interval > now+p.ahead {
			return false, TooFast
		}
		s.due = max(s.due, now) + p.interval
	}
	s.conns++
	return true, Accepted
}

func (m *sourceModel) Release(addr netip.Addr) {
	m.sources[addr].conns--
	m.touch(addr)
}

// TestSourceTable_EqualsModel runs random connections through the table and the model, with fewer and with
// more addresses than entries.
func TestSourceTable_EqualsModel(t *testing.T) {
	type conn struct {
		addr    netip.Addr
		ref     SourceRef
		tracked bool
	}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 5))
		size := 1 + rng.IntN(40)
		addrs := 1 + rng.IntN(3*size)
		limits := SourceLimits{MaxConns: uint32(rng.IntN(4))}
		if rng.IntN(2) == 0 {
			limits.Pace = NewPace(5, 1+rng.IntN(4))
		}
		st := NewSourceTable(size, 64, limits)
		m := &sourceModel{size: size, limits: limits, sources: map[netip.Addr]*modelSource{}}
		var conns []conn
		now := time.Duration(0)
		for step := range 5000 {
			now += time.Duration(rng.IntN(20)) * time.Millisecond
			if len(conns) > 0 && rng.IntN(100) < 48 {
				i := rng.IntN(len(conns))
				c := conns[i]
				conns = slices.Delete(conns, i, i+1)
				c.ref.Release()
				if c.tracked {
					m.Release(c.addr)
				}
				continue
			}
			addr := sourceN(rng.IntN(addrs))
			ref, v := st.Acquire(addr, now)
			tracked, want := m.Acquire(addr, now)
			if v != want || (ref != SourceRef{}) != tracked {
				t.Fatalf("seed %d step %d: %v: got %v, tracked %v; want %v, %v", seed, step, addr, v, ref != SourceRef{}, want, tracked)
			}
			if v == Accepted {
				conns = append(conns, conn{addr, ref, tracked})
			}
		}
		compareWithModel(t, st, m, now)
	}
}

func compareWithModel(t *testing.T, st *SourceTable, m *sourceModel, now time.Duration) {
	t.Helper()
	got := map[netip.Addr]SourceState{}
	for _, s := range st.Export(now) {
		got[s.Source.Addr()] = s
	}
	live := 0
	for addr, s := range m.sources {
		if s.conns > 0 {
			live++
		}
		want := SourceState{Source: netip.PrefixFrom(addr, 32), Conns: s.conns, Debt: max(s.due-now, 0)}
		if _, ok := got[addr]; !ok && want.Conns == 0 && want.Debt == 0 {
			continue
		}
		if got[addr] != want {
			t.Errorf("%v: got %+v; want %+v", addr, got[addr], want)
		}
		delete(got, addr)
	}
	if len(got) > 0 {
		t.Errorf("sources that the model has not: %v", got)
	}
	if st := contentOf(st); st.used != len(m.sources) || st.live != live {
		t.Errorf("got %d used, %d live; want %d, %d", st.used, st.live, len(m.sources), live)
	}
}

// TestSourceTable_ManyLoops: the limit is exact over all loops, and every connection is counted out.
func TestSourceTable_ManyLoops(t *testing.T) {
	const maxConns, addrs = 3, 8
	st := NewSourceTable(1<<14, 64, SourceLimits{MaxConns: maxConns})
	var mu sync.Mutex
	live := map[netip.Addr]int{}
	var wg sync.WaitGroup
	for loop := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(loop), 6))
			for range 5000 {
				addr := sourceN(rng.IntN(addrs))
				ref, v := st.Acquire(addr, 0)
				if v != Accepted {
					continue
				}
				mu.Lock()
				if live[addr]++; live[addr] > maxConns {
					t.Errorf("%v has %d connections; want at most %d", addr, live[addr], maxConns)
				}
				mu.Unlock()
				runtime.Gosched()
				mu.Lock()
				live[addr]--
				mu.Unlock()
				ref.Release()
			}
		})
	}
	wg.Wait()
	if st := contentOf(st); st.live != 0 || st.used != addrs {
		t.Errorf("in the end: got %+v; want none live and %d used", st, addrs)
	}
}

// TestSourceTable_MillionAddressesStayWithinBound holds what the type's documentation says of memory.
func TestSourceTable_MillionAddressesStayWithinBound(t *testing.T) {
	const size, bound = 65536, 65536*44 + 16<<10
	heap := func() uint64 {
		runtime.GC()
		var ms runtime.MemStats
		runtime.ReadMemStats(&ms)
		return ms.HeapAlloc
	}
	before := heap()
	st := NewSourceTable(size, 64, SourceLimits{MaxConns: 10, Pace: NewPace(10, 10)})
	var held []SourceRef
	for i := range 1_000_000 {
		ref, v := st.Acquire(sourceN(i), time.Duration(i))
		if v != Accepted {
			t.Fatalf("address %d: got %v", i, v)
		}
		if i%25 == 0 { // 40 000 live ones
			held = append(held, ref)
		} else {
			ref.Release()
		}
	}
	grown := int64(heap()-before) - int64(cap(held))*16
	if got := bytesOf(st); got > bound || grown > bound+64<<10 {
		t.Errorf("got %d bytes, %d on the heap; want at most %d", got, grown, bound)
	}
	if got := contentOf(st); got.entries != size || got.used != size || got.live != 40_000 {
		t.Errorf("got %+v", got)
	}
	for _, ref := range held {
		ref.Release()
	}
	for _, size := range []int{1, 2, 1024, 1025, 100_000, 65537, 1 << 20} {
		st := NewSourceTable(size, 64, SourceLimits{})
		n := contentOf(st).entries
		if got, most := bytesOf(st), n*48+16<<10; n < size || n > size+sourceShards || got > most {
			t.Errorf("size %d: got %d entries in %d bytes; want at most %d bytes", size, n, got, most)
		}
	}
}

func TestSourceTable_SetLimitsHoldsForWhatComes(t *testing.T) {
	st := NewSourceTable(1024, 64, SourceLimits{MaxConns: 3})
	var refs []SourceRef
	for range 3 {
		ref, _ := st.Acquire(sourceN(1), 0)
		refs = append(refs, ref)
	}
	st.SetLimits(SourceLimits{MaxConns: 2})
	refs[0].Release()
	_, v := st.Acquire(sourceN(1), 0)
	wantVerdict(t, v, TooMany)
	refs[1].Release()
	_, v = st.Acquire(sourceN(1), 0)
	wantVerdict(t, v, Accepted)
}

// TestSourceTable_GoesOnInAnotherTable is what an upgrade does: debts are imported, connections restored one
// by one.
func TestSourceTable_GoesOnInAnotherTable(t *testing.T) {
	limits := SourceLimits{MaxConns: 3, Pace: NewPace(10, 5)}
	old := NewSourceTable(2048, 64, limits)
	v6 := netip.MustParseAddr("2001:db8::7")
	now := time.Hour
	for range 3 {
		old.Acquire(sourceN(1), now)
		old.Acquire(v6, now)
	}
	ref, _ := old.Acquire(sourceN(2), now-time.Hour)
	ref.Release() // neither connections nor a debt: as good as unknown

	states := old.Export(now)
	slices.SortFunc(states, func(a, b SourceState) int { return a.Source.Addr().Compare(b.Source.Addr()) })
	want := []SourceState{
		{netip.MustParsePrefix("10.0.0.1/32"), 3, 300 * time.Millisecond},
		{netip.MustParsePrefix("2001:db8::/64"), 3, 300 * time.Millisecond},
	}
	if !slices.Equal(states, want) {
		t.Fatalf("got %+v; want %+v", states, want)
	}

	then := time.Second // another process has another epoch
	st := NewSourceTable(4096, 64, limits)
	st.ImportDebts(states, then)
	for _, addr := range []netip.Addr{sourceN(1), v6} {
		refs := []SourceRef{st.Restore(addr), st.Restore(addr), st.Restore(addr)}
		_, v := st.Acquire(addr, then)
		wantVerdict(t, v, TooMany)
		for _, ref := range refs {
			ref.Release()
		}
		for range 2 {
			ref, v := st.Acquire(addr, then)
			wantVerdict(t, v, Accepted)
			ref.Release()
		}
		_, v = st.Acquire(addr, then)
		wantVerdict(t, v, TooFast)
	}
	if got := contentOf(st).live; got != 0 {
		t.Errorf("live: got %d; want 0", got)
	}

	// What cannot be is left aside; a debt beyond the burst is cut.
	st.ImportDebts([]SourceState{{}, {Source: netip.MustParsePrefix("10.0.0.9/32"), Debt: -1}, {Source: netip.MustParsePrefix("10.0.0.8/32"), Debt: 1 << 62}}, then)
	_, v := st.Acquire(sourceN(8), then)
	wantVerdict(t, v, TooFast)
	_, v = st.Acquire(sourceN(8), then+100*time.Millisecond)
	wantVerdict(t, v, Accepted)
}

// TestAdmission_AllocatesNothing holds what the benchmarks show, of all that a new connection passes.
func TestAdmission_AllocatesNothing(t *testing.T) {
	entries, addrs := manyPrefixes(1000)
	prefixes := mustPrefixes(t, entries...)
	rate := NewRateLimiter(10, 10)
	st := NewSourceTable(1024, 64, SourceLimits{MaxConns: 2, Pace: NewPace(MaxRate, 0)})
	n := 0
	got := testing.AllocsPerRun(5000, func() {
		addr := addrs[n%len(addrs)]
		n++
		if !prefixes.Contains(addr) {
			t.Fatalf("%v is missing", addr)
		}
		rate.Take(time.Duration(n))
		ref, _ := st.Acquire(addr, time.Duration(n))
		ref.Release()
	})
	if got != 0 {
		t.Errorf("got %v allocations; want none", got)
	}
}

func BenchmarkSourceTable(b *testing.B) {
	for _, size := range []int{65536, 1 << 20} {
		for _, addrs := range []int{1000, 10_000, 100_000, 1_000_000} {
			b.Run(fmt.Sprintf("entries=%d/addresses=%d", size, addrs), func(b *testing.B) {
				st := NewSourceTable(size, 64, SourceLimits{MaxConns: 100, Pace: NewPace(MaxRate, 0)})
				for i := range min(addrs, 2*size) {
					ref, _ := st.Acquire(sourceN(i), 0)
					ref.Release()
				}
				b.ReportAllocs()
				now, n := time.Duration(0), uint32(0)
				for b.Loop() {
					n = n*1664525 + 1013904223
					ref, _ := st.Acquire(sourceN(int(uint64(n)*uint64(addrs)>>32)), now)
					ref.Release()
					now += time.Microsecond
				}
			})
		}
	}
	b.Run("parallel", func(b *testing.B) {
		st := NewSourceTable(65536, 64, SourceLimits{MaxConns: 100, Pace: NewPace(MaxRate, 0)})
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			n := rand.Uint32()
			for pb.Next() {
				n = n*1664525 + 1013904223
				ref, _ := st.Acquire(sourceN(int(n>>16)), 0)
				ref.Release()
			}
		})
	})
}
