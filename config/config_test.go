package config

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"

	"golang.org/x/sys/unix"
)

// app is a valid config of 8 lines that the tests add to.
const app = `[listeners.web]
bind = ["127.0.0.1:8080"]
pool = "app"

[pools.app]
[[pools.app.backends]]
address = "unix:/run/app/w1.sock"
weight = 50
`

func parseOK(t *testing.T, text string) *Config {
	t.Helper()
	c, err := Parse("lb.toml", []byte(text))
	if err != nil {
		t.Fatalf("got faults:\n%v\nwant none in:\n%s", err, text)
	}
	if err := matchSchema(text); err != nil {
		t.Errorf("the schema refuses what lb takes: %v\nin:\n%s", err, text)
	}
	return c
}

// checkFaults parses text and compares its faults, one a line.
func checkFaults(t *testing.T, text, want string) {
	t.Helper()
	c, err := Parse("lb.toml", []byte(text))
	if err == nil {
		t.Errorf("got no fault; want:\n%s\nin:\n%s", want, text)
		return
	}
	if c != nil {
		t.Errorf("got a Config besides the error; want nil")
	}
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("got an error of type %T; want *Error", err)
	}
	if got := err.Error(); got != want {
		t.Errorf("got:\n%s\nwant:\n%s\nin:\n%s", got, want, text)
	}
}

func checkWarnings(t *testing.T, text, want string) {
	t.Helper()
	var lines []string
	for _, w := range parseOK(t, text).Warnings {
		lines = append(lines, w.String())
	}
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("got:\n%s\nwant:\n%s\nin:\n%s", got, want, text)
	}
}

func TestParse_AbsentKeysHaveTheirDefaults(t *testing.T) {
	c := parseOK(t, strings.Replace(app, "weight = 50\n", "", 1))
	pool := c.Pool("app")
	for _, f := range []struct {
		key       string
		got, want any
	}{
		{"proxy.stop_timeout", c.Proxy.StopTimeout, 30 * time.Second},
		{"admin.socket", c.Admin.Socket, "/run/lb/admin.sock"},
		{"log.level", c.Log.Level, "info"},
		{"listeners.web.backlog", c.Listeners[0].Backlog, 4096},
		{"pools.app.idle_timeout", pool.IdleTimeout, time.Hour},
		{"pools.app.health.type", pool.Health.Type, "accept"},
		{"pools.app.health.fall", pool.Health.Fall, 3},
		{"pools.app.backends[0].weight", pool.Backends[0].Weight, backends.DefaultWeight},
	} {
		if f.got != f.want {
			t.Errorf("%s: got %v; want %v", f.key, f.got, f.want)
		}
	}
}

func TestParse_ExplicitZeroIsNoDefault(t *testing.T) {
	c := parseOK(t, `
[proxy]
stop_timeout = "0s"
[admin]
socket = ""
[listeners.web]
bind = ["127.0.0.1:8080"]
pool = "app"
keepalive = "0s"
[pools.app]
idle_timeout = "0s"
[pools.app.health]
passive_fall = 0
jitter = 0
[[pools.app.backends]]
address = "unix:/run/app/w1.sock"
weight = 0
[[pools.app.backends]]
address = "unix:/run/app/w2.sock"
`)
	pool := c.Pool("app")
	for _, f := range []struct {
		key       string
		got, want any
	}{
		{"proxy.stop_timeout", c.Proxy.StopTimeout, time.Duration(0)},
		{"admin.socket", c.Admin.Socket, ""},
		{"listeners.web.keepalive", c.Listener("web").Keepalive, time.Duration(0)},
		{"pools.app.idle_timeout", pool.IdleTimeout, time.Duration(0)},
		{"pools.app.health.passive_fall", pool.Health.PassiveFall, 0},
		{"pools.app.health.jitter", pool.Health.Jitter, 0.0},
		{"pools.app.backends[0].weight", pool.Backends[0].Weight, 0},
		{"pools.app.backends[1].weight", pool.Backends[1].Weight, backends.DefaultWeight},
	} {
		if f.got != f.want {
			t.Errorf("%s: got %v; want %v", f.key, f.got, f.want)
		}
	}
}

