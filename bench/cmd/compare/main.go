// Command compare runs lb, haproxy and nginx stream side by side and prints what each costs; it is what `make
// bench` runs.
//
//	go run ./bench/cmd/compare  # everything
//	go run ./bench/cmd/compare -cases keepalive -rounds 3 -contenders lb,nginx  # a quick look at one thing
//	go run ./bench/cmd/compare -lb old=./lb-old,new=./bin/lb -contenders lb  # two builds against each other
//
// It exits with 1 if it could not measure, or if any measurement is invalid, and with 2 on wrong usage. A
// missed goal is only printed.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/273ebdf9/lb/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// After the first signal, which ends everything in order, a second one ends this program at once; the
	// kernel then ends its children.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// settings are the command line.
type settings struct {
	options    bench.Options
	lb         string
	contenders string
	cases      string
	loops      int
	json       string
	haproxy    string
	preload    string
	install    bool
	quiet      bool
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	s := settings{options: bench.DefaultOptions()}
	flags := flag.NewFlagSet("compare", flag.ContinueOnError)
	flags.SetOutput(stderr)
	flags.StringVar(&s.lb, "lb", "./bin/lb", "`path` of lb; or several builds to compare, as name=path,name=path")
	flags.StringVar(&s.contenders, "contenders", "lb,lb-off,handoff,haproxy,haproxy-splice,nginx,direct", "comma-separated `list` of contenders; lb-off is lb with batching off, handoff is of the last build, handoff-all of each")
	flags.StringVar(&s.haproxy, "haproxy", "", "`path` of another haproxy than the installed one")
	flags.StringVar(&s.preload, "preload", "./bin/lbaccept.so", "`path` of the library by which nginx takes connections that lb hands over")
	flags.StringVar(&s.cases, "cases", "", "comma-separated `list` of keepalive, keep1, keep4, keep16, keep512, connect, 64k, 4m, idle; empty for all")
	flags.IntVar(&s.options.Rounds, "rounds", s.options.Rounds, "how often each contender is measured under each case")
	flags.DurationVar(&s.options.Duration, "duration", s.options.Duration, "length of each load, in whole seconds")
	flags.DurationVar(&s.options.WarmUp, "warmup", s.options.WarmUp, "length of the unmeasured load before")
	flags.DurationVar(&s.options.Settle, "settle", s.options.Settle, "how long idle sessions are left alone before they are measured")
	flags.DurationVar(&s.options.IdleFor, "idle", s.options.IdleFor, "how long idle sessions are measured")
	flags.IntVar(&s.options.Backends, "backends", s.options.Backends, "number of backends")
	flags.IntVar(&s.loops, "loops", 2, "event loops of lb")
	flags.StringVar(&s.json, "json", "", "`file` that gets every sample as JSON; - for standard output instead of the tables")
	flags.BoolVar(&s.install, "install", false, "install missing programs with apt-get")
	flags.BoolVar(&s.quiet, "quiet", false, "show no progress")
	if err := flags.Parse(args); errors.Is(err, flag.ErrHelp) {
		return 0
	} else if err != nil {
		return 2
	}
	fail := func(code int, err error) int {
		fmt.Fprintln(stderr, "compare:", err)
		return code
	}
	if flags.NArg() > 0 {
		return fail(2, fmt.Errorf("unknown argument %q", flags.Arg(0)))
	}
	if err := s.resolve(ctx, stderr); err != nil {
		code := 1
		if errors.Is(err, errUsage) {
			code = 2
		}
		return fail(code, err)
	}
	if !s.quiet {
		s.options.Progress = func(line string) { fmt.Fprintln(stderr, line) }
	}
	report, err := bench.Compare(ctx, s.options)
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return fail(1, errors.New("interrupted"))
	}
	if err != nil {
		return fail(1, err)
	}
	if err := s.write(report, stdout); err != nil {
		return fail(1, err)
	}
	if n := report.Invalid(); n > 0 {
		return fail(1, fmt.Errorf("%d of %d measurements are invalid", n, len(report.Samples)))
	}
	return 0
}

// errUsage marks what the user has to write differently.
var errUsage = errors.New("wrong usage")

