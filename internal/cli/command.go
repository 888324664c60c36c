package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/internal/build"
	"github.com/273ebdf9/lb/internal/printable"
)

// The exit codes of every command.
const (
	exitDone   = 0
	exitFailed = 1 // refused or failed; the reason is on stderr
	exitUsage  = 2 // no such command, flag or argument
)

// askTimeout is how long a command waits for the answer of a running lb.
const askTimeout = 10 * time.Second

// Programs are the functions that the command line starts and does not import.
type Programs struct {
	// Run serves the config in the file until a signal ends it.
	Run func(file string) error
	// AnswerCheck reports on out whether this binary can take over the state that it reads from in.
	AnswerCheck func(in io.Reader, out io.Writer) error
}

// Execute runs the command that args name and returns its exit code.
func Execute(args []string, stdout, stderr io.Writer, programs Programs) int {
	root := newRoot(programs)
	root.SetArgs(scaleArgs(args))
	root.SetOut(stdout)
	root.SetErr(stderr)
	cmd, err := root.ExecuteC()
	var failed *failure
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &failed):
		printFailure(stderr, failed.cause)
		return exitFailed
	default:
		fmt.Fprintf(stderr, "lb: %v\n", err)
		if cmd.Runnable() && !cmd.HasAvailableSubCommands() {
			fmt.Fprintf(stderr, "Usage: %s\n", cmd.UseLine())
		}
		fmt.Fprintf(stderr, "Run %q for help.\n", cmd.CommandPath()+" --help")
		return exitUsage
	}
}

// Command returns the command line of lb for those who describe it: its manual pages and completions. Its
// commands are not to be run.
func Command() *cobra.Command { return newRoot(Programs{}) }

func newRoot(programs Programs) *cobra.Command {
	keepOrder()
	root := &cobra.Command{
		Use:   "lb",
		Short: "A Layer-4 TCP load balancer for one host's fleet of app processes",
		Long: "lb accepts TCP connections and gives each to one of the app processes of this host: the one with the fewest, by weight. It starts and\n" +
			"watches these processes if asked to, takes one out that hangs, and changes weights, the config and its own binary without losing\n" +
			"a connection.",
		Example:       "  lb check -f lb.toml          # say what is wrong with a config\n  lb run -f lb.toml            # serve\n  lb status                    # in another terminal\n  lb weight app/w1 50%",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	// cobra's templates are not used: with text/template the linker keeps every exported method, 2.5 MB of
	// them.
	root.Flags().BoolP("version", "v", false, "version for lb")
	root.SetFlagErrorFunc(flagError)
	for _, g := range commandGroups(programs) {
		root.AddGroup(&cobra.Group{ID: g.title, Title: g.title + ":"})
		for _, cmd := range g.commands {
			cmd.GroupID = g.title
			root.AddCommand(cmd)
		}
	}
	root.AddCommand(newBenchWorkerCommand(), newBenchExecCommand())
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range append(root.Commands(), root) {
		switch {
		case cmd.HasSubCommands():
			cmd.RunE, cmd.Args = needCommand, cobra.ArbitraryArgs
		case cmd.Name() == "help":
			cmd.RunE = help
		}
	}
	usage := root.UsageFunc()
	root.SetUsageFunc(func(cmd *cobra.Command) error {
		if run := cmd.RunE; cmd.HasAvailableSubCommands() {
			// needCommand makes it runnable, which is no use to tell of
			cmd.RunE = nil
			defer func() { cmd.RunE = run }()
		}
		err := usage(cmd)
		if cmd == root {
			fmt.Fprint(cmd.OutOrStdout(), rootNotes)
		}
		return err
	})
	return root
}

// rootNotes end the help of lb.
const rootNotes = `
Exit codes: 0 done, 1 refused or failed, 2 wrong usage.

Root and the user that runs lb may do everything. Others who may open its control socket may not add or remove backends,
nor reload, upgrade or stop lb itself.
`

// keepOrder has help list commands in the order of commandGroups.
var keepOrder = sync.OnceFunc(func() { cobra.EnableCommandSorting = false })

// commandGroup is a part of the list of commands, as help shows it.
type commandGroup struct {
	title    string
	commands []*cobra.Command
}

func commandGroups(programs Programs) []commandGroup {
	return []commandGroup{
		{"Serve, and measure", []*cobra.Command{newRunCommand(programs), newInitCommand(), newCheckCommand(), newSchemaCommand(), newBenchCommand(), newVersionCommand()}},
		{"Look at a running lb", []*cobra.Command{newStatusCommand(), newTopCommand(), newWhyCommand(), newConnsCommand(), newClientsCommand(), newEventsCommand(), newWorkersCommand(), newLogsCommand()}},
		{"Change what runs", []*cobra.Command{newWeightCommand(), newSplitCommand(), newDrainCommand(), newReadyCommand(), newMaintCommand(),
			newAddCommand(), newRemoveCommand(), newSetLimitCommand(), newKillCommand()}},
		{"Change the processes that lb runs", []*cobra.Command{newRestartCommand(), newRollbackCommand(), newScaleCommand(), newStartCommand(), newRolloutCommand()}},
		{"Change lb itself", []*cobra.Command{newReloadCommand(), newUpgradeCommand(), newStopCommand(), newLogLevelCommand()}},
	}
}

// needCommand is the action of a command that has only sub-commands. Left to itself, cobra shows help and
// succeeds.
func needCommand(cmd *cobra.Command, args []string) error {
	if asked := cmd.Flags().Lookup("version"); asked != nil && asked.Changed && len(args) == 0 {
		_, err := fmt.Fprintln(cmd.OutOrStdout(), build.Read())
		return err
	}
	if len(args) == 0 {
		return errors.New("which command?")
	}
	if near := suggestion(cmd, args[0]); near != "" {
		return fmt.Errorf("there is no command %q; did you mean %q?", args[0], near)
	}
	return fmt.Errorf("there is no command %q", args[0])
}

// suggestion returns the command that was probably meant by a word; empty for none. It never returns a
// command that ends something: a user may run what is suggested without a look.
func suggestion(cmd *cobra.Command, word string) string {
	switch strings.ToLower(word) {
	case "show", "stats", "ls", "ps", "list", "info":
		word = "status"
	case "enable":
		word = "ready"
	case "disable":
		word = "maint"
	}
	cmd.SuggestionsMinimumDistance = 2
	near := cmd.SuggestionsFor(word)
	if len(near) == 0 {
		return ""
	}
	// Of equally near ones that with letters swapped, not that with letters lost.
	slices.SortStableFunc(near, func(a, b string) int {
		return cmp.Compare(abs(len(a)-len(word)), abs(len(b)-len(word)))
	})
	if near[0] == "stop" || near[0] == "kill" {
		return ""
	}
	return near[0]
}

// flagError is an error of flags in words. A negative number looks like a flag; the one that lb scale takes
// is none here any more (scaleArgs).
func flagError(_ *cobra.Command, err error) error {
	var unknown *pflag.NotExistError
	if errors.As(err, &unknown) && minusNumber.MatchString("-"+strings.TrimSuffix(unknown.GetSpecifiedShortnames(), "%")) {
		return fmt.Errorf("%q is negative; write a whole number from 0 on", "-"+unknown.GetSpecifiedShortnames())
	}
	return err
}

func abs(n int) int { return max(n, -n) }

// help is the action of lb help. Cobra's own succeeds for a command that does not exist.
func help(cmd *cobra.Command, args []string) error {
	of, rest, err := cmd.Root().Find(args)
	if err != nil || len(rest) > 0 {
		return fmt.Errorf("there is no command %q", strings.Join(args, " "))
	}
	of.InitDefaultHelpFlag()
	return of.Help()
}

// failure is an error of a command's own work. Every other one is cobra's, and about usage.
type failure struct{ cause error }

func (f *failure) Error() string { return f.cause.Error() }
func (f *failure) Unwrap() error { return f.cause }

// action makes a cobra action of a command that takes no arguments.
func action(do func(cmd *cobra.Command) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, _ []string) error {
		if err := do(cmd); err != nil {
			return &failure{err}
		}
		return nil
	}
}