func TestParse_ListenersAndPoolsKeepTheOrderOfTheFile(t *testing.T) {
	c := parseOK(t, `
[listeners.zebra]
bind = ["127.0.0.1:1"]
pool = "b"
[listeners.ant]
bind = ["127.0.0.1:2"]
pool = "a"
[pools.b]
backends = [{ address = "127.0.0.1:3" }]
[pools]
a.backends = [{ address = "127.0.0.1:4", name = "x" }, { address = "127.0.0.1:5" }]
`)
	got := []string{c.Listeners[0].Name, c.Listeners[1].Name, c.Pools[0].Name, c.Pools[1].Name}
	if want := "zebra ant b a"; strings.Join(got, " ") != want {
		t.Errorf("got %v; want %v", got, want)
	}
	if got := c.Pool("a").Config.Backends[0].Name; got != "x" {
		t.Errorf("got name %q in the embedded backends.Config; want x", got)
	}
	if c.Pool("c") != nil || c.Listener("c") != nil {
		t.Errorf("got a pool or a listener that is not in the file; want nil")
	}
}

func TestParse_EveryFaultIsReportedInTheOrderOfTheFile(t *testing.T) {
	checkFaults(t, `[proxy]
loops = -1
lops = 2

[listeners.web]
bind = ["127.0.0.1:8080", "127.0.0.1"]
pool = "ap"

[pools.app]
idle_timeout = 30
connect_timeout = "-1s"
[[pools.app.backends]]
address = "unix:/run/app/w1.sock"
[[pools.app.backends]]
address = "w2.sock"
weight = 1001
max_conns = "many"
`, `lb.toml:2: proxy.loops: -1 is not within 0..1024; write 0 for one per CPU
lb.toml:3: proxy.lops: unknown key; did you mean "loops"?
lb.toml:6: listeners.web.bind[1]: cannot parse address "127.0.0.1": write host:port, [v6]:port, unix:/path or unix:@name
lb.toml:7: listeners.web.pool: there is no pool "ap"; did you mean "app"?
lb.toml:10: pools.app.idle_timeout: 30 is a number without a unit; write "30s" for seconds
lb.toml:11: pools.app.connect_timeout: -1s is negative
lb.toml:15: pools.app.backends[1].address: cannot parse address "w2.sock": write host:port, [v6]:port, unix:/path or unix:@name
lb.toml:16: pools.app.backends[1].weight: 1001 is not within 0..1000
lb.toml:17: pools.app.backends[1].max_conns: "many" is a string where an integer belongs`)
}

func TestParse_FaultsCanBeRangedOver(t *testing.T) {
	_, err := Parse("x.toml", []byte(app+"weigth = 1\n"))
	var e *Error
	if !errors.As(err, &e) || len(e.Faults) != 1 {
		t.Fatalf("got %v; want one fault", err)
	}
	want := Fault{File: "x.toml", Line: 9, Path: "pools.app.backends[0].weigth", Message: `unknown key; did you mean "weight"?`}
	if e.Faults[0] != want {
		t.Errorf("got %+v; want %+v", e.Faults[0], want)
	}
}

