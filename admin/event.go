package admin

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// eventLogSize is how many events lb remembers.
const eventLogSize = 1024

// eventLog remembers the last events and wakes those who follow. Nobody who reads can hold up a publisher: each reader
// has his own place in the log, and what was overwritten before he came to it is lost for him, and counted. The zero
// value is ready. Safe for concurrent use.
type eventLog struct {
	mu   sync.Mutex
	ring []api.Event   // in order of IDs, from start on
	from int           // index of the oldest
	last uint64        // ID of the youngest; 0 before the first
	wake chan struct{} // closed by the next publish; nil while nobody waits
}

// publish adds an event with the next ID and, where it has none, the time.
func (l *eventLog) publish(e api.Event) api.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	e.ID, e.Dropped = l.last, 0
	if e.Time.IsZero() {
		e.Time = time.Now()
	}
	l.addLocked(e)
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
	return e
}

func (l *eventLog) addLocked(e api.Event) {
	if len(l.ring) < eventLogSize {
		l.ring = append(l.ring, e)
		return
	}
	l.ring[l.from] = e
	l.from = (l.from + 1) % eventLogSize
}

// after gives up to most events with an ID above id, the oldest first; the first one says how many before it are gone.
// Where there is none, wake is closed when there is.
func (l *eventLog) after(id uint64, most int) (events []api.Event, wake <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := int(min(l.last-id, uint64(len(l.ring))))
	if n == 0 {
		if l.wake == nil {
			l.wake = make(chan struct{})
		}
		return nil, l.wake
	}
	for i := range min(n, most) {
		events = append(events, l.ring[(l.from+len(l.ring)-n+i)%len(l.ring)])
	}
	events[0].Dropped = events[0].ID - id - 1
	return events, nil
}

// tail gives the last n events, the oldest first.
func (l *eventLog) tail(n int) []api.Event {
	l.mu.Lock()
	defer l.mu.Unlock()
	n = max(0, min(n, len(l.ring)))
	events := slices.Concat(l.ring[l.from:], l.ring[:l.from])
	return events[len(events)-n:]
}

// Publish adds an event to those that GET /v1/events shows, and gives it as it was added: with its ID and, where it had
// none, the time. It never waits for a reader. Safe for concurrent use, before Serve and after Close too.
func (s *Server) Publish(e api.Event) api.Event { return s.events.publish(e) }

// Events are the last events that were published, at most 1024, the oldest first.
func (s *Server) Events() []api.Event { return s.events.tail(eventLogSize) }

// RestoreEvents goes on from the events of an earlier lb, as its Events gave them; the next one has the ID behind
// theirs. It is called before anything is published: what was published is forgotten.
func (s *Server) RestoreEvents(events []api.Event) {
	l := &s.events
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring, l.from, l.last = nil, 0, 0
	for _, e := range events {
		l.last = max(l.last, e.ID)
		l.addLocked(e)
	}
}

// eventBatch is how many events go to a follower at once.
const eventBatch = 64

// serveEvents writes events as JSON, one a line, and with follow=1 goes on until the caller or the server ends.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	id, follow, err := s.eventsAsked(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	words := PeerFrom(r.Context()).Access() >= AccessOperate
	s.stream(w, r, follow, func(write func(any) bool) <-chan struct{} {
		events, wake := s.events.after(id, eventBatch)
		for _, e := range events {
			if !words {
				e = eventForReader(e)
			}
			if !write(e) {
				break
			}
			id = e.ID
		}
		return wake
	})
}

// eventsAsked reads the query: the ID to go on from, and whether to follow.
func (s *Server) eventsAsked(r *http.Request) (after uint64, follow bool, err error) {
	q := r.URL.Query()
	if v := q.Get("follow"); v != "" {
		if follow, err = strconv.ParseBool(v); err != nil {
			return 0, false, refuse(http.StatusBadRequest, "follow: %q is neither 1 nor 0", v)
		}
	}
	if v := q.Get("after"); v != "" {
		if after, err = strconv.ParseUint(v, 10, 64); err != nil {
			return 0, false, refuse(http.StatusBadRequest, "after: %q is no ID of an event", v)
		}
	}
	last := uint64(math.MaxUint64)
	if v := q.Get("last"); v != "" {
		n, err := strconv.ParseUint(v, 10, 31)
		if err != nil {
			return 0, false, refuse(http.StatusBadRequest, "last: %q is no number of events", v)
		}
		last = n
	}
	return s.events.position(after, last), follow, nil
}

// position is the ID to go on from for who asks for the last events, and of them for those after an ID. What was
// overwritten before he asked he has not missed, unless he names an ID that was before it. One that was never given is
// of an earlier lb, and counts as none.
func (l *eventLog) position(after, last uint64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	from := l.last - min(last, uint64(len(l.ring)))
	if after > l.last || after == 0 || after < from && last < uint64(len(l.ring)) {
		return from
	}
	return after
}

// followers keeps those who follow from taking every connection, so that others can still be served: each user or address
// may follow with half of its share.
type followers struct {
	mu sync.Mutex
	of map[followerShare]int
}

type followerShare struct {
	local bool // over the control socket
	share string
}

// enter counts a follower in; release counts it out.
func (f *followers) enter(p Peer) (release func(), err error) {
	key := followerShare{p.Local, p.share()}
	limit := httpShares.each / 2
	switch {
	case p.Local && p.privileged():
		limit = controlShares.total * 2 / 3
	case p.Local:
		limit = controlShares.each / 2
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.of == nil {
		f.of = map[followerShare]int{}
	}
	if n := f.of[key]; n >= limit {
		return nil, refuse(http.StatusServiceUnavailable, "%d connections of %s follow events or logs already; end one of them", n, key.share)
	}
	f.of[key]++
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		if f.of[key]--; f.of[key] == 0 {
			delete(f.of, key)
		}
	}, nil
}
