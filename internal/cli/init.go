package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/importer"
	"github.com/273ebdf9/lb/internal/printable"
)

const initHelp = `Write a config to begin with, also from what is there: an haproxy.cfg (its TCP parts), an nginx.conf (its stream part), or
pm2's ecosystem file, which node runs if it is a program.

What has no counterpart in lb becomes a comment at its place with the reason, and a list at the end of the file and on stderr.
Which program a file belongs to is told by its name; --as says it otherwise. The file is not overwritten if it is there.`

// starter is the config that lb init writes without --from.
const starter = `# The configuration of lb. ` + "`lb check -f FILE`" + ` says what is wrong with it; lb.toml(5) and docs/config.md have every key.

[admin]
socket = "/run/lb/admin.sock"        # where lb status, lb drain, … reach it

[listeners.web]
bind = [":8080"]
pool = "app"

# Processes that something else runs:
[pools.app]
[[pools.app.backends]]
name = "w1"
address = "127.0.0.1:3001"           # or "unix:/run/app/1.sock"
[[pools.app.backends]]
name = "w2"
address = "127.0.0.1:3002"

# Or have lb start, watch and restart them, instead of the backends above:
#
#   [pools.app.workers]
#   count = 4
#   command = ["node", "server.js"]
#   dir = "/srv/app"
#   env = { PORT = "{port}" }
`

// initTimeout bounds the run of an ecosystem file.
const initTimeout = 10 * time.Second

func newInitCommand() *cobra.Command {
	var from, as, out string
	cmd := &cobra.Command{
		Use:                   "init [--from FILE [--as haproxy|nginx|pm2]] [-o FILE]",
		Short:                 "Write a config to begin with, also from haproxy.cfg, nginx.conf or pm2's ecosystem file",
		Long:                  initHelp,
		Example:               "  lb init --from /etc/haproxy/haproxy.cfg\n  lb init --from ecosystem.config.js -o /etc/lb/lb.toml",
		Args:                  cobra.NoArgs,
		DisableFlagsInUseLine: true,
		RunE: action(func(cmd *cobra.Command) error {
			text, notes, err := initial(cmd.Context(), from, as)
			if err != nil {
				return err
			}
			if out == "-" {
				_, err = cmd.OutOrStdout().Write(text)
			} else {
				err = writeNew(out, text)
			}
			if err != nil {
				return err
			}
			for _, n := range notes {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s: %s\n", printable.Text(from), printable.Text(n.String()))
			}
			if out != "-" {
				fmt.Fprintf(cmd.OutOrStdout(), "wrote %s; look at it, then: lb check -f %s\n", out, out)
			}
			return checkInitial(cmd, out, text)
		}),
	}
	cmd.Flags().StringVar(&from, "from", "", "the `FILE` to translate")
	cmd.MarkFlagFilename("from")
	cmd.Flags().StringVar(&as, "as", "", "what --from is: `haproxy`, nginx or pm2")
	cmd.Flags().StringVarP(&out, "output", "o", "lb.toml", "the `FILE` to write; - is standard output")
	return cmd
}

// initial returns the config to begin with, and what could not be translated.
func initial(ctx context.Context, from, as string) ([]byte, []importer.Note, error) {
	if from == "" {
		return []byte(starter), nil, nil
	}
	if as == "" {
		as = guess(from)
	}
	var draft *importer.Draft
	var text []byte
	var err error
	switch as {
	case "haproxy", "nginx":
		if text, err = os.ReadFile(from); err != nil {
			return nil, nil, err
		}
		translate := importer.HAProxy
		if as == "nginx" {
			translate = importer.Nginx
		}
		draft, err = translate(from, text)
	case "pm2":
		ctx, cancel := context.WithTimeout(ctx, initTimeout)
		defer cancel()
		var dir string
		if dir, err = filepath.Abs(filepath.Dir(from)); err != nil {
			return nil, nil, err
		}
		if text, err = importer.ReadEcosystem(ctx, from); err == nil {
			draft, err = importer.Ecosystem(from, dir, text)
		}
	default:
		return nil, nil, fmt.Errorf("%s: is it of haproxy, nginx or pm2? Say it with --as", from)
	}
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", from, err)
	}
	return draft.TOML(), draft.Notes(), nil
}

// guess returns the program that a file belongs to by its name; empty is unknown.
func guess(file string) string {
	switch base := filepath.Base(file); {
	case strings.Contains(base, "haproxy"), filepath.Ext(base) == ".cfg":
		return "haproxy"
	case strings.Contains(base, "nginx"), filepath.Ext(base) == ".conf" || filepath.Ext(base) == ".stream":
		return "nginx"
	case strings.Contains(base, "ecosystem"), strings.Contains(base, "pm2"), strings.Contains(base, "process.json"),
		filepath.Ext(base) == ".js", filepath.Ext(base) == ".cjs":
		return "pm2"
	}
	return ""
}

// writeNew writes a file that is not there yet.
func writeNew(name string, text []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s is there already: name another file with -o, or -o - for standard output", name)
	}
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	return errors.Join(err, f.Close())
}

// checkInitial says what lb check --strict would say of the result.
func checkInitial(cmd *cobra.Command, name string, text []byte) error {
	cfg, err := config.Parse(name, text)
	if err != nil {
		return err
	}
	for _, w := range cfg.Warnings {
		w.Message = "warning: " + w.Message
		fmt.Fprintln(cmd.ErrOrStderr(), w)
	}
	return nil
}
