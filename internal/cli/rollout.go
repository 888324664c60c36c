package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

const rolloutHelp = `Restart processes that something else runs, such as systemd units, one backend after the other and without losing a
connection: drain the backend, wait until its sessions have ended, run the command, wait until a probe finds it
healthy, give it connections again.

The first backend is a canary: nothing else is touched before it takes connections. When one fails, the rollout ends,
the backend stays drained, and the others go on as they are. An interrupt between two steps gives the backend its
connections back, if the command has not run.

The command runs in a shell. {pool}, {name} and {address} in it become the backend's, quoted; LB_POOL, LB_BACKEND and LB_ADDRESS
are set too. Backends that are in drain or maint already are left out.`

// externalRollout is lb rollout with its flags: a rollout over processes that lb does not run.
type externalRollout struct {
	exec, onFailure string
	drainTimeout    time.Duration
	readyTimeout    time.Duration
	pause           time.Duration
	force           bool
}

func newRolloutCommand() *cobra.Command {
	c, o := new(caller), new(externalRollout)
	cmd := c.flags(&cobra.Command{
		Use:               "rollout POOL --exec COMMAND [--drain-timeout T] [--ready-timeout T] [--pause T] [--on-failure COMMAND]",
		Short:             "Restart processes that lb does not run, one by one, without losing a connection",
		Long:              rolloutHelp,
		Example:           "  lb rollout app --exec 'systemctl restart app@{name}'",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.complete(first(completePools)),
		RunE: c.action(func(c *call) error {
			switch {
			case strings.TrimSpace(o.exec) == "":
				return usage("--exec is missing: what restarts a backend?")
			case o.drainTimeout < 0 || o.readyTimeout <= 0 || o.pause < 0:
				return usage("--drain-timeout and --pause are not negative, --ready-timeout is above 0")
			}
			return o.run(c, c.args[0])
		}),
	})
	cmd.Flags().StringVar(&o.exec, "exec", "", "the `COMMAND` that restarts a backend, for the shell")
	cmd.Flags().StringVar(&o.onFailure, "on-failure", "", "a `COMMAND` to run for the backend that failed, such as one that puts the old version back")
	cmd.Flags().DurationVar(&o.drainTimeout, "drain-timeout", 0, "wait no longer than `T` for sessions to end, and fail then; 0 is without end")
	cmd.Flags().DurationVar(&o.readyTimeout, "ready-timeout", time.Minute, "wait no longer than `T` until it is healthy, and fail then")
	cmd.Flags().DurationVar(&o.pause, "pause", 0, "wait `T` between two backends")
	cmd.Flags().BoolVar(&o.force, "force", false, "also when no other backend takes connections meanwhile")
	return cmd
}

// run rolls over the backends of a pool.
func (o *externalRollout) run(c *call, pool string) error {
	ctx, cancel := c.soon()
	st, err := c.Pool(ctx, pool)
	cancel()
	if err != nil {
		return err
	}
	var names []string
	selectable := 0
	for _, b := range st.Backends {
		if b.Selectable {
			selectable++
		}
		if b.Admin == "ready" {
			names = append(names, b.Name)
		}
	}
	switch {
	case len(names) == 0:
		return fmt.Errorf("%s has no backend that is ready: lb ready %s/NAME", printable.Text(pool), printable.Text(pool))
	case selectable < 2 && !o.force:
		return fmt.Errorf("%s has %s that takes connections: while it restarts there is none. --force does it nevertheless", printable.Text(pool), count(selectable, "backend"))
	}
	for i, name := range names {
		if i > 0 && o.pause > 0 {
			select {
			case <-time.After(o.pause):
			case <-c.ctx.Done():
			}
		}
		if c.ctx.Err() != nil {
			return fmt.Errorf("%w: %s not touched", errInterrupted, count(len(names)-i, "backend"))
		}
		if err := o.one(c, pool, name); err != nil {
			return fmt.Errorf("%w\n%s", err, untouched(names[i+1:]))
		}
		if err := reportReplaced(c, pool, name, i+1, len(names)); err != nil {
			return err
		}
	}
	return nil
}

// left describes what a failure has spared.
func untouched(names []string) string {
	if len(names) == 0 {
		return "it was the last one"
	}
	return "not touched: " + printable.Text(strings.Join(names, ", "))
}

