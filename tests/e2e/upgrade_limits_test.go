//go:build e2e

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"reflect"
	"sync/atomic"
	"testing"
	"time"
)

// The tests of this file are about what lb knows of backends and clients: it holds after an upgrade as
// before.

// prober answers the probes of lb, and counts them.
type prober struct {
	address string
	asked   atomic.Int64
	answer  atomic.Pointer[string] // "": silence
}

func startProber(t testing.TB, answer string) *prober {
	t.Helper()
	p := &prober{address: socketPath(tempDir(t), "probe")}
	p.say(answer)
	l := listenBackend(t, p.address)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.asked.Add(1)
			text := *p.answer.Load()
			go func() {
				defer conn.Close()
				if text == "" {
					io.Copy(io.Discard, conn) // until lb gives it up
				}
				io.WriteString(conn, text+"\n")
			}()
		}
	}()
	return p
}

func (p *prober) say(answer string) { p.answer.Store(&answer) }

// waitAsked waits until lb has asked so often.
func (p *prober) waitAsked(t testing.TB, n int64) {
	t.Helper()
	eventually(t, patience, func() error {
		if got := p.asked.Load(); got < n {
			return fmt.Errorf("probes: got %d; want %d", got, n)
		}
		return nil
	})
}

// TestUpgrade_OnDownClosesWhatWasCarriedOver upgrades between the failed probes that take a backend down:
// they count on, and its sessions are closed then. One that comes to the backend later, as the last resort,
// no upgrade closes.
func TestUpgrade_OnDownClosesWhatWasCarriedOver(t *testing.T) {
	const fall, before = 10, 6
	dir := tempDir(t)
	access, address := filepath.Join(dir, "access.log"), socketPath(dir, "w1")
	startLines(t, "w1", address)
	p := startProber(t, "alive")
	config := onePool(t, address)
	config.Options = fmt.Sprintf("[log]\naccess = %q\naccess_format = \"json\"\n", access)
	config.Pools[0].Options = "when_all_down = \"any\""
	config.Pools[0].Health = fmt.Sprintf("type = \"send-expect\"\nexpect = \"alive\"\naddress = %q\ninterval = \"250ms\"\ntimeout = \"200ms\"\njitter = 0\nfall = %d\non_down = \"close\"\n", p.address, fall)
	l := startLB(t, config)
	p.waitAsked(t, 2) // the first one decides alone
	held := dialAll(t, l.addr(), 3)
	for _, conn := range held {
		if _, err := askOn(conn); err != nil {
			t.Fatal(err)
		}
	}
	p.say("")
	silent := p.asked.Load()
	p.waitAsked(t, silent+before)
	if u := l.upgrade(t, ""); u.Sessions != len(held) {
		t.Errorf("sessions carried over: got %d; want %d", u.Sessions, len(held))
	}
	for _, conn := range held {
		if n, err := io.Copy(io.Discard, conn); n != 0 || err != nil {
			t.Errorf("session of a backend that went down: got %d bytes, %v; want its end", n, err)
		}
	}
	// One may have begun before the silence did, the upgrade cuts one off, and some may have come since the
	// last that counts.
	if n := p.asked.Load() - silent; n < fall-1 || n >= fall+before {
		t.Errorf("probes until the sessions were closed: got %d; want about %d, of which %d before the upgrade", n, fall, before)
	}
	l.waitHealth(t, "down")
	last := dial(t, l.addr())
	for range 2 {
		if _, err := askOn(last); err != nil {
			t.Fatalf("session of the last resort: %v", err)
		}
		l.upgrade(t, "")
	}
	if _, err := askOn(last); err != nil {
		t.Errorf("session of the last resort over upgrades: %v", err)
	}
	last.Close()
	eventually(t, patience, func() error {
		if got, want := endings(t, access), map[string][]string{"web": {"DD", "DD", "DD", "--"}}; !reflect.DeepEqual(got, want) {
			return fmt.Errorf("terminations: got %v; want %v", got, want)
		}
		return nil
	})
}

