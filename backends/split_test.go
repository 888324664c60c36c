package backends_test

import (
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

// newSplit makes a split over empty pools of those names.
func newSplit(t testing.TB, weights map[string]int, byClient bool) *backends.Split {
	t.Helper()
	pools := map[string]*backends.Pool{}
	for name := range weights {
		pools[name] = backends.NewPool(name, backends.DefaultConfig(), &inOrder{})
	}
	s, err := backends.NewSplit(weights, byClient, func(name string) *backends.Pool { return pools[name] })
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// deal gives how many of n connections, opened on 8 goroutines, went to each pool.
func deal(s *backends.Split, n int) map[string]int {
	got := map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range n / 8 {
				name := s.Pick(netip.Addr{}).Name
				mu.Lock()
				got[name]++
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return got
}

func TestSplit_DealsExactlyByWeight(t *testing.T) {
	for _, byClient := range []bool{false, true} { // clients without an address
		s := newSplit(t, map[string]int{"blue": 90, "green": 10, "off": 0}, byClient)
		if got, want := deal(s, 1000), map[string]int{"blue": 900, "green": 100}; !maps.Equal(got, want) {
			t.Errorf("got %v; want %v", got, want)
		}
		must(t, s.SetWeights(map[string]int{"green": 110}))
		if got, want := deal(s, 1000), map[string]int{"blue": 450, "green": 550}; !maps.Equal(got, want) {
			t.Errorf("after a change of one weight: got %v; want %v", got, want)
		}
		must(t, s.SetWeights(map[string]int{"blue": 0, "green": 0, "off": 1}))
		if got, want := deal(s, 1000), map[string]int{"off": 1000}; !maps.Equal(got, want) {
			t.Errorf("after all were changed: got %v; want %v", got, want)
		}
	}
}

func TestSplit_SpreadsEvenly(t *testing.T) {
	s := newSplit(t, map[string]int{"blue": 3, "green": 1}, false)
	got := ""
	for range 8 {
		got += s.Pick(netip.Addr{}).Name[:1]
	}
	if want := "bbgbbbgb"; got != want {
		t.Errorf("got %s; want %s", got, want)
	}
}

// sides gives the pool of each of n clients with addresses one after the other.
func sides(s *backends.Split, n uint32) []string {
	names := make([]string, n)
	for i := range n {
		var a [4]byte
		binary.BigEndian.PutUint32(a[:], 0x0a000000+i)
		names[i] = s.Pick(netip.AddrFrom4(a)).Name
	}
	return names
}

func part(names []string, of string) float64 {
	n := 0
	for _, name := range names {
		if name == of {
			n++
		}
	}
	return float64(n) / float64(len(names))
}

func TestSplit_ClientStaysWithItsPool(t *testing.T) {
	const n = 100_000
	s := newSplit(t, map[string]int{"blue": 70, "green": 20, "red": 10}, true)
	before := sides(s, n)
	if again := sides(s, n); !slices.Equal(before, again) {
		t.Error("clients moved, and nothing had changed")
	}
	if again := sides(newSplit(t, s.Weights(), true), n); !slices.Equal(before, again) {
		t.Error("clients are elsewhere after a restart")
	}
	for name, want := range map[string]float64{"blue": 0.7, "green": 0.2, "red": 0.1} {
		if got := part(before, name); math.Abs(got-want) > 0.005 {
			t.Errorf("%s: got %.4f of the clients; want %.4f", name, got, want)
		}
	}

	must(t, s.SetWeights(map[string]int{"green": 120})) // 70:120:10, so green goes from 0.2 to 0.6
	after := sides(s, n)
	moved := 0
	for i := range before {
		if before[i] != after[i] {
			moved++
			if after[i] != "green" {
				t.Fatalf("a client moved from %s to %s; only green has a new weight", before[i], after[i])
			}
		}
	}
	if got := float64(moved) / n; math.Abs(got-0.4) > 0.01 {
		t.Errorf("%.4f of the clients moved; want the needed 0.4", got)
	}
}

func TestSplit_BadWeightsChangeNothing(t *testing.T) {
	s := newSplit(t, map[string]int{"blue": 90, "green": 10}, false)
	for _, tc := range []struct {
		weights map[string]int
		want    string
	}{
		{map[string]int{"blue": 50, "red": 1}, `split.red: the listener does not send to this pool, but to ["blue" "green"]`},
		{map[string]int{"blue": 50, "green": 1001}, "split.green: 1001 is not within 0..1000"},
		{map[string]int{"blue": -1, "green": -1}, "split.blue: -1 is not within 0..1000\nsplit.green: -1 is not within 0..1000\nsplit: no pool has a weight above 0, so connections could go nowhere"},
		{map[string]int{"blue": 0, "green": 0}, "split: no pool has a weight above 0, so connections could go nowhere"},
	} {
		if err := s.SetWeights(tc.weights); err == nil || err.Error() != tc.want {
			t.Errorf("%v: got %v; want %s", tc.weights, err, tc.want)
		}
		if got, want := s.Weights(), map[string]int{"blue": 90, "green": 10}; !maps.Equal(got, want) {
			t.Errorf("%v: weights are %v; want %v as before", tc.weights, got, want)
		}
	}
	if _, err := backends.NewSplit(map[string]int{"gone": 1}, false, func(string) *backends.Pool { return nil }); err == nil || err.Error() != "split.gone: there is no such pool" {
		t.Errorf("NewSplit with an unknown pool: got %v", err)
	}
	if err := backends.ValidateSplit(nil); err == nil {
		t.Error("ValidateSplit of nothing: got nil; want an error")
	}
}

func TestParseSplit(t *testing.T) {
	got, err := backends.ParseSplit([]string{"blue=90", "green=10"})
	if want := map[string]int{"blue": 90, "green": 10}; err != nil || !maps.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
	for _, words := range [][]string{{"blue"}, {"=1"}, {"blue="}, {"blue=1%"}, {"blue=1.5"}, {"blue=1", "blue=2"}} {
		if got, err := backends.ParseSplit(words); err == nil {
			t.Errorf("%q: got %v; want an error", words, got)
		}
	}
}

func TestSplit_AllocatesNothing(t *testing.T) {
	for _, byClient := range []bool{false, true} {
		s := newSplit(t, map[string]int{"blue": 90, "green": 10}, byClient)
		client := netip.MustParseAddr("2001:db8::1")
		if n := testing.AllocsPerRun(100, func() { s.Pick(client) }); n != 0 {
			t.Errorf("by client %v: %v allocations; want 0", byClient, n)
		}
	}
}

func BenchmarkSplit(b *testing.B) {
	for _, byClient := range []bool{false, true} {
		b.Run(fmt.Sprintf("byClient=%v", byClient), func(b *testing.B) {
			s := newSplit(b, map[string]int{"blue": 90, "green": 10}, byClient)
			client := netip.MustParseAddr("192.0.2.1")
			b.ReportAllocs()
			for b.Loop() {
				s.Pick(client)
			}
		})
	}
}

func ExampleSplit() {
	pools := map[string]*backends.Pool{}
	for _, name := range []string{"blue", "green"} {
		pools[name] = backends.NewPool(name, backends.DefaultConfig(), &inOrder{})
	}
	s, err := backends.NewSplit(map[string]int{"blue": 90, "green": 10}, false, func(name string) *backends.Pool { return pools[name] })
	if err != nil {
		fmt.Println(err)
		return
	}
	got := map[string]int{}
	for range 1000 {
		got[s.Pick(netip.Addr{}).Name]++
	}
	fmt.Println(got)
	fmt.Println(s.SetWeights(map[string]int{"green": 2000}))
	// Output:
	// map[blue:900 green:100]
	// split.green: 2000 is not within 0..1000
}
