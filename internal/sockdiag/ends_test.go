package sockdiag

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"slices"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/eventually"
)

func listenEnds(t testing.TB, ports ...uint16) *Ends {
	t.Helper()
	e, err := ListenEnds(ports...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// read waits for ends and reads them. The test fails after ten seconds without one.
func read(t testing.TB, e *Ends, into []Socket) (n int, err error) {
	t.Helper()
	if err := await(e); err != nil {
		t.Fatal(err)
	}
	return e.Read(into)
}

// await waits until there is something to read, for ten seconds at most.
func await(e *Ends) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(e.FD()), Events: unix.POLLIN}}, 10_000)
		switch {
		case err == unix.EINTR:
		case err != nil:
			return err
		case n == 0:
			return errors.New("heard of no end for ten seconds")
		default:
			return nil
		}
	}
}

// next reads one end.
func next(t testing.TB, e *Ends) Socket {
	t.Helper()
	for {
		var got [1]Socket
		n, err := read(t, e, got[:])
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			return got[0]
		}
	}
}

func TestEnds_TellCookieAndBytes(t *testing.T) {
	for _, n := range networks {
		l := listener(t, n[0], n[1])
		ends := listenEnds(t, port(l))
		for _, serverFirst := range []bool{true, false} {
			client := connect(t, l)
			server := accept(t, l)
			want := cookie(t, server)
			exchange(t, client, server, 77, 1000)
			if serverFirst {
				server.Close()
				client.Close()
			} else {
				client.Close()
				server.Close()
			}
			got := next(t, ends)
			if got.Cookie != want {
				t.Errorf("%v: got cookie %x; want %x", l.Addr(), got.Cookie, want)
			}
			if got.Received < 77 || got.Received > 78 || got.Acked < 1000 || got.Acked > 1001 {
				t.Errorf("%v, server first %v: got %d received, %d acked; want 77, 1000 and a FIN at most",
					l.Addr(), serverFirst, got.Received, got.Acked)
			}
		}
	}
}

