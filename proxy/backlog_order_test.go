package proxy_test

import (
	"encoding/binary"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
)

// TestBacklog_WaitersAreServedInOrderAndCostNothing: of a hundred clients one tries, and each has its turn.
func TestBacklog_WaitersAreServedInOrderAndCostNothing(t *testing.T) {
	t.Parallel()
	const clients = 100
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	var tries atomic.Int64
	r := newRig(t, func(s *setup) {
		s.pool.ConnectTimeout = time.Minute
		s.onFailed = func(backends.ConnectError, uint32) { tries.Add(1) }
	}, "unix:"+path)
	var all []conn
	for i := range clients + 1 { // the first has the only place in the backlog
		c := r.dial()
		send(t, c, number(i))
		all = append(all, c)
		eventually(t, "it is connected, or waits", func() bool {
			return r.ln.Counters.Connections.Load() == 1 && r.proxy.Backlogged() == i
		})
	}
	began := time.Now()
	before := tries.Load()
	time.Sleep(200 * time.Millisecond) // what they cost meanwhile is what is tested
	if n, most := tries.Load()-before, int64(time.Since(began)/(2*time.Millisecond))+1; n > most {
		t.Errorf("tries of %d clients in %v: got %d; want at most %d", clients, time.Since(began), n, most)
	}
	reset(all[40]) // one leaves
	eventually(t, "it has left", func() bool { return r.proxy.Backlogged() == clients-1 })
	last := -1
	for range clients {
		c, _, err := unix.Accept(fd)
		if err != nil {
			t.Fatal(err)
		}
		var b [4]byte
		if !readRaw(c, b[:], 4) {
			t.Fatal("a client's number did not come")
		}
		if n := int(binary.BigEndian.Uint32(b[:])); n <= last {
			t.Errorf("client %d was served after client %d", n, last)
		} else {
			last = n
		}
		unix.Close(c)
	}
	if n := r.proxy.Backlogged(); n != 0 {
		t.Errorf("clients that still wait: got %d; want 0", n)
	}
	for _, c := range all {
		c.Close()
	}
}

func TestFreeze_ThoseWhoWaitForABacklogKeepTheirOrder(t *testing.T) {
	const clients = 20
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	r := newRig(t, func(s *setup) { s.pool.ConnectTimeout = time.Minute }, "unix:"+path)
	for i := range clients + 1 {
		c := r.dial()
		send(t, c, number(i))
		eventually(t, "it is connected, or waits", func() bool {
			return r.ln.Counters.Connections.Load() == 1 && r.proxy.Backlogged() == i
		})
	}
	r.handOver()
	for i := range clients + 1 {
		c, _, err := unix.Accept(fd)
		if err != nil {
			t.Fatal(err)
		}
		var b [4]byte
		if !readRaw(c, b[:], 4) {
			t.Fatal("a client's number did not come")
		}
		if n := int(binary.BigEndian.Uint32(b[:])); n != i {
			t.Errorf("served: got client %d; want %d", n, i)
		}
		unix.Close(c)
	}
}
