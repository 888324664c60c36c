package proxy

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
)

// sourceN is the n-th of many client addresses.
func sourceN(n int) netip.Addr {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], 0x0a000000+uint32(n))
	return netip.AddrFrom4(b)
}

func wantVerdict(t *testing.T, got, want sourceVerdict) {
	t.Helper()
	if got != want {
		t.Errorf("got verdict %v; want %v", got, want)
	}
}

func TestSourceTable_LimitsConnectionsOfEachSource(t *testing.T) {
	st := newSourceTable(1024, 64, sourceLimits{maxConns: 2})
	a, b := sourceN(1), sourceN(2)
	ref1, v := st.acquire(a, 0)
	wantVerdict(t, v, sourceOK)
	ref2, v := st.acquire(a, 0)
	wantVerdict(t, v, sourceOK)
	_, v = st.acquire(a, 0)
	wantVerdict(t, v, sourceTooMany)
	_, v = st.acquire(netip.MustParseAddr("::ffff:10.0.0.1"), 0) // a in its other form
	wantVerdict(t, v, sourceTooMany)
	_, v = st.acquire(b, 0)
	wantVerdict(t, v, sourceOK)
	ref2.release()
	ref3, v := st.acquire(a, 0)
	wantVerdict(t, v, sourceOK)
	ref1.release()
	ref3.release()
	if got, want := st.stats().Live, 1; got != want {
		t.Errorf("live: got %d; want %d", got, want)
	}
}

func TestSourceTable_LimitsRateOfEachSource(t *testing.T) {
	st := newSourceTable(1024, 64, sourceLimits{maxConns: 1, pace: newPace(10, 2)})
	a, b := sourceN(1), sourceN(2)
	now := time.Hour
	ref, v := st.acquire(a, now)
	wantVerdict(t, v, sourceOK)
	_, v = st.acquire(a, now)
	wantVerdict(t, v, sourceTooMany) // which costs nothing of the rate
	ref.release()
	ref, v = st.acquire(a, now)
	wantVerdict(t, v, sourceOK)
	ref.release()
	_, v = st.acquire(a, now)
	wantVerdict(t, v, sourceTooFast)
	_, v = st.acquire(b, now)
	wantVerdict(t, v, sourceOK)
	_, v = st.acquire(a, now+99*time.Millisecond)
	wantVerdict(t, v, sourceTooFast)
	ref, v = st.acquire(a, now+100*time.Millisecond)
	wantVerdict(t, v, sourceOK)
	ref.release()
}

