package fairness

import (
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

// Names of the peers.
const (
	PeerReusePort = "reuseport"
	PeerPrefork   = "prefork"
	PeerLB        = "lb"
	PeerHAProxy   = "haproxy"
	PeerNginx     = "nginx"
	PeerTarget    = "target"
)

// PeerNames are all of them.
func PeerNames() []string {
	return []string{PeerReusePort, PeerPrefork, PeerLB, PeerHAProxy, PeerNginx, PeerTarget}
}

// about says what each peer is.
var about = map[string]string{
	PeerReusePort: "each worker listens on the port itself (SO_REUSEPORT); the kernel spreads by a hash of the addresses",
	PeerPrefork:   "the workers share one listening socket that they inherit; whoever is first takes the connection",
	PeerLB:        "lb, least connections, Unix sockets; it runs the workers and hears their heartbeats",
	PeerHAProxy:   "haproxy, mode tcp, least connections, Unix sockets, HTTP checks every 500 ms",
	PeerNginx:     "nginx stream, least connections, Unix sockets; it checks no health but failed connects",
	PeerTarget:    "the address that was named",
}

// stage is where one peer plays one case.
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

// peer is a peer that is ready for clients.
type peer struct {
	*stage
	name     string
	addr     string
	port     *bench.Port    // of addr; nil where it is the fleet's or the user's
	fleet    *fleet         // nil where lb runs the workers, and for a target
	balancer *bench.Process // nil where there is none
	lb       *control       // nil but for lb
}

// peers are the names of those that are compared, if they can be.
func (o *Options) peers() []string {
	if len(o.Peers) == 0 {
		return PeerNames()
	}
	return o.Peers
}

// unable says why a peer cannot play a case; "" if it can.
func (o *Options) unable(name string, c *Case) string {
	own := len(o.Command) > 0
	switch {
	case name == PeerTarget && (c.Event != NoEvent || c.Slow > 0 || c.Weights != [2]int{}):
		return "its workers are not the benchmark's to change"
	case c.Slow > 0 && own:
		return "a worker of your own has no slow twin"
	case (name == PeerReusePort || name == PeerPrefork) && c.Weights != [2]int{}:
		return "it knows no weights"
	case name == PeerPrefork && (holds(o.Command, "{port}") || holds(o.Command, "{socket}")),
		name == PeerReusePort && holds(o.Command, "{socket}"):
		return "a worker that opens its socket itself cannot share it this way"
	case (name == PeerHAProxy || name == PeerNginx) && holds(o.Command, "{port}"):
		return "a worker that wants a {port} is not run behind Unix sockets; use {socket}, or descriptor 3"
	case name == PeerHAProxy && o.Programs.HAProxy == "", name == PeerNginx && o.Programs.Nginx == "":
		return "it is not installed"
	case name == PeerTarget && o.Target == "":
		return "no address was named"
	}
	return ""
}

// startPeer starts a peer in the directory s.home and waits until it takes connections.
func startPeer(ctx context.Context, s *stage, name string) (p *peer, err error) {
	p = &peer{stage: s, name: name}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("cannot start %s: %w", name, err), p.stop())
		}
	}()
	switch name {
	case PeerTarget:
		p.addr = s.options.Target
		return p, knock(ctx, p.addr)
	case PeerReusePort, PeerPrefork:
		how := sharePort
		if name == PeerPrefork {
			how = shareSocket
		}
		if p.fleet, err = newFleet(ctx, s, s.home, how, s.workers()); err != nil {
			return p, err
		}
		p.addr = p.fleet.addr
		return p, nil
	}
	if p.port, err = bench.ReservePort(); err != nil {
		return p, err
	}
	p.addr = p.port.Addr
	if name == PeerLB {
		p.lb, err = startLB(ctx, s, p.addr)
		if p.lb != nil {
			p.balancer = p.lb.process
			s.meter.tree = p.balancer.PID()
		}
		return p, err
	}
	if p.fleet, err = newFleet(ctx, s, filepath.Join(s.home, "w"), shareNothing, s.workers()); err != nil {
		return p, err
	}
	return p, p.startRival(ctx)
}

