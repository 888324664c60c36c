package daemon

import (
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
	}, 80*time.Second)
}