// resolve turns the command line into options.
func (s *settings) resolve(ctx context.Context, stderr io.Writer) error {
	cases, err := parseCases(s.cases)
	if err != nil {
		return err
	}
	s.options.Cases = cases
	builds, err := parseBuilds(s.lb)
	if err != nil {
		return err
	}
	names := strings.Split(s.contenders, ",")
	search := bench.Search{Paths: bench.Programs{HAProxy: s.haproxy, Preload: s.preload}, Need: []bench.Program{bench.ProgramWrk, bench.ProgramNginx}}
	if slices.Contains(names, "haproxy") || slices.Contains(names, "haproxy-splice") {
		search.Need = append(search.Need, bench.ProgramHAProxy)
	}
	if slices.Contains(names, "nginx") {
		search.Need = append(search.Need, bench.ProgramNginxStream)
	}
	if s.install {
		search.Install = stderr
	}
	programs, err := bench.FindPrograms(ctx, search)
	if errors.Is(err, bench.ErrMissing) {
		err = fmt.Errorf("%w (or let -install do it)", err)
	}
	if err != nil {
		return err
	}
	s.options.Programs = programs
	s.options.Contenders, err = contenders(names, builds, programs, s.loops)
	if err != nil {
		return err
	}
	if err := s.options.Validate(); err != nil {
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	return nil
}

func parseCases(list string) ([]bench.Case, error) {
	all := bench.AllCases()
	if list == "" {
		return all, nil
	}
	var cases []bench.Case
	for name := range strings.SplitSeq(list, ",") {
		i := slices.IndexFunc(all, func(c bench.Case) bool { return c.Name == name })
		if i < 0 {
			return nil, fmt.Errorf("%w: unknown case %q", errUsage, name)
		}
		cases = append(cases, all[i])
	}
	return cases, nil
}

// build is a binary of lb under a name.
type build struct{ name, path string }

// parseBuilds parses the flag -lb: a path, or a list of name=path.
func parseBuilds(list string) ([]build, error) {
	if !strings.Contains(list, "=") {
		return []build{{"lb", list}}, nil
	}
	var builds []build
	for item := range strings.SplitSeq(list, ",") {
		name, path, ok := strings.Cut(item, "=")
		if !ok || name == "" || path == "" {
			return nil, fmt.Errorf("%w: -lb takes a path or name=path,name=path, not %q", errUsage, item)
		}
		builds = append(builds, build{name, path})
	}
	return builds, nil
}

func contenders(names []string, builds []build, programs bench.Programs, loops int) ([]bench.Contender, error) {
	var contenders []bench.Contender
	for _, name := range names {
		switch name {
		case "lb", "lb-off":
			for _, b := range builds {
				path, err := existing(b.path)
				if err != nil {
					return nil, fmt.Errorf("cannot find lb, build it or name it with -lb: %w", err)
				}
				c := bench.LB(b.name, path, bench.RelayConfig(loops, ""))
				if name == "lb-off" {
					c = bench.LB(b.name+"-off", path, bench.RelayConfig(loops, "off"))
					c.Kind = bench.KindPlain
				}
				contenders = append(contenders, c)
			}
		case "handoff", "handoff-all":
			of := builds[len(builds)-1:] // the first may be older than hand-off
			if name == "handoff-all" {
				of = builds
			}
			var err error
			if programs.Preload, err = existing(programs.Preload); err != nil {
				return nil, fmt.Errorf("cannot find the library that nginx takes connections with, build it (make preload), name it with -preload, or leave handoff out of -contenders: %w", err)
			}
			for _, b := range of {
				path, err := existing(b.path)
				if err != nil {
					return nil, fmt.Errorf("cannot find lb, build it or name it with -lb: %w", err)
				}
				as := name
				if name == "handoff-all" {
					as = "handoff-" + b.name
				}
				contenders = append(contenders, bench.Handoff(programs, as, path, loops))
			}
		case "haproxy":
			contenders = append(contenders, bench.HAProxy(programs, name, bench.HAProxyOptions{}))
		case "haproxy-splice":
			contenders = append(contenders, bench.HAProxy(programs, name, bench.HAProxyOptions{Splice: true}))
		case "nginx":
			contenders = append(contenders, bench.NginxStream(programs, name, false))
		case "direct":
			contenders = append(contenders, bench.Direct(name))
		default:
			return nil, fmt.Errorf("%w: unknown contender %q", errUsage, name)
		}
	}
	return contenders, nil
}

// existing returns the absolute path of a file that must be there.
func existing(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err == nil {
		_, err = os.Stat(path)
	}
	return path, err
}

// write prints the report, and writes the file if one is asked for.
func (s *settings) write(report *bench.Report, stdout io.Writer) error {
	if s.json == "-" {
		return report.WriteJSON(stdout)
	}
	if err := report.WriteText(stdout); err != nil {
		return err
	}
	if s.json == "" {
		return nil
	}
	file, err := os.Create(s.json)
	if err != nil {
		return fmt.Errorf("cannot create report: %w", err)
	}
	return errors.Join(report.WriteJSON(file), file.Close())
}
