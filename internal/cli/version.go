package cli

import (
	"encoding/json"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/internal/build"
	"github.com/273ebdf9/lb/internal/printable"
)

func newVersionCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "version",
		Short: "Print the version of this binary",
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

// newEncoder returns an encoder of JSON that no terminal obeys.
func newEncoder(w io.Writer) *json.Encoder {
	enc := json.NewEncoder(printable.JSONWriter(w))
	enc.SetEscapeHTML(false)
	return enc
}

// printJSON prints v, indented.
func printJSON(w io.Writer, v any) error {
	enc := newEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
