package fairness

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"html"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/bench/load"
	"github.com/273ebdf9/lb/internal/plot"
)

// tiny are options of a run as short as it goes, with contenders that need no other program.
func tiny(t *testing.T, cases ...string) Options {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "lb") // paths of sockets are short, and names of tests long
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	o := Options{
		Dir:        dir,
		Self:       Self{Worker: []string{self, "worker"}, Exec: []string{self, "exec"}},
		Contenders: []string{ContenderReusePort, ContenderPrefork}, Workers: 4, Rounds: 1, Timeout: 300 * time.Millisecond, Together: true, Seed: 1, CheckRequests: 10,
	}
	o.Cases, err = Cases(cases, Budget{Workers: 4, Duration: 450 * time.Millisecond, Law: "constant:5ms", Rate: 100})
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func mustRun(t *testing.T, o Options) *Report {
	t.Helper()
	r, err := Run(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
		t.Errorf("got %v, %v left in the temporary directory; want nothing", left, err)
	}
	for _, c := range r.Cells {
		if c.Broken != "" {
			t.Errorf("%s, %s: broken: %s", c.Case, c.Contender, c.Broken)
		}
	}
	return r
}

func TestRun_PlaysEveryCaseAndCleansUp(t *testing.T) {
	for _, name := range []string{CaseEven, CaseFew, CaseStuck, CaseKilled, CaseRestart, CaseScale, CaseWeights} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			playCase(t, name)
		})
	}
}

// playCase runs one case of contenders that need no other program.
func playCase(t *testing.T, name string) {
	o := tiny(t, name, CaseEven)
	if name != CaseWeights {
		o.Cases = o.Cases[:1] // beside weights there must be one that they can play
	}
	var lines []string
	o.Progress = func(p Progress) { lines = append(lines, p.What) }
	r := mustRun(t, o)
	c := &r.Cases[0]
	rows := r.rowsOf(c)
	if name == CaseWeights {
		if len(rows) != 0 {
			t.Errorf("got %d rows; want none of those that know no weights", len(rows))
		}
		return
	}
	if len(rows) != 2 {
		t.Fatalf("got %d rows; want 2", len(rows))
	}
	for _, row := range rows {
		planned := len(load.NewPlan(c.Shape, o.Seed).Arrivals)
		sum := 0.0
		for _, s := range row.Shares {
			sum += s
		}
		if row.Requests != planned || row.Answered == 0 || sum < 0.999 || sum > 1.001 {
			t.Errorf("%s: got %d requests, %d answered, shares %v; want %d, and all shared", row.Contender, row.Requests, row.Answered, row.Shares, planned)
		}
		if row.WorkerCPU <= 0 || row.BalancerCPU != 0 {
			t.Errorf("%s: got the CPU times %v and %v; want the workers' only", row.Contender, row.WorkerCPU, row.BalancerCPU)
		}
	}
	// A stuck worker with a queue of its own keeps what the kernel sends it.
	if row := r.Row(CaseStuck, ContenderReusePort); name == CaseStuck && (row.Failed[load.Hung] == 0 || row.LastSent == 0) {
		t.Errorf("got %+v; want some that hang to the end", row)
	}
	if len(lines) == 0 {
		t.Error("got no progress; want some")
	}
}

func TestRun_SameSeedGivesTheSamePlans(t *testing.T) {
	t.Parallel()
	o := tiny(t, CaseEven)
	o.Contenders, o.Rounds = []string{ContenderPrefork}, 2
	p := tiny(t, CaseEven)
	p.Contenders, p.Rounds = o.Contenders, o.Rounds
	var a, b *Report
	t.Run("both", func(t *testing.T) {
		for r, o := range map[**Report]Options{&a: o, &b: p} {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				*r = mustRun(t, o)
			})
		}
	})
	if t.Failed() {
		return
	}
	if a.Cells[0].Digest == a.Cells[1].Digest {
		t.Errorf("got the plan %s in both rounds; want two", a.Cells[0].Digest)
	}
	for i := range a.Cells {
		if a.Cells[i].Digest != b.Cells[i].Digest {
			t.Errorf("cell %d: got the plans %s and %s; want one", i, a.Cells[i].Digest, b.Cells[i].Digest)
		}
	}
}

