package fairness

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/bench"
	"github.com/273ebdf9/lb/bench/load"
)

const (
	// readyLimit is how long a program may take from its start until it answers.
	readyLimit = 10 * time.Second
	// restartPause is between the end of one worker and the start of the next successor.
	restartPause = 100 * time.Millisecond
	// stopGrace is how long a program may take from SIGTERM to its end before it is killed.
	stopGrace = 3 * time.Second
)

// sharing is how workers listen.
type sharing int

const (
	shareNothing sharing = iota // each on a Unix socket of its own, behind a balancer
	sharePort                   // each on a TCP socket of its own on one port (SO_REUSEPORT)
	shareSocket                 // all on one inherited TCP socket
)

// benchWorkers are the workers that the benchmark runs itself, as the plainest master process would: it
// starts one that dies again, at once, and does not notice one that is stuck.
type benchWorkers struct {
	stage   *stage
	home    string
	sharing sharing
	addr    string      // of sharePort and shareSocket
	port    *bench.Port // of addr
	shared  *os.File    // of shareSocket

	watchers sync.WaitGroup

	mu       sync.Mutex // guards the fields below
	stopping bool
	slots    []*workerSlot
	retired  []*bench.Process
	failed   error
}

// workerSlot is the place of one worker.
type workerSlot struct {
	deaths int // that nobody wanted
	number int
	addr   string // where it listens: "unix:/path", or "host:port"
	worker *bench.Process
	start  int // how many were started
}

// newBenchWorkers starts n workers and waits until they answer.
func newBenchWorkers(ctx context.Context, s *stage, home string, sharing sharing, n int) (*benchWorkers, error) {
	w := &benchWorkers{stage: s, home: home, sharing: sharing}
	err := os.MkdirAll(home, 0o700)
	if err == nil && sharing != shareNothing {
		if w.port, err = bench.ReservePort(); err == nil {
			w.addr = w.port.Addr
		}
	}
	if err == nil && sharing == shareSocket {
		w.shared, err = load.Socket(w.addr, false)
	}
	if err == nil {
		err = w.grow(ctx, n)
	}
	if err != nil {
		return nil, errors.Join(err, w.stop())
	}
	return w, nil
}

// grow starts more workers, up to n.
func (w *benchWorkers) grow(ctx context.Context, n int) error {
	w.mu.Lock()
	var added []*workerSlot
	var err error
	for i := len(w.slots); i < n && err == nil; i++ {
		slot := &workerSlot{number: i, addr: w.addr}
		if w.sharing == shareNothing {
			slot.addr = w.ownAddress(i)
		}
		if err = w.startIn(slot); err == nil {
			w.slots = append(w.slots, slot)
			added = append(added, slot)
		}
	}
	w.mu.Unlock()
	for _, slot := range added {
		err = errors.Join(err, w.awaitReady(ctx, slot))
	}
	return err
}

// ownAddress is where the i-th of shareNothing listens. A worker that wants a port has none such
// (Options.unable).
func (w *benchWorkers) ownAddress(i int) string {
	return "unix:" + filepath.Join(w.home, fmt.Sprintf("w%d.sock", i))
}

// startIn starts a worker in a slot, beside the one that may be there. w.mu is held.
func (w *benchWorkers) startIn(slot *workerSlot) error {
	slot.start++
	words := w.stage.worker()
	var files []*os.File
	env := []string{"LB_WORKER_ID=" + strconv.Itoa(slot.number)}
	_, port, _ := net.SplitHostPort(slot.addr)
	switch {
	case w.stage.wantsPort():
		words = replace(words, "{port}", port)
	case w.stage.wantsSocket():
		words = replace(words, "{socket}", strings.TrimPrefix(slot.addr, "unix:"))
	case w.sharing == shareSocket:
		files = []*os.File{w.shared}
	default:
		// Closed here once the worker has it: the socket lives and dies with the worker.
		file, err := load.Socket(slot.addr, w.sharing == sharePort)
		if err != nil {
			return err
		}
		defer file.Close()
		files = []*os.File{file}
	}
	if len(files) > 0 {
		env = append(env, "LISTEN_FDS=1", "LISTEN_FDNAMES=bench")
		if len(w.stage.options.Command) > 0 { // the benchmark's own needs no LISTEN_PID
			words = append(append([]string{}, w.stage.options.Self.Exec...), words...)
		}
	}
	path := words[0]
	if !strings.Contains(path, "/") {
		found, err := exec.LookPath(path)
		if err != nil {
			return fmt.Errorf("cannot find the worker %q: %w", words[0], err)
		}
		path = found
	}
	p, err := bench.Start(bench.Command{
		Name: fmt.Sprintf("worker %d", slot.number), Path: path, Args: words[1:], Env: env, Files: files,
		Log: filepath.Join(w.home, fmt.Sprintf("w%d.%d.log", slot.number, slot.start)),
	})
	if err != nil {
		return err
	}
	w.stage.meter.add(p.PID())
	slot.worker = p
	w.watchers.Go(func() { w.watch(slot, p) })
	return nil
}

