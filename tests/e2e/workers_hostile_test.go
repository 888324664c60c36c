//go:build e2e

package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Who may reach the notify socket and is no worker can say what it likes, as often as it likes: it is
// counted.
func TestWorkers_HostileMessagesChangeNothing(t *testing.T) {
	const (
		during = 4 * time.Second
		rate   = 100_000 // a second
	)
	l := startLB(t, workersPool(t, "type = \"notify\"\ninterval = \"500ms\"\n", fmt.Sprintf("command = [%q]\ncount = 2\n", sampleWorker(t))))
	before := l.waitUp(t, 2)
	fds := l.fds(t)
	notify := filepath.Join(filepath.Dir(l.socket), "workers", "app", "notify")
	messages := [][]byte{
		[]byte("STOPPING=1\nWATCHDOG=trigger\nREADY=1\nSTATUS=hacked"),
		[]byte(fmt.Sprintf("MAINPID=%d\nSTOPPING=1", before.Slots[0].PID)),
		[]byte("\xff\xfe garbage"),
		{},
		[]byte("WATCHDOG_USEC=99999999999999999999\n"),
		[]byte(strings.Repeat("STATUS=x\n", 400)),
	}
	load := startRequests(t, l.addr(), 2, false)
	var offered, sent atomic.Int64
	var enemies sync.WaitGroup
	cpu := l.cpuTime(t)
	began := time.Now()
	for i := range 4 { // two that wait for room in the socket's queue, and two that do not
		flags := unix.MSG_NOSIGNAL
		if i%2 == 1 {
			flags |= unix.MSG_DONTWAIT
		}
		enemies.Go(func() {
			fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
			if err == nil {
				defer unix.Close(fd)
				err = unix.Connect(fd, &unix.SockaddrUnix{Name: notify})
			}
			long := []byte(strings.Repeat("x", 64<<10))
			for n := 0; err == nil; n++ {
				due := began.Add(time.Duration(n) * 2 * time.Second / rate)
				if n%100 == 0 {
					if time.Since(began) > during {
						return
					}
					time.Sleep(time.Until(due)) // the rate
				}
				m := messages[n%len(messages)]
				var rights []byte
				switch {
				case n%1000 == i:
					m = long
				case n%1000 == 500:
					rights = unix.UnixRights(fd, fd, fd)
				}
				offered.Add(1)
				if err = unix.Sendmsg(fd, m, rights, nil, flags); err == nil {
					sent.Add(1)
				} else if errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.ENOBUFS) || errors.Is(err, unix.EINTR) {
					err = nil
				}
			}
			t.Errorf("cannot send: %v", err)
		})
	}
	enemies.Wait()
	took := time.Since(began)
	cpu = l.cpuTime(t) - cpu
	second := func(n *atomic.Int64) float64 { return float64(n.Load()) / took.Seconds() }
	t.Logf("%.0f messages a second, of which the kernel took %.0f; lb uses %.0f %% of a CPU", second(&offered), second(&sent), 100*cpu.Seconds()/took.Seconds())
	if sent.Load() < 10_000 {
		t.Errorf("messages: got %d taken; want many", sent.Load())
	}
	load.wantNoFailure(t)
	var counts struct{ Notifications map[string]uint64 }
	eventually(t, patience, func() error {
		if err := json.Unmarshal([]byte(l.mustCommand(t, "workers", "app", "--json").stdout), &counts); err != nil {
			return err
		}
		n := counts.Notifications
		if got := n["unknown_sender"] + n["garbage"] + n["too_long"]; got != uint64(sent.Load()) {
			return fmt.Errorf("counted: got %v; want all %d", n, sent.Load())
		}
		return nil
	})
	t.Logf("counted: %v", counts.Notifications)
	for _, kind := range []string{"unknown_sender", "garbage", "too_long", "taken"} {
		if counts.Notifications[kind] == 0 {
			t.Errorf("counted: got none as %s; want some", kind)
		}
	}
	after := l.waitUp(t, 2)
	if !slices.Equal(after.pids(), before.pids()) || after.Slots[0].Restarts != 0 {
		t.Errorf("workers: got %+v; want them as before, %+v", after, before)
	}
	if events := l.mustCommand(t, "events").stdout; strings.Contains(events, "down") || strings.Contains(events, "STOPPING") {
		t.Errorf("events: got\n%s\nwant no worker down", events)
	}
	if status := l.mustCommand(t, "workers", "app", "--json").stdout; strings.Contains(status, "hacked") {
		t.Errorf("workers: got\n%s\nwant no word of a stranger", status)
	}
	eventually(t, patience, func() error {
		if n := l.fds(t); n > fds+2 {
			return fmt.Errorf("descriptors: got %d; want %d as before", n, fds)
		}
		return nil
	})
}
