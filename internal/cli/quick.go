package cli

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/273ebdf9/lb/internal/importer"
)

// quick is what lb run serves without a file.
type quick struct {
	listen     []string
	to         []string // where backends are
	command    []string // of the workers; one of to and command is set
	workers    int      // 0: as many as there are CPUs
	workersSet bool
}

// toml returns the config that the flags stand for. The workers' directory is dir; empty is lb's own.
func (q *quick) toml(dir, socket string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "[admin]\nsocket = %s\n\n[listeners.web]\nbind = %s\npool = \"app\"\n\n", importer.Value(socket), importer.Value(q.listen))
	if len(q.to) > 0 {
		b.WriteString("[pools.app]\n")
		for i, address := range q.to {
			fmt.Fprintf(&b, "[[pools.app.backends]]\nname = \"w%d\"\naddress = %s\n", i+1, importer.Value(address))
		}
		return b.String()
	}
	b.WriteString("[pools.app]\nwhen_all_down = \"queue\" # clients wait for the first worker\n")
	if q.isNode() {
		b.WriteString("handoff = \"node\" # lb gives Node the accepted connections, as Node's cluster module does\n")
	}
	fmt.Fprintf(&b, "\n[pools.app.workers]\ncommand = %s\n", importer.Value(q.command))
	if q.workers > 0 {
		fmt.Fprintf(&b, "count = %d\n", q.workers)
	}
	if dir != "" {
		fmt.Fprintf(&b, "dir = %s\n", importer.Value(dir))
	}
	if !q.isNode() && !q.namesItsAddress() {
		b.WriteString("env = { PORT = \"{port}\" } # the app listens there, at 127.0.0.1\n")
	}
	return b.String()
}

// isNode reports whether the command is a Node program that lb can hand connections to.
func (q *quick) isNode() bool {
	name := filepath.Base(q.command[0])
	return (name == "node" || name == "nodejs") && !q.namesItsAddress()
}

// namesItsAddress reports whether the command says itself where the app listens.
func (q *quick) namesItsAddress() bool {
	return slices.ContainsFunc(q.command, func(arg string) bool {
		return strings.Contains(arg, "{socket}") || strings.Contains(arg, "{port}")
	})
}
