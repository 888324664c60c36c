package proxy_test

import (
	"io"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestRound_SessionsThatCarryMuchDelayOthersLittle: hundreds of transfers on one loop, and a small request
// beside them.
func TestRound_SessionsThatCarryMuchDelayOthersLittle(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes the transfers of this process slower than what is measured")
	}
	const bulk = 200
	var stop sync.WaitGroup
	done := make(chan struct{})
	block := make([]byte, 256<<10)
	r := newRig(t, func(s *setup) { s.proxy.Loops = 1 }, serve(t, unixSocket, func(c conn) {
		var b [1]byte
		if _, err := io.ReadFull(c, b[:]); err != nil || b[0] == 'p' {
			c.Write(b[:])
			echo(c)
			return
		}
		for {
			if _, err := c.Write(block); err != nil {
				return
			}
		}
	}).address)
	ping := r.dial()
	send(t, ping, []byte("p"))
	receive(t, ping, "p")
	for range bulk {
		c := r.dial()
		send(t, c, []byte("b"))
		stop.Go(func() {
			buf := make([]byte, 256<<10)
			for {
				select {
				case <-done:
					reset(c)
					return
				default:
					c.Read(buf)
				}
			}
		})
	}
	eventually(t, "all are under way", func() bool { return r.proxy.Stats.SplicedBytes.Load() > bulk<<20 })
	var waits []time.Duration
	for range 30 {
		began := time.Now()
		send(t, ping, []byte("p"))
		receive(t, ping, "p")
		waits = append(waits, time.Since(began))
	}
	close(done)
	stop.Wait()
	ping.Close()
	slices.Sort(waits)
	if worst := waits[len(waits)-2]; worst > 300*time.Millisecond {
		// 0.5 s and more where rounds have no bound
		t.Errorf("answers beside %d transfers: got %v for all but one; want at most 300ms", bulk, worst)
	}
}
