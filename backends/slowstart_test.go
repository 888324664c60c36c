package backends_test

import (
	"math"
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/backends"
)

func slowly(c *backends.Config) { c.SlowStart = 10 * time.Second }

// running is livePool after its first connection, in a bubble of synctest.
func running(t *testing.T, n int, set func(*backends.Config)) *backends.Pool {
	t.Helper()
	p := livePool(t, n, set)
	b, err := acquire(p, &backends.Request{})
	must(t, err)
	p.Release(b)
	return p
}

func restart(p *backends.Pool, b *backends.Backend) {
	p.SetHealth(b, backends.HealthDown, "killed")
	p.SetHealth(b, backends.HealthUp, "restarted")
}

// wantPart checks b's part of its full weight, to a hundredth.
func wantPart(t *testing.T, b *backends.Backend, part float64) {
	t.Helper()
	got := float64(b.EffectiveWeight()) / float64(b.Weight()*backends.WeightScale)
	if math.Abs(got-part) > 0.0101 {
		t.Errorf("%s, %v after it came up: got %.3f of its weight; want %.3f", b.Name, time.Since(b.Since()), got, part)
	}
}

func TestSlowStart_WeightGrowsInALine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := running(t, 2, slowly)
		b := p.Get("b1")
		restart(p, b)
		for s := range 12 {
			wantPart(t, b, min(max(float64(s)/10, 0.01), 1))
			wantPart(t, p.Get("b0"), 1)
			if s == 4 {
				must(t, p.SetWeight(b, 50, "operator"))
				wantPart(t, b, 0.4)
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
	})
}

func TestSlowStart_AddedBackendStartsSlowly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := running(t, 2, slowly)
		up := addBackend(t, p, "up", backends.HealthUp, nil)
		later := addBackend(t, p, "later", backends.HealthStarting, nil)
		wantPart(t, up, 0.01)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		wantPart(t, up, 0.5)
		p.SetHealth(later, backends.HealthUp, "ready")
		wantPart(t, later, 0.01)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		wantPart(t, up, 1)
		wantPart(t, later, 0.5)
	})
}

func TestSlowStart_NotWhenAllAreNew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := livePool(t, 0, slowly)
		for _, name := range []string{"w0", "w1", "w2"} {
			addBackend(t, p, name, backends.HealthStarting, nil)
		}
		for _, b := range p.Backends() { // the first start, one after the other
			p.SetHealth(b, backends.HealthUp, "ready")
			wantPart(t, b, 1)
			time.Sleep(3 * time.Second)
			_, err := acquire(p, &backends.Request{})
			must(t, err)
		}
		time.Sleep(time.Hour)
		for _, b := range p.Backends() { // all go, and come back
			p.SetHealth(b, backends.HealthDown, "killed")
		}
		for _, b := range p.Backends() {
			p.SetHealth(b, backends.HealthUp, "restarted")
			time.Sleep(3 * time.Second)
			wantPart(t, b, 1)
		}
		// Now two have been up for long enough, and one comes back alone.
		time.Sleep(10 * time.Second)
		restart(p, p.Get("w2"))
		wantPart(t, p.Get("w2"), 0.01)
	})
}

func TestSlowStart_EndsWhenNobodyElseIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := running(t, 3, slowly)
		p.SetAdmin(p.Get("b0"), backends.AdminMaint, "operator")
		restart(p, p.Get("b1"))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		wantPart(t, p.Get("b1"), 0.2)
		p.SetHealth(p.Get("b2"), backends.HealthDown, "killed")
		wantPart(t, p.Get("b1"), 1)
	})
}

func TestSlowStart_AfterMaintButNotAfterDrain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := running(t, 2, slowly)
		b := p.Get("b1")
		for state, part := range map[backends.AdminState]float64{backends.AdminMaint: 0.01, backends.AdminDrain: 1} {
			p.SetAdmin(b, state, "operator")
			p.SetAdmin(b, backends.AdminReady, "operator")
			wantPart(t, b, part)
			time.Sleep(10 * time.Second)
			synctest.Wait()
		}
	})
}

func TestSlowStart_OffIsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := running(t, 2, nil)
		restart(p, p.Get("b1"))
		wantPart(t, p.Get("b1"), 1)

		cfg := *p.Config()
		cfg.SlowStart = 10 * time.Second
		reload(p, cfg, nil)
		time.Sleep(10 * time.Second)
		restart(p, p.Get("b0"))
		wantPart(t, p.Get("b0"), 0.01)
		cfg.SlowStart = 0
		reload(p, cfg, nil)
		wantPart(t, p.Get("b0"), 1)
	})
}

func TestSlowStart_ClockRunsOnlyWhileSomebodyStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := running(t, 3, slowly)
		want := func(when string, runs bool) {
			t.Helper()
			synctest.Wait()
			if p.RampRuns() != runs {
				t.Errorf("%s: the clock runs: %v; want %v", when, !runs, runs)
			}
		}
		want("before any slow start", false)
		restart(p, p.Get("b1"))
		want("in a slow start", true)
		time.Sleep(9500 * time.Millisecond)
		restart(p, p.Get("b2"))
		time.Sleep(9500 * time.Millisecond)
		want("in another one", true)
		time.Sleep(time.Second)
		want("after both", false)
		restart(p, p.Get("b1"))
		must(t, p.Remove(p.Get("b1"), "reload"))
		time.Sleep(time.Second)
		want("the slow one is removed", false)
	})
}