// startRival starts haproxy or nginx in front of the fleet.
func (p *peer) startRival(ctx context.Context) error {
	command, err := p.rivalCommand()
	if err != nil {
		return err
	}
	if p.balancer, err = bench.Start(command); err != nil {
		return err
	}
	return p.balancer.WaitReady(ctx, readyLimit, func(ctx context.Context) error { return knock(ctx, p.addr) })
}

// rivalCommand writes the rival's configuration and says how to start it.
func (p *peer) rivalCommand() (bench.Command, error) {
	weighted := p.kase.Weights != [2]int{}
	backends := p.fleet.backends(p.kase.Weights)
	if p.name == PeerNginx {
		return bench.NginxStream(p.options.Programs, p.name, weighted).Command(p.home, p.addr, backends)
	}
	// haproxy knows those that join later, and is told when they are there.
	for i := len(backends); i < p.options.Workers; i++ {
		backends = append(backends, bench.Backend{
			Name: fmt.Sprintf("w%d", i), Socket: strings.TrimPrefix(p.fleet.ownAddress(i), "unix:"), Off: true,
		})
	}
	check := "/health"
	if p.options.Path != "" {
		check = p.options.Path
	}
	return bench.HAProxy(p.options.Programs, p.name, bench.HAProxyOptions{RoundRobin: weighted, Check: check, Admin: p.adminSocket()}).
		Command(p.home, p.addr, backends)
}

func (p *peer) adminSocket() string { return filepath.Join(p.home, "admin.sock") }

// growRival tells haproxy or nginx of the workers that have joined: as their manuals say, by a command to the one, by a new
// configuration to the other.
func (p *peer) growRival(ctx context.Context) error {
	if p.name == PeerNginx {
		if _, err := p.rivalCommand(); err != nil {
			return err
		}
		return syscall.Kill(p.balancer.PID(), syscall.SIGHUP)
	}
	for i := p.workers(); i < p.options.Workers; i++ {
		if err := bench.HAProxyCommand(ctx, p.adminSocket(), fmt.Sprintf("set server web/w%d state ready", i)); err != nil {
			return err
		}
	}
	return nil
}

// hopMeter counts the CPU time of what is between clients and workers.
func (p *peer) hopMeter() *meter {
	m := newMeter()
	switch {
	case p.lb != nil:
		m.add(p.balancer.PID()) // its children are the workers
	case p.balancer != nil:
		m.tree, m.root = p.balancer.PID(), true
	}
	return m
}

// happen makes the case's event happen.
func (p *peer) happen(ctx context.Context) error {
	switch p.kase.Event {
	case Stick:
		return p.signal(ctx, syscall.SIGSTOP)
	case Kill:
		return p.signal(ctx, syscall.SIGKILL)
	case Restart:
		if p.lb != nil {
			return p.lb.command(ctx, "restart", "app", "--surge", restartSurge)
		}
		return p.fleet.restart(ctx)
	case ScaleOut:
		if p.lb != nil {
			return p.lb.command(ctx, "scale", "app", strconv.Itoa(p.options.Workers))
		}
		if err := p.fleet.grow(ctx, p.options.Workers); err != nil || p.balancer == nil {
			return err
		}
		return p.growRival(ctx)
	}
	return nil
}

// signal sends a signal to the victim.
func (p *peer) signal(ctx context.Context, sig syscall.Signal) error {
	if p.fleet != nil {
		return p.fleet.signal(victim, sig)
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

// stop ends the peer.
func (p *peer) stop() error {
	var errs []error
	if p.balancer != nil {
		errs = append(errs, p.balancer.Stop(stopGrace))
	}
	if p.fleet != nil {
		errs = append(errs, p.fleet.stop())
	}
	if p.port != nil {
		errs = append(errs, p.port.Close())
	}
	return errors.Join(errs...)
}
