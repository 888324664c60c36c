package cli

import (
	"bytes"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

var noon = time.Date(2026, 9, 21, 12, 0, 0, 0, time.UTC)

func ago(d time.Duration) time.Time { return noon.Add(-d) }

// testStatus has a backend in each state that looks different.
func testStatus() *api.Status {
	rate := 123.4
	return &api.Status{
		ProcessStatus: api.ProcessStatus{Version: "1.2.3", PID: 42, Started: ago(76 * time.Hour), Sessions: 12, MaxSessions: 32000},
		Listeners: []api.ListenerStatus{
			{Name: "web", Addresses: []string{"127.0.0.1:8080", "[::1]:8080"}, Pool: "app", Active: 12, MaxConns: 100, Connections: 1234, Rate: new(float64), BytesIn: 1500, BytesOut: 3 << 30},
			{Name: "ab", Split: map[string]int{"green": 10, "blue": 90}},
		},
		Pools: []api.PoolStatus{
			{Name: "app", Balance: "leastconn", Active: 12, Selectable: 1, Queue: api.QueueStatus{Length: 3, Size: 1024, OldestWait: 2.5}, Backends: []api.BackendStatus{
				{
					Name: "w1", Admin: "ready", Health: "up", Since: ago(2 * time.Hour), Selectable: true, Weight: 50, ConfiguredWeight: 100, Share: 1, Rate: &rate,
					Active: 8, MaxConns: 64, Connections: 1000, FirstByte: &api.Latency{Count: 9, P50: 80.6e-6, P99: 1.234e-3},
					LastProbe: &api.ProbeStatus{Time: ago(time.Second), OK: true, Duration: 0.0003},
				},
				{
					Name: "w2", Admin: "ready", Health: "down", Since: ago(12 * time.Second), Reason: "3 probes failed: refused", Weight: 100, ConfiguredWeight: 100,
					Active: 1, Connections: 200, ConnectErrors: map[string]uint64{"refused": 2, "timeout": 1},
					LastProbe: &api.ProbeStatus{Time: ago(time.Second), Error: "refused"},
				},
				{Name: "w3", Admin: "drain", Health: "up", Since: ago(61 * time.Second), Reason: "by root", Weight: 1000, ConfiguredWeight: 1000, Active: 3},
				{Name: "w4", Admin: "maint", Health: "down", Since: ago(0), Weight: 1, ConfiguredWeight: 1, Backup: true},
				{Name: "w5", Admin: "ready", Health: "starting", Since: ago(0), Weight: 1, ConfiguredWeight: 1, LastProbe: &api.ProbeStatus{Time: noon, Error: "refused"}},
			}},
			{Name: "empty", Balance: "leastconn"},
		},
	}
}

func TestStatus_ReadsAtAGlance(t *testing.T) {
	want := strings.TrimPrefix(`
lb 1.2.3, pid 42, up 3d4h, 12 of 32000 sessions

LISTENER  ADDRESSES                  POOL              ACTIVE   RATE  CONNS      IN     OUT
web       127.0.0.1:8080 [::1]:8080  app               12/100  0.0/s   1234  1.5KiB  3.0GiB
ab                                   blue=90 green=10       0      -      0      0B      0B

pool app, leastconn: 1 of 5 backends selectable, 12 active, 3 of 1024 queued, the oldest for 2s
BACKEND  STATE               FOR           WEIGHT   SHARE  ACTIVE   RATE  CONNS  ERRORS  1ST BYTE P50     P99  PROBE             WHY
w1       up                 2h0m  50 (config 100)  100.0%    8/64  123/s   1000       0          81µs  1.23ms  ok 300µs, 1s ago
w2       down                12s              100       -       1      -    200       3             -       -  failed 1s ago     3 probes failed: refused
w3       drain              1m1s             1000       -       3      -      0       0             -       -  -                 by root
w4       maint,down,backup    0s                1       -       0      -      0       0             -       -  -
w5       starting             0s                1       -       0      -      0       0             -       -  failed 0s ago     probe: refused

pool empty, leastconn: 0 of 0 backends selectable, 0 active
BACKEND  STATE  FOR  WEIGHT  SHARE  ACTIVE  RATE  CONNS  ERRORS  1ST BYTE P50  P99  PROBE  WHY
`, "\n")
	if got := renderStatus(testStatus(), noon, false); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	st := testStatus()
	st.Stopping = true
	if got, _, _ := strings.Cut(renderStatus(st, noon, false), "\n"); !strings.Contains(got, ", stopping, up ") {
		t.Errorf("an lb that stops: got %q; want it to say so", got)
	}
}

func TestStatus_ColoursChangeNothingButColour(t *testing.T) {
	plainText, coloured := renderStatus(testStatus(), noon, false), renderStatus(testStatus(), noon, true)
	if !strings.Contains(coloured, red+"down"+reset) || !strings.Contains(coloured, green+"up"+reset) || !strings.Contains(coloured, yellow+"drain"+reset) {
		t.Errorf("got %q; want down in red, up in green, drain in yellow", coloured)
	}
	for _, c := range []string{red, green, yellow, bold, reset} {
		coloured = strings.ReplaceAll(coloured, c, "")
	}
	if coloured != plainText {
		t.Errorf("text without its colours: got\n%s\nwant\n%s", coloured, plainText)
	}
}

func TestStatus_ColoursAreForTerminals(t *testing.T) {
	t.Setenv("NO_COLOR", "")
	t.Setenv("TERM", "xterm")
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer terminal.Close()
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if !coloured(terminal) || coloured(file) || coloured(new(bytes.Buffer)) {
		t.Errorf("colours on a terminal, in a file, in memory: got %v, %v, %v; want true, false, false",
			coloured(terminal), coloured(file), coloured(new(bytes.Buffer)))
	}
	t.Setenv("TERM", "dumb")
	if coloured(terminal) {
		t.Errorf("colours on a dumb terminal: got true; want false")
	}
	t.Setenv("TERM", "xterm")
	t.Setenv("NO_COLOR", "1")
	if coloured(terminal) {
		t.Errorf("colours with NO_COLOR: got true; want false")
	}
}

func TestStatus_WhatComesFromOutsideCannotDriveTheTerminal(t *testing.T) {
	st := testStatus()
	st.Pools[0].Name = "a\x1b[2J"
	st.Pools[0].Backends[1].Reason = "agent says \x1b]0;owned\x07\nline\u009b"
	got := renderStatus(st, noon, false)
	if strings.ContainsAny(got, "\x1b\x07\u009b") || strings.Count(got, "\n") != strings.Count(renderStatus(testStatus(), noon, false), "\n") {
		t.Errorf("got %q; want no control character of others", got)
	}
}

func TestStatus_NumbersAreShort(t *testing.T) {
	for want, got := range map[string]string{
		"-": secondsText(0), "1µs": secondsText(1e-6), "999µs": secondsText(999e-6), "1ms": secondsText(0.9996e-3),
		"12.3ms": secondsText(0.01234), "999ms": secondsText(0.999), "1.0s": secondsText(0.9996), "61.0s": secondsText(61),
		"0s": shortDuration(-time.Second), "59s": shortDuration(59 * time.Second), "1m0s": shortDuration(time.Minute),
		"1h1m": shortDuration(3661 * time.Second), "1d0h": shortDuration(24 * time.Hour),
		"0B": bytesText(0), "1023B": bytesText(1023), "1.0KiB": bytesText(1024), "1.0MiB": bytesText(1<<20 - 1), "16.0EiB": bytesText(1<<64 - 1),
	} {
		if got != want {
			t.Errorf("got %q; want %q", got, want)
		}
	}
}
