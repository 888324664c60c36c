//go:build e2e

package e2e

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// runWithoutRing becomes another program for which the kernel opens no io_uring, as under the default seccomp
// filters of container engines.
func runWithoutRing(command []string) error {
	const (
		load  = unix.BPF_LD | unix.BPF_W | unix.BPF_ABS
		equal = unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K
		ret   = unix.BPF_RET | unix.BPF_K
	)
	return becomeFiltered([]unix.SockFilter{ // of struct seccomp_data, nr is at 0
		{Code: load, K: 0},
		{Code: equal, Jf: 1, K: unix.SYS_IO_URING_SETUP},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EPERM)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}, command)
}

// batchedPool returns a config with batching as given and a pool of one checked backend.
func batchedPool(t *testing.T, load *checkedLoad, batching string) lbConfig {
	t.Helper()
	over := socketPath(tempDir(t), "checked")
	startCheckedBackend(t, over, load)
	config := onePool(t, over)
	config.Proxy = fmt.Sprintf("batching = %q\n", batching)
	return config
}

// batching returns what lb status says of it.
func (l *lb) batching(t testing.TB) string {
	t.Helper()
	return l.status(t).Batching
}

// Where the kernel refuses io_uring, "auto" says so in one line of the log, in lb check and in lb status, and
// everything works; an upgrade goes on so. "on" is refused, with the reason and what to do.
func TestBatching_WithoutIOURingAllWorks(t *testing.T) {
	load := newCheckedLoad()
	config := batchedPool(t, load, "auto")
	l := startAs(t, roleNoRing, config)
	load.start(t, checkedKinds, l.addr())
	if got := l.batching(t); !strings.HasPrefix(got, "off (") || !strings.Contains(got, "io_uring") {
		t.Errorf("batching in lb status: got %q; want off, and why", got)
	}
	if n := strings.Count(l.tail(), "io_uring is not available"); n != 1 {
		t.Errorf("lines of the log that say why there are no batches: got %d; want 1\n%s", n, l.tail())
	}
	load.wantExchanges(t, 50)
	l.upgrade(t, "")
	load.wantExchanges(t, 50)
	load.wantAllExchanged(t)

	if code, text := checkAs(t, roleNoRing, config, "check"); code != 0 || !strings.Contains(text, "io_uring is not available") {
		t.Errorf("lb check: got exit code %d and\n%s\nwant 0, and why there are no batches", code, text)
	}
	config.Proxy = "batching = \"on\"\n"
	// lb check may be for another host.
	for command, want := range map[string]int{"check": 0, "run": 1} {
		code, text := checkAs(t, roleNoRing, config, command)
		if code != want || !strings.Contains(text, "kernel.io_uring_disabled") || !strings.Contains(text, `"auto"`) {
			t.Errorf("lb %s with batching on: got exit code %d and\n%s\nwant %d, with the reason and what to do", command, code, text, want)
		}
	}
}

// wantExchanges waits until so many exchanges more have gone through.
func (d *checkedLoad) wantExchanges(t testing.TB, n int64) {
	t.Helper()
	before := d.counts[exchanged].Load()
	eventually(t, 3*patience, func() error {
		if got := d.counts[exchanged].Load() - before; got < n {
			return fmt.Errorf("exchanges: got %d; want %d", got, n)
		}
		return nil
	})
}

// Each upgrade changes batching, under a load of which every byte is checked. LB_E2E_UPGRADES is how many
// there are.
func TestBatching_UpgradesAlternateOnAndOff(t *testing.T) {
	upgrades := 4
	if text := os.Getenv("LB_E2E_UPGRADES"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil {
			t.Fatal(err)
		}
		upgrades = n
	}
	load := newCheckedLoad()
	config := batchedPool(t, load, "auto")
	l := startLB(t, config)
	if got := l.batching(t); got != "on" {
		t.Skipf("batching on this machine: %s", got)
	}
	load.start(t, checkedKinds, l.addr(), l.addr(), l.addr())
	var longest [2]time.Duration
	for i := range upgrades {
		want := []string{"off", "on"}[i%2]
		config.Proxy = fmt.Sprintf("batching = %q\n", want)
		if err := os.WriteFile(l.file, []byte(config.toml(l.socket)), 0o644); err != nil {
			t.Fatal(err)
		}
		if r := run(t, patience, nil, lbBinary(t), "reload", "-s", l.socket); r.code != 0 || !strings.Contains(r.stdout+r.stderr, "lb upgrade") {
			t.Fatalf("lb reload: got exit code %d, %s%s; want 0, and that it takes an upgrade", r.code, r.stdout, r.stderr)
		}
		load.wantExchanges(t, 30)
		took := time.Duration(l.upgrade(t, "").Standstill * float64(time.Second))
		longest[i%2] = max(longest[i%2], took)
		if got := l.batching(t); got != want {
			t.Errorf("batching after upgrade %d: got %q; want %q", i+1, got, want)
		}
	}
	load.wantExchanges(t, 30)
	load.wantAllExchanged(t)
	t.Logf("longest standstill: %v when batching went off, %v when it went on", longest[0], longest[1])
}
