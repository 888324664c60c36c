package cli

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/internal/build"
)

func newVersionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Tell what this binary is",
		Args:  cobra.NoArgs,
		RunE: action(func(cmd *cobra.Command) error {
			if asJSON {
				return printJSON(cmd.OutOrStdout(), build.Read())
			}
			_, err := fmt.Fprintln(cmd.OutOrStdout(), build.Read())
			return err
		}),
	}
	addJSONFlag(cmd, &asJSON)
	return cmd
}

// printJSON prints v, indented.
func printJSON(w interface{ Write([]byte) (int, error) }, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
