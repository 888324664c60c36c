package proxy

import (
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestRest_IsIdleWhileEventsAreFarApart(t *testing.T) {
	r := rest{idle: true, gap: longestGap}
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
}

// Whatever the loop changes to while something comes, it does not miss it.
func TestRest_NoEventIsMissed(t *testing.T) {
	p, err := New(Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	l := p.loops[0]
	defer func() {
		l.closeFDs()
		closeFD(p.reserve.Load())
	}()
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
		l.rest.idle = random.IntN(2) == 0
		post <- time.Duration(random.IntN(60)) * time.Microsecond
		l.now = p.since()
		l.resumeAt = l.now + 10*time.Second
		for l.wait() == 0 {
			if l.now = p.since(); l.now > l.resumeAt {
				t.Fatalf("round %d, idle %v: the event does not come", i, l.rest.idle)
			}
		}
		if l.rest.linked != l.rest.idle {
			t.Fatalf("round %d, idle %v: got linked %v", i, l.rest.idle, l.rest.linked)
		}
		if l.rest.linked {
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

func TestRest_WaitsForItsTimers(t *testing.T) {
	p, err := New(Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	l := p.loops[0]
	defer func() {
		l.closeFDs()
		closeFD(p.reserve.Load())
	}()
	for _, idle := range []bool{true, false, true} {
		l.rest.idle = idle
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
