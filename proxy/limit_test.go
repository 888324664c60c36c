package proxy_test

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

func TestLimit_NewcomersWaitAndAreServedInTurn(t *testing.T) {
	const limit = 4
	var told atomic.Int64
	r := newRig(t, func(s *setup) {
		s.proxy.MaxSessions = limit
		s.prepare = func(p *proxy.Proxy) { p.OnLimit = func(max int64) { told.Add(max) } }
	}, serve(t, unixSocket, echo).address)
	var conns []conn
	for range 2 * limit {
		conns = append(conns, r.dial())
	}
	for _, c := range conns[:limit] {
		talk(t, c)
	}
	eventually(t, "the limit is told", func() bool { return told.Load() > 0 })

	// A loop that waits at the limit looks now and then, and does not spin.
	before, started := r.proxy.Stats.LimitReached.Load(), time.Now()
	time.Sleep(300 * time.Millisecond)
	looked, most := r.proxy.Stats.LimitReached.Load()-before, 2*(uint64(time.Since(started)/(50*time.Millisecond))+2)
	if looked > most {
		t.Errorf("looks at the queue while at the limit: got %d in %v; want at most %d", looked, time.Since(started), most)
	}
	if n := r.proxy.Sessions(); n != limit {
		t.Errorf("sessions: got %d; want %d", n, limit)
	}
	if n := told.Load(); n != limit {
		t.Errorf("told of the limit: got %d in all; want once %d", n, limit)
	}
	for i := range limit {
		conns[i].Close()
		talk(t, conns[limit+i])
	}
	for _, c := range conns[limit:] {
		c.Close()
	}
	r.ended(2 * limit)
}

// lb has no descriptor for what a worker has taken. What it has not taken counts.
func TestLimit_SessionsThatWorkersHoldDoNotCount(t *testing.T) {
	const limit = 4
	r := newRig(t, func(s *setup) {
		handsOff(s)
		s.proxy.MaxSessions = limit
		s.pool.HandoffTimeout = time.Minute
	})
	w := r.newTaker("w0", 100)
	var clients []net.Conn
	for range 3 * limit {
		c := r.client()
		r.greeting(c)
		clients = append(clients, c)
	}
	want := func(sessions, handedOff int64) {
		t.Helper()
		eventually(t, fmt.Sprintf("%d sessions, %d of them handed off", sessions, handedOff), func() bool {
			return r.proxy.Sessions() == sessions && r.proxy.HandedOff() == handedOff
		})
	}
	want(3*limit, 3*limit)
	w.stopped.Store(true)
	for range 2 * limit {
		clients = append(clients, r.client())
	}
	eventually(t, "the limit is reached", func() bool { return r.proxy.Stats.LimitReached.Load() > 0 })
	want(4*limit, 3*limit)
	w.stopped.Store(false)
	close(w.resume)
	for _, c := range clients[3*limit:] {
		r.greeting(c)
	}
	want(5*limit, 5*limit)
	for _, c := range clients {
		c.Close()
	}
	want(0, 0)
}

func TestLimit_HoldsWhenTheLastPlaceGoesToAnotherLoop(t *testing.T) {
	r := newRig(t, func(s *setup) { s.proxy.Loops, s.proxy.MaxSessions = 1, 3 }, serve(t, unixSocket, echo).address)
	client := socketsFor(t, 1)[0]
	if r.proxy.AcceptWhileFull(func() { r.connectTo(client) }) {
		t.Error("accept after the last place was taken: got a session; want none")
	}
	unix.Close(client)
	r.ended(1) // once there is room
}

// again runs the calling test in a process of its own, once. It gives false in that process.
func again(t *testing.T) bool {
	t.Helper()
	const mark = "LB_PROXY_TEST_CHILD"
	if os.Getenv(mark) != "" {
		return false
	}
	cmd := exec.Command(os.Args[0], "-test.run=^"+t.Name()+"$", "-test.timeout=60s", "-test.v")
	cmd.Env = append(os.Environ(), mark+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("in a process of its own: %v\n%s", err, out)
	}
	return true
}

// limitFDs lets the process open n descriptors more and no others, until the function that it gives is
// called.
func limitFDs(t *testing.T, n int) (restore func()) {
	t.Helper()
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	// The limit is a number, not a count: fill the gaps below it.
	var gaps []int
	fd, err := unix.Dup(0)
	for top := highestFD(t); err == nil && fd < top; fd, err = unix.Dup(0) {
		gaps = append(gaps, fd)
	}
	unix.Close(fd)
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: uint64(fd + n), Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	return func() {
		unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
		for _, fd := range gaps {
			unix.Close(fd)
		}
	}
}

