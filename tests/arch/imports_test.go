// Package arch holds the structure of the project: which package may import which.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/273ebdf9/lb/"

// allowed is the import table of docs/ARCHITECTURE.md: what each package may import of ours. The domain is
// backends; the packages around it know it and not each other; internal/daemon wires them. The command line
// (internal/cli) asks a running lb through its control API alone, so it may not import the daemon.
var allowed = map[string][]string{
	"backends":              {},
	"balancer":              {"backends"},
	"discovery":             {"backends"},
	"cluster":               {"backends", "discovery"},
	"health":                {"backends", "internal/sockdiag"},
	"proxy":                 {"backends", "internal/clock", "internal/descriptor", "internal/handoff", "internal/sockdiag", "internal/state", "internal/uring", "proxy/internal/access"},
	"proxy/internal/access": {},
	"admin":                 {"admin/api", "admin/why", "backends", "internal/descriptor", "internal/printable", "internal/sockdiag"},
	"admin/api":             {},
	"admin/why":             {"admin/api"},
	"supervisor":            {"internal/descriptor", "internal/handoff", "internal/sdnotify"},
	"upgrade":               {},
	"worker":                {"internal/handoff", "internal/sdnotify"},
	"bench":                 {},
	// its worker takes handed-off sockets
	"bench/load":          {"internal/clock", "internal/handoff"},
	"bench/fairness":      {"bench", "bench/load", "internal/plot"},
	"bench/fleet":         {"backends", "balancer", "bench", "internal/plot"},
	"internal/plot":       {},
	"internal/logs":       {"internal/descriptor", "internal/printable"},
	"internal/sdnotify":   {"internal/clock", "internal/printable"},
	"internal/clock":      {},
	"internal/descriptor": {},
	"internal/printable":  {},
	"internal/sockdiag":   {},
	"internal/handoff":    {},
	"internal/uring":      {},
	"internal/state":      {},
	// for tests only
	"internal/leaktest": {},
	// for tests only
	"internal/eventually": {},
	// their Config types
	"config":            {"admin", "backends", "cluster", "discovery", "health", "internal/logs", "proxy", "supervisor"},
	"internal/importer": {"internal/printable"},
	"internal/build":    {},
	"internal/cli":      {"admin/api", "backends", "bench", "bench/fairness", "bench/load", "config", "internal/build", "internal/importer", "internal/printable"},
	"internal/daemon": {"admin", "admin/api", "admin/why", "backends", "balancer", "cluster", "config", "discovery", "health", "internal/build", "internal/clock", "internal/descriptor", "internal/logs", "internal/printable", "internal/sdnotify", "internal/sockdiag",
		"internal/state", "proxy", "supervisor", "upgrade"},
	"cmd/lb": {"internal/cli", "internal/daemon", "supervisor"},
}

// free are trees of programs and generators that nothing imports.
var free = []string{"bench/cmd/", "packaging/", "examples/", "config/internal/", "internal/configdoc", "tests/"}

func TestImportTable(t *testing.T) {
	cmd := exec.Command("go", "list", "-json=ImportPath,Imports", module+"...")
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			t.Fatalf("go list: %v\n%s", err, exit.Stderr)
		}
		t.Fatal(err)
	}
	seen := 0
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var pkg struct {
			ImportPath string
			Imports    []string
		}
		if err := dec.Decode(&pkg); err == io.EOF {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		name := strings.TrimPrefix(pkg.ImportPath, module)
		if isFree(name) {
			continue
		}
		may, known := allowed[name]
		if !known {
			t.Errorf("package %s is not in the import table; add it here and to docs/ARCHITECTURE.md, with what it may import", name)
			continue
		}
		seen++
		for _, imp := range pkg.Imports {
			ours, ok := strings.CutPrefix(imp, module)
			if !ok || slices.Contains(may, ours) {
				continue
			}
			t.Errorf("%s imports %s; it may import %q only. %s", name, ours, may, advice(name, ours))
		}
	}
	if seen < len(allowed) {
		t.Errorf("saw %d packages; the table has %d: remove those that are gone", seen, len(allowed))
	}
}

func isFree(name string) bool {
	for _, prefix := range free {
		if strings.HasPrefix(name+"/", prefix) || name == prefix {
			return true
		}
	}
	return false
}

// advice says what to do instead of an import that the table has not.
func advice(name, imports string) string {
	if name == "internal/cli" && imports == "internal/daemon" {
		return "The command line asks a running lb through the control API, so that whatever it can do, a script can do too, and so that " +
			"lb upgrade and lb status work between versions. What it starts itself, such as lb run, cmd/lb passes in as a function (cli.Programs)"
	}
	return "Let internal/daemon connect them through a func field"
}
