package daemon

import (
	"log/slog"
	"slices"
	"sync"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy"
)

// closing closes the sessions of backends that went down (on_down). Whose are still to be closed goes along
// in an upgrade. Make it with a proxy and a log; safe for concurrent use.
type closing struct {
	proxy *proxy.Proxy
	log   *slog.Logger

	running sync.WaitGroup
	mu      sync.Mutex
	due     []*backends.Backend // guarded by mu
}

// begin closes the sessions of a backend, on a goroutine of its own: that waits for the loops, and the caller
// may run on one.
func (c *closing) begin(b *backends.Backend) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.due = append(c.due, b)
	c.running.Go(func() { c.close(b) })
}

func (c *closing) close(b *backends.Backend) {
	n, err := c.proxy.CloseBackend(b)
	if n > 0 {
		c.log.Info("closed the sessions of a backend that went down (on_down)", "backend", b.Pool().Name+"/"+b.Name, "sessions", n)
	}
	if err != nil {
		c.log.Warn("cannot close connections that were handed over to a worker that is down (on_down)", "backend", b.Pool().Name+"/"+b.Name, "error", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	at := slices.Index(c.due, b)
	c.due = slices.Delete(c.due, at, at+1)
}

// open are those whose sessions may not be closed yet.
func (c *closing) open() []*backends.Backend {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.due)
}

// wait returns when none are. The caller sees to it that no other close begins.
func (c *closing) wait() { c.running.Wait() }
