package cli

import (
	"context"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
)

// completeTimeout is how long the shell waits for names after the tab key.
const completeTimeout = time.Second

// completion returns the words that may stand at a place of a command line.
type completion = func(cmd *cobra.Command, args []string, toComplete string) ([]string, cobra.ShellCompDirective)

// complete makes a completion of a function of the running lb's status. What cannot be asked has no names.
func (c *caller) complete(words func(st *api.Status, args []string) []string) completion {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		ctx, cancel := context.WithTimeout(context.Background(), completeTimeout)
		defer cancel()
		st, err := c.client().Status(ctx)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words(st, args), cobra.ShellCompDirectiveNoFileComp
	}
}

// first completes the first argument only.
func first(words func(*api.Status) []string) func(*api.Status, []string) []string {
	return func(st *api.Status, args []string) []string {
		if len(args) > 0 {
			return nil
		}
		return words(st)
	}
}

func completePools(st *api.Status) (names []string) {
	for i := range st.Pools {
		names = append(names, st.Pools[i].Name)
	}
	return names
}

func completeListeners(st *api.Status) (names []string) {
	for i := range st.Listeners {
		names = append(names, st.Listeners[i].Name)
	}
	return names
}

// completeBackends are of the form POOL/BACKEND.
func completeBackends(st *api.Status) (names []string) {
	for i := range st.Pools {
		for j := range st.Pools[i].Backends {
			names = append(names, st.Pools[i].Name+"/"+st.Pools[i].Backends[j].Name)
		}
	}
	return names
}

// backendCompletion completes one POOL/BACKEND.
func (c *caller) backendCompletion() completion { return c.complete(first(completeBackends)) }

// wordCompletion completes the first argument with one of a few words.
func wordCompletion(words ...string) completion {
	return func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return words, cobra.ShellCompDirectiveNoFileComp
	}
}
