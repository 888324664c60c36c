//go:build e2e

package e2e

import (
	"fmt"
	"maps"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

// sharedHTTP is a Node program that takes its listening socket from lb, or connections as a worker of Node's
// cluster module.
const sharedHTTP = `
require('http').createServer((req, res) => res.end('hello')).listen(process.env.LISTEN_FDS ? { fd: 3 } : 3000)
`

// A reload changes a pool between carrying bytes and handing sockets over in either protocol: its worker is
// replaced, its successor first, and no connection fails.
func TestHandOff_AReloadSwitchesTheMode(t *testing.T) {
	script := writeFile(t, tempDir(t), "app.js", sharedHTTP, 0o644)
	node := fmt.Sprintf("command = [%q, %q]\ncount = 1\n", program(t, "node"), script)
	goSample := fmt.Sprintf("command = [%q]\nready = \"notify\"\ncount = 1\n", sampleWorker(t))
	first := handoffPool(t, "off", "", goSample)
	l := startLB(t, first)
	before := l.waitUp(t, 1).Slots[0].PID
	load := startRequests(t, l.addr(), 2, false)
	for _, next := range []struct{ mode, workers string }{
		{"lb", goSample}, {"off", node}, {"node", node}, {"lb", goSample}, {"node", node}, {"off", node},
	} {
		config := handoffPool(t, next.mode, "", next.workers)
		config.Listeners = first.Listeners
		l.configure(t, config)
		l.reload(t)
		eventually(t, patience, func() error {
			s := l.workers(t)
			if pid := s.Slots[0].PID; pid == 0 || pid == before || s.Restarting {
				return fmt.Errorf("worker for handoff = %q: got %+v; want another than %d", next.mode, s, before)
			}
			return nil
		})
		before = l.waitUp(t, 1).Slots[0].PID
	}
	load.wantNoFailure(t)
}

// A listener shares connections among pools, whichever way each of them delivers.
func TestHandOff_SplitsAreExact(t *testing.T) {
	config := lbConfig{Listeners: []lbListener{{
		Name: "web", Bind: []string{freePort(t, "127.0.0.1")}, Options: "split = { relay = 50, given = 30, cluster = 20 }\n",
	}}}
	address := socketPath(tempDir(t), "w")
	startLines(t, "relay", address)
	config.Pools = []lbPool{{Name: "relay", Backends: []lbBackend{{Name: "w", Address: address}}}}
	for name, mode := range map[string]string{"given": "lb", "cluster": "node"} {
		pool := handoffPool(t, mode, "", takers(t, mode, "")+"count = 2\n").Pools[0]
		pool.Name = name
		pool.Options = fmt.Sprintf("handoff = %q\nhandoff_timeout = \"20s\"\n[pools.%s.workers]\n%scount = 2\n", mode, name, takers(t, mode, ""))
		config.Pools = append(config.Pools, pool)
	}
	l := startLB(t, config)
	wantShares := func(want map[string]int) {
		t.Helper()
		conns := dialAll(t, l.addr(), 200)
		askAll(t, conns)
		got := map[string]int{}
		for _, pool := range l.waitActive(t, 200).Pools {
			for _, b := range pool.Backends {
				got[pool.Name] += b.Active
				if share := want[pool.Name] / len(pool.Backends); b.Active != share {
					t.Errorf("sessions of %s/%s: got %d; want %d", pool.Name, b.Name, b.Active, share)
				}
			}
		}
		if !maps.Equal(got, want) {
			t.Errorf("sessions by pool: got %v; want %v", got, want)
		}
		for _, conn := range conns {
			conn.Close()
		}
		l.waitReleased(t)
	}
	eventually(t, patience, func() error {
		up := 0
		for _, pool := range l.status(t).Pools {
			for _, b := range pool.Backends {
				if b.Health == "up" {
					up++
				}
			}
		}
		if up != 5 {
			return fmt.Errorf("backends that are up: got %d; want 5", up)
		}
		return nil
	})
	wantShares(map[string]int{"relay": 100, "given": 60, "cluster": 40})
	l.mustCommand(t, "split", "web", "relay=10", "given=10", "cluster=80")
	wantShares(map[string]int{"relay": 20, "given": 20, "cluster": 160})
}

// With a window of 1 what a worker has not room for waits in lb's queue. An upgrade carries the queue over,
// and what the worker was given and has not taken: it goes on with each once, in order.
func TestHandOff_AnUpgradeCarriesAFullWindowOfOneAndItsQueue(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		log := newLog(t)
		const options = "handoff_window = 1\nhandoff_timeout = \"1m\"\nqueue_timeout = \"1m\""
		config := handoffPool(t, mode, options, takers(t, mode, log)+"count = 1\n")
		config.Pools[0].Health = "fall = 100\n" // the worker stands still for as long as the test wants
		l := startLB(t, config)
		w := l.waitUp(t, 1).Slots[0]
		taken := dialAll(t, l.addr(), 3)
		askAll(t, taken)
		stopProcess(t, w.PID)
		var conns []net.Conn
		for i := range 5 {
			conns = append(conns, dialAll(t, l.addr(), 1)...)
			want := map[string]int{"web handed off": 3, "web giving": 1}
			if i > 0 {
				want["web queued"] = i
			}
			l.waitStates(t, want)
		}
		for range 2 {
			l.upgrade(t, "")
		}
		l.waitStates(t, map[string]int{"web handed off": 3, "web giving": 1, "web queued": 4})
		if text := l.mustCommand(t, "status").stdout; !strings.Contains(text, "and 3 handed off") {
			t.Errorf("lb status: got\n%s\nwant 3 handed off", text)
		}
		if n := l.untaken(t, w.Backend); n != 1 {
			t.Errorf("connections that the worker has not taken: got %d; want 1", n)
		}
		syscall.Kill(w.PID, syscall.SIGCONT)
		l.waitStates(t, map[string]int{"web handed off": 8})
		for i, conn := range conns {
			conn.SetDeadline(time.Now().Add(patience))
			if who, err := askAs(conn, fmt.Sprintf("id-%d", i)); err != nil || who != "w0" {
				t.Errorf("connection %d: got %q, %v; want an answer of w0", i, who, err)
			}
		}
		for i, times := range served(t, log) {
			if i != "" && times != 1 && i != "hello" {
				t.Errorf("%s: served %d times; want once", i, times)
			}
		}
		if n := l.untaken(t, w.Backend); n != 0 {
			t.Errorf("connections that the worker has not taken: got %d; want 0", n)
		}
		for _, conn := range append(conns, taken...) {
			conn.Close()
		}
		l.waitReleased(t)
	})
}