func TestParse_UnknownKeys(t *testing.T) {
	for _, f := range []struct{ name, text, want string }{
		{"near a known key", "[pools.app]\nidle_timout = '1h'",
			`lb.toml:10: pools.app.idle_timout: unknown key; did you mean "idle_timeout"?`},
		{"swapped letters", "[log]\nlevle = 'info'",
			`lb.toml:10: log.levle: unknown key; did you mean "level"?`},
		{"other case", "[log]\nLevel = 'info'",
			`lb.toml:10: log.Level: unknown key; did you mean "level"?`},
		{"key of another table", "[listeners.web]\nidle_timeout = '1h'",
			`lb.toml:10: listeners.web.idle_timeout: unknown key here; it belongs in [pools.NAME]`},
		{"key of other tables", "[listeners.web]\nqueue_size = 10",
			`lb.toml:10: listeners.web.queue_size: unknown key here; it belongs in [pools.NAME]`},
		{"near nothing", "[log]\ncolour = 'red'",
			`lb.toml:10: log.colour: unknown key; here may stand level, format, output, access, access_format`},
		{"table", "[listener.api]\nbind = []",
			`lb.toml:9: listener: unknown key; did you mean "listeners"?`},
		{"array of tables", "[[pools.app.backend]]\naddress = ''",
			`lb.toml:9: pools.app.backend: unknown key; did you mean "backends"?`},
		{"in an inline table", "[pools.b]\nbackends = [\n{address = '[::1]:80'},\n{address = '[::1]:81', wight = 1}]",
			`lb.toml:12: pools.b.backends[1].wight: unknown key; did you mean "weight"?`},
		{"quoted", "[proxy]\n\"loo ps\\u0021\" = 1",
			`lb.toml:10: proxy."loo ps!": unknown key; did you mean "loops"?`},
		{"at the top", "level = 'info'",
			`lb.toml:1: level: unknown key here; it belongs in [log]`},
	} {
		t.Run(f.name, func(t *testing.T) {
			text := app + f.text
			switch f.name {
			case "at the top":
				text = f.text + "\n" + app
			case "near a known key":
				text = strings.Replace(app, "[pools.app]\n", "\n", 1) + f.text
			case "key of another table", "key of other tables":
				text = strings.Replace(app, "[listeners.web]\n", "\n", 1)
				text = "\n\n\n\n\n\n\n\n[listeners.web]\n" + strings.TrimPrefix(f.text, "[listeners.web]\n") + "\n" + strings.TrimPrefix(text, "\n")
			}
			checkFaults(t, text, f.want)
		})
	}
}

func TestParse_WrongTypes(t *testing.T) {
	for _, f := range []struct{ text, want string }{
		{"[proxy]\nloops = '4'", `proxy.loops: "4" is a string where an integer belongs; write 4`},
		{"[proxy]\nloops = 1.5", `proxy.loops: 1.5 is a number where an integer belongs`},
		{"[proxy]\nloops = true", `proxy.loops: true is a boolean where an integer belongs`},
		{"[proxy]\nloops = 2020-02-02", `proxy.loops: this is a date where an integer belongs`},
		{"[proxy]\nloops = [4]", `proxy.loops: this is a list where an integer belongs`},
		{"[proxy]\nloops = {n = 4}", `proxy.loops: this is a table where an integer belongs`},
		{"[proxy]\nstop_timeout = 30", `proxy.stop_timeout: 30 is a number without a unit; write "30s" for seconds`},
		{"[proxy]\nstop_timeout = 0", `proxy.stop_timeout: 0 is a number without a unit; write "0s" for seconds`},
		{"[proxy]\nstop_timeout = 0.5", `proxy.stop_timeout: 0.5 is a number without a unit; write "0.5s" for seconds`},
		{"[proxy]\nstop_timeout = '30'", `proxy.stop_timeout: "30" is not a duration; write a number and a unit of ms, s, m or h, such as "30s"`},
		{"[proxy]\nstop_timeout = '1d'", `proxy.stop_timeout: "1d" is not a duration; write a number and a unit of ms, s, m or h, such as "30s"`},
		{"[proxy]\nstop_timeout = true", `proxy.stop_timeout: true is a boolean where a duration belongs; write "30s"`},
		{"[log]\nlevel = 3", `log.level: 3 is an integer where a string belongs; write "3"`},
		{"[log]\noutput = false", `log.output: false is a boolean where a string belongs; write "false"`},
		{"[pools.app.health]\njitter = '0.2'", `pools.app.health.jitter: "0.2" is a string where a number belongs; write 0.2`},
		{"[pools.app.health]\njitter = nan", `pools.app.health.jitter: NaN is not within 0..0.5`},
		{"[listeners.two]\nbind = '127.0.0.1:81'", `listeners.two.bind: "127.0.0.1:81" is a string where a list belongs; write ["127.0.0.1:81"]`},
		{"[listeners.two]\nbind = [81]", `listeners.two.bind[0]: 81 is an integer where a string belongs; write "81"`},
		{"[pools.two]\nbackends = 'x:1'", `pools.two.backends: "x:1" is a string where a list belongs; write [[pools.two.backends]]`},
		{"[pools.two]\nbackends = ['x:1']", `pools.two.backends[0]: "x:1" is a string where a table belongs`},
		{"[pools]\ntwo = 'x:1'", `pools.two: "x:1" is a string where a table belongs; write [pools.NAME] above it`},
		{"[[pools.two]]\nbalance = 'leastconn'", `pools.two: this is an array of tables where a table belongs; write [pools.NAME] above it`},
	} {
		c := strings.TrimSuffix(app, "\n")
		if strings.HasPrefix(f.text, "[listeners.two]") {
			f.text += "\npool = 'app'"
		}
		line := "9"
		if !strings.HasPrefix(f.text, "[[") && strings.Contains(f.text, "\n") {
			line = "10"
		}
		checkFaults(t, c+"\n"+f.text, "lb.toml:"+line+": "+f.want)
	}
	checkFaults(t, "proxy = 3\nlisteners = 'web'\n[pools.app]\nbackends = []", `lb.toml:1: proxy: 3 is an integer where a table belongs
lb.toml:2: listeners: "web" is a string where tables belong; write [listeners.NAME]
lb.toml:4: pools.app.backends: missing; add a [[pools.app.backends]] with an address, or [pools.app.workers] with a command`)
}

