package health

import (
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

func TestParseAgentLine(t *testing.T) {
	f := func(line, want string, understood bool) {
		t.Helper()
		a := parseAgentLine(line)
		if got := a.String(); got != want {
			t.Errorf("%q: got %q; want %q", line, got, want)
		}
		if got := a.understood(); got != understood {
			t.Errorf("%q: got understood %v; want %v", line, got, understood)
		}
	}
	f("up", "agent says up", true)
	f("UP,Ready\t75%  maxconn:30", "agent says up ready 75% maxconn:30", true)
	f("maxconn:0 0%", "agent says 0% maxconn:0", true)
	f("drain up down", "agent says down drain", true) // the last word of a kind counts
	f("down # disk full ", `agent says down: "disk full"`, true)
	f("fail#no room", `agent says fail: "no room"`, true)
	f("stopped # a # b", `agent says stopped: "a # b"`, true)
	f("up # \x1b[31m", `agent says up: "\x1b[31m"`, true)
	f("", "agent says nothing", false)
	f("# only a remark, up", `agent says nothing: "only a remark, up"`, false)
	f("up fine -5% +5% 5.5% %", `agent says up; unknown word "fine"`, true)
	f("maxconn:-1", `agent says nothing; unknown word "maxconn:-1"`, false)
	f("99999999999%", `agent says nothing; unknown word "99999999999%"`, false)
	f("HTTP/1.1 400 Bad Request", `agent says nothing; unknown word "HTTP/1.1"`, false)
	f("down # "+strings.Repeat("x", 100), `agent says down: "`+strings.Repeat("x", 64)+`"…`, true)
}

func TestAgentLine_WeightIsAPartOfTheConfigured(t *testing.T) {
	f := func(percent, configured, want int) {
		t.Helper()
		a := agentLine{percent: &percent}
		if got := a.weight(configured); got != want {
			t.Errorf("%d%% of %d: got %d; want %d", percent, configured, got, want)
		}
	}
	f(75, 100, 75)
	f(100, 1000, 1000)
	f(0, 100, 0)
	f(1, 10, 1) // never out by rounding
	f(50, 1, 1)
	f(50, 0, 0)
	f(150, 100, 150)
	f(1<<31-1, 1000, backends.MaxWeight)
}

// An agentRig has one backend of weight 200, and says what the agent says next.
type agentRig struct {
	*rig
	b *backends.Backend
}

func newAgentRig(t *testing.T) *agentRig {
	t.Helper()
	r := newRig(t, exact(func(c *Config) { c.Type = "agent" }), 1)
	if err := r.pool.SetWeight(r.b[0], 200, "test"); err != nil {
		t.Fatal(err)
	}
	r.ConfiguredWeight = func(*backends.Backend) int { return 200 }
	r.wantChanges("0s b0 weight 100→200: test")
	return &agentRig{r, r.b[0]}
}

func (r *agentRig) says(line string) { r.answers(judgeAgent(line)) }

func TestChecker_AgentWordDecidesAtOnce(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newAgentRig(t)
		r.says("up")
		r.run()
		at(500 * time.Millisecond)
		r.says("stopped # for lunch")
		at(1500 * time.Millisecond)
		r.wantChanges(`1s b0 health up→down: agent says stopped: "for lunch"`)
		r.says("90%") // alive, but down is only ended by up
		at(5500 * time.Millisecond)
		r.wantChanges("2s b0 weight 200→180: agent says 90%")
		if s := r.Status(r.b); s.Outcome != Inconclusive || s.Reason != "agent says 90%; its last health word was not up" {
			t.Errorf("status: got %+v; want inconclusive", s)
		}
		r.says("up")
		at(6500 * time.Millisecond)
		r.wantChanges("6s b0 health down→up: agent says up")
	})
}

func TestChecker_AgentThatDoesNotAnswerFallsAndRises(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newAgentRig(t)
		r.says("100%")
		r.run()
		at(500 * time.Millisecond)
		r.answers(refused)
		at(3500 * time.Millisecond)
		r.wantChanges("3s b0 health up→down: connection refused (3 in a row)")
		r.says("100%") // no health word: alive, which counts as a success
		at(5500 * time.Millisecond)
		r.wantChanges("5s b0 health down→up: agent says 100% (2 in a row)")
	})
}

