//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"strconv"
	"sync"
	"testing"
)

// dialAll opens n sessions as fast as possible, all at the same time, and returns them.
func dialAll(t testing.TB, address string, n int) []net.Conn {
	t.Helper()
	network, addr := splitAddress(address)
	var (
		start = make(chan struct{})
		conns = make([]net.Conn, n)
		errs  = make([]error, n)
		all   sync.WaitGroup
	)
	for i := range n {
		all.Go(func() {
			<-start
			conns[i], errs[i] = net.DialTimeout(network, addr, patience)
		})
	}
	close(start)
	all.Wait()
	for i, err := range errs {
		if err != nil {
			t.Fatalf("cannot open session %d of %d: %v", i, n, err)
		}
		t.Cleanup(func() { conns[i].Close() })
	}
	return conns
}

// wantCounts opens sessions through l and wants exactly the given number of them on each backend: lb's count,
// and what the backend itself sees; and none after all have been closed.
func wantCounts(t *testing.T, l *lb, holders map[string]*holder, want map[string]int) {
	t.Helper()
	sessions := 0
	for _, n := range want {
		sessions += n
	}
	before := l.status(t)
	conns := dialAll(t, l.addr(), sessions)
	after := l.waitActive(t, sessions)
	for name, n := range want {
		b := after.backend(t, name)
		if b.Active != n {
			t.Errorf("active sessions of %s: got %d; want %d", name, b.Active, n)
		}
		eventually(t, patience, func() error {
			// a slot is taken first, the connection counted when it is made
			if got := l.status(t).backend(t, name).Connections - before.backend(t, name).Connections; got != n {
				return fmt.Errorf("connections counted for %s: got %d; want %d", name, got, n)
			}
			return nil
		})
		// A health probe is a connection to the backend for a moment, too.
		eventually(t, patience, func() error {
			if got := holders[name].open.Load(); got != int64(n) {
				return fmt.Errorf("connections that %s holds: got %d; want %d", name, got, n)
			}
			return nil
		})
	}
	eventually(t, patience, func() error { // the counts of one status are not of one moment
		if got := l.status(t).Listeners[0].Active; got != sessions {
			return fmt.Errorf("active sessions of the listener: got %d; want %d", got, sessions)
		}
		return nil
	})
	for _, conn := range conns {
		conn.Close()
	}
	l.waitReleased(t)
	for name := range want {
		eventually(t, patience, func() error {
			if got := holders[name].open.Load(); got != 0 {
				return fmt.Errorf("connections that %s holds after all are closed: got %d; want 0", name, got)
			}
			return nil
		})
	}
}

// startExact starts n holders on Unix sockets and an lb in front of them; options are those of each backend.
func startExact(t *testing.T, loops int, options ...string) (*lb, map[string]*holder) {
	t.Helper()
	dir := tempDir(t)
	holders := make(map[string]*holder)
	var addresses []string
	for i := range options {
		name := "w" + strconv.Itoa(i+1)
		holders[name] = startHolder(t, socketPath(dir, name))
		addresses = append(addresses, holders[name].address)
	}
	config := onePool(t, addresses...)
	config.Loops = loops
	for i, o := range options {
		config.Pools[0].Backends[i].Options = o
	}
	l := startLB(t, config)
	l.waitHealth(t, "up")
	return l, holders
}

func TestExactness_EqualWeights(t *testing.T) {
	for _, loops := range []int{1, 2, 4} {
		t.Run(fmt.Sprintf("loops=%d", loops), func(t *testing.T) {
			l, holders := startExact(t, loops, make([]string, 8)...)
			want := make(map[string]int)
			for name := range holders {
				want[name] = 50
			}
			for range 3 { // again, from where the rotation then stands
				wantCounts(t, l, holders, want)
			}
		})
	}
}

func TestExactness_Weights(t *testing.T) {
	l, holders := startExact(t, 2, "weight = 100", "weight = 300")
	for range 3 {
		wantCounts(t, l, holders, map[string]int{"w1": 100, "w2": 300})
	}
}

func TestExactness_WeightZeroTakesNothing(t *testing.T) {
	l, holders := startExact(t, 2, "weight = 100", "weight = 0", "weight = 100")
	wantCounts(t, l, holders, map[string]int{"w1": 50, "w2": 0, "w3": 50})
}

// A session that ends makes place on its own backend, not on the next in turn.
func TestExactness_FillsTheGap(t *testing.T) {
	dir := tempDir(t)
	addresses := make([]string, 4)
	manuals := make(map[string]*manual)
	for i := range addresses {
		name := "w" + strconv.Itoa(i+1)
		addresses[i] = socketPath(dir, name)
		manuals[name] = startManual(t, addresses[i])
	}
	l := startLB(t, onePool(t, addresses...))
	l.waitHealth(t, "up")
	clients := dialAll(t, l.addr(), 40)
	for _, client := range clients {
		say(t, client, greeting)
	}
	l.waitActive(t, 40)
	for name, m := range manuals {
		for range 10 {
			if conn := m.next(t); name == "w3" {
				conn.Close()
			}
		}
	}
	l.waitActive(t, 30)
	dialAll(t, l.addr(), 10)
	s := l.waitActive(t, 40)
	for name, n := range s.active() {
		if n != 10 {
			t.Errorf("active sessions of %s: got %d; want 10", name, n)
		}
	}
	if got := s.backend(t, "w3").Connections; got != 20 {
		t.Errorf("connections counted for w3: got %d; want 20", got)
	}
}
