package proxy_test

import (
	"errors"
	"os"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

// TestShortage_OfLbIsNoFaultOfTheBackend: the epoll set takes no more sockets (max_user_watches) when a TCP
// connect is under way. The backend is not blamed, and the shortage is reported.
func TestShortage_OfLbIsNoFaultOfTheBackend(t *testing.T) {
	t.Parallel()
	var reported atomic.Int64
	r := newRig(t, func(s *setup) {
		s.prepare = func(p *proxy.Proxy) {
			p.OnShortage = func(b *backends.Backend, err error) {
				if b.Name != "b0" || !errors.Is(err, unix.ENOSPC) {
					t.Errorf("reported: got %v of %v; want ENOSPC of b0", err, b.Name)
				}
				reported.Add(1)
			}
		}
	}, blackHole(t))
	defer r.proxy.BreakEpoll(unix.EPOLL_CTL_ADD)()
	wantEOF(t, r.dial())
	r.wantTermination("RC")
	b := r.pool.Backends()[0]
	if n := b.ConnectFailed(backends.ConnectSaturated); n != 0 { // counts nothing but tells the streak
		t.Errorf("failures in a row of the backend: got %d; want 0", n)
	}
	if n := reported.Load(); n != 1 || r.proxy.Stats.ConnectShortages.Load() != 1 {
		t.Errorf("shortages: got %d reported, %d counted; want 1, 1", n, r.proxy.Stats.ConnectShortages.Load())
	}
}

// TestKeepalive_OfSessionsThatBeganTogetherIsSpread looks at the sockets of sessions that have lived for a
// while.
func TestKeepalive_OfSessionsThatBeganTogetherIsSpread(t *testing.T) {
	t.Parallel()
	const n = 30
	r := newRig(t, func(s *setup) { s.listener.Keepalive, s.pool.Keepalive = 40*time.Second, 60*time.Second },
		serve(t, tcpSocket, echo).address)
	var clients []conn
	for range n {
		clients = append(clients, r.dial())
	}
	for end, most := range []int{40, 60} {
		seen := map[int]int{}
		eventually(t, "all have times of their own", func() bool {
			clear(seen)
			for _, fds := range r.proxy.SessionFDs() {
				idle, _ := unix.GetsockoptInt(fds[end], unix.IPPROTO_TCP, unix.TCP_KEEPIDLE)
				seen[idle]++
			}
			return len(seen) > n/4
		})
		for idle := range seen {
			if idle < most/2 || idle > most {
				t.Errorf("keepalive of end %d: got %d s; want %d..%d s", end, idle, most/2, most)
			}
		}
	}
	for _, c := range clients {
		c.Close()
	}
}

// TestConnect_SocketThatMeetsItselfIsRefused needs a network namespace of its own, with few local ports.
func TestConnect_SocketThatMeetsItselfIsRefused(t *testing.T) {
	const inside = "LB_TEST_FEW_PORTS"
	if os.Getenv(inside) == "" {
		cmd := exec.Command("unshare", "-n", "sh", "-c", `ip link set lo up && echo "40000 40003" > /proc/sys/net/ipv4/ip_local_port_range && exec "$@"`,
			"sh", os.Args[0], "-test.run=^TestConnect_SocketThatMeetsItselfIsRefused$", "-test.v")
		cmd.Env = append(os.Environ(), inside+"=1")
		out, err := cmd.CombinedOutput()
		if err != nil && strings.Contains(string(out), "unshare") {
			t.Skipf("no network namespace of its own: %s", out)
		}
		if err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		return
	}
	r := newRig(t, func(s *setup) { s.listener.Bind = []string{"127.0.0.1:9000"} }, "127.0.0.1:40002")
	for i := range 40 {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 5})
		unix.Bind(fd, &unix.SockaddrInet4{Port: 20000 + i, Addr: [4]byte{127, 0, 0, 2}})
		if err := unix.Connect(fd, &unix.SockaddrInet4{Port: 9000, Addr: [4]byte{127, 0, 0, 1}}); err != nil {
			t.Fatal(err)
		}
		unix.Write(fd, []byte("hello"))
		var b [5]byte
		if n, _ := unix.Read(fd, b[:]); n > 0 {
			t.Fatalf("connection %d got %q back", i, b[:n])
		}
		unix.Close(fd)
	}
	for _, rec := range r.ended(40) {
		if got := rec.Termination.String(); got != "SC" {
			t.Errorf("termination: got %s; want SC", got)
		}
	}
}
