package sockdiag

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

const roleEnv = "SOCKDIAG_TEST_ROLE"

// TestMain starts the program of a test that runs as another user or in a sandbox.
func TestMain(m *testing.M) {
	switch os.Getenv(roleEnv) {
	case "":
		os.Exit(m.Run())
	case "ends":
		exitWith(childHearsEnds())
	case "refused":
		exitWith(childIsRefused())
	}
}

func exitWith(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

func dial(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// listener opens a listening socket that nobody accepts from, unless the test does.
func listener(t testing.TB, network, address string) net.Listener {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func connect(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := net.Dial(l.Addr().Network(), l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func accept(t testing.TB, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func descriptor(t testing.TB, c any) int {
	t.Helper()
	raw, err := c.(syscall.Conn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var got int
	if err := raw.Control(func(fd uintptr) { got = int(fd) }); err != nil {
		t.Fatal(err)
	}
	return got
}

func cookie(t testing.TB, c net.Conn) uint64 {
	t.Helper()
	got, err := Cookie(descriptor(t, c))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func port(l net.Listener) uint16 { return l.Addr().(*net.TCPAddr).AddrPort().Port() }

// networks are the listeners that the tests of TCP go through: network and address.
var networks = [][2]string{{"tcp4", "127.0.0.1:0"}, {"tcp6", "[::1]:0"}, {"tcp", "[::]:0"}}

func TestQueue_OfUnixListenerCountsWhoWaits(t *testing.T) {
	c := dial(t)
	dir := t.TempDir()
	for _, path := range []string{filepath.Join(dir, "s.sock"), "@lb-sockdiag-" + filepath.Base(dir)} {
		l := listener(t, "unix", path)
		inode, err := c.UnixListener(path)
		if err != nil {
			t.Fatal(err)
		}
		var st unix.Stat_t
		if err := unix.Fstat(descriptor(t, l), &st); err != nil {
			t.Fatal(err)
		}
		if uint64(inode) != st.Ino {
			t.Errorf("%s: inode %d; fstat says %d", path, inode, st.Ino)
		}
		for waiting := range 4 {
			if q, err := c.UnixQueue(inode); err != nil || q.Waiting != waiting || q.Limit < 4 {
				t.Errorf("%s: got %+v, %v; want %d waiting", path, q, err, waiting)
			}
			connect(t, l)
		}
		accept(t, l)
		if q, err := c.UnixQueue(inode); err != nil || q.Waiting != 3 {
			t.Errorf("%s after an accept: got %+v, %v; want 3 waiting", path, q, err)
		}
	}
}

// The length of a queue that is always full never changes; who stands in it does.
func TestUnixWaiting_SeesAFullQueueMove(t *testing.T) {
	c := dial(t)
	path := filepath.Join(t.TempDir(), "s")
	l := listener(t, "unix", path)
	inode, err := c.UnixListener(path)
	if err != nil {
		t.Fatal(err)
	}
	waiting := func() Waiting {
		t.Helper()
		w, err := c.UnixWaiting(inode)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	first := connect(t, l)
	connect(t, l)
	before := waiting()
	var st unix.Stat_t
	if err := unix.Fstat(descriptor(t, first), &st); err != nil {
		t.Fatal(err)
	}
	if len(before.Clients) != 2 || uint64(before.Clients[0]) != st.Ino {
		t.Errorf("got clients %d; want two, the first %d", before.Clients, st.Ino)
	}
	connect(t, l)
	first.Close()
	if now := waiting(); now.MovedSince(before) || now.Clients[0] != 0 {
		t.Errorf("after one came and one closed: got %+v since %+v; want no move, and 0 for the closed one", now, before)
	}
	before = waiting()
	accept(t, l)
	connect(t, l)
	if now := waiting(); !now.MovedSince(before) || now.Waiting != before.Waiting {
		t.Errorf("after an accept and a newcomer: got %+v since %+v; want a move and no other length", now, before)
	}
	l.Close()
	if _, err := c.UnixWaiting(inode); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a closed listener: got %v; want ErrNotFound", err)
	}
}

// More clients than one message holds: the length is known, and that it shrinks.
func TestUnixWaiting_OfVeryManyClientsKnowsTheLength(t *testing.T) {
	c := dial(t)
	path := filepath.Join(t.TempDir(), "s")
	l := listener(t, "unix", path)
	inode, err := c.UnixListener(path)
	if err != nil {
		t.Fatal(err)
	}
	const many = 1500
	for range many {
		connect(t, l)
	}
	before, err := c.UnixWaiting(inode)
	if err != nil || before.Waiting != many {
		t.Fatalf("got %d waiting, %v; want %d", before.Waiting, err, many)
	}
	accept(t, l)
	if now, err := c.UnixWaiting(inode); err != nil || !now.MovedSince(before) {
		t.Errorf("after an accept: got %d waiting, %v; want a move", now.Waiting, err)
	}
}

func TestUnixQueues_KnowsAllAtOnce(t *testing.T) {
	c := dial(t)
	path := filepath.Join(t.TempDir(), "s")
	abstract := "@lb-sockdiag-all-" + strconv.Itoa(os.Getpid())
	file, name := listener(t, "unix", path), listener(t, "unix", abstract)
	connect(t, file)
	connect(t, name)
	connect(t, name)
	all, err := c.UnixQueues()
	if err != nil {
		t.Fatal(err)
	}
	if q, ok := all.At(path); !ok || q.Waiting != 1 {
		t.Errorf("%s: got %+v, %v; want 1 waiting", path, q, ok)
	}
	if q, ok := all.At(abstract); !ok || q.Waiting != 2 {
		t.Errorf("%s: got %+v, %v; want 2 waiting", abstract, q, ok)
	}
	if q, ok := all.At(path + ".none"); ok {
		t.Errorf("of no socket: got %+v", q)
	}
}

// A file that replaced another one is another listener, and a name that is a link is the same one.
func TestUnixListener_KnowsTheFileNotTheName(t *testing.T) {
	c := dial(t)
	dir := t.TempDir()
	path, link := filepath.Join(dir, "s.sock"), filepath.Join(dir, "link")
	old := listener(t, "unix", path)
	old.(*net.UnixListener).SetUnlinkOnClose(false)
	first, err := c.UnixListener(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path, link); err != nil {
		t.Fatal(err)
	}
	listener(t, "unix", path)
	second, err := c.UnixListener(path)
	if err != nil || second == first {
		t.Errorf("got inode %d, %v of the new listener; the old one has %d", second, err, first)
	}
	if got, err := c.UnixListener(link); err != nil || got != first {
		t.Errorf("got inode %d, %v of the renamed one; want %d", got, err, first)
	}
}

func TestUnixQueue_SaysNotFound(t *testing.T) {
	c := dial(t)
	path := filepath.Join(t.TempDir(), "s.sock")
	l := listener(t, "unix", path)
	inode, err := c.UnixListener(path)
	if err != nil {
		t.Fatal(err)
	}
	l.(*net.UnixListener).SetUnlinkOnClose(false)
	l.Close()
	if _, err := c.UnixQueue(inode); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a closed listener: got %v; want ErrNotFound", err)
	}
	if _, err := c.UnixListener(path); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a file without listener: got %v; want ErrNotFound", err)
	}
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	var st unix.Stat_t
	if err := unix.Fstat(pair[0], &st); err != nil {
		t.Fatal(err)
	}
	if _, err := c.UnixQueue(uint32(st.Ino)); !errors.Is(err, ErrNotFound) {
		t.Errorf("of a socket that does not listen: got %v; want ErrNotFound", err)
	}
}

func TestQueue_OfTCPListenerCountsWhoWaits(t *testing.T) {
	c := dial(t)
	for _, n := range networks {
		l := listener(t, n[0], n[1])
		addresses := []netip.AddrPort{netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port(l))}
		switch n[0] {
		case "tcp6":
			addresses[0] = netip.AddrPortFrom(netip.IPv6Loopback(), port(l))
		case "tcp":
			addresses = append(addresses, netip.AddrPortFrom(netip.IPv6Loopback(), port(l)))
		}
		for waiting := range 3 {
			for _, address := range addresses {
				if q, err := c.TCPQueue(address); err != nil || q.Waiting != waiting || q.Limit < 3 {
					t.Errorf("%v at %v: got %+v, %v; want %d waiting", l.Addr(), address, q, err, waiting)
				}
			}
			connect(t, l)
		}
		l.Close()
		if _, err := c.TCPQueue(addresses[0]); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v closed: got %v; want ErrNotFound", l.Addr(), err)
		}
	}
}

func TestAccepted_TellsOneConnectionFromOthers(t *testing.T) {
	c := dial(t)
	all := append([][2]string{{"unix", filepath.Join(t.TempDir(), "s.sock")}}, networks...)
	for _, n := range all {
		l := listener(t, n[0], n[1])
		first, second := connect(t, l), connect(t, l)
		want := func(when string, conn net.Conn, accepted bool) {
			t.Helper()
			if got, err := c.Accepted(descriptor(t, conn)); err != nil || got != accepted {
				t.Errorf("%v %s: got %v, %v; want %v", l.Addr(), when, got, err, accepted)
			}
		}
		want("before", first, false)
		accept(t, l)
		want("first, after one accept", first, true)
		want("second, after one accept", second, false)
		accept(t, l)
		want("second, after two", second, true)
		connect(t, l)
		want("second, while another waits", second, true)
	}
}

func TestSockets_ListsPortWithCookiesAndBytes(t *testing.T) {
	c := dial(t)
	for _, n := range networks {
		l := listener(t, n[0], n[1])
		client := connect(t, l)
		server := accept(t, l)
		exchange(t, client, server, 77, 1000)
		other := listener(t, n[0], n[1])
		connect(t, other)
		seen := 0
		err := c.Sockets(port(l), func(s *Socket) {
			seen++
			if s.Cookie != cookie(t, server) || s.State != Established || s.Received != 77 || s.Acked < 1000 || s.Acked > 1001 {
				t.Errorf("%v: got %+v; want 77 received, 1000 acked, cookie %x", l.Addr(), *s, cookie(t, server))
			}
			if s.Remote.Port() != client.LocalAddr().(*net.TCPAddr).AddrPort().Port() {
				t.Errorf("%v: got peer %v; want %v", l.Addr(), s.Remote, client.LocalAddr())
			}
		})
		if err != nil || seen != 1 {
			t.Errorf("%v: saw %d sockets, %v; want 1", l.Addr(), seen, err)
		}
	}
}

// exchange sends and receives, and returns when all is acknowledged.
func exchange(t testing.TB, client, server net.Conn, up, down int) {
	t.Helper()
	for _, way := range []struct {
		from, to net.Conn
		n        int
	}{{client, server, up}, {server, client, down}} {
		if _, err := way.from.Write(make([]byte, way.n)); err != nil {
			t.Fatal(err)
		}
		for got := 0; got < way.n; {
			n, err := way.to.Read(make([]byte, way.n))
			if err != nil {
				t.Fatal(err)
			}
			got += n
		}
	}
	if _, err := client.Write([]byte{}); err != nil {
		t.Fatal(err)
	}
}

func TestDestroy_EndsOneSocketOnly(t *testing.T) {
	c := dial(t)
	for _, n := range networks {
		l := listener(t, n[0], n[1])
		client, kept := connect(t, l), connect(t, l)
		server, keptServer := accept(t, l), accept(t, l)
		if client.LocalAddr().String() != server.RemoteAddr().String() {
			server, keptServer = keptServer, server
		}
		local, remote := addresses(t, server)
		if err := c.Destroy(local, remote, cookie(t, keptServer)); !errors.Is(err, ErrNotFound) {
			t.Errorf("%v with another's cookie: got %v; want ErrNotFound", l.Addr(), err)
		}
		err := c.Destroy(local, remote, cookie(t, server))
		if os.Getuid() != 0 {
			if !errors.Is(err, unix.EPERM) {
				t.Errorf("as a user: got %v; want EPERM", err)
			}
			continue
		}
		if errors.Is(err, errors.ErrUnsupported) {
			t.Skip("this kernel has no SOCK_DESTROY")
		}
		if err != nil {
			t.Fatalf("%v: %v", l.Addr(), err)
		}
		if _, err := client.Read(make([]byte, 1)); !errors.Is(err, unix.ECONNRESET) {
			t.Errorf("%v: client got %v; want a reset", l.Addr(), err)
		}
		exchange(t, kept, keptServer, 1, 1)
	}
}

func addresses(t testing.TB, c net.Conn) (local, remote netip.AddrPort) {
	t.Helper()
	self, err := unix.Getsockname(descriptor(t, c))
	if err != nil {
		t.Fatal(err)
	}
	peer, err := unix.Getpeername(descriptor(t, c))
	if err != nil {
		t.Fatal(err)
	}
	return addrPort(self), addrPort(peer)
}

func TestConn_ClosedSaysSo(t *testing.T) {
	c := dial(t)
	c.Close()
	if _, err := c.UnixQueue(1); !errors.Is(err, os.ErrClosed) {
		t.Errorf("got %v; want os.ErrClosed", err)
	}
}

// asNobody runs this test's program in another role as the user 65534.
func asNobody(t *testing.T, role string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can become another user")
	}
	program := filepath.Join(t.TempDir(), "test")
	data, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, data, 0o755); err != nil {
		t.Fatal(err)
	}
	for dir := filepath.Dir(program); dir != os.TempDir() && dir != "/"; dir = filepath.Dir(dir) {
		if err := os.Chmod(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	cmd := exec.Command(program)
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("as nobody: %v: %s", err, out)
	}
}

func TestEnds_AnyUserHears(t *testing.T) { asNobody(t, "ends") }

// childHearsEnds opens and closes a connection, and asks for all that a user may ask for.
func childHearsEnds() error {
	if os.Getuid() == 0 {
		return errors.New("still root")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	ends, err := ListenEnds(port(l))
	if err != nil {
		return err
	}
	conn, err := Dial()
	if err != nil {
		return err
	}
	client, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		return err
	}
	queue, err := conn.TCPQueue(l.Addr().(*net.TCPAddr).AddrPort())
	if err != nil || queue.Waiting != 1 {
		return fmt.Errorf("queue %+v, %v; want 1 waiting", queue, err)
	}
	server, err := l.Accept()
	if err != nil {
		return err
	}
	seen := 0
	if err := conn.Sockets(port(l), func(*Socket) { seen++ }); err != nil || seen != 1 {
		return fmt.Errorf("listed %d sockets, %v; want 1", seen, err)
	}
	local, remote := server.LocalAddr().(*net.TCPAddr).AddrPort(), server.RemoteAddr().(*net.TCPAddr).AddrPort()
	if err := conn.Destroy(local, remote, anyCookie); !errors.Is(err, unix.EPERM) {
		return fmt.Errorf("destroy: %v; want EPERM", err)
	}
	client.Close()
	server.Close()
	if err := await(ends); err != nil {
		return err
	}
	var got [1]Socket
	_, err = ends.Read(got[:])
	return err
}

func TestDial_SandboxWithoutNetlinkSaysUnavailable(t *testing.T) {
	for _, errno := range []unix.Errno{unix.EPERM, unix.EAFNOSUPPORT, unix.EPROTONOSUPPORT} {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), roleEnv+"=refused", fmt.Sprintf("ERRNO=%d", errno))
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("%v: %v: %s", errno, err, out)
		}
	}
}