// TestUpgrade_AgentsWordsHold: what an agent has said last holds without being said again, and what it may
// change is what it might have changed before.
func TestUpgrade_AgentsWordsHold(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	p := startProber(t, "up ready 100%")
	config := onePool(t, address)
	config.Pools[0].Health = fmt.Sprintf("type = \"agent\"\naddress = %q\ninterval = \"50ms\"\njitter = 0\n", p.address)
	l := startLB(t, config)
	wait := func(admin, health string, weight int) {
		t.Helper()
		eventually(t, patience, func() error {
			if b := l.status(t).backend(t, "w1"); b.Admin != admin || b.Health != health || b.Weight != weight {
				return fmt.Errorf("backend after the agent said %q: got %+v; want %s, %s, weight %d", *p.answer.Load(), b, admin, health, weight)
			}
			return nil
		})
	}
	// holds has the agent say what changes nothing, before an upgrade and after it.
	holds := func(words, admin, health string, weight int) {
		t.Helper()
		p.say(words)
		l.upgrade(t, "")
		p.waitAsked(t, p.asked.Load()+4)
		if b := l.status(t).backend(t, "w1"); b.Admin != admin || b.Health != health || b.Weight != weight {
			t.Errorf("backend after an upgrade, and an agent that says %q: got %+v; want %s, %s, weight %d as before", words, b, admin, health, weight)
		}
	}
	p.say("50% drain")
	wait("drain", "up", 50)
	holds("up", "drain", "up", 50)
	p.say("20% ready") // its own drain, and a part of the configured weight
	wait("ready", "up", 20)
	p.say("down")
	wait("ready", "down", 20)
	holds("20%", "ready", "down", 20) // until it says up
	p.say("up")
	wait("ready", "up", 20)
	l.mustCommand(t, "drain", "app/w1")
	l.mustCommand(t, "weight", "app/w1", "7")
	holds("up ready", "drain", "up", 7) // the operator's stands
	l.mustCommand(t, "ready", "app/w1")
	wait("ready", "up", 7)
}

// TestUpgrade_WeightsAndStatesDecide sends connections after upgrades: they go where they would have gone
// before.
func TestUpgrade_WeightsAndStatesDecide(t *testing.T) {
	dir := tempDir(t)
	config := onePool(t, socketPath(dir, "w1"), socketPath(dir, "w2"), socketPath(dir, "w3"), socketPath(dir, "w4"), socketPath(dir, "w5"))
	config.Pools[0].Options = "balance = \"roundrobin\""
	for _, b := range config.Pools[0].Backends {
		startLines(t, b.Name, b.Address)
	}
	blue, green := socketPath(dir, "blue"), socketPath(dir, "green")
	startLines(t, "blue", blue)
	startLines(t, "green", green)
	config.Pools = append(config.Pools, lbPool{Name: "blue", Backends: []lbBackend{{Name: "blue", Address: blue}}}, lbPool{Name: "green", Backends: []lbBackend{{Name: "green", Address: green}}})
	config.Listeners = append(config.Listeners, lbListener{Name: "both", Bind: []string{freePort(t, "127.0.0.1")}, Options: "split = { blue = 50, green = 50 }"})
	l := startLB(t, config)
	held := map[string]net.Conn{}
	for len(held) < 5 {
		conn := dial(t, l.addr())
		who, err := askOn(conn)
		if err != nil {
			t.Fatal(err)
		}
		if held[who] != nil {
			conn.Close()
			continue
		}
		held[who] = conn
	}
	l.mustCommand(t, "weight", "app/w1", "90")
	l.mustCommand(t, "weight", "app/w2", "10")
	l.mustCommand(t, "drain", "app/w3")
	l.mustCommand(t, "maint", "app/w4")
	l.mustCommand(t, "weight", "app/w5", "0")
	l.mustCommand(t, "split", "both", "blue=0", "green=100")
	for range 2 {
		l.upgrade(t, "")
		got := map[string]int{}
		for range 100 {
			who, err := askLine(l.addr(), patience)
			if err != nil {
				t.Fatal(err)
			}
			got[who]++
		}
		if got["w1"] != 90 || got["w2"] != 10 {
			t.Errorf("100 connections: got %v; want 90 to w1 and 10 to w2", got)
		}
		for range 20 {
			if who, err := askLine(config.Listeners[1].Bind[0], patience); err != nil || who != "green" {
				t.Errorf("connection by a split of 0:100: got %s, %v; want green", who, err)
			}
		}
		for name, conn := range held {
			if who, err := askOn(conn); err != nil || who != name {
				t.Errorf("session of %s: got %q, %v; want it to go on", name, who, err)
			}
		}
	}
	s := l.status(t)
	if w3, w4 := s.backend(t, "w3"), s.backend(t, "w4"); w3.Admin != "drain" || w4.Admin != "maint" {
		t.Errorf("admin states: got %s and %s; want drain and maint", w3.Admin, w4.Admin)
	}
	l.mustCommand(t, "ready", "app/w4")
	for who := ""; who != "w4"; {
		var err error
		if who, err = askLine(l.addr(), patience); err != nil {
			t.Fatal(err)
		}
	}
	for _, conn := range held {
		conn.Close()
	}
}

