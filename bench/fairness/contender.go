package fairness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/273ebdf9/lb/bench"
)

// Names of the contenders.
const (
	ContenderReusePort = "reuseport"
	ContenderPrefork   = "prefork"
	ContenderLB        = "lb"
	ContenderHAProxy   = "haproxy"
	ContenderNginx     = "nginx"
	ContenderTarget    = "target"
)

// ContenderNames are all of them.
func ContenderNames() []string {
	return []string{ContenderReusePort, ContenderPrefork, ContenderLB, ContenderHAProxy, ContenderNginx, ContenderTarget}
}

// about says what each contender is.
var about = map[string]string{
	ContenderReusePort: "each worker listens on the port itself (SO_REUSEPORT); the kernel spreads by a hash of the addresses",
	ContenderPrefork:   "the workers share one listening socket that they inherit; whoever is first takes the connection",
	ContenderLB:        "lb, least connections, Unix sockets; it runs the workers and hears their heartbeats",
	ContenderHAProxy:   "haproxy, mode tcp, least connections, Unix sockets, HTTP checks every 500 ms",
	ContenderNginx:     "nginx stream, least connections, Unix sockets; it checks no health but failed connects",
	ContenderTarget:    "the address that was named",
}

// stage is where one contender plays one case.
type stage struct {
	options *Options
	kase    *Case
	home    string
	meter   *meter // of the workers
}

// worker are the words that start a worker.
func (s *stage) worker(int) []string {
	if len(s.options.Command) > 0 {
		return s.options.Command
	}
	words := slices.Clone(s.options.Self.Worker)
	if s.options.Burn {
		words = append(words, "--burn")
	}
	if s.kase.Slow > 0 {
		words = append(words, "--slow", strconv.Itoa(victim), "--factor", strconv.FormatFloat(s.kase.Slow, 'g', -1, 64))
	}
	return words
}

// wantsPort and wantsSocket say that the user's worker listens by itself.
func (s *stage) wantsPort() bool   { return holds(s.options.Command, "{port}") }
func (s *stage) wantsSocket() bool { return holds(s.options.Command, "{socket}") }

// workers is how many there are at the beginning.
func (s *stage) workers() int {
	if s.kase.Event == ScaleOut {
		return (s.options.Workers + 1) / 2
	}
	return s.options.Workers
}

// contender is a contender that is ready for clients.
type contender struct {
	*stage
	name     string
	addr     string
	own      *benchWorkers  // nil where lb runs the workers, and for a target
	balancer *bench.Running // nil where there is none
	lb       *control       // nil but for lb
}

// contenders are the names of those that are compared, if they can be.
func (o *Options) contenders() []string {
	if len(o.Contenders) == 0 {
		return ContenderNames()
	}
	return o.Contenders
}

// Compares reports whether the contender of that name is one of those that are compared.
func (o *Options) Compares(name string) bool { return slices.Contains(o.contenders(), name) }

// unable says why a contender cannot play a case; "" if it can.
func (o *Options) unable(name string, c *Case) string {
	own := len(o.Command) > 0
	switch {
	case name == ContenderTarget && (c.Event != NoEvent || c.Slow > 0 || c.Weights != [2]int{}):
		return "its workers are not the benchmark's to change"
	case c.Slow > 0 && own:
		return "a worker of your own has no slow twin"
	case (name == ContenderReusePort || name == ContenderPrefork) && c.Weights != [2]int{}:
		return "it knows no weights"
	case name == ContenderPrefork && (holds(o.Command, "{port}") || holds(o.Command, "{socket}")),
		name == ContenderReusePort && holds(o.Command, "{socket}"):
		return "a worker that opens its socket itself cannot share it this way"
	case (name == ContenderHAProxy || name == ContenderNginx) && holds(o.Command, "{port}"):
		return "a worker that wants a {port} is not run behind Unix sockets; use {socket}, or descriptor 3"
	case name == ContenderHAProxy && o.Programs.HAProxy == "":
		return "it is not installed"
	case name == ContenderNginx && o.Programs.Nginx == "":
		return "it, or its stream module, is not installed"
	case name == ContenderTarget && o.Target == "":
		return "no address was named"
	}
	return ""
}

