// Package cli is lb's command line: the commands, what they print, and shell completion.
//
// One file holds one group of commands. Those that ask a running lb do so only through its control API
// (cli.go). lb run is a program that cmd/lb passes in: this package never imports internal/daemon.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

// caller has the flags of every command that asks a running lb.
type caller struct {
	socket string
	asJSON bool
}

// flags adds -s and --json.
func (c *caller) flags(cmd *cobra.Command) *cobra.Command {
	addSocketFlag(cmd, &c.socket)
	addJSONFlag(cmd, &c.asJSON)
	cmd.DisableFlagsInUseLine = true
	return cmd
}

func (c *caller) client() *api.Client { return api.NewClient(c.socket) }

// call is one run of such a command: its client, its output, and a context that a signal ends.
type call struct {
	*api.Client
	ctx  context.Context
	out  io.Writer
	errs io.Writer
	args []string
	json bool
}

// action makes a cobra action. An error is the command's own unless it is a usageError.
func (c *caller) action(do func(*call) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		err := do(&call{Client: c.client(), ctx: ctx, out: cmd.OutOrStdout(), errs: cmd.ErrOrStderr(), args: args, json: c.asJSON})
		var usage *usageError
		switch {
		case err == nil:
			return nil
		case errors.As(err, &usage):
			return usage
		case errors.Is(err, context.Canceled):
			return &failure{errInterrupted}
		default:
			return &failure{err}
		}
	}
}

var errInterrupted = errors.New("interrupted")

// usageError is a command line that cannot be understood.
type usageError struct{ text string }

func (e *usageError) Error() string { return e.text }

func usage(format string, args ...any) error { return &usageError{fmt.Sprintf(format, args...)} }

// soon bounds a question whose answer takes no time.
func (c *call) soon() (context.Context, context.CancelFunc) {
	return context.WithTimeout(c.ctx, askTimeout)
}

// show prints v as JSON if that was asked for, and else the text, and what v warns of.
func (c *call) show(v any, format string, args ...any) error {
	if c.json {
		return printJSON(c.out, v)
	}
	_, err := fmt.Fprintf(c.out, format+"\n", args...)
	if x, ok := v.(interface{ AllWarnings() []string }); ok {
		c.warn(x.AllWarnings())
	}
	return err
}

// warn prints warnings. In JSON they are in the answer.
func (c *call) warn(warnings []string) {
	if c.json {
		return
	}
	for _, w := range warnings {
		fmt.Fprintf(c.errs, "lb: warning: %s\n", printable.Text(strings.TrimSpace(w)))
	}
}

// pollInterval is how often a command looks that waits for an outcome.
const pollInterval = 200 * time.Millisecond

// poll calls done again and again until it returns true or an error, or ctx is done.
func poll(ctx context.Context, done func() (bool, error)) error {
	tick := time.NewTicker(pollInterval)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// backendArg reads POOL/BACKEND. A backend without a name is named by its address, which may have slashes
// too.
func backendArg(arg string) (pool, backend string, err error) {
	pool, backend, ok := strings.Cut(arg, "/")
	if !ok || pool == "" || backend == "" {
		return "", "", usage("%q is not POOL/BACKEND", arg)
	}
	return pool, backend, nil
}

func numberArg(arg, what string) (int, error) {
	n, err := strconv.Atoi(arg)
	if err != nil || n < 0 {
		return 0, usage("%q is no %s; write a whole number from 0 on", arg, what)
	}
	return n, nil
}

// backendLine describes a backend in a line.
func backendLine(pool string, b *api.BackendStatus) string {
	state := stateCell(b).text
	limit := ""
	if b.MaxConns > 0 {
		limit = " of " + strconv.Itoa(b.MaxConns)
	}
	return fmt.Sprintf("%s/%s: %s, weight %s, share %s, %d%s active",
		printable.Text(pool), printable.Text(b.Name), state, weightText(b), shareText(b), b.Active, limit)
}

// terminal reports whether w is a terminal.
func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && isTerminal(int(f.Fd()))
}