// tryFrom asks over a new connection from a local address, and keeps it; without one, it was closed at once.
func tryFrom(t testing.TB, source, address string) (conn net.Conn, let bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(source)}}
	conn, err := d.DialContext(ctx, "tcp", address)
	if err != nil {
		t.Fatalf("cannot connect to %q: %v", address, err)
	}
	t.Cleanup(func() { conn.Close() })
	conn.SetDeadline(time.Now().Add(patience))
	io.WriteString(conn, "hello\n") // fails where it was closed already
	_, err = bufio.NewReader(conn).ReadString('\n')
	if timeout, ok := err.(net.Error); ok && timeout.Timeout() {
		t.Fatalf("connection to %q: got neither an answer nor its end", address)
	}
	return conn, err == nil
}

// TestUpgrade_LimitsHold uses up most of each limit, upgrades, and uses the rest: what came before counts.
func TestUpgrade_LimitsHold(t *testing.T) {
	const limit = 4
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	kinds := []struct {
		name, options string
		perSource     bool // others have their own
		frees         bool // the end of a session makes place
	}{
		{"source_max_conns", fmt.Sprintf("source_max_conns = %d", limit), true, true},
		{"source_rate", fmt.Sprintf("source_rate = 0.001\nsource_burst = %d", limit), true, false},
		{"max_conns", fmt.Sprintf("max_conns = %d", limit), false, true},
		{"rate", fmt.Sprintf("rate = 0.001\nrate_burst = %d", limit), false, false},
		{"set-limit", "", false, true}, // changed at run time
		{"backend", "", false, true},   // of the pool, without a queue
	}
	config := onePool(t, address)
	config.Listeners = nil
	config.Pools = append(config.Pools, lbPool{Name: "small", Options: fmt.Sprintf("max_conns = %d\nqueue_size = 0", limit), Backends: []lbBackend{{Name: "w2", Address: address}}})
	for _, k := range kinds {
		pool := "app"
		if k.name == "backend" {
			pool = "small"
		}
		config.Listeners = append(config.Listeners, lbListener{Name: k.name, Bind: []string{freePort(t, "127.0.0.1")}, Pool: pool, Options: k.options})
	}
	l := startLB(t, config)
	l.mustCommand(t, "set-limit", "set-limit", fmt.Sprint(limit))
	var held [][]net.Conn
	try := func(i int, source string, want bool, when string) {
		t.Helper()
		conn, let := tryFrom(t, source, config.Listeners[i].Bind[0])
		if let != want {
			t.Errorf("%s: connection %s: got it let in: %v; want %v", kinds[i].name, when, let, want)
		}
		if let {
			held[i] = append(held[i], conn)
		}
	}
	for i := range kinds {
		held = append(held, nil)
		for range limit - 1 {
			try(i, "127.0.0.1", true, "before the upgrade")
		}
	}
	l.upgrade(t, "")
	l.upgrade(t, "")
	for i, k := range kinds {
		try(i, "127.0.0.1", true, "that is the last one within the limit")
		try(i, "127.0.0.1", false, "above the limit")
		try(i, "127.0.0.2", k.perSource, "from another address")
	}
	l.upgrade(t, "")
	for i, k := range kinds {
		try(i, "127.0.0.1", false, "above the limit, after another upgrade")
		held[i][0].Close()
		if !k.frees {
			try(i, "127.0.0.1", false, "after one has ended, which frees nothing")
			continue
		}
		eventually(t, patience, func() error {
			conn, let := tryFrom(t, "127.0.0.1", config.Listeners[i].Bind[0])
			if !let {
				return fmt.Errorf("%s: connection after one has ended: got it closed; want it let in", k.name)
			}
			held[i] = append(held[i], conn)
			return nil
		})
		try(i, "127.0.0.1", false, "above the limit again")
	}
	for _, conns := range held {
		for _, conn := range conns {
			conn.Close()
		}
	}
}