// errSaid is the failure of a command that has printed the reason already.
var errSaid = errors.New("said already")

// printFailure prints why a command failed. The faults of a config stand alone, one a line, as editors read
// them; so do several lines that a running lb has sent.
func printFailure(w io.Writer, err error) {
	var faults *config.Error
	var refusal *api.Error
	switch {
	case errors.Is(err, errSaid):
	case errors.As(err, &faults):
		fmt.Fprintln(w, faults)
	case errors.As(err, &refusal):
		for i, line := range strings.Split(refusal.Message, "\n") {
			if i == 0 && !strings.Contains(refusal.Message, "\n") {
				line = "lb: " + line
			}
			fmt.Fprintln(w, printable.Text(line))
		}
	default:
		fmt.Fprintln(w, "lb:", err)
	}
}

// addFileFlag adds -f, which has to be given.
func addFileFlag(cmd *cobra.Command, file *string) {
	cmd.Flags().StringVarP(file, "file", "f", "", "the config `FILE`, in TOML")
	cmd.MarkFlagRequired("file")
	cmd.MarkFlagFilename("file", "toml")
}

// addSocketFlag adds -s to a command that asks a running lb.
func addSocketFlag(cmd *cobra.Command, socket *string) {
	def := os.Getenv("LB_SOCKET")
	if def == "" {
		def = api.DefaultSocket
	}
	cmd.Flags().StringVarP(socket, "socket", "s", def, "the control `SOCKET` of lb; also LB_SOCKET")
	cmd.MarkFlagFilename("socket")
}

// addJSONFlag adds --json.
func addJSONFlag(cmd *cobra.Command, asJSON *bool) {
	cmd.Flags().BoolVar(asJSON, "json", false, "print JSON")
}
