package health

import (
	"context"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/backends"
)

var refused = failure("connection refused")

// onFakeClock runs a test in a bubble where time passes only when all wait. at moves to an offset from its
// start, and lets everything that is due until then happen.
func onFakeClock(t *testing.T, test func(t *testing.T, at func(time.Duration))) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		test(t, func(offset time.Duration) {
			time.Sleep(time.Until(start.Add(offset)))
			synctest.Wait()
		})
	})
}

func TestChecker_FallFailuresInARowTakeDown(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.run()
		at(500 * time.Millisecond) // the first probe was a success
		r.answers(refused)
		at(2500 * time.Millisecond)
		r.answers(success("ok")) // two failures, then one success: it starts over
		at(3500 * time.Millisecond)
		r.wantChanges()
		r.answers(refused)
		at(10 * time.Second)
		r.wantChanges("6s b0 health up→down: connection refused (3 in a row)")
		if s := r.Status(r.b[0]); s.Failures != 7 || s.Successes != 0 || s.Outcome != Failure {
			t.Errorf("status: got %+v; want 7 failures in a row", s)
		}
	})
}

func TestChecker_RiseSuccessesInARowBringBack(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Rise = 3 }), 1)
		r.answers(refused)
		r.run()
		at(500 * time.Millisecond)
		r.wantChanges("0s b0 health up→down: connection refused")
		r.answers(success("ok"))
		at(2500 * time.Millisecond)
		r.answers(refused) // two successes are not enough
		at(3500 * time.Millisecond)
		r.answers(success("ok"))
		at(20 * time.Second)
		r.wantChanges("6s b0 health down→up: ok (3 in a row)")
	})
}

func TestChecker_FirstProbeDecidesAlone(t *testing.T) {
	f := func(initial string, found result, want string) {
		t.Helper()
		onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
			r := newRig(t, exact(func(c *Config) { c.Initial = initial }), 1)
			r.answers(found)
			r.wantHealth(r.b[0], r.Checker.plan.InitialHealth())
			r.run()
			at(0)
			if want == "" {
				r.wantChanges()
			} else {
				r.wantChanges(want)
			}
		})
	}
	f("up", success("ok"), "")
	f("up", refused, "0s b0 health up→down: connection refused")
	f("down", success("ok"), "0s b0 health down→up: ok")
	f("down", refused, "")
	f("down", result{outcome: Inconclusive, reason: "saturated"}, "")
}

func TestChecker_InconclusiveKeepsStateAndCounts(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.run()
		at(500 * time.Millisecond)
		r.answers(refused)
		at(2500 * time.Millisecond)
		r.answers(result{outcome: Inconclusive, reason: "saturated"})
		at(100500 * time.Millisecond)
		s := r.Status(r.b[0])
		if s.Outcome != Inconclusive || s.Reason != "saturated" || s.Failures != 2 {
			t.Errorf("status: got %+v; want inconclusive, saturated, still 2 failures", s)
		}
		r.wantChanges()
		r.answers(refused)
		at(101500 * time.Millisecond)
		r.wantChanges("1m41s b0 health up→down: connection refused (3 in a row)")
	})
}

func TestChecker_IntervalFollowsTheState(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) {
			c.Interval, c.FastInterval, c.DownInterval = 10*time.Second, time.Second, 30*time.Second
		}), 1)
		r.run()
		at(15 * time.Second)
		r.answers(refused)
		at(25 * time.Second)
		// Up: every 10 s. The failures at 20, 21 and 22 come fast.
		r.wantProbes("0s b0", "10s b0", "20s b0", "21s b0", "22s b0")
		r.wantChanges("22s b0 health up→down: connection refused (3 in a row)")
		at(60 * time.Second)
		r.answers(success("ok"))
		at(95 * time.Second)
		// Down: every 30 s. The successes at 82 and 83 come fast, then it is up.
		r.wantProbes("52s b0", "1m22s b0", "1m23s b0", "1m33s b0")
	})
}

