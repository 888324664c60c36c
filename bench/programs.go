package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Programs holds the paths of the foreign programs that the comparison runs. A path is empty if the program
// is not needed.
type Programs struct {
	Wrk     string
	HAProxy string
	Nginx   string
	// NginxStream is the path of nginx's stream module, or empty if stream is built in.
	NginxStream string
	// Preload is the path of lb's preloaded library, by which nginx takes connections that lb hands over;
	// empty if it is not needed. It is not searched for.
	Preload string
}

// Program names a foreign program.
type Program string

// The foreign programs.
const (
	ProgramWrk         Program = "wrk"
	ProgramHAProxy     Program = "haproxy"
	ProgramNginx       Program = "nginx"
	ProgramNginxStream Program = "nginx's stream module"
)

// packages are Debian's packages of the programs.
var packages = map[Program]string{ProgramWrk: "wrk", ProgramHAProxy: "haproxy", ProgramNginx: "nginx", ProgramNginxStream: "libnginx-mod-stream"}

// ErrMissing is in the error of [FindPrograms] when a program is not installed.
var ErrMissing = errors.New("not installed")

// missingError names what is missing.
type missingError []Program

func (e missingError) Error() string {
	var names []string
	for _, program := range e {
		names = append(names, string(program))
	}
	return fmt.Sprintf("cannot find %s; install with: apt-get install %s", strings.Join(names, ", "), strings.Join(e.packages(), " "))
}

func (e missingError) packages() []string {
	var names []string
	for _, program := range e {
		names = append(names, packages[program])
	}
	return names
}

func (e missingError) Is(target error) bool { return target == ErrMissing }

// Search says which programs are looked for.
type Search struct {
	// Paths are of programs that need not be looked for.
	Paths Programs
	// Need are the programs to find.
	Need []Program
	// Install, if not nil, has what is missing installed from Debian's packages; the output of apt-get goes
	// there. Debian starts a newly installed haproxy and nginx as services with their preset configuration.
	// The benchmarks neither use nor stop these.
	Install io.Writer
}

// FindPrograms finds programs. If some are not installed, the error is [ErrMissing] and names the command
// that installs them, and the programs returned are the others. nginx without its stream module, where that
// is needed, is left out.
func FindPrograms(ctx context.Context, s Search) (Programs, error) {
	p, err := s.find(ctx)
	var missing missingError
	if s.Install == nil || !errors.As(err, &missing) {
		return p, err
	}
	if err := install(ctx, missing.packages(), s.Install); err != nil {
		return p, err
	}
	return s.find(ctx)
}

func (s *Search) find(ctx context.Context) (Programs, error) {
	p := s.Paths
	var missing missingError
	for _, program := range s.Need {
		path := map[Program]*string{ProgramWrk: &p.Wrk, ProgramHAProxy: &p.HAProxy, ProgramNginx: &p.Nginx}[program]
		if path == nil {
			continue
		}
		var err error
		if *path != "" {
			if _, err = exec.LookPath(*path); err == nil {
				*path, err = filepath.Abs(*path)
			}
			if err != nil {
				return p, fmt.Errorf("cannot run %s: %w", program, err)
			}
		} else if *path, err = lookPath(string(program)); err != nil {
			missing = append(missing, program)
		}
	}
	if slices.Contains(s.Need, ProgramNginxStream) {
		err := ErrMissing
		if p.Nginx != "" {
			p.NginxStream, err = findNginxStream(ctx, p.Nginx)
		}
		if errors.Is(err, ErrMissing) {
			p.Nginx = "" // of no use
			missing = append(missing, ProgramNginxStream)
		} else if err != nil {
			return p, err
		}
	}
	if len(missing) > 0 {
		return p, missing
	}
	return p, nil
}

// lookPath looks for a program in PATH and where Debian puts servers, which is not in every user's PATH.
func lookPath(program string) (string, error) {
	path, err := exec.LookPath(program)
	if err == nil {
		return filepath.Abs(path)
	}
	for _, dir := range []string{"/usr/sbin", "/usr/local/sbin"} {
		if path, err := exec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", err
}

// findNginxStream asks nginx how it was built and returns the path of its stream module, "" if stream is
// built in.
func findNginxStream(ctx context.Context, nginx string) (string, error) {
	out, err := exec.CommandContext(ctx, nginx, "-V").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("cannot ask nginx for its build options: %w", err)
	}
	module, ok := parseNginxStream(string(out))
	if !ok {
		return "", ErrMissing
	}
	if module == "" {
		return "", nil
	}
	if _, err := os.Stat(module); err != nil {
		return "", ErrMissing
	}
	return module, nil
}

// parseNginxStream reads the output of `nginx -V`. It reports false if nginx was built without stream.
func parseNginxStream(out string) (module string, ok bool) {
	options := strings.Fields(out)
	if slices.Contains(options, "--with-stream") {
		return "", true
	}
	if !slices.Contains(options, "--with-stream=dynamic") {
		return "", false
	}
	value := func(name, preset string) string {
		for _, option := range options {
			if v, found := strings.CutPrefix(option, name+"="); found {
				return v
			}
		}
		return preset
	}
	modules := value("--modules-path", filepath.Join(value("--prefix", "/usr/local/nginx"), "modules"))
	return filepath.Join(modules, "ngx_stream_module.so"), true
}

// install installs Debian packages with apt-get, whose output goes to w.
func install(ctx context.Context, packages []string, w io.Writer) error {
	args := append([]string{"install", "--yes", "--no-install-recommends"}, packages...)
	cmd := exec.CommandContext(ctx, "apt-get", args...)
	cmd.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("cannot run apt-get %s: %w", strings.Join(args, " "), err)
	}
	return nil
}

// Versions asks each program for its version, for the head of a report.
func (p Programs) Versions(ctx context.Context) []string {
	var versions []string
	for _, program := range [][]string{{p.HAProxy, "-v"}, {p.Nginx, "-v"}, {p.Wrk, "-v"}} {
		if program[0] == "" {
			continue
		}
		// wrk exits with 1 after printing its version, so only the output counts.
		out, _ := exec.CommandContext(ctx, program[0], program[1]).CombinedOutput()
		versions = append(versions, parseVersion(filepath.Base(program[0]), string(out)))
	}
	return versions
}

// parseVersion takes the first thing that looks like a version out of a program's first line.
func parseVersion(name, out string) string {
	line, _, _ := strings.Cut(out, "\n")
	if v := regexp.MustCompile(`\d+\.\d+[\w.+-]*`).FindString(line); v != "" {
		return name + " " + v
	}
	return name + " (unknown version)"
}
