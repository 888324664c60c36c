package cli

import (
	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/printable"
)

func newAddCommand() *cobra.Command {
	c := new(caller)
	b := api.NewBackend{}
	var weight int
	cmd := c.flags(&cobra.Command{
		Use:     "add POOL NAME ADDRESS [--weight N] [--max-conns N] [--backup]",
		Short:   "Add a backend to a pool",
		Long:    "Add a backend to a pool. ADDRESS is unix:/path, unix:@name, host:port or [v6]:port. It takes connections once it is up.",
		Example: "  lb add app w5 unix:/run/app/w5.sock --weight 50",
		Args:    cobra.ExactArgs(3),
	})
	cmd.ValidArgsFunction = c.complete(first(completePools))
	cmd.Flags().IntVar(&weight, "weight", 0, "its weight `N`, 0 to 1000 (default 100)")
	cmd.Flags().IntVar(&b.MaxConns, "max-conns", 0, "its limit `N`; 0 is the pool's")
	cmd.Flags().BoolVar(&b.Backup, "backup", false, "only for when no other is selectable")
	cmd.RunE = c.action(func(c *call) error {
		b.Name, b.Address = c.args[1], c.args[2]
		if cmd.Flags().Changed("weight") {
			b.Weight = &weight
		}
		ctx, cancel := c.soon()
		defer cancel()
		st, err := c.AddBackend(ctx, c.args[0], b)
		if err != nil {
			return err
		}
		return c.show(st, "added %s", backendLine(c.args[0], st))
	})
	return cmd
}

func newRemoveCommand() *cobra.Command {
	c := new(caller)
	return c.flags(&cobra.Command{
		Use:               "remove POOL/BACKEND",
		Short:             "Take a backend out of its pool; its sessions go on",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: c.backendCompletion(),
		RunE: c.action(func(c *call) error {
			pool, backend, err := backendArg(c.args[0])
			if err != nil {
				return err
			}
			ctx, cancel := c.soon()
			defer cancel()
			st, err := c.RemoveBackend(ctx, pool, backend)
			if err != nil {
				return err
			}
			return c.show(st, "removed %s: pool %s has %s, %d selectable", printable.Text(c.args[0]), printable.Text(pool),
				count(len(st.Backends), "backend"), st.Selectable)
		}),
	})
}