func replace(words []string, what, by string) []string {
	all := make([]string, len(words))
	for i, w := range words {
		all[i] = strings.ReplaceAll(w, what, by)
	}
	return all
}

// watch starts a worker again that dies while it should not.
func (w *benchWorkers) watch(slot *workerSlot, p *bench.Process) {
	<-p.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.stopping || slot.worker != p {
		return
	}
	if slot.deaths++; slot.deaths > 2 { // one is an event's doing
		w.failed = p.Exited()
		return
	}
	if err := w.startIn(slot); err != nil {
		w.failed = err
	}
}

// awaitReady waits until a worker can take connections. One with a socket of its own is asked; of those that
// share one, nobody can be, so that every process is given the time that its socket takes to be served.
func (w *benchWorkers) awaitReady(ctx context.Context, slot *workerSlot) error {
	w.mu.Lock()
	p := slot.worker
	w.mu.Unlock()
	return p.WaitReady(ctx, readyLimit, func(ctx context.Context) error {
		if w.sharing == shareNothing || w.stage.wantsPort() {
			return knock(ctx, slot.addr)
		}
		return watches(p.PID(), w.stage.options.Command)
	})
}

// knock connects to an address.
func knock(ctx context.Context, addr string) error {
	network, where := "tcp", addr
	if path, ok := strings.CutPrefix(addr, "unix:"); ok {
		network, where = "unix", path
	}
	var d net.Dialer
	conn, err := d.DialContext(ctx, network, where)
	if err != nil {
		return err
	}
	return conn.Close()
}

// watches says whether a process has become the worker and waits for connections: for one of the benchmark's
// own, that it has an epoll set with the socket in it, which /proc/PID/fdinfo shows (proc(5)); for one of the
// user's, that it sleeps.
func watches(pid int, command []string) error {
	if len(command) == 0 {
		infos, err := filepath.Glob(fmt.Sprintf("/proc/%d/fdinfo/*", pid))
		if err != nil {
			panic("BUG: bad glob pattern: " + err.Error())
		}
		for _, info := range infos {
			if b, err := os.ReadFile(info); err == nil && strings.Contains(string(b), "tfd:        3 ") {
				return nil
			}
		}
		return errors.New("it does not wait for connections yet")
	}
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return err
	}
	if _, rest, ok := strings.Cut(string(b), ") "); !ok || !strings.HasPrefix(rest, "S") {
		return errors.New("it does not wait for connections yet")
	}
	return nil
}

// signal sends a signal to a worker.
func (w *benchWorkers) signal(number int, sig syscall.Signal) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := syscall.Kill(w.slots[number].worker.PID(), sig); err != nil {
		return fmt.Errorf("cannot signal worker %d: %w", number, err)
	}
	return nil
}

// restart replaces the workers one by one: the new one is ready first, then the old one is asked to end and
// has ended.
func (w *benchWorkers) restart(ctx context.Context) error {
	for _, slot := range w.slots {
		w.mu.Lock()
		old := slot.worker
		err := w.startIn(slot)
		w.retired = append(w.retired, old)
		w.mu.Unlock()
		if err != nil {
			return err
		}
		if err := w.awaitReady(ctx, slot); err != nil {
			return err
		}
		if err := old.Stop(stopGrace); err != nil {
			return err
		}
		select { // as whoever watches what he does
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(restartPause):
		}
	}
	return nil
}

// backends are the workers as a balancer's configuration names them.
func (w *benchWorkers) backends(weights [2]int) []bench.Backend {
	var all []bench.Backend
	for i, slot := range w.slots {
		all = append(all, bench.Backend{
			Name: fmt.Sprintf("w%d", slot.number), Socket: strings.TrimPrefix(slot.addr, "unix:"),
			Weight: weights[i*2/len(w.slots)],
		})
	}
	return all
}

// stop ends all workers, and returns what went wrong with them before.
func (w *benchWorkers) stop() error {
	w.mu.Lock()
	w.stopping = true
	processes := w.retired
	for _, slot := range w.slots {
		processes = append(processes, slot.worker)
	}
	errs := []error{w.failed}
	w.mu.Unlock()
	for _, p := range processes {
		// The measurement is over: nobody waits for their last requests.
		errs = append(errs, p.Stop(0))
	}
	w.watchers.Wait()
	if w.shared != nil {
		errs = append(errs, w.shared.Close())
	}
	if w.port != nil {
		errs = append(errs, w.port.Close())
	}
	return errors.Join(errs...)
}
