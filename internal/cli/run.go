package cli

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/config"
)

const runHelp = `Serve in the foreground until a signal ends it.

SIGTERM lets sessions finish within proxy.stop_timeout; SIGINT, and a second signal, stop at once. SIGUSR1 reopens log files,
SIGHUP reloads, SIGUSR2 upgrades to the binary that now has the name lb was started by. Workers that lb runs end after the
sessions; SIGTTIN starts one more, SIGTTOU ends one, where a single pool has workers.

Without a file, --listen with --to or with a command says what to serve. A command that has neither {socket} nor {port} in it is
given its port in the environment variable PORT; Node programs are handed the connections that they listen for, whatever
their port. --print-config prints the file that the flags stand for.`

func newRunCommand(programs Programs) *cobra.Command {
	var file string
	var check, printOnly bool
	var q quick
	cmd := &cobra.Command{
		Use:   "run -f FILE | --listen ADDRESS --to ADDRESS,... | --listen ADDRESS [--workers N] -- COMMAND...",
		Short: "Serve in the foreground until a signal ends it",
		Long:  runHelp,
		Example: "  lb run -f /etc/lb/lb.toml\n  lb run --listen :8080 --workers 4 -- node app.js\n" +
			"  lb run --listen :8080 --to 127.0.0.1:3001,unix:/run/app/2.sock --print-config >lb.toml",
		DisableFlagsInUseLine: true,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		q.command = args
		q.workersSet = cmd.Flags().Changed("workers")
		if err := q.check(file, printOnly, check); err != nil {
			return err // of usage
		}
		return action(func(cmd *cobra.Command) error {
			switch {
			case check:
				return programs.AnswerCheck(cmd.InOrStdin(), cmd.OutOrStdout())
			case file != "":
				return programs.Run(file)
			case printOnly:
				text, err := q.config("", api.DefaultSocket)
				if err == nil {
					_, err = fmt.Fprint(cmd.OutOrStdout(), text)
				}
				return err
			}
			return q.run(cmd, programs)
		})(cmd, nil)
	}
	cmd.Flags().StringVarP(&file, "file", "f", "", "the config `FILE`, in TOML")
	cmd.MarkFlagFilename("file", "toml")
	cmd.Flags().StringSliceVar(&q.listen, "listen", nil, "take connections at `ADDRESS`es: host:port, :port, [v6]:port, unix:/path")
	cmd.Flags().StringSliceVar(&q.to, "to", nil, "give them to the processes at `ADDRESS`es")
	cmd.Flags().IntVar(&q.workers, "workers", 0, "start `N` processes of COMMAND (default as many as there are CPUs)")
	cmd.Flags().BoolVar(&printOnly, "print-config", false, "print the config that the flags stand for, and serve nothing")
	cmd.Flags().BoolVar(&check, "adopt-check", false, "say whether this binary can take over the state on standard input")
	cmd.Flags().MarkHidden("adopt-check")
	return cmd
}

// run serves the quick config from a file in a directory of its own, so that lb reload and lb upgrade find
// one.
func (q *quick) run(cmd *cobra.Command, programs Programs) error {
	dir, err := os.MkdirTemp("", "lb-run-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir) // an lb that was upgraded leaves it
	file, socket := filepath.Join(dir, "lb.toml"), filepath.Join(dir, "admin.sock")
	work, err := os.Getwd()
	if err != nil {
		return err
	}
	text, err := q.config(work, socket)
	if err != nil {
		return err
	}
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	fmt.Fprintf(cmd.ErrOrStderr(), "lb: serves %s; in another terminal: export LB_SOCKET=%s; lb status\n", file, socket)
	return programs.Run(file)
}

// config returns the checked config that the flags stand for. Its faults are named by their lines in it.
func (q *quick) config(dir, socket string) (string, error) {
	text := q.toml(dir, socket)
	_, err := config.Parse("lb run --print-config", []byte(text))
	return text, err
}

// check reports what is wrong with the flags of lb run.
func (q *quick) check(file string, printOnly, takeOverCheck bool) error {
	switch {
	case takeOverCheck:
		return nil
	case file == "" && len(q.listen) == 0 && len(q.command) == 1:
		return fmt.Errorf("a config is named with -f: lb run -f %s", q.command[0])
	case file == "" && len(q.listen) == 0:
		return errors.New("what shall it serve? Give a config with -f FILE, or --listen ADDRESS with --to ADDRESS,... or a command")
	case file != "" && (len(q.listen) > 0 || len(q.to) > 0 || q.workersSet || len(q.command) > 0 || printOnly):
		return errors.New("-f FILE says all: leave --listen, --to, --workers, --print-config and the command away")
	case file != "":
		return nil
	case len(q.to) > 0 && len(q.command) > 0:
		return errors.New("--to names processes that run already, a command is started by lb: give one of the two")
	case len(q.to) > 0 && q.workersSet:
		return errors.New("--workers says how many processes lb starts; --to names processes that run already")
	case len(q.to) == 0 && len(q.command) == 0:
		return errors.New("where shall connections go? Give --to ADDRESS,... or, after --, the command of the app")
	case q.workersSet && q.workers < 1:
		return fmt.Errorf("--workers is %d; it must be at least 1", q.workers)
	}
	return nil
}
