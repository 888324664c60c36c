package daemon

import (
	"context"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// upgrades is what a daemon knows of upgrades: those that led to this code, and the one that is under way.
type upgrades struct {
	count      atomic.Uint64 // over the life of the process
	sessions   atomic.Uint64 // that they have carried over, in all
	standstill time.Duration // of the upgrade to this code; 0: there was none
	// this code is being built from what the one before has written; nothing of it runs yet
	takingOver bool
	gate       gate            // shut while an upgrade freezes everything
	deferred   deferredSignals // signals that came meanwhile
}

// gate lets the operator's changes in until an upgrade shuts it: what is changed meanwhile would be lost. The
// zero value is open. Safe for concurrent use.
type gate struct {
	mu     sync.Mutex
	inside []*string     // what is under way
	shut   bool          // nobody comes in
	empty  chan struct{} // closed when nobody is inside; nil while nobody waits for that
	opened chan struct{} // closed by open; nil while nobody waits for that
}

// enter comes in for what is about to be done, until leave is called. The error says that an upgrade is under
// way.
func (g *gate) enter(what string) (leave func(), err error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.shut {
		return nil, errUpgrading
	}
	me := &what
	g.inside = append(g.inside, me)
	return func() { g.leave(me) }, nil
}

var errUpgrading = api.Refuse(http.StatusConflict, "an upgrade is under way: try again in a moment")

func (g *gate) leave(me *string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.inside = slices.DeleteFunc(g.inside, func(x *string) bool { return x == me })
	if len(g.inside) == 0 && g.empty != nil {
		close(g.empty)
		g.empty = nil
	}
}

// close shuts the gate and waits until nobody is inside. The error says who still is when ctx is over, or
// that another one has shut it; then it is open, or the other's.
func (g *gate) close(ctx context.Context) error {
	g.mu.Lock()
	if g.shut {
		g.mu.Unlock()
		return errUpgrading
	}
	g.shut = true
	if len(g.inside) == 0 {
		g.mu.Unlock()
		return nil
	}
	empty := make(chan struct{})
	g.empty = empty
	g.mu.Unlock()
	select {
	case <-empty:
		return nil
	case <-ctx.Done():
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.inside) == 0 {
		return nil
	}
	var what []string
	for _, w := range g.inside {
		what = append(what, *w)
	}
	g.empty = nil
	g.openLocked()
	return api.Refuse(http.StatusConflict, "under way: %s; try again when it has ended", strings.Join(what, ", "))
}

// open lets changes in again.
func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.openLocked()
}

func (g *gate) openLocked() {
	g.shut = false
	if g.opened != nil {
		close(g.opened)
		g.opened = nil
	}
}

// await waits until the gate is open.
func (g *gate) await(ctx context.Context) error {
	for {
		g.mu.Lock()
		if !g.shut {
			g.mu.Unlock()
			return nil
		}
		if g.opened == nil {
			g.opened = make(chan struct{})
		}
		opened := g.opened
		g.mu.Unlock()
		select {
		case <-opened:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
