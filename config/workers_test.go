package config

import (
	"strings"
	"testing"
	"time"
)

// front is app without its pool.
var front = app[:strings.Index(app, "[pools")]

func TestParse_PoolOfWorkersNeedsNoBackends(t *testing.T) {
	c := parseOK(t, front+`
[pools.app.workers]
command = ["./app", "{socket}"]
env = { MODE = "x" }
kill_after = "0s"
[pools.app.workers.recycle]
age = "24h"
[pools.app.health]
type = "notify"
`)
	w := c.Pools[0].Workers
	if w == nil || len(w.Command) != 2 || w.Env["MODE"] != "x" || w.KillAfter != 0 || w.Recycle.Age != 24*time.Hour || w.Recycle.Jitter != 0.2 || w.StopSignal != "TERM" {
		t.Errorf("workers: got %+v; want what the file says, and the defaults", w)
	}
	if c = parseOK(t, app); c.Pools[0].Workers != nil {
		t.Errorf("workers where there is no table: got %+v; want none", c.Pools[0].Workers)
	}
	if got := c.Admin.EffectiveRunDir(); got != "/run/lb/workers" {
		t.Errorf("run-time directory: got %q; want it beside the socket", got)
	}
}

func TestParse_FaultsOfWorkers(t *testing.T) {
	backends := "[[pools.app.backends]]\naddress = 'unix:/a'\n"
	for _, f := range []struct{ text, want string }{
		{"[pools.app.workers]\ncount = -1\n[pools.app.workers.recycle]\njitter = 2", `lb.toml:5: pools.app.workers.command: missing; write ["./app", "argument"]
lb.toml:6: pools.app.workers.count: -1 is not within 1..1024, nor 0 for one a CPU
lb.toml:8: pools.app.workers.recycle.jitter: 2 is not within 0..0.5`},
		{"[pools.app.workers]\ncommand = ['a']\nlog = 'app.log'", `lb.toml:7: pools.app.workers.log: "app.log" is no absolute path; write one, or "" for lb's own log`},
		{backends + "[pools.app.health]\ntype = 'notify'", `lb.toml:8: pools.app.health.type: "notify" is for workers, [pools.app.workers]: only workers can send lb a heartbeat`},
		{backends + "[pools.app.workers]\ncommand = ['a']\n[pools.app.health]\ntype = 'notify'",
			`lb.toml:10: pools.app.health.type: with "notify" the backends would always be down: only workers can tell lb a heartbeat; give the backends a pool of their own`},
		{backends + "name = '0.1'\n[pools.app.workers]\ncommand = ['a']", `lb.toml:7: pools.app.backends[0].name: "0.1" has the form of a worker's name; choose another`},
		{"[pools.app]\nbalance = 'first'\n[pools.app.workers]\ncommand = ['a']", `lb.toml:5: pools.app.max_conns: missing; "first" fills one backend after the other, so each needs a limit: here, or its own`},
		{"[pools.app]\nbalance = 'first'\n[pools.app.workers]\ncommand = ['a']\n" + backends + "max_conns = 3", `lb.toml:5: pools.app.max_conns: missing; "first" fills one backend after the other, and workers have the pool's limit`},
		{"[pools.app.workers]\ncommand = ['a']\n[admin]\nsocket = ''", `lb.toml:7: admin.run_dir: missing; pools.app.workers needs it where admin.socket is off`},
		{"[pools.app.workers]\ncommand = ['a']\n[admin]\nrun_dir = 'run'", `lb.toml:8: admin.run_dir: "run" is no absolute path; write one such as "/run/lb/workers"`},
	} {
		checkFaults(t, strings.TrimSuffix(front, "\n\n")+"\n\n"+f.text, f.want)
	}
	checkFaults(t, "[listeners.web]\nbind = ['127.0.0.1:1']\npool = 'lock'\n[pools.lock.workers]\ncommand = ['a']",
		"lb.toml:4: pools.lock: a pool with workers cannot have this name: it is that of a file in admin.run_dir")
}

// A worker that does not accept may be busy, so "accept" kills only where that is asked for.
func TestWorkers_AcceptKillsOnlyWhereKillAfterIsSet(t *testing.T) {
	for _, tc := range []struct {
		health, keys string
		want         time.Duration
	}{
		{"", "", 0},
		{`"accept"`, "", 0},
		{`"accept"`, `kill_after = "7s"`, 7 * time.Second},
		{`"notify"`, "", 30 * time.Second},
	} {
		health := ""
		if tc.health != "" {
			health = "[pools.app.health]\ntype = " + tc.health + "\n"
		}
		c := parseOK(t, front+"\n[pools.app.workers]\ncommand = [\"x\"]\n"+tc.keys+"\n"+health)
		if got := c.Pools[0].Workers.KillAfter; got != tc.want {
			t.Errorf("health %s, %q: got kill_after %v; want %v", tc.health, tc.keys, got, tc.want)
		}
	}
}