func TestRun_OwnWorkerAndTarget(t *testing.T) {
	t.Parallel()
	o := tiny(t, CaseEven, CaseSlow)
	o.Command = o.Self.Worker
	o.Contenders = []string{ContenderReusePort}
	r := mustRun(t, o)
	if r.Row(CaseEven, ContenderReusePort).Answered == 0 || r.Row(CaseSlow, ContenderReusePort) != nil {
		t.Errorf("got %+v; want answers of the own worker, and no slow one", r.Rows)
	}
	o = tiny(t, CaseEven, CaseStuck)
	o.Contenders, o.Target = []string{ContenderTarget, ContenderReusePort}, "127.0.0.1:1"
	r, err := Run(t.Context(), o)
	if err != nil || r.Broken() != 1 || !strings.Contains(r.Row(CaseEven, ContenderTarget).Broken, "refused") || r.Row(CaseStuck, ContenderTarget) != nil {
		t.Errorf("got %+v, %v; want that nobody listens there, and no event", r, err)
	}
}

func TestRun_WorkerThatCannotBeRunIsSaidBeforeAnythingIsMeasured(t *testing.T) {
	t.Parallel()
	f := func(want string, command ...string) {
		t.Helper()
		for _, contender := range []string{ContenderPrefork, ContenderReusePort} {
			o := tiny(t, CaseEven)
			o.Command, o.Contenders = command, []string{contender}
			o.Progress = func(p Progress) { t.Errorf("%q as %s: got %q measured; want nothing", command, contender, p.What) }
			began := time.Now()
			r, err := Run(t.Context(), o)
			if took := time.Since(began); err == nil || !strings.Contains(err.Error(), want) || took > trialLimit {
				t.Errorf("%q as %s: got %v, %v after %v; want %q at once", command, contender, r, err, took, want)
			}
			if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
				t.Errorf("%q as %s: got %v, %v left; want nothing", command, contender, left, err)
			}
		}
	}
	f("cannot run the worker: exec", "/nonexistent/app")
	f("permission denied", "/etc/passwd")
	f("worker 0 ended (exit status 1)", "/bin/false")
	// It looks ready, and ends when it has slept for a moment.
	f("worker 0 ended (exit status 7)\n\tno config", "/bin/sh", "-c", "sleep 0.2; echo no config; exit 7")
}

func TestRun_LoadWithoutARequestIsNoMeasurement(t *testing.T) {
	t.Parallel()
	o := tiny(t, CaseEven)
	o.Contenders = []string{ContenderPrefork}
	o.Cases[0].Shape.Rate = 1e-6
	r, err := Run(t.Context(), o)
	if err != nil || r.Broken() != 1 || !strings.Contains(r.Cells[0].Broken, "raise the rate or the duration") {
		t.Errorf("got %+v, %v; want a broken cell that says what to do", r, err)
	}
}