// startContender starts a contender in the directory s.home and waits until it takes connections.
func startContender(ctx context.Context, s *stage, name string) (p *contender, err error) {
	p = &contender{stage: s, name: name}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot start %s: %w", name, err), p.stop())
		}
	}()
	switch name {
	case ContenderTarget:
		p.addr = s.options.Target
		return p, knock(ctx, p.addr)
	case ContenderReusePort, ContenderPrefork:
		how := sharePort
		if name == ContenderPrefork {
			how = shareSocket
		}
		if p.own, err = newBenchWorkers(ctx, s, s.home, how, s.workers()); err != nil {
			return p, err
		}
		p.addr = p.own.addr
		return p, nil
	}
	if name == ContenderLB {
		if p.lb, err = startLB(ctx, s); err != nil {
			return p, err
		}
		p.balancer = p.lb.Running
		s.meter.tree = p.balancer.Process.PID()
	} else {
		if p.own, err = newBenchWorkers(ctx, s, filepath.Join(s.home, "w"), shareNothing, s.workers()); err != nil {
			return p, err
		}
		p.balancer, err = bench.Launch(ctx, p.rival(), s.home, p.rivalBackends(), knock)
		if err != nil {
			return p, err
		}
	}
	p.addr = p.balancer.Addr
	return p, nil
}

// rival is haproxy or nginx, as it goes in front of the workers.
func (p *contender) rival() bench.Contender {
	weighted := p.kase.Weights != [2]int{}
	if p.name == ContenderNginx {
		return bench.NginxStream(p.options.Programs, p.name, weighted)
	}
	check := cmp.Or(p.options.Path, "/health")
	return bench.HAProxy(p.options.Programs, p.name, bench.HAProxyOptions{RoundRobin: weighted, Check: check, Admin: true})
}

// rivalBackends are the workers as the rival's configuration names them. haproxy's also names those that join
// later; it is told when they are there.
func (p *contender) rivalBackends() []bench.Backend {
	backends := p.own.backends(p.kase.Weights)
	if p.name == ContenderNginx {
		return backends
	}
	for i := len(backends); i < p.options.Workers; i++ {
		backends = append(backends, bench.Backend{
			Name: fmt.Sprintf("w%d", i), Socket: strings.TrimPrefix(p.own.ownAddress(i), "unix:"), Off: true,
		})
	}
	return backends
}

// growRival tells haproxy or nginx of the workers that have joined: as their manuals say, by a command to the
// one, by a new configuration to the other.
func (p *contender) growRival(ctx context.Context) error {
	if p.name == ContenderNginx {
		if _, err := p.rival().Command(p.home, p.addr, p.rivalBackends()); err != nil {
			return err
		}
		return syscall.Kill(p.balancer.Process.PID(), syscall.SIGHUP)
	}
	for i := p.workers(); i < p.options.Workers; i++ {
		if err := bench.HAProxyCommand(ctx, bench.AdminSocket(p.home), fmt.Sprintf("set server web/w%d state ready", i)); err != nil {
			return err
		}
	}
	return nil
}

// hopMeter counts the CPU time of what is between clients and workers.
func (p *contender) hopMeter() *meter {
	m := newMeter()
	switch {
	case p.lb != nil:
		m.add(p.balancer.Process.PID()) // its children are the workers
	case p.balancer != nil:
		m.tree, m.root = p.balancer.Process.PID(), true
	}
	return m
}

// happen makes the case's event happen.
func (p *contender) happen(ctx context.Context) error {
	switch p.kase.Event {
	case Stick:
		return p.signal(ctx, syscall.SIGSTOP)
	case Kill:
		return p.signal(ctx, syscall.SIGKILL)
	case Restart:
		if p.lb != nil {
			return p.lb.command(ctx, "restart", "app", "--surge", restartSurge)
		}
		return p.own.restart(ctx)
	case ScaleOut:
		if p.lb != nil {
			return p.lb.command(ctx, "scale", "app", strconv.Itoa(p.options.Workers))
		}
		if err := p.own.grow(ctx, p.options.Workers); err != nil || p.balancer == nil {
			return err
		}
		return p.growRival(ctx)
	}
	return nil
}

// signal sends a signal to the victim.
func (p *contender) signal(ctx context.Context, sig syscall.Signal) error {
	if p.own != nil {
		return p.own.signal(victim, sig)
	}
	pid, err := p.lb.workerPID(ctx, victim)
	if err != nil {
		return err
	}
	if err := syscall.Kill(pid, sig); err != nil {
		return fmt.Errorf("cannot signal worker %d: %w", victim, err)
	}
	return nil
}

// stop ends the contender.
func (p *contender) stop() error {
	var errs []error
	if p.balancer != nil {
		errs = append(errs, p.balancer.Stop())
	}
	if p.own != nil {
		errs = append(errs, p.own.stop())
	}
	return errors.Join(errs...)
}