// childIsRefused takes netlink away from itself with a seccomp filter, as containers do.
func childIsRefused() error {
	var errno uint32
	if _, err := fmt.Sscan(os.Getenv("ERRNO"), &errno); err != nil {
		return err
	}
	const (
		nrAt, arg0At = 0, 16 // struct seccomp_data
		allow        = 0x7fff0000
		fail         = 0x00050000
	)
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: nrAt},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 3, K: unix.SYS_SOCKET},
		{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: arg0At},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: unix.AF_NETLINK},
		{Code: unix.BPF_RET | unix.BPF_K, K: fail | errno},
		{Code: unix.BPF_RET | unix.BPF_K, K: allow},
	}
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return err
	}
	filter := unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}
	const setFilter, allThreads = 1, 1
	if _, _, e := unix.Syscall(unix.SYS_SECCOMP, setFilter, allThreads, uintptr(unsafe.Pointer(&filter))); e != 0 {
		return fmt.Errorf("seccomp: %w", e)
	}
	if _, err := Dial(); !errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.Errno(errno)) {
		return fmt.Errorf("Dial: got %w; want ErrUnavailable and %v", err, unix.Errno(errno))
	}
	if _, err := ListenEnds(); !errors.Is(err, ErrUnavailable) || !errors.Is(err, unix.Errno(errno)) {
		return fmt.Errorf("ListenEnds: got %w; want ErrUnavailable and %v", err, unix.Errno(errno))
	}
	return nil
}
