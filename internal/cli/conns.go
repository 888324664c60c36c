package cli

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

func newConnsCommand() *cobra.Command {
	c := new(caller)
	var older time.Duration
	var limit int
	cmd := c.flags(&cobra.Command{
		Use:   "conns [POOL[/BACKEND]] [--older 10m] [--limit N]",
		Short: "List running sessions, the oldest first",
		Args:  cobra.MaximumNArgs(1),
		ValidArgsFunction: c.complete(first(func(st *api.Status) []string {
			return append(completePools(st), completeBackends(st)...)
		})),
		RunE: c.action(func(c *call) error { return listConns(c, older, limit) }),
	})
	cmd.Flags().DurationVar(&older, "older", 0, "only those that have run for at least `T`, such as 10m")
	cmd.Flags().IntVar(&limit, "limit", 0, "at most `N` (default 1000)")
	return cmd
}

func listConns(c *call, older time.Duration, limit int) error {
	if older < 0 || limit < 0 {
		return usage("--older and --limit are not negative")
	}
	f := api.SessionFilter{Older: older}
	if len(c.args) > 0 {
		f.Pool, f.Backend, _ = strings.Cut(c.args[0], "/")
		if f.Pool == "" {
			return usage("%q is neither POOL nor POOL/BACKEND", c.args[0])
		}
	}
	ctx, cancel := c.soon()
	defer cancel()
	list, err := c.Sessions(ctx, f, limit)
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(c.out, list)
	}
	if _, err := io.WriteString(c.out, sessionTable(list.Sessions).render(coloured(c.out))); err != nil {
		return err
	}
	if n := list.Total - len(list.Sessions); n > 0 {
		_, err = fmt.Fprintf(c.out, "and %d more; --limit shows them\n", n)
	}
	return err
}

func sessionTable(list []api.SessionStatus) *table {
	t := newTable("SESSION", "CLIENT", "LISTENER", "BACKEND", "STATE", ">AGE", ">IDLE", ">IN", ">OUT")
	for i := range list {
		t.add(sessionRow(&list[i])...)
	}
	return t
}

// sessionRow is a session as a row of sessionTable.
func sessionRow(s *api.SessionStatus) []cell {
	backend := s.Pool + "/" + s.Backend
	if s.Backend == "" {
		backend = s.Pool + "/-"
	}
	return []cell{{text: s.ID}, {text: s.Client}, {text: s.Listener}, {text: backend}, {text: s.State},
		{text: shortDuration(seconds(s.Age))}, {text: shortDuration(seconds(s.Idle))}, {text: bytesText(s.BytesIn)}, {text: bytesText(s.BytesOut)}}
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func newKillCommand() *cobra.Command {
	c := new(caller)
	var over, older time.Duration
	cmd := c.flags(&cobra.Command{
		Use:               "kill SESSION|POOL/BACKEND [--over 30s] [--older 10m]",
		Short:             "Close a session, or all of a backend's",
		Long:              "Close a session, or all of a backend's, and wait until they are closed.\n\nWith --over they are closed one by one, spread at random over that time, so that the clients do not all come back at once.",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.backendCompletion(),
		RunE:              c.action(func(c *call) error { return killConns(c, over, older) }),
	})
	cmd.Flags().DurationVar(&over, "over", 0, "spread the closing over `T`, such as 30s")
	cmd.Flags().DurationVar(&older, "older", 0, "only those that have run for at least `T`, such as 10m")
	return cmd
}

func killConns(c *call, over, older time.Duration) error {
	if over < 0 || older < 0 {
		return usage("--over and --older are not negative")
	}
	f := api.SessionFilter{ID: c.args[0], Older: older}
	if strings.Contains(c.args[0], "/") {
		pool, backend, err := backendArg(c.args[0])
		if err != nil {
			return err
		}
		f.ID, f.Pool, f.Backend = "", pool, backend
	}
	stop := c.progress(c.killing(f, over))
	result, err := c.Kill(c.ctx, f, over)
	stop()
	if c.ctx.Err() != nil {
		return fmt.Errorf("%w: no more are closed; those that were stay closed", errInterrupted)
	}
	if err != nil {
		return c.noSession(f.ID, err)
	}
	return c.show(result, "closed %s", count(result.Killed, "session"))
}

// noSession returns the error for a session that is not there. If id names a pool, it says what to write.
func (c *call) noSession(id string, err error) error {
	var refusal *api.Error
	if id == "" || !errors.As(err, &refusal) || refusal.Status != http.StatusNotFound {
		return err
	}
	ctx, cancel := c.soon()
	defer cancel()
	p, poolErr := c.Pool(ctx, id)
	if poolErr != nil || len(p.Backends) == 0 {
		return err
	}
	return fmt.Errorf("%s is a pool; name the backend whose sessions to close: lb kill %s/%s (lb status %s lists them)",
		printable.Text(id), printable.Text(id), printable.Text(p.Backends[0].Name), printable.Text(id))
}

func newClientsCommand() *cobra.Command {
	c := new(caller)
	var limit int
	cmd := c.flags(&cobra.Command{
		Use:   "clients [POOL[/BACKEND]] [--limit N]",
		Short: "List the addresses with the most running sessions",
		Args:  cobra.MaximumNArgs(1),
		ValidArgsFunction: c.complete(first(func(st *api.Status) []string {
			return append(completePools(st), completeBackends(st)...)
		})),
		RunE: c.action(func(c *call) error { return listClients(c, limit) }),
	})
	cmd.Flags().IntVar(&limit, "limit", 0, "at most `N` (default 20)")
	return cmd
}

func listClients(c *call, limit int) error {
	if limit < 0 {
		return usage("--limit is not negative")
	}
	var f api.SessionFilter
	if len(c.args) > 0 {
		f.Pool, f.Backend, _ = strings.Cut(c.args[0], "/")
		if f.Pool == "" {
			return usage("%q is neither POOL nor POOL/BACKEND", c.args[0])
		}
	}
	ctx, cancel := c.soon()
	defer cancel()
	list, err := c.Clients(ctx, f, limit)
	if err == nil && terminal(c.out) && len(list.Clients) > 0 && list.Clients[0].Rate == nil && pause(ctx, ratePause) {
		list, err = c.Clients(ctx, f, limit)
	}
	if err != nil {
		return err
	}
	if c.json {
		return printJSON(c.out, list)
	}
	t := newTable("CLIENT", ">SESSIONS", ">OLDEST", ">RATE", ">IN", ">OUT")
	for i := range list.Clients {
		t.add(clientRow(&list.Clients[i])...)
	}
	if _, err := io.WriteString(c.out, t.render(coloured(c.out))); err != nil {
		return err
	}
	if n := list.Total - len(list.Clients); n > 0 {
		_, err = fmt.Fprintf(c.out, "and %d more; --limit shows them\n", n)
	}
	return err
}

// clientRow is a client as a row of lb clients.
func clientRow(x *api.ClientStatus) []cell {
	rate := "-"
	if x.Rate != nil {
		rate = bytesText(uint64(*x.Rate)) + "/s"
	}
	return []cell{{text: x.Address}, number(x.Sessions), {text: shortDuration(seconds(x.Oldest))}, {text: rate},
		{text: bytesText(x.BytesIn)}, {text: bytesText(x.BytesOut)}}
}
