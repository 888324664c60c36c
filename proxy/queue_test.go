package proxy_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// number is a client's first and only word in the tests of the queue.
func number(i int) []byte { return binary.BigEndian.AppendUint32(nil, uint32(i)) }

// waits waits until n clients are in the pool's queue.
func (r *rig) waits(n int) {
	r.Helper()
	eventually(r, fmt.Sprintf("%d clients wait", n), func() bool { return r.pool.QueueLen() == n })
}

// allUnix are the addresses of n backends that handle serves.
func allUnix(t testing.TB, n int, handle func(conn)) (addresses []string) {
	for range n {
		addresses = append(addresses, serve(t, unixSocket, handle).address)
	}
	return addresses
}

func TestQueue_HundredClientsAreServedInOrderOfArrival(t *testing.T) {
	const clients, slots = 100, 4
	served := make(chan int, clients+1)
	r := newRig(t, func(s *setup) { s.pool.MaxConns = 1 }, allUnix(t, slots, func(c conn) {
		var b [4]byte
		if _, err := io.ReadFull(c, b[:]); failIf(t, err, "read of a client's number") {
			return
		}
		served <- int(binary.BigEndian.Uint32(b[:]))
		silent(c)
	})...)
	var waiting []conn
	for i := range clients {
		c := r.dial()
		send(t, c, number(i))
		waiting = append(waiting, c)
		if i >= slots {
			r.waits(i + 1 - slots)
		} else if got := await(t, "first clients", served); got != i {
			t.Errorf("client served while slots are free: got %d; want %d", got, i)
		}
	}
	for i, c := range waiting {
		c.Close() // one slot
		if i+slots < clients {
			if got := await(t, "next client", served); got != i+slots {
				t.Fatalf("client served after %d others: got %d; want the oldest, %d", i+slots, got, i+slots)
			}
		}
	}
	for i, rec := range r.ended(clients) {
		if rec.Termination.String() != "--" || rec.BytesIn != 4 || rec.Retries != 0 {
			t.Errorf("session %d: got %v, %d bytes, %d retries; want --, 4, 0", i, rec.Termination, rec.BytesIn, rec.Retries)
		}
	}
	if len(served) != 0 {
		t.Errorf("clients that were served twice: got %d; want 0", len(served))
	}
	q := &r.pool.Queue
	if n, waits := q.Queued.Load(), q.Wait.Snapshot().Count(); n != clients-slots || waits != n || q.Rejected.Load() != 0 || q.Timeouts.Load() != 0 {
		t.Errorf("queue counters: got %d queued, %d waits, %d rejected, %d timeouts; want %d, %[5]d, 0, 0", n, waits, q.Rejected.Load(), q.Timeouts.Load(), clients-slots)
	}
}

func TestQueue_CrowdIsServedOnceEachAndNeverAboveTheLimit(t *testing.T) {
	const clients = 100
	var mu sync.Mutex
	times := map[uint32]int{}
	var addresses []string
	for range 4 {
		var atWork atomic.Int64
		addresses = append(addresses, serve(t, unixSocket, func(c conn) {
			var b [4]byte
			if _, err := io.ReadFull(c, b[:]); err != nil {
				return
			}
			if n := atWork.Add(1); n > 1 {
				t.Errorf("clients at work on a backend at once: got %d; want 1", n)
			}
			mu.Lock()
			times[binary.BigEndian.Uint32(b[:])]++
			mu.Unlock()
			atWork.Add(-1)
			send(t, c, b[:])
			silent(c)
		}).address)
	}
	r := newRig(t, func(s *setup) { s.pool.MaxConns = 1; s.pool.QueueTimeout = ioTimeout }, addresses...)
	var running sync.WaitGroup
	for i := range clients {
		running.Go(func() {
			c := r.dial()
			send(t, c, number(i))
			receive(t, c, string(number(i)))
			c.CloseWrite()
			wantEOF(t, c)
		})
	}
	running.Wait()
	for _, rec := range r.ended(clients) {
		if rec.Termination.String() != "--" {
			t.Errorf("termination code: got %v; want --", rec.Termination)
		}
	}
	for i := range uint32(clients) {
		if times[i] != 1 {
			t.Errorf("client %d was served %d times; want once", i, times[i])
		}
	}
}

