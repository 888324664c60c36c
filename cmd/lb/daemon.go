package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"strings"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/config"
	"github.com/273ebdf9/lb/health"
	"github.com/273ebdf9/lb/internal/logs"
	"github.com/273ebdf9/lb/proxy"
)

// daemon is a running lb: the parts, and the facts that flow between them.
type daemon struct {
	cfg     *config.Config
	log     *slog.Logger
	events  *logs.Logger    // behind log
	access  *logs.AccessLog // nil when off
	repeats *logs.Throttle  // for errors that may come in masses
	started time.Time

	pools    []*backends.Pool
	checkers map[*backends.Pool]*health.Checker
	proxy    *proxy.Proxy
	admin    *admin.Server

	background context.Context // over when the probes and look-ups shall end
	cancel     context.CancelFunc
	running    sync.WaitGroup // checkers, resolver, admin server
}

// newDaemon builds every part and starts none.
func newDaemon(cfg *config.Config) (*daemon, error) {
	d := &daemon{cfg: cfg, started: time.Now(), checkers: map[*backends.Pool]*health.Checker{}}
	d.background, d.cancel = context.WithCancel(context.Background())
	if err := d.openLogs(); err != nil {
		return nil, err
	}
	for _, pc := range cfg.Pools {
		if err := d.addPool(pc); err != nil {
			return nil, err
		}
	}
	px, err := proxy.New(cfg.Proxy)
	if err != nil {
		return nil, err
	}
	px.OnConnectFailure = d.connectFailed
	if d.access != nil {
		px.OnSession = d.sessionEnded
	}
	px.OnAcceptError = func(ln *proxy.Listener, err error) {
		d.repeats.Log(slog.LevelError, "accept "+ln.Name, "accepting pauses", "error", err)
	}
	px.OnLimit = func(n int64) {
		d.log.Warn("session limit reached: newcomers wait until sessions end; raise RLIMIT_NOFILE or proxy.max_sessions", "max_sessions", n)
	}
	d.proxy = px
	d.admin, err = admin.NewServer(cfg.Admin, d.sources())
	if err != nil {
		return nil, err
	}
	return d, nil
}

// addPool makes a pool with its backends and its health checker.
func (d *daemon) addPool(pc config.Pool) error {
	policy, err := balancer.New(pc.Balance)
	if err != nil {
		return err
	}
	pool := backends.NewPool(pc.Name, pc.Config, policy)
	for _, bc := range pc.Backends {
		if _, err := pool.Add(bc, pc.Health.InitialHealth()); err != nil {
			return err
		}
	}
	checker, err := health.NewChecker(pool, pc.Health)
	if err != nil {
		return err
	}
	pool.OnChange = func(c backends.Change) {
		d.log.Log(context.Background(), changeLevel(c.To), "backend "+c.Field+" changed",
			"backend", c.Pool+"/"+c.Backend, "from", c.From, "to", c.To, "reason", c.Reason,
			"held", c.Held.Round(time.Millisecond), "left", fmt.Sprintf("%d/%d", c.Left, c.Total))
		if c.Field == "admin" {
			checker.AdminChanged(pool.Get(c.Backend))
		}
	}
	d.pools = append(d.pools, pool)
	d.checkers[pool] = checker
	return nil
}

// connectFailed passes a failed connect on to the pool's checker. It runs on a loop.
func (d *daemon) connectFailed(b *backends.Backend, why backends.ConnectError, streak uint32) {
	d.checkers[b.Pool()].ConnectFailed(b, why, streak)
}

// start begins to serve. On an error the caller stops the daemon.
func (d *daemon) start() error {
	// A thread that waits in a loop keeps its processor, so the rest of the program needs at least one of its own.
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0), d.proxy.Loops()+1))
	d.proxy.Start()
	d.running.Go(d.resolveNames)
	for _, pool := range d.pools {
		d.running.Go(func() { d.checkers[pool].Run(d.background) })
	}
	d.running.Go(func() {
		if err := d.admin.Serve(); err != nil {
			d.log.Error("the control API has ended", "error", err)
		}
	})
	for _, lc := range d.cfg.Listeners {
		ln, err := d.proxy.Listen(lc.Name, lc.ListenerConfig, d.pool(lc.Pool))
		if err != nil {
			return err
		}
		d.log.Info("listening", "listener", ln.Name, "addresses", strings.Join(ln.Addresses(), " "), "pool", ln.Pool().Name)
	}
	d.log.Info("lb is up", "version", version(), "pid", os.Getpid(), "loops", d.proxy.Loops(), "max_sessions", d.proxy.MaxSessions(),
		"socket", d.cfg.Admin.Socket, "http", d.cfg.Admin.HTTP)
	return nil
}

// stop ends everything: listeners first, then sessions (until ctx is over), then the rest.
func (d *daemon) stop(ctx context.Context) {
	killed, err := d.proxy.Stop(ctx)
	if err != nil && !errors.Is(err, proxy.ErrStopped) {
		d.log.Error("cannot stop cleanly", "error", err)
	}
	d.cancel()
	d.admin.Close(canceled())
	d.running.Wait()
	d.log.Info("stopped", "sessions_closed", killed)
	d.closeLogs()
}

// pool finds a pool by name; the config is checked, so it is there.
func (d *daemon) pool(name string) *backends.Pool {
	for _, p := range d.pools {
		if p.Name == name {
			return p
		}
	}
	panic("BUG: lb: no pool " + name)
}
