package daemon

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/proxy"
	"github.com/273ebdf9/lb/supervisor"
)

// hurried is how long the workers of an lb that is to stop at once may take to end.
const hurried = 2 * time.Second

// stopSlack is how much longer than its sessions and its workers lb itself may take to stop: logs are flushed
// within flushTimeout.
const stopSlack = 5 * time.Second

// errStopping is the answer to a change that comes too late.
var errStopping = errors.New("lb is stopping; nothing can be changed any more")

// stopping is the end of lb, from the signal that asks for it.
type stopping struct {
	asked context.Context // done once a signal to stop has come: what waits gives way
	ask   context.CancelFunc
	begun atomic.Bool // no change is made any more; set with daemon.changing held

	patience context.Context // done once workers that are still ending are killed
	hurry    context.CancelFunc
}

func newStopping() *stopping {
	s := &stopping{}
	s.asked, s.ask = context.WithCancel(context.Background())
	s.patience, s.hurry = context.WithCancel(context.Background())
	return s
}

// finish lets sessions end, until the next signal to stop or stop_timeout; for SIGINT it does not wait at
// all.
func (d *daemon) finish(sig os.Signal) {
	timeout := d.view.Load().cfg.Proxy.StopTimeout
	d.log.Info("stopping: sessions may finish; once more to stop at once", "signal", sig.String(),
		"sessions", d.proxy.Sessions(), "stop_timeout", timeout)
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	now, atOnce := context.WithCancel(context.Background())
	defer atOnce()
	defer context.AfterFunc(now, cancel)()
	if sig == syscall.SIGINT {
		cancel() // before the first session is looked at
		atOnce()
	}
	stopped := make(chan struct{})
	go func() {
		d.stop(ctx, now)
		close(stopped)
	}()
	for {
		select {
		case <-d.signals.stops:
			atOnce()
		case sig := <-d.signals.others:
			marked(sig)
		case <-stopped:
			return
		}
	}
}

// stop ends everything: listeners first, then sessions, until ctx is done; then workers, as long as each may
// take, and in a hurry once now is done; then the rest.
func (d *daemon) stop(ctx, now context.Context) {
	d.changing.Lock()
	d.stopping.begun.Store(true)
	d.changing.Unlock()
	defer context.AfterFunc(now, func() { time.AfterFunc(hurried, d.stopping.hurry) })()
	d.service.stopping(d.stopsWithin())
	for _, w := range d.workers.list() {
		w.AnnounceDrain()
	}
	killed, err := d.proxy.Stop(ctx)
	if err != nil && !errors.Is(err, proxy.ErrStopped) {
		d.log.Error("cannot stop cleanly", "error", err)
	}
	var ending sync.WaitGroup
	for _, w := range d.workers.list() {
		ending.Go(func() { w.stop(d.stopping.patience) })
	}
	ending.Wait()
	d.background.end()
	d.admin.Close(canceled())
	d.background.wait()
	d.closing.wait()
	d.workers.close(d.log)
	d.service.close()
	d.log.Info("stopped", "sessions_closed", killed)
	d.queues.close()
	d.closeLogs()
}

// stopsWithin returns how long a stop may take: what sessions may, then what workers may with what the kernel
// may take to end a killed one, then the rest. The service manager gets it (EXTEND_TIMEOUT_USEC=), so that it
// waits for as long as the config says, also if its own limit (TimeoutStopSec=) is shorter: otherwise it
// kills lb, and the workers go on without it.
func (d *daemon) stopsWithin() time.Duration {
	cfg, workers := d.view.Load().cfg, time.Duration(0)
	for i := range cfg.Pools {
		if w := cfg.Pools[i].Workers; w != nil {
			workers = max(workers, w.KillTimeout+supervisor.KillPatience)
		}
	}
	return cfg.Proxy.StopTimeout + workers + stopSlack
}

// runUnlessStopping runs f as one of the daemon's goroutines, unless the daemon is stopping.
func (d *daemon) runUnlessStopping(f func()) bool {
	d.changing.Lock()
	defer d.changing.Unlock()
	if d.stopping.begun.Load() {
		return false
	}
	d.background.run(f)
	return true
}

// canceled returns a context that is done.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}
