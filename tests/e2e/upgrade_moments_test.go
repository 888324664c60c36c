//go:build e2e

package e2e

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The tests of this file upgrade lb in a moment that passes: a connect that is not answered yet, half a PROXY
// header, bytes in a pipe, the last second of a timeout.

// session is a line of `lb conns --json`, as far as the tests look.
type session struct{ ID, Client, Listener, State string }

// sessions lists the running sessions by their clients' addresses.
func (l *lb) sessions(t testing.TB) map[string]session {
	t.Helper()
	var list struct{ Sessions []session }
	r := l.mustCommand(t, "conns", "--json")
	if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
		t.Fatalf("cannot read the output of lb conns --json: %v: %s", err, r.stdout)
	}
	byClient := map[string]session{}
	for _, s := range list.Sessions {
		byClient[s.Client] = s
	}
	return byClient
}

// waitStates waits until each listener has as many sessions in a state as want says, by "listener state", and
// no others.
func (l *lb) waitStates(t testing.TB, want map[string]int) (all map[string]session) {
	t.Helper()
	eventually(t, patience, func() error {
		all = l.sessions(t)
		got := map[string]int{}
		for _, s := range all {
			got[s.Listener+" "+s.State]++
		}
		if !maps.Equal(got, want) {
			return fmt.Errorf("sessions by listener and state: got %v; want %v", got, want)
		}
		return nil
	})
	return all
}

// wantSame wants the sessions to be those from before.
func wantSame(t testing.TB, got, before map[string]session) {
	t.Helper()
	if !maps.Equal(got, before) {
		t.Errorf("sessions: got %v; want %v as before", got, before)
	}
}

// TestUpgrade_AConnectUnderWayGoesThrough has a backend whose backlog is full: a connect over TCP gets no
// answer, one to a Unix socket is tried again and again. What the client has said meanwhile waits for it.
func TestUpgrade_AConnectUnderWayGoesThrough(t *testing.T) {
	for kind, address := range backendKinds(t) {
		t.Run(kind, func(t *testing.T) {
			wake := startFull(t, address)
			config := onePool(t, address)
			config.Pools[0].Options = "connect_timeout = \"30s\""
			config.Pools[0].Health = "type = \"none\""
			l := startLB(t, config)
			client := dial(t, l.addr())
			say(t, client, greeting+"and more")
			want := map[string]int{"web connecting": 1}
			if kind == "unix" {
				want = map[string]int{"web queued": 1}
			}
			before := l.waitStates(t, want)
			for range 3 {
				if u := l.upgrade(t, ""); u.Sessions != 1 {
					t.Errorf("sessions carried over: got %d; want 1", u.Sessions)
				}
			}
			wantSame(t, l.waitStates(t, want), before)
			m := &manual{conns: make(chan net.Conn, 2)}
			go m.serve(wake())
			backend := m.next(t)
			hear(t, backend, "and more")
			say(t, backend, "answer")
			hear(t, client, "answer")
			wantSame(t, l.waitStates(t, map[string]int{"web relaying": 1}), map[string]session{
				client.LocalAddr().String(): {ID: before[client.LocalAddr().String()].ID, Client: client.LocalAddr().String(), Listener: "web", State: "relaying"},
			})
			client.Close()
			hearEnd(t, backend)
			if n := len(m.conns); n != 0 {
				t.Errorf("other connections of the session: got %d; want none", n)
			}
		})
	}
}

// proxyHeader is a PROXY header of version "v1" or "v2" from 192.0.2.1 and the given port to
// 198.51.100.2:443; that of version 2 has a TLV with a unique id.
func proxyHeader(version string, port int) string {
	if version == "v1" {
		return fmt.Sprintf("PROXY TCP4 192.0.2.1 198.51.100.2 %d 443\r\n", port)
	}
	var b bytes.Buffer
	b.WriteString("\r\n\r\n\x00\r\nQUIT\n\x21\x11")
	id := "an id of the client"
	binary.Write(&b, binary.BigEndian, uint16(12+3+len(id)))
	b.Write([]byte{192, 0, 2, 1, 198, 51, 100, 2})
	binary.Write(&b, binary.BigEndian, []uint16{uint16(port), 443})
	b.WriteByte(5) // PP2_TYPE_UNIQUE_ID
	binary.Write(&b, binary.BigEndian, uint16(len(id)))
	b.WriteString(id)
	return b.String()
}

// introduced is a connection as a backend sees it, and what it said before the greeting.
type introduced struct {
	net.Conn
	words string
}

