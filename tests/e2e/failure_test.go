//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// load opens one connection after the other on several goroutines, each for one question to a lines backend.
type load struct {
	stop chan struct{}
	all  sync.WaitGroup

	mu      sync.Mutex
	answers map[string]int // guarded by mu: how many, by who answered
	errors  []loadError    // guarded by mu
}

type loadError struct {
	started, ended time.Time
	err            error
}

func startLoad(t testing.TB, address string, clients int) *load {
	d := &load{stop: make(chan struct{}), answers: make(map[string]int)}
	for range clients {
		d.all.Go(func() { d.run(address) })
	}
	t.Cleanup(d.end)
	return d
}

func (d *load) run(address string) {
	for {
		select {
		case <-d.stop:
			return
		default:
		}
		started := time.Now()
		who, err := askLine(address, patience)
		d.mu.Lock()
		if err != nil {
			d.errors = append(d.errors, loadError{started, time.Now(), err})
		} else {
			d.answers[who]++
		}
		d.mu.Unlock()
	}
}

// end stops the load and waits until every client has its answer. It may be called again.
func (d *load) end() {
	select {
	case <-d.stop:
	default:
		close(d.stop)
	}
	d.all.Wait()
}

// count returns how many answers came from the named backend.
func (d *load) count(who string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.answers[who]
}

// waitMore waits until n more answers have come from the named backend.
func (d *load) waitMore(t testing.TB, who string, n int) {
	t.Helper()
	want := d.count(who) + n
	eventually(t, patience, func() error {
		if got := d.count(who); got < want {
			return fmt.Errorf("answers of %s under load: got %d; want %d", who, got, want)
		}
		return nil
	})
}

// moment is when something happened, from just before to just after it.
type moment struct{ from, to time.Time }

// kill kills a process and returns when that was.
func kill(p *process) moment {
	from := time.Now()
	p.kill()
	return moment{from, time.Now()}
}

// wantNoError fails the test for each connection that failed and was not on its way in the moment of a death:
// it was started after a death, or had ended before it.
func (d *load) wantNoError(t testing.TB, deaths ...moment) {
	t.Helper()
	d.mu.Lock()
	defer d.mu.Unlock()
	failed, total := 0, len(d.errors)
	for _, n := range d.answers {
		total += n
	}
	for _, e := range d.errors {
		onItsWay := func(death moment) bool { return e.started.Before(death.to) && e.ended.After(death.from) }
		if slices.ContainsFunc(deaths, onItsWay) {
			continue
		}
		if failed++; failed <= 5 {
			t.Errorf("connection of %v to %v, with deaths at %v: got %v; want an answer", e.started, e.ended, deaths, e.err)
		}
	}
	if failed > 0 {
		t.Errorf("connections that failed without a reason: got %d of %d; want 0", failed, total)
	}
}

func TestFailure_KilledBackendCostsNoNewConnection(t *testing.T) {
	kinds := map[string]func(name string) string{
		"unix": func(name string) string { return socketPath(tempDir(t), name) },
		"tcp":  func(string) string { return freePort(t, "127.0.0.1") },
	}
	for kind, address := range kinds {
		t.Run(kind, func(t *testing.T) {
			workers := make(map[string]*process)
			addresses := make([]string, 3)
			for i := range addresses {
				name := "w" + strconv.Itoa(i+1)
				addresses[i] = address(name)
				workers[name] = startLines(t, name, addresses[i])
			}
			l := startLB(t, onePool(t, addresses...))
			l.waitHealth(t, "up")
			d := startLoad(t, l.addr(), 16)
			for name := range workers {
				d.waitMore(t, name, 100)
			}

			deaths := []moment{kill(workers["w2"])}
			d.waitMore(t, "w1", 500)
			d.waitMore(t, "w3", 500)
			l.waitHealth(t, "down", "w2")
			d.waitMore(t, "w1", 500)

			startLines(t, "w2", addresses[1]) // it comes back, and takes its share
			l.waitHealth(t, "up", "w2")
			d.waitMore(t, "w2", 200)

			deaths = append(deaths, kill(workers["w1"])) // and again, another
			d.waitMore(t, "w2", 500)
			d.waitMore(t, "w3", 500)
			d.end()
			d.wantNoError(t, deaths...)
		})
	}
}

func TestFailure_AllKilledAndBack(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	worker := startLines(t, "w1", address)
	l := startLB(t, onePool(t, address))
	l.waitHealth(t, "up")
	worker.kill()
	l.waitHealth(t, "down")
	if who, err := askLine(l.addr(), patience); err == nil {
		t.Errorf("answer with every backend dead: got one from %s; want an error", who)
	}
	startLines(t, "w1", address)
	l.waitHealth(t, "up")
	if who, err := askLine(l.addr(), patience); who != "w1" || err != nil {
		t.Errorf("answer after the backend is back: got %q, %v; want w1", who, err)
	}
}

