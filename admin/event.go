package admin

import (
	"math"
	"net/http"
	"strconv"
	"sync"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// eventLogSize is how many events lb remembers.
const eventLogSize = 1024

// Publish adds an event to those that GET /v1/events shows, and returns it as it was added: with its ID and,
// where it had none, the time. It never waits for a reader. Safe for concurrent use, before Serve and after
// Close too.
func (s *Server) Publish(e api.Event) api.Event {
	s.eventRing().add(func(added *api.Event, id uint64) {
		added.ID, added.Dropped = id, 0
		if added.Time.IsZero() {
			added.Time = time.Now()
		}
		e = *added
	}, e)
	return e
}

// eventRing returns the last events.
func (s *Server) eventRing() *ring[api.Event] {
	s.ringOnce.Do(func() { s.events = &ring[api.Event]{size: eventLogSize} })
	return s.events
}

// Events returns the last events that were published, at most 1024, the oldest first.
func (s *Server) Events() []api.Event {
	events, _ := s.eventRing().save()
	return events
}

// RestoreEvents goes on from the events of an earlier lb, as its Events returned them; the next one has the
// ID behind theirs. It is called before anything is published: what was published is forgotten.
func (s *Server) RestoreEvents(events []api.Event) {
	last := uint64(0)
	if len(events) > 0 {
		last = events[len(events)-1].ID
	}
	s.eventRing().restore(events, last)
}

// eventBatch is how many events go to a follower at once.
const eventBatch = 64

// serveEvents writes events as JSON, one a line, and with follow=1 goes on until the caller or the server
// ends.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	id, follow, err := s.eventsAsked(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	words := CallerFrom(r.Context()).Access() >= AccessOperate
	s.stream(w, r, follow, func(write func(any) bool) <-chan struct{} {
		events, _, missed, wake := s.eventRing().after(id, eventBatch)
		for i, e := range events {
			if i == 0 {
				e.Dropped = missed
			}
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
	return eventPosition(s.eventRing(), after, last), follow, nil
}

// eventPosition returns the ID to go on from for who asks for the last events, and of them for those after an
// ID. What was overwritten before it asked it has not missed, unless it names an ID that was before it. An ID
// that was never given is of an earlier lb, and counts as none.
func eventPosition(r *ring[api.Event], after, last uint64) uint64 {
	from := r.begin(last, nil)
	r.mu.Lock()
	defer r.mu.Unlock()
	if after > r.last || after == 0 || after < from && last < uint64(len(r.items)) {
		return from
	}
	return after
}

// followers keeps those who follow from taking every connection, so that others can still be served: each
// user or address may follow with half of its share.
type followers struct {
	mu sync.Mutex
	of map[followerShare]int
}

type followerShare struct {
	local bool // over the control socket
	share string
}

// enter counts a follower in; release counts it out.
func (f *followers) enter(p Caller) (release func(), err error) {
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