func TestSourceTable_IPv6CountsByPrefix(t *testing.T) {
	f := func(prefixV6 int, a, b string, same bool) {
		t.Helper()
		st := newSourceTable(1024, prefixV6, sourceLimits{maxConns: 1})
		_, v := st.acquire(netip.MustParseAddr(a), 0)
		wantVerdict(t, v, sourceOK)
		_, v = st.acquire(netip.MustParseAddr(b), 0)
		if got := v == sourceTooMany; got != same {
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
	for _, st := range []*sourceTable{nil, newSourceTable(1024, 64, sourceLimits{maxConns: 1, pace: newPace(1, 1)})} {
		for range 3 {
			ref, v := st.acquire(netip.Addr{}, 0)
			wantVerdict(t, v, sourceOK)
			ref.release()
			st.restore(netip.Addr{}).release()
		}
	}
	var st *sourceTable
	for range 3 {
		_, v := st.acquire(sourceN(1), 0)
		wantVerdict(t, v, sourceOK)
	}
	if st.export(0) != nil || st.stats() != (sourceStats{}) {
		t.Error("a nil table has content")
	}
	st.importDebts([]sourceState{{Source: netip.MustParsePrefix("10.0.0.1/32"), Debt: 1}}, 0)
}

// TestSourceTable_FullOfLiveSourcesLetsNewcomersIn: whoever fills the table locks nobody out, and gets no more himself.
func TestSourceTable_FullOfLiveSourcesLetsNewcomersIn(t *testing.T) {
	st := newSourceTable(100, 64, sourceLimits{maxConns: 1})
	var attackers []sourceRef
	for i := range 100 {
		ref, v := st.acquire(sourceN(i), 0)
		wantVerdict(t, v, sourceOK)
		attackers = append(attackers, ref)
	}
	var newcomers []sourceRef
	for i := 100; i < 200; i++ {
		ref, v := st.acquire(sourceN(i), 0)
		wantVerdict(t, v, sourceOK)
		newcomers = append(newcomers, ref)
	}
	for i := range 100 {
		_, v := st.acquire(sourceN(i), 0)
		wantVerdict(t, v, sourceTooMany)
	}
	if got, want := st.stats(), (sourceStats{Entries: 100, Used: 100, Live: 100, Untracked: 100}); got != want {
		t.Errorf("got %+v; want %+v", got, want)
	}
	for _, ref := range newcomers { // they were not counted, so there is nothing to count out
		ref.release()
	}
	if got := st.stats().Live; got != 100 {
		t.Errorf("live after the newcomers left: got %d; want 100", got)
	}
	for _, ref := range attackers {
		ref.release()
	}
	for i := 100; i < 200; i++ {
		_, v := st.acquire(sourceN(i), 0)
		wantVerdict(t, v, sourceOK)
	}
	if got, want := st.stats(), (sourceStats{Entries: 100, Used: 100, Live: 100, Untracked: 100, Evicted: 100}); got != want {
		t.Errorf("got %+v; want %+v", got, want)
	}
}

// TestSourceTable_KeepsLiveSourcesAndThoseThatTry: addresses that come once push out neither a source with connections
// nor one that keeps trying.
func TestSourceTable_KeepsLiveSourcesAndThoseThatTry(t *testing.T) {
	st := newSourceTable(100, 64, sourceLimits{maxConns: 1, pace: newPace(minRate, 1)})
	live, _ := st.acquire(sourceN(0), 0)
	ref, _ := st.acquire(sourceN(1), 0)
	ref.release()
	for i := range 10_000 {
		ref, v := st.acquire(sourceN(10+i), 0)
		wantVerdict(t, v, sourceOK)
		ref.release()
		if i%50 == 0 {
			_, v = st.acquire(sourceN(1), 0)
			wantVerdict(t, v, sourceTooFast)
		}
	}
	_, v := st.acquire(sourceN(0), 0)
	wantVerdict(t, v, sourceTooMany)
	live.release()
}

func TestSourceTable_ReleaseTwiceIsABug(t *testing.T) {
	st := newSourceTable(1024, 64, sourceLimits{})
	ref, _ := st.acquire(sourceN(1), 0)
	ref.release()
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	ref.release()
}

// sourceModel is a table of one shard as a map and a slice.
type sourceModel struct {
	size    int
	limits  sourceLimits
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

func (m *sourceModel) acquire(addr netip.Addr, now time.Duration) (tracked bool, v sourceVerdict) {
	s := m.sources[addr]
	if s == nil {
		if len(m.sources) == m.size {
			if len(m.idle) == 0 {
				return false, sourceOK
			}
			delete(m.sources, m.idle[0])
			m.idle = m.idle[1:]
		}
		s = &modelSource{}
		m.sources[addr] = s
	}
	defer m.touch(addr)
	if m.limits.maxConns > 0 && s.conns >= int(m.limits.maxConns) {
		return false, sourceTooMany
	}
	if p := m.limits.pace; p.interval > 0 {
		if max(s.due, now)+p.interval > now+p.ahead {
			return false, sourceTooFast
		}
		s.due = max(s.due, now) + p.interval
	}
	s.conns++
	return true, sourceOK
}

func (m *sourceModel) release(addr netip.Addr) {
	m.sources[addr].conns--
	m.touch(addr)
}

// TestSourceTable_EqualsModel runs random connections through the table and the model, with fewer and with more
// addresses than entries.
func TestSourceTable_EqualsModel(t *testing.T) {
	type conn struct {
		addr    netip.Addr
		ref     sourceRef
		tracked bool
	}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 5))
		size := 1 + rng.IntN(40)
		addrs := 1 + rng.IntN(3*size)
		limits := sourceLimits{maxConns: uint32(rng.IntN(4))}
		if rng.IntN(2) == 0 {
			limits.pace = newPace(5, 1+rng.IntN(4))
		}
		st := newSourceTable(size, 64, limits)
		m := &sourceModel{size: size, limits: limits, sources: map[netip.Addr]*modelSource{}}
		var conns []conn
		now := time.Duration(0)
		for step := range 5000 {
			now += time.Duration(rng.IntN(20)) * time.Millisecond
			if len(conns) > 0 && rng.IntN(100) < 48 {
				i := rng.IntN(len(conns))
				c := conns[i]
				conns = slices.Delete(conns, i, i+1)
				c.ref.release()
				if c.tracked {
					m.release(c.addr)
				}
				continue
			}
			addr := sourceN(rng.IntN(addrs))
			ref, v := st.acquire(addr, now)
			tracked, want := m.acquire(addr, now)
			if v != want || (ref != sourceRef{}) != tracked {
				t.Fatalf("seed %d step %d: %v: got %v, tracked %v; want %v, %v", seed, step, addr, v, ref != sourceRef{}, want, tracked)
			}
			if v == sourceOK {
				conns = append(conns, conn{addr, ref, tracked})
			}
		}
		compareWithModel(t, st, m, now)
	}
}

