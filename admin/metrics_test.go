package admin

import (
	"bytes"
	"flag"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// sample is one line of the text format.
type sample struct {
	name, labels string
	value        float64
}

// parsed is a page of metrics that keeps the rules of the text format.
type parsed struct {
	types   map[string]string // by family
	samples []sample
}

var (
	sampleForm = regexp.MustCompile(`^([a-z_:][a-z0-9_:]*)(\{(?:[a-z_]+="(?:[^"\\\n]|\\[\\n"])*",?)+\})? (\S+)$`)
	leForm     = regexp.MustCompile(`,?le="([^"]*)"`)
)

// parse reads metrics and fails the test for each broken rule: HELP and TYPE once and before the samples, the
// samples of a family together and none twice, counters with their ending and nothing else with it.
func parse(t *testing.T, text string) parsed {
	t.Helper()
	p := parsed{types: map[string]string{}}
	helped, seen, family := map[string]bool{}, map[string]bool{}, ""
	for n, line := range strings.Split(strings.TrimSuffix(text, "\n"), "\n") {
		fault := func(format string, args ...any) {
			t.Errorf("line %d %q: %s", n+1, line, fmt.Sprintf(format, args...))
		}
		if rest, ok := strings.CutPrefix(line, "# HELP "); ok {
			name, help, _ := strings.Cut(rest, " ")
			if helped[name] || help == "" {
				fault("want one HELP with a text for each family")
			}
			helped[name], family = true, name
			continue
		}
		if rest, ok := strings.CutPrefix(line, "# TYPE "); ok {
			name, typ, _ := strings.Cut(rest, " ")
			if p.types[name] != "" || name != family {
				fault("want one TYPE for each family, behind its HELP")
			}
			if strings.HasSuffix(name, "_total") != (typ == "counter") {
				fault("want _total at the end of counters and of nothing else")
			}
			p.types[name] = typ
			continue
		}
		m := sampleForm.FindStringSubmatch(line)
		if m == nil {
			fault("want a sample")
			continue
		}
		of := m[1]
		if typ := p.types[family]; typ == "histogram" || typ == "summary" {
			for _, suffix := range []string{"_bucket", "_sum", "_count"} {
				of = strings.TrimSuffix(of, suffix)
			}
		}
		if of != family || p.types[family] == "" {
			fault("want a sample of the family %q", family)
		}
		if seen[m[1]+m[2]] {
			fault("want each sample once")
		}
		seen[m[1]+m[2]] = true
		value, err := strconv.ParseFloat(m[3], 64)
		if err != nil {
			fault("want a number: %v", err)
		}
		p.samples = append(p.samples, sample{m[1], m[2], value})
	}
	p.checkHistograms(t)
	return p
}

// checkHistograms wants every histogram's bounds and buckets to grow, the last bound to be +Inf and its
// bucket the count.
func (p *parsed) checkHistograms(t *testing.T) {
	t.Helper()
	type state struct{ le, n float64 }
	last := map[string]state{}
	for _, s := range p.samples {
		family, isBucket := strings.CutSuffix(s.name, "_bucket")
		if !isBucket || p.types[family] != "histogram" {
			continue
		}
		le, err := strconv.ParseFloat(leForm.FindStringSubmatch(s.labels)[1], 64)
		if err != nil {
			t.Errorf("%s%s: %v", s.name, s.labels, err)
		}
		key := family + strings.TrimSuffix(leForm.ReplaceAllString(s.labels, ""), "{}")
		if before, ok := last[key]; ok && (le <= before.le || s.value < before.n) {
			t.Errorf("%s%s: got %v at %v behind %v at %v; want both to grow", s.name, s.labels, s.value, le, before.n, before.le)
		}
		last[key] = state{le, s.value}
	}
	for key, end := range last {
		family, labels, _ := strings.Cut(key, "{")
		if labels != "" {
			labels = "{" + labels
		}
		if got := p.value(t, family+"_count"+labels); got != end.n || !isInf(end.le) {
			t.Errorf("%s: got count %v, last bucket %v at %v; want the same at +Inf", key, got, end.n, end.le)
		}
		p.value(t, family+"_sum"+labels)
	}
}

func isInf(f float64) bool { return f > 1e300 }

// value gives the value of a sample by name and labels, as they stand in the text.
func (p *parsed) value(t *testing.T, series string) float64 {
	t.Helper()
	for _, s := range p.samples {
		if s.name+s.labels == series {
			return s.value
		}
	}
	t.Errorf("metrics: got no %s; want it", series)
	return 0
}

func scrape(t *testing.T, src Sources) (parsed, string) {
	t.Helper()
	var text bytes.Buffer
	if err := src.writeMetrics(&text, new(refusals), new(acceptFailures)); err != nil {
		t.Fatal(err)
	}
	// For a look with promtool: LB_METRICS=/tmp/m go test -run Metrics ./admin && promtool check metrics
	// </tmp/m
	if path := os.Getenv("LB_METRICS"); path != "" {
		os.WriteFile(path, text.Bytes(), 0o644)
	}
	return parse(t, text.String()), text.String()
}

func TestMetrics_SayWhichListenerCannotAccept(t *testing.T) {
	src := testSources(t)
	src.NotAccepting = func() []string { return nil }
	p, _ := scrape(t, src)
	if got := p.value(t, `lb_listener_accepting{listener="web"}`); got != 1 {
		t.Errorf("lb_listener_accepting of a listener that accepts: got %v; want 1", got)
	}
	src.NotAccepting = func() []string { return []string{"web"} }
	p, _ = scrape(t, src)
	if got := p.value(t, `lb_listener_accepting{listener="web"}`); got != 0 {
		t.Errorf("lb_listener_accepting of a listener that does not accept: got %v; want 0", got)
	}
}

func TestMetrics_KeepTheRulesOfTheFormat(t *testing.T) {
	p, _ := scrape(t, testSources(t))
	for series, want := range map[string]float64{
		`lb_sessions`:                                                                 1,
		`lb_max_sessions`:                                                             1000,
		`lb_session_limit_reached_total`:                                              6,
		`lb_pipes`:                                                                    3,
		`lb_spliced_bytes_total`:                                                      4,
		`lb_access_log_dropped_total`:                                                 5,
		`lb_accept_errors_total{reason="emfile"}`:                                     2,
		`lb_accept_errors_total{reason="other"}`:                                      0,
		`lb_listener_active{listener="web"}`:                                          1,
		`lb_listener_connections_total{listener="web"}`:                               7,
		`lb_listener_bytes_in_total{listener="web"}`:                                  11,
		`lb_listener_bytes_out_total{listener="web"}`:                                 22,
		`lb_pool_active{pool="app"}`:                                                  1,
		`lb_pool_selectable{pool="app"}`:                                              1,
		`lb_pool_backends{pool="app"}`:                                                2,
		`lb_pool_imbalance{pool="app"}`:                                               1,
		`lb_backend_active{pool="app",backend="w1"}`:                                  1,
		`lb_backend_weight{pool="app",backend="w1"}`:                                  100,
		`lb_backend_selectable{pool="app",backend="w1"}`:                              1,
		`lb_backend_selectable{pool="app",backend="w2"}`:                              0,
		`lb_backend_connections_total{pool="app",backend="w1"}`:                       1,
		`lb_backend_bytes_in_total{pool="app",backend="w1"}`:                          11,
		`lb_backend_bytes_out_total{pool="app",backend="w1"}`:                         22,
		`lb_backend_connect_errors_total{pool="app",backend="w2",reason="refused"}`:   1,
		`lb_backend_health{pool="app",backend="w2",state="down"}`:                     1,
		`lb_backend_admin{pool="app",backend="w2",state="drain"}`:                     1,
		`lb_backend_probe_ok{pool="app",backend="w2"}`:                                0,
		`lb_backend_probe_duration_seconds{pool="app",backend="w2"}`:                  0.5,
		`lb_backend_connect_seconds_count{pool="app",backend="w1"}`:                   1,
		`lb_backend_session_seconds_sum{pool="app",backend="w1"}`:                     2,
		`lb_backend_session_seconds_bucket{pool="app",backend="w1",le="+Inf"}`:        1,
		`lb_backend_session_seconds_bucket{pool="app",backend="w1",le="0.001048576"}`: 0,
	} {
		if got := p.value(t, series); got != want {
			t.Errorf("%s: got %v; want %v", series, got, want)
		}
	}
	if fds := p.value(t, "lb_open_fds"); fds < 3 {
		t.Errorf("lb_open_fds: got %v; want at least stdin, stdout and stderr", fds)
	}
	for _, f := range runtimeFamilies {
		if p.types[f.name] == "" {
			t.Errorf("%s: got nothing; package metrics does not offer it any more", f.name)
		}
	}
}

func TestMetrics_CarryAnyNameInALabel(t *testing.T) {
	pool := newPool(t, "app")
	cfg := backends.DefaultBackendConfig()
	cfg.Address = "unix:/run/a \"b\" \\ c\nd{}.sock"
	if _, err := pool.Add(cfg, backends.HealthUp); err != nil {
		t.Fatal(err)
	}
	p, _ := scrape(t, Sources{Pools: func() []*backends.Pool { return []*backends.Pool{pool} }})
	p.value(t, `lb_backend_weight{pool="app",backend="unix:/run/a \"b\" \\ c\nd{}.sock"}`)
}

func TestMetrics_OfAnEmptyServerKeepTheRules(t *testing.T) {
	scrape(t, Sources{})
}

func TestMetrics_ImbalanceIsOneWhenTheLoadFollowsTheWeights(t *testing.T) {
	type load struct{ active, weight int }
	for _, tc := range []struct {
		members []load
		drained load
		want    float64
	}{
		{nil, load{}, 1},
		{[]load{{0, 100}, {0, 100}}, load{}, 1},
		{[]load{{5, 100}, {5, 100}}, load{}, 1},
		{[]load{{1, 10}, {9, 90}}, load{}, 1},
		{[]load{{10, 100}, {0, 100}}, load{}, 2},
		{[]load{{5, 100}}, load{50, 100}, 1}, // a draining one does not count
	} {
		pool := newPool(t, "app")
		for i, l := range append(slices.Clone(tc.members), tc.drained) {
			cfg := backends.DefaultBackendConfig()
			cfg.Name, cfg.Address, cfg.Weight = fmt.Sprintf("w%d", i), fmt.Sprintf("unix:/run/w%d.sock", i), l.weight
			b, err := pool.Add(cfg, backends.HealthUp)
			if err != nil {
				t.Fatal(err)
			}
			for range l.active {
				pool.Retake(b)
			}
			if i == len(tc.members) {
				pool.SetAdmin(b, backends.AdminDrain, "")
			}
		}
		if got := imbalance(pool.Backends()); got < tc.want-1e-9 || got > tc.want+1e-9 {
			t.Errorf("imbalance of %+v: got %v; want %v", tc.members, got, tc.want)
		}
	}
}

// TestMetrics_SeriesOfASlotGoOnOverDeploys has a slot's worker replaced, while the old one still has a
// session.
func TestMetrics_SeriesOfASlotGoOnOverDeploys(t *testing.T) {
	pool := newPool(t, "app")
	pool.SetSeries(func(name string) string { slot, _, _ := strings.Cut(name, "."); return slot })
	add := func(name string) *backends.Backend {
		cfg := backends.DefaultBackendConfig()
		cfg.Name, cfg.Address = name, "unix:/run/"+name+".sock"
		b, err := pool.Add(cfg, backends.HealthUp)
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
	src := Sources{Pools: func() []*backends.Pool { return []*backends.Pool{pool} }}
	want := func(when string, connections, active, sessions float64) {
		t.Helper()
		p, text := scrape(t, src)
		for series, want := range map[string]float64{
			`lb_backend_connections_total{pool="app",backend="3"}`:     connections,
			`lb_backend_active{pool="app",backend="3"}`:                active,
			`lb_backend_session_seconds_count{pool="app",backend="3"}`: sessions,
			`lb_backend_health{pool="app",backend="3",state="up"}`:     1,
			`lb_backend_connect_seconds_count{pool="app",backend="3"}`: connections,
		} {
			if got := p.value(t, series); got != want {
				t.Errorf("%s: %s: got %v; want %v", when, series, got, want)
			}
		}
		if strings.Contains(text, `backend="3.`) {
			t.Errorf("%s: got a series of a generation; want those of slots alone", when)
		}
	}
	use := func(b *backends.Backend) {
		pool.Retake(b)
		b.Connected(time.Millisecond)
	}
	end := func(b *backends.Backend) {
		b.SessionTime.Observe(time.Second)
		pool.Release(b)
	}
	first := add("3.1")
	use(first)
	use(first)
	end(first)
	want("one worker", 2, 1, 1)
	second := add("3.2")
	use(second)
	want("two workers", 3, 2, 1)
	pool.Remove(first, "replaced")
	want("the first has gone, and its session goes on", 3, 2, 1)
	end(first)
	want("its session has ended", 3, 1, 2)

	saved := pool.Save(nil) // an upgrade
	pool = newPool(t, "app")
	pool.SetSeries(func(name string) string { slot, _, _ := strings.Cut(name, "."); return slot })
	add("3.2")
	if _, err := pool.Restore(saved); err != nil {
		t.Fatal(err)
	}
	want("after an upgrade", 3, 0, 2)
}

// TestMetrics_OfManyUnusedBackendsAreFew bounds what a scrape of a large, quiet lb carries: it was 6.9 MB.
func TestMetrics_OfManyUnusedBackendsAreFew(t *testing.T) {
	var names []string
	for i := range 1000 {
		names = append(names, fmt.Sprintf("backend-%d", i))
	}
	pool := newPool(t, "app", names...)
	var listeners []api.ListenerStatus
	for i := range 500 {
		listeners = append(listeners, api.ListenerStatus{Name: fmt.Sprintf("listener-%d", i),
			Refused: map[string]uint64{"denied": 0, "max_conns": 0, "source_max_conns": 0, "source_rate": 0, "rate": 0, "proxy_from": 0, "bad_header": 0, "header_timeout": 0}})
	}
	src := Sources{
		Pools:     func() []*backends.Pool { return []*backends.Pool{pool} },
		Listeners: func() []api.ListenerStatus { return listeners },
		Probe: func(*backends.Backend) api.ProbeStatus {
			return api.ProbeStatus{Time: time.Now(), OK: true, Duration: 0.000123}
		},
		Queue: func(*backends.Backend) *api.AcceptQueue { return &api.AcceptQueue{Limit: 511} },
	}
	p, text := scrape(t, src)
	const most = 6_900_000 / 3
	t.Logf("%d bytes, %d samples", len(text), len(p.samples))
	if len(text) > most {
		t.Errorf("metrics of 1000 unused backends and 500 listeners: got %d bytes; want at most %d", len(text), most)
	}
}

func TestMetrics_NumbersOfABackendAreThereOnceItIsUsed(t *testing.T) {
	pool := newPool(t, "app", "w1", "w2")
	pool.Get("w1").FirstByteTime.Observe(3 * time.Millisecond)
	p, text := scrape(t, Sources{Pools: func() []*backends.Pool { return []*backends.Pool{pool} }})
	if got := p.value(t, `lb_backend_first_byte_seconds_bucket{pool="app",backend="w1",le="0.004194304"}`); got != 1 {
		t.Errorf("first byte after 3 ms: got %v in the bucket to 4 ms; want 1", got)
	}
	if strings.Contains(text, `lb_backend_first_byte_seconds_count{pool="app",backend="w2"}`) {
		t.Error("a backend without a session: got a histogram; want none")
	}
}

// TestMetrics_DocumentedFamiliesAreTheFamilies holds the table and what is written against each other.
func TestMetrics_DocumentedFamiliesAreTheFamilies(t *testing.T) {
	src := testSources(t)
	process := src.Process
	src.Process = func() api.ProcessStatus {
		p := process()
		p.LastReload = &api.ReloadStatus{Loaded: time.Now()}
		return p
	}
	src.NotAccepting = func() []string { return nil }
	src.Workers = func(string) *api.WorkersStatus {
		return &api.WorkersStatus{Slots: []api.SlotStatus{{Exits: map[string]uint64{"crashed": 0}}}}
	}
	p, _ := scrape(t, src)
	known := map[string]bool{}
	for _, f := range metricFamilies {
		if known[f.name] {
			t.Errorf("%s: stands twice in metricFamilies", f.name)
		}
		known[f.name] = true
		if p.types[f.name] == "" {
			t.Errorf("%s: is in metricFamilies, and no scrape has it", f.name)
		}
	}
}

func TestOpenFDs_CountsThem(t *testing.T) {
	before := OpenFDs()
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	if got := OpenFDs(); got != before+1 {
		t.Errorf("descriptors after one more open: got %d; want %d", got, before+1)
	}
	f.Close()
}

func BenchmarkMetrics(b *testing.B) {
	var members []string
	for i := range 256 {
		members = append(members, fmt.Sprintf("w%d", i))
	}
	pool := newPool(b, "app", members...)
	for _, m := range pool.Backends() {
		m.ConnectTime.Observe(time.Millisecond)
	}
	src := Sources{Pools: func() []*backends.Pool { return []*backends.Pool{pool} }}
	b.ReportAllocs()
	for b.Loop() {
		src.writeMetrics(io.Discard, new(refusals), new(acceptFailures))
	}
}

var update = flag.Bool("update", false, "write docs/metrics.md anew")

func TestDocument_OfMetricsIsWhatTheCodeSays(t *testing.T) {
	const name = "../docs/metrics.md"
	if *update {
		if err := os.WriteFile(name, []byte(metricsDocument()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	text, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if string(text) != metricsDocument() {
		t.Error("docs/metrics.md is not what metricFamilies says; run: go generate ./admin")
	}
}
