package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/bench"
	"github.com/273ebdf9/lb/bench/fairness"
	"github.com/273ebdf9/lb/bench/load"
	"github.com/273ebdf9/lb/internal/build"
)

// The hidden commands by which lb bench runs this program in other parts.
const (
	benchWorkerCommand = "bench-worker"
	benchExecCommand   = "bench-exec"
)

// benchFlags are the flags of lb bench.
type benchFlags struct {
	options fairness.Options
	budget  fairness.Budget
	quick   bool
	cases   []string
	worker  string
	asJSON  bool
	report  string
	haproxy string
	install bool
	quiet   bool
}

// The load of a full run, of about ten minutes, and of a quick one, of one, on two cores.
const (
	benchDuration, benchQuickDuration = 5 * time.Second, 4400 * time.Millisecond
	benchTimeout, benchQuickTimeout   = 2 * time.Second, 1500 * time.Millisecond
	benchRounds, benchQuickRounds     = 2, 1
	benchWorkers                      = 8
)

// benchLeast is the shortest load: in less, nothing is left of it after the event of a case and what it takes
// to see it.
const benchLeast = time.Second

func newBenchCommand() *cobra.Command {
	f := new(benchFlags)
	cmd := &cobra.Command{
		Use:   "bench [--quick] [--report FILE] [--worker CMD] [--target ADDR]",
		Short: "Measure whether balancing helps: against SO_REUSEPORT, and others that are installed",
		Long: "Measure whether balancing in user space helps, on this machine: workers behind lb, against the same workers that listen with SO_REUSEPORT, that share one listener, and behind haproxy and nginx where these are installed.\n\n" +
			"Nothing else is needed: lb brings the workers and the load. A run takes ten minutes, with --quick one, in which all contenders are loaded at the same time. Nothing is left behind.\n\n" +
			"Cases: " + strings.Join(fairness.CaseNames(), ", ") + ".\nContenders: " + strings.Join(fairness.ContenderNames(), ", ") + ".\nLaws of service times: " + load.LawForms() + ".\n\n" +
			"docs/benchmarks.md says how it measures, and what it cannot tell. It exits with 1 if something could not be measured.",
		Example:               "  lb bench --quick\n  lb bench --report bench.html\n  lb bench --cases even,heavy --contenders lb,reuseport --law pareto:2ms,1s,1.1 --burn\n  lb bench --quick --worker './app --listen {socket}' --path /work --rate 100\n  lb bench --quick --target 127.0.0.1:8080 --rate 100",
		Args:                  cobra.NoArgs,
		DisableFlagsInUseLine: true,
	}
	flags := cmd.Flags()
	flags.BoolVar(&f.quick, "quick", false, "one minute: one round, all contenders at the same time")
	flags.StringSliceVar(&f.cases, "cases", nil, "only these `CASES`, separated by commas")
	flags.StringSliceVar(&f.options.Contenders, "contenders", nil, "only these `PEERS`, separated by commas")
	flags.StringSliceVar(&f.options.Contenders, "peers", nil, "")
	flags.MarkHidden("peers") // as it was called once
	flags.IntVar(&f.options.Workers, "workers", benchWorkers, "how many workers each contender has")
	flags.StringVar(&f.worker, "worker", "", "a worker of your own: words separated by blanks, no shell. It takes the listening socket as descriptor 3, or listens at {socket} or {port}")
	flags.StringVar(&f.options.Handoff, "handoff", "", "how --worker takes the sockets that lb hands over: `lb or node` (default: node if it runs Node, else it takes none)")
	flags.StringVar(&f.options.Target, "target", "", "compare this address of your own too: host:port or unix:/path")
	flags.StringVar(&f.options.Path, "path", "", "the `PATH` that is requested (default /)")
	flags.DurationVar(&f.budget.Duration, "duration", benchDuration, "how long each load is, 1s at least")
	flags.IntVar(&f.options.Rounds, "rounds", benchRounds, "how often each case is run")
	flags.Float64Var(&f.budget.Rate, "rate", 0, "requests a second (default: what keeps about half of the workers busy)")
	flags.StringVar(&f.budget.Law, "law", "", "the `LAW` of service times, instead of each case's own")
	flags.BoolVar(&f.budget.Closed, "closed", false, "a closed loop of two clients a worker: each sends its next request when the last was answered; few and scale stay as they are")
	flags.BoolVar(&f.budget.KeepAlive, "keepalive", false, "two kept connections a worker, instead of a new one for each request; few and scale have their own")
	flags.BoolVar(&f.options.Burn, "burn", false, "spend service times as CPU time, instead of sleeping")
	flags.DurationVar(&f.options.Timeout, "timeout", benchTimeout, "how long a request may take until it counts as hung")
	flags.BoolVar(&f.options.Together, "together", false, "load all contenders at the same time, instead of one after the other")
	flags.IntVar(&f.options.Repeats, "repeats", 10, "how many measurements of a run may be repeated, because the load generator could not keep its schedule")
	flags.Uint64Var(&f.options.Seed, "seed", 1, "the same seed gives the same arrivals and service times")
	addJSONFlag(cmd, &f.asJSON)
	flags.StringVar(&f.report, "report", "", "write a page of HTML with plots to `FILE`")
	flags.StringVar(&f.haproxy, "haproxy", "", "the `PATH` of another haproxy than the installed one")
	flags.BoolVar(&f.install, "install", false, "install haproxy and nginx where they are missing, with apt-get")
	flags.BoolVar(&f.quiet, "quiet", false, "show no progress")
	cmd.MarkFlagFilename("report", "html")
	cmd.RegisterFlagCompletionFunc("cases", cobra.FixedCompletions(fairness.CaseNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RegisterFlagCompletionFunc("contenders", cobra.FixedCompletions(fairness.ContenderNames(), cobra.ShellCompDirectiveNoFileComp))
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := f.resolve(cmd); err != nil {
			return err
		}
		if err := f.run(cmd); err != nil {
			return &failure{err}
		}
		return nil
	}
	return cmd
}

// resolve makes options of the flags. Its errors are of usage.
func (f *benchFlags) resolve(cmd *cobra.Command) error {
	if f.quick {
		set := cmd.Flags().Changed
		if !set("duration") {
			f.budget.Duration = benchQuickDuration
		}
		if !set("rounds") {
			f.options.Rounds = benchQuickRounds
		}
		if !set("timeout") {
			f.options.Timeout = benchQuickTimeout
		}
		if !set("together") {
			f.options.Together = !f.options.Burn // who burns CPU would take it from the others
		}
	}
	if f.options.Together && f.options.Burn {
		return usage("--burn and --together: contenders that burn CPU at the same time measure each other; leave one out")
	}
	if cmd.Flags().Changed("worker") {
		if f.options.Command = strings.Fields(f.worker); len(f.options.Command) == 0 {
			return usage("--worker is empty; write the command of a worker, such as './app --listen {socket}'")
		}
		if f.options.Burn {
			return usage("--burn is for the benchmark's own worker, and --worker names another")
		}
	}
	if f.options.Target != "" {
		if _, err := backends.ParseAddress(f.options.Target); err != nil {
			return usage("--target: %v", err)
		}
		if len(f.options.Contenders) > 0 && !slices.Contains(f.options.Contenders, fairness.ContenderTarget) {
			return usage("--target names an address that --contenders leaves out; add %s to --contenders", fairness.ContenderTarget)
		}
	}
	if f.budget.Rate < 0 {
		return usage("--rate is not negative")
	}
	if f.budget.Rate > 0 && f.budget.Closed {
		return usage("--rate and --closed: a closed loop has no rate; leave one out")
	}
	if f.options.Workers < 2 || f.options.Workers > 64 {
		return usage("--workers %d is not within 2..64", f.options.Workers)
	}
	if f.budget.Duration < benchLeast || f.budget.Duration > time.Hour {
		return usage("--duration %v is not within %v..1h", f.budget.Duration, benchLeast)
	}
	names := f.cases
	if len(names) == 0 {
		names = fairness.CaseNames()
	}
	f.budget.Workers = f.options.Workers
	var err error
	if f.options.Cases, err = fairness.Cases(names, f.budget); err != nil {
		return usage("%v", err)
	}
	if err := f.options.Validate(); err != nil {
		return usage("%s", strings.ReplaceAll(err.Error(), "\n", "; "))
	}
	if err := f.findPrograms(cmd); err != nil {
		return usage("%v", err)
	}
	if err := f.options.Unplayable(); err != nil {
		return usage("nothing would be measured: %v", err)
	}
	return nil
}

// findPrograms looks for those of haproxy and nginx that may take part. One that is not installed does not.
func (f *benchFlags) findPrograms(cmd *cobra.Command) error {
	search := bench.Search{Paths: bench.Programs{HAProxy: f.haproxy}}
	if f.options.Compares(fairness.ContenderHAProxy) {
		search.Need = append(search.Need, bench.ProgramHAProxy)
	}
	if f.options.Compares(fairness.ContenderNginx) {
		search.Need = append(search.Need, bench.ProgramNginx, bench.ProgramNginxStream)
	}
	if f.install {
		search.Install = cmd.ErrOrStderr()
	}
	var err error
	f.options.Programs, err = bench.FindPrograms(cmd.Context(), search)
	if cmd.Context().Err() != nil || errors.Is(err, bench.ErrMissing) && !f.install {
		return nil // run tells of an interrupt, and the report of what is not there
	}
	return err
}

// run runs the comparison and prints what came of it.
func (f *benchFlags) run(cmd *cobra.Command) error {
	ctx, stop := signal.NotifyContext(cmd.Context(), syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	// Who reads the progress may leave: left to itself, that would end this program before it has cleaned up.
	pipes := make(chan os.Signal, 1)
	signal.Notify(pipes, syscall.SIGPIPE)
	defer signal.Stop(pipes)
	// A second signal ends this program at once; the kernel then ends its children.
	defer context.AfterFunc(ctx, stop)()

	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("cannot find lb's own program: %w", err)
	}
	f.options.Self = fairness.Self{LB: self, Worker: []string{self, benchWorkerCommand}, Exec: []string{self, benchExecCommand, "--"}}
	f.options.Version = build.Version()
	f.options.CommandLine = append([]string{"lb"}, os.Args[1:]...)
	if !slices.Contains(f.options.CommandLine, "--seed") && !cmd.Flags().Changed("seed") {
		f.options.CommandLine = append(f.options.CommandLine, "--seed", fmt.Sprint(f.options.Seed))
	}
	// Opened before the run, so that ten minutes are not for nothing. A report of before stays until there is
	// another one.
	var page *os.File
	made := false
	if f.report != "" {
		_, err := os.Lstat(f.report)
		made = errors.Is(err, os.ErrNotExist)
		if page, err = os.OpenFile(f.report, os.O_WRONLY|os.O_CREATE, 0o666); err != nil {
			return fmt.Errorf("cannot write the report: %w", err)
		}
		defer page.Close()
	}
	progress := func() {}
	if !f.quiet {
		f.options.Progress, progress = benchProgress(cmd.ErrOrStderr())
	}
	report, err := fairness.Run(ctx, f.options)
	progress()
	if ctx.Err() != nil {
		err = errInterrupted
	}
	if err != nil {
		if made {
			os.Remove(f.report)
		}
		return err
	}
	if page != nil {
		var cut error
		if info, err := page.Stat(); err == nil && info.Mode().IsRegular() { // not a pipe or a device
			cut = page.Truncate(0)
		}
		if err := errors.Join(cut, report.WriteHTML(page), page.Close()); err != nil {
			return fmt.Errorf("cannot write the report: %w", err)
		}
	}
	if f.asJSON {
		err = report.WriteJSON(cmd.OutOrStdout())
	} else {
		err = report.WriteText(cmd.OutOrStdout())
	}
	if n := report.Broken(); err == nil && n > 0 {
		err = fmt.Errorf("%s could not be made; the report says why", count(n, "measurement"))
	}
	return err
}

// benchProgress shows how far a run is, on a terminal in one line. The second function takes that line away.
func benchProgress(w io.Writer) (func(fairness.Progress), func()) {
	tty := terminal(w)
	show := func(p fairness.Progress) {
		left := ""
		if p.Left > 0 {
			left = fmt.Sprintf(", %v left", p.Left.Round(time.Second))
		}
		line := fmt.Sprintf("%d/%d%s: %s", p.Done, p.Total, left, p.What)
		if tty {
			io.WriteString(w, eraseLine+line)
		} else {
			fmt.Fprintln(w, line)
		}
	}
	return show, func() {
		if tty {
			io.WriteString(w, eraseLine)
		}
	}
}

func newBenchWorkerCommand() *cobra.Command {
	var w load.Worker
	var slow int
	cmd := &cobra.Command{
		Use:    benchWorkerCommand,
		Short:  "Be a worker of lb bench",
		Args:   cobra.NoArgs,
		Hidden: true,
		RunE: action(func(*cobra.Command) error {
			if _, err := fmt.Sscan(os.Getenv("LB_WORKER_ID"), &w.Number); err != nil {
				return fmt.Errorf("cannot read LB_WORKER_ID: %w; lb bench runs this command", err)
			}
			if w.Number != slow {
				w.Factor = 1
			}
			return load.Serve(w)
		}),
	}
	cmd.Flags().BoolVar(&w.Burn, "burn", false, "burn CPU")
	cmd.Flags().IntVar(&slow, "slow", -1, "the number of the slow worker")
	cmd.Flags().Float64Var(&w.Factor, "factor", 1, "how much slower that one is")
	return cmd
}

func newBenchExecCommand() *cobra.Command {
	return &cobra.Command{
		Use:    benchExecCommand + " -- COMMAND",
		Short:  "Run a worker of lb bench with LISTEN_PID",
		Args:   cobra.MinimumNArgs(1),
		Hidden: true,
		RunE:   func(_ *cobra.Command, args []string) error { return &failure{fairness.Exec(args)} },
	}
}
