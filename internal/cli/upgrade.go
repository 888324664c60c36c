package cli

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

func newUpgradeCommand() *cobra.Command {
	c := new(caller)
	var r api.UpgradeRequest
	cmd := c.flags(&cobra.Command{
		Use:   "upgrade [--binary FILE] [--dry-run] [--reload]",
		Short: "Replace the running binary; the process and its sessions stay",
		Long: "Replace the running binary by FILE, or by the one that is now where lb was started from. The process stays, and so do its listeners, sessions, workers, counters, and what was changed at run time. Nothing moves for some milliseconds.\n\n" +
			"lb first asks the new binary whether it can take over. If it cannot, or fails later, lb goes on as it was, and says why.",
		Example: "  lb upgrade --dry-run\n  lb upgrade --binary /opt/lb-1.3.0/lb",
		Args:    cobra.NoArgs,
		RunE:    c.action(func(c *call) error { return askUpgrade(c, r) }),
	})
	cmd.Flags().StringVar(&r.Binary, "binary", "", "the new binary `FILE`")
	cmd.Flags().BoolVar(&r.DryRun, "dry-run", false, "only ask the new binary whether it can take over")
	cmd.Flags().BoolVar(&r.Reload, "reload", false, "read the config again afterwards")
	cmd.MarkFlagFilename("binary")
	return cmd
}

// askUpgrade waits as long as it takes: lb has its own limits, and a reload may restart workers.
func askUpgrade(c *call, r api.UpgradeRequest) error {
	if r.Binary != "" {
		var err error
		if r.Binary, err = filepath.Abs(r.Binary); err != nil {
			return fmt.Errorf("cannot tell what --binary %q names: %w", r.Binary, err)
		}
	}
	result, err := c.Upgrade(c.ctx, r)
	switch {
	case c.ctx.Err() != nil && !r.DryRun:
		return fmt.Errorf("%w: lb may go on with the upgrade; lb status shows which version runs, and lb events what happened", errInterrupted)
	case errors.Is(err, api.ErrOutcomeUnknown):
		return fmt.Errorf("the connection to lb ended before its answer, so that the outcome is unknown: %s", c.afterwards())
	case err != nil:
		return err
	}
	if err := c.show(result, "%s", upgradeLine(result)); err != nil {
		return err
	}
	c.warn(result.Warnings)
	return nil
}

// afterwards describes an lb that did not answer, and where to look.
func (c *call) afterwards() string {
	ctx, cancel := context.WithTimeout(c.ctx, askTimeout)
	defer cancel()
	st, err := c.Status(ctx)
	if err != nil {
		return fmt.Sprintf("lb status shows which version runs, and the log what happened (%v)", err)
	}
	return fmt.Sprintf("lb status says that version %s runs now, pid %d; lb events shows what happened", printable.Text(st.Version), st.PID)
}

// upgradeLine describes what an upgrade did, or would do.
func upgradeLine(r *api.UpgradeResult) string {
	from, to := printable.Text(r.From), printable.Text(r.To)
	if r.DryRun {
		return fmt.Sprintf("%s can take over: %s of %s, pid %d; nothing was changed (--dry-run)", to, count(r.Sessions, "session"), from, r.PID)
	}
	return fmt.Sprintf("upgraded %s → %s: %s carried over, stood still for %s, pid %d", from, to, count(r.Sessions, "session"),
		standstillText(r.Standstill), r.PID)
}

// standstillText is a short time: "3.1 ms", "31 ms", "1.2 s".
func standstillText(s float64) string {
	switch {
	case s < 0.00995:
		return fmt.Sprintf("%.1f ms", s*1e3)
	case s < 0.9995:
		return fmt.Sprintf("%.0f ms", s*1e3)
	default:
		return fmt.Sprintf("%.1f s", s)
	}
}
