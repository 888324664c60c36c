package supervisor

import (
	"flag"
	"os"
	"testing"
)

var update = flag.Bool("update", false, "write docs/workers-states.md anew")

func TestDocument_IsTheTable(t *testing.T) {
	const path = "../docs/workers-states.md"
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
		t.Error("docs/workers-states.md is not what the table says; run: go test ./supervisor -run TestDocument -update")
	}
}

func TestTable_IsComplete(t *testing.T) {
	for s := range numStates {
		for e := range numEvents {
			n := 0
			for _, r := range table {
				for _, from := range r.from {
					if from == s && r.on == e {
						n++
					}
				}
			}
			if n > 1 {
				t.Errorf("%v on %v: %d rules; want one", s, e, n)
			}
		}
		if s == gone {
			continue
		}
		if s != waiting {
			if r := transition(s, exited); r == nil || r.to != gone {
				t.Errorf("%v does not end with its process", s)
			}
		}
		if s != killing && transition(s, kill) == nil {
			t.Errorf("%v cannot be killed", s)
		}
		if tm := timers[s]; tm.set && transition(s, tm.event) == nil {
			t.Errorf("%v waits for %v, which changes nothing", s, tm.event)
		}
		if !leadsTo(s, gone, map[state]bool{}) {
			t.Errorf("%v never ends", s)
		}
	}
	for s := range numStates {
		if transition(gone, event(0)) != nil {
			t.Errorf("something follows gone")
		}
		if s != waiting && s != joining && !leadsTo(waiting, s, map[state]bool{}) {
			t.Errorf("%v is out of reach", s)
		}
	}
}

// Whoever was told that an address takes connections is told when it does not any more.
func TestTable_TellsOfflineWhenItLeavesService(t *testing.T) {
	serving := map[state]bool{up: true, silent: true}
	for _, r := range table {
		for _, from := range r.from {
			told := false
			serves := false
			for _, a := range r.do {
				told = told || a == doOffline
				serves = serves || a == doServe
			}
			if told != (serving[from] && !serving[r.to]) {
				t.Errorf("%v on %v to %v: offline told %v", from, r.on, r.to, told)
			}
			if serves != (!serving[from] && serving[r.to]) {
				t.Errorf("%v on %v to %v: ready told %v", from, r.on, r.to, serves)
			}
		}
	}
}

func leadsTo(from, to state, seen map[state]bool) bool {
	if from == to {
		return true
	}
	if seen[from] {
		return false
	}
	seen[from] = true
	for e := range numEvents {
		if r := transition(from, e); r != nil && leadsTo(r.to, to, seen) {
			return true
		}
	}
	// A replacement begins in joining, at the side of the table.
	return from == waiting && leadsTo(joining, to, seen)
}
