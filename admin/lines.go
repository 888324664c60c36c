package admin

import (
	"math"
	"net/http"
	"slices"
	"strconv"
	"sync"

	"github.com/273ebdf9/lb/admin/api"
)

const (
	// lineLogSize is how many lines of a pool's workers lb remembers, lineLogText how many bytes of each.
	lineLogSize = 1000
	lineLogText = 2 << 10
)

// lineLog remembers the last lines of one pool, and wakes those who follow. It never waits for a reader.
type lineLog struct {
	mu   sync.Mutex
	ring []api.WorkerLine
	from int    // index of the oldest
	last uint64 // how many lines there have been
	wake chan struct{}
}

func (l *lineLog) publish(line api.WorkerLine) {
	if len(line.Text) > lineLogText {
		line.Text, line.Cut = line.Text[:lineLogText], true
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.last++
	if len(l.ring) < lineLogSize {
		l.ring = append(l.ring, line)
	} else {
		l.ring[l.from] = line
		l.from = (l.from + 1) % lineLogSize
	}
	if l.wake != nil {
		close(l.wake)
		l.wake = nil
	}
}

// after gives up to eventBatch lines behind the first n, the number of the last of them, and how many were overwritten.
// Where there is none, wake is closed when there is.
func (l *lineLog) after(n uint64) (lines []api.WorkerLine, upTo, missed uint64, wake <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if n >= l.last {
		if l.wake == nil {
			l.wake = make(chan struct{})
		}
		return nil, n, 0, l.wake
	}
	oldest := l.last - uint64(len(l.ring))
	if n < oldest {
		missed, n = oldest-n, oldest
	}
	count := int(min(l.last-n, eventBatch))
	for i := range count {
		lines = append(lines, l.ring[(l.from+int(n-oldest)+i)%len(l.ring)])
	}
	return lines, n + uint64(count), missed, nil
}

// begin is the number behind which the last lines are that a slot wrote; slot -1 is any.
func (l *lineLog) begin(last uint64, slot int) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	oldest := l.last - uint64(len(l.ring))
	n := l.last
	for found := uint64(0); n > oldest && found < last; n-- {
		if line := &l.ring[(l.from+int(n-1-oldest))%len(l.ring)]; slot < 0 || line.Slot == slot {
			found++
		}
	}
	return n
}

// save gives what is remembered, for restore in another process.
func (l *lineLog) save() SavedLines {
	l.mu.Lock()
	defer l.mu.Unlock()
	return SavedLines{Lines: slices.Concat(l.ring[l.from:], l.ring[:l.from]), Last: l.last}
}

// restore goes on from what save gave.
func (l *lineLog) restore(saved SavedLines) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ring = slices.Clone(saved.Lines[max(0, len(saved.Lines)-lineLogSize):])
	l.from, l.last = 0, max(saved.Last, uint64(len(l.ring)))
}

// PublishLine adds a line to those that GET …/logs of the pool shows. It never waits for a reader. Safe for concurrent use.
func (s *Server) PublishLine(pool string, line api.WorkerLine) { s.lineLog(pool).publish(line) }

// lineLog is the log of a pool.
func (s *Server) lineLog(pool string) *lineLog {
	l, _ := s.lines.LoadOrStore(pool, new(lineLog))
	return l.(*lineLog)
}

// serveLogs writes lines of a pool's workers as JSON, one a line, and with follow=1 goes on until the caller or the server
// ends.
func (s *Server) serveLogs(w http.ResponseWriter, r *http.Request) {
	l, n, slot, follow, err := s.logsAsked(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	s.stream(w, r, follow, func(write func(any) bool) <-chan struct{} {
		lines, upTo, missed, wake := l.after(n)
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
func (s *Server) logsAsked(r *http.Request) (l *lineLog, n uint64, slot int, follow bool, err error) {
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
	l = s.lineLog(p.Name)
	return l, l.begin(last, slot), slot, follow, nil
}