func TestChecker_NextProbeIsAnIntervalAfterTheStartOfTheLast(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		lasts := func(took time.Duration) {
			r.respond(func(*backends.Backend, *plan) result { time.Sleep(took); return success("ok") })
		}
		lasts(400 * time.Millisecond)
		r.run()
		at(1900 * time.Millisecond)
		r.wantProbes("0s b0", "1s b0")
		if s := r.Status(r.b[0]); s.Duration != 400*time.Millisecond || !s.Last.Equal(r.start.Add(time.Second)) {
			t.Errorf("status: got %+v; want last 1s after the start, duration 400ms", s)
		}
		lasts(2500 * time.Millisecond) // longer than the interval: the next comes at once
		at(8 * time.Second)
		r.wantProbes("2s b0", "4.5s b0", "7s b0")
		at(9900 * time.Millisecond)
	})
}

func TestChecker_JitterShortensIntervals(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Jitter = 0.5 }), 1)
		draws := []float64{0, 1, 0.5, 0, 0.5, 0.5} // the first is for the first probe
		r.Checker.random = func() float64 { x := draws[0]; draws = draws[1:]; return x }
		r.run()
		at(3600 * time.Millisecond)
		r.wantProbes("0s b0", "500ms b0", "1.25s b0", "2.25s b0", "3s b0")
	})
}

func TestChecker_FirstProbesAreSpread(t *testing.T) {
	f := func(jitter float64, n int, latest time.Duration) {
		t.Helper()
		onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
			r := newRig(t, exact(func(c *Config) { c.Jitter = jitter }), n)
			r.run()
			at(latest)
			r.mu.Lock()
			defer r.mu.Unlock()
			if got := len(r.probes); got != n {
				t.Errorf("jitter %v: got %d probes within %v; want all %d", jitter, got, latest, n)
			}
			times := map[string]bool{}
			for _, p := range r.probes {
				times[p[:len(p)-len(" b0")]] = true
			}
			if spread := len(times) > n/2; spread != (jitter > 0) {
				t.Errorf("jitter %v: got %d different times of %d probes", jitter, len(times), n)
			}
		})
	}
	f(0, 9, 0)
	f(0.1, 9, 8*firstProbeGap)
}

func TestChecker_ConnectFailuresTakeDownAtOnce(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Interval, c.FastInterval = 10*time.Second, time.Second }), 1)
		b := r.b[0]
		r.run()
		at(2 * time.Second)
		r.ConnectFailed(b, backends.ConnectRefused, 1)
		r.ConnectFailed(b, backends.ConnectRefused, 2)
		r.ConnectFailed(b, backends.ConnectSaturated, 3)
		r.ConnectFailed(b, backends.ConnectResource, 3)
		r.wantHealth(b, backends.HealthUp)
		r.ConnectFailed(b, backends.ConnectRefused, 3)
		r.ConnectFailed(b, backends.ConnectTimeout, 4)
		r.wantHealth(b, backends.HealthDown) // on the caller's goroutine: no time has passed
		r.wantChanges("2s b0 health up→down: 3 connects in a row failed, the last: refused")
		if !r.Status(b).Passive {
			t.Errorf("status: got %+v; want passive", r.Status(b))
		}

		// A probe looks soon, and rise of them bring it back.
		at(9 * time.Second)
		r.wantProbes("0s b0", "3s b0", "4s b0")
		r.wantChanges("4s b0 health down→up: ok (2 in a row)")
		if r.Status(b).Passive {
			t.Error("still passive after it came back")
		}
	})
}

func TestChecker_ConnectFailureDropsTheProbeUnderWay(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Rise = 1 }), 1)
		r.respond(func(*backends.Backend, *plan) result { time.Sleep(500 * time.Millisecond); return success("ok") })
		r.run()
		at(1200 * time.Millisecond) // the second probe has looked, and is slow to say so
		r.ConnectFailed(r.b[0], backends.ConnectRefused, 3)
		at(1600 * time.Millisecond)
		r.wantHealth(r.b[0], backends.HealthDown)
		at(2100 * time.Millisecond)
		r.wantHealth(r.b[0], backends.HealthUp)
	})
}