func TestQueue_HundredAndFirstIsClosedAtOnceAndCounted(t *testing.T) {
	r := queued(t, func(s *setup) { s.pool.QueueSize = 100 })
	first := r.dial()
	talk(t, first)
	var waiting []conn
	for i := range 100 {
		waiting = append(waiting, r.dial())
		r.waits(i + 1)
	}
	wantEOF(t, r.dial())
	r.wantTermination("sQ")
	if n := r.pool.Queue.Rejected.Load(); n != 1 || r.pool.QueueLen() != 100 {
		t.Errorf("queue: got %d rejected, %d waiting; want 1, 100", n, r.pool.QueueLen())
	}
	waiting[50].Close()
	r.waits(99)
	last := r.dial() // in the place of the one that left
	r.waits(100)
	first.Close()
	for i, c := range append(waiting, last) {
		if i != 50 {
			talk(t, c)
			c.Close()
		}
	}
	count := map[string]int{}
	for _, rec := range r.ended(103) {
		count[rec.Termination.String()]++
	}
	if count["--"] != 101 || count["sQ"] != 1 || count["CQ"] != 1 {
		t.Errorf("termination codes: got %v; want 101 --, 1 sQ, 1 CQ", count)
	}
}

func TestQueue_TimeoutIsCountedForEachAndSparesTheOthers(t *testing.T) {
	t.Parallel()
	r := queued(t, func(s *setup) { s.pool.QueueTimeout = 50 * time.Millisecond })
	first := r.dial()
	talk(t, first)
	var running sync.WaitGroup
	for range 20 {
		running.Go(func() { wantEOF(t, r.dial()) })
	}
	running.Wait()
	for _, rec := range r.ended(20) {
		if rec.Termination.String() != "sQ" || rec.QueueTime < 50*time.Millisecond {
			t.Errorf("record: got %v after %v; want sQ after 50ms", rec.Termination, rec.QueueTime)
		}
	}
	if n := r.pool.Queue.Timeouts.Load(); n != 20 {
		t.Errorf("timeouts: got %d; want 20", n)
	}
	first.Close()
	c := r.dial()
	talk(t, c)
	c.Close()
	r.ended(22)
}

// TestQueue_TimeoutAndGrantAtTheSameMoment lets them meet often: whoever wins, the slot is given back once.
func TestQueue_TimeoutAndGrantAtTheSameMoment(t *testing.T) {
	t.Parallel()
	r := newRig(t, func(s *setup) { s.pool.MaxConns = 1; s.pool.QueueTimeout = 20 * time.Millisecond }, allUnix(t, 2, func(c conn) {
		io.ReadFull(c, make([]byte, 4))
		time.Sleep(15 * time.Millisecond) // its work
		c.Write([]byte("done"))
	})...)
	// Rounds until some that waited were served and some were not: on a busy machine not in the first one.
	granted, most := 0, 20
	for round := 1; granted == 0 || r.pool.Queue.Timeouts.Load() == 0; round++ {
		var running sync.WaitGroup
		for range 60 {
			running.Go(func() {
				c := r.dial()
				c.Write(number(1))
				io.Copy(io.Discard, c)
				c.Close()
			})
		}
		running.Wait()
		count := map[string]int{}
		for _, rec := range r.ended(60 * round) {
			count[rec.Termination.String()]++
			if rec.Termination.String() == "--" && rec.QueueTime > 0 {
				granted++
			}
		}
		if count["--"]+count["sQ"] != 60*round || uint64(count["sQ"]) != r.pool.Queue.Timeouts.Load() {
			t.Fatalf("termination codes: got %v, %d timeouts; want -- and sQ alone, and as many timeouts as sQ", count, r.pool.Queue.Timeouts.Load())
		}
		if round == most {
			t.Fatalf("termination codes of %d rounds: got %v, %d of them granted; want some of each", round, count, granted)
		}
	}
}