func TestParse_MissingKeysPointAtTheirTable(t *testing.T) {
	for _, f := range []struct{ name, text, want string }{
		{"nothing at all", "# a comment\n",
			"lb.toml: listeners: missing; add a [listeners.NAME] with bind and pool"},
		{"no listener", app[strings.Index(app, "[pools"):],
			"lb.toml: listeners: missing; add a [listeners.NAME] with bind and pool"},
		{"empty [listeners]", "\n[listeners]\n" + app[strings.Index(app, "[pools"):],
			"lb.toml:2: listeners: missing; add a [listeners.NAME] with bind and pool"},
		{"bind and pool", app + "\n[listeners.two]\n",
			"lb.toml:10: listeners.two.bind: missing; write an address such as [\"127.0.0.1:8080\"]\n" +
				"lb.toml:10: listeners.two.pool: missing; name the pool that serves this listener"},
		{"address of the second backend", app + "[[pools.app.backends]]\nname = 'w2'\n",
			"lb.toml:9: pools.app.backends[1].address: missing; write unix:/path, unix:@name, host:port or [v6]:port"},
		{"address in an inline table", app + "[pools.two]\nbackends = [\n  {name = 'a',\n    weight = 3}]",
			"lb.toml:11: pools.two.backends[0].address: missing; write unix:/path, unix:@name, host:port or [v6]:port"},
		{"backends", app[:strings.Index(app, "[[")],
			"lb.toml:5: pools.app.backends: missing; add a [[pools.app.backends]] with an address, or [pools.app.workers] with a command"},
		{"backends empty", app[:strings.Index(app, "[[")] + "\nbackends = []",
			"lb.toml:7: pools.app.backends: missing; add a [[pools.app.backends]] with an address, or [pools.app.workers] with a command"},
		{"backends of a pool with only health", app + "[pools.two.health]\ninterval = '5s'\n",
			"lb.toml:9: pools.two.backends: missing; add a [[pools.two.backends]] with an address, or [pools.two.workers] with a command"},
		{"pool", app[:strings.Index(app, "[pools")],
			`lb.toml:3: listeners.web.pool: there is no pool "app"; add [pools.app] or name another`},
	} {
		t.Run(f.name, func(t *testing.T) { checkFaults(t, f.text, f.want) })
	}
}

func TestParse_FaultOfAKeyHidesItsConsequences(t *testing.T) {
	checkFaults(t, strings.Replace(app, `["127.0.0.1:8080"]`, "8080", 1),
		`lb.toml:2: listeners.web.bind: 8080 is an integer where a list belongs; write ["8080"]`)
	checkFaults(t, strings.Replace(app, `"unix:/run/app/w1.sock"`, "1", 1),
		`lb.toml:7: pools.app.backends[0].address: 1 is an integer where a string belongs; write "1"`)
	checkFaults(t, strings.Replace(app, `"app"`, "1", 1),
		`lb.toml:3: listeners.web.pool: 1 is an integer where a string belongs; write "1"`)
	checkFaults(t, "pools = 1\n"+app[:strings.Index(app, "[pools")],
		`lb.toml:1: pools: 1 is an integer where tables belong; write [pools.NAME]`)
}

