package supervisor

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The samples run as their first lines say. Those whose program this host lacks are left to make e2e.
func TestSamples_AnswerAndAreReplaced(t *testing.T) {
	t.Parallel()
	f := func(want string, command ...string) {
		t.Run(want, func(t *testing.T) {
			t.Parallel()
			if _, err := exec.LookPath(command[0]); err != nil {
				t.Skip(err)
			}
			cfg := workerConfig()
			cfg.Command, cfg.Count = command, 1
			s := start(t, open(t), cfg)
			s.until(command[0], allUp)
			before := s.pool.Status().Slots[0]
			if got := get(t, before.Backend, "/"); !strings.HasPrefix(got, want) {
				t.Errorf("got %q; want %q", got, want)
			}
			if err := s.pool.Restart(t.Context(), DefaultRestartOptions()); err != nil {
				t.Error(err)
			}
			if got := get(t, s.pool.Status().Slots[0].Backend, "/"); !strings.HasPrefix(got, want) {
				t.Errorf("after a restart: got %q; want %q", got, want)
			}
		})
	}
	path := func(name string) string {
		abs, err := filepath.Abs("../examples/" + name)
		if err != nil {
			t.Fatal(err)
		}
		return abs
	}
	f("hello from Node worker 0", "node", path("node/app.js"), "{socket}")
	f("hello from Python worker 0", "python3", path("python/app.py"))
	f("hello from shell worker 0", "sh", path("shell/app.sh"), "{socket}")
	if !testing.Short() {
		binary := filepath.Join(t.TempDir(), "sample-go")
		if out, err := exec.Command("go", "build", "-o", binary, "../examples/go").CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		f("hello from Go worker 0", binary)
	}
}
