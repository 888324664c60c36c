package balancer

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/273ebdf9/lb/backends"
)

// homes gives each client's backend while nothing is connected.
func homes(t *testing.T, p *backends.Pool, clients []netip.Addr) []*backends.Backend {
	t.Helper()
	homes := make([]*backends.Backend, len(clients))
	for i, c := range clients {
		b, err := tryAcquire(p, &backends.Request{Client: c})
		if err != nil {
			t.Fatal(err)
		}
		p.Release(b)
		homes[i] = b
	}
	return homes
}

func manyClients(seed uint64) []netip.Addr {
	rng := rand.New(rand.NewPCG(seed, 7))
	clients := make([]netip.Addr, 50_000)
	for i := range clients {
		clients[i] = someClient(rng)
	}
	return clients
}

// moved gives the part of the clients that have changed their backend, and of those that have had another
// than lost.
func moved(before, after []*backends.Backend, lost *backends.Backend) (all, others float64) {
	for i := range before {
		if before[i].Name != after[i].Name {
			all += 1 / float64(len(before))
			if before[i] != lost {
				others += 1 / float64(len(before))
			}
		}
	}
	return all, others
}

func TestSource_MovesOnlyTheClientsOfALostBackend(t *testing.T) {
	const n, share = 20, 1.0 / 20
	for seed := range uint64(2) {
		clients := manyClients(seed)
		p := newPool(t, new(Source), n, 0)
		before := homes(t, p, clients)
		lost := p.Backends()[seed*7]

		p.SetHealth(lost, backends.HealthDown, "test")
		during := homes(t, p, clients)
		all, others := moved(before, during, lost)
		if math.Abs(all-share) > 0.05*share || others > 0 {
			t.Errorf("seed %d: one of %d went: %.4f of the clients moved, %.4f of them others'; want %.4f ± 5 %%, none of them others'", seed, n, all, others, share)
		}
		if all, _ := moved(during, homes(t, p, clients), nil); all > 0 {
			t.Errorf("seed %d: while it is out, %.4f of the clients move about; want none", seed, all)
		}
		got := map[*backends.Backend]float64{}
		for i := range before {
			if before[i] == lost {
				got[during[i]] += 1 / all / float64(len(clients))
			}
		}
		for b, part := range got {
			if part > 2.0/(n-1) {
				t.Errorf("seed %d: %s got %.3f of the lost backend's clients; want about %.3f", seed, b.Name, part, 1.0/(n-1))
			}
		}

		p.SetHealth(lost, backends.HealthUp, "test")
		if all, _ := moved(before, homes(t, p, clients), nil); all > 0 {
			t.Errorf("seed %d: it returned: %.4f of the clients are not where they were; want none", seed, all)
		}
	}
}

func TestSource_MovesLittleMoreWhenABackendIsRemoved(t *testing.T) {
	const n, share = 20, 1.0 / 20
	clients := manyClients(1)
	p := newPool(t, new(Source), n, 0)
	before := homes(t, p, clients)
	lost := p.Backends()[7]
	if err := p.Remove(lost, "test"); err != nil {
		t.Fatal(err)
	}
	all, others := moved(before, homes(t, p, clients), lost)
	t.Logf("removed: %.4f moved, %.4f of them others'", all, others)
	if all > share+0.05 {
		t.Errorf("one of %d was removed: %.4f of the clients moved; want at most %.4f", n, all, share+0.05)
	}
	if _, err := p.Add(config(lost.Name, 100), backends.HealthUp); err != nil {
		t.Fatal(err)
	}
	if all, _ := moved(before, homes(t, p, clients), nil); all > 0 {
		t.Errorf("it was added again, as the last one: %.4f of the clients are not where they were; want none", all)
	}
}

func TestSource_ConnectionsOfOneClientGoToOneBackend(t *testing.T) {
	p := newPool(t, new(Source), 4, 0)
	req := backends.Request{Client: netip.MustParseAddr("2001:db8::1")}
	home, err := tryAcquire(p, &req)
	if err != nil {
		t.Fatal(err)
	}
	for range boundFloor - 1 {
		if b, _ := tryAcquire(p, &req); b != home {
			t.Fatalf("got %s; want %s, where the client's first one is", b.Name, home.Name)
		}
	}
	req.Client = netip.MustParseAddr("192.0.2.1")
	plain := homes(t, p, []netip.Addr{req.Client, netip.AddrFrom16(req.Client.As16())})
	if plain[0] != plain[1] {
		t.Errorf("an IPv4 address and its IPv4-mapped form go to %s and %s; want one", plain[0].Name, plain[1].Name)
	}
}

func TestSource_NoBackendHasMuchMoreThanItsShare(t *testing.T) {
	weights := []int{100, 100, 50, 200, 10, 0, 300, 100}
	p := newPool(t, new(Source), len(weights), 0, weights...)
	sum := 0
	for _, w := range weights {
		sum += w
	}
	req := backends.Request{Client: netip.MustParseAddr("192.0.2.1")} // one client that opens them all
	for n := 1; n <= 5000; n++ {
		b, err := tryAcquire(p, &req)
		if err != nil {
			t.Fatal(err)
		}
		if limit := math.Ceil(1.25 * float64(n) * float64(b.Weight()) / float64(sum)); float64(b.Active()) > max(limit, boundFloor) {
			t.Fatalf("connection %d: backend of weight %d of %d has %d; want at most %v", n, b.Weight(), sum, b.Active(), limit)
		}
	}
}

func TestSource_FallsBackToLeastConnections(t *testing.T) {
	p := newPool(t, new(Source), 4, 3)
	req := backends.Request{Client: netip.MustParseAddr("192.0.2.1")}
	home, err := tryAcquire(p, &req)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		tryAcquire(p, &req)
	}
	others := map[string]int{}
	for range 6 { // its backend is full
		b, err := tryAcquire(p, &req)
		if err != nil {
			t.Fatal(err)
		}
		others[b.Name]++
	}
	if len(others) != 3 || others[home.Name] != 0 {
		t.Errorf("with %s full, six connections went to %v; want two to each of the others", home.Name, others)
	}
	for name, n := range others {
		if n != 2 {
			t.Errorf("with %s full, %s got %d of six; want 2", home.Name, name, n)
		}
	}
}

func TestSource_ClientWithoutAddressGoesByLeastConnections(t *testing.T) {
	p := newPool(t, new(Source), 4, 0)
	for range 40 {
		acquire(t, p)
	}
	for _, b := range p.Backends() {
		if b.Active() != 10 {
			t.Errorf("backend %s has %d of 40; want 10", b.Name, b.Active())
		}
	}
}
