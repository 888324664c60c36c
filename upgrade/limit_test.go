package upgrade

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const envLimitTest = "LB_TEST_LIMIT_PROGRAM"

func TestExec_ThatFailsLeavesTheFileLimit(t *testing.T) {
	if path := os.Getenv(envLimitTest); path != "" {
		failToExec(t, path)
		return
	}
	program := filepath.Join(t.TempDir(), "text")
	if err := os.WriteFile(program, []byte("no program"), 0o755); err != nil {
		t.Fatal(err)
	}
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	// Below the hard limit, so that Go's runtime raises it.
	cmd := exec.Command("/bin/sh", "-c", `ulimit -Sn 64 && exec "$0" -test.v -test.run="^$1\$"`, exe, t.Name())
	cmd.Env = append(os.Environ(), envLimitTest+"="+program)
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "the limit is 1 below") {
		t.Errorf("got %v; want the limit unchanged:\n%s", err, out)
	}
}

// failToExec is what the child does.
func failToExec(t *testing.T, path string) {
	limit := func() (l syscall.Rlimit) {
		if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
			t.Fatal(err)
		}
		return l
	}
	f := unread(t, path)
	before := limit()
	fmt.Println("the limit is", before.Max-before.Cur, "below the hard one") // the runtime has raised it
	if err := Exec(&Plan{Binary: f, Args: []string{path}, State: []byte("state")}); err == nil || !strings.Contains(err.Error(), "no program for this machine") {
		t.Errorf("Exec: got %v; want that it is no program", err)
	}
	if after := limit(); after != before {
		t.Errorf("limit: got %+v; want %+v", after, before)
	}
}
