package uring

import (
	"errors"
	"fmt"
	"testing"

	"golang.org/x/sys/unix"
)

// newRing makes a ring, or skips the test where the kernel lets nobody have one.
func newRing(t testing.TB, n int) *Ring {
	t.Helper()
	r, err := New(n)
	if errors.Is(err, ErrUnavailable) {
		t.Skipf("io_uring cannot be tested here: %v", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(r.Close)
	return r
}

func pair(t testing.TB) (int32, int32) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return int32(fds[0]), int32(fds[1])
}

func buffers(t testing.TB, n, size int) [][]byte {
	t.Helper()
	b, free, err := Buffers(n, size)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(free)
	return b
}

func TestRing_GivesEachResultToItsID(t *testing.T) {
	r := newRing(t, 8)
	bufs := buffers(t, 8, 64)
	results := make([]Result, 8)
	empty, _ := pair(t)
	ended, other := pair(t)
	unix.Shutdown(int(other), unix.SHUT_WR)
	for round := range 50 { // the queues wrap around
		a, b := pair(t)
		word := fmt.Sprintf("round %d", round)
		if _, err := unix.Write(int(b), []byte(word)); err != nil {
			t.Fatal(err)
		}
		r.Recv(empty, bufs[0], 0)
		r.Recv(a, bufs[1], 1)
		r.Recv(ended, bufs[2], 2)
		r.Recv(-1, bufs[3], 3)
		if errno := r.Do(results); errno != 0 {
			t.Fatalf("Do: got %v", errno)
		}
		want := []Result{{Errno: unix.EAGAIN}, {N: int32(len(word))}, {}, {Errno: unix.EBADF}}
		for i, w := range want {
			if results[i] != w {
				t.Fatalf("round %d, result %d: got %+v; want %+v", round, i, results[i], w)
			}
		}
		if got := string(bufs[1][:len(word)]); got != word {
			t.Fatalf("received: got %q; want %q", got, word)
		}
	}
}

func TestRing_SendIsPartialWhereThePeerIsFull(t *testing.T) {
	r := newRing(t, 4)
	bufs := buffers(t, 1, 8<<20)
	results := make([]Result, 2)
	a, b := pair(t)
	r.Send(a, bufs[0], 0, 0)
	r.Send(a, bufs[0], 0, 1)
	if errno := r.Do(results); errno != 0 {
		t.Fatalf("Do: got %v", errno)
	}
	if n := results[0].N; n <= 0 || int(n) >= len(bufs[0]) {
		t.Errorf("send of 8 MiB: got %+v; want a part", results[0])
	}
	if results[1].Errno != unix.EAGAIN {
		t.Errorf("send to a full peer: got %+v; want EAGAIN", results[1])
	}
	unix.Shutdown(int(b), unix.SHUT_RD)
	r.Send(a, bufs[0][:1], 0, 0)
	if r.Do(results); results[0].Errno != unix.EPIPE {
		t.Errorf("send to a peer that reads no more: got %+v; want EPIPE, and no signal", results[0])
	}
}

// TestRing_GoesOnAfterRefusalsOfAMoment: each call fails many times, and takes a part of what is handed over.
func TestRing_GoesOnAfterRefusalsOfAMoment(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EAGAIN, unix.EBUSY, unix.EINTR, unix.ENOMEM, 0} {
		r := newRing(t, 8)
		calls := 0
		r.enter = func(fd, submit, flags uintptr) (uintptr, unix.Errno) {
			if calls++; calls%50 != 0 {
				return 0, errno // 0: it takes nothing, and says nothing
			}
			return enter(fd, min(submit, 3), flags)
		}
		bufs, results := buffers(t, 8, 1), make([]Result, 8)
		for round := range 3 {
			for i := range 8 {
				a, b := pair(t)
				if _, err := unix.Write(int(b), []byte{byte(i)}); err != nil {
					t.Fatal(err)
				}
				r.Recv(a, bufs[i], i)
			}
			if e := r.Do(results); e != 0 {
				t.Fatalf("Do, with %d in between: got %v", errno, e)
			}
			for i, x := range results {
				if x != (Result{N: 1}) || bufs[i][0] != byte(i) {
					t.Errorf("round %d, operation %d, with %v in between: got %+v, %d", round, i, errno, x, bufs[i][0])
				}
			}
		}
	}
}

