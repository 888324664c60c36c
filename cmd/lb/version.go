package main

import (
	"encoding/json"
	"fmt"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// buildVersion is set by the linker: go build -ldflags "-X main.buildVersion=1.2.3".
var buildVersion string

// buildFacts is what this binary is.
type buildFacts struct {
	Version  string `json:"version"`
	Revision string `json:"revision"` // the commit; empty where it was built outside a checkout
	Modified bool   `json:"modified"` // the checkout had changes
	Time     string `json:"time"`     // of the commit, as RFC 3339
	Go       string `json:"go"`
	OS       string `json:"os"`
	Arch     string `json:"arch"`
}

// build tells what this binary is. The version is the linker's, else the module's, else "dev".
func build() buildFacts {
	b := buildFacts{Version: buildVersion, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH}
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

// version is what this binary says it is.
func version() string { return build().Version }

// String is one line for people.
func (b buildFacts) String() string {
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

func newVersionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Tell what this binary is",
		Args:  cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), build())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), build())
			return err
		}),
	}
	addJSONFlag(cmd, &asJSON)
	return cmd
}

// printJSON prints v, indented.
func printJSON(w interface{ Write([]byte) (int, error) }, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
