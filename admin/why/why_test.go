package why

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

var update = flag.Bool("update", false, "write docs/troubleshooting.md anew")

var now = time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC)

// backend is a backend that is down, with the last probe's error; empty for one that is up.
func backend(name, address, failure string) *api.BackendStatus {
	b := &api.BackendStatus{
		Name: name, Address: address, Admin: "ready", Health: "up", Since: now.Add(-12 * time.Second), Weight: 100, ConfiguredWeight: 100,
		LastProbe: &api.ProbeStatus{Type: "accept", Time: now, OK: true},
	}
	if failure != "" {
		b.Health, b.Reason = "down", failure
		b.LastProbe.OK, b.LastProbe.Error = false, failure
	}
	return b
}

// slot is slot 0 with a worker in a state.
func slot(f Facts, state string, pid int, exit *api.WorkerExit, exits map[string]uint64) Facts {
	f.Slot = &api.SlotStatus{WorkerStatus: api.WorkerStatus{State: state, PID: pid, Since: now.Add(-12 * time.Second)}, LastExit: exit, Exits: exits}
	f.Worker = &f.Slot.WorkerStatus
	f.Now, f.Pool = now, "app"
	return f
}

// sample is a fault as lb sees it. Its name is its cause, where there is one of it.
type sample struct {
	cause string
	facts Facts
}

func samples() []sample {
	plain := func(b *api.BackendStatus, s Setup) Facts { return Facts{Now: now, Pool: "app", Backend: b, Setup: s} }
	drained := backend("w1", "127.0.0.1:9001", "")
	drained.Admin, drained.Active = "drain", 3
	full := backend("w1", "127.0.0.1:9001", "")
	full.Active, full.MaxConns = 200, 200
	cannotRun := func(why string) *api.WorkerExit {
		return &api.WorkerExit{Time: now, PID: 14030, Reason: "exit status 127", Lines: []string{`lb: cannot run "/srv/app/run": ` + why}}
	}
	loop := slot(Facts{}, "failed", 0, &api.WorkerExit{Time: now, PID: 14030, Reason: "exit status 2", Fault: "panic: no database", Lines: []string{"exit status 2"}},
		map[string]uint64{"crashed": 5})
	loop.Slot.QuickDeaths = 5
	beat := slot(Facts{Backend: backend("0.1", "unix:/run/lb/0.1.sock", "no heartbeat for 3s"), Setup: Setup{Health: "notify", Interval: time.Second, NeverBeat: true}}, "silent", 14030, nil, nil)
	up := now.Add(-15 * time.Second)
	beat.Worker.Up = &up
	web := Setup{Health: "http", Sent: "GET /, Host: 127.0.0.1:9001", Wanted: "http status 200-399"}
	behind := web
	behind.SendProxy = "v2"
	return []sample{
		{"refused", plain(backend("w1", "127.0.0.1:9001", "connection refused"), Setup{})},
		{"hung", plain(backend("w1", "127.0.0.1:9001", "does not accept: 3 wait for 2.0 s"), Setup{})},
		{"wrong_port", slot(Facts{Backend: backend("0.1", "127.0.0.1:40123", ""), Setup: Setup{Place: "{port}", Ready: "connect", StartTimeout: 30 * time.Second}, Looked: true,
			Listening: []Listening{{14030, "*:3000"}}}, "starting", 14030, nil, nil)},
		{"never_ready", slot(Facts{Setup: Setup{Ready: "notify", StartTimeout: 30 * time.Second}}, "starting", 14030, nil, nil)},
		{"crash_loop", loop},
		{"exec", slot(Facts{}, "waiting", 0, cannotRun(`there is no "/srv/app/run"`), map[string]uint64{"not_started": 1})},
		{"interpreter", slot(Facts{}, "waiting", 0, cannotRun(`the interpreter "/usr/bin/pyton" in the first line of "/srv/app/run" does not exist`), map[string]uint64{"not_started": 1})},
		{"interpreter", slot(Facts{}, "waiting", 0, cannotRun(`the first line of "/srv/app/run" ends in CRLF, which the kernel takes as part of it: save it with Unix line ends`), map[string]uint64{"not_started": 1})},
		{"max_conns", plain(full, Setup{})},
		{"drained", plain(drained, Setup{})},
		{"no_heartbeat", beat},
		{"proxy_header", plain(backend("w1", "127.0.0.1:9001", "http status 400, want 200-399"), behind)},
		{"proxy_header", plain(backend("w1", "127.0.0.1:9001", "expected an HTTP response, but it closed the connection"), web)},
		{"name", plain(backend("w1", "db.invalid:5432", "lookup db.invalid: no such host"), Setup{Unresolved: true})},
	}
}

func TestDiagnose_NamesTheCause(t *testing.T) {
	for _, s := range samples() {
		d := Diagnose(&s.facts)
		if d.Cause != s.cause || d.Headline == "" || len(d.Do) == 0 {
			t.Errorf("got %+v; want the cause %q, a headline and what to do", d, s.cause)
		}
	}
}

