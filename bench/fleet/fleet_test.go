package fleet

import (
	"bytes"
	"math"
	"strings"
	"testing"
	"time"
)

func config(p Policy) Config {
	return Config{
		Seed: 7, Fronts: 5, Backends: 9, Rate: 200, Hold: time.Second, Load: 0.8, Spread: 1.5,
		Policy: p, Age: time.Second, Time: 20 * time.Second, Detect: time.Second,
	}
}

func mustRun(t *testing.T, cfg Config) *Result {
	t.Helper()
	r, err := Run(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func TestRun_DependsOnItsConfigAlone(t *testing.T) {
	for _, p := range Policies {
		for _, e := range []Event{NoEvent, TenthDies, FrontsRestart} {
			cfg := config(p)
			cfg.Event = e
			a, b := mustRun(t, cfg), mustRun(t, cfg)
			if len(a.Timeline) == 0 || len(a.Timeline) != len(b.Timeline) {
				t.Fatalf("%s, %q: timelines of %d and %d moments", p, e, len(a.Timeline), len(b.Timeline))
			}
			for i := range a.Timeline {
				if a.Timeline[i] != b.Timeline[i] {
					t.Fatalf("%s, %q: moment %d: got %+v and %+v of one seed", p, e, i, a.Timeline[i], b.Timeline[i])
				}
			}
			cfg.Seed++
			if c := mustRun(t, cfg); c.Connections == a.Connections && c.Imbalance == a.Imbalance {
				t.Errorf("%s, %q: another seed gives the same run", p, e)
			}
		}
	}
}

// TestRun_WaitsAsErlangSays holds one backend with exponential times to Erlang's formula for M/M/c.
func TestRun_WaitsAsErlangSays(t *testing.T) {
	cfg := Config{Seed: 3, Fronts: 3, Backends: 1, Rate: 100, Hold: 80 * time.Millisecond, Load: 0.8, Policy: Random, Time: 2000 * time.Second}
	r := mustRun(t, cfg)
	const places, offered = 10, 8.0 // connections at once
	term, sum := 1.0, 0.0
	for k := range places {
		sum += term
		term *= offered / float64(k+1)
	}
	wait := term / (1 - offered/places)
	if want := wait / (sum + wait); math.Abs(r.Waited-want) > 0.02 {
		t.Errorf("part of connections that wait: got %.3f; want %.3f", r.Waited, want)
	}
}

func TestRun_ExactIsTheMostEven(t *testing.T) {
	exact := mustRun(t, config(Exact)).Imbalance
	for _, p := range Policies[1:] {
		if r := mustRun(t, config(p)); r.Imbalance < exact {
			t.Errorf("%s: max/mean %.3f; exact has %.3f", p, r.Imbalance, exact)
		}
	}
}

func TestRun_ConnectionsThatBreakComeAgain(t *testing.T) {
	for _, p := range Policies {
		for _, e := range []Event{TenthDies, FrontsRestart} {
			cfg := config(p)
			quiet := mustRun(t, cfg)
			cfg.Event = e
			r := mustRun(t, cfg)
			if r.Broken == 0 {
				t.Errorf("%s, %s: no connection has broken", p, e)
			}
			// The same clients come, and the broken ones once more.
			if got, want := float64(r.Connections), float64(quiet.Connections+r.Broken); math.Abs(got-want) > 0.05*want {
				t.Errorf("%s, %s: got %v connections; want about %v", p, e, got, want)
			}
			if last := r.Timeline[len(r.Timeline)-1]; p == Exact && last.Imbalance > 1.5 {
				t.Errorf("%s, %s: max/mean at the end is %.2f", p, e, last.Imbalance)
			}
		}
	}
}

func TestRun_HostsPublishWhatHasChanged(t *testing.T) {
	cfg := config(Published)
	r := mustRun(t, cfg)
	if most := float64(cfg.Backends) / cfg.Age.Seconds(); r.Writes == 0 || r.Writes > most {
		t.Errorf("writes a second: got %.1f; want 0 < writes <= %.1f", r.Writes, most)
	}
	cfg.Policy = Local
	if r := mustRun(t, cfg); r.Writes != 0 {
		t.Errorf("writes a second with local counts: got %.1f; want 0", r.Writes)
	}
}

func TestRunSource_FrontsAgreeAndFewClientsMove(t *testing.T) {
	results, err := RunSource(1, []int{20})
	if err != nil {
		t.Fatal(err)
	}
	r := results[0]
	if r.Disagree != 0 {
		t.Errorf("%d of %d clients go elsewhere from a second front; want 0", r.Disagree, r.Clients)
	}
	for name, part := range map[string]float64{"down": r.MovedDown, "gone": r.MovedGone, "weight": r.MovedWeight} {
		if part == 0 || part > 0.13 {
			t.Errorf("moved clients (%s): got %.3f; want at most 0.13", name, part)
		}
	}
}

func TestConfig_RefusesWhatNoRunCanBeMadeOf(t *testing.T) {
	for name, change := range map[string]func(*Config){
		"no front": func(c *Config) { c.Fronts = 0 }, "no backend": func(c *Config) { c.Backends = 0 },
		"no rate": func(c *Config) { c.Rate = 0 }, "full": func(c *Config) { c.Load = 1 },
		"no time": func(c *Config) { c.Time = 0 }, "no age": func(c *Config) { c.Age = 0 },
	} {
		cfg := config(Published)
		change(&cfg)
		if _, err := Run(cfg); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

func TestStudy_WritesBothReports(t *testing.T) {
	st := Study{Seed: 1, Cases: []Case{{Name: "<one>", Why: "a case", Config: config("")}}}
	for _, p := range []Policy{Local, Exact} {
		st.Results = append(st.Results, nil)
		st.Results[0] = append(st.Results[0], mustRun(t, config(p)))
	}
	st.Results = st.Results[:1]
	st.Source = []SourceResult{{Backends: 8, Clients: 100}}
	var text, page bytes.Buffer
	if err := st.WriteText(&text); err != nil {
		t.Fatal(err)
	}
	if err := st.WriteHTML(&page); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<one>: a case", "exact", "seed 1"} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the text lacks %q:\n%s", want, text.String())
		}
	}
	if !strings.Contains(page.String(), "&lt;one&gt;") || !strings.Contains(page.String(), "data-plot=") {
		t.Error("the page lacks the case's name, escaped, or its plot")
	}
}
