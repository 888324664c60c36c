package cli

import (
	"context"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

// rolloutFlags is what lb restart and lb rollback have in common.
type rolloutFlags struct {
	surge   string
	timeout time.Duration
	noWait  bool
}

func (o *rolloutFlags) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&o.surge, "surge", "1", "how many successors are started at once, after the first: `N` or all")
	cmd.Flags().DurationVar(&o.timeout, "timeout", 0, "fail when the restart takes longer than `T`, such as 5m; 0 is no limit")
	cmd.Flags().BoolVar(&o.noWait, "no-wait", false, "return when the restart has begun; lb events shows the outcome")
}

func (o *rolloutFlags) request() (r api.RestartRequest, err error) {
	switch n, err := strconv.Atoi(o.surge); {
	case o.surge == "all":
		r.Surge = -1
	case err != nil || n < 1:
		return r, usage("--surge %q is neither a number above 0 nor all", o.surge)
	default:
		r.Surge = n
	}
	if o.timeout < 0 {
		return r, usage("--timeout is not negative")
	}
	if o.timeout > 0 {
		r.Timeout = o.timeout.String()
	}
	r.NoWait = o.noWait
	return r, nil
}

func newRestartCommand() *cobra.Command {
	c, o := new(caller), new(rolloutFlags)
	cmd := c.flags(&cobra.Command{
		Use:   "restart POOL[/SLOT] [--surge N|all] [--timeout T] [--no-wait]",
		Short: "Replace workers one by one, without losing a connection",
		Long: "Replace workers by new ones, one by one and without losing a connection. Each successor is ready, and lives for a second, before the worker it replaces finishes its sessions and ends.\n\n" +
			"The first one is a canary: if it fails, nothing is replaced, and its last output is shown. An interrupt ends the restart; the workers that were not replaced stay.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.complete(first(completePoolsAndSlots)),
		RunE: c.action(func(c *call) error {
			r, err := o.request()
			if err != nil {
				return err
			}
			pool, slot, err := poolOrSlotArg(c.args[0])
			if err != nil {
				return err
			}
			r.Slot = slot
			return rollout(c, pool, r, c.Restart)
		}),
	})
	o.flags(cmd)
	return cmd
}

func newRollbackCommand() *cobra.Command {
	c, o := new(caller), new(rolloutFlags)
	cmd := c.flags(&cobra.Command{
		Use:               "rollback POOL [--surge N|all] [--timeout T] [--no-wait]",
		Short:             "Restart workers with the command, environment and directory that worked before",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.complete(first(completeWorkerPools)),
		RunE: c.action(func(c *call) error {
			r, err := o.request()
			if err != nil {
				return err
			}
			return rollout(c, c.args[0], r, c.Rollback)
		}),
	})
	o.flags(cmd)
	return cmd
}

type askRollout func(ctx context.Context, pool string, r api.RestartRequest, each func(api.RestartStep) error) error

// rollout asks for a restart, and shows each step: as a bar on a terminal, else as lines, or as JSON one a
// line.
func rollout(c *call, pool string, r api.RestartRequest, ask askRollout) error {
	show := func(s api.RestartStep) error {
		_, err := io.WriteString(c.out, stepLine(pool, &s))
		return err
	}
	bar := newStepBar(pool)
	switch {
	case c.json:
		enc := newEncoder(c.out)
		show = func(s api.RestartStep) error { return enc.Encode(s) }
	case c.showsProgress():
		show = bar.step
	}
	stop := c.progressOf(bar.now, bar.changed)
	var warnings []string
	err := ask(c.ctx, pool, r, func(s api.RestartStep) error {
		warnings = append(warnings, s.Warnings...)
		return show(s)
	})
	stop()
	if line := bar.now(c.ctx); line != "" && c.showsProgress() {
		io.WriteString(c.out, line+"\n")
	}
	c.warn(warnings)
	if c.ctx.Err() != nil {
		return fmt.Errorf("%w: the workers that are not replaced go on", errInterrupted)
	}
	return err
}

// stepLine describes a step of a restart. The error describes a failure.
func stepLine(pool string, s *api.RestartStep) string {
	name := printable.Text(pool)
	if s.Slot != nil {
		name += "/" + strconv.Itoa(*s.Slot)
	}
	switch {
	case s.Step == "done":
		return fmt.Sprintf("%s: %s replaced\n", name, count(s.Done, "worker"))
	case s.Step == "begun":
		return fmt.Sprintf("%s: the restart has begun; lb events shows the outcome\n", name)
	case s.Slot == nil:
		return fmt.Sprintf("%s: failed, %d of %d replaced\n", name, s.Done, s.Total)
	case s.Step == "started":
		return fmt.Sprintf("%s: successor started, pid %d\n", name, s.PID)
	default:
		return fmt.Sprintf("%s: %s, %d of %d\n", name, printable.Text(s.Step), s.Done, s.Total)
	}
}

const (
	// eraseLine goes to the beginning of the line and erases it (ECMA-48, EL).
	eraseLine = "\r\x1b[2K"
	// barWidth is how wide a bar is.
	barWidth = 30
)

// stepBar is a restart's last step, which progress draws. Its methods are safe for concurrent use.
type stepBar struct {
	pool    string
	changed chan struct{} // has an element while a step is not drawn

	mu   sync.Mutex
	last *api.RestartStep
	at   time.Time
}

func newStepBar(pool string) *stepBar { return &stepBar{pool: pool, changed: make(chan struct{}, 1)} }

// step takes a step.
func (b *stepBar) step(s api.RestartStep) error {
	b.mu.Lock()
	b.last, b.at = &s, time.Now()
	b.mu.Unlock()
	select {
	case b.changed <- struct{}{}:
	default:
	}
	return nil
}

// now returns the last step as a bar, and how long ago it was, if that is long.
func (b *stepBar) now(context.Context) string {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.last == nil {
		return ""
	}
	line := stepBarLine(b.pool, b.last)
	if took := time.Since(b.at); took >= 2*time.Second {
		line += ", " + shortDuration(took) + " ago"
	}
	return line
}

// stepBarLine draws how far a restart is, with its last step.
func stepBarLine(pool string, s *api.RestartStep) string {
	full := 0
	if s.Total > 0 {
		full = barWidth * s.Done / s.Total
	}
	return fmt.Sprintf("[%s%s] %d/%d  %s", strings.Repeat("#", full), strings.Repeat(".", barWidth-full), s.Done, s.Total, strings.TrimSuffix(stepLine(pool, s), "\n"))
}
