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

// Programs holds the paths of the foreign programs that the comparison runs. A path is empty if the program is not needed.
type Programs struct {
	Wrk     string
	HAProxy string
	Nginx   string
	// NginxStream is the path of nginx's stream module, or empty if stream is built in.
	NginxStream string
}

// ErrMissing is in the error of [FindPrograms] when a program is not installed.
var ErrMissing = errors.New("bench: program is not installed")

// missingError names Debian's packages of what is missing.
type missingError struct {
	programs []string
	packages []string
}

func (e *missingError) Error() string {
	return fmt.Sprintf("cannot find %s; install with: apt-get install %s (or let -install do it)",
		strings.Join(e.programs, ", "), strings.Join(e.packages, " "))
}

func (e *missingError) Is(target error) bool { return target == ErrMissing }

// FindPrograms looks for wrk and nginx, which every comparison needs, and for haproxy and nginx's stream module if asked.
// If something is missing, the error is [ErrMissing] and names the command that installs all of it from Debian's packages.
func FindPrograms(ctx context.Context, haproxy, stream bool) (Programs, error) {
	var p Programs
	missing := &missingError{}
	find := func(program, pkg string) string {
		path, err := lookPath(program)
		if err != nil {
			missing.programs = append(missing.programs, program)
			missing.packages = append(missing.packages, pkg)
		}
		return path
	}
	p.Wrk = find("wrk", "wrk")
	p.Nginx = find("nginx", "nginx")
	if haproxy {
		p.HAProxy = find("haproxy", "haproxy")
	}
	if stream {
		module, err := "", error(nil)
		if p.Nginx != "" {
			module, err = findNginxStream(ctx, p.Nginx)
		}
		if p.Nginx == "" || errors.Is(err, ErrMissing) {
			missing.programs = append(missing.programs, "nginx's stream module")
			missing.packages = append(missing.packages, "libnginx-mod-stream")
		} else if err != nil {
			return Programs{}, err
		}
		p.NginxStream = module
	}
	if len(missing.programs) > 0 {
		return Programs{}, missing
	}
	return p, nil
}

// FindBalancers looks for haproxy, and for nginx with its stream module. What is not installed is empty; Wrk is too.
func FindBalancers(ctx context.Context) Programs {
	var p Programs
	p.HAProxy, _ = lookPath("haproxy")
	if nginx, err := lookPath("nginx"); err == nil {
		if module, err := findNginxStream(ctx, nginx); err == nil {
			p.Nginx, p.NginxStream = nginx, module
		}
	}
	return p
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

// findNginxStream asks nginx how it was built and returns the path of its stream module, "" if stream is built in.
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

// Install installs the Debian packages that err, from [FindPrograms], says are missing, with apt-get, whose output goes to
// w. Debian starts a newly installed haproxy and nginx as services with their preset configuration; the benchmark neither
// uses nor stops these.
func Install(ctx context.Context, err error, w io.Writer) error {
	var missing *missingError
	if !errors.As(err, &missing) {
		return err
	}
	args := append([]string{"install", "--yes", "--no-install-recommends"}, missing.packages...)
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