func TestChecker_PassiveFallZeroIsNever(t *testing.T) {
	r := newRig(t, exact(func(c *Config) { c.PassiveFall = 0 }), 1)
	r.ConnectFailed(r.b[0], backends.ConnectRefused, 1000)
	r.wantHealth(r.b[0], backends.HealthUp)
}

// A worker that takes nothing shows no sign of life, whatever passive_fall is: the pool offers it if there is
// none better. One whose channel is broken cannot be given anything.
func TestChecker_AWorkerThatTakesNothingIsALastResort(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.PassiveFall = 0 }), 2)
		r.run()
		at(1500 * time.Millisecond)
		r.Untaken(r.b[0], time.Second)
		r.Untaken(r.b[0], time.Second)
		r.wantHealth(r.b[0], backends.HealthDown)
		if r.b[0].LastResort() {
			t.Error("it is a last resort, and another is up")
		}
		r.Broken(r.b[1], "does not speak the protocol")
		r.wantHealth(r.b[1], backends.HealthDown)
		if first, second := r.b[0].LastResort(), r.b[1].LastResort(); !first || second {
			t.Errorf("last resorts: got %v of the one that takes nothing, %v of the broken one; want the first only", first, second)
		}
		at(4 * time.Second)
		r.wantHealth(r.b[0], backends.HealthUp) // by probes
	})
}

func TestChecker_NoneComesBackAfterPassiveHold(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Type, c.PassiveHold = "none", 7*time.Second }), 1)
		r.run()
		at(5 * time.Second)
		r.ConnectFailed(r.b[0], backends.ConnectRefused, 3)
		at(time.Minute)
		r.wantProbes()
		r.wantChanges(
			"5s b0 health up→down: 3 connects in a row failed, the last: refused",
			"12s b0 health down→up: was down for 7s")
		// The run of failures has not ended: the next one decides alone.
		r.ConnectFailed(r.b[0], backends.ConnectRefused, 4)
		r.wantHealth(r.b[0], backends.HealthDown)
	})
}

func notify(c *Config) { c.Type = "notify" }

func TestChecker_MissedHeartbeatsTakeDownAndBeatsBringBack(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(notify), 1)
		b := r.b[0]
		r.run()
		for i := range 10 {
			at(time.Duration(i) * 900 * time.Millisecond)
			r.Beat(b)
		}
		at(10 * time.Second) // the last was at 8.1 s
		r.wantChanges()
		at(20 * time.Second)
		r.wantChanges("11.1s b0 health up→down: no heartbeat for 3s", "11.1s b0 last_resort false→true: no backend of the pool is selectable")
		r.Beat(b)
		at(20900 * time.Millisecond)
		r.wantChanges()
		r.Beat(b)
		r.wantChanges("20.9s b0 health down→up: heartbeat (2 in a row)",
			"20.9s b0 last_resort true→false: another backend of the pool is selectable, or it is known to be down")
		r.wantProbes()
	})
}

func TestChecker_NoHeartbeatAtAllNeedsFallMisses(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(notify), 1)
		r.run()
		at(10 * time.Second)
		r.wantChanges("3s b0 health up→down: no heartbeat for 3s", "3s b0 last_resort false→true: no backend of the pool is selectable")
	})
}