// fakeLB is a program that lb's commands are asked of, and that says of its workers what answer is.
func fakeLB(t *testing.T, answer string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "lb")
	script := "#!/bin/sh\ncase $1 in\n" +
		`run) : >"$(sed -n 's/^socket = "\(.*\)"/\1/p' "$3")"; exec sleep 30;;` + "\n" +
		"workers) echo '" + answer + "';;\nesac\n"
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestStartLB_GivesUpOnceAWorkerHasEnded(t *testing.T) {
	t.Parallel()
	f := func(command []string, answer, want string) {
		t.Helper()
		o := tiny(t, CaseEven)
		o.Self.LB, o.Command = fakeLB(t, answer), command
		s := &stage{options: &o, kase: &o.Cases[0], home: t.TempDir(), meter: newMeter()}
		limit := readyLimit / 2
		if want == "" {
			limit = 300 * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(t.Context(), limit)
		defer cancel()
		_, err := startContender(ctx, s, ContenderLB)
		if err == nil || !strings.Contains(err.Error(), want) || (ctx.Err() != nil) != (want == "") {
			t.Errorf("%q, %s: got %v, waited to the end %v; want %q at once, or none and to wait", command, answer, err, ctx.Err() != nil, want)
		}
	}
	const ended = `{"slots": [{"slot": 0, "state": "up"}, {"slot": 1, "state": "waiting", "quick_deaths": 1, "last_exit": {"reason": "exit status 1", "lines": ["a", "b", "c", "d", "e", "f"]}}]}`
	f([]string{"app"}, ended, "worker 1 ended (exit status 1)\n\tb\n\tc\n\td\n\te\n\tf")
	f([]string{"app", "{port}"}, ended, "")
	f([]string{"app", "{port}"}, strings.Replace(ended, `"quick_deaths": 1`, `"quick_deaths": 2`, 1), "worker 1 ended (exit status 1)")
}

func TestRun_EndsWithItsContextAndCleansUp(t *testing.T) {
	t.Parallel()
	o := tiny(t, CaseEven)
	ctx, cancel := context.WithCancel(t.Context())
	o.Progress = func(p Progress) {
		if strings.HasPrefix(p.What, "even") {
			cancel()
		}
	}
	if _, err := Run(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; want that it was canceled", err)
	}
	if left, err := os.ReadDir(o.Dir); err != nil || len(left) > 0 {
		t.Errorf("got %v, %v left; want nothing", left, err)
	}
}

func TestReport_JSONTextAndPageHaveAll(t *testing.T) {
	t.Parallel()
	o := tiny(t, CaseStuck)
	o.CommandLine = []string{"lb", "bench", "--law", "a b"}
	r := mustRun(t, o)
	var b bytes.Buffer
	if err := r.WriteJSON(&b); err != nil {
		t.Fatal(err)
	}
	var back Report
	if err := json.Unmarshal(b.Bytes(), &back); err != nil || len(back.Cells) != 2 || back.Cells[0].Digest != r.Cells[0].Digest {
		t.Errorf("got %+v, %v; want the report back", back, err)
	}
	b.Reset()
	if err := r.WriteText(&b); err != nil || !strings.Contains(b.String(), "stuck: one worker gets stuck") || !strings.Contains(b.String(), "hung") {
		t.Errorf("got %s, %v; want the case", &b, err)
	}
	b.Reset()
	if err := r.WriteHTML(&b); err != nil {
		t.Fatal(err)
	}
	page := b.String()
	charts := regexp.MustCompile(`data-plot="([^"]*)"`).FindAllStringSubmatch(page, -1)
	var titles []string
	for _, m := range charts {
		var c plot.Chart
		if err := json.Unmarshal([]byte(html.UnescapeString(m[1])), &c); err != nil || len(c.Series) == 0 || len(c.Series[0].Points) == 0 {
			t.Errorf("chart: got %+v, %v; want some points", c, err)
		}
		word, _, _ := strings.Cut(c.Title, " ")
		titles = append(titles, word)
	}
	if want := []string{"Latency", "Part", "Requests"}; !slices.Equal(titles, want) {
		t.Errorf("got charts %q; want %q", titles, want)
	}
	for _, want := range []string{"lb bench --law 'a b'", "seed 1", "</html>", r.Machine.Kernel} {
		if !strings.Contains(strings.ReplaceAll(page, "&#39;", "'"), want) {
			t.Errorf("no %q in the page", want)
		}
	}
	for _, outside := range []string{"src=", "href=\"http", "@import", "url(", " style=", " onclick=", "%!"} {
		if strings.Contains(page, outside) {
			t.Errorf("got %q in the page; want it to need nothing beside it", outside)
		}
	}
}

func TestRun_MeasuresAnewWhatDoesNotCount(t *testing.T) {
	t.Parallel()
	o := tiny(t, CaseEven)
	// More than can be under way, as none is answered in time.
	o.Cases[0].Shape = load.Shape{Rate: 60_000, Duration: 100 * time.Millisecond, Law: load.MustLaw("constant:1s")}
	o.Contenders, o.Together, o.Repeats = []string{ContenderPrefork}, false, 1
	r := mustRun(t, o)
	if r.Repeated != 1 || len(r.Cells) != 1 || r.Invalid() != 1 || !strings.Contains(r.Row(CaseEven, ContenderPrefork).Invalid, "could not keep the schedule") {
		t.Errorf("got %d repeated of %+v; want one, which does not count either", r.Repeated, r.Cells)
	}
}
