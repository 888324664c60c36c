package config

import (
	"fmt"
	"maps"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/supervisor"
)

// HostWarnings warns of what this config needs and this host has not, in the order of the file: directories, and the programs of
// workers and their limits. It asks the file system and the kernel, which Parse does not. File is the config's name in the warnings.
func (c *Config) HostWarnings(file string) []Fault {
	d := c.onHost()
	d.needDirectory("log.output", c.Log.Output, 0)
	d.needDirectory("log.access", c.Log.Access, 0)
	d.needDirectory("admin.state_file", c.Admin.StateFile, 0)
	d.needDirectory("admin.socket", c.Admin.Socket, 1)
	for i := range c.Listeners {
		l := &c.Listeners[i]
		for j, bind := range l.Bind {
			if a, err := backends.ParseAddress(bind); err == nil && a.IsUnix() {
				d.needDirectory(index(join(join("listeners", l.Name), "bind"), j), a.Path, 0)
			}
		}
	}
	unseen := health.CanSeeAccepts()
	for i := range c.Pools {
		p := &c.Pools[i]
		d.needForHealth(p, unseen)
		if p.Workers != nil {
			d.needForWorkers(join(join("pools", p.Name), "workers"), p.Workers)
		}
	}
	return named(file, d.warnings)
}

// checkWriters warns of a config that others than root and lb's own user may change: who can, can run programs as lb's user
// (workers, health checks by the admin's hand). An lb without privileges is nobody's way to more of them.
func (d *decoder) checkWriters(file string) {
	if !privileged() {
		return
	}
	for _, path := range []string{file, filepath.Dir(file)} {
		var st unix.Stat_t
		if unix.Stat(path, &st) != nil {
			continue
		}
		what := "the file"
		if path != file {
			if what = "the directory " + path; st.Mode&unix.S_ISVTX != 0 {
				continue // only owners remove and rename there
			}
		}
		switch {
		case st.Mode&unix.S_IFMT != unix.S_IFREG && st.Mode&unix.S_IFMT != unix.S_IFDIR: // a pipe, say
		case st.Uid != 0 && int(st.Uid) != os.Geteuid():
			d.warn("", "%s belongs to user %d, who can have lb run any program as user %d; chown it to root", what, st.Uid, os.Geteuid())
		case st.Mode&0o022 != 0:
			d.warn("", "others may write to %s (mode %04o), and so have lb run any program as user %d; chmod it to %04o", what, st.Mode&0o7777, os.Geteuid(), st.Mode&0o7755)
		}
	}
}

// needForHealth warns of a pool with health type "accept" where that sees no more than "connect": unseen says why it does on
// this host, or is nil.
func (d *decoder) needForHealth(p *Pool, unseen error) {
	path := join("pools", p.Name)
	at := join(path, "health")
	switch {
	case p.Health.Type != "accept":
		return
	case unseen != nil:
		if d.isSet(join(at, "type")) {
			at = join(at, "type")
		}
		d.warn(at, `health type "accept" does not see a backend that hangs: %v; %s`, unseen, noConnect)
		return
	}
	addresses := map[string]string{join(at, "address"): p.Health.Address}
	if p.Health.Address == "" {
		for i, b := range p.Backends {
			addresses[join(index(join(path, "backends"), i), "address")] = b.Address
		}
	}
	for _, key := range slices.Sorted(maps.Keys(addresses)) {
		if a, err := backends.ParseAddress(addresses[key]); err == nil && isRemote(a) {
			d.warn(key, `%s is on another host, where health type "accept" is no more than "connect" and does not see a backend that hangs; %s`, a, noConnect)
			return // once a pool
		}
	}
}

// isRemote reports whether a is an IP address of another host. It does not know that of host names.
func isRemote(a backends.Address) bool {
	ip, err := netip.ParseAddr(a.Host)
	return err == nil && !a.IsUnix() && !backends.IsLocalIP(ip)
}

// needForWorkers warns of what keeps workers from starting, though lb itself starts without it.
func (d *decoder) needForWorkers(path string, w *supervisor.Config) {
	if log := filepath.Dir(w.Log); filepath.IsAbs(w.Log) && !strings.Contains(log, "{") && !isDirectory(log) {
		d.warn(join(path, "log"), "there is no directory %s on this host, without which what the workers write is lost; make it (mkdir -p), or name another", strconv.Quote(log))
	}
	if w.Dir != "" && !isDirectory(w.Dir) {
		d.warn(join(path, "dir"), "there is no directory %s on this host, without which no worker starts; make it (mkdir -p), or name another", strconv.Quote(w.Dir))
	}
	d.needProgram(path, w)
	if w.RlimitNofile == 0 {
		return
	}
	hard, most, privileged := nofileLimits()
	if what := beyondNofile(w.RlimitNofile, hard, most, privileged); what != "" {
		d.warn(join(path, "rlimit_nofile"), "no worker starts with so many: %s", what)
	}
}

