package daemon

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/proxy"
)

const (
	// repeatEvery is how often an error that repeats has a line.
	repeatEvery = 10 * time.Second
	// flushTimeout is how long the last lines may take to be written.
	flushTimeout = 2 * time.Second
)

// logging is where lb writes what happens. Each part is safe for concurrent use.
type logging struct {
	log     *slog.Logger
	events  *logs.Logger    // behind log
	access  *logs.AccessLog // nil when off
	repeats *logs.Throttle  // for errors that may come in masses

	outputPace logs.Pace // of what workers write
}

// openLogs opens the event log and the access log. files are those of the code before; nil at a start.
func (l *logging) openLogs(cfg logs.Config, files map[string]*os.File) (err error) {
	l.events, err = logs.NewFrom(cfg, files[fileLog])
	if err != nil && files != nil {
		// a version before handed no file over, and sessions must not end for a log
		fmt.Fprintf(os.Stderr, "lb: %v; the log goes to stderr\n", err)
		cfg.Output = "stderr"
		l.events, err = logs.New(cfg)
	}
	if err != nil {
		return err
	}
	l.log = l.events.Logger
	slog.SetDefault(l.log) // for libraries that log
	l.repeats = logs.NewThrottle(l.log, repeatEvery)
	if l.access, err = logs.OpenAccessLogFrom(cfg, files[fileAccess]); err != nil && files != nil {
		l.log.Error("there is no access log", "error", err)
		return nil
	} else if err != nil {
		l.closeLogs()
		return err
	}
	if l.access != nil {
		l.access.OnError = func(err error) {
			l.repeats.Log(slog.LevelError, "access log", "lines of the access log are lost", "error", err)
		}
	}
	return nil
}

// reopenLogs reopens the log files, after logrotate(8) has renamed them.
func (d *daemon) reopenLogs() error {
	leave, err := d.upgrades.gate.enter("a reopening of the logs")
	if err != nil {
		return err
	}
	defer leave()
	if err := d.events.Reopen(); err != nil {
		d.log.Error("cannot reopen the event log; lb goes on in the old file", "error", err)
	}
	for _, w := range d.view.Load().checkers {
		if w.workers != nil {
			w.workers.reopenLogs()
		}
	}
	if err := d.access.Reopen(); err != nil {
		d.log.Error("cannot reopen the access log; lb goes on in the old file", "error", err)
	}
	return nil
}

// closeLogs writes what is left.
func (l *logging) closeLogs() {
	ctx, cancel := context.WithTimeout(context.Background(), flushTimeout)
	defer cancel()
	l.repeats.Flush()
	l.access.Close(ctx)
	l.events.Close(ctx)
}

// sessionEnded writes the access log's line. It runs on a loop.
func (l *logging) sessionEnded(r *proxy.Record) {
	e := logs.Entry{
		Start: r.Start, Client: r.Client, Listener: r.Listener.Name,
		QueueTime: r.QueueTime, ConnectTime: r.ConnectTime, SessionTime: r.SessionTime,
		BytesIn: r.BytesIn, BytesOut: r.BytesOut, Termination: r.Termination, Retries: r.Retries,
		// the places of this one are free already
		Sessions: r.Sessions, ListenerActive: r.Listener.Active() + 1,
	}
	if r.Pool != nil { // else it was refused before one was chosen
		e.Pool, e.PoolActive = r.Pool.Name, r.Pool.Active()
	}
	if r.Backend != nil {
		e.Backend, e.BackendActive = r.Backend.Name, r.Backend.Active()+1
		e.PoolActive++
	}
	l.access.Record(&e)
}
