package backends

// Hot path: one Pick a connection. BenchmarkSplit holds its cost.

import (
	"errors"
	"fmt"
	"maps"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
)

// Split divides the connections of a listener among pools by weight. All methods are safe for concurrent use.
type Split struct {
	byClient bool

	mu    sync.Mutex
	sides []side // by name
	total int64  // sum of the weights
}

// side is one pool of a split.
type side struct {
	pool    *Pool
	key     uint64
	weight  int64
	current int64 // of the smooth weighted round robin
}

// NewSplit makes a split among the pools that weights names, each with a weight of 0..MaxWeight; find returns
// a pool by name, or nil. Connections are dealt out exactly by weight, or, with byClient, so that a client
// stays with its pool and a change of the weights moves no more clients than it must. The error lists every
// fault.
func NewSplit(weights map[string]int, byClient bool, find func(name string) *Pool) (*Split, error) {
	errs := []error{ValidateSplit(weights)}
	s := &Split{byClient: byClient}
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		p := find(name)
		if p == nil {
			errs = append(errs, fmt.Errorf("split.%s: there is no such pool", name))
		}
		s.sides = append(s.sides, side{pool: p, key: nameKey(name), weight: int64(weights[name])})
		s.total += int64(weights[name])
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return s, nil
}

// ValidateSplit returns every fault of a split's weights. Each error's text starts with the key, such as
// "split.blue: …".
func ValidateSplit(weights map[string]int) error {
	var errs []error
	sum := 0
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		n := weights[name]
		if !ValidName(name) {
			errs = append(errs, fmt.Errorf("split.%s: not a pool's name", name))
		}
		if n < 0 || n > MaxWeight {
			errs = append(errs, fmt.Errorf("split.%s: %d is not within 0..%d", name, n, MaxWeight))
		}
		sum += max(n, 0)
	}
	if sum == 0 {
		errs = append(errs, errors.New("split: no pool has a weight above 0, so connections could go nowhere"))
	}
	return errors.Join(errs...)
}

// ParseSplit reads weights from words of the form POOL=N, as on a command line. The error is about the form
// alone: see ValidateSplit.
func ParseSplit(words []string) (map[string]int, error) {
	weights := make(map[string]int, len(words))
	for _, word := range words {
		name, number, ok := strings.Cut(word, "=")
		n, err := strconv.Atoi(number)
		if !ok || name == "" || err != nil {
			return nil, fmt.Errorf("cannot parse weight %q: write POOL=N", word)
		}
		if _, twice := weights[name]; twice {
			return nil, fmt.Errorf("cannot parse weight %q: pool %q has one already", word, name)
		}
		weights[name] = n
	}
	return weights, nil
}

// Pick returns the pool of a new connection of that client. A client without an address, as on a Unix
// listener, goes by weight alone.
func (s *Split) Pick(client netip.Addr) *Pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.byClient {
		if key, ok := clientKey(client); ok {
			return s.pickByClientLocked(key)
		}
	}
	return s.pickInTurnLocked()
}

// pickInTurnLocked is nginx's smooth weighted round robin: over as many connections as the sum of the
// weights, each side gets its weight, spread evenly.
func (s *Split) pickInTurnLocked() *Pool {
	var best *side
	for i := range s.sides {
		x := &s.sides[i]
		if x.weight == 0 {
			continue
		}
		x.current += x.weight
		if best == nil || x.current > best.current {
			best = x
		}
	}
	best.current -= s.total
	return best.pool
}

// pickByClientLocked is weighted rendezvous hashing (Schindelhauer and Schomaker, Weighted Distributed Hash
// Tables, SPAA 2005): a weight that grows takes clients from the others and moves no other client, and the
// other way round.
func (s *Split) pickByClientLocked(key uint64) *Pool {
	var best *Pool
	least := math.Inf(1)
	for i := range s.sides {
		x := &s.sides[i]
		if x.weight == 0 {
			continue
		}
		u := (float64(mix(key^x.key, mix2)>>11) + 0.5) / (1 << 53) // 0 < u < 1
		if d := -math.Log(u) / float64(x.weight); d < least {
			best, least = x.pool, d
		}
	}
	return best
}

// Weights returns the weights at this moment, by name of the pool.
func (s *Split) Weights() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.weightsLocked()
}

func (s *Split) weightsLocked() map[string]int {
	weights := make(map[string]int, len(s.sides))
	for _, x := range s.sides {
		weights[x.pool.Name] = int(x.weight)
	}
	return weights
}

// Pools returns the pools of the split, by name.
func (s *Split) Pools() []*Pool {
	s.mu.Lock()
	defer s.mu.Unlock()
	pools := make([]*Pool, len(s.sides))
	for i, x := range s.sides {
		pools[i] = x.pool
	}
	return pools
}

// SetWeights changes the weights of those pools; the others keep theirs. On an error, which lists every
// fault, nothing has changed.
func (s *Split) SetWeights(weights map[string]int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := s.weightsLocked()
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		if _, ok := want[name]; !ok {
			errs = append(errs, fmt.Errorf("split.%s: the listener does not send to this pool, but to %q", name, slices.Sorted(maps.Keys(want))))
		}
	}
	maps.Copy(want, weights)
	if len(errs) == 0 {
		errs = append(errs, ValidateSplit(want))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	s.total = 0
	for i := range s.sides {
		x := &s.sides[i]
		x.weight, x.current = int64(want[x.pool.Name]), 0
		s.total += x.weight
	}
	return nil
}
