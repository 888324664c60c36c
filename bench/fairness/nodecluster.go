package fairness

import (
	"context"
	_ "embed"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/bench"
)

//go:embed nodecluster.js
var nodeClusterSource string

// nodeCluster is Node's cluster module with its primary process, which runs the workers.
type nodeCluster struct {
	*bench.Running
	// address is where the workers listen: their program decides.
	address string
}

// startNodeCluster starts the primary, and waits until its workers listen.
func startNodeCluster(ctx context.Context, s *stage) (*nodeCluster, error) {
	c := new(nodeCluster)
	primary := bench.Contender{Name: ContenderNodeCluster, Command: func(home, addr string, _ []bench.Backend) (bench.Command, error) {
		node, err := exec.LookPath(s.options.Command[0])
		if err != nil {
			return bench.Command{}, fmt.Errorf("cannot find %q: %w", s.options.Command[0], err)
		}
		script := filepath.Join(home, "primary.js")
		if err := os.WriteFile(script, []byte(nodeClusterSource), 0o600); err != nil {
			return bench.Command{}, err
		}
		words, env := s.atPort(addr)
		return bench.Command{
			Name: ContenderNodeCluster, Path: node, Env: env, Log: filepath.Join(home, "output.log"),
			Args:        append([]string{script, strconv.Itoa(s.workers()), strconv.Itoa(s.options.Workers)}, words[1:]...),
			DeathSignal: syscall.SIGTERM, // at which it takes its workers along
		}, nil
	}}
	var err error
	c.Running, err = bench.Launch(ctx, primary, s.home, nil, func(ctx context.Context, r *bench.Running) error {
		found := regexp.MustCompile(`(?m)^listening (\d+)$`).FindStringSubmatch(r.Process.Output())
		if found == nil {
			return fmt.Errorf("%d workers do not listen yet", s.workers())
		}
		c.address = net.JoinHostPort("127.0.0.1", found[1])
		return knock(ctx, c.address)
	})
	return c, err
}

// atPort returns the words of a worker that listens itself, at the port of an address, and the environment
// that says so to those that look there.
func (s *stage) atPort(addr string) (words, env []string) {
	_, port, _ := net.SplitHostPort(addr)
	words = replace(replace(s.worker(), "{socket}", port), "{port}", port)
	return words, []string{"PORT=" + port}
}

// order sends the primary a signal, and waits until it says that it has done what the signal means.
func (c *nodeCluster) order(ctx context.Context, sig syscall.Signal, done string) error {
	if err := syscall.Kill(c.Process.PID(), sig); err != nil {
		return fmt.Errorf("cannot signal the primary: %w", err)
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(c.Process.Output(), done+"\n") {
		select {
		case <-tick.C:
		case <-c.Process.Done():
			return c.Process.Exited()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// workerPID returns the process of a worker, by the number in its environment.
func (c *nodeCluster) workerPID(number int) (int, error) {
	pids, err := bench.Tree(c.Process.PID())
	if err != nil {
		return 0, err
	}
	want := fmt.Sprintf("\x00LB_WORKER_ID=%d\x00", number)
	for _, pid := range pids {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err == nil && strings.Contains("\x00"+string(env), want) {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("worker %d does not run", number)
}