func compareWithModel(t *testing.T, st *sourceTable, m *sourceModel, now time.Duration) {
	t.Helper()
	got := map[netip.Addr]sourceState{}
	for _, s := range st.export(now) {
		got[s.Source.Addr()] = s
	}
	live := 0
	for addr, s := range m.sources {
		if s.conns > 0 {
			live++
		}
		want := sourceState{Source: netip.PrefixFrom(addr, 32), Conns: s.conns, Debt: max(s.due-now, 0)}
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
	if st := st.stats(); st.Used != len(m.sources) || st.Live != live {
		t.Errorf("got %d used, %d live; want %d, %d", st.Used, st.Live, len(m.sources), live)
	}
}

// TestSourceTable_ManyLoops: the limit is exact over all loops, and every connection is counted out.
func TestSourceTable_ManyLoops(t *testing.T) {
	const maxConns, addrs = 3, 8
	st := newSourceTable(1<<14, 64, sourceLimits{maxConns: maxConns})
	var mu sync.Mutex
	live := map[netip.Addr]int{}
	var wg sync.WaitGroup
	for loop := range 4 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(loop), 6))
			for range 5000 {
				addr := sourceN(rng.IntN(addrs))
				ref, v := st.acquire(addr, 0)
				if v != sourceOK {
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
				ref.release()
			}
		})
	}
	wg.Wait()
	if st := st.stats(); st.Live != 0 || st.Used != addrs {
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
	st := newSourceTable(size, 64, sourceLimits{maxConns: 10, pace: newPace(10, 10)})
	var held []sourceRef
	for i := range 1_000_000 {
		ref, v := st.acquire(sourceN(i), time.Duration(i))
		if v != sourceOK {
			t.Fatalf("address %d: got %v", i, v)
		}
		if i%25 == 0 { // 40 000 live ones
			held = append(held, ref)
		} else {
			ref.release()
		}
	}
	grown := int64(heap()-before) - int64(cap(held))*16
	if got := st.bytes(); got > bound || grown > bound+64<<10 {
		t.Errorf("got %d bytes, %d on the heap; want at most %d", got, grown, bound)
	}
	if got := st.stats(); got.Entries != size || got.Used != size || got.Live != 40_000 || got.Untracked != 0 {
		t.Errorf("got %+v", got)
	}
	for _, ref := range held {
		ref.release()
	}
	for _, size := range []int{1, 2, 1024, 1025, 100_000, 65537, 1 << 20} {
		st := newSourceTable(size, 64, sourceLimits{})
		n := st.stats().Entries
		if got, most := st.bytes(), n*48+16<<10; n < size || n > size+sourceShards || got > most {
			t.Errorf("size %d: got %d entries in %d bytes; want at most %d bytes", size, n, got, most)
		}
	}
}

func TestSourceTable_SetLimitsHoldsForWhatComes(t *testing.T) {
	st := newSourceTable(1024, 64, sourceLimits{maxConns: 3})
	var refs []sourceRef
	for range 3 {
		ref, _ := st.acquire(sourceN(1), 0)
		refs = append(refs, ref)
	}
	st.setLimits(sourceLimits{maxConns: 2})
	refs[0].release()
	_, v := st.acquire(sourceN(1), 0)
	wantVerdict(t, v, sourceTooMany)
	refs[1].release()
	_, v = st.acquire(sourceN(1), 0)
	wantVerdict(t, v, sourceOK)
}

