package cli

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

// newAdminCommand makes lb drain, ready or maint.
func newAdminCommand(state, short, until string) *cobra.Command {
	c := new(caller)
	var wait bool
	var timeout time.Duration
	cmd := c.flags(&cobra.Command{
		Use:               state + " POOL/BACKEND [--wait] [--timeout T]",
		Short:             short,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.backendCompletion(),
		RunE:              c.action(func(c *call) error { return setAdmin(c, state, wait, timeout) }),
	})
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until it "+until)
	cmd.Flags().DurationVar(&timeout, "timeout", 0, "wait no longer than `T`, such as 30s, and fail then; 0 is without end")
	return cmd
}

func newDrainCommand() *cobra.Command {
	return newAdminCommand("drain", "Give a backend no new connections; its sessions may finish", "has no sessions")
}

func newReadyCommand() *cobra.Command {
	return newAdminCommand("ready", "Give a backend new connections again", "is up and takes them")
}

func newMaintCommand() *cobra.Command {
	return newAdminCommand("maint", "Switch a backend off: no new connections and no probes", "has no sessions")
}

func setAdmin(c *call, state string, wait bool, timeout time.Duration) error {
	pool, backend, err := backendArg(c.args[0])
	if err != nil {
		return err
	}
	if timeout < 0 || timeout > 0 && !wait {
		return usage("--timeout is for --wait, and not negative")
	}
	ctx, cancel := c.soon()
	defer cancel()
	st, err := c.SetAdmin(ctx, pool, backend, state)
	if err != nil {
		return err
	}
	if wait {
		warned := st.Warned
		if st, err = c.settled(pool, st, state, timeout); err != nil {
			return err
		}
		st.Warned = warned
	}
	return c.show(st, "%s", backendLine(pool, st))
}

// settled waits until a backend is as its admin state wants it, and returns its status.
func (c *call) settled(pool string, st *api.BackendStatus, state string, timeout time.Duration) (*api.BackendStatus, error) {
	ctx := c.ctx
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	name := pool + "/" + st.Name
	now := c.leaving(pool, st.Name)
	if state == "ready" {
		now = c.coming(pool, st.Name)
	}
	stop := c.progress(now)
	defer stop()
	err := poll(ctx, func() (bool, error) {
		now, err := c.Backend(ctx, pool, st.Name)
		if err != nil {
			return false, err
		}
		st = now
		if st.Admin != state {
			return false, fmt.Errorf("%s is in %s now: another command has changed it", printable.Text(name), st.Admin)
		}
		if state == "ready" {
			return st.Selectable, nil
		}
		return st.Active == 0, nil
	})
	var what string
	switch {
	case err == nil:
		return st, nil
	case errors.Is(c.ctx.Err(), context.Canceled):
		what = "interrupted"
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		what = fmt.Sprintf("not within %v", timeout)
	default:
		return nil, err
	}
	if state == "ready" {
		return nil, fmt.Errorf("%s: %s is ready and %s, and does not take connections yet%s", what, printable.Text(name), st.Health, because(why(st)))
	}
	return nil, fmt.Errorf("%s: %s stays in %s with %s; lb kill %s --over 30s closes them", what, printable.Text(name), state,
		count(int(st.Active), "session"), printable.Text(name))
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + printable.Text(reason)
}
