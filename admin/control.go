package admin

// This file is what internal/daemon and a Server agree on for changes; the handlers are in change.go and sessions.go.

import (
	"context"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// Control are the changes that a Server can make; internal/daemon sets the functions. Each waits for the outcome and returns
// what is now true; an error means that nothing was changed, and says what to do. A nil function is a change that this
// lb cannot make (501). All are safe for concurrent use. by names who asked, for the event log: "uid 0", "token".
//
// Before it calls one, the Server has checked that pool, backend and listener exist and that numbers are in range. An
// error made with Refuse has the HTTP status of its maker's choice; any other is a conflict (409). One made with Advise is no error. A BackendStatus may
// be left empty: the Server shows the backend as its Sources have it afterwards.
type Control struct {
	// SetWeight changes the weight of POOL/BACKEND: absolute, or in percent of the configured weight.
	SetWeight func(pool, backend string, weight int, percent bool, by string) (api.BackendStatus, error)
	// SetAdmin changes the admin state of POOL/BACKEND: "ready", "drain" or "maint".
	SetAdmin func(pool, backend, state, by string) (api.BackendStatus, error)
	// SetMaxConns changes the limit of POOL/BACKEND, 0 for none.
	SetMaxConns func(pool, backend string, n int, by string) (api.BackendStatus, error)
	// AddBackend adds a backend to a pool, RemoveBackend takes one away; its sessions go on.
	AddBackend    func(pool string, b api.NewBackend, by string) (api.BackendStatus, error)
	RemoveBackend func(pool, backend, by string) error
	// SetSplit changes the weights of a listener's split.
	SetSplit func(listener string, weights map[string]int, by string) (map[string]int, error)
	// SetListenerMaxConns changes how many sessions a listener may have, 0 for no limit.
	SetListenerMaxConns func(listener string, n int, by string) error

	// Sessions lists the running sessions that the filter admits, the oldest first, at most limit of them; total is how
	// many there are.
	Sessions func(f api.SessionFilter, limit int) (list []api.SessionStatus, total int, err error)
	// Kill closes the sessions that the filter admits, spread at random over the given time, and returns when all are
	// closed, with how many there were. ctx ends the wait and the killing.
	Kill func(ctx context.Context, f api.SessionFilter, over time.Duration, by string) (int, error)

	// Restart replaces workers of a pool by ones of the current config, Rollback by ones of what worked before; progress is
	// told of each step, and must not be called after the return. The end of ctx ends it: workers that were not replaced
	// stay. With NoWait they return when it has begun, and ctx has no meaning then.
	Restart  func(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) error
	Rollback func(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) error
	// Scale changes how many workers a pool has, and returns when new ones are ready.
	Scale func(ctx context.Context, pool string, count int, by string) error
	// StopWorker ends a slot's worker for good, StartWorker starts one there; each returns when it has.
	StopWorker  func(ctx context.Context, pool string, slot int, by string) error
	StartWorker func(ctx context.Context, pool string, slot int, by string) error

	// Reload reads the config file anew and applies the differences, or with dryRun only tells them.
	Reload func(ctx context.Context, dryRun bool, by string) (api.ReloadResult, error)
	// Upgrade replaces the program of the process, and its sessions go on. It returns only when that was not done: for a dry
	// run, a refusal, or a failure after which this program goes on. Else the new program answers the caller, whose
	// connection caller.Hand gives. That comes before Freeze, which waits for every request that is not handed over. ctx ends
	// when the caller leaves before Hand.
	Upgrade func(ctx context.Context, r api.UpgradeRequest, caller *Caller, by string) (api.UpgradeResult, error)
	// Stop begins a graceful stop, or with now an immediate one. It does not wait for the end.
	Stop func(now bool, by string) error
	// SetLogLevel changes the least level of the event log: "debug", "info", "warn", "error".
	SetLogLevel func(level, by string) error
}