// introduce gives the connections of a listener that have said the greeting.
func introduce(l net.Listener) <-chan introduced {
	all := make(chan introduced, 64)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				var words []byte
				for b := make([]byte, 1); !bytes.HasSuffix(words, []byte(greeting)); words = append(words, b...) {
					if _, err := conn.Read(b); err != nil {
						conn.Close()
						return
					}
				}
				all <- introduced{conn, strings.TrimSuffix(string(words), greeting)}
			}()
		}
	}()
	return all
}

// nextIntroduced waits for one.
func nextIntroduced(t testing.TB, all <-chan introduced) introduced {
	t.Helper()
	select {
	case conn := <-all:
		t.Cleanup(func() { conn.Close() })
		return conn
	case <-time.After(patience):
		t.Fatalf("session of the backend: got none within %v; want one", patience)
		return introduced{}
	}
}

// TestUpgrade_AProxyHeaderIsReadToItsEnd cuts headers in different places. The backend must get what the
// client's header said, addresses and TLVs, from clients whose header was half read and from one whose header
// was, but no backend yet.
func TestUpgrade_AProxyHeaderIsReadToItsEnd(t *testing.T) {
	for _, version := range []string{"v1", "v2"} {
		t.Run(version, func(t *testing.T) {
			dir := tempDir(t)
			config := proxyPool(t, version, socketPath(dir, "w1"))
			config.Listeners[0].Options = "accept_proxy = true\nproxy_timeout = \"60s\""
			full := config.Pools[0]
			full.Name, full.Options = "full", full.Options+"connect_timeout = \"60s\""
			full.Backends = []lbBackend{{Name: "w2", Address: socketPath(dir, "w2")}}
			config.Pools = append(config.Pools, full)
			config.Listeners = append(config.Listeners, lbListener{
				Name: "full", Bind: []string{freePort(t, "127.0.0.1")}, Pool: "full", Options: config.Listeners[0].Options,
			})
			wake := startFull(t, full.Backends[0].Address)
			told := introduce(listenBackend(t, config.Pools[0].Backends[0].Address))
			l := startLB(t, config)

			whole := proxyHeader(version, 1000)
			cuts := []int{0, 3, len(whole) / 2, len(whole) - 1}
			if version == "v2" {
				cuts = append(cuts, 12, 15, 16, 20, 28, 30) // around its parts
			}
			clients := make([]net.Conn, len(cuts))
			for i, cut := range cuts {
				clients[i] = dial(t, l.addr())
				say(t, clients[i], proxyHeader(version, 1000+i)[:cut])
			}
			waiting := dial(t, config.Listeners[1].Bind[0])
			say(t, waiting, proxyHeader(version, 999)+greeting)
			states := map[string]int{"web header": len(cuts), "full queued": 1}
			before := l.waitStates(t, states)
			for range 2 {
				if u := l.upgrade(t, ""); u.Sessions != len(cuts)+1 {
					t.Errorf("sessions carried over: got %d; want %d", u.Sessions, len(cuts)+1)
				}
			}
			wantSame(t, l.waitStates(t, states), before)
			if _, ok := before["192.0.2.1:999"]; !ok {
				t.Errorf("sessions: got %v; want one of 192.0.2.1:999, whose header is complete", before)
			}
			for i, cut := range cuts {
				header := proxyHeader(version, 1000+i)
				say(t, clients[i], header[cut:]+greeting)
				backend := nextIntroduced(t, told)
				if backend.words != header {
					t.Errorf("header that was cut at %d, as the backend got it: got %q; want %q", cut, backend.words, header)
				}
				say(t, backend, "answer")
				hear(t, clients[i], "answer")
				clients[i].Close()
				hearEnd(t, backend)
			}
			backend := nextIntroduced(t, introduce(wake()))
			if want := proxyHeader(version, 999); backend.words != want {
				t.Errorf("header that was complete, as the backend got it: got %q; want %q", backend.words, want)
			}
			waiting.Close()
			hearEnd(t, backend)
		})
	}
}

// pipes gives how many bytes are in each pipe that a process has open, by the pipe's name in proc(5).
func (p *process) pipes(t testing.TB) map[string]int {
	t.Helper()
	held := map[string]int{}
	dir := fmt.Sprintf("/proc/%d/fd", p.pid())
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatalf("cannot list the descriptors of %s: %v", p.name, err)
	}
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		name, err := os.Readlink(path)
		if err != nil || !strings.HasPrefix(name, "pipe:") {
			continue
		}
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0) // the same pipe once more
		if err != nil {
			continue
		}
		if n, err := unix.IoctlGetInt(fd, unix.TIOCINQ); err == nil {
			held[name] = n
		}
		unix.Close(fd)
	}
	return held
}