func TestQueue_ClientThatResetsFreesItsPlaceWhateverItSaid(t *testing.T) {
	r := queued(t, func(s *setup) { s.pool.QueueSize = 1 })
	first := r.dial()
	talk(t, first)
	for i, said := range []string{"", "something"} {
		c := r.dial()
		send(t, c, []byte(said))
		r.waits(1)
		reset(c)
		if rec := r.ended(i + 1)[i]; rec.Termination.String() != "CQ" || rec.Backend != nil || rec.BytesIn != 0 {
			t.Errorf("record: got %+v; want CQ, no backend, no bytes", rec)
		}
		r.waits(0)
	}
	next := r.dial()
	r.waits(1)
	first.Close()
	talk(t, next)
	next.Close()
	r.ended(4)
	if n := r.pool.Queue.Rejected.Load(); n != 0 {
		t.Errorf("rejected: got %d; want 0", n)
	}
}

func TestQueue_HalfClosedClientWithARequestStays(t *testing.T) {
	r := queued(t, nil)
	first := r.dial()
	talk(t, first)
	c := r.dial()
	send(t, c, []byte("ask"))
	c.CloseWrite()
	r.waits(1)
	r.proxy.Settle()
	if n := r.pool.QueueLen(); n != 1 {
		t.Fatalf("waiting after the client's FIN: got %d; want 1", n)
	}
	first.Close()
	receive(t, c, "ask")
	wantEOF(t, c)
	if rec := r.recordOf(2, c); rec.Termination.String() != "--" || rec.QueueTime == 0 {
		t.Errorf("record: got %v, %v in the queue; want -- and a wait", rec.Termination, rec.QueueTime)
	}
}

func TestQueue_UnixClientThatClosesAfterItsBytesIsDelivered(t *testing.T) {
	heard := make(chan string, 3)
	address := serve(t, unixSocket, func(c conn) {
		b, _ := io.ReadAll(c)
		heard <- string(b)
	}).address
	r := newRig(t, func(s *setup) {
		s.pool.MaxConns = 1
		s.listener.Bind = []string{bindAddress(t, unixSocket)}
	}, address)
	first := r.dial()
	send(t, first, []byte("first"))
	eventually(t, "the slot is taken", func() bool { return r.pool.Active() == 1 })
	silent, said := r.dial(), r.dial()
	send(t, said, []byte("last words"))
	r.waits(2)
	silent.Close()
	said.Close()
	if rec := r.ended(1)[0]; rec.Termination.String() != "CQ" {
		t.Errorf("client that said nothing: got %v; want CQ", rec.Termination)
	}
	r.proxy.Settle()
	if n := r.pool.QueueLen(); n != 1 {
		t.Errorf("waiting: got %d; want the one that said something", n)
	}
	first.Close()
	for _, want := range []string{"first", "last words"} {
		if got := await(t, "backend", heard); got != want {
			t.Errorf("backend heard %q; want %q", got, want)
		}
	}
	r.ended(3)
}

// TestQueue_ClientThatHadLeftBeforeItsTurnToWait closes while its PROXY header is read, so that no event
// comes later.
func TestQueue_ClientThatHadLeftBeforeItsTurnToWait(t *testing.T) {
	r := queued(t, func(s *setup) { s.listener.AcceptProxy = true })
	header := []byte("PROXY TCP4 192.0.2.1 192.0.2.2 1 2\r\n")
	first := r.dial()
	send(t, first, header)
	talk(t, first)
	release := r.proxy.HoldLoops()
	gone, stays := r.dial(), r.dial()
	send(t, gone, header)
	send(t, stays, append(slices.Clone(header), "ask"...))
	gone.Close()
	stays.CloseWrite()
	release()
	if rec := r.ended(1)[0]; rec.Termination.String() != "CQ" || rec.QueueTime > time.Second {
		t.Errorf("record: got %v after %v; want CQ at once", rec.Termination, rec.QueueTime)
	}
	r.waits(1)
	first.Close()
	receive(t, stays, "ask")
	wantEOF(t, stays)
	r.ended(3)
}