// needProgram warns of a program that is not where it is looked for.
func (d *decoder) needProgram(path string, w *supervisor.Config) {
	const help = "without which no worker starts; put it there, or name another"
	program, dirs, inEnv := w.Command[0], "", false
	switch {
	case strings.Contains(program, "{"):
	case !strings.Contains(program, "/"):
		if dirs, inEnv = w.Env["PATH"]; !inEnv {
			dirs = os.Getenv("PATH")
		}
		if strings.Contains(dirs, "{") {
			return
		}
		if found := inPath(program, dirs); found != "" {
			d.needInterpreter(path, found)
			return
		}
		where := "in PATH, as lb check has it"
		if inEnv {
			where = "in the PATH of " + join(path, "env")
		}
		d.warn(join(path, "command"), "there is no program %s %s (%s), %s, by its path", strconv.Quote(program), where, dirs, help)
	case !filepath.IsAbs(program) && !filepath.IsAbs(w.Dir): // it depends on where lb is started
	default:
		if !filepath.IsAbs(program) {
			if !isDirectory(w.Dir) { // that has its own warning
				return
			}
			program = filepath.Join(w.Dir, program)
		}
		if _, err := exec.LookPath(program); err != nil {
			d.warn(join(path, "command"), "there is no program %s on this host that may be run, %s", strconv.Quote(program), help)
			return
		}
		d.needInterpreter(path, program)
	}
}

// needInterpreter warns of a program that is there and that the kernel will not run: a script whose interpreter is not there.
func (d *decoder) needInterpreter(path, program string) {
	if err := supervisor.CheckProgram(program); err != nil {
		d.warn(join(path, "command"), "no worker starts: %s", err)
	}
}

// inPath returns where the program would be found in a PATH as exec.LookPath looks, which takes none that it finds by a
// relative directory; empty: nowhere.
func inPath(program, path string) string {
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		if _, err := exec.LookPath(dir + "/" + program); err == nil {
			if !filepath.IsAbs(dir) {
				return ""
			}
			return filepath.Join(dir, program)
		}
	}
	return ""
}

// nofileLimits are the hard limit of descriptors, the most that the kernel allows anybody, 0 if that is not known, and
// whether this process may go beyond the hard limit (CAP_SYS_RESOURCE, setrlimit(2)).
func nofileLimits() (hard, most uint64, privileged bool) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return math.MaxUint64, 0, false
	}
	if text, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		most, _ = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	}
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // two are written
	err := unix.Capget(&header, &sets[0])
	return l.Max, most, err == nil && sets[0].Effective&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// beyondNofile says why no process can be given n descriptors; "" if it can.
func beyondNofile(n, hard, most uint64, privileged bool) string {
	switch {
	case most > 0 && n > most:
		return fmt.Sprintf("%d is above %d, the most that this host allows (sysctl fs.nr_open); write less", n, most)
	case n > hard && !privileged:
		return fmt.Sprintf("%d is above %d, the hard limit that lb check runs with; raise it for lb (ulimit -Hn, LimitNOFILE= of systemd), or write less", n, hard)
	}
	return ""
}

func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// needDirectory warns if there is no directory for a file; made is how many of the last directories lb makes itself. What
// is no absolute path is a word, or an abstract socket.
func (d *decoder) needDirectory(path, file string, made int) {
	dir := filepath.Dir(file)
	if !filepath.IsAbs(file) || strings.Contains(dir, "{") {
		return
	}
	need := dir
	for range made {
		need = filepath.Dir(need)
	}
	for _, one := range []string{dir, need} {
		if isDirectory(one) {
			return
		}
	}
	d.warn(path, "there is no directory %s on this host, without which lb cannot start; make it (mkdir -p), or name another", strconv.Quote(need))
}

// privileged reports whether this process may do more than its user alone could.
func privileged() bool {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // two are written
	return os.Geteuid() == 0 || unix.Capget(&header, &sets[0]) == nil && sets[0].Effective|sets[1].Effective != 0
}