// startFull listens on address with a backlog of 1, accepts nothing, and fills the backlog, so that a further
// connect gets EAGAIN on a Unix socket, and no answer at all on TCP. wake empties it, and gives the listener.
func startFull(t testing.TB, address string) (wake func() net.Listener) {
	t.Helper()
	network, addr := splitAddress(address)
	var (
		domain = unix.AF_UNIX
		sa     unix.Sockaddr
	)
	if network == "tcp" {
		tcp, err := net.ResolveTCPAddr(network, addr)
		if err != nil {
			t.Fatalf("cannot resolve %q: %v", addr, err)
		}
		domain, sa = unix.AF_INET, &unix.SockaddrInet4{Port: tcp.Port, Addr: [4]byte(tcp.IP.To4())}
	} else {
		sa = &unix.SockaddrUnix{Name: addr}
	}
	fd, err := unix.Socket(domain, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("cannot make a socket: %v", err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	if err := unix.Bind(fd, sa); err != nil {
		t.Fatalf("cannot bind %q: %v", address, err)
	}
	if err := unix.Listen(fd, 1); err != nil {
		t.Fatalf("cannot listen on %q: %v", address, err)
	}
	var waiting []net.Conn
	for range 10 {
		conn, err := net.DialTimeout(network, addr, 500*time.Millisecond)
		if err != nil {
			return func() net.Listener { return wakeFull(t, fd, waiting) }
		}
		t.Cleanup(func() { conn.Close() })
		waiting = append(waiting, conn)
	}
	t.Fatalf("backlog of %q: got 10 connections into it; want it full", address)
	return nil
}

// wakeFull takes the connections that wait out of the backlog of a listening socket.
func wakeFull(t testing.TB, fd int, waiting []net.Conn) net.Listener {
	t.Helper()
	for _, conn := range waiting {
		conn.Close()
		accepted, _, err := unix.Accept4(fd, unix.SOCK_CLOEXEC)
		if err != nil {
			t.Fatalf("cannot accept: %v", err)
		}
		unix.Close(accepted)
	}
	copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		t.Fatalf("cannot duplicate a socket: %v", err)
	}
	file := os.NewFile(uintptr(copied), "listener")
	defer file.Close()
	l, err := net.FileListener(file)
	if err != nil {
		t.Fatalf("cannot listen: %v", err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestFailure_FullBacklogLandsOnTheOthers(t *testing.T) {
	dir := tempDir(t)
	full := socketPath(dir, "full")
	startFull(t, full)
	addresses := []string{socketPath(dir, "w1"), full, socketPath(dir, "w3")}
	startLines(t, "w1", addresses[0])
	startLines(t, "w3", addresses[2])
	l := startLB(t, onePool(t, addresses...))
	d := startLoad(t, l.addr(), 16)
	d.waitMore(t, "w1", 1000)
	d.waitMore(t, "w3", 1000)
	d.end()
	d.wantNoError(t)
	if got := l.status(t).backend(t, "w2").Active; got != 0 {
		t.Errorf("active sessions of the full backend: got %d; want 0", got)
	}
}

// A full TCP backlog answers nothing: only the connect timeout tells.
func TestFailure_FullTCPBacklogLandsOnTheOthers(t *testing.T) {
	full := freePort(t, "127.0.0.1")
	startFull(t, full)
	addresses := []string{freePort(t, "127.0.0.1"), full, freePort(t, "127.0.0.1")}
	startLines(t, "w1", addresses[0])
	startLines(t, "w3", addresses[2])
	config := onePool(t, addresses...)
	config.Pools[0].Options = `connect_timeout = "2s"`
	l := startLB(t, config)
	d := startLoad(t, l.addr(), 16)
	d.waitMore(t, "w1", 1000)
	d.waitMore(t, "w3", 1000)
	d.end()
	d.wantNoError(t)
}

// A stopped process keeps the sessions that it has: what its clients say waits for it.
func TestFailure_StoppedBackendGoesOn(t *testing.T) {
	dir := tempDir(t)
	addresses := []string{socketPath(dir, "w1"), socketPath(dir, "w2")}
	startLines(t, "w1", addresses[0])
	stopped := startLines(t, "w2", addresses[1])
	l := startLB(t, onePool(t, addresses...))
	l.waitHealth(t, "up")
	var onStopped net.Conn
	for onStopped == nil {
		conn := dial(t, l.addr())
		who, err := askOn(conn)
		if err != nil {
			t.Fatalf("answer: got %v; want no error", err)
		}
		if who == "w2" {
			onStopped = conn
		}
	}
	stopped.signal(t, unix.SIGSTOP)
	say(t, onStopped, "are you asleep?\n")
	stopped.signal(t, unix.SIGCONT)
	hear(t, onStopped, "w2 are you asleep?\n")
}