func highestFD(t *testing.T) (top int) {
	for name := range openFDs() {
		var fd int
		if _, err := fmt.Sscan(name, &fd); err != nil {
			t.Fatal(err)
		}
		top = max(top, fd)
	}
	return top
}

// socketsFor makes n client sockets that only need to connect.
func socketsFor(t *testing.T, n int) []int {
	t.Helper()
	var fds []int
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		fds = append(fds, fd)
	}
	return fds
}

// connectTo connects a socket to the rig.
func (r *rig) connectTo(fd int) {
	r.Helper()
	a, err := backends.ParseAddress(r.ln.Addresses()[0])
	if err != nil {
		r.Fatal(err)
	}
	if err := unix.Connect(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}, Port: int(a.Port)}); err != nil {
		r.Fatal(err)
	}
}

func TestLimit_OutOfDescriptorsSheds(t *testing.T) {
	if again(t) {
		return
	}
	var told atomic.Int64
	r := newRig(t, func(s *setup) {
		s.proxy.Loops = 1 // of two, one may take the reserve descriptor's place from the other
		s.prepare = func(p *proxy.Proxy) { p.OnAcceptError = func(*proxy.Listener, error) { told.Add(1) } }
	}, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	clients := socketsFor(t, 3)
	restore := limitFDs(t, 0)
	started := time.Now()
	for _, fd := range clients {
		r.connectTo(fd)
	}
	// One after the other hears at once that it has to try again.
	for _, fd := range clients {
		var b [1]byte
		if n, err := unix.Read(fd, b[:]); err != unix.ECONNRESET {
			t.Errorf("read of a client that is shed: got %d, %v; want ECONNRESET", n, err)
		}
	}
	talk(t, c) // goes on
	time.Sleep(200 * time.Millisecond)
	if n, most := r.proxy.Stats.AcceptErrors.Load(), uint64(time.Since(started)/(50*time.Millisecond))+2; n < 3 || n > most {
		t.Errorf("failed accepts in %v: got %d; want 3 to %d", time.Since(started), n, most)
	}
	if n := r.proxy.Stats.ShedClients.Load(); n != 3 {
		t.Errorf("clients shed: got %d; want 3", n)
	}
	if told.Load() == 0 {
		t.Error("OnAcceptError was not called")
	}
	restore()
	c.Close()
	r.ended(1)
}

func TestLimit_OutOfDescriptorsLeavesNobodyWaitingAndRecovers(t *testing.T) {
	if again(t) {
		return
	}
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	c := r.dial()
	talk(t, c)
	settled := len(openFDs())
	for range 5 {
		c.SetDeadline(time.Now().Add(ioTimeout)) // for this round: a busy machine may take its time for all
		eventually(t, "descriptors of the round before are closed", func() bool {
			return r.proxy.HasReserve() && len(openFDs()) == settled
		})
		clients := socketsFor(t, 4)
		settled += len(clients)
		restore := limitFDs(t, 0)
		for _, fd := range clients {
			unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
			r.connectTo(fd)
		}
		for _, fd := range clients {
			var b [1]byte
			if n, err := unix.Read(fd, b[:]); n > 0 || err == unix.EAGAIN {
				t.Fatalf("read of a client without descriptor: got %d, %v; want EOF or ECONNRESET", n, err)
			}
		}
		talk(t, c)
		restore()
		next := r.dial()
		talk(t, next)
		next.Close()
	}
	c.Close()
}

func TestLimit_NoDescriptorForTheBackendIsAResourceError(t *testing.T) {
	if again(t) {
		return
	}
	backendKinds(t, func(t *testing.T, kind string) {
		a, b := serve(t, kind, echo), serve(t, kind, echo)
		r := newRig(t, nil, a.address, b.address)
		client := socketsFor(t, 1)[0]
		restore := limitFDs(t, 1) // for accept
		r.connectTo(client)
		var buf [1]byte
		if n, err := unix.Read(client, buf[:]); n != 0 || err != nil {
			t.Errorf("read: got %d, %v; want EOF", n, err)
		}
		rec := r.wantTermination("RC")
		restore()
		if a.served.Load()+b.served.Load() != 0 || rec.Backend != nil {
			t.Errorf("record: got backend %v; want none", rec.Backend)
		}
		c := r.dial()
		talk(t, c)
		c.Close()
		r.ended(2)
	})
}
