package backends_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// line is who waits, by the number in Waiter.Session, and who has been served.
type line struct {
	t       testing.TB
	pool    *backends.Pool
	waiters []*backends.Waiter
	served  []uint64
	got     []*backends.Backend // by who was served
}

// join has one more connection ask for a backend, which has tried some already.
func (l *line) join(tried ...*backends.Backend) error {
	w := &backends.Waiter{Session: uint64(len(l.waiters)), Grant: func(w *backends.Waiter, b *backends.Backend) {
		l.served = append(l.served, w.Session)
		l.got = append(l.got, b)
	}}
	b, err := l.pool.Acquire(&backends.Request{Tried: tried}, w)
	if err == nil {
		w.Grant(w, b)
	}
	l.waiters = append(l.waiters, w)
	return err
}

// mustWait is join for a connection that has to wait.
func (l *line) mustWait(tried ...*backends.Backend) {
	l.t.Helper()
	if err := l.join(tried...); !errors.Is(err, backends.ErrQueued) {
		l.t.Fatalf("connection %d: got %v; want %v", len(l.waiters)-1, err, backends.ErrQueued)
	}
}

// hold takes n slots, which nobody gives back.
func hold(t testing.TB, p *backends.Pool, n int) {
	t.Helper()
	for range n {
		if _, err := acquire(p, &backends.Request{}); err != nil {
			t.Fatal(err)
		}
	}
}

func (l *line) want(what string, served ...uint64) {
	l.t.Helper()
	if !slices.Equal(l.served, served) {
		l.t.Errorf("%s: served %v; want %v", what, l.served, served)
	}
}

func full(size int) func(*backends.Config) {
	return func(c *backends.Config) { c.MaxConns, c.QueueSize = 1, size }
}

func TestQueue_ServesInArrivalOrder(t *testing.T) {
	p := livePool(t, 4, full(100))
	hold(t, p, 4)
	l := line{t: t, pool: p}
	for range 100 {
		l.mustWait()
	}
	if err := l.join(); !errors.Is(err, backends.ErrQueueFull) {
		t.Errorf("the 101st: got %v; want %v", err, backends.ErrQueueFull)
	}
	if p.QueueLen() != 100 || p.Queue.Queued.Load() != 100 || p.Queue.Rejected.Load() != 1 {
		t.Errorf("length %d, queued %d, rejected %d; want 100, 100 and 1", p.QueueLen(), p.Queue.Queued.Load(), p.Queue.Rejected.Load())
	}
	rng := rand.New(rand.NewPCG(1, 1))
	var want []uint64
	for i := range uint64(100) {
		p.Release(p.Backends()[rng.IntN(4)]) // whoever ends first
		want = append(want, i)
	}
	l.want("100 releases", want...)
	if p.QueueLen() != 0 {
		t.Errorf("length: got %d; want 0", p.QueueLen())
	}
	for _, b := range p.Backends() {
		if b.Active() != 1 {
			t.Errorf("%s has %d; want 1", b.Name, b.Active())
		}
	}
}

func TestQueue_OldestWaitIsOfWhoIsServedNext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := livePool(t, 1, full(100))
		hold(t, p, 1)
		l := line{t: t, pool: p}
		want := func(want time.Duration) {
			t.Helper()
			if got := p.OldestWait(); got != want {
				t.Errorf("got %v; want %v", got, want)
			}
		}
		want(0)
		l.mustWait()
		time.Sleep(3 * time.Second)
		l.mustWait()
		want(3 * time.Second)
		time.Sleep(time.Second)
		p.Release(p.Backends()[0])
		want(time.Second)
		w := &backends.Waiter{Since: time.Now().Add(-time.Minute)}
		p.Leave(l.waiters[1])
		want(0)
		p.Requeue(&backends.Request{}, w)
		want(time.Minute)
		p.Leave(w)
	})
}

