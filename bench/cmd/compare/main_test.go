package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/bench"
)

func TestRun_WrongUsage(t *testing.T) {
	f := func(code int, want string, args ...string) {
		t.Helper()
		var stdout, stderr bytes.Buffer
		if got := run(t.Context(), args, &stdout, &stderr); got != code || !strings.Contains(stderr.String(), want) {
			t.Errorf("%v: got %d, %q; want %d, %q", args, got, stderr.String(), code, want)
		}
	}
	f(2, `unknown argument "x"`, "x")
	f(2, "not defined: -nope", "-nope")
	f(2, `unknown case "tea"`, "-cases", "keepalive,tea")
	f(2, `not "b"`, "-lb", "a=1,b")
	f(0, "keep512, connect, 64k, 4m, idle", "-h")
}

func TestParseCases(t *testing.T) {
	got, err := parseCases("4m,idle")
	if err != nil || len(got) != 2 || got[0].Name != bench.Case4M || got[1].Name != bench.CaseIdle {
		t.Errorf("got %+v, %v; want 4m and idle", got, err)
	}
	if got, err := parseCases(""); err != nil || len(got) != 9 {
		t.Errorf("got %+v, %v; want all", got, err)
	}
}

func TestParseBuilds(t *testing.T) {
	f := func(list string, want ...build) {
		t.Helper()
		if got, err := parseBuilds(list); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %v, %v; want %v", list, got, err, want)
		}
	}
	f("./bin/lb", build{"lb", "./bin/lb"})
	f("a=./x,b=./y", build{"a", "./x"}, build{"b", "./y"})
}

func TestContenders(t *testing.T) {
	all := []string{"haproxy", "haproxy-splice", "nginx", "direct"}
	got, err := contenders(all, nil, bench.Programs{}, 2)
	if err != nil {
		t.Fatal(err)
	}
	for i, p := range got {
		if p.Name != all[i] {
			t.Errorf("got contender %q; want %q", p.Name, all[i])
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	builds := []build{{"old", "/nonexistent"}, {"new", self}}
	got, err = contenders([]string{"handoff"}, builds, bench.Programs{Preload: self}, 2)
	if err != nil || len(got) != 1 || got[0].Kind != bench.KindHandoff {
		t.Errorf("got %v, %v; want one that hands over, of the last build", got, err)
	}
	builds[0].path = self
	got, err = contenders([]string{"handoff-all"}, builds, bench.Programs{Preload: self}, 2)
	if err != nil || len(got) != 2 || got[0].Name != "handoff-old" || got[1].Name != "handoff-new" {
		t.Errorf("got %v, %v; want one of each build", got, err)
	}
	if _, err := contenders([]string{"handoff"}, builds, bench.Programs{Preload: "/nonexistent"}, 2); err == nil || !strings.Contains(err.Error(), "make preload") {
		t.Errorf("got %v; want how to build the library", err)
	}
	builds[0].path = self
	got, err = contenders([]string{"lb", "lb-off"}, builds, bench.Programs{}, 2)
	var named []string
	for _, c := range got {
		named = append(named, c.Name+" "+string(c.Kind))
	}
	if want := []string{"old lb", "new lb", "old-off plain", "new-off plain"}; err != nil || !slices.Equal(named, want) {
		t.Errorf("got %v, %v; want %v", named, err, want)
	}
	if _, err := contenders([]string{"envoy"}, nil, bench.Programs{}, 2); !errors.Is(err, errUsage) {
		t.Errorf("got %v; want wrong usage", err)
	}
	if _, err := contenders([]string{"lb"}, []build{{"lb", "/nonexistent"}}, bench.Programs{}, 2); err == nil || errors.Is(err, errUsage) {
		t.Errorf("got %v; want that lb is missing", err)
	}
}

func TestRun_Interrupted(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	var stdout, stderr bytes.Buffer
	if got := run(ctx, []string{"-contenders", "direct"}, &stdout, &stderr); got != 1 || stdout.Len() > 0 {
		t.Errorf("got %d, %q; want 1 and no report", got, stdout.String())
	}
}
