package config

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
)

// Batching returns "on" where lb would carry small exchanges in batches if it had this process's permissions,
// and "off", with the reason, where it would not.
func (c *Config) Batching() string {
	if c.Proxy.Batching == proxy.BatchingOff {
		return "off"
	}
	if err := proxy.TryBatching(); err != nil {
		return fmt.Sprintf("off (%v; %s)", err, proxy.RingAdvice(err))
	}
	return "on"
}

// HostWarnings warns of what this config needs and this host has not, in the order of the file: directories,
// addresses, users, programs and limits. All that keeps lb run from starting here is among it, but for what
// another process has (a port, a socket), which may be the lb that is to be reloaded. It asks the file
// system, the resolver and the kernel, and changes nothing. File is the config's name in the warnings.
func (c *Config) HostWarnings(file string) []Fault {
	d := c.onHost()
	walk("", reflect.ValueOf(c).Elem(), func(path string, x any) {
		if h, ok := x.(interface{ CheckHost() error }); ok {
			for _, f := range relativeFaults(path, h.CheckHost()) {
				d.warn(f.Path, "%s", f.Message)
			}
		}
	})
	d.needLog("log.output", c.Log.Output)
	d.needLog("log.access", c.Log.Access)
	d.needDirectory("admin.state_file", c.Admin.StateFile, 0)
	if info, err := os.Stat(c.Admin.StateFile); err == nil && !info.Mode().IsRegular() {
		d.warn("admin.state_file", "%s is no regular file, without which lb cannot start; name another", strconv.Quote(c.Admin.StateFile))
	}
	d.needDirectory("admin.socket", c.Admin.Socket, 1)
	ctx, cancel := context.WithTimeout(context.Background(), lookupLimit)
	defer cancel()
	n := newHost(ctx)
	d.needAddress("admin.http", c.Admin.HTTP, n)
	for i := range c.Listeners {
		l := &c.Listeners[i]
		for j, bind := range l.Bind {
			d.needAddress(index(join(join("listeners", l.Name), "bind"), j), bind, n)
		}
	}
	unseen, workers := health.CanSeeAccepts(), false
	for i := range c.Pools {
		p := &c.Pools[i]
		d.needForHealth(p, unseen)
		d.needForHandoff(p, unseen)
		if p.Workers != nil {
			workers = true
			d.needForWorkers(join(join("pools", p.Name), "workers"), p.Workers)
		}
	}
	if workers {
		d.needRunDir(c.Admin.EffectiveRunDir())
	}
	return named(file, d.warnings)
}

// needLog warns of a log that cannot be written. What is no absolute path is a word.
func (d *decoder) needLog(path, file string) {
	if !filepath.IsAbs(file) {
		return
	}
	d.needDirectory(path, file, 0)
	switch info, err := os.Stat(file); {
	case err == nil && info.IsDir():
		d.warn(path, "%s is a directory; name a file in it", strconv.Quote(file))
	case err == nil && forbidden(file, unix.W_OK), errors.Is(err, fs.ErrNotExist) && forbidden(filepath.Dir(file), unix.W_OK|unix.X_OK):
		d.warn(path, "this user may not write to %s, without which lb cannot start; give it the right, or name another", strconv.Quote(file))
	}
}

// needRunDir warns of a run-time directory that lb can neither use nor make.
func (d *decoder) needRunDir(dir string) {
	path := d.firstSet("admin", "run_dir", "socket")
	if err := supervisor.CheckExisting(dir); err != nil {
		d.warn(path, "%v", err)
		return
	}
	for !isDirectory(dir) && dir != "/" { // lb makes those that are missing
		dir = filepath.Dir(dir)
	}
	if forbidden(dir, unix.W_OK|unix.X_OK) {
		d.warn(path, "this user may not make the run-time directory of workers in %s; run lb as one who may, or set admin.run_dir", strconv.Quote(dir))
	}
}

// forbidden reports whether this process may not use an existing file in that way (access(2)).
func forbidden(file string, how uint32) bool {
	err := unix.Faccessat(unix.AT_FDCWD, file, how, unix.AT_EACCESS)
	return errors.Is(err, unix.EACCES) || errors.Is(err, unix.EROFS) || errors.Is(err, unix.EPERM)
}

