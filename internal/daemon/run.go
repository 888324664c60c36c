package daemon

import (
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
		if d.upgrades.deferred.add(sig) {
			continue
		}
		switch sig {
		case syscall.SIGUSR1: // all of these may wait, and the next signal must not
			d.background.run(func() { d.afterUpgrade(sig, d.reopenLogs) })
		case syscall.SIGHUP:
			d.background.run(func() {
				d.afterUpgrade(sig, func() error { // logs what came of it
					_, err := d.Reload(d.background.ctx, false, "signal "+sig.String())
					return err
				})
			})
		case syscall.SIGUSR2:
			// likewise
			d.background.run(func() { d.Upgrade(d.background.ctx, api.UpgradeRequest{}, nil, "signal "+sig.String()) })
		case syscall.SIGTTIN:
			d.background.run(func() { d.afterUpgrade(sig, func() error { return d.scaleByOne(+1, sig) }) })
		case syscall.SIGTTOU:
			d.background.run(func() { d.afterUpgrade(sig, func() error { return d.scaleByOne(-1, sig) }) })
		default:
			d.stopping.ask()
			d.finish(sig)
			return
		}
	}
}