// flood sends noise that nobody need take, and counts it.
type flood struct {
	sent atomic.Int64
	err  chan error
}

func startFlood(conn net.Conn, n int64, seed byte) *flood {
	f := &flood{err: make(chan error, 1)}
	go func() {
		_, err := io.Copy(conn, io.TeeReader(noise(n, seed), f))
		if err == nil {
			err = conn.(halfCloser).CloseWrite()
		}
		f.err <- err
	}()
	return f
}

func (f *flood) Write(b []byte) (int, error) {
	f.sent.Add(int64(len(b)))
	return len(b), nil
}

// TestUpgrade_BytesInPipesArrive has both ends of a session send and not read, until lb holds bytes of both
// directions in pipes, which are in no socket and in no memory of lb. They stay in the same pipes, and
// everything arrives.
func TestUpgrade_BytesInPipesArrive(t *testing.T) {
	const size, step = 48 << 20, 1 << 20
	for kind, address := range backendKinds(t) {
		t.Run(kind, func(t *testing.T) {
			m := startManual(t, address)
			l := startLB(t, onePool(t, address))
			client, backend := m.session(t, l.addr())
			up, down := startFlood(client, size, 1), startFlood(backend, size, 2)
			// What was read goes through a pipe to whoever checks it in the end.
			read := map[net.Conn]*bytes.Buffer{client: {}, backend: {}}
			take := func(n int64) {
				t.Helper()
				for conn, b := range read {
					if _, err := io.CopyN(b, conn, n); err != nil {
						t.Fatalf("read: %v", err)
					}
				}
			}
			for range 3 {
				var held map[string]int
				eventually(t, patience, func() error {
					take(step) // so that lb finds much to read, and takes a pipe for it
					sent := int64(-1)
					for now := up.sent.Load() + down.sent.Load(); now != sent; now = up.sent.Load() + down.sent.Load() {
						sent = now
						time.Sleep(100 * time.Millisecond) // to see whether anything moves
					}
					held = l.pipes(t)
					maps.DeleteFunc(held, func(_ string, n int) bool { return n == 0 })
					if len(held) != 2 {
						return fmt.Errorf("pipes with bytes: got %v; want two, one for each direction", held)
					}
					return nil
				})
				l.upgrade(t, "")
				after := l.pipes(t)
				t.Logf("in pipes: %v before, %v after", held, after)
				for name := range held {
					if _, ok := after[name]; !ok {
						t.Errorf("pipes after an upgrade: got %v; want those with bytes, %v", after, held)
					}
				}
			}
			received := make(chan error, 2)
			for conn, b := range read {
				go func() {
					_, err := b.ReadFrom(conn)
					received <- err
				}()
			}
			for _, f := range []*flood{up, down} {
				if err := errors.Join(<-received, <-f.err); err != nil {
					t.Errorf("relay of %d bytes: %v", int64(size), err)
				}
			}
			for conn, seed := range map[net.Conn]byte{client: 2, backend: 1} {
				if got := read[conn].Bytes(); !bytes.Equal(got, mustRead(noise(size, seed))) {
					t.Errorf("what arrived: got %d bytes that differ from the %d that were sent", len(got), int64(size))
				}
			}
		})
	}
}

// endings reads how the sessions of each listener ended, from an access log in JSON.
func endings(t testing.TB, path string) map[string][]string {
	t.Helper()
	all := map[string][]string{}
	for line := range strings.Lines(readFile(t, path)) {
		var entry struct{ Listener, Termination string }
		if err := json.Unmarshal([]byte(line), &entry); err != nil {
			t.Fatalf("cannot read the access log: %v: %s", err, line)
		}
		all[entry.Listener] = append(all[entry.Listener], entry.Termination)
	}
	return all
}

