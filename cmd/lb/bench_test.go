package main

import (
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
