package proxy_test

import (
	"runtime"
	"runtime/debug"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/proxy"
)

// BenchmarkRelay is a request of 100 bytes and its answer over an established session, TCP to Unix: a small
// one, one that is copied, and one that is spliced. The time, and the processor's, are for client, lb and
// backend together.
func BenchmarkRelay(b *testing.B) {
	for _, bc := range []struct {
		name   string
		answer int
	}{
		{"small", 100},
		{"64k", 64 << 10},
		{"splice", 4 << 20},
	} {
		b.Run(bc.name, func(b *testing.B) {
			r := newRig(b, nil, serveRaw(b, answering(100, bc.answer)))
			c := r.dialRaw()
			defer unix.Close(c)
			request, buf := make([]byte, 100), make([]byte, 256<<10)
			b.SetBytes(int64(bc.answer))
			b.ReportAllocs()
			before := cpuTime()
			for b.Loop() {
				if !writeRaw(c, request) || !readRaw(c, buf, bc.answer) {
					b.Fatal("no answer")
				}
			}
			b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// BenchmarkConnect is a whole session: accept, pick, connect, a request and its answer, close. The backend
// closes first. The time is for client, lb and backend together, and so are the allocations: a goroutine of
// the backend's.
func BenchmarkConnect(b *testing.B) {
	r := newRig(b, nil, serveRaw(b, func(fd int) {
		var buf [100]byte
		if readRaw(fd, buf[:], len(buf)) {
			writeRaw(fd, buf[:])
		}
	}))
	b.ReportAllocs()
	before := cpuTime()
	for b.Loop() {
		once(r)
	}
	b.ReportMetric(float64(cpuTime()-before)/float64(b.N), "cpu-ns/op")
}

// once is one session with a request and its answer, until the backend closes.
func once(r *rig) {
	fd := r.dialRaw()
	var buf [100]byte
	if !writeRaw(fd, buf[:]) || !readRaw(fd, buf[:], len(buf)) {
		r.Error("no answer")
	}
	unix.Read(fd, buf[:]) // the end
	// leaves no port in TIME_WAIT
	unix.SetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	unix.Close(fd)
}

// mallocs is how many allocations the whole process makes while f runs n times.
func mallocs(n int, f func()) float64 {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	f() // whatever is made once
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range n {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(n)
}

func TestRelay_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	for _, tc := range []struct {
		name     string
		requests int
		answer   int
		held     bool // the client is slow, and there are no pipes
	}{
		{"copied", 2000, 100, false},
		{"held back", 100, 1 << 20, true},
		{"spliced", 20, 4 << 20, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := newRig(t, func(s *setup) {
				if tc.held {
					s.prepare = (*proxy.Proxy).DenyPipes
				}
			}, serveRaw(t, answering(100, tc.answer)))
			c := r.dialRaw()
			defer unix.Close(c)
			request, buf := make([]byte, 100), make([]byte, 64<<10)
			if tc.held {
				eventually(t, "the session is there", func() bool { return r.pool.Active() == 1 })
				unix.SetsockoptInt(c, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<10)
				r.proxy.ShrinkBuffers(64<<10, 64<<10)
				writeRaw(c, request)
				eventually(t, "lb holds bytes back", func() bool { return r.proxy.Holdings().Buffers == 1 })
				readRaw(c, buf, tc.answer)
			}
			got := mallocs(tc.requests, func() {
				if !writeRaw(c, request) || !readRaw(c, buf, tc.answer) {
					t.Error("no answer")
				}
			})
			// The runtime has its own, and a loop that moves to another processor finds that one's pool
			// empty.
			if reads := max(1, tc.answer>>16); got > 0.1*float64(reads) {
				t.Errorf("allocations a request of %d reads: got %.2f; want 0", reads, got)
			}
		})
	}
}

func TestConnect_AllocatesNothing(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector allocates")
	}
	var buf [100]byte
	r := newRig(t, nil, serveRawInline(t, func(fd int) {
		if readRaw(fd, buf[:], len(buf)) {
			writeRaw(fd, buf[:])
		}
	}))
	for range 50 { // as many sessions as may overlap have their place
		once(r)
	}
	before := mallocs(500, func() { r.sockaddr() }) // what the client allocates
	got := mallocs(500, func() { once(r) })
	t.Logf("allocations a session: %.2f, of which the client's are %.2f", got, before)
	if got-before > 0.5 {
		t.Errorf("allocations a session: got %.2f; want 0", got-before)
	}
}
