package cli

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
)

// answers has the fake answer an upgrade, and gives what it was asked.
func (f *fakeLB) answers(result api.UpgradeResult, err error) (asked *api.UpgradeRequest) {
	asked = new(api.UpgradeRequest)
	f.upgrade = func(_ context.Context, r api.UpgradeRequest, _ *admin.Reply) (api.UpgradeResult, error) {
		*asked = r
		result.DryRun = r.DryRun
		return result, err
	}
	return asked
}

func TestUpgrade_SaysWhatCameOfIt(t *testing.T) {
	f := startFake(t)
	asked := f.answers(api.UpgradeResult{From: "1.2.0", To: "1.3.0", Sessions: 8200, Standstill: 0.0314, PID: 1234}, nil)
	code, stdout, stderr := lb(t, "upgrade")
	if want := "upgraded 1.2.0 → 1.3.0: 8200 sessions carried over, stood still for 31 ms, pid 1234\n"; code != exitDone || stdout != want || stderr != "" {
		t.Errorf("lb upgrade: got %d, %q, %q; want 0 and %q", code, stdout, stderr, want)
	}
	if *asked != (api.UpgradeRequest{}) {
		t.Errorf("asked: got %+v; want the binary that lb was started from", *asked)
	}
	code, stdout, _ = lb(t, "upgrade", "--dry-run", "--reload", "--binary", "new/lb")
	if want := "1.3.0 can take over: 8200 sessions of 1.2.0, pid 1234; nothing was changed (--dry-run)\n"; code != exitDone || stdout != want {
		t.Errorf("lb upgrade --dry-run: got %d, %q; want 0 and %q", code, stdout, want)
	}
	dir, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	if want := (api.UpgradeRequest{Binary: filepath.Join(dir, "new/lb"), DryRun: true, Reload: true}); *asked != want {
		t.Errorf("asked: got %+v; want %+v", *asked, want)
	}
	f.answers(api.UpgradeResult{From: "1", To: "2", Warnings: []string{"mind the gap"}}, nil)
	if code, stdout, stderr := lb(t, "upgrade"); code != exitDone || strings.Count(stdout, "\n") != 1 || stderr != "lb: warning: mind the gap\n" {
		t.Errorf("with a warning: got %d, %q, %q; want 0, one line, and the warning beside", code, stdout, stderr)
	}
	var result api.UpgradeResult
	if code, stdout, stderr := lb(t, "upgrade", "--json"); code != exitDone || json.Unmarshal([]byte(stdout), &result) != nil || result.To != "2" || len(result.Warnings) != 1 || stderr != "" {
		t.Errorf("lb upgrade --json: got %d, %q, %q; want the answer", code, stdout, stderr)
	}
	f.answers(api.UpgradeResult{}, errors.New("it does not start"))
	if code, stdout, stderr := lb(t, "upgrade"); code != exitFailed || stdout != "" || stderr != "lb: it does not start\n" {
		t.Errorf("failure: got %d, %q, %q; want 1 and the reason", code, stdout, stderr)
	}
	if code, _, stderr := lb(t, "upgrade", "/new/lb"); code != exitUsage {
		t.Errorf("lb upgrade FILE: got %d, %q; want 2", code, stderr)
	}
}

func TestUpgrade_ThatBreaksOffIsNeitherDoneNorFailed(t *testing.T) {
	f := startFake(t)
	f.upgrade = func(_ context.Context, _ api.UpgradeRequest, c *admin.Reply) (api.UpgradeResult, error) {
		file, err := c.Hand()
		if err != nil {
			return api.UpgradeResult{}, err
		}
		defer file.Close()
		// it is gone, and nobody has answered
		return api.UpgradeResult{}, unix.Shutdown(int(file.Fd()), unix.SHUT_RDWR)
	}
	code, stdout, stderr := lb(t, "upgrade")
	if code != exitFailed || stdout != "" || !strings.Contains(stderr, "outcome is unknown") || !strings.Contains(stderr, "lb status") {
		t.Errorf("lb upgrade: got %d, %q, %q; want 1, that the outcome is unknown, and where to look", code, stdout, stderr)
	}
}

func TestUpgrade_InterruptSaysThatItMayGoOn(t *testing.T) {
	f := startFake(t)
	begun := make(chan struct{})
	f.upgrade = func(ctx context.Context, _ api.UpgradeRequest, _ *admin.Reply) (api.UpgradeResult, error) {
		close(begun)
		<-ctx.Done()
		return api.UpgradeResult{}, ctx.Err()
	}
	code, stderr := interrupted(t, begun, "upgrade")
	if code != exitFailed || !strings.Contains(stderr, "may go on with the upgrade") {
		t.Errorf("interrupted: got %d, %q; want 1 and that lb may go on", code, stderr)
	}
}

func TestStandstillText_HasTheUnitOfItsSize(t *testing.T) {
	for s, want := range map[float64]string{0: "0.0 ms", 0.0031: "3.1 ms", 0.00996: "10 ms", 0.0314: "31 ms", 0.9996: "1.0 s", 1.25: "1.2 s"} {
		if got := standstillText(s); got != want {
			t.Errorf("%v s: got %q; want %q", s, got, want)
		}
	}
}
