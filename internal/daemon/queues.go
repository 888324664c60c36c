package daemon

import (
	"net/netip"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

// queuesAge is for how long an answer about all Unix sockets holds: the kernel walks all of them for it, and
// a status has many backends.
const queuesAge = 100 * time.Millisecond

// acceptQueues knows how many connections wait to be accepted by the backends. It is safe for concurrent use.
type acceptQueues struct {
	sockets *sockdiag.Conn // nil: the kernel does not tell

	mu    sync.Mutex
	unix  *sockdiag.UnixQueues
	asked time.Time
}

// of returns the queue of b's listener, or nil where it cannot be seen: on another host, in another network
// namespace.
func (q *acceptQueues) of(b *backends.Backend) *api.AcceptQueue {
	if b.Channel != nil {
		return &api.AcceptQueue{Waiting: int(b.Untaken()), Limit: b.Pool().Config().HandoffWindow}
	}
	if q.sockets == nil {
		return nil
	}
	if b.Address.IsUnix() {
		all := q.unixQueues()
		if all == nil {
			return nil
		}
		found, ok := all.At(b.Address.Path)
		return acceptQueue(found, ok)
	}
	sa := b.Sockaddr()
	if sa == nil {
		return nil
	}
	addr := sa.AddrPort()
	if !backends.IsLocalIP(addr.Addr()) {
		return nil
	}
	found, err := q.sockets.TCPQueue(netip.AddrPortFrom(addr.Addr(), addr.Port()))
	return acceptQueue(found, err == nil)
}

func acceptQueue(q sockdiag.Queue, ok bool) *api.AcceptQueue {
	if !ok {
		return nil
	}
	return &api.AcceptQueue{Waiting: q.Waiting, Limit: q.Limit}
}

func (q *acceptQueues) unixQueues() *sockdiag.UnixQueues {
	q.mu.Lock()
	defer q.mu.Unlock()
	if time.Since(q.asked) > queuesAge {
		q.unix, _ = q.sockets.UnixQueues() // nil: not known
		q.asked = time.Now()
	}
	return q.unix
}

// close ends it, when no checker runs any more.
func (q *acceptQueues) close() {
	if q.sockets != nil {
		q.sockets.Close()
	}
}
