package bench

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// fakeContender is a balancer that the test binary plays. It dies of a request for the path poison, if that
// is not empty.
func fakeContender(t *testing.T, name string, kind Kind, poison string) Contender {
	path := actor(t, "balancer")
	return Contender{Name: name, Kind: kind, Command: func(home, addr string, backends []Backend) (Command, error) {
		args := []string{addr, backends[0].Socket}
		if poison != "" {
			args = append(args, poison)
		}
		return Command{Name: name, Path: path, Args: args, Log: filepath.Join(home, "log")}, nil
	}}
}

// fakeOptions compares fake contenders with fake programs, as short as it goes.
func fakeOptions(t *testing.T, contenders ...Contender) Options {
	// Socket paths are short, and the names of tests long.
	t.Setenv("TMPDIR", shortDir(t))
	o := DefaultOptions()
	o.Programs = Programs{Wrk: actor(t, "wrk"), Nginx: actor(t, "nginx")}
	o.Contenders = contenders
	o.Rounds, o.WarmUp, o.Settle, o.IdleFor = 2, time.Millisecond, 0, time.Millisecond
	o.Cases = []Case{
		{Name: "a", Path: "/small", Conns: 2, Goal: 0.85},
		{Name: "b", Path: "/64k", Conns: 2},
		{Name: "i", Path: "/small", Conns: 20, Idle: true},
	}
	return o
}

func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lb")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func TestCompare_RotatesAndCleansUp(t *testing.T) {
	o := fakeOptions(t, fakeContender(t, "lb", KindLB, ""), fakeContender(t, "other", KindRival, ""))
	var lines []string
	o.Progress = func(line string) { lines = append(lines, line) }
	report, err := Compare(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"round 1/2: a lb", "round 1/2: a other", "round 1/2: b lb", "round 1/2: b other", "round 1/2: i lb", "round 1/2: i other",
		"round 2/2: a other", "round 2/2: a lb", "round 2/2: b other", "round 2/2: b lb", "round 2/2: i other", "round 2/2: i lb",
	}
	if !slices.Equal(lines, want) {
		t.Errorf("got order %q; want %q", lines, want)
	}
	if len(report.Samples) != 12 || report.Invalid() != 0 {
		t.Errorf("got %d samples, %d invalid; want 12, 0", len(report.Samples), report.Invalid())
	}
	for _, s := range report.Samples {
		switch {
		case s.Case != "i" && (s.CPU <= 0 || s.Requests != 92319 || s.Rate != 43961.43):
			t.Errorf("got %+v; want what wrk said, and CPU time", s)
		case s.Case == "i" && s.IdleFDs != 2:
			t.Errorf("got %v descriptors per session; want 2", s.IdleFDs)
		}
	}
	if left, err := os.ReadDir(os.Getenv("TMPDIR")); err != nil || len(left) > 0 {
		t.Errorf("got files %v, %v left behind", left, err)
	}
	// TestMain finds processes left behind.
}

func TestCompare_CrashedContenderIsInvalid(t *testing.T) {
	o := fakeOptions(t, fakeContender(t, "lb", KindLB, "/64k"), fakeContender(t, "other", KindRival, ""))
	o.Rounds = 1
	report, err := Compare(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range report.Samples {
		bad := s.Contender == "lb" && s.Case == "b"
		if bad != (s.Invalid != "") {
			t.Errorf("got sample %s of %s invalid %q; want that of lb under b only", s.Case, s.Contender, s.Invalid)
		}
		if bad && (!strings.Contains(s.Invalid, "exit status 9") || !strings.Contains(s.Invalid, "cannot bear /64k")) {
			t.Errorf("got %q; want how it ended and its last words", s.Invalid)
		}
	}
}

func TestCompare_ContenderThatDoesNotStart(t *testing.T) {
	o := fakeOptions(t, fakeContender(t, "sick", KindLB, "/sma"))
	if _, err := Compare(t.Context(), o); err == nil || !strings.Contains(err.Error(), "sick ended (exit status 9)") {
		t.Errorf("got %v; want the end of sick", err)
	}
}

func TestCompare_StopsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	o := fakeOptions(t, fakeContender(t, "lb", KindLB, ""))
	o.Progress = func(string) { cancel() }
	if _, err := Compare(ctx, o); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; want %v", err, context.Canceled)
	}
}

func TestOptions_ValidateFindsAllFaults(t *testing.T) {
	o := Options{
		Contenders: []Contender{{Name: "x"}, {Name: "x"}}, Duration: 1500 * time.Millisecond,
		Cases: []Case{{Name: "huge", Conns: 1 << 30, Idle: true}},
	}
	err := o.Validate()
	for _, want := range []string{`"x" is there twice`, "rounds:", "backends:", "whole seconds", "idle time:", "ulimit"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v; want a fault about %q", err, want)
		}
	}
	good := DefaultOptions()
	good.Contenders = []Contender{Direct("direct")}
	good.Cases = good.Cases[:1]
	if err := good.Validate(); err != nil {
		t.Errorf("got %v for the default options", err)
	}
}

func TestMeter_Others(t *testing.T) {
	m := meter{contender: CPU{Total: time.Second}, backends: CPU{Total: time.Second}, machine: 3 * time.Second, took: time.Second}
	if got := m.others(2 * time.Second); got != 0 {
		t.Errorf("got %v when less was used than is known; want 0", got)
	}
	if got := m.others(0); got <= 0 {
		t.Errorf("got %v with a second unaccounted for; want more", got)
	}
}
