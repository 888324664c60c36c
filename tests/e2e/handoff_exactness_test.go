//go:build e2e

package e2e

import (
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// askAll asks on each connection, all at the same time, and returns how many were answered, by who answered.
func askAll(t testing.TB, conns []net.Conn) map[string]int {
	t.Helper()
	who, errs := make([]string, len(conns)), make([]error, len(conns))
	var all sync.WaitGroup
	for i, conn := range conns {
		all.Go(func() { who[i], errs[i] = askOn(conn) })
	}
	all.Wait()
	counts := map[string]int{}
	for i := range conns {
		if errs[i] != nil {
			t.Fatalf("connection %d: got %v; want an answer", i, errs[i])
		}
		counts[who[i]]++
	}
	return counts
}

// wantHanded opens 400 connections at once, and wants each worker to have the given number of them, by its
// own answers and by what lb counts.
func wantHanded(t testing.TB, l *lb, want map[string]int) []net.Conn {
	t.Helper()
	conns := dialAll(t, l.addr(), 400)
	got := askAll(t, conns)
	s := l.waitActive(t, 400)
	for _, w := range l.workers(t).Slots {
		name := "w" + strconv.Itoa(w.Slot)
		if got[name] != want[name] {
			t.Errorf("connections that %s has taken: got %d; want %d", name, got[name], want[name])
		}
		if b := s.backend(t, w.Backend); b.Active != want[name] {
			t.Errorf("sessions of %s: got %d; want %d", name, b.Active, want[name])
		}
	}
	return conns
}

func TestHandOff_IsExact(t *testing.T) {
	eachMode(t, func(t *testing.T, mode string) {
		l := startLB(t, handoffPool(t, mode, `handoff_timeout = "20s"`, takers(t, mode, "")+"count = 8\n"))
		l.waitUp(t, 8)
		even := map[string]int{}
		for i := range 8 {
			even["w"+strconv.Itoa(i)] = 50
		}
		for _, conn := range wantHanded(t, l, even) {
			conn.Close()
		}
		l.waitReleased(t)

		l.mustCommand(t, "scale", "app", "2")
		l.mustCommand(t, "weight", "app/"+l.waitUp(t, 2).Slots[1].Backend, "300")
		for _, conn := range wantHanded(t, l, map[string]int{"w0": 100, "w1": 300}) {
			conn.Close()
		}
		l.waitReleased(t)
	})
}

// netlinkDrops returns how many messages the kernel has dropped that were for the process.
func netlinkDrops(t testing.TB, p *process) (drops int) {
	t.Helper()
	held := map[string]bool{}
	dir := fmt.Sprintf("/proc/%d/fd/", p.pid())
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		link, _ := os.Readlink(dir + fd.Name())
		held[strings.TrimSuffix(strings.TrimPrefix(link, "socket:["), "]")] = true
	}
	for line := range strings.Lines(readFile(t, "/proc/net/netlink")) {
		// sk Eth Pid Groups Rmem Wmem Dump Locks Drops Inode
		if f := strings.Fields(line); len(f) == 10 && held[f[9]] {
			n, _ := strconv.Atoi(f[8])
			drops += n
		}
	}
	return drops
}

// endSockets has n TCP sockets of this process end that have the given local port.
func endSockets(t testing.TB, port string, n int) {
	t.Helper()
	number, _ := strconv.Atoi(port)
	for range n {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		if err := unix.Bind(fd, &unix.SockaddrInet4{Port: number, Addr: [4]byte{127, 0, 0, 9}}); err != nil {
			t.Fatal(err)
		}
		unix.Close(fd)
	}
}

// The kernel tells lb of each connection that ends. While lb is stopped, connections of somebody else at the
// same port number, which lb hears of too, end until there is no room for more. So lb hears nothing of the
// ends of its own.
func TestHandOff_CountsAreExactAfterAFloodOfEnds(t *testing.T) {
	l := startLB(t, handoffPool(t, "lb", "", takers(t, "lb", "")+"count = 2\n"))
	l.waitUp(t, 2)
	conns := wantHanded(t, l, map[string]int{"w0": 200, "w1": 200})
	_, port, _ := net.SplitHostPort(l.addr())
	l.signal(t, syscall.SIGSTOP)
	for i := 0; i < 100_000 && netlinkDrops(t, l.process) == 0; i++ {
		endSockets(t, port, 200)
	}
	if netlinkDrops(t, l.process) == 0 {
		t.Fatal("the flood: got none of its messages dropped; want some")
	}
	for _, conn := range conns[:300] {
		conn.Close()
	}
	l.signal(t, syscall.SIGCONT)
	l.waitActive(t, 100)
	if lost := l.counters(t)["lb_handoff_ends_lost_total"]; lost == 0 {
		t.Error("lb_handoff_ends_lost_total: got 0; want more")
	}
	askAll(t, conns[300:])
	for _, conn := range conns[300:] {
		conn.Close()
	}
	l.waitReleased(t)
}
