package cli

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/config"
)

// checkResult is what lb check found.
type checkResult struct {
	File      string `json:"file"`
	OK        bool   `json:"ok"`
	Listeners int    `json:"listeners"`
	Pools     int    `json:"pools"`
	Backends  int    `json:"backends"`
	Workers   int    `json:"workers"`
	// Descriptors are what lb needs beside its sessions; Sessions is how many fit into this shell's
	// RLIMIT_NOFILE beside them.
	Descriptors int   `json:"descriptors"`
	Sessions    int64 `json:"sessions"`
	// Batching is "on" or "off", and why it is off where the config has it on.
	Batching string       `json:"batching"`
	Faults   []checkFault `json:"faults"`
	Warnings []checkFault `json:"warnings"`
}

// checkFault is a config.Fault for scripts. Line and Column are 0 where there is none.
type checkFault struct {
	Line    int    `json:"line"`
	Column  int    `json:"column"`
	Path    string `json:"path"`
	Message string `json:"message"`
}

func newCheckCommand() *cobra.Command {
	var file string
	var strict, asJSON bool
	cmd := &cobra.Command{
		Use:                   "check -f FILE [--strict] [--json]",
		Short:                 "Check a config and change nothing",
		Args:                  cobra.NoArgs,
		DisableFlagsInUseLine: true,
		RunE: action(func(cmd *cobra.Command) error {
			return check(cmd.OutOrStdout(), cmd.ErrOrStderr(), file, strict, asJSON)
		}),
	}
	addFileFlag(cmd, &file)
	cmd.Flags().BoolVar(&strict, "strict", false, "warnings are faults")
	addJSONFlag(cmd, &asJSON)
	return cmd
}

func newSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:                   "schema",
		Short:                 "Print the JSON Schema of a config, for editors",
		Long:                  "Print the JSON Schema of a config, with the description, default and range of each key.\n\nEditors that know TOML schemas (taplo, Even Better TOML) complete and check a config whose first line names the\nfile: #:schema ./lb.schema.json",
		Example:               "  lb schema >lb.schema.json",
		Args:                  cobra.NoArgs,
		DisableFlagsInUseLine: true,
		RunE: action(func(cmd *cobra.Command) error {
			_, err := cmd.OutOrStdout().Write(config.Schema)
			return err
		}),
	}
}

// check loads the file and reports what is wrong with it: faults and warnings one a line on stderr, or all of
// it as JSON on stdout. It fails for a fault, and if strict for a warning.
func check(stdout, stderr io.Writer, file string, strict, asJSON bool) error {
	cfg, err := config.Load(file)
	var faults *config.Error
	if err != nil && !errors.As(err, &faults) {
		return err
	}
	result := checkResult{File: file, Faults: []checkFault{}, Warnings: []checkFault{}}
	if faults != nil {
		result.Faults = checkFaults(faults.Faults)
	}
	if cfg != nil {
		result.Listeners, result.Pools = len(cfg.Listeners), len(cfg.Pools)
		for _, p := range cfg.Pools {
			result.Backends += len(p.Backends)
			if p.Workers != nil {
				result.Workers += p.Workers.EffectiveCount()
			}
		}
		cfg.Warnings = append(cfg.Warnings, cfg.HostWarnings(file)...)
		room, err := cfg.Room()
		if err != nil {
			room.Warning = err.Error()
		}
		result.Descriptors, result.Sessions = room.Reserved, room.Sessions
		result.Batching = cfg.Batching()
		if room.Warning != "" {
			cfg.Warnings = append(cfg.Warnings, config.Fault{File: file, Message: room.Warning})
		}
		result.Warnings = checkFaults(cfg.Warnings)
	}
	result.OK = len(result.Faults) == 0 && !(strict && len(result.Warnings) > 0)

	if asJSON {
		if err := printJSON(stdout, result); err != nil {
			return err
		}
	} else {
		if faults != nil {
			fmt.Fprintln(stderr, faults)
		}
		if cfg != nil {
			for _, w := range cfg.Warnings {
				w.Message = "warning: " + w.Message
				fmt.Fprintln(stderr, w)
			}
		}
	}
	if !result.OK {
		return errSaid
	}
	if asJSON {
		return nil
	}
	parts := []string{count(result.Listeners, "listener"), count(result.Pools, "pool")}
	if result.Backends > 0 || result.Workers == 0 {
		parts = append(parts, count(result.Backends, "backend"))
	}
	if result.Workers > 0 {
		parts = append(parts, count(result.Workers, "worker"))
	}
	_, err = fmt.Fprintf(stdout, "%s: ok (%s)\n%s fit at once into this shell's limit of open files, beside %d descriptors for lb itself\nbatches through io_uring: %s\n",
		file, strings.Join(parts, ", "), count(int(result.Sessions), "session"), result.Descriptors, result.Batching)
	return err
}

func checkFaults(faults []config.Fault) []checkFault {
	all := make([]checkFault, len(faults))
	for i, f := range faults {
		all[i] = checkFault{Line: f.Line, Column: f.Column, Path: f.Path, Message: f.Message}
	}
	return all
}

// count returns "1 pool" or "2 pools".
func count(n int, noun string) string {
	if n != 1 {
		noun += "s"
	}
	return strconv.Itoa(n) + " " + noun
}