// TestUpgrade_TimeoutsComeWhenTheyWereDue upgrades when all but the last second of each timeout has passed.
// One that comes because of the upgrade comes too early; one that begins anew comes a whole timeout after the
// upgrade.
func TestUpgrade_TimeoutsComeWhenTheyWereDue(t *testing.T) {
	const timeout = 4 * time.Second
	dir := tempDir(t)
	lines, silent, full, fullTCP := socketPath(dir, "w1"), socketPath(dir, "w2"), socketPath(dir, "w3"), freePort(t, "127.0.0.1")
	startLines(t, "w1", lines)
	m := startManual(t, silent)
	startFull(t, full)
	startFull(t, fullTCP)
	type kind struct {
		name, address  string
		pool, listener string // options, with the timeout as %q
		state          string // while it lasts
		end            string // its termination
		begin          func(conn net.Conn)
	}
	ask := func(conn net.Conn) {
		t.Helper()
		if _, err := askOn(conn); err != nil {
			t.Fatal(err)
		}
	}
	kinds := []kind{
		{name: "idle", address: lines, pool: "idle_timeout = %q", state: "relaying", end: "cD", begin: ask},
		{name: "half-closed", address: silent, pool: "half_closed_timeout = %q", state: "relaying", end: "sD", begin: func(conn net.Conn) {
			say(t, conn, greeting)
			m.next(t)
			closeWrite(t, conn)
		}},
		{name: "age", address: lines, pool: "max_session_age = %q", state: "relaying", end: "PD", begin: ask},
		{name: "queue", address: lines, pool: "max_conns = 1\nqueue_timeout = %q", state: "queued", end: "sQ"},
		{name: "header", address: lines, listener: "accept_proxy = true\nproxy_timeout = %q", state: "header", end: "cR",
			begin: func(conn net.Conn) { say(t, conn, "PROXY TCP4 192.0.2.1 ") }},
		{name: "connect", address: fullTCP, pool: "connect_timeout = %q", state: "connecting", end: "sC"},
		{name: "backlog", address: full, pool: "connect_timeout = %q", state: "queued", end: "sC"},
	}
	access := filepath.Join(dir, "access.log")
	config := lbConfig{Options: fmt.Sprintf("[log]\naccess = %q\naccess_format = \"json\"\n", access)}
	within := func(options string) string {
		if options == "" {
			return ""
		}
		return fmt.Sprintf(options, timeout) + "\n"
	}
	for _, k := range kinds {
		config.Listeners = append(config.Listeners, lbListener{Name: k.name, Bind: []string{freePort(t, "127.0.0.1")}, Pool: k.name, Options: within(k.listener)})
		config.Pools = append(config.Pools, lbPool{
			Name: k.name, Options: within(k.pool), Health: "type = \"none\"\npassive_fall = 0\n",
			Backends: []lbBackend{{Name: k.name, Address: k.address}},
		})
	}
	l := startLB(t, config)
	occupant := dial(t, config.Listeners[3].Bind[0])
	ask(occupant)
	states := map[string]int{"queue relaying": 1}
	for _, k := range kinds {
		states[k.name+" "+k.state]++
	}
	try := func() (carried bool) {
		type moments struct{ began, ended time.Time }
		all, ended := make([]moments, len(kinds)), make(chan int, len(kinds))
		for i, k := range kinds {
			all[i].began = time.Now()
			conn := dial(t, config.Listeners[i].Bind[0])
			if k.begin != nil {
				k.begin(conn)
			}
			go func() {
				io.Copy(io.Discard, conn)
				all[i].ended = time.Now()
				ended <- i
			}()
		}
		l.waitStates(t, states)
		time.Sleep(time.Until(all[0].began.Add(timeout - 900*time.Millisecond)))
		asked := time.Now()
		carried = l.upgrade(t, "").Sessions == len(kinds)+1
		for range kinds {
			<-ended
		}
		for i, k := range kinds {
			due := timeout
			if k.name == "age" { // which is spread by a tenth
				due -= timeout / 10
			}
			took, anew := all[i].ended.Sub(all[i].began), asked.Add(due).Sub(all[i].began)
			t.Logf("%s: after %v", k.name, took.Round(time.Millisecond))
			if took < due-50*time.Millisecond || took >= anew {
				t.Errorf("%s timeout: got it after %v; want it after %v, and before %v, when one would come that began anew", k.name, took, due, anew)
			}
		}
		return carried
	}
	tries := 1
	for ; !try() && !t.Failed(); tries++ {
		if tries == 3 {
			t.Fatalf("upgrades that took most of a second: got %d in a row; want one that takes less", tries)
		}
	}
	occupant.Close()
	eventually(t, patience, func() error {
		got, want := endings(t, access), map[string][]string{}
		for _, k := range kinds {
			want[k.name] = slices.Repeat([]string{k.end}, tries)
		}
		want["queue"] = append(want["queue"], "--")
		if !reflect.DeepEqual(got, want) {
			return fmt.Errorf("terminations by listener: got %v; want %v", got, want)
		}
		return nil
	})
}