// What a heartbeat says is not what a worker says, or a client's connect.
func TestChecker_OnlyAStoppedHeartbeatMakesALastResort(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(notify), 2)
		r.run()
		for i := range 3 {
			at(time.Duration(i) * 900 * time.Millisecond)
			r.Beat(r.b[1])
		}
		at(4 * time.Second)
		if r.b[0].Offered() || !r.b[1].Offered() {
			t.Error("b0 without a heartbeat while b1 has one: got it offered; want b1 only")
		}
		at(6 * time.Second)
		if !r.b[0].LastResort() || !r.b[1].LastResort() || !r.b[1].Offered() || r.b[1].Health() != backends.HealthDown {
			t.Error("no heartbeat at all: got somebody who is no last resort; want both")
		}
		r.Offline(r.b[0], "STOPPING=1")
		if r.b[0].Offered() || r.b[0].LastResort() || !r.b[1].Offered() {
			t.Error("b0 stops: got it offered; want b1 only")
		}
		r.Starting(r.b[0], "starts")
		r.Ready(r.b[0], "ready")
		if !r.b[0].Offered() || r.b[1].Offered() {
			t.Error("b0 is up again: got b1 offered; want b0 only")
		}
	})
}

func TestChecker_AddAwaitingWaitsForTheWorkersWord(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 0)
		r.run()
		cfg := backends.DefaultBackendConfig()
		cfg.Name, cfg.Address = "b0", "unix:@health-held"
		b, err := r.pool.Add(cfg, backends.HealthStarting)
		if err != nil {
			t.Fatal(err)
		}
		r.AddAwaiting(b)
		at(5 * time.Second)
		r.wantProbes()
		r.Ready(b, "ready")
		if b.Health() != backends.HealthUp {
			t.Errorf("after its word: got %v; want up", b.Health())
		}
	})
}

func TestChecker_WorkerSaysWhatItIs(t *testing.T) {
	f := func(typ string) {
		t.Helper()
		onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
			r := newRig(t, exact(func(c *Config) { c.Type = typ }), 1)
			b := r.b[0]
			r.Starting(b, "worker 0 starts")
			r.run()
			at(9500 * time.Millisecond)
			r.Beat(b) // before it is ready: nothing yet
			r.wantChanges("0s b0 health up→starting: worker 0 starts")
			r.wantProbes()
			r.Ready(b, "worker 0 is ready")
			r.wantChanges("9.5s b0 health starting→up: worker 0 is ready")

			at(10 * time.Second)
			r.Offline(b, "worker 0 stops")
			r.wantChanges("10s b0 health up→down: worker 0 stops")
			r.forgetProbes()
			at(10500 * time.Millisecond)
			r.Beat(b)
			r.Beat(b)
			at(time.Minute)
			r.wantChanges() // neither a beat nor a probe brings it back
			r.wantProbes()
			if s := r.Status(b); !s.Awaiting || !s.Next.IsZero() {
				t.Errorf("status: got %+v; want it to await, and nothing due", s)
			}
			r.Ready(b, "worker 0 is ready")
			r.wantChanges("1m0s b0 health down→up: worker 0 is ready")
		})
	}
	f("notify")
	f("connect")
	f("none")
}

func TestChecker_FirstProbeAfterReadyDecidesAlone(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.Starting(r.b[0], "starts")
		r.run()
		at(5 * time.Second)
		r.answers(refused)
		r.Ready(r.b[0], "ready")
		at(5 * time.Second)
		r.wantChanges("0s b0 health up→starting: starts", "5s b0 health starting→up: ready", "5s b0 health up→down: connection refused")
	})
}

func TestChecker_StaleProbeOfAnOldWorkerIsDropped(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.respond(func(*backends.Backend, *plan) result { time.Sleep(800 * time.Millisecond); return refused })
		r.run()
		at(100 * time.Millisecond)
		r.Offline(r.b[0], "stops")
		r.Starting(r.b[0], "starts")
		r.Ready(r.b[0], "ready")
		r.answers(success("ok"))
		at(10 * time.Second)
		r.wantChanges("100ms b0 health up→down: stops", "100ms b0 health down→starting: starts", "100ms b0 health starting→up: ready")
	})
}

