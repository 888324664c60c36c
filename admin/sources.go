package admin

import (
	"log/slog"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/admin/why"
	"github.com/273ebdf9/lb/backends"
)

// Sources are where a Server takes its facts from. Every function is called on the goroutine of a request,
// possibly by several at once, and must be quick. A nil function is one that has nothing to tell.
type Sources struct {
	// Pools are the pools, in the order in which to show them.
	Pools func() []*backends.Pool
	// Listeners are the listeners, in the order in which to show them.
	Listeners func() []api.ListenerStatus
	// NotAccepting returns the names of the listeners that lb cannot accept connections on, because of an
	// error; nil is that it cannot be told.
	NotAccepting func() []string
	// Process is the process as a whole.
	Process func() api.ProcessStatus
	// Probe is the last health probe of a backend; the zero value where there was none.
	Probe func(*backends.Backend) api.ProbeStatus
	// Queue returns how many connections wait to be accepted by a backend; nil where that is not known.
	Queue func(*backends.Backend) *api.AcceptQueue
	// Workers are the workers of a pool; nil where lb runs none.
	Workers func(pool string) *api.WorkersStatus
	// Discovery is what is known of a pool's discover; nil for a pool without.
	Discovery func(pool string) *api.DiscoveryStatus
	// Setup is what the config asks of a backend; b is nil for a slot whose worker has none.
	Setup func(pool *backends.Pool, b *backends.Backend) why.Setup
	// Listening returns the sockets that a worker and what it has started listen on; looked is false where
	// that cannot be told. It looks through /proc, and is called only by who asks why.
	Listening func(pid int) (all []why.Listening, looked bool)
	// Sessions lists the running sessions that the filter admits, the oldest first, at most limit of them;
	// total is how many there are.
	Sessions func(f api.SessionFilter, limit int) (list []api.SessionStatus, total int)
	// Log is told of faults of the HTTP servers themselves; nil is silence.
	Log *slog.Logger
	// Report is told of what may repeat, such as refusals; what has the same key is the same. Nil is silence.
	Report func(level slog.Level, key, msg string, args ...any)
}
