package daemon

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

// connectFailed passes a failed connect on to the pool's checker. It runs on a loop.
func (d *daemon) connectFailed(b *backends.Backend, why backends.ConnectError, streak uint32) {
	if why == backends.ConnectUntrusted {
		d.repeats.Log(slog.LevelError, "untrusted "+b.Pool().Name+"/"+b.Name, "did not connect to a backend: its address is not to be trusted",
			"backend", b.Pool().Name+"/"+b.Name, "reason", b.Refusal())
	}
	if w, ok := d.view.Load().checkers[b.Pool()]; ok {
		w.ConnectFailed(b, why, streak)
	}
}

// backendChanged reports a change of a backend to the event log, to health and to the supervisor. It may run
// on a loop.
func (d *daemon) backendChanged(pool *backends.Pool, c backends.Change) {
	b, v := pool.Get(c.Backend), d.view.Load()
	w, watched := v.checkers[pool]
	// A worker or its supervisor announced this change, as for a stop: no check found a fault.
	word := b != nil && watched && c.Field == "health" && w.Status(b).Awaiting
	level := changeLevel(c.To)
	if word {
		level = slog.LevelInfo
	} else if c.Field == "last_resort" && c.To == "true" {
		level = slog.LevelWarn
	}
	args := []any{"backend", c.Pool + "/" + c.Backend}
	if c.Field != "last_resort" { // whose message says all
		args = append(args, "from", c.From, "to", c.To, "reason", c.Reason, "held", c.Lasted.Round(time.Millisecond))
	}
	d.report(level, api.Event{Time: c.Time, Kind: c.Field, Subject: c.Pool + "/" + c.Backend, Text: changeText(c)},
		changeMessage(c), append(args, "left", fmt.Sprintf("%d/%d", c.Left, c.Total))...)
	if b == nil {
		return
	}
	if c.Field == "health" && watched && w.workers != nil {
		w.workers.healthChanged(c)
	}
	if c.Field == "health" && c.To == "down" && !word {
		d.proxy.TakeBack(b)
	}
	switch cfg := v.cfg.Pool(c.Pool); {
	case c.Field == "admin":
		if watched {
			w.AdminChanged(b)
		}
	case c.Field == "health" && c.To == "down" && !word && cfg != nil && cfg.Health.OnDown == "close":
		d.closing.begin(b)
	}
}

// changeMessage returns the log's message for a change.
func changeMessage(c backends.Change) string {
	switch c.Field {
	case "added", "removed":
		return "backend " + c.Field
	case "last_resort":
		return lastResort(c)
	}
	return "backend " + c.Field + " changed"
}

// lastResort says that a backend becomes a last resort, or is none any more.
func lastResort(c backends.Change) string {
	if c.To == "true" {
		return "last resort: every backend of " + c.Pool + " is down"
	}
	return "no last resort any more: another backend of " + c.Pool + " takes connections, or this one is known to be down"
}

// changeText describes a change for lb events. It names the field where the values do not.
func changeText(c backends.Change) string {
	text := c.From + " → " + c.To
	switch c.Field {
	case "added":
		text = "added, " + c.To
	case "removed":
		text = "removed, " + c.From
	case "last_resort": // its reason says the same
		return lastResort(c)
	case "health": // the values name it
	default:
		text = c.Field + " " + text
	}
	return text + reasonText(c.Reason)
}

// reasonText appends why a change happened, or who made it.
func reasonText(reason string) string {
	switch {
	case reason == "":
		return ""
	case strings.HasPrefix(reason, "by "):
		return ", " + reason
	}
	return ": " + reason
}

// report writes a line into the event log, and shows the event to those who follow.
func (d *daemon) report(level slog.Level, e api.Event, msg string, args ...any) {
	d.log.Log(context.Background(), level, msg, args...)
	e.Level = strings.ToLower(level.String())
	d.admin.Publish(e)
}

// changeLevel returns the log level of a change of a backend's state.
func changeLevel(to string) slog.Level {
	if to == "down" || to == "impossible" {
		return slog.LevelWarn
	}
	return slog.LevelInfo
}

// acceptFailed reports that a listener is not served for a moment, because of err. It runs on a loop.
func (d *daemon) acceptFailed(ln *proxy.Listener, err error) {
	const msg = "cannot accept connections for a moment; they wait in the kernel's queue"
	d.reportRepeated(api.Event{Kind: "shortage", Subject: ln.Name, Text: msg + ": " + err.Error()},
		"accept "+ln.Name, msg, "listener", ln.Name, "error", err)
}

// connectShort reports that a connect to a backend has failed for want of something that lb needs. It runs on
// a loop.
func (d *daemon) connectShort(b *backends.Backend, err error) {
	name, msg := b.Pool().Name+"/"+b.Name, shortage(err)
	d.reportRepeated(api.Event{Kind: "shortage", Subject: name, Text: msg + ": " + err.Error()},
		"shortage "+err.Error(), msg, "backend", name, "error", err)
}

// limitReached reports that lb has as many sessions as it may have. It runs on a loop.
func (d *daemon) limitReached(n int64) {
	const msg = "session limit reached: newcomers wait until sessions end; raise RLIMIT_NOFILE or proxy.max_sessions"
	d.report(slog.LevelWarn, api.Event{Kind: "shortage", Subject: "lb", Text: fmt.Sprintf("%s (now %d)", msg, n)}, msg, "max_sessions", n)
}

// ringLost reports that a loop's io_uring is refused that had worked. It runs on a loop.
func (d *daemon) ringLost(err error) {
	const msg = "the kernel refuses an io_uring that lb had: the loop goes on with plain system calls; an upgrade in place (lb upgrade) makes a new one"
	d.report(slog.LevelWarn, api.Event{Kind: "shortage", Subject: "lb", Text: msg + ": " + err.Error()}, msg, "error", err)
}

// batching returns whether the loops carry small exchanges in batches, and if not, why.
func (d *daemon) batching() string {
	on, err := d.proxy.Batching()
	lost := d.proxy.Stats.RingsLost.Load()
	switch {
	case err != nil:
		return "off (" + err.Error() + ")"
	case !on:
		return "off"
	case lost > 0:
		return fmt.Sprintf("on, but for %d of %d loops", lost, d.proxy.Loops())
	}
	return "on"
}

// reportRepeated is report for an error that may come in masses: there is one line and one event for each key
// in an interval, and then a line with the count.
func (d *daemon) reportRepeated(e api.Event, key, msg string, args ...any) {
	if d.repeats.Log(slog.LevelError, key, msg, args...) {
		e.Level = "error"
		d.admin.Publish(e)
	}
}

// shortage says what lb is short of when a connect to a backend fails with err, and what to do.
func shortage(err error) string {
	const what = "cannot connect to a backend, which is not at fault: "
	switch {
	case errors.Is(err, unix.EADDRNOTAVAIL), errors.Is(err, unix.EAGAIN):
		return what + "no local port is free; widen net.ipv4.ip_local_port_range, or use Unix sockets"
	case errors.Is(err, unix.EMFILE), errors.Is(err, unix.ENFILE):
		return what + "no descriptor is free; raise RLIMIT_NOFILE or lower proxy.max_sessions"
	case errors.Is(err, unix.ENOSPC):
		return what + "the user's epoll watches are used up; raise fs.epoll.max_user_watches"
	}
	return what + "the kernel has no memory for it"
}