func TestParse_NamesMustBeValid(t *testing.T) {
	checkFaults(t, strings.NewReplacer("listeners.web", `listeners."my web"`, "pools.app", `pools."a/b"`, `"app"`, `"a/b"`).Replace(app),
		`lb.toml:1: listeners."my web": "my web" cannot name a listener; write 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first
lb.toml:5: pools."a/b": "a/b" cannot name a pool; write 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first`)
	c := parseOK(t, strings.NewReplacer("pools.app", `pools."app.v1.2"`, `"app"`, `"app.v1.2"`).Replace(app))
	if c.Pool("app.v1.2") == nil {
		t.Errorf("got no pool app.v1.2; want one, as a name may have dots")
	}
	checkFaults(t, strings.NewReplacer("pools.app", `pools."app.v1.2"`, `"app"`, `"app.v1.2"`, "50", "-1").Replace(app),
		`lb.toml:8: pools."app.v1.2".backends[0].weight: -1 is not within 0..1000`)
}

func TestParse_AddressesAreListenedOnOnce(t *testing.T) {
	for _, f := range []struct{ bind, want string }{
		{`"127.0.0.1:80", "127.0.0.1:81"`, ``},
		{`"127.0.0.1:80", "127.0.0.1:80"`, `bind[1]: 127.0.0.1:80 is taken by listeners.web.bind[0], 127.0.0.1:80`},
		{`"localhost:80", "LOCALHOST:80"`, `bind[1]: LOCALHOST:80 is taken by listeners.web.bind[0], localhost:80`},
		{`"[::1]:80", "[0:0::1]:80"`, `bind[1]: [0:0::1]:80 is taken by listeners.web.bind[0], [::1]:80`},
		{`"127.0.0.1:80", ":80"`, `bind[1]: :80 is taken by listeners.web.bind[0], 127.0.0.1:80`},
		{`":80", "localhost:80"`, `bind[1]: localhost:80 is taken by listeners.web.bind[0], :80`},
		{`"127.0.0.1:80", "0.0.0.0:80"`, `bind[1]: 0.0.0.0:80 is taken by listeners.web.bind[0], 127.0.0.1:80`},
		{`"[::]:80", "[::1]:80"`, `bind[1]: [::1]:80 is taken by listeners.web.bind[0], [::]:80`},
		{`"[::1]:80", "0.0.0.0:80", "127.0.0.1:81", "127.0.0.2:81"`, ``},
		{`"127.0.0.1:0", "127.0.0.1:0"`, ``},
		{`"unix:/run/lb.sock", "unix:@lb"`, ``},
		{`"unix:@lb", "unix:@lb"`, `bind[1]: unix:@lb is taken by listeners.web.bind[0], unix:@lb`},
		{`"unix:/run/lb/admin.sock"`, `bind[0]: unix:/run/lb/admin.sock is taken by admin.socket, unix:/run/lb/admin.sock`},
		{`":9901"`, `bind[0]: :9901 is taken by admin.http, 127.0.0.1:9901`},
	} {
		text := strings.Replace(app, `"127.0.0.1:8080"`, f.bind, 1)
		if f.want == "" {
			parseOK(t, text)
		} else {
			checkFaults(t, text, "lb.toml:2: listeners.web."+f.want)
		}
	}
	checkFaults(t, app+"[listeners.two]\npool = 'app'\nbind = [\n  '127.0.0.1:81',\n  '127.0.0.1:8080',\n]\n",
		"lb.toml:13: listeners.two.bind[1]: 127.0.0.1:8080 is taken by listeners.web.bind[0], 127.0.0.1:8080")
}

func TestParse_ListenerIsNoBackendOfItself(t *testing.T) {
	checkFaults(t, strings.Replace(app, "unix:/run/app/w1.sock", "127.0.0.1:8080", 1),
		`lb.toml:7: pools.app.backends[0].address: 127.0.0.1:8080 is the listener "web" itself: connections would go in a circle`)
	parseOK(t, strings.Replace(app, "unix:/run/app/w1.sock", "127.0.0.1:81", 1)+
		"[listeners.inner]\nbind = ['127.0.0.1:81']\npool = 'b'\n[pools.b]\nbackends = [{address = 'unix:/b'}]\n")
}