func TestChecker_ProbeUnderWayWhenAWorkerStartsIsDropped(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.respond(func(*backends.Backend, *plan) result { time.Sleep(800 * time.Millisecond); return success("ok") })
		r.run()
		at(100 * time.Millisecond)
		r.Starting(r.b[0], "starts")
		at(10 * time.Second)
		r.wantHealth(r.b[0], backends.HealthStarting)
		r.wantProbes("0s b0")
	})
}

// Without a word of its start there is a worker that was never heard of yet: it is not down for that.
func TestChecker_FirstHeartbeatEndsStarting(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		pool := newPool(t, backends.HealthStarting, "unix:@health-starting")
		checker, err := NewChecker(pool, exact(notify))
		if err != nil {
			t.Fatal(err)
		}
		r := &rig{Checker: checker, t: t, pool: pool, b: pool.Backends(), start: time.Now()}
		pool.OnChange = r.changed
		r.run()
		at(10500 * time.Millisecond)
		r.Beat(r.b[0])
		r.wantChanges("10.5s b0 health starting→up: heartbeat")
	})
}

func TestChecker_MaintIsNotProbedAndStartsOver(t *testing.T) {
	f := func(told bool, back string) {
		t.Helper()
		onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
			r := newRig(t, exact(nil), 1)
			b := r.b[0]
			setAdmin := func(to backends.AdminState) {
				r.pool.SetAdmin(b, to, "by hand")
				if told {
					r.AdminChanged(b)
				}
			}
			r.run()
			at(500 * time.Millisecond)
			r.answers(refused)
			at(2500 * time.Millisecond) // two failures
			setAdmin(backends.AdminMaint)
			r.forgetProbes()
			at(20300 * time.Millisecond)
			r.wantProbes()
			if s := r.Status(b); !s.Paused || s.Failures != 0 {
				t.Errorf("status: got %+v; want paused, no counts", s)
			}
			r.answers(success("ok"))
			setAdmin(backends.AdminReady)
			at(21 * time.Second)
			r.wantProbes(back + " b0")
			r.wantHealth(b, backends.HealthUp)

			setAdmin(backends.AdminMaint)
			at(30300 * time.Millisecond)
			r.answers(refused) // the first probe after maint decides alone
			setAdmin(backends.AdminReady)
			at(31 * time.Second)
			r.wantHealth(b, backends.HealthDown)
		})
	}
	f(true, "20.3s")
	f(false, "21s") // seen at the next time that a probe would be due
}

func TestChecker_ProbeUnderWayIntoMaintDoesNotCount(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Fall = 1 }), 1)
		r.run()
		at(500 * time.Millisecond)
		r.respond(func(*backends.Backend, *plan) result { time.Sleep(500 * time.Millisecond); return refused })
		at(1200 * time.Millisecond)
		r.pool.SetAdmin(r.b[0], backends.AdminMaint, "by hand")
		at(3 * time.Second)
		r.wantHealth(r.b[0], backends.HealthUp)
	})
}

func TestChecker_HeartbeatsCountAgainAfterMaint(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(notify), 1)
		b := r.b[0]
		r.run()
		r.pool.SetAdmin(b, backends.AdminMaint, "by hand")
		at(10 * time.Second) // no beats, and no misses
		r.pool.SetAdmin(b, backends.AdminReady, "by hand")
		for i := range 20 { // more often than the checker would look by itself
			at(10*time.Second + time.Duration(i)*300*time.Millisecond)
			r.Beat(b)
		}
		if s := r.Status(b); s.Successes != 20 || s.Paused {
			t.Errorf("status: got %+v; want 20 successes", s)
		}
		at(time.Minute)
		r.wantHealth(b, backends.HealthDown)
	})
}

