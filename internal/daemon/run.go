package daemon

import (
	"context"
	"log/slog"
	"os"
	"syscall"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/config"
)

// Run serves the config at path until a signal ends it.
func Run(path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	d, err := newDaemon(path, cfg, admin.Frozen{}, nil)
	if err != nil {
		return err
	}
	d.signals.listen()
	defer d.signals.ignore()
	if err := d.start(cfg); err != nil {
		d.stop(canceled(), canceled())
		return err
	}
	d.handle()
	return nil
}

// handle does what signals ask for, and returns when lb has stopped.
func (d *daemon) handle() {
	for {
		sig := d.signals.next()
		if d.held.hold(sig) {
			continue
		}
		switch sig {
		case syscall.SIGUSR1: // all of these may wait, and the next signal must not
			d.running.Go(func() { d.afterUpgrade(sig, d.reopenLogs) })
		case syscall.SIGHUP:
			d.running.Go(func() {
				d.afterUpgrade(sig, func() error { // logs what came of it
					_, err := d.Reload(d.background, false, "signal "+sig.String())
					return err
				})
			})
		case syscall.SIGUSR2:
			// likewise
			d.running.Go(func() { d.Upgrade(d.background, api.UpgradeRequest{}, nil, "signal "+sig.String()) })
		case syscall.SIGTTIN:
			d.running.Go(func() { d.afterUpgrade(sig, func() error { return d.scaleByOne(+1, sig) }) })
		case syscall.SIGTTOU:
			d.running.Go(func() { d.afterUpgrade(sig, func() error { return d.scaleByOne(-1, sig) }) })
		default:
			d.noteStop()
			d.finish(sig)
			return
		}
	}
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

// canceled is a context that is over.
func canceled() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

// changeLevel is how loud a change of a backend's state is.
func changeLevel(to string) slog.Level {
	if to == "down" || to == "impossible" {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}