// Connections come, are served and leave on 8 goroutines; max_conns holds, and nobody is lost or served
// twice.
func TestQueue_LosesNobody(t *testing.T) {
	const clients = 4000
	p := livePool(t, 4, full(100))
	var served, left, refused [clients]atomic.Int32
	var done sync.WaitGroup // of the clients, wherever they are
	var grant func(w *backends.Waiter, b *backends.Backend)
	slots := make(chan *backends.Backend, clients)
	grant = func(w *backends.Waiter, b *backends.Backend) {
		if n := b.Active(); n > 1 {
			t.Errorf("%s has %d; want at most 1", b.Name, n)
		}
		if served[w.Session].Add(1) != 1 {
			t.Errorf("client %d was served twice", w.Session)
		}
		slots <- b
	}
	for g := range 8 {
		done.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 2))
			var waiting []*backends.Waiter
			for i := g; i < clients; i += 8 {
				w := &backends.Waiter{Session: uint64(i), Grant: grant}
				b, err := p.Acquire(&backends.Request{}, w)
				switch {
				case err == nil:
					grant(w, b)
				case errors.Is(err, backends.ErrQueued):
					waiting = append(waiting, w)
				case errors.Is(err, backends.ErrQueueFull):
					refused[i].Add(1)
				default:
					t.Errorf("client %d: %v", i, err)
				}
				if len(waiting) > 0 && rng.IntN(4) == 0 {
					w := waiting[rng.IntN(len(waiting))]
					if p.Leave(w) {
						left[w.Session].Add(1)
					}
				}
				select {
				case b := <-slots:
					p.Release(b)
				default:
				}
			}
		})
	}
	done.Wait()
	for len(slots) > 0 {
		p.Release(<-slots)
	}
	for i := range clients {
		if n := served[i].Load() + left[i].Load() + refused[i].Load(); n != 1 {
			t.Errorf("client %d: served %d, left %d, refused %d times; want one of them once", i, served[i].Load(), left[i].Load(), refused[i].Load())
		}
	}
	if p.Active() != 0 || p.QueueLen() != 0 {
		t.Errorf("at the end: active %d, length %d; want 0 and 0", p.Active(), p.QueueLen())
	}
}

func TestQueue_LeavingFreesThePlace(t *testing.T) {
	p := livePool(t, 1, full(3))
	hold(t, p, 1)
	l := line{t: t, pool: p}
	for range 3 {
		l.mustWait()
	}
	if !p.Leave(l.waiters[1]) {
		t.Error("Leave of one who waits: got false; want true")
	}
	if p.Leave(l.waiters[1]) {
		t.Error("Leave once more: got true; want false")
	}
	l.mustWait()
	for range 3 {
		p.Release(p.Get("b0"))
	}
	l.want("three releases", 0, 2, 3)
	if p.Leave(l.waiters[3]) {
		t.Error("Leave of one who was served: got true; want false, for it owes a release")
	}
}

func TestQueue_NewcomerDoesNotOvertake(t *testing.T) {
	p := livePool(t, 2, full(10))
	hold(t, p, 2)
	l := line{t: t, pool: p}
	l.mustWait()
	p.Release(p.Get("b0"))
	if _, err := acquire(p, &backends.Request{}); !errors.Is(err, backends.ErrSaturated) {
		t.Errorf("after a release with one waiting: got %v; want %v", err, backends.ErrSaturated)
	}
	l.mustWait()
	l.want("one release", 0)
}

// Whatever makes room serves those who wait.
func TestQueue_IsServedByWhateverMakesRoom(t *testing.T) {
	for what, tc := range map[string]struct {
		before, then func(p *backends.Pool)
	}{
		"Release":   {nil, func(p *backends.Pool) { p.Release(p.Get("b0")) }},
		"SetHealth": {func(p *backends.Pool) { p.SetHealth(p.Get("b2"), backends.HealthDown, "") }, func(p *backends.Pool) { p.SetHealth(p.Get("b2"), backends.HealthUp, "") }},
		"SetAdmin":  {func(p *backends.Pool) { p.SetAdmin(p.Get("b2"), backends.AdminMaint, "") }, func(p *backends.Pool) { p.SetAdmin(p.Get("b2"), backends.AdminReady, "") }},
		"SetWeight": {func(p *backends.Pool) { must(t, p.SetWeight(p.Get("b2"), 0, "")) }, func(p *backends.Pool) { must(t, p.SetWeight(p.Get("b2"), 1, "")) }},
		"Add":       {func(p *backends.Pool) { must(t, p.Remove(p.Get("b2"), "")) }, func(p *backends.Pool) { addBackend(t, p, "new", backends.HealthUp, nil) }},
		"SetMaxConns": {
			func(p *backends.Pool) { hold(t, p, 1) },
			func(p *backends.Pool) { must(t, p.SetMaxConns(p.Get("b1"), 2, "")) },
		},
		"backups for lack of others": {
			func(p *backends.Pool) {
				must(t, p.Remove(p.Get("b2"), ""))
				addBackend(t, p, "backup", backends.HealthUp, isBackup)
			},
			func(p *backends.Pool) {
				p.SetHealth(p.Get("b0"), backends.HealthDown, "")
				must(t, p.Remove(p.Get("b1"), ""))
			},
		},
	} {
		p := livePool(t, 3, full(10))
		if tc.before != nil {
			tc.before(p)
		}
		for {
			if _, err := acquire(p, &backends.Request{}); err != nil {
				break
			}
		}
		l := line{t: t, pool: p}
		l.mustWait()
		l.mustWait()
		tc.then(p)
		l.want(what, 0)
	}
	p := livePool(t, 2, full(10))
	hold(t, p, 2)
	l := line{t: t, pool: p}
	for range 4 {
		l.mustWait()
	}
	cfg := *p.Config()
	cfg.MaxConns = 2
	reload(p, cfg, nil)
	l.want("a reload with max_conns = 2", 0, 1)
	if a, b := p.Get("b0").Active(), p.Get("b1").Active(); a != 2 || b != 2 {
		t.Errorf("a reload with max_conns = 2: got %d and %d; want both full", a, b)
	}
}

