package fairness

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

const (
	// trialLimit is how long the answer to the one request of a trial is waited for.
	trialLimit = 2 * time.Second
	// endLag is how long after its connections a process may be seen to have ended.
	endLag = 200 * time.Millisecond
)

// Unplayable says that none of the contenders can play any of the cases, and why; nil if there is something
// to measure. Programs must have been looked for.
func (o *Options) Unplayable() error {
	var reasons []string
	for i := range o.Cases {
		for _, name := range o.contenders() {
			why := o.unable(name, &o.Cases[i])
			if why == "" {
				return nil
			}
			if len(o.Contenders) > 0 { // of all that there are, most are of no interest
				reasons = append(reasons, fmt.Sprintf("%s in %s: %s", name, o.Cases[i].Name, why))
			}
		}
	}
	if len(reasons) == 0 {
		return errors.New("none of the contenders can play any of these cases")
	}
	return fmt.Errorf("none of these contenders can play any of these cases: %s", strings.Join(reasons, "; "))
}

// findCommand says that the program of the user's own worker is not there, or may not be run.
func (o *Options) findCommand() error {
	if len(o.Command) == 0 || strings.Contains(o.Command[0], "{") {
		return nil
	}
	if _, err := exec.LookPath(o.Command[0]); err != nil {
		return fmt.Errorf("cannot run the worker: %w", err)
	}
	return nil
}

// try starts one worker of the user's own as the first contender of the run has it, and sends it a request:
// one that cannot be started, or ends, is told of before anything is measured. What it answers is not looked
// at.
func (r *run) try(ctx context.Context) error {
	name, kase := r.first()
	if len(r.options.Command) == 0 || name == "" {
		return nil
	}
	s := &stage{options: r.options, kase: kase, home: filepath.Join(r.dir, "trial"), meter: newMeter()}
	how := shareNothing
	switch name {
	case ContenderReusePort:
		how = sharePort
	case ContenderPrefork:
		how = shareSocket
	}
	w, err := newBenchWorkers(ctx, s, s.home, how, 1)
	if err == nil {
		err = errors.Join(w.request(ctx, cmp.Or(r.options.Path, "/")), w.stop())
	}
	if err != nil {
		return fmt.Errorf("cannot run the worker as %s has it: %w", name, err)
	}
	return nil
}

// first is the first contender of a run that runs workers, and the first case that it plays; "" if there is
// none.
func (r *run) first() (string, *Case) {
	for i := range r.options.Cases {
		for _, name := range r.able(&r.options.Cases[i]) {
			switch name {
			case ContenderTarget, ContenderHandoff, ContenderHandoffOne, ContenderNodeCluster:
				// Its workers are not the benchmark's, or take no socket as they are started here.
			default:
				return name, &r.options.Cases[i]
			}
		}
	}
	return "", nil
}

// request sends a request to the only worker, which is not started again from now on, and waits until
// something comes back. It returns an error only if the worker ends.
func (w *benchWorkers) request(ctx context.Context, path string) error {
	w.mu.Lock()
	w.stopping = true
	slot := w.slots[0]
	p := slot.worker
	w.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, trialLimit)
	defer cancel()
	answer := make(chan error, 1)
	go getByte(ctx, slot.addr, path, answer)
	select {
	case err := <-answer:
		if err == nil {
			return p.Exited()
		}
		select { // its connections break a moment before it can be seen to have ended
		case <-p.Done():
		case <-time.After(endLag):
		}
	case <-p.Done(): // where others have its socket too, the request waits there
		cancel()
		<-answer
	}
	return p.Exited()
}

// getByte sends a request, and waits for the first byte of the answer, or for the end of ctx.
func getByte(ctx context.Context, addr, path string, answer chan<- error) {
	network := "tcp"
	if socket, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, addr = "unix", socket
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, addr)
	if err != nil {
		answer <- err
		return
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n", path); err == nil {
		_, err = conn.Read(make([]byte, 1))
	}
	answer <- err
}
