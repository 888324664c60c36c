package cli

import (
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

func newReloadCommand() *cobra.Command {
	c := new(caller)
	var dryRun bool
	cmd := c.flags(&cobra.Command{
		Use:   "reload [--dry-run]",
		Short: "Read the config again and apply the differences",
		Long:  "Read the config again and apply the differences. Running sessions are not touched. A fault anywhere changes nothing. Workers that do not run the command, environment and directory of the config are restarted, as lb restart does; if that fails, so does the reload, and the workers that were not replaced go on.",
		Args:  cobra.NoArgs,
		RunE:  c.action(func(c *call) error { return askReload(c, dryRun) }),
	})
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "only show the differences")
	return cmd
}

func askReload(c *call, dryRun bool) error {
	result, err := c.Reload(c.ctx, dryRun)
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(c.out, result)
	}
	_, err = io.WriteString(c.out, reloadText(result))
	c.warn(result.Warnings)
	return err
}

// reloadText describes what a reload did, a line for each change.
func reloadText(r *api.ReloadResult) string {
	var b strings.Builder
	lines := func(mark string, list []string) {
		for _, line := range list {
			fmt.Fprintf(&b, "%s%s\n", mark, printable.Text(line))
		}
	}
	lines("  ", r.Changes)
	lines("kept: ", r.Kept)
	switch {
	case len(r.Changes) == 0:
		b.WriteString("nothing is different\n")
	case r.DryRun:
		fmt.Fprintf(&b, "%s; nothing was changed (--dry-run)\n", count(len(r.Changes), "difference"))
	default:
		fmt.Fprintf(&b, "reloaded: %s\n", count(len(r.Changes), "change"))
	}
	return b.String()
}

func newStopCommand() *cobra.Command {
	c := new(caller)
	var now, wait bool
	cmd := c.flags(&cobra.Command{
		Use:               "stop [POOL/SLOT] [--now] [--wait]",
		Short:             "Stop lb, or one of its workers; sessions may finish",
		Long:              "Stop lb: sessions may finish within proxy.stop_timeout, then its workers end.\n\nWith POOL/SLOT stop that worker and wait for its end: sessions may finish within workers.stop_timeout. None is started there until lb start.",
		Args:              cobra.MaximumNArgs(1),
		ValidArgsFunction: c.complete(first(completeSlots)),
		RunE: c.action(func(c *call) error {
			if len(c.args) == 0 {
				return askStop(c, now, wait)
			}
			if now || wait {
				return usage("--now and --wait are for lb itself; a worker is waited for")
			}
			return stopSlot(c)
		}),
	})
	cmd.Flags().BoolVar(&now, "now", false, "close the sessions at once")
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until lb has stopped")
	return cmd
}

func askStop(c *call, now, wait bool) error {
	ctx, cancel := c.soon()
	defer cancel()
	result, err := c.Stop(ctx, now)
	if err != nil {
		return err
	}
	if !wait {
		return c.show(result, "lb is stopping, pid %d", result.PID)
	}
	err = poll(c.ctx, func() (bool, error) {
		ctx, cancel := c.soon()
		defer cancel()
		st, err := c.Status(ctx)
		if errors.Is(err, api.ErrUnreachable) {
			return true, nil
		}
		return err == nil && st.PID != result.PID, err // it was started again already
	})
	if c.ctx.Err() != nil {
		return fmt.Errorf("%w: lb goes on stopping", errInterrupted)
	}
	if err != nil {
		return err
	}
	result.Stopping = false
	return c.show(result, "lb has stopped, pid %d", result.PID)
}

func newLogLevelCommand() *cobra.Command {
	c := new(caller)
	return c.flags(&cobra.Command{
		Use:               "log-level debug|info|warn|error",
		Short:             "Change the least level of the event log, until lb is started again",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: wordCompletion("debug", "info", "warn", "error"),
		RunE: c.action(func(c *call) error {
			ctx, cancel := c.soon()
			defer cancel()
			result, err := c.SetLogLevel(ctx, c.args[0])
			if err != nil {
				return err
			}
			return c.show(result, "log level: %s", result.Level)
		}),
	})
}
