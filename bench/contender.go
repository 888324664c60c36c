package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

// Kind is what a contender is in the comparison.
type Kind string

const (
	// KindLB is a build of lb, held against the rivals.
	KindLB Kind = "lb"
	// KindPlain is a build of lb that relays without batches. It is shown beside KindLB, and held to no goal.
	KindPlain Kind = "plain"
	// KindRival is a balancer that lb is held against.
	KindRival Kind = "rival"
	// KindHandoff is a build of lb that hands the accepted sockets over to workers of its own, held against
	// the rivals and the reference.
	KindHandoff Kind = "handoff"
	// KindReference is no balancer at all: it shows what the load and the backends reach by themselves.
	KindReference Kind = "reference"
)

// Contender is one of those that are compared.
type Contender struct {
	// Name is unique within a comparison.
	Name string
	Kind Kind
	// Command writes what the contender needs into the directory home and says how to start it, listening on
	// addr and balancing over the backends. It is nil for a reference, which is not started.
	Command func(home, addr string, backends []Backend) (Command, error)
	// OwnsWorkers means that its child processes are workers, which take the place of the comparison's
	// backends. What they cost is not the balancer's.
	OwnsWorkers bool
}

// HAProxyOptions are what differs between the ways to run haproxy.
type HAProxyOptions struct {
	// Splice adds `option splice-auto`.
	Splice bool
	// RoundRobin takes the backends in turn, by their weights, instead of that with the least connections.
	RoundRobin bool
	// Check asks each backend with an HTTP request for this path whether it is alive, twice a second, with a
	// second for the answer; two failures take it down, with its sessions. "" checks nothing.
	Check string
	// Admin has it listen for commands on its [AdminSocket], see [HAProxyCommand].
	Admin bool
}

// HAProxy returns haproxy in TCP mode with two threads. It logs nothing. With the zero options it is the
// cheapest it can be.
func HAProxy(p Programs, name string, o HAProxyOptions) Contender {
	return Contender{Name: name, Kind: KindRival, Command: func(home, addr string, backends []Backend) (Command, error) {
		file := filepath.Join(home, "haproxy.cfg")
		if err := writeConfig(file, haproxyConfig(home, addr, backends, o)); err != nil {
			return Command{}, err
		}
		return Command{
			Name: name, Path: p.HAProxy,
			Args: []string{"-db", "-f", file}, // -db: stay in the foreground, one process
			Log:  filepath.Join(home, "output.log"),
		}, nil
	}}
}

func haproxyConfig(home, addr string, backends []Backend, o HAProxyOptions) string {
	var b strings.Builder
	b.WriteString(`global
	nbthread 2
	maxconn 4000
`)
	if o.Admin {
		fmt.Fprintf(&b, "\tstats socket %s level admin\n", AdminSocket(home))
	}
	b.WriteString(`defaults
	mode tcp
	timeout connect 5s
	timeout client 1h
	timeout server 1h
`)
	if o.Splice {
		b.WriteString("\toption splice-auto\n")
	}
	balance, check := "leastconn", ""
	if o.RoundRobin {
		balance = "roundrobin"
	}
	fmt.Fprintf(&b, "listen web\n\tbind %s\n\tbalance %s\n", addr, balance)
	if o.Check != "" {
		fmt.Fprintf(&b, "\toption httpchk GET %s\n\ttimeout check 1s\n", o.Check)
		check = " check inter 500ms fall 2 rise 2 on-marked-down shutdown-sessions"
	}
	for _, backend := range backends {
		fmt.Fprintf(&b, "\tserver %s unix@%s%s%s", backend.Name, backend.Socket, weight(" weight ", backend), check)
		if backend.Off {
			b.WriteString(" disabled")
		}
		b.WriteString("\n")
	}
	return b.String()
}

// HAProxyCommand sends one command to the Admin socket of a running haproxy; what haproxy answers is an
// error.
func HAProxyCommand(ctx context.Context, socket, command string) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return fmt.Errorf("cannot command haproxy: %w", err)
	}
	defer conn.Close()
	if deadline, ok := ctx.Deadline(); ok {
		conn.SetDeadline(deadline)
	}
	if _, err := io.WriteString(conn, command+"\n"); err != nil {
		return fmt.Errorf("cannot command haproxy: %w", err)
	}
	answer, err := io.ReadAll(conn)
	if err != nil {
		return fmt.Errorf("cannot command haproxy: %w", err)
	}
	if text := strings.TrimSpace(string(answer)); text != "" {
		return fmt.Errorf("cannot command haproxy: %s: it says %q", command, text)
	}
	return nil
}