func TestChecker_UpdateKeepsStatesAndCounts(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Interval = time.Minute }), 2)
		b0, b1 := r.b[0], r.b[1]
		r.respond(func(b *backends.Backend, _ *plan) result {
			if b == b0 {
				return refused
			}
			return success("ok")
		})
		r.run()
		at(90 * time.Second)
		r.wantChanges("0s b0 health up→down: connection refused")
		r.forgetProbes()

		bad := exact(func(c *Config) { c.Rise = 0 })
		if err := r.Update(bad); err == nil {
			t.Fatal("Update took rise = 0")
		}
		if err := r.Update(exact(func(c *Config) { c.Fall = 5 })); err != nil {
			t.Fatal(err)
		}
		r.wantHealth(b0, backends.HealthDown)
		if s := r.Status(b0); s.Failures != 2 {
			t.Errorf("status: got %+v; want the 2 failures from before", s)
		}
		at(91500 * time.Millisecond) // the new interval is shorter, and holds at once
		if s := r.Status(b0); s.Failures != 3 {
			t.Errorf("status: got %+v; want 3 failures", s)
		}
		r.answers(refused)
		at(2 * time.Minute)
		r.wantChanges("1m36s b1 health up→down: connection refused (5 in a row)")

		// To another type, and back.
		if err := r.Update(exact(notify)); err != nil {
			t.Fatal(err)
		}
		r.forgetProbes()
		r.Beat(b1)
		at(120900 * time.Millisecond)
		r.Beat(b1)
		r.wantChanges("2m0.9s b1 health down→up: heartbeat (2 in a row)")
		r.wantProbes()
		if err := r.Update(exact(func(c *Config) { c.Type = "none" })); err != nil {
			t.Fatal(err)
		}
		at(150 * time.Second) // nothing would ever bring b0 back but the hold
		r.wantChanges("2m10.9s b0 health down→up: was down for 10s")
		if err := r.Update(exact(nil)); err != nil {
			t.Fatal(err)
		}
		at(152500 * time.Millisecond)
		r.wantHealth(b0, backends.HealthDown)
	})
}

func TestChecker_AddAndRemoveWhileRunning(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.run()
		at(300 * time.Millisecond)
		cfg := backends.DefaultBackendConfig()
		cfg.Name, cfg.Address = "b1", "unix:@health-rig-1"
		b1, err := r.pool.Add(cfg, backends.HealthStarting)
		if err != nil {
			t.Fatal(err)
		}
		r.Add(b1)
		r.Add(b1) // again is nothing
		at(1400 * time.Millisecond)
		r.wantProbes("0s b0", "300ms b1", "1s b0", "1.3s b1")
		r.wantChanges("300ms b1 health starting→up: ok")

		r.respond(func(*backends.Backend, *plan) result { time.Sleep(time.Second); return refused })
		at(2500 * time.Millisecond) // one probe of each is under way
		r.forgetProbes()
		r.Remove(b1)
		r.Remove(b1)
		if got := r.Status(b1); got != (Status{}) {
			t.Errorf("status of a removed backend: got %+v; want none", got)
		}
		r.ConnectFailed(b1, backends.ConnectRefused, 3)
		r.Beat(b1)
		at(5100 * time.Millisecond)
		r.wantChanges("5s b0 health up→down: connection refused (3 in a row)")
		r.wantProbes("3s b0", "4s b0", "5s b0")
		r.wantHealth(b1, backends.HealthUp)
	})
}

func TestChecker_RunWaitsForProbes(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 3)
		var under sync.WaitGroup
		under.Add(3)
		r.Checker.probe = func(ctx context.Context, _ *plan, _ *backends.Backend) result {
			<-ctx.Done()
			time.Sleep(time.Second) // slow to notice
			under.Done()
			return refused
		}
		r.run()
		at(time.Millisecond)
		r.stop()
		if took := time.Since(r.start); took < time.Second {
			t.Errorf("Run ended %v after the start, with probes under way", took)
		}
		under.Wait()
		r.wantChanges() // what was cut off says nothing
		r.Add(r.b[0])   // nothing starts any more
		at(time.Minute)
	})
}