func TestParse_Warnings(t *testing.T) {
	checkWarnings(t, app, "")
	checkWarnings(t, app+"[pools.old]\nbackends = [{address = 'unix:/old'}]\n",
		"lb.toml:9: pools.old: no listener uses this pool")
	checkWarnings(t, app+"[[pools.app.backends]]\nname = 'again'\naddress = 'unix:/run/app/w1.sock'\n",
		"lb.toml:11: pools.app.backends[1].address: unix:/run/app/w1.sock is the address of backends[0] too")
	checkWarnings(t, app+"[pools.app.health]\ninterval = '1s'\ntimeout = '2s'\n",
		"lb.toml:11: pools.app.health.timeout: timeout 2s is above interval 1s")
	checkWarnings(t, app+"[pools.app.health]\ninterval = '200ms'\n",
		"lb.toml:10: pools.app.health.interval: timeout 500ms is above interval 200ms")
	checkWarnings(t, app+"[pools.app.health]\ntype = 'none'\ninterval = '200ms'\n", "")
	checkWarnings(t, strings.Replace(app, "[pools.app]\n", "[pools.app]\nidle_timeout = '2s'\n", 1),
		"lb.toml:6: pools.app.idle_timeout: idle_timeout 2s is below connect_timeout 5s")
	checkWarnings(t, strings.Replace(app, "[pools.app]\n", "[pools.app]\nidle_timeout = '0s'\n", 1), "")
	checkWarnings(t, "[pools.b]\nbackends = [{address='unix:/b'}]\n[pools.a]\nbackends = [{address='unix:/a'},{address='unix:/a', name='c'}]\n"+app,
		"lb.toml:1: pools.b: no listener uses this pool\nlb.toml:3: pools.a: no listener uses this pool\n"+
			"lb.toml:4: pools.a.backends[1].address: unix:/a is the address of backends[0] too")
	checkWarnings(t, app+"[pools.b]\nbackends = [{address='unix:/b'}]\n[pools.app.health]\ntimeout = '2s'\n",
		"lb.toml:9: pools.b: no listener uses this pool\nlb.toml:12: pools.app.health.timeout: timeout 2s is above interval 1s")
}

func TestParse_SyntaxFaultHasLineAndColumn(t *testing.T) {
	for _, f := range []struct{ text, want string }{
		{"[proxy]\nloops = \n", `lb.toml:2:9: expected value but found '\n' instead`},
		{"[proxy]\nloops 4\n", `lb.toml:2:7: expected '.' or '=', but got '4' instead`},
		{"[proxy\nloops = 4\n", `lb.toml:1:7: expected '.' or ']' to end table name, but got '\n' instead`},
		{"[proxy]\nloops = 1\nloops = 2\n", `lb.toml:3:1: Key 'proxy.loops' has already been defined`},
		{"[proxy]\n[log]\n[proxy]\n", `lb.toml:3:2: Key 'proxy' has already been defined`},
		{"[log]\nlevel = \"info\n", `lb.toml:2:14: strings cannot contain newlines`},
		{"[log]\nlevel = \"info", `lb.toml:2:13: unexpected EOF; expected '"'`},
		{"[log]\nlevel = info\n", `lb.toml:2:9: info is no value; write "info" in quotes`},
		{"[proxy]\nstop_timeout=30s # wrong\r\n", `lb.toml:2:14: 30s is no value; write "30s" in quotes`},
		{"[admin]\nsocket = /run/lb.sock", `lb.toml:2:10: /run/lb.sock is no value; write "/run/lb.sock" in quotes`},
		{"[admin]\nsocket = true\nsocket = false\n", `lb.toml:3:1: Key 'admin.socket' has already been defined`},
		{"[listeners.web]\nunix_mode = 0660\n", `lb.toml:2:13: Invalid integer "0660": cannot have leading zeroes`},
		{"# ärger\n[log]\nx = \"ä\" y\n", `lb.toml:3:8: expected a top-level item to end with a newline, comment, or EOF, but got 'y' instead`},
	} {
		checkFaults(t, f.text, f.want)
	}
}

