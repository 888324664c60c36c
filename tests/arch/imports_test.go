// Package arch holds the structure of the project: which package may import which.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"strings"
	"testing"
)

const module = "github.com/273ebdf9/lb/"

// allowed is the import table of docs/ARCHITECTURE.md: what each package may import of ours. "*" is everything.
// The domain is backends; the packages around it know it and not each other; only cmd/lb knows everything.
var allowed = map[string][]string{
	"backends":              {},
	"balancer":              {"backends"},
	"health":                {"backends"},
	"proxy":                 {"backends", "proxy/internal/access"},
	"proxy/internal/access": {},
	"admin":                 {"backends"},
	"supervisor":            {"internal/sdnotify"},
	"upgrade":               {},
	"worker":                {"internal/sdnotify"},
	"bench":                 {},
	"bench/load":            {},
	"bench/fairness":        {"bench", "bench/load"},
	"internal/logs":         {},
	"internal/sdnotify":     {},
	"internal/state":        {},
	"config":                {"admin", "backends", "health", "internal/logs", "proxy", "supervisor"}, // their Config types
	"cmd/lb":                {"*"},
}

// free are trees of programs and generators that nothing imports.
var free = []string{"bench/cmd/", "examples/", "config/internal/", "internal/configdoc", "tests/"}

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
			if ours, ok := strings.CutPrefix(imp, module); ok && !contains(may, ours) {
				t.Errorf("%s imports %s; it may import %q only. Let cmd/lb connect them through a func field", name, ours, may)
			}
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

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s || x == "*" {
			return true
		}
	}
	return false
}