func TestQueue_NobodyGetsABackendItHasTried(t *testing.T) {
	p := livePool(t, 2, full(10))
	b0, b1 := p.Get("b0"), p.Get("b1")
	hold(t, p, 2)
	l := line{t: t, pool: p}
	l.mustWait(b0)
	l.mustWait()
	if err := l.join(b0, b1); !errors.Is(err, backends.ErrSaturated) {
		t.Errorf("all tried: got %v; want %v", err, backends.ErrSaturated)
	}
	p.Release(b0)
	l.want("b0 free, which the first has tried", 1)
	p.Release(b0)
	if err := l.join(); err != nil { // of no use to who waits
		t.Errorf("a newcomer, b0 free: got %v; want b0", err)
	}
	p.Release(b1)
	l.want("b1 free", 1, 3, 0)
}

func TestQueue_BackendThatCameUpIsTriedAgain(t *testing.T) {
	p := livePool(t, 2, full(10))
	b0 := p.Get("b0")
	hold(t, p, 2)
	l := line{t: t, pool: p}
	l.mustWait(b0)
	p.SetHealth(b0, backends.HealthDown, "refused")
	p.Release(b0)
	p.SetHealth(b0, backends.HealthUp, "answers")
	l.want("b0 is back", 0)
}

func TestQueue_SizeZeroIsNone(t *testing.T) {
	p := livePool(t, 1, full(0))
	l := line{t: t, pool: p}
	hold(t, p, 1)
	if err := l.join(); !errors.Is(err, backends.ErrSaturated) {
		t.Errorf("full: got %v; want %v", err, backends.ErrSaturated)
	}
	p.SetHealth(p.Get("b0"), backends.HealthDown, "test")
	if err := l.join(); !errors.Is(err, backends.ErrNoneUp) {
		t.Errorf("down: got %v; want %v", err, backends.ErrNoneUp)
	}
}

