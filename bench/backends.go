package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// bodies are the paths that the backends serve, with the length of each reply's body.
func bodies() map[string]int64 {
	return map[string]int64{"/small": int64(len(smallBody)), "/64k": 64 << 10, "/4m": 4 << 20}
}

const smallBody = "ok\n"

// BodySize returns the length of the body that the backends send for a path, or -1 for a path that they do
// not serve.
func BodySize(path string) int64 {
	if n, ok := bodies()[path]; ok {
		return n
	}
	return -1
}

// Backend is one worker behind a balancer.
type Backend struct {
	// Name is "w1", "w2" and so on.
	Name string
	// Socket is the path of the Unix socket on which it serves HTTP/1.1.
	Socket string
	// Root is the directory of the files that it serves.
	Root string
	// Weight is its share against the others'; 0 for all of them is equal shares.
	Weight int
	// Off keeps it out of use until haproxy is told otherwise; the others do not know this.
	Off bool
}

// Backends is a fleet of nginx processes with one worker each, all serving the same three replies.
type Backends struct {
	// List holds the backends, each a process of its own.
	List []Backend
	// Direct is a TCP address on which all of them listen with SO_REUSEPORT: the way without any balancer.
	Direct string

	port      *Port // of Direct
	processes []*Process
}

// StartBackends starts n backends and waits until each answers. Their files and sockets are in dir. The
// caller must Stop them.
func StartBackends(ctx context.Context, p Programs, dir string, n int) (*Backends, error) {
	root := filepath.Join(dir, "www")
	if err := writeBodies(root); err != nil {
		return nil, err
	}
	port, err := ReservePort()
	if err != nil {
		return nil, err
	}
	b := &Backends{Direct: port.Addr, port: port}
	for i := range n {
		backend := Backend{Name: fmt.Sprintf("w%d", i+1), Root: root}
		home := filepath.Join(dir, backend.Name)
		backend.Socket = home + ".sock"
		if err := b.start(ctx, p, backend, home); err != nil {
			return nil, errors.Join(err, b.Stop())
		}
	}
	return b, nil
}

func (b *Backends) start(ctx context.Context, p Programs, backend Backend, home string) error {
	// sockaddr_un holds 108 bytes, the last one a zero (unix(7)).
	if len(backend.Socket) > 107 {
		return fmt.Errorf("cannot use socket %q: the path is longer than 107 bytes; set TMPDIR to a shorter one", backend.Socket)
	}
	command, err := nginxCommand(p, "backend "+backend.Name, home, backendConfig(home, backend.Root, "unix:"+backend.Socket+backlog, b.Direct+" reuseport"+backlog))
	if err != nil {
		return err
	}
	process, err := Start(command)
	if err != nil {
		return err
	}
	b.processes = append(b.processes, process)
	b.List = append(b.List, backend)
	return process.WaitReady(ctx, readyLimit, func(ctx context.Context) error {
		return Probe(ctx, "unix:"+backend.Socket, "/small")
	})
}

// PIDs returns all processes of all backends, as [Tree] does for one.
func (b *Backends) PIDs() ([]int, error) {
	var pids []int
	for _, process := range b.processes {
		tree, err := Tree(process.PID())
		if err != nil {
			return nil, err
		}
		pids = append(pids, tree...)
	}
	return pids, nil
}

// Exited returns nil while all of the backends run, and otherwise how the first of the others ended.
func (b *Backends) Exited() error {
	for _, process := range b.processes {
		if err := process.Exited(); err != nil {
			return err
		}
	}
	return nil
}

// Stop ends all of the backends.
func (b *Backends) Stop() error {
	errs := []error{b.port.Close()}
	for _, process := range b.processes {
		errs = append(errs, process.Stop(stopGrace))
	}
	return errors.Join(errs...)
}

func writeBodies(root string) error {
	if err := os.MkdirAll(root, 0o755); err != nil {
		return fmt.Errorf("cannot create files to serve: %w", err)
	}
	for path, size := range bodies() {
		if err := os.WriteFile(filepath.Join(root, path), []byte(strings.Repeat("x", int(size))), 0o644); err != nil {
			return fmt.Errorf("cannot create files to serve: %w", err)
		}
	}
	return nil
}

// nginxMain is the part that all of our nginx configurations begin with. The user directive keeps the workers
// root if the master is: the sockets lie in a directory that only its owner may enter. For others nginx
// ignores it.
func nginxMain(home string, workers int, more string) string {
	user := ""
	if os.Geteuid() == 0 {
		user = "user root;\n"
	}
	return user + more + fmt.Sprintf(`daemon off;
pid %[1]s/nginx.pid;
lock_file %[1]s/nginx.lock;
error_log %[1]s/error.log warn;
worker_processes %[2]d;
worker_rlimit_nofile %[3]d;
events { worker_connections 8192; }
`, home, workers, fileLimit())
}

// backlog makes the queue of a listener of nginx as long as the load needs it.
const backlog = " backlog=4096"

// backendConfig serves the small reply from memory and the large ones with sendfile from open files, on the
// listeners. The connections of the idle case must outlive it, hence the long time-outs.
func backendConfig(home, root string, listeners ...string) string {
	var listen strings.Builder
	for _, listener := range listeners {
		fmt.Fprintf(&listen, "\t\tlisten %s;\n", listener)
	}
	return nginxMain(home, 1, "") + fmt.Sprintf(`http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	default_type application/octet-stream;
	sendfile on;
	tcp_nopush on;
	open_file_cache max=16 inactive=1h;
	open_file_cache_valid 1h;
	keepalive_timeout 1h;
	keepalive_requests 1000000000;
	server {
%[3]s		root %[2]s;
		location = /small { return 200 "%[4]s"; }
	}
}
`, home, root, listen.String(), strings.ReplaceAll(smallBody, "\n", `\n`))
}

// nginxCommand writes a configuration into the directory home and says how to start nginx with it.
func nginxCommand(p Programs, name, home, config string) (Command, error) {
	file := filepath.Join(home, "nginx.conf")
	if err := writeConfig(file, config); err != nil {
		return Command{}, err
	}
	return Command{
		Name: name, Path: p.Nginx,
		// -e: before it has read its configuration, nginx would write to the system's log.
		Args: []string{"-c", file, "-e", filepath.Join(home, "error.log")},
		Log:  filepath.Join(home, "output.log"),
		// Killed, the master would leave its workers behind; on SIGTERM it takes them along.
		DeathSignal: syscall.SIGTERM,
	}, nil
}

func writeConfig(file, config string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("cannot write config: %w", err)
	}
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return fmt.Errorf("cannot write config: %w", err)
	}
	return nil
}

// fileLimit returns the hard limit of open files, which every process here may raise its own limit to.
func fileLimit() uint64 {
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		panic("BUG: cannot read RLIMIT_NOFILE: " + err.Error())
	}
	return min(limit.Max, 1<<20)
}
