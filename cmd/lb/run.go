package main

import (
	"context"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"github.com/273ebdf9/lb/config"
)

// run serves the config at path until a signal ends it.
func run(path string) error {
	cfg, err := config.Load(path)
	if err != nil {
		return err
	}
	d, err := newDaemon(cfg)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR1)
	if err := d.start(); err != nil {
		d.stop(canceled())
		return err
	}
	d.handle(signals)
	return nil
}

// handle does what signals ask for, and returns when lb has stopped.
func (d *daemon) handle(signals <-chan os.Signal) {
	for sig := range signals {
		if sig == syscall.SIGUSR1 {
			d.reopenLogs()
			continue
		}
		d.log.Info("stopping: sessions may finish; once more to stop at once", "signal", sig.String(),
			"sessions", d.proxy.Sessions(), "stop_timeout", d.cfg.Proxy.StopTimeout)
		ctx, cancel := context.WithTimeout(context.Background(), d.cfg.Proxy.StopTimeout)
		if sig == syscall.SIGINT {
			cancel()
		}
		stopped := make(chan struct{})
		go func() {
			d.stop(ctx)
			close(stopped)
		}()
		for {
			select {
			case again := <-signals:
				if again != syscall.SIGUSR1 {
					cancel()
				}
				continue
			case <-stopped:
			}
			break
		}
		cancel()
		return
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
	if to == "down" {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}
