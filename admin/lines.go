package admin

import (
	"math"
	"net/http"
	"slices"
	"strconv"

	"github.com/273ebdf9/lb/admin/api"
)

const (
	// lineLogSize is how many lines of a pool's workers lb remembers, lineLogText how many bytes of each.
	lineLogSize = 1000
	lineLogText = 2 << 10
)

// PublishLine adds a line to those that GET …/logs of the pool shows. It never waits for a reader. Safe for
// concurrent use.
func (s *Server) PublishLine(pool string, line api.WorkerLine) {
	s.PublishLines(pool, []api.WorkerLine{line})
}

// PublishLines is PublishLine for several.
func (s *Server) PublishLines(pool string, lines []api.WorkerLine) {
	lines = slices.Clone(lines[max(0, len(lines)-lineLogSize):])
	for i := range lines {
		if l := &lines[i]; len(l.Text) > lineLogText {
			l.Text, l.Cut = l.Text[:lineLogText], true
		}
	}
	s.lineRing(pool).add(nil, lines...)
}

// lineRing returns the last lines of a pool's workers.
func (s *Server) lineRing(pool string) *ring[api.WorkerLine] {
	if l, ok := s.lines.Load(pool); ok {
		return l.(*ring[api.WorkerLine])
	}
	l, _ := s.lines.LoadOrStore(pool, &ring[api.WorkerLine]{size: lineLogSize})
	return l.(*ring[api.WorkerLine])
}

// serveLogs writes lines of a pool's workers as JSON, one a line, and with follow=1 goes on until the caller
// or the server ends.
func (s *Server) serveLogs(w http.ResponseWriter, r *http.Request) {
	l, n, slot, follow, err := s.logsAsked(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.stream(w, r, follow, func(write func(any) bool) <-chan struct{} {
		lines, upTo, missed, wake := l.after(n, eventBatch)
		if wake != nil {
			return wake
		}
		n = upTo
		for _, line := range lines {
			if slot >= 0 && line.Slot != slot {
				continue
			}
			line.Dropped += missed
			missed = 0
			if !write(line) {
				break
			}
		}
		return nil
	})
}

// logsAsked reads the query.
func (s *Server) logsAsked(r *http.Request) (l *ring[api.WorkerLine], n uint64, slot int, follow bool, err error) {
	p, st, err := s.findWorkers(r)
	if err != nil {
		return nil, 0, 0, false, err
	}
	q := r.URL.Query()
	slot = -1
	if v := q.Get("slot"); v != "" {
		if slot, err = parseSlot(p.Name, st, v); err != nil {
			return nil, 0, 0, false, err
		}
	}
	if v := q.Get("follow"); v != "" {
		if follow, err = strconv.ParseBool(v); err != nil {
			return nil, 0, 0, false, refuse(http.StatusBadRequest, "follow: %q is neither 1 nor 0", v)
		}
	}
	last := uint64(math.MaxUint64)
	if v := q.Get("last"); v != "" {
		if last, err = strconv.ParseUint(v, 10, 31); err != nil {
			return nil, 0, 0, false, refuse(http.StatusBadRequest, "last: %q is no number of lines", v)
		}
	}
	l = s.lineRing(p.Name)
	n = l.begin(last, func(line *api.WorkerLine) bool { return slot < 0 || line.Slot == slot })
	return l, n, slot, follow, nil
}