func TestChecker_CountsGoOnInAnotherProcess(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Interval = 10 * time.Second }), 3)
		r.run()
		at(5 * time.Second)
		r.answers(refused)
		at(15 * time.Second) // one failure each, of three
		r.Offline(r.b[1], "stops")
		r.ConnectFailed(r.b[2], backends.ConnectRefused, 3)
		saved := r.Export()
		r.stop()

		second := newRig(t, r.Checker.plan.Config, 3)
		for i, b := range r.b {
			second.pool.SetHealth(second.b[i], b.Health(), "as it was")
		}
		pool := second.pool
		checker, err := NewChecker(pool, second.Checker.plan.Config)
		if err != nil {
			t.Fatal(err)
		}
		checker.probe = second.probed
		second.Checker = checker
		second.wantChanges("0s b1 health up→down: as it was", "0s b2 health up→down: as it was")
		second.Import(append(saved, Saved{Backend: "gone"}))
		second.answers(refused)
		second.run()
		at(34 * time.Second)
		// Two more failures, at 20 s and 30 s of the first one's clock.
		second.wantChanges("15s b0 health up→down: connection refused (3 in a row)")
		second.mu.Lock()
		for _, p := range second.probes {
			if p[len(p)-2:] == "b1" {
				t.Errorf("probed %s, which awaits its word", p)
			}
		}
		second.mu.Unlock()
		if s := checker.Status(second.b[1]); !s.Awaiting {
			t.Errorf("status: got %+v; want it to await", s)
		}
		if s := checker.Status(second.b[2]); !s.Passive {
			t.Errorf("status: got %+v; want passive", s)
		}
	})
}

func TestChecker_HeartbeatHasItsWholeIntervalAfterImport(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(notify), 1)
		r.Import([]Saved{{Backend: "b0", Failures: 2, Next: time.Now().Add(100 * time.Millisecond)}})
		r.run()
		at(900 * time.Millisecond)
		r.wantChanges()
		at(time.Second)
		r.wantChanges("1s b0 health up→down: no heartbeat for 3s", "1s b0 last_resort false→true: no backend of the pool is selectable")
	})
}

// The pool's OnChange may call the Checker, and every change is told once and in order.
func TestChecker_OnChangeMayCallBack(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		b := r.b[0]
		told := r.pool.OnChange
		r.pool.OnChange = func(c backends.Change) {
			told(c)
			if r.Status(b).Type != "accept" {
				t.Error("no status from OnChange")
			}
			if c.To == "down" {
				r.Starting(b, "again")
				r.Beat(b)
			}
		}
		r.Offline(b, "stops")
		r.wantChanges("0s b0 health up→down: stops", "0s b0 health down→starting: again")
	})
}

// Two changes at once are told one after the other, and the second caller does not wait for the first one's.
func TestChecker_ChangesAreToldInOrder(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		b := r.b[0]
		told := r.pool.OnChange
		r.pool.OnChange = func(c backends.Change) {
			if c.To == "down" {
				time.Sleep(time.Second)
			}
			told(c)
		}
		var wg sync.WaitGroup
		wg.Go(func() { r.Offline(b, "stops") })
		at(500 * time.Millisecond)
		r.Ready(b, "is back")
		r.wantChanges()
		wg.Wait()
		r.wantChanges("1s b0 health up→down: stops", "1s b0 health down→up: is back")
	})
}

// News that was on its way when its backend was removed changes nothing.
func TestChecker_NewsAfterRemoveIsDropped(t *testing.T) {
	r := newRig(t, exact(nil), 1)
	w := r.get(r.b[0])
	r.Remove(r.b[0])
	w.change(func(evidence *evidence, _ *plan, _ time.Time) { evidence.hold(backends.HealthDown, "stops") })
	r.wantHealth(r.b[0], backends.HealthUp)
}

// slowPolicy holds up the pool's first change after stop is set, with the pool's lock held.
type slowPolicy struct {
	anyPolicy
	once sync.Once
	stop func() // nil: nothing is held up
}