// TestSourceTable_GoesOnInAnotherTable is what an upgrade does: debts are imported, connections restored one by one.
func TestSourceTable_GoesOnInAnotherTable(t *testing.T) {
	limits := sourceLimits{maxConns: 3, pace: newPace(10, 5)}
	old := newSourceTable(2048, 64, limits)
	v6 := netip.MustParseAddr("2001:db8::7")
	now := time.Hour
	for range 3 {
		old.acquire(sourceN(1), now)
		old.acquire(v6, now)
	}
	ref, _ := old.acquire(sourceN(2), now-time.Hour)
	ref.release() // neither connections nor a debt: as good as unknown

	states := old.export(now)
	slices.SortFunc(states, func(a, b sourceState) int { return a.Source.Addr().Compare(b.Source.Addr()) })
	want := []sourceState{
		{netip.MustParsePrefix("10.0.0.1/32"), 3, 300 * time.Millisecond},
		{netip.MustParsePrefix("2001:db8::/64"), 3, 300 * time.Millisecond},
	}
	if !slices.Equal(states, want) {
		t.Fatalf("got %+v; want %+v", states, want)
	}

	then := time.Second // another process has another epoch
	st := newSourceTable(4096, 64, limits)
	st.importDebts(states, then)
	for _, addr := range []netip.Addr{sourceN(1), v6} {
		refs := []sourceRef{st.restore(addr), st.restore(addr), st.restore(addr)}
		_, v := st.acquire(addr, then)
		wantVerdict(t, v, sourceTooMany)
		for _, ref := range refs {
			ref.release()
		}
		for range 2 {
			ref, v := st.acquire(addr, then)
			wantVerdict(t, v, sourceOK)
			ref.release()
		}
		_, v = st.acquire(addr, then)
		wantVerdict(t, v, sourceTooFast)
	}
	if got := st.stats().Live; got != 0 {
		t.Errorf("live: got %d; want 0", got)
	}

	// What cannot be is left aside; a debt beyond the burst is cut.
	st.importDebts([]sourceState{{}, {Source: netip.MustParsePrefix("10.0.0.9/32"), Debt: -1}, {Source: netip.MustParsePrefix("10.0.0.8/32"), Debt: 1 << 62}}, then)
	_, v := st.acquire(sourceN(8), then)
	wantVerdict(t, v, sourceTooFast)
	_, v = st.acquire(sourceN(8), then+100*time.Millisecond)
	wantVerdict(t, v, sourceOK)
}

// TestAdmission_AllocatesNothing holds what the benchmarks show, of all that a new connection passes.
func TestAdmission_AllocatesNothing(t *testing.T) {
	entries, addrs := manyPrefixes(1000)
	prefixes := mustPrefixes(t, entries...)
	rate := newRateLimiter(10, 10)
	st := newSourceTable(1024, 64, sourceLimits{maxConns: 2, pace: newPace(maxRate, 0)})
	var header proxyHeaderReader
	part := []byte(proxyV2Signature)
	n := 0
	got := testing.AllocsPerRun(5000, func() {
		addr := addrs[n%len(addrs)]
		n++
		if !prefixes.contains(addr) {
			t.Fatalf("%v is missing", addr)
		}
		rate.take(time.Duration(n))
		ref, _ := st.acquire(addr, time.Duration(n))
		ref.release()
		if _, _, err := header.read(part); err != nil {
			t.Fatal(err)
		}
	})
	if got != 0 {
		t.Errorf("got %v allocations; want none", got)
	}
}

func BenchmarkSourceTable(b *testing.B) {
	for _, size := range []int{65536, 1 << 20} {
		for _, addrs := range []int{1000, 10_000, 100_000, 1_000_000} {
			b.Run(fmt.Sprintf("entries=%d/addresses=%d", size, addrs), func(b *testing.B) {
				st := newSourceTable(size, 64, sourceLimits{maxConns: 100, pace: newPace(maxRate, 0)})
				for i := range min(addrs, 2*size) {
					ref, _ := st.acquire(sourceN(i), 0)
					ref.release()
				}
				b.ReportAllocs()
				now, n := time.Duration(0), uint32(0)
				for b.Loop() {
					n = n*1664525 + 1013904223
					ref, _ := st.acquire(sourceN(int(uint64(n)*uint64(addrs)>>32)), now)
					ref.release()
					now += time.Microsecond
				}
			})
		}
	}
	b.Run("parallel", func(b *testing.B) {
		st := newSourceTable(65536, 64, sourceLimits{maxConns: 100, pace: newPace(maxRate, 0)})
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			n := rand.Uint32()
			for pb.Next() {
				n = n*1664525 + 1013904223
				ref, _ := st.acquire(sourceN(int(n>>16)), 0)
				ref.release()
			}
		})
	})
}
