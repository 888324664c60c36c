package admin

import (
	"context"
	"log/slog"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// Control makes the changes that callers of the API ask for; internal/daemon implements it. Each method waits
// for the outcome. An error means that nothing was changed, and says what to do: one made with api.Refuse has
// the HTTP status of its maker's choice, one that wraps backends.ErrUnknown is 404, one that wraps
// backends.ErrRange is 400, any other is a conflict (409). Warnings are sentences about a change that was
// made. by names the caller for the event log: "root over the control socket", "the token over HTTP". All
// methods are safe for concurrent use.
//
// The Server has looked up the pools, backends and listeners by the names that the caller wrote.
type Control interface {
	// SetWeight changes the weight of a backend. Of to, either Weight or Percent is set.
	SetWeight(b *backends.Backend, to api.WeightChange, by string) (warnings []string, err error)
	// SetAdmin changes the admin state of a backend.
	SetAdmin(b *backends.Backend, to backends.AdminState, by string) (warnings []string, err error)
	// SetMaxConns changes the limit of a backend; 0 is none.
	SetMaxConns(b *backends.Backend, n int, by string) (warnings []string, err error)
	// AddBackend adds a backend to a pool.
	AddBackend(p *backends.Pool, b api.NewBackend, by string) (warnings []string, err error)
	// RemoveBackend takes a backend out of its pool. Its sessions go on.
	RemoveBackend(b *backends.Backend, by string) (warnings []string, err error)
	// SetSplit changes weights of a listener's split, and returns all of them.
	SetSplit(listener string, weights map[string]int, by string) (now map[string]int, warnings []string, err error)
	// SetListenerMaxConns changes how many sessions a listener may have; 0 is no limit.
	SetListenerMaxConns(listener string, n int, by string) (warnings []string, err error)

	// Kill closes the sessions that the filter admits, spread at random over the given time. It returns when
	// all are closed, with how many there were. The end of ctx ends the wait and the killing.
	Kill(ctx context.Context, f api.SessionFilter, over time.Duration, by string) (closed int, err error)

	// Restart replaces workers of a pool by ones of the current config, Rollback by ones of what worked
	// before. They call progress for each step, and not after their return. The end of ctx ends them: workers
	// that were not replaced stay. With NoWait they return when it has begun, and ctx means nothing from then
	// on.
	Restart(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) (warnings []string, err error)
	Rollback(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) (warnings []string, err error)
	// Scale changes how many workers a pool has, and returns when new ones are ready.
	Scale(ctx context.Context, pool string, count int, by string) error
	// StopWorker ends a slot's worker for good, and returns when it has ended.
	StopWorker(ctx context.Context, pool string, slot int, by string) error
	// StartWorker starts a worker in a slot, and returns when it is ready.
	StartWorker(ctx context.Context, pool string, slot int, by string) error

	// Reload reads the config file again and applies the differences; with dryRun it only returns them.
	Reload(ctx context.Context, dryRun bool, by string) (api.ReloadResult, error)
	// Upgrade replaces the program of the process; its sessions go on. It returns only if the program was not
	// replaced: for a dry run, a refusal, or a failure after which this program goes on. Else the new program
	// answers the caller, whose connection caller.Hand returns. Hand comes before Freeze, which waits for
	// every request that is not handed over. ctx ends when the caller leaves before Hand.
	Upgrade(ctx context.Context, r api.UpgradeRequest, caller *Reply, by string) (api.UpgradeResult, error)
	// Stop begins a graceful stop, or with now an immediate one. It does not wait for the end.
	Stop(now bool, by string)
	// SetLogLevel changes the least level of the event log.
	SetLogLevel(level slog.Level, by string)
}
