package daemon

import (
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	systemd "github.com/coreos/go-systemd/v22/daemon"

	"github.com/273ebdf9/lb/internal/descriptor"
	"github.com/273ebdf9/lb/internal/sdnotify"
	"github.com/273ebdf9/lb/proxy"
)

// statusEvery is how often the service manager's status line is brought up to date.
const statusEvery = time.Second

// service is how lb talks to the service manager that started it, with sd_notify(3). Without one all of it
// does nothing.
type service struct {
	notify   *sdnotify.Sender
	watchdog time.Duration // within which it wants a sign of life; 0: it does not
	env      map[string]string
}

// watchdogPID is the variable of the process that the service manager wants signs of life from.
const watchdogPID = "WATCHDOG_PID"

// newService reads what the service manager has put into the environment, and takes it out: it is not for the
// workers.
func newService() *service {
	s := &service{notify: sdnotify.FromEnv(), env: map[string]string{}}
	for _, name := range []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", watchdogPID} {
		if value, ok := os.LookupEnv(name); ok {
			s.env[name] = value
		}
	}
	s.watchdog, _ = systemd.SdWatchdogEnabled(true) // an unreadable one is none
	os.Unsetenv("NOTIFY_SOCKET")
	return s
}

// A message that cannot be sent is lost: nothing else could be done about it.

func (s *service) moved()     { s.notify.Send(sdnotify.Message{MainPID: os.Getpid()}) }
func (s *service) ready()     { s.notify.Send(sdnotify.Message{Ready: true}) }
func (s *service) reloading() { s.notify.Send(sdnotify.Reloading()) }
func (s *service) stopping(within time.Duration) {
	s.notify.Send(sdnotify.Message{Stopping: true, Extend: within, Status: "stopping: sessions may finish", HasStatus: true})
}
func (s *service) alive() { s.notify.Send(sdnotify.Message{Watchdog: true}) }
func (s *service) status(line string) {
	s.notify.Send(sdnotify.Message{Status: line, HasStatus: true})
}
func (s *service) close() { s.notify.Close() }

// reportToService reports to the service manager that lb is ready, and then a status line, and signs of life
// while the event loops turn.
func (d *daemon) reportToService() {
	if !d.service.notify.Enabled() {
		return
	}
	line := d.statusLine()
	d.service.status(line)
	d.service.ready()
	status := time.NewTicker(statusEvery)
	defer status.Stop()
	var watchdog <-chan time.Time
	if d.service.watchdog > 0 {
		t := time.NewTicker(d.service.watchdog / 2)
		defer t.Stop()
		watchdog = t.C
		d.proveAlive()
	}
	for {
		select {
		case <-status.C:
			if now := d.statusLine(); now != line {
				line = now
				d.service.status(line)
			}
		case <-watchdog:
			d.proveAlive()
		case <-d.background.ctx.Done():
			return
		}
	}
}

// proveAlive sends the sign of life that the watchdog wants, if the event loops turn.
func (d *daemon) proveAlive() {
	if d.proxy.Turning(d.service.watchdog / 4) {
		d.service.alive()
	} else {
		d.log.Error("an event loop hangs: the service manager gets no sign of life")
	}
}

// statusLine returns the line that the service manager shows of lb.
func (d *daemon) statusLine() string {
	up, all := 0, 0
	for _, pool := range d.view.Load().pools {
		n, total := pool.Selectable()
		up += n
		all += total
	}
	return fmt.Sprintf("%s, %d of %s up", count(int(d.proxy.Sessions()), "session"), up, count(all, "backend"))
}

// takeSockets hands the listening sockets that the service manager has opened (socket activation) to the
// proxy, by their names: FileDescriptorName= of the socket unit is the listener's name.
func (d *daemon) takeSockets() error {
	if err := checkActivation(); err != nil {
		return err
	}
	var sockets []proxy.Activated
	for _, f := range activation.Files(true) {
		fd, err := descriptor.CopyOf(f)
		name := f.Name()
		f.Close()
		if err != nil {
			return fmt.Errorf("cannot take over the socket %q of the service manager: %w", name, err)
		}
		sockets = append(sockets, proxy.Activated{Name: name, FD: fd})
	}
	d.proxy.Activate(sockets)
	return nil
}

// maxActivated is the most sockets that a service manager hands over. A larger LISTEN_FDS is an error of
// whoever set it.
const maxActivated = 4096

// checkActivation refuses a LISTEN_FDS that cannot be true, before anything is made for each.
func checkActivation() error {
	text := os.Getenv("LISTEN_FDS")
	if text == "" || os.Getenv("LISTEN_PID") != strconv.Itoa(os.Getpid()) {
		return nil
	}
	if n, err := strconv.Atoi(text); err != nil || n < 0 || n > maxActivated {
		return fmt.Errorf("LISTEN_FDS=%s in the environment: not a number of sockets within 0..%d; unset it, or mend the service manager's socket unit", text, maxActivated)
	}
	return nil
}

// dropSockets closes the sockets of the service manager that no listener has taken, and warns of them.
func (d *daemon) dropSockets() {
	for _, a := range d.proxy.DropActivated() {
		d.log.Warn("a socket of the service manager fits no listener; set FileDescriptorName= to the listener's name, and bind to the socket's address",
			"name", a.Name)
	}
}
