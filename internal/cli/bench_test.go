package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestBench_SaysThatItCannotWriteTheReportBeforeItRuns(t *testing.T) {
	code, stdout, stderr := lb(t, "bench", "--quick", "--report", filepath.Join(t.TempDir(), "no", "report.html"))
	if code != exitFailed || stdout != "" || !strings.Contains(stderr, "cannot write the report") || strings.Contains(stderr, "load generator") {
		t.Errorf("lb bench: got %d, %q, %q; want 1 at once, and why", code, stdout, stderr)
	}
}

func TestBench_RefusesATargetThatItWouldNotMeasure(t *testing.T) {
	f := func(want string, args ...string) {
		t.Helper()
		code, stdout, stderr := lb(t, append([]string{"bench"}, args...)...)
		if code != exitUsage || stdout != "" || !strings.Contains(stderr, want) {
			t.Errorf("lb bench %q: got %d, %q, %q; want %d and %q", args, code, stdout, stderr, exitUsage, want)
		}
	}
	f(`cannot parse address "localhost"`, "--target", "localhost")
	f("add target to --contenders", "--target", "127.0.0.1:1", "--contenders", "lb")
}

// What is tested here starts nothing. If it did, it would be one round of one contender that needs no lb:
// this binary is none.
func TestBench_RefusesWhatWouldMeasureNothing(t *testing.T) {
	f := func(code int, want string, args ...string) {
		t.Helper()
		args = append([]string{"bench", "--contenders", "reuseport", "--rounds", "1", "--workers", "2"}, args...)
		got, stdout, stderr := lb(t, args...)
		if got != code || stdout != "" || !strings.Contains(stderr, want) || strings.Contains(stderr, "load generator") {
			t.Errorf("lb %q: got %d, %q, %q; want %d at once, and %q", args, got, stdout, stderr, code, want)
		}
	}
	f(exitUsage, "nothing would be measured: none of these contenders can play any of these cases: reuseport in weights: it knows no weights", "--cases", "weights")
	f(exitUsage, "--duration 1ns is not within 1s..1h", "--cases", "even", "--duration", "1ns")
	f(exitUsage, "--duration 2h0m0s is not within 1s..1h", "--cases", "weights", "--duration", "2h")
	f(exitFailed, `cannot run the worker: exec: "/nonexistent/app": stat /nonexistent/app: no such file or directory`, "--cases", "even", "--duration", "1s", "--worker", "/nonexistent/app --x")
	f(exitFailed, `cannot run the worker: exec: "no-such-app": executable file not found in $PATH`, "--cases", "even", "--duration", "1s", "--worker", "no-such-app")
	f(exitFailed, "permission denied", "--cases", "even", "--duration", "1s", "--worker", "/etc/passwd")
}

func TestBench_KeepsTheReportOfBeforeWhenInterrupted(t *testing.T) {
	old, fresh := filepath.Join(t.TempDir(), "old.html"), filepath.Join(t.TempDir(), "fresh.html")
	if err := os.WriteFile(old, []byte("before"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, file := range []string{old, fresh} {
		cmd := newBenchCommand()
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // before it starts anything
		cmd.SetArgs([]string{"--quiet", "--report", file})
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		if err := cmd.ExecuteContext(ctx); !errors.Is(err, errInterrupted) {
			t.Fatalf("got %v; want an interrupted run", err)
		}
	}
	if text, err := os.ReadFile(old); err != nil || string(text) != "before" {
		t.Errorf("got %q, %v; want the report of before", text, err)
	}
	if _, err := os.Stat(fresh); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("got %v; want no empty report", err)
	}
}

func TestBenchWorker_IsNotForPeople(t *testing.T) {
	os.Unsetenv("LB_WORKER_ID")
	code, _, stderr := lb(t, benchWorkerCommand)
	if code != exitFailed || !strings.Contains(stderr, "lb bench runs this command") {
		t.Errorf("lb %s: got %d, %q; want 1 and who runs it", benchWorkerCommand, code, stderr)
	}
	if code, _, stderr := lb(t, benchExecCommand, "--", "/nonexistent/worker"); code != exitFailed || !strings.Contains(stderr, "/nonexistent/worker") {
		t.Errorf("lb %s: got %d, %q; want 1 and the worker's path", benchExecCommand, code, stderr)
	}
}