func TestChecker_AgentThatIsUpDoesNotUndoAPassiveTakeDownAtOnce(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newAgentRig(t)
		r.says("up")
		r.run()
		at(500 * time.Millisecond)
		r.ConnectFailed(r.b, backends.ConnectRefused, 3)
		at(1500 * time.Millisecond)
		r.wantHealth(r.b, backends.HealthDown)
		at(2500 * time.Millisecond)
		r.wantHealth(r.b, backends.HealthUp)
	})
}

func TestChecker_AgentSetsWeightAndMaxConns(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newAgentRig(t)
		var limits []string
		r.SetMaxConns = func(b *backends.Backend, n int, reason string) error {
			limits = append(limits, fmt.Sprintf("%s %d: %s", b.Name, n, reason))
			return errors.New("no such limit")
		}
		r.says("50% maxconn:30 soon")
		r.run()
		at(500 * time.Millisecond)
		r.wantChanges(`0s b0 weight 200→100: agent says 50% maxconn:30; unknown word "soon"`)
		if want := []string{`b0 30: agent says 50% maxconn:30; unknown word "soon"`}; !reflect.DeepEqual(limits, want) {
			t.Errorf("max_conns: got %q; want %q", limits, want)
		}
		if got := r.Status(r.b).Reason; !strings.HasSuffix(got, "; no such limit") {
			t.Errorf("reason: got %q; want it to end in the limit's error", got)
		}
	})
}

func TestChecker_AgentsMaxconnWithoutAFuncIsOnlyReported(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newAgentRig(t)
		r.says("maxconn:3")
		r.run()
		at(0)
		if got, want := r.Status(r.b).Reason, "agent says maxconn:3; maxconn is not supported"; got != want {
			t.Errorf("reason: got %q; want %q", got, want)
		}
	})
}

// An agent that asked for maint is asked on, as nobody else would ever bring the backend back.
func TestChecker_AgentEndsTheMaintThatItBegan(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newAgentRig(t)
		r.says("maint")
		r.run()
		at(500 * time.Millisecond)
		r.wantChanges("0s b0 admin ready→maint: agent says maint")
		r.says("maint down") // health does not count in maint
		at(4500 * time.Millisecond)
		r.wantChanges()
		r.says("drain up")
		at(5500 * time.Millisecond)
		r.wantChanges("5s b0 admin maint→drain: agent says up drain")
		r.says("ready")
		at(6500 * time.Millisecond)
		r.wantChanges("6s b0 admin drain→ready: agent says ready")
	})
}

func TestChecker_OperatorsStateStandsAgainstTheAgent(t *testing.T) {
	onFakeClock(t, func(t *testing.T, at func(time.Duration)) {
		r := newAgentRig(t)
		r.says("ready up")
		r.run()
		at(500 * time.Millisecond)
		r.pool.SetAdmin(r.b, backends.AdminDrain, "by hand")
		r.wantChanges("500ms b0 admin ready→drain: by hand")
		at(3500 * time.Millisecond)
		r.wantChanges()
		if got, want := r.Status(r.b).Reason, "agent says up ready; the operator's drain stands"; got != want {
			t.Errorf("reason: got %q; want %q", got, want)
		}
		// In the operator's maint the agent is not asked at all.
		r.pool.SetAdmin(r.b, backends.AdminMaint, "by hand")
		r.forgetProbes()
		at(9500 * time.Millisecond)
		r.wantProbes()
	})
}

func FuzzParseAgentLine(f *testing.F) {
	for _, s := range []string{"up", "drain,75%\tmaxconn:5", "down # reason", "", "# x", "up\x00", "１%", "999999999999%"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, line string) {
		a := parseAgentLine(line)
		if a.percent != nil {
			if *a.percent < 0 {
				t.Errorf("%q: negative percentage %d", line, *a.percent)
			}
			if w := a.weight(backends.MaxWeight); w < 0 || w > backends.MaxWeight {
				t.Errorf("%q: weight %d", line, w)
			}
		}
		if a.maxConn != nil && *a.maxConn < 0 {
			t.Errorf("%q: negative maxconn %d", line, *a.maxConn)
		}
		for _, c := range a.String() {
			if c != '…' && (c < ' ' || c > '~') {
				t.Fatalf("%q: the reason %q has %q", line, a.String(), c)
			}
		}
		// Said again in its own words, it is the same.
		if a.about == "" && a.unknown == "" && a.understood() {
			again := parseAgentLine(strings.TrimPrefix(a.String(), "agent says "))
			if again.String() != a.String() {
				t.Errorf("%q: got %q the second time; want %q", line, again.String(), a.String())
			}
		}
	})
}