// A duplicate holds the socket, whoever else closed it: it has ended when the last one is closed.
func TestEnds_ComeWhenTheLastDescriptorIsClosed(t *testing.T) {
	l := listener(t, "tcp", "127.0.0.1:0")
	ends := listenEnds(t, port(l))
	held, other := connect(t, l), (net.Conn)(nil)
	heldServer := accept(t, l)
	duplicate, err := heldServer.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	heldServer.Close()
	held.Close()
	other = connect(t, l)
	otherServer := accept(t, l)
	want := cookie(t, otherServer)
	other.Close()
	otherServer.Close()
	if got := next(t, ends); got.Cookie != want {
		t.Errorf("got the end of %x; only %x has ended", got.Cookie, want)
	}
	heldCookie, err := Cookie(int(duplicate.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	duplicate.Close()
	if got := next(t, ends); got.Cookie != heldCookie {
		t.Errorf("got the end of %x; want %x", got.Cookie, heldCookie)
	}
}

// The process that holds the connection is killed and can tell nobody.
func TestEnds_ComeAfterAKill(t *testing.T) {
	l := listener(t, "tcp", "127.0.0.1:0")
	ends := listenEnds(t, port(l))
	client := connect(t, l)
	server := accept(t, l)
	want := cookie(t, server)
	file, err := server.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "60")
	cmd.ExtraFiles = []*os.File{file}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	file.Close()
	server.Close()
	cmd.Process.Kill()
	cmd.Wait()
	client.Close()
	if got := next(t, ends); got.Cookie != want {
		t.Errorf("got the end of %x; want %x", got.Cookie, want)
	}
}

func TestEnds_HearOnlyTheirPorts(t *testing.T) {
	l, others := listener(t, "tcp", "127.0.0.1:0"), listener(t, "tcp", "127.0.0.1:0")
	ends := listenEnds(t, 1, port(l), 2)
	endOne := func(l net.Listener) uint64 {
		client := connect(t, l)
		server := accept(t, l)
		c := cookie(t, server)
		client.Close()
		server.Close()
		return c
	}
	endOne(others)
	want := endOne(l)
	if got := next(t, ends); got.Cookie != want {
		t.Errorf("got port %d; want %d only", got.Local.Port(), port(l))
	}
	if err := ends.SetPorts(port(others)); err != nil {
		t.Fatal(err)
	}
	endOne(l)
	want = endOne(others)
	if got := next(t, ends); got.Cookie != want {
		t.Errorf("after SetPorts: got port %d; want %d only", got.Local.Port(), port(others))
	}
}

func TestEnds_OverflowIsToldAndTheDumpKnowsWhoLives(t *testing.T) {
	l := listener(t, "tcp", "127.0.0.1:0")
	ends := listenEnds(t, port(l))
	setBuffer(t, ends, 1) // the smallest that the kernel allows
	livingClient := connect(t, l)
	livingServer := accept(t, l)
	living := cookie(t, livingServer)
	// Each client ends with a reset, so that no port is left in TIME_WAIT.
	const flood = 300
	for range flood {
		client := connect(t, l)
		client.(*net.TCPConn).SetLinger(0)
		server := accept(t, l)
		client.Close()
		server.Close()
	}
	eventually.True(t, "the kernel has dropped some", func() bool { return drops(t, ends) > 0 })
	heard := 0
	// Each read fills into, and the last one finds nothing more: epoll would not tell of it.
	for into := make([]Socket, 1); ; {
		n, err := ends.Read(into)
		heard += n
		if errors.Is(err, ErrOverflow) {
			break
		}
		if err != nil || n == 0 {
			t.Fatalf("after %d of %d ends: got %d, %v; want an overflow", heard, flood, n, err)
		}
	}
	if heard >= flood {
		t.Errorf("heard all %d ends in spite of the overflow", heard)
	}
	var alive []uint64
	if err := dial(t).Sockets(port(l), func(s *Socket) { alive = append(alive, s.Cookie) }); err != nil {
		t.Fatal(err)
	}
	if len(alive) != 1 || alive[0] != living {
		t.Errorf("got %x alive; want %x only", alive, living)
	}
	// And it goes on. The flood may overflow once more before there is room.
	setBuffer(t, ends, 1<<20)
	livingClient.Close()
	livingServer.Close()
	for into, found := make([]Socket, 64), false; !found; {
		client := connect(t, l)
		server := accept(t, l)
		want := cookie(t, server)
		client.Close()
		server.Close()
		for !found {
			n, err := read(t, ends, into)
			found = slices.ContainsFunc(into[:n], func(s Socket) bool { return s.Cookie == want })
			if errors.Is(err, ErrOverflow) {
				break
			}
			if err != nil {
				t.Fatalf("after the overflow: %v", err)
			}
		}
	}
}

// drops returns how many messages the kernel has dropped (SO_MEMINFO).
func drops(t testing.TB, e *Ends) uint32 {
	t.Helper()
	var info [9]uint32
	size := uint32(unsafe.Sizeof(info))
	const dropsAt = 8 // SK_MEMINFO_DROPS
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(e.FD()), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return info[dropsAt]
}

func setBuffer(t testing.TB, e *Ends, size int) {
	t.Helper()
	if err := unix.SetsockoptInt(e.FD(), unix.SOL_SOCKET, unix.SO_RCVBUF, size); err != nil {
		t.Fatal(err)
	}
}

func TestEnds_ReadDoesNotWait(t *testing.T) {
	ends := listenEnds(t, 1)
	if n, err := ends.Read(make([]Socket, 1)); n != 0 || err != nil {
		t.Errorf("got %d ends, %v; want none", n, err)
	}
}

// One system call takes many; what does not fit waits.
func TestEnds_ReadTakesAsManyAsFit(t *testing.T) {
	l := listener(t, "tcp", "127.0.0.1:0")
	ends := listenEnds(t, port(l))
	const n = 3*maxDatagrams + 5
	want := map[uint64]bool{}
	for range n {
		client := connect(t, l)
		client.(*net.TCPConn).SetLinger(0)
		server := accept(t, l)
		want[cookie(t, server)] = true
		client.Close()
		server.Close()
	}
	into := make([]Socket, 2*maxDatagrams+1)
	for len(want) > 0 {
		got, err := read(t, ends, into)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range into[:got] {
			if !want[s.Cookie] {
				t.Fatalf("heard of %x twice, or of a stranger", s.Cookie)
			}
			delete(want, s.Cookie)
		}
	}
}

func TestEnds_ReadAllocatesNothing(t *testing.T) {
	l := listener(t, "tcp", "127.0.0.1:0")
	ends := listenEnds(t, port(l))
	const n = 50
	for range n + 1 {
		client := connect(t, l)
		client.(*net.TCPConn).SetLinger(0)
		server := accept(t, l)
		client.Close()
		server.Close()
	}
	into := make([]Socket, 1)
	until := time.Now().Add(10 * time.Second)
	allocs := testing.AllocsPerRun(n, func() {
		for {
			if got, err := ends.Read(into); err != nil || time.Now().After(until) {
				t.Fatalf("heard of no end for ten seconds, or of none at all: %v", err)
			} else if got > 0 {
				return
			}
		}
	})
	if allocs != 0 {
		t.Errorf("got %v allocations an end; want 0", allocs)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(inetRequest(2, 1, 80))
	f.Add(make([]byte, sizeofInetMessage+40))
	f.Fuzz(func(t *testing.T, data []byte) {
		var s Socket
		parseInet(data, &s)
		unixQueue(data)
		c := Conn{seq: 0}
		_, _ = c.answers(data, unix.NLM_F_DUMP, func(b []byte) { parseInet(b, &s) })
	})
}

func BenchmarkConn_TCPQueue(b *testing.B) {
	l := listener(b, "tcp", "127.0.0.1:0")
	c, err := Dial()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.TCPQueue(l.Addr().(*net.TCPAddr).AddrPort()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkConn_Accepted(b *testing.B) {
	l := listener(b, "unix", "@lb-sockdiag-bench")
	client := connect(b, l)
	c, err := Dial()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Accepted(descriptor(b, client)); err != nil {
			b.Fatal(err)
		}
	}
}
