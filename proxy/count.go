package proxy

import "time"

// countEvery is how often bytes of running sessions are added to the shared counters.
const countEvery = time.Second

// countDirty adds the bytes of running sessions to the shared counters.
func (l *loop) countDirty() {
	kept := l.dirty[:0]
	for _, ref := range l.dirty {
		s := l.table.find(ref)
		if s == nil {
			continue
		}
		s.count()
		switch {
		case !s.spread && l.now-s.connected < countEvery:
			kept = append(kept, ref) // it is too young
			continue
		case !s.spread:
			s.spread = true
			s.spreadKeepalive()
		}
		s.dirty = false
	}
	l.dirty = kept
	l.countAt = l.now + countEvery
}

// count adds what the shared counters of the listener and the backend do not have yet.
func (s *session) count() {
	up, down := &s.dirs[client], &s.dirs[backend]
	if up.bytes > up.counted {
		n := up.bytes - up.counted
		up.counted = up.bytes
		s.listener.Counters.BytesIn.Add(n)
		s.backend.Counters.BytesIn.Add(n)
	}
	if down.bytes > down.counted {
		n := down.bytes - down.counted
		down.counted = down.bytes
		s.listener.Counters.BytesOut.Add(n)
		s.backend.Counters.BytesOut.Add(n)
	}
}