func TestDiagnose_SaysThatNothingIsWrong(t *testing.T) {
	f := Facts{Now: now, Pool: "app", Backend: backend("w1", "127.0.0.1:9001", "")}
	if d := Diagnose(&f); d.Cause != api.CauseNone || d.Headline != "nothing is wrong: up for 12s" || len(d.Do) != 0 || len(d.Also) != 0 {
		t.Errorf("got %+v; want nothing wrong", d)
	}
}

// What may be a cause and is not: each of these has a sign of one.
func TestDiagnose_DoesNotBlameTheInnocent(t *testing.T) {
	old := slot(Facts{Backend: backend("0.2", "unix:/run/lb/0.2.sock", "")}, "up", 14031, &api.WorkerExit{Time: now, PID: 14030, Reason: "exit status 2", Fault: "panic: once"},
		map[string]uint64{"crashed": 1, "not_ready": 1, "not_started": 1})
	ready := now.Add(-time.Minute)
	old.Worker.Up = &ready
	beats := old
	beats.Setup = Setup{Health: "notify", Interval: time.Second}
	place := slot(Facts{Backend: backend("0.1", "127.0.0.1:40123", ""), Setup: Setup{Place: "{port}", Ready: "connect", StartTimeout: 30 * time.Second}, Looked: true,
		Listening: []Listening{{14030, "*:9090"}, {14030, "*:40123"}}}, "starting", 14030, nil, nil)
	place.Worker.Since = now.Add(-time.Second)
	place.Backend.Health = "starting"
	for name, c := range map[string]struct {
		facts Facts
		want  string
	}{
		"one that recovered":            {old, api.CauseNone},
		"one whose heartbeat comes":     {beats, api.CauseNone},
		"one with a port for debugging": {place, "starting"},
	} {
		if d := Diagnose(&c.facts); d.Cause != c.want {
			t.Errorf("%s: got %+v; want %q", name, d, c.want)
		}
	}
}

func TestPool_ThoseWithACauseComeFirst(t *testing.T) {
	st := api.PoolStatus{Name: "app", Selectable: 1, Backends: []api.BackendStatus{{Name: "w1"}, {Name: "w2"}}, Queue: api.QueueStatus{Length: 2, Size: 10}}
	p := Pool(&st, []api.Diagnosis{{Subject: "app/w1", Cause: api.CauseNone}, {Subject: "app/w2", Cause: "refused"}})
	if p.Headline != "1 of 2 take new connections; 2 of 10 wait in the queue" || p.Backends[0].Subject != "app/w2" {
		t.Errorf("got %+v; want app/w2 first", p)
	}
}

// document is docs/troubleshooting.md.
func document() string {
	var b strings.Builder
	b.WriteString(`# What is wrong, and what to do

<!-- Made from the rules in admin/why: go test ./admin/why -run TestTroubleshooting -update -->

` + "`lb why POOL`" + ` looks at every backend of a pool, ` + "`lb why POOL/BACKEND`" + ` at one, ` + "`lb why POOL/SLOT`" + ` at a worker that lb runs. The first line
is the cause; then comes what to do, and for a single one what that rests on: its state and why, the last probe with what it sent
and got, its limits, the worker and where it listens, its last exit with the first line of its crash, and what changed. It only looks:
nothing is changed, and nothing is sent to a backend. ` + "`--json`" + ` and ` + "`GET /v1/pools/{pool}/why`" + ` have the same, with the name of the cause.

Who may only read ([access.md](access.md)) is not told what workers wrote or what probes sent and got, and so gets less of the cause.

| symptom | cause | ` + "`lb why`" + ` prints | do |
|---|---|---|---|
`)
	symptoms := map[string]string{}
	for i := range rules {
		symptoms[rules[i].cause] = rules[i].symptom
	}
	for _, s := range samples() {
		d := Diagnose(&s.facts)
		fmt.Fprintf(&b, "| %s | `%s` | `%s: %s` | %s |\n", symptoms[d.Cause], d.Cause, d.Subject, d.Headline, strings.Join(d.Do, "; "))
	}
	b.WriteString(`
Further causes are ` + "`weight`" + ` (its weight is 0), ` + "`probe`" + ` (the probe fails in another way, which the line says), ` + "`down`" + `, ` + "`starting`" + `, and
` + "`none`" + `. A probe of the types "accept" and "connect" speaks to no program: with ` + "`send_proxy`" + ` use type "http" or "send-expect", or a
backend that does not understand the header looks healthy.
`)
	return b.String()
}

func TestTroubleshooting_IsWhatLbPrints(t *testing.T) {
	const path = "../../docs/troubleshooting.md"
	if *update {
		if err := os.WriteFile(path, []byte(document()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != document() {
		t.Error("docs/troubleshooting.md is not what lb why prints; run: go test ./admin/why -run TestTroubleshooting -update")
	}
}
