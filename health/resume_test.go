package health

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// heir is a rig of another process, whose pool's states are as those of r, and that takes up what r exports.
func (r *rig) heir(t *testing.T, change func(c *Config)) *rig {
	t.Helper()
	text, err := json.Marshal(r.Export())
	if err != nil {
		t.Fatal(err)
	}
	var saved []Saved
	if err := json.Unmarshal(text, &saved); err != nil {
		t.Fatal(err)
	}
	cfg := r.Checker.plan.Config
	if change != nil {
		change(&cfg)
	}
	h := newRig(t, cfg, len(r.b))
	for i, b := range r.b {
		if s := saved[i]; s.Silent {
			h.pool.SetSilent(h.b[i], s.Reason)
		} else {
			h.pool.SetHealth(h.b[i], b.Health(), b.Reason())
		}
		h.pool.SetAdmin(h.b[i], b.Admin(), "as it was")
	}
	h.changes = nil
	h.Import(saved)
	return h
}

func TestChecker_TakesOverWithoutAChange(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(notify), 3)
		r.run()
		for i := range 5 {
			at(time.Duration(i) * 900 * time.Millisecond)
			r.Beat(r.b[1])
		}
		r.Offline(r.b[2], "stops")
		at(4 * time.Second)
		r.stop()
		h := r.heir(t, nil)
		for i := range r.b {
			was, is := r.Status(r.b[i]), h.Status(h.b[i])
			was.Last, was.Next = was.Last.Round(0), was.Next.Round(0)
			if was.Last.Equal(is.Last) && was.Next.Equal(is.Next) {
				was.Last, was.Next = is.Last, is.Next // equal, in another zone perhaps
			}
			if was != is {
				t.Errorf("status of %s: got %+v; want %+v", r.b[i].Name, is, was)
			}
		}
		h.run()
		at(4100 * time.Millisecond)
		h.wantChanges()
		// Silent it is still: the pool's last resort when the other one is.
		h.Offline(h.b[1], "stops")
		h.wantChanges("100ms b1 health up→down: stops", "100ms b0 last_resort false→true: no backend of the pool is selectable")
		again := h.heir(t, nil)
		again.Offline(again.b[0], "stops")
		if again.b[0].LastResort() || again.b[0].Reason() != "no heartbeat for 3s" {
			t.Errorf("silent one that stops: last resort %v, %q; want it down for good, for the reason that it was", again.b[0].LastResort(), again.b[0].Reason())
		}
		h.Beat(h.b[0])
		h.Beat(h.b[0])
		h.wantChanges("100ms b0 health down→up: heartbeat (2 in a row)",
			"100ms b0 last_resort true→false: another backend of the pool is selectable, or it is known to be down")
	})
}

func TestChecker_RunGoesOnAfterItHasReturned(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.run()
		at(500 * time.Millisecond)
		r.answers(refused)
		at(2500 * time.Millisecond) // two failures of three
		r.stop()
		r.forgetProbes()
		r.run()
		at(2900 * time.Millisecond)
		r.wantProbes()
		r.wantChanges()
		at(3500 * time.Millisecond)
		r.wantProbes("3s b0") // in step
		r.wantChanges("3s b0 health up→down: connection refused (3 in a row)")

		// What was due meanwhile comes at once, and does not decide alone.
		r.stop()
		r.answers(success("ok"))
		at(10500 * time.Millisecond)
		r.run()
		at(11 * time.Second)
		r.wantProbes("10.5s b0")
		r.wantChanges()
		at(11600 * time.Millisecond)
		r.wantChanges("11.5s b0 health down→up: ok (2 in a row)")
	})
}

func TestChecker_WhatHappensBetweenTwoRunsCounts(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.run()
		at(500 * time.Millisecond)
		r.stop()
		r.forgetProbes()
		cfg := backends.DefaultBackendConfig()
		cfg.Name, cfg.Address = "b1", "unix:@health-added"
		b1, err := r.pool.Add(cfg, backends.HealthUp)
		if err != nil {
			t.Fatal(err)
		}
		r.Add(b1)
		if err := r.Update(exact(func(c *Config) { c.Type = "http" })); err != nil {
			t.Fatal(err)
		}
		r.ConnectFailed(r.b[0], backends.ConnectRefused, 3)
		r.wantChanges("500ms b0 health up→down: 3 connects in a row failed, the last: refused")
		at(700 * time.Millisecond)
		r.wantProbes()
		r.answers(refused)
		r.run()
		at(700 * time.Millisecond)
		r.wantChanges("700ms b1 health up→down: connection refused") // its first probe decides alone
		if s := r.Status(r.b[0]); s.Type != "http" || s.Failures != 1 {
			t.Errorf("status of b0: got %+v; want one http probe that failed", s)
		}
	})
}

func TestChecker_HoldThatIsOverEndsAfterImport(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Type, c.PassiveHold = "none", 3*time.Second }), 1)
		r.run()
		r.ConnectFailed(r.b[0], backends.ConnectRefused, 3)
		at(2 * time.Second)
		r.stop()
		h := r.heir(t, nil)
		at(4 * time.Second)
		h.run()
		at(4 * time.Second)
		h.wantChanges("2s b0 health down→up: was down for 3s")
	})
}

func TestChecker_MaintIsStillSeenToEndAfterImport(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(nil), 1)
		r.run()
		at(500 * time.Millisecond)
		r.pool.SetAdmin(r.b[0], backends.AdminMaint, "by root")
		at(1500 * time.Millisecond)
		r.stop()
		h := r.heir(t, nil)
		h.answers(refused)
		h.pool.SetAdmin(h.b[0], backends.AdminReady, "by root") // before anybody looks
		h.changes = nil
		h.run()
		at(2500 * time.Millisecond)
		// the first probe after maint decides alone
		h.wantChanges("500ms b0 health up→down: connection refused")
	})
}

func TestChecker_OtherTypeStartsItsOwnSchedule(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newRig(t, exact(func(c *Config) { c.Type, c.Interval = "connect", time.Hour }), 1)
		r.run()
		at(500 * time.Millisecond)
		r.stop()
		h := r.heir(t, func(c *Config) { c.Type = "http" })
		h.run()
		at(600 * time.Millisecond)
		h.wantProbes("0s b0")
		h.wantChanges()
	})
}

func TestSaved_IsReadWhateverIsInIt(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		const text = `[{"backend": "b0", "outcome": "of tomorrow", "agent_admin": "purple", "failures": -5, "silent": true, "colour": 1}, {}]`
		var saved []Saved
		if err := json.Unmarshal([]byte(text), &saved); err != nil {
			t.Fatal(err)
		}
		r := newRig(t, exact(nil), 2)
		r.Import(saved)
		if s := r.Status(r.b[0]); s.Outcome != None || s.Failures != 0 {
			t.Errorf("status: got %+v; want no outcome, no failures", s)
		}
		r.run()
		at(time.Second)
		r.wantChanges()
		if s := r.Status(r.b[0]); s.Outcome != Success || s.Successes != 2 {
			t.Errorf("status: got %+v; want it to go on", s)
		}
	})
}
