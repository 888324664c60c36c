package proxy

import (
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// stillProxy is one whose loops are the test's to run.
func stillProxy(t *testing.T, loops int) *Proxy {
	t.Helper()
	p, err := New(Config{Loops: loops})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, l := range p.loops {
			l.closeFDs()
		}
		closeFD(p.reserve.Load())
	})
	return p
}

func TestWaiting_IsIdleWhileEventsAreFarApart(t *testing.T) {
	r := waiting{idle: true, gap: longestGap, slept: true}
	now := time.Duration(0)
	events := func(n int, gap time.Duration) {
		for range n {
			now += gap
			r.note(now, 1)
		}
	}
	check := func(when string, want bool) {
		t.Helper()
		if r.idle != want {
			t.Errorf("%s: got idle %v, events %v apart; want %v", when, r.idle, r.gap, want)
		}
	}
	events(10, time.Hour)
	check("an event an hour", true)
	events(10, time.Millisecond)
	check("one burst", true)
	events(100, time.Millisecond)
	check("many events", false)
	events(100, (busyGap+idleGap)/2)
	check("fewer, between the limits", false)
	now += idleAfter
	r.note(now, 0)
	check("none for a while", false)
	now++
	r.note(now, 0)
	check("none for longer", true)
	events(100, time.Millisecond)
	check("many again", false)
	events(20, 2*idleGap)
	check("few", true)
	events(100, (busyGap+idleGap)/2)
	check("more, between the limits", true)
	r.slept = false
	events(100, longestGap)
	check("rounds that are long, and find more each time", false)
}

// Whatever the loop changes to while something comes, it does not miss it.
func TestWaiting_NoEventIsMissed(t *testing.T) {
	p := stillProxy(t, 1)
	l := p.loops[0]
	post, posted := make(chan time.Duration), make(chan struct{})
	go func() {
		defer close(posted)
		for pause := range post {
			for start := time.Now(); time.Since(start) < pause; {
			}
			one := [8]byte{1}
			unix.Write(int(l.wakefd), one[:])
		}
	}()
	random := rand.New(rand.NewPCG(1, 2))
	parked := 0
	for i := range 5000 {
		l.waiting.idle = random.IntN(2) == 0
		l.sessions.Store(random.Int64N(2 * manySessions))
		post <- time.Duration(random.IntN(60)) * time.Microsecond
		l.now = p.since()
		l.resumeAt = l.now + 10*time.Second
		for l.wait() == 0 {
			if l.now = p.since(); l.now > l.resumeAt {
				t.Fatalf("round %d, idle %v: the event does not come", i, l.waiting.idle)
			}
		}
		if l.waiting.linked != l.waiting.parks {
			t.Fatalf("round %d, idle %v: got linked %v", i, l.waiting.idle, l.waiting.linked)
		}
		if l.waiting.linked {
			parked++
		}
		var count [8]byte
		unix.Read(int(l.wakefd), count[:])
	}
	close(post)
	<-posted
	if parked == 0 || parked == 5000 {
		t.Errorf("parked %d times of 5000; want both ways to wait", parked)
	}
}

func TestWaiting_WaitsForItsTimers(t *testing.T) {
	p := stillProxy(t, 1)
	l := p.loops[0]
	for _, idle := range []bool{true, false, true} {
		l.waiting.idle = idle
		l.now = p.since()
		l.resumeAt = l.now + 30*time.Millisecond
		for l.now < l.resumeAt {
			if n := l.wait(); n != 0 {
				t.Fatalf("idle %v: got %d events; want none", idle, n)
			}
			l.now = p.since()
		}
		if late := l.now - l.resumeAt; late > 5*time.Second {
			t.Errorf("idle %v: %v late", idle, late)
		}
	}
}

// The rounds of a loop with much to do take so long that its events seem far apart. Goroutines that wait for
// the network are served all the same.
func TestWaiting_OthersAreServedBesideLongRounds(t *testing.T) {
	p := stillProxy(t, 1)
	l := p.loops[0]
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(p.Loops() + 1))
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fds[0])
	// While all are asleep the loop gets an event that stays, and then somebody else gets one. None of it is
	// done by this process: a goroutine that wakes up for it would have a thread wait in the netpoller.
	others := exec.Command("sh", "-c", "sleep 0.5; echo >&3; sleep 0.3; echo")
	others.ExtraFiles = []*os.File{os.NewFile(uintptr(fds[1]), "pipe")}
	out, err := others.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := others.Start(); err != nil {
		t.Fatal(err)
	}
	others.ExtraFiles[0].Close()
	if e := epollCtl(l.epfd, unix.EPOLL_CTL_ADD, int32(fds[0]), unix.EPOLLIN, token{}); e != 0 {
		t.Fatal(e)
	}
	read := make(chan struct{})
	go func() {
		io.ReadFull(out, make([]byte, 1))
		close(read)
	}()
	const limit = 4 * time.Second
	stopped := make(chan time.Duration)
	go func() { // nothing in it goes through the scheduler but wait
		start := time.Duration(0)
		for l.now = p.since(); start == 0 || l.now-start < limit; {
			n := l.wait()
			l.now = p.since()
			l.waiting.note(l.now, n)
			if n == 0 {
				continue
			}
			if start == 0 {
				start = l.now
			}
			for round := time.Now(); time.Since(round) < 50*time.Millisecond; {
			}
			select {
			case <-read:
				stopped <- l.now - start
				return
			default:
			}
		}
		stopped <- limit
	}()
	if took := <-stopped; took > limit/2 {
		t.Errorf("beside a loop with long rounds a goroutine that waits for a pipe has not been served for %v", took)
	}
	<-read
	others.Wait()
}

// However many loops are idle, each hears a listener that comes later, and each can be idle after it.
func TestWaiting_ManyIdleLoopsHearAListener(t *testing.T) {
	p := stillProxy(t, 128)
	listen := func() *socket {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fd) })
		if err := unix.Listen(fd, 1); err != nil {
			t.Fatal(err)
		}
		return &socket{fd: int32(fd)}
	}
	rest := func(idle bool) {
		for _, l := range p.loops {
			l.waiting.idle = idle
			l.now = p.since()
			l.resumeAt = l.now // do not wait
			l.wait()
			l.resumeAt = 0
		}
	}
	check := func(when string) {
		t.Helper()
		deaf, parked := 0, 0
		for _, l := range p.loops {
			for _, a := range l.accepts {
				if a != nil && !a.in {
					deaf++
				}
			}
			if l.waiting.linked {
				parked++
			}
		}
		if deaf > 0 || parked != mostParked {
			t.Errorf("%s: got %d loops that do not hear it, %d that park; want 0 and %d", when, deaf, parked, mostParked)
		}
	}
	rest(true)
	for _, s := range []*socket{listen(), listen()} {
		for _, l := range p.loops {
			l.watch(nil, s)
		}
	}
	check("listeners after the loops")
	rest(false)
	rest(true)
	check("loops after the listeners")
}