// needAddress warns of an address that lb cannot listen on here.
func (d *decoder) needAddress(path, address string, n *network) {
	a, err := backends.ParseAddress(address)
	if err != nil {
		return
	}
	if a.IsUnix() {
		d.needDirectory(path, a.Path, 0)
		switch info, err := os.Lstat(a.Path); {
		case strings.HasPrefix(a.Path, "@"):
		case err == nil && info.Mode()&fs.ModeSocket == 0:
			d.warn(path, "%s is a file of another kind, without whose removal lb cannot start; remove it, or choose another path", strconv.Quote(a.Path))
		case forbidden(filepath.Dir(a.Path), unix.W_OK|unix.X_OK):
			d.warn(path, "this user may not make a file in %s; run lb as one who may, or choose another path", strconv.Quote(filepath.Dir(a.Path)))
		}
		return
	}
	ips := n.addresses(a.Host)
	switch local := slices.ContainsFunc(ips, func(ip netip.Addr) bool { return ip.IsUnspecified() || n.isLocal(ip) }); {
	case len(ips) == 0:
		d.warn(path, "the host name %s cannot be resolved here, without which lb cannot start; write an address, or add the name to the resolver", strconv.Quote(a.Host))
	case !local && !nonlocalBind():
		d.warn(path, "this host has no address %s; write one that it has (ip address), or \":%d\" for all", a.Host, a.Port)
	}
	if least := unprivilegedPort(); a.Port > 0 && int(a.Port) < least && !hasCapability(unix.CAP_NET_BIND_SERVICE) {
		d.warn(path, "this user may not listen on a port below %d; run lb as root or with CAP_NET_BIND_SERVICE, or choose another port", least)
	}
}

// nonlocalBind reports whether this host lets processes listen on addresses that it does not have yet
// (ip(7)).
func nonlocalBind() bool {
	return sysctl("net/ipv4/ip_nonlocal_bind", 0) != 0 || sysctl("net/ipv6/ip_nonlocal_bind", 0) != 0
}

// unprivilegedPort is the lowest port that anybody may listen on.
func unprivilegedPort() int { return sysctl("net/ipv4/ip_unprivileged_port_start", 1024) }

func sysctl(name string, otherwise int) int {
	text, err := os.ReadFile("/proc/sys/" + name)
	if err != nil {
		return otherwise
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return otherwise
	}
	return n
}

// checkWriters warns of a config that others than root and lb's own user may change: they can have lb run any
// program as a worker. That matters where lb has privileges.
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

// needForHealth warns of a pool with health type "accept" where that sees no more than "connect": unseen says
// why it does on this host, or is nil.
func (d *decoder) needForHealth(p *Pool, unseen error) {
	path := join("pools", p.Name)
	at := join(path, "health")
	switch {
	case p.Health.Type != "accept" || p.HandsOff(): // a worker that is given sockets is seen to take them
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

// needInterpreter warns of a program that is there and that the kernel will not run: a script whose
// interpreter is not there.
func (d *decoder) needInterpreter(path, program string) {
	if err := supervisor.CheckProgram(program); err != nil {
		d.warn(join(path, "command"), "no worker starts: %s", err)
	}
}

// inPath returns where the program would be found in a PATH as exec.LookPath looks, which takes none that it
// finds by a relative directory; empty: nowhere.
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

// nofileLimits are the hard limit of descriptors, the most that the kernel allows anybody, 0 if that is not
// known, and whether this process may go beyond the hard limit (CAP_SYS_RESOURCE, setrlimit(2)).
func nofileLimits() (hard, most uint64, privileged bool) {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil {
		return math.MaxUint64, 0, false
	}
	if text, err := os.ReadFile("/proc/sys/fs/nr_open"); err == nil {
		most, _ = strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	}
	return l.Max, most, hasCapability(unix.CAP_SYS_RESOURCE)
}

// hasCapability reports whether this process has a capability in effect (capabilities(7)).
func hasCapability(n int) bool {
	sets, ok := capabilities()
	return ok && sets[n/32].Effective&(1<<(n%32)) != 0
}

// privileged reports whether this process may do more than its user alone could.
func privileged() bool {
	sets, ok := capabilities()
	return os.Geteuid() == 0 || ok && sets[0].Effective|sets[1].Effective != 0
}

func capabilities() (sets [2]unix.CapUserData, ok bool) {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	err := unix.Capget(&header, &sets[0]) // it writes two
	return sets, err == nil
}

// beyondNofile returns why no process can be given n descriptors; "" if it can.
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

// needDirectory warns if there is no directory for a file; made is how many of the last directories lb makes
// itself. What is no absolute path is a word, or an abstract socket.
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