func TestQueue_StopEndsThoseWhoWait(t *testing.T) {
	r := newRig(t, func(s *setup) { s.pool.MaxConns = 1 }, allUnix(t, 4, silent)...)
	var clients []conn
	for i := range 40 {
		clients = append(clients, r.dial())
		if i >= 4 {
			r.waits(i - 3)
		}
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	r.stopped = true
	if killed, err := r.proxy.Stop(now); killed != 40 || err != nil {
		t.Errorf("Stop: got %d closed, %v; want 40", killed, err)
	}
	for _, c := range clients {
		wantEOF(t, c)
	}
	for _, rec := range r.ended(40) {
		if rec.Termination[0] != 'K' {
			t.Errorf("termination code: got %v; want KQ, or KD of those with a backend", rec.Termination)
		}
	}
	r.waits(0)
}

func TestPool_WhenAllDownQueueWaitsForTheFirstToComeUp(t *testing.T) {
	s := serve(t, unixSocket, echo)
	r := newRig(t, func(cfg *setup) {
		cfg.pool.WhenAllDown = "queue"
		cfg.health = func(int, string) backends.HealthState { return backends.HealthDown }
	}, s.address)
	var waiting []conn
	for i := range 10 {
		c := r.dial()
		send(t, c, []byte("word"))
		waiting = append(waiting, c)
		r.waits(i + 1)
	}
	if n := s.served.Load(); n != 0 {
		t.Errorf("connections to a backend that is down: got %d; want 0", n)
	}
	r.pool.SetHealth(r.pool.Get("b0"), backends.HealthUp, "test")
	for _, c := range waiting {
		receive(t, c, "word")
		c.Close()
	}
	for _, rec := range r.ended(10) {
		if rec.Termination.String() != "--" || rec.QueueTime == 0 {
			t.Errorf("record: got %v, %v in the queue; want -- and a wait", rec.Termination, rec.QueueTime)
		}
	}
}

func TestPool_WhenAllDownQueueTimesOut(t *testing.T) {
	r := newRig(t, func(cfg *setup) {
		cfg.pool.WhenAllDown = "queue"
		cfg.pool.QueueTimeout = 50 * time.Millisecond
		cfg.health = func(int, string) backends.HealthState { return backends.HealthDown }
	}, serve(t, unixSocket, echo).address)
	wantEOF(t, r.dial())
	r.wantTermination("sQ")
}

func TestPool_WhenAllDownAnyTriesWhoeverTheOperatorWants(t *testing.T) {
	wanted, drained := serve(t, unixSocket, echo), serve(t, unixSocket, echo)
	dead := nobody(t, unixSocket)
	r := newRig(t, func(cfg *setup) {
		cfg.pool.WhenAllDown = "any"
		cfg.health = func(int, string) backends.HealthState { return backends.HealthDown }
	}, wanted.address, drained.address, dead)
	r.pool.SetAdmin(r.pool.Get("b1"), backends.AdminDrain, "test")
	for range 10 {
		c := r.dial()
		talk(t, c)
		c.Close()
	}
	for _, rec := range r.ended(10) {
		if rec.Termination.String() != "--" {
			t.Errorf("termination code: got %v; want --", rec.Termination)
		}
	}
	if n := drained.served.Load(); n != 0 {
		t.Errorf("connections to a drained backend: got %d; want 0", n)
	}
	r.pool.SetAdmin(r.pool.Get("b0"), backends.AdminMaint, "test")
	wantEOF(t, r.dial())
	if rec := r.ended(11)[10]; rec.Termination.String() != "SC" || rec.Retries != 1 {
		t.Errorf("with nobody who answers: got %v after %d attempts; want SC after 1", rec.Termination, rec.Retries)
	}
}