func TestParse_WhatIsNoText(t *testing.T) {
	for _, f := range []struct{ name, text, want string }{
		{"empty", "", "lb.toml: the file is empty; a config needs at least one [listeners.NAME] and its [pools.NAME]"},
		{"too large", strings.Repeat("#", maxSize+1), "lb.toml: the file has more than 1048576 bytes; is it a config?"},
		{"byte order mark", "\xef\xbb\xbf" + app, "lb.toml:1: the file begins with a byte order mark; save it as UTF-8 without one"},
		{"UTF-16", "\xff\xfe[\x00", "lb.toml:1: the file is UTF-16; save it as UTF-8"},
		{"Latin-1", "[log]\n# ä \xe4\n", "lb.toml:2:5: byte 0xe4 is not UTF-8; save the file as UTF-8"},
		{"NUL", "[log]\n\x00", "lb.toml:2:1: NUL byte; a config is text in UTF-8"},
		{"control character", "[log]\n# \x1b[31m\n", "lb.toml:2:2: TOML files cannot contain control characters: '0x1b'"},
		{"nested arrays", "\nx = " + strings.Repeat("[", 100_000), "lb.toml:2: nested more than 16 deep; no key of lb is"},
		{"nested tables", "x = " + strings.Repeat("{a=", 100_000), "lb.toml:1: nested more than 16 deep; no key of lb is"},
		{"long dotted key", "a" + strings.Repeat(".a", 100_000) + " = 1", "lb.toml:1: nested more than 16 deep; no key of lb is"},
		{"long header", "[a" + strings.Repeat(".a", 100_000) + "]", "lb.toml:1: nested more than 16 deep; no key of lb is"},
	} {
		t.Run(f.name, func(t *testing.T) { checkFaults(t, f.text, f.want) })
	}
}

// cpuTime is what this process has used until now: others may have the machine.
func cpuTime(t *testing.T) time.Duration {
	t.Helper()
	var u unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// Of a small part of the largest size: what takes the square of the size would still take minutes.
func TestParse_LargeFileIsQuick(t *testing.T) {
	fill := func(head, format string) string {
		var b strings.Builder
		b.WriteString(head)
		for i := 0; b.Len() < maxSize/32; i++ {
			fmt.Fprintf(&b, format, i)
		}
		return b.String()
	}
	for name, text := range map[string]string{
		"backends":  fill("", "[[pools.a.backends]]\nname='n%d'\nweight=-1\nx=1\n"),
		"keys":      fill("", "k%d = 1\n"),
		"binds":     fill("[listeners.a]\nbind=[", "'x:80', # %d\n") + "]",
		"pools":     fill("", "[pools.n%[1]d]\n[listeners.n%[1]d]\npool='n%[1]d'\n"),
		"listeners": fill("", "[listeners.n%[1]d]\npool='m%[1]d'\n"),
	} {
		start := cpuTime(t)
		_, err := Parse(name, []byte(text))
		var e *Error
		if !errors.As(err, &e) || len(e.Faults) < 500 {
			t.Errorf("%s: got %d faults; want 500 or more", name, len(e.Faults))
		}
		if d := cpuTime(t) - start; d > 5*time.Second {
			t.Errorf("%s: %d bytes took %v; want less than 5s", name, len(text), d)
		} else {
			t.Logf("%s: %d faults in %v", name, len(e.Faults), d)
		}
	}
}

func TestLoad_NamesTheFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lb.toml")
	if err := os.WriteFile(path, []byte(app), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Load(path); err != nil {
		t.Errorf("got %v; want no error", err)
	}
	if err := os.WriteFile(path, []byte(app+"wieght = 1\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := Load(path)
	if want := path + ":9: pools.app.backends[0].wieght: unknown key; did you mean \"weight\"?"; err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
}

func TestLoad_WhatCannotBeRead(t *testing.T) {
	dir := t.TempDir()
	_, err := Load(dir)
	if want := `cannot read config "` + dir + `": is a directory`; err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
	absent := filepath.Join(dir, "absent.toml")
	_, err = Load(absent)
	if want := `cannot read config "` + absent + `": no such file or directory`; err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("got %v; want fs.ErrNotExist inside", err)
	}
	_, err = Load("/dev/zero")
	if want := "/dev/zero: the file has more than 1048576 bytes; is it a config?"; err == nil || err.Error() != want {
		t.Errorf("got %v; want %s", err, want)
	}
}