// TestQueue_NobodyWaitsForAFreeSlot holds random histories against what the queue is for: whoever waits has
// tried every backend that has a free slot, and nobody is served before one who came earlier and could have
// had the same backend.
func TestQueue_NobodyWaitsForAFreeSlot(t *testing.T) {
	for _, policy := range []string{"leastconn", "random", "roundrobin", "source", "first"} {
		for seed := range uint64(60) {
			rng := rand.New(rand.NewPCG(seed, 3))
			p := livePool(t, 1+rng.IntN(4), func(c *backends.Config) {
				c.Balance, c.MaxConns, c.QueueSize = policy, 1+rng.IntN(2), 1+rng.IntN(8)
				c.WhenAllDown = []string{"reject", "queue", "any"}[rng.IntN(3)]
			})
			addBackend(t, p, "backup", backends.HealthUp, func(c *backends.BackendConfig) { c.Backup = rng.IntN(2) == 0 })
			type conn struct {
				backends.Waiter
				tried []*backends.Backend
			}
			var waiting []*conn
			var held []*backends.Backend
			grant := func(w *backends.Waiter, b *backends.Backend) {
				held = append(held, b)
				for i, c := range waiting {
					if &c.Waiter == w {
						waiting = slices.Delete(waiting, i, i+1)
						return
					}
					if b.Offered() && !slices.Contains(c.tried, b) {
						// a backup may be for somebody who has tried all others
						t.Fatalf("%s, seed %d: connection %d got %s before %d did", policy, seed, w.Session, b.Name, c.Session)
					}
				}
				t.Fatalf("%s, seed %d: connection %d was granted a slot and did not wait", policy, seed, w.Session)
			}
			for step := range uint64(300) {
				b := p.Backends()[rng.IntN(len(p.Backends()))]
				switch rng.IntN(10) {
				case 0:
					to := backends.HealthState(1 + rng.IntN(2))
					if to == backends.HealthUp && b.Health() == backends.HealthDown {
						for _, c := range waiting {
							c.tried = slices.DeleteFunc(c.tried, func(x *backends.Backend) bool { return x == b })
						}
					}
					p.SetHealth(b, to, "")
				case 1:
					p.SetAdmin(b, backends.AdminState(rng.IntN(2)), "")
				case 2:
					must(t, p.SetMaxConns(b, 1+rng.IntN(3), ""))
				case 3:
					must(t, p.SetWeight(b, 50*rng.IntN(3), ""))
				case 4, 5, 6:
					if len(held) > 0 {
						i := rng.IntN(len(held))
						b := held[i]
						held = slices.Delete(held, i, i+1)
						p.Release(b)
					}
				case 7:
					if len(waiting) > 0 {
						i := rng.IntN(len(waiting))
						if !p.Leave(&waiting[i].Waiter) {
							t.Fatalf("%s, seed %d: Leave of one who waits: got false", policy, seed)
						}
						waiting = slices.Delete(waiting, i, i+1)
					}
				default:
					c := &conn{Waiter: backends.Waiter{Session: step, Grant: grant}}
					if rng.IntN(2) == 0 {
						c.tried = []*backends.Backend{b}
					}
					got, err := p.Acquire(&backends.Request{Tried: c.tried}, &c.Waiter)
					if err == nil {
						held = append(held, got)
					} else if errors.Is(err, backends.ErrQueued) {
						if p.Config().WhenAllDown == "queue" && !slices.ContainsFunc(p.Backends(), (*backends.Backend).Offered) {
							c.tried = nil
						}
						waiting = append(waiting, c)
					}
				}
				if p.QueueLen() != len(waiting) {
					t.Fatalf("%s, seed %d, step %d: length %d; want %d", policy, seed, step, p.QueueLen(), len(waiting))
				}
				for _, b := range p.Backends() {
					for _, c := range waiting {
						if b.Eligible() && !slices.Contains(c.tried, b) {
							t.Fatalf("%s, seed %d, step %d: connection %d waits, and %s has a free slot", policy, seed, step, c.Session, b.Name)
						}
					}
				}
			}
			for _, c := range waiting {
				p.Leave(&c.Waiter)
			}
			for _, b := range held {
				p.Release(b)
			}
			if p.Active() != 0 {
				t.Errorf("%s, seed %d: active %d after all releases; want 0", policy, seed, p.Active())
			}
		}
	}
}

func TestAcquire_AllocatesNothing(t *testing.T) {
	p := livePool(t, 4, full(10))
	w := &backends.Waiter{Grant: func(*backends.Waiter, *backends.Backend) {}}
	req := &backends.Request{}
	if n := testing.AllocsPerRun(100, func() {
		b, err := p.Acquire(req, w)
		must(t, err)
		p.Release(b)
	}); n != 0 {
		t.Errorf("with a free slot: %v allocations; want 0", n)
	}
	hold(t, p, 4)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := p.Acquire(req, w); err != backends.ErrQueued {
			t.Fatal(err)
		}
		p.Release(p.Backends()[0]) // and the waiter has it
	}); n != 0 {
		t.Errorf("through the queue: %v allocations; want 0", n)
	}
}

func ExamplePool_Acquire() {
	cfg := backends.DefaultConfig()
	cfg.MaxConns = 1
	p := backends.NewPool("app", cfg, &inOrder{})
	w1 := backends.DefaultBackendConfig()
	w1.Name, w1.Address = "w1", "unix:/run/app/w1.sock"
	if _, err := p.Add(w1, backends.HealthUp); err != nil {
		fmt.Println(err)
		return
	}

	first, _ := p.Acquire(&backends.Request{}, nil)
	second := &backends.Waiter{Session: 2, Grant: func(w *backends.Waiter, b *backends.Backend) {
		fmt.Printf("session %d may connect to %s\n", w.Session, b.Name)
	}}
	_, err := p.Acquire(&backends.Request{}, second)
	fmt.Println(err)
	p.Release(first)
	fmt.Println("left:", p.Leave(second))
	// Output:
	// the connection waits for a backend
	// session 2 may connect to w1
	// left: false
}

// inOrder is a policy for the example; package balancer has real ones.
type inOrder struct{ members []*backends.Backend }

func (p *inOrder) Reset(members []*backends.Backend) { p.members = members }
func (p *inOrder) Update(*backends.Backend)          {}
func (p *inOrder) Pick(*backends.Request) *backends.Backend {
	for _, b := range p.members {
		if b.Eligible() {
			return b
		}
	}
	return nil
}
