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

// next reads one end. The test fails after ten seconds without one.
func next(t testing.TB, e *Ends) Socket {
	t.Helper()
	timer := time.AfterFunc(10*time.Second, func() { e.Close() })
	defer timer.Stop()
	var got [1]Socket
	if _, err := e.Read(got[:]); err != nil {
		t.Fatal(err)
	}
	return got[0]
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
	timer := time.AfterFunc(10*time.Second, func() { ends.Close() })
	defer timer.Stop()
	heard := 0
	for into := make([]Socket, 64); ; {
		n, err := ends.Read(into)
		heard += n
		if errors.Is(err, ErrOverflow) {
			break
		}
		if err != nil {
			t.Fatalf("after %d of %d ends: %v; want an overflow", heard, flood, err)
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
			n, err := ends.Read(into)
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
	_, _, errno := unix.Syscall6(unix.SYS_GETSOCKOPT, uintptr(descriptor(t, e.file)), unix.SOL_SOCKET, unix.SO_MEMINFO,
		uintptr(unsafe.Pointer(&info)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return info[dropsAt]
}

func setBuffer(t testing.TB, e *Ends, size int) {
	t.Helper()
	if err := unix.SetsockoptInt(descriptor(t, e.file), unix.SOL_SOCKET, unix.SO_RCVBUF, size); err != nil {
		t.Fatal(err)
	}
}

func TestEnds_CloseEndsARead(t *testing.T) {
	ends := listenEnds(t, 1)
	got := make(chan error)
	go func() {
		_, err := ends.Read(make([]Socket, 1))
		got <- err
	}()
	ends.Close()
	if err := <-got; !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v; want os.ErrClosed", err)
	}
}

// TestEnds_ReadThatCannotWaitIsNotClosed: whoever reads must know whether to go on.
func TestEnds_ReadThatCannotWaitIsNotClosed(t *testing.T) {
	ends := listenEnds(t, 1)
	fd, err := unix.Dup(int(ends.file.Fd()))
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.SetNonblock(fd, false); err != nil { // so that the runtime does not watch it
		t.Fatal(err)
	}
	unwatched := &Ends{file: os.NewFile(uintptr(fd), "netlink"), buf: ends.buf}
	defer unwatched.Close()
	unwatched.readAll = unwatched.readFrom
	if err := unix.SetNonblock(fd, true); err != nil {
		t.Fatal(err)
	}
	if unwatched.raw, err = unwatched.file.SyscallConn(); err != nil {
		t.Fatal(err)
	}
	if _, err := unwatched.Read(make([]Socket, 1)); err == nil || errors.Is(err, os.ErrClosed) {
		t.Errorf("a read with nothing to read: got %v; want another error than os.ErrClosed", err)
	}
	unwatched.Close()
	if _, err := unwatched.Read(make([]Socket, 1)); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: got %v; want os.ErrClosed", err)
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
	timer := time.AfterFunc(10*time.Second, func() { ends.Close() })
	defer timer.Stop()
	allocs := testing.AllocsPerRun(n, func() {
		if _, err := ends.Read(into); err != nil {
			t.Error(err)
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