// TestRing_RefusalTellsWhatWasDone: a ring that is refused in the middle of a batch.
func TestRing_RefusalTellsWhatWasDone(t *testing.T) {
	never := func(uintptr, uintptr, uintptr) (uintptr, unix.Errno) { return 0, 0 }
	for _, c := range []struct {
		name   string
		then   func(fd, submit, flags uintptr) (uintptr, unix.Errno)
		reason unix.Errno
	}{
		{"no ring", func(uintptr, uintptr, uintptr) (uintptr, unix.Errno) { return 0, unix.EBADF }, unix.EBADF},
		{"forbidden", func(uintptr, uintptr, uintptr) (uintptr, unix.Errno) { return 0, unix.EPERM }, unix.EPERM},
		{"no memory for ever", func(uintptr, uintptr, uintptr) (uintptr, unix.Errno) { return 0, unix.EAGAIN }, unix.EAGAIN},
		{"silent", never, unix.ETIME},
	} {
		r := newRing(t, 4)
		first := true
		r.enter = func(fd, submit, flags uintptr) (uintptr, unix.Errno) {
			if first {
				first = false
				return enter(fd, min(submit, 2), flags)
			}
			return c.then(fd, submit, flags)
		}
		bufs, results := buffers(t, 4, 1), make([]Result, 4)
		empty, _ := pair(t)
		for i := range 4 {
			r.Recv(empty, bufs[i], 3-i)
		}
		if errno := r.Do(results); errno != c.reason {
			t.Errorf("%s: got %v; want %v", c.name, errno, c.reason)
		}
		for i, want := range []unix.Errno{NotDone, NotDone, unix.EAGAIN, unix.EAGAIN} {
			if got := results[i].Errno; got != want {
				t.Errorf("%s, operation %d: got %v; want %v", c.name, i, got, want)
			}
		}
	}
}

// TestRing_LosesWhatDoesNotEnd: an operation that waits, which none of ours does, does not have Do wait.
func TestRing_LosesWhatDoesNotEnd(t *testing.T) {
	for _, refuse := range []unix.Errno{0, unix.EBADF} {
		r := newRing(t, 4)
		bufs, results := buffers(t, 2, 1), make([]Result, 2)
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0) // a blocking one
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
		empty, _ := pair(t)
		r.add(opRecv, int32(fds[0]), bufs[0], 0, 0)
		r.Recv(empty, bufs[1], 1)
		calls := 0
		r.enter = func(fd, submit, flags uintptr) (uintptr, unix.Errno) {
			if calls++; calls > 1 && refuse != 0 {
				return 0, refuse
			}
			return enter(fd, submit, flags)
		}
		if errno := r.Do(results); errno == 0 {
			t.Errorf("Do with an operation that waits, refused with %v: got no error", refuse)
		}
		if results[0].Errno != Lost || results[1].Errno != unix.EAGAIN {
			t.Errorf("results: got %+v; want %v and %v", results, Lost, unix.EAGAIN)
		}
		if calls != maxTries {
			t.Errorf("calls: got %d; want %d", calls, maxTries)
		}
	}
}

func TestRing_RoomIsForWhatItWasMadeFor(t *testing.T) {
	r := newRing(t, 16)
	if n := r.Room(); n != 16 {
		t.Errorf("room of a ring for 16: got %d", n)
	}
	a, _ := pair(t)
	bufs := buffers(t, 1, 1)
	for range 16 {
		r.Recv(a, bufs[0], 0)
	}
	if n := r.Room(); n != 0 {
		t.Errorf("room of a full batch: got %d; want 0", n)
	}
	r.Do(make([]Result, 1))
	if n := r.Room(); n != 16 {
		t.Errorf("room after Do: got %d; want 16", n)
	}
}

func TestRing_AllocatesNothing(t *testing.T) {
	r := newRing(t, 16)
	bufs := buffers(t, 2, 64)
	results := make([]Result, 2)
	a, b := pair(t)
	if n := testing.AllocsPerRun(100, func() {
		r.Send(a, bufs[0], 0, 0)
		r.Recv(b, bufs[1], 1)
		r.Do(results)
	}); n != 0 {
		t.Errorf("allocations of a batch: got %v; want 0", n)
	}
}

func TestNew_RefusedIsUnavailable(t *testing.T) {
	if r, err := New(1 << 20); !errors.Is(err, ErrUnavailable) {
		if err == nil {
			r.Close()
		}
		t.Errorf("a ring for more than the kernel allows: got %v; want ErrUnavailable", err)
	}
}

// BenchmarkRing_Do is the cost of an operation in batches of several sizes, of a send and a receive of 100
// bytes each.
func BenchmarkRing_Do(b *testing.B) {
	for _, n := range []int{1, 2, 4, 16} {
		b.Run(fmt.Sprintf("pairs=%d", n), func(b *testing.B) {
			r := newRing(b, 2*n)
			bufs := buffers(b, n, 100)
			results := make([]Result, n)
			var ends [][2]int32
			for range n {
				x, y := pair(b)
				ends = append(ends, [2]int32{x, y})
			}
			b.ReportAllocs()
			for b.Loop() {
				for i := range n {
					r.Send(ends[i][0], bufs[i], 0, i)
				}
				r.Do(results)
				for i := range n {
					r.Recv(ends[i][1], bufs[i], i)
				}
				r.Do(results)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(n), "ns/pair")
		})
	}
}