// weight is a backend's weight behind a word of a configuration; "" if it has none.
func weight(word string, b Backend) string {
	if b.Weight == 0 {
		return ""
	}
	return word + strconv.Itoa(b.Weight)
}

// NginxStream returns nginx's stream proxy with two workers, each with a listening socket of its own
// (reuseport), and least connections over shared counts (zone), or backends in turn by their weights if
// roundRobin. It logs nothing, and knows of no other health checks than failed connects.
func NginxStream(p Programs, name string, roundRobin bool) Contender {
	return Contender{Name: name, Kind: KindRival, Command: func(home, addr string, backends []Backend) (Command, error) {
		return nginxCommand(p, name, home, nginxStreamConfig(home, addr, backends, p.NginxStream, roundRobin))
	}}
}

func nginxStreamConfig(home, addr string, backends []Backend, module string, roundRobin bool) string {
	load := ""
	if module != "" {
		load = "load_module " + module + ";\n"
	}
	var b strings.Builder
	b.WriteString(nginxMain(home, 2, load))
	b.WriteString("stream {\n\tupstream app {\n\t\tzone app 64k;\n")
	if !roundRobin {
		b.WriteString("\t\tleast_conn;\n")
	}
	for _, backend := range backends {
		fmt.Fprintf(&b, "\t\tserver unix:%s%s;\n", backend.Socket, weight(" weight=", backend))
	}
	fmt.Fprintf(&b, "\t}\n\tserver {\n\t\tlisten %s reuseport;\n\t\tproxy_pass app;\n\t\tproxy_timeout 1h;\n\t}\n}\n", addr)
	return b.String()
}

// LB returns a build of lb, the binary at path. The function config returns its configuration, with files in
// home.
func LB(name, path string, config func(home, addr string, backends []Backend) string) Contender {
	return Contender{Name: name, Kind: KindLB, Command: func(home, addr string, backends []Backend) (Command, error) {
		file := filepath.Join(home, "lb.toml")
		if err := writeConfig(file, config(home, addr, backends)); err != nil {
			return Command{}, err
		}
		return Command{
			Name: name, Path: path,
			Args: []string{"run", "-f", file},
			Log:  filepath.Join(home, "output.log"),
			// Killed, lb would leave the workers that it runs behind; on SIGTERM it takes them along.
			DeathSignal: syscall.SIGTERM,
		}, nil
	}}
}

// RelayConfig returns the configuration of lb that is measured against others' relays, with a number of event
// loops, and batching as the config has it; "" leaves that to the build. It checks the backends' health, as
// it would in use, and writes no access log.
func RelayConfig(loops int, batching string) func(home, addr string, backends []Backend) string {
	return func(home, addr string, backends []Backend) string {
		var b strings.Builder
		b.WriteString(lbConfig(home, addr, loops, batching))
		b.WriteString("[pools.app]\n[pools.app.health]\ntype = \"connect\"\ninterval = \"2s\"\n")
		for _, backend := range backends {
			fmt.Fprintf(&b, "[[pools.app.backends]]\nname = %q\naddress = %q\n", backend.Name, "unix:"+backend.Socket)
		}
		return b.String()
	}
}

// lbConfig is the part that configurations of lb begin with: one listener for the pool "app".
func lbConfig(home, addr string, loops int, batching string) string {
	if batching != "" {
		batching = fmt.Sprintf("batching = %q\n", batching)
	}
	return fmt.Sprintf(`[proxy]
loops = %d
%s[admin]
socket = %q
http = ""
[log]
access = "off"
[listeners.web]
bind = [%q]
pool = "app"
`, loops, batching, AdminSocket(home), addr)
}

// AdminSocket is the path of the socket for commands of a contender whose files are in home.
func AdminSocket(home string) string { return filepath.Join(home, "admin.sock") }

// Direct returns the reference: clients connect to the backends themselves, which share one TCP port by
// SO_REUSEPORT.
func Direct(name string) Contender { return Contender{Name: name, Kind: KindReference} }
