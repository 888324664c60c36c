package cli

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/printable"
)

func newWeightCommand() *cobra.Command {
	c := new(caller)
	return c.flags(&cobra.Command{
		Use:               "weight POOL/BACKEND N|N%",
		Short:             "Change the weight of a backend",
		Long:              "Change the weight of a backend: 0 to 1000, or in percent of the configured weight.\n\nIt holds for the very next connection. A reload keeps it unless the config's own weight changes.",
		Example:           "  lb weight app/w1 50\n  lb weight app/w1 10%",
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: c.backendCompletion(),
		RunE:              c.action(setWeight),
	})
}

func setWeight(c *call) error {
	pool, backend, err := backendArg(c.args[0])
	if err != nil {
		return err
	}
	number, percent := strings.CutSuffix(c.args[1], "%")
	n, err := numberArg(number, "weight")
	if err != nil {
		return err
	}
	ctx, cancel := c.soon()
	defer cancel()
	set := c.SetWeight
	if percent {
		set = c.SetWeightPercent
	}
	st, err := set(ctx, pool, backend, n)
	if err != nil {
		return err
	}
	return c.show(st, "%s", backendLine(pool, st))
}

func newSplitCommand() *cobra.Command {
	c := new(caller)
	return c.flags(&cobra.Command{
		Use:     "split LISTENER POOL=N ...",
		Short:   "Change how a listener divides connections among pools",
		Long:    "Change how a listener divides connections among the pools of its split. A pool that is not named keeps its weight.",
		Example: "  lb split web blue=90 green=10",
		Args:    cobra.MinimumNArgs(2),
		ValidArgsFunction: func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective) {
			words, directive := c.complete(splitWords)(cmd, args, toComplete)
			if len(args) > 0 {
				directive |= cobra.ShellCompDirectiveNoSpace // the number follows
			}
			return words, directive
		},
		RunE: c.action(setSplit),
	})
}

// splitWords completes listeners that have a split, and then the pools of theirs that were not named yet.
func splitWords(st *api.Status, args []string) (words []string) {
	for i := range st.Listeners {
		l := &st.Listeners[i]
		switch {
		case len(l.Split) == 0:
		case len(args) == 0:
			words = append(words, l.Name)
		case l.Name == args[0]:
			for _, pool := range slices.Sorted(maps.Keys(l.Split)) {
				if !slices.ContainsFunc(args[1:], func(a string) bool { return strings.HasPrefix(a, pool+"=") }) {
					words = append(words, pool+"=")
				}
			}
		}
	}
	return words
}

func setSplit(c *call) error {
	weights, err := backends.ParseSplit(c.args[1:])
	if err != nil {
		return usage("%v", err)
	}
	ctx, cancel := c.soon()
	defer cancel()
	split, err := c.SetSplit(ctx, c.args[0], weights)
	if err != nil {
		return err
	}
	return c.show(split, "%s: %s", printable.Text(c.args[0]), splitText(split.Weights))
}

// splitText is blue=90 green=10.
func splitText(weights map[string]int) string {
	var words []string
	for _, pool := range slices.Sorted(maps.Keys(weights)) {
		words = append(words, fmt.Sprintf("%s=%d", printable.Text(pool), weights[pool]))
	}
	return strings.Join(words, " ")
}

func newSetLimitCommand() *cobra.Command {
	c := new(caller)
	return c.flags(&cobra.Command{
		Use:   "set-limit POOL/BACKEND|LISTENER N",
		Short: "Change the max_conns of a backend or a listener",
		Long:  "Change the max_conns of a backend or a listener; 0 is no limit. Sessions above a lower limit stay.",
		Args:  cobra.ExactArgs(2),
		ValidArgsFunction: c.complete(first(func(st *api.Status) []string {
			return append(completeBackends(st), completeListeners(st)...)
		})),
		RunE: c.action(setLimit),
	})
}

func setLimit(c *call) error {
	n, err := numberArg(c.args[1], "limit")
	if err != nil {
		return err
	}
	ctx, cancel := c.soon()
	defer cancel()
	if !strings.Contains(c.args[0], "/") {
		limit, err := c.SetListenerMaxConns(ctx, c.args[0], n)
		if err != nil {
			return err
		}
		return c.show(limit, "%s: max_conns %d", printable.Text(c.args[0]), *limit.MaxConns)
	}
	pool, backend, err := backendArg(c.args[0])
	if err != nil {
		return err
	}
	st, err := c.SetMaxConns(ctx, pool, backend, n)
	if err != nil {
		return err
	}
	return c.show(st, "%s, max_conns %d", backendLine(pool, st), st.MaxConns)
}
