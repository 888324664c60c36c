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

// stage is where one contender plays one case.
type stage struct {
	options *Options
	kase    *Case
	home    string
	meter   *meter // of the workers
}

// worker are the words that start a worker.
func (s *stage) worker() []string {
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
	lb       *control       // nil but where it is lb
	cluster  *nodeCluster   // nil but for Node's cluster
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
	switch {
	case kindOf(name).subject:
		if p.lb, err = startLB(ctx, s, name); err != nil {
			return p, err
		}
		p.balancer = p.lb.Running
	case name == ContenderNodeCluster:
		if p.cluster, err = startNodeCluster(ctx, s); err != nil {
			return p, err
		}
		p.balancer, p.addr = p.cluster.Running, p.cluster.address
	default:
		if p.own, err = newBenchWorkers(ctx, s, filepath.Join(s.home, "w"), shareNothing, s.workers()); err != nil {
			return p, err
		}
		p.balancer, err = bench.Launch(ctx, p.rival(), s.home, p.rivalBackends(), func(ctx context.Context, r *bench.Running) error { return knock(ctx, r.Addr) })
		if err != nil {
			return p, err
		}
	}
	if p.own == nil {
		s.meter.tree = p.balancer.Process.PID() // the workers are its children
	}
	p.addr = cmp.Or(p.addr, p.balancer.Addr)
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
	case p.balancer != nil && p.own == nil:
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
		switch {
		case p.lb != nil:
			return p.lb.command(ctx, "restart", "app", "--surge", restartSurge)
		case p.cluster != nil:
			return p.cluster.order(ctx, syscall.SIGUSR2, "restarted")
		}
		return p.own.restart(ctx)
	case ScaleOut:
		switch {
		case p.lb != nil:
			return p.lb.command(ctx, "scale", "app", strconv.Itoa(p.options.Workers))
		case p.cluster != nil:
			return p.cluster.order(ctx, syscall.SIGHUP, "grown")
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
	var pid int
	var err error
	if p.cluster != nil {
		pid, err = p.cluster.workerPID(victim)
	} else {
		pid, err = p.lb.workerPID(ctx, victim)
	}
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