func (p *slowPolicy) Update(*backends.Backend) {
	if p.stop != nil {
		p.once.Do(p.stop)
	}
}

// A backend that is watched anew while its old watch is telling the pool has the new watch's health in the
// end.
func TestChecker_OldNewsComesAfterAdd(t *testing.T) {
	policy := &slowPolicy{}
	pool := backends.NewPool("p", backends.DefaultConfig(), policy)
	for _, name := range []string{"b0", "b1"} {
		cfg := backends.DefaultBackendConfig()
		cfg.Name, cfg.Address = name, "unix:@health-late-"+name
		if _, err := pool.Add(cfg, backends.HealthUp); err != nil {
			t.Fatal(err)
		}
	}
	c, err := NewChecker(pool, exact(nil))
	if err != nil {
		t.Fatal(err)
	}
	b := pool.Backends()[0]
	old := c.get(b)
	stopped, goOn := make(chan struct{}), make(chan struct{})
	policy.stop = func() { close(stopped); <-goOn }
	var wg sync.WaitGroup
	wg.Go(func() { c.Offline(pool.Backends()[1], "stops") })
	<-stopped
	wg.Go(func() { c.Offline(b, "stops") })
	for telling := false; !telling; runtime.Gosched() {
		old.mu.Lock()
		telling = old.emitting
		old.mu.Unlock()
	}
	c.Remove(b)
	c.Add(b)
	close(goOn)
	wg.Wait()
	if is, want := b.Health(), c.get(b).evidence.health; is != want {
		t.Errorf("the pool has %v, the evidence %v", is, want)
	}
}

// Whatever comes from wherever at the same time, the pool ends with what the records say.
func TestChecker_NewsFromManyGoroutines(t *testing.T) {
	r := newRig(t, exact(func(c *Config) { c.Interval, c.Rise, c.Fall = time.Millisecond, 1, 1 }), 4)
	var mu sync.Mutex
	n := 0
	r.respond(func(*backends.Backend, *plan) result {
		mu.Lock()
		defer mu.Unlock()
		if n++; n%3 == 0 {
			return refused
		}
		return success("ok")
	})
	r.run()
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 200 {
				b := r.b[(i+j)%len(r.b)]
				switch (i + j) % 7 {
				case 0:
					r.ConnectFailed(b, backends.ConnectRefused, 3)
				case 1:
					r.Beat(b)
				case 2:
					r.Ready(b, "ready")
				case 3:
					r.Offline(b, "stops")
				case 4:
					r.Remove(b)
					r.Add(b)
				case 5:
					if err := r.Update(exact(func(c *Config) { c.Interval = time.Duration(1+j%3) * time.Millisecond })); err != nil {
						t.Error(err)
					}
				case 6:
					r.Export()
					r.AdminChanged(b)
				}
			}
		})
	}
	wg.Wait()
	r.stop()
	for _, b := range r.b {
		w := r.get(b)
		if b.Health() != w.evidence.health {
			t.Errorf("%s: the pool has %v, the evidence %v", b.Name, b.Health(), w.evidence.health)
		}
	}
}

func TestChecker_ConnectFailedAllocatesNothing(t *testing.T) {
	r := newRig(t, exact(nil), 1)
	if n := testing.AllocsPerRun(100, func() { r.ConnectFailed(r.b[0], backends.ConnectRefused, 2) }); n != 0 {
		t.Errorf("got %v allocations; want 0", n)
	}
}

func BenchmarkConnectFailed(b *testing.B) {
	pool := backends.NewPool("p", backends.DefaultConfig(), anyPolicy{})
	cfg := backends.DefaultBackendConfig()
	cfg.Address = "unix:@health-bench"
	backend, err := pool.Add(cfg, backends.HealthUp)
	if err != nil {
		b.Fatal(err)
	}
	c, err := NewChecker(pool, DefaultConfig())
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		c.ConnectFailed(backend, backends.ConnectRefused, 2)
	}
}
