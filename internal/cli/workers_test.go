package cli

import (
	"strings"
	"testing"

	"github.com/273ebdf9/lb/admin/api"
)

func TestCLI_ScaleArguments(t *testing.T) {
	for _, tc := range []struct{ args, want string }{
		{"scale app -1", "scale app --down-by=1"}, {"scale app +1", "scale app +1"}, {"scale -2 app --json", "scale --down-by=2 app --json"},
		{"events -n 1", "events -n 1"}, {"", ""},
	} {
		if got := strings.Join(scaleArgs(strings.Fields(tc.args)), " "); got != tc.want {
			t.Errorf("%q: got %q; want %q", tc.args, got, tc.want)
		}
	}
	for _, args := range [][]string{{"app", "x"}, {"app", "-x"}, {"app", "++1"}, {"app", "1", "2"}} {
		if r, err := scaleRequest(args, 0); err == nil {
			t.Errorf("scale %q: got %+v; want an error", args, r)
		}
	}
	if r, err := scaleRequest([]string{"app", "+3"}, 0); err != nil || r.Delta == nil || *r.Delta != 3 {
		t.Errorf("scale app +3: got %+v, %v; want a delta", r, err)
	}
	if r, err := scaleRequest([]string{"app"}, 2); err != nil || r.Delta == nil || *r.Delta != -2 {
		t.Errorf("scale app -2: got %+v, %v; want a delta", r, err)
	}
}

func TestRestart_BarShowsHowFarItIs(t *testing.T) {
	slot := 3
	s := api.RestartStep{Step: "replaced", Slot: &slot, PID: 7, Done: 2, Total: 8}
	if got, want := stepBarLine("app", &s), "[#######.......................] 2/8  app/3: replaced, 2 of 8"; got != want {
		t.Errorf("got  %q\nwant %q", got, want)
	}
}
