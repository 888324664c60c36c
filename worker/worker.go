// Package worker is what a Go program links to be a good worker of lb, or of systemd: it finds its socket,
// says when it is ready, sends its heartbeats, and knows when to stop.
//
//	w, err := worker.Listen(ctx)
//	if err != nil { … }
//	err = w.Serve(server.Serve, server.Shutdown)
//
// Run by hand, without a supervisor, the same program listens on an address of its own and tells nobody.
//
// Ownership: a [Worker] has one goroutine, which sends the heartbeats and waits for the signal to stop; Close
// ends it and waits for it. The package needs nothing of lb at run time: it speaks sd_notify(3) and
// sd_listen_fds(3).
package worker

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/internal/handoff"
	"github.com/273ebdf9/lb/internal/sdnotify"
)

// ErrNoAddress: there is no supervisor that hands a socket over, and Options.Address is empty.
var ErrNoAddress = errors.New("nothing to listen on: start the worker with lb, or set Options.Address")

// Options change how a worker behaves. The zero value is good under lb.
type Options struct {
	// Address is where to listen when no supervisor hands a socket over: "host:port", or "unix:/path".
	// Default "": that is an error, ErrNoAddress.
	Address string
	// Alive is asked before each heartbeat; while it says false none is sent, and the supervisor takes the
	// worker offline and restarts it in the end. It is also what notices a program that hangs: it should
	// touch what the program needs, a lock for example. Default: always true.
	Alive func() bool
	// WaitReady leaves it to the program to call Ready. Default false: the first Accept does.
	WaitReady bool
}

// Worker is the listener of this process, and its line to the supervisor. It is safe for concurrent use.
type Worker struct {
	net.Listener

	options  Options
	notify   *sdnotify.Sender
	interval time.Duration // of heartbeats; 0: none are asked for
	stopping context.Context
	stop     context.CancelFunc
	quit     context.CancelFunc // ends run
	ended    chan struct{}

	ready   sync.Once
	accept  sync.Once
	offline sync.Once
	beating chan struct{} // closed by Ready
}

// Listen takes the socket that the supervisor hands over (descriptor 3), or binds the one that it names
// (LB_WORKER_SOCKET), or Options.Address without a supervisor, in this order. Where lb hands accepted sockets
// over (handoff = "lb"), the Worker takes those: its connections are the clients' own. At most one Options is
// used. The worker stops when ctx is done, or at SIGTERM or SIGINT. Call it once in a process, and Close in
// the end.
func Listen(ctx context.Context, options ...Options) (*Worker, error) {
	w := &Worker{notify: sdnotify.FromEnv(), ended: make(chan struct{}), beating: make(chan struct{})}
	if len(options) > 0 {
		w.options = options[0]
	}
	var err error
	if w.Listener, err = listen(w.options.Address); err != nil {
		return nil, err
	}
	w.interval = watchdog()
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"} {
		os.Unsetenv(name) // they are not for children
	}
	w.stopping, w.stop = context.WithCancel(ctx)
	run, quit := context.WithCancel(context.Background())
	w.quit = quit
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		defer close(w.ended)
		defer signal.Stop(signals)
		w.run(run, signals)
	}()
	return w, nil
}

// listen finds what to listen on.
func listen(address string) (net.Listener, error) {
	if fd := os.Getenv(handoff.EnvFD); fd != "" {
		return takeHandedOff(fd)
	}
	if os.Getenv("LISTEN_PID") == strconv.Itoa(os.Getpid()) {
		n, err := strconv.Atoi(os.Getenv("LISTEN_FDS"))
		if err == nil && n > 0 {
			return inherited()
		}
	}
	if path := os.Getenv("LB_WORKER_SOCKET"); path != "" {
		return bind("unix", path)
	}
	if path, ok := strings.CutPrefix(address, "unix:"); ok {
		return bind("unix", path)
	}
	if address == "" {
		return nil, ErrNoAddress
	}
	return bind("tcp", address)
}

// inherited is descriptor 3 (sd_listen_fds(3)).
func inherited() (net.Listener, error) {
	const fd = 3
	unix.CloseOnExec(fd)
	f := os.NewFile(fd, "listener")
	defer f.Close() // FileListener makes a copy
	ln, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on descriptor %d: %w", fd, err)
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // the path is the supervisor's
	}
	return ln, nil
}