// one drains a backend, runs the command, and makes the backend ready again.
func (o *externalRollout) one(c *call, pool, name string) error {
	label := printable.Text(pool + "/" + name)
	ctx, cancel := c.soon()
	st, err := c.SetAdmin(ctx, pool, name, "drain")
	cancel()
	if err != nil {
		return err
	}
	if _, err := c.settled(pool, st, "drain", o.drainTimeout); err != nil {
		readyAgain(c, pool, name)
		return fmt.Errorf("%w; it takes connections again, its process was not touched", err)
	}
	if err := shell(c, o.exec, pool, st); err != nil {
		o.failed(c, pool, st)
		return fmt.Errorf("%s stays drained: the command failed: %w; lb ready %s when it is well", label, err, label)
	}
	if err := o.healthy(c, pool, name, time.Now()); err != nil {
		o.failed(c, pool, st)
		return fmt.Errorf("%s stays drained: %w; lb ready %s when it is well", label, err, label)
	}
	ctx, cancel = c.soon()
	st, err = c.SetAdmin(ctx, pool, name, "ready")
	cancel()
	if err != nil {
		return err
	}
	_, err = c.settled(pool, st, "ready", o.readyTimeout)
	return err
}

// readyAgain makes a backend ready again whose process was not touched, also after an interrupt.
func readyAgain(c *call, pool, name string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), askTimeout)
	defer cancel()
	if _, err := c.SetAdmin(ctx, pool, name, "ready"); err != nil {
		fmt.Fprintf(c.errs, "lb: cannot make %s ready again: %v\n", printable.Text(pool+"/"+name), err)
	}
}

// failed runs what was asked for a failure.
func (o *externalRollout) failed(c *call, pool string, st *api.BackendStatus) {
	if o.onFailure == "" {
		return
	}
	after := *c
	after.ctx = context.WithoutCancel(c.ctx)
	if err := shell(&after, o.onFailure, pool, st); err != nil {
		fmt.Fprintf(c.errs, "lb: --on-failure failed too: %v\n", err)
	}
}

// shell runs a command for a backend. An interrupt ends it as it ends lb.
func shell(c *call, command, pool string, st *api.BackendStatus) error {
	quote := func(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }
	command = strings.NewReplacer("{pool}", quote(pool), "{name}", quote(st.Name), "{address}", quote(st.Address)).Replace(command)
	cmd := exec.CommandContext(c.ctx, "/bin/sh", "-c", command)
	cmd.Env = append(os.Environ(), "LB_POOL="+pool, "LB_BACKEND="+st.Name, "LB_ADDRESS="+st.Address)
	cmd.Stdout, cmd.Stderr = c.errs, c.errs
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 5 * time.Second
	err := cmd.Run()
	if c.ctx.Err() != nil {
		return errInterrupted
	}
	return err
}

// healthy waits until a probe that began after a moment finds the backend healthy.
func (o *externalRollout) healthy(c *call, pool, name string, after time.Time) error {
	ctx, cancel := context.WithTimeout(c.ctx, o.readyTimeout)
	defer cancel()
	var last *api.BackendStatus
	err := poll(ctx, func() (bool, error) {
		st, err := c.Backend(ctx, pool, name)
		if err != nil {
			return false, err
		}
		last = st
		if st.LastProbe == nil {
			return st.Health == "up", nil // it is not probed
		}
		began := st.LastProbe.Time.Add(-time.Duration(st.LastProbe.Duration * float64(time.Second)))
		return st.Health == "up" && st.LastProbe.OK && began.After(after), nil
	})
	switch {
	case err == nil:
		return nil
	case c.ctx.Err() != nil:
		return errInterrupted
	case errors.Is(ctx.Err(), context.DeadlineExceeded) && last != nil:
		return fmt.Errorf("not healthy within %v: it is %s%s", o.readyTimeout, last.Health, because(why(last)))
	}
	return err
}

// reportReplaced prints that a backend is done.
func reportReplaced(c *call, pool, name string, done, of int) error {
	if c.json {
		return newEncoder(c.out).Encode(struct {
			Backend string `json:"backend"`
			Step    string `json:"step"`
			Done    int    `json:"done"`
			Of      int    `json:"of"`
		}{name, "replaced", done, of})
	}
	_, err := fmt.Fprintf(c.out, "%s: replaced, %d of %d\n", printable.Text(pool+"/"+name), done, of)
	return err
}
