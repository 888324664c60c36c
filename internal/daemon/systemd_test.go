package daemon

import (
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
)

func TestStopsWithin_IsWhatSessionsAndTheSlowestWorkersMayTake(t *testing.T) {
	f := func(cfg config.Config, want time.Duration) {
		t.Helper()
		var d daemon
		d.view.Store(&view{cfg: &cfg})
		if got := d.stopsWithin(); got != want+stopSlack {
			t.Errorf("got %v; want %v", got, want+stopSlack)
		}
	}
	workers := func(d time.Duration) config.Pool { return config.Pool{Workers: &supervisor.Config{KillTimeout: d}} }
	f(config.Config{}, 0)
	f(config.Config{Proxy: proxy.Config{StopTimeout: time.Minute}}, time.Minute)
	f(config.Config{
		Proxy: proxy.Config{StopTimeout: time.Minute},
		Pools: []config.Pool{{}, workers(20 * time.Second), workers(10 * time.Second)},
	}, 80*time.Second+supervisor.KillPatience)
}

func TestService_HearsHowLongAStopMayTake(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	s := newService()
	defer s.close()
	s.stopping(75 * time.Second)
	buf := make([]byte, 1024)
	n, err := l.Read(buf)
	if got := string(buf[:n]); err != nil || !strings.Contains(got, "STOPPING=1\n") || !strings.Contains(got, "EXTEND_TIMEOUT_USEC=75000000\n") {
		t.Errorf("notification: got %q, %v; want that it stops, within 75 s", got, err)
	}
}
