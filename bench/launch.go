package bench

import (
	"context"
	"errors"
	"slices"
	"time"
)

// readyLimit is how long a program may take from its start until it answers.
const readyLimit = 10 * time.Second

// stopGrace is how long a program may take from SIGTERM to its end before it is killed.
const stopGrace = 3 * time.Second

// Running is a contender that takes connections. The caller must Stop it.
type Running struct {
	Contender
	// Addr is where clients connect.
	Addr string
	// Process is the contender's own; nil for a reference.
	Process *Process

	port *Port // of Addr; nil for a reference
}

// Launch starts a contender in the directory home, on a port of its own, in front of the backends. It waits
// until ready returns nil. If that fails, Launch leaves nothing behind. A contender without a command is not
// launched.
func Launch(ctx context.Context, c Contender, home string, backends []Backend, ready func(ctx context.Context, r *Running) error) (*Running, error) {
	port, err := ReservePort()
	if err != nil {
		return nil, err
	}
	r := &Running{Contender: c, Addr: port.Addr, port: port}
	command, err := c.Command(home, r.Addr, backends)
	if err == nil {
		r.Process, err = Start(command)
	}
	if err == nil {
		err = r.Process.WaitReady(ctx, readyLimit, func(ctx context.Context) error { return ready(ctx, r) })
	}
	if err != nil {
		return nil, errors.Join(err, r.Stop())
	}
	return r, nil
}

// PIDs returns the processes of the contender, without workers; none for a reference.
func (r *Running) PIDs() ([]int, error) {
	switch {
	case r.Process == nil:
		return nil, nil
	case r.OwnsWorkers:
		return []int{r.Process.PID()}, nil
	}
	return Tree(r.Process.PID())
}

// WorkerPIDs returns the processes of the contender's own workers; none if it has none.
func (r *Running) WorkerPIDs() ([]int, error) {
	if !r.OwnsWorkers {
		return nil, nil
	}
	tree, err := Tree(r.Process.PID())
	return slices.DeleteFunc(tree, func(pid int) bool { return pid == r.Process.PID() }), err
}

// Stop ends the contender.
func (r *Running) Stop() error {
	var errs []error
	if r.Process != nil {
		errs = append(errs, r.Process.Stop(stopGrace))
	}
	if r.port != nil {
		errs = append(errs, r.port.Close())
	}
	return errors.Join(errs...)
}
