// Package build describes this binary: its version, commit and Go.
package build

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// version is set by the linker: go build -ldflags "-X github.com/273ebdf9/lb/internal/build.version=1.2.3".
var version string

// Facts describe this binary.
type Facts struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // the commit; empty where it was built outside a checkout
	Modified bool   `json:"modified"` // the checkout had changes
	Time     string `json:"time"`     // of the commit, as RFC 3339
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

// Read returns the facts of this binary. The version is the linker's, else the module's, else "dev".
func Read() Facts {
	b := Facts{Version: version, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
	info, ok := debug.ReadBuildInfo()
	if ok {
		for _, s := range info.Settings {
			switch s.Key {
			case "vcs.revision":
				b.Revision = s.Value
			case "vcs.modified":
				b.Modified = s.Value == "true"
			case "vcs.time":
				b.Time = s.Value
			}
		}
		if b.Version == "" && info.Main.Version != "(devel)" {
			b.Version = info.Main.Version
		}
	}
	if b.Version == "" {
		b.Version = "dev"
	}
	return b
}

// Version returns the version of this binary.
func Version() string { return Read().Version }

// String returns the facts in one line for people.
func (b Facts) String() string {
	revision := ""
	if b.Revision != "" {
		revision = b.Revision[:min(12, len(b.Revision))]
		if b.Modified {
			revision += " with changes"
		}
		revision += ", "
	}
	return fmt.Sprintf("lb %s (%s%s %s/%s)", b.Version, revision, b.Go, b.OS, b.Arch)
}