// bind listens on an address. On a path it takes the place of a socket that a process which has died left
// there, and of no other: somebody serves it.
func bind(network, address string) (net.Listener, error) {
	if network == "unix" {
		if st, err := os.Lstat(address); err == nil && st.Mode()&os.ModeSocket != 0 {
			c, err := net.Dial("unix", address)
			if err == nil {
				c.Close()
			}
			if !errors.Is(err, syscall.ECONNREFUSED) && !errors.Is(err, os.ErrNotExist) {
				// EAGAIN, EACCES, EPROTOTYPE and the like: it is bound
				return nil, fmt.Errorf("cannot listen on %q: another process serves it", address)
			}
			os.Remove(address)
		}
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %q: %w", address, err)
	}
	return ln, nil
}

// watchdog is how often heartbeats shall come: twice in the time that the supervisor waits
// (sd_watchdog_enabled(3)).
func watchdog() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 {
		return 0
	}
	return max(time.Duration(usec)*time.Microsecond/2, time.Millisecond)
}

// run sends heartbeats from Ready on, and hears when to stop.
func (w *Worker) run(ctx context.Context, signals <-chan os.Signal) {
	var tick <-chan time.Time
	beating := w.beating
	if w.interval == 0 {
		beating = nil
	}
	stopping := w.stopping.Done()
	for {
		select {
		case <-ctx.Done():
			return
		case <-signals:
			w.stop()
		case <-stopping:
			stopping = nil
			w.Offline()
		case <-beating:
			beating = nil
			t := time.NewTicker(w.interval)
			defer t.Stop()
			tick = t.C
			w.beat()
		case <-tick:
			w.beat()
		}
	}
}

func (w *Worker) beat() {
	if w.options.Alive == nil || w.options.Alive() {
		w.notify.Send(sdnotify.Message{Watchdog: true}) // who is not heard is found silent
	}
}

// Accept is net.Listener's. The first one tells that the worker is ready, unless Options.WaitReady is set.
func (w *Worker) Accept() (net.Conn, error) {
	if !w.options.WaitReady {
		w.accept.Do(func() { w.Ready() })
	}
	return w.Listener.Accept()
}

// Ready tells the supervisor that the worker takes connections, once; the heartbeats begin. The error is that
// of the socket to the supervisor; nothing is lost but the message.
func (w *Worker) Ready() (err error) {
	w.ready.Do(func() {
		err = w.notify.Send(sdnotify.Message{Ready: true})
		close(w.beating)
	})
	return err
}

// Status tells the supervisor one line for people to read.
func (w *Worker) Status(text string) error {
	return w.notify.Send(sdnotify.Message{Status: text, HasStatus: true})
}

// Offline tells the supervisor that the worker takes no new connections any more. lb gives it none, starts
// another one in its place, and asks this one to stop when its connections have ended.
func (w *Worker) Offline() (err error) {
	w.offline.Do(func() { err = w.notify.Send(sdnotify.Message{Stopping: true}) })
	return err
}

// Stopping is done when the worker shall stop: at SIGTERM or SIGINT, or when the context of Listen is.
func (w *Worker) Stopping() context.Context { return w.stopping }

// Serve runs serve on the worker until it shall stop, then shutdown, with no limit but lb's patience
// (kill_timeout), and returns what went wrong. They are an http.Server's Serve and Shutdown, or a
// grpc.Server's in their form. It closes the worker.
func (w *Worker) Serve(serve func(net.Listener) error, shutdown func(context.Context) error) error {
	defer w.Close()
	served := make(chan error, 1)
	go func() { served <- serve(w) }()
	select {
	case err := <-served: // before it was asked to
		return err
	case <-w.stopping.Done():
	}
	w.Offline() // run may not have come to it
	err := shutdown(context.Background())
	<-served // http.ErrServerClosed: as was asked
	return err
}

// Close closes the listener and ends the heartbeats. A second call does nothing.
func (w *Worker) Close() error {
	w.quit()
	<-w.ended
	w.stop()
	w.notify.Close()
	if err := w.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
