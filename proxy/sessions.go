package proxy

import (
	"net/netip"
	"slices"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// SessionInfo is one running session at one moment.
type SessionInfo struct {
	ID       uint64 // unique in the process
	Client   netip.AddrPort
	Listener string
	Pool     string // empty while its PROXY header is awaited
	Backend  string // empty while none is chosen
	Phase    string // "header", "queued", "connecting" or "relaying"
	Start    time.Time
	Idle     time.Duration // since the last byte
	BytesIn  uint64        // from the client
	BytesOut uint64        // to the client
}

var phaseNames = [...]string{phaseFree: "", phaseHeader: "header", phaseQueued: "queued", phaseConnecting: "connecting", phaseRelaying: "relaying"}

// SessionList lists the running sessions, the oldest first. Each loop is asked at its own moment. It costs a loop about as
// much as it has sessions; none once the proxy has stopped.
func (p *Proxy) SessionList() []SessionInfo {
	var all []SessionInfo
	p.onLoops(func(l *loop) {
		now := p.since()
		l.table.each(func(s *session) {
			info := SessionInfo{
				ID: s.id, Client: s.client, Listener: s.listener.Name, Phase: phaseNames[s.phase],
				Start: p.epoch.Add(s.start), Idle: now - s.active,
				BytesIn: s.dirs[client].bytes, BytesOut: s.dirs[backend].bytes,
			}
			if s.pool != nil {
				info.Pool = s.pool.Name
			}
			if s.backend != nil {
				info.Backend = s.backend.Name
			}
			all = append(all, info)
		})
	})
	slices.SortFunc(all, func(a, b SessionInfo) int { return a.Start.Compare(b.Start) })
	return all
}

// Kill closes the sessions with these ids, as far as they run, and gives how many it closed. Their termination is "K" and
// the phase they were in.
func (p *Proxy) Kill(ids []uint64) int {
	want := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		want[id] = true
	}
	return p.closeAll(func(s *session) bool { return want[s.id] }, 'K')
}

// CloseBackend closes the sessions of a backend that is down or gone, and gives how many there were. Their termination
// is "DD".
func (p *Proxy) CloseBackend(b *backends.Backend) int {
	return p.closeAll(func(s *session) bool { return s.backend == b && s.phase == phaseRelaying }, 'D')
}

func (p *Proxy) closeAll(which func(*session) bool, by byte) int {
	n := 0
	p.onLoops(func(l *loop) {
		l.table.each(func(s *session) {
			if which(s) {
				n++
				s.end = s.endedBy(by)
				l.close(s, false)
			}
		})
	})
	return n
}

// Turning says whether every loop comes round within the timeout.
func (p *Proxy) Turning(timeout time.Duration) bool {
	round := make(chan struct{}, len(p.loops))
	p.mu.Lock()
	if p.stopped {
		p.mu.Unlock()
		return true
	}
	for _, l := range p.loops {
		l.post(message{do: func(*loop) { round <- struct{}{} }})
	}
	p.mu.Unlock()
	late := newPatience(timeout)
	defer late.Stop()
	for turned := 0; turned < len(p.loops); {
		select {
		case <-round:
			turned++
		case <-late.C:
			if late.over() {
				return false
			}
		}
	}
	return true
}

// patience is a timer that begins again where the process, or the machine, stood still: whoever is waited for did so too.
type patience struct {
	*time.Timer
	timeout time.Duration
	ends    time.Time
}

func newPatience(timeout time.Duration) *patience {
	return &patience{time.NewTimer(timeout), timeout, time.Now().Add(timeout)}
}

// over reports whether the time is over, after the timer has fired.
func (p *patience) over() bool {
	if time.Since(p.ends) < stallAfter {
		return true
	}
	p.ends = time.Now().Add(p.timeout)
	p.Reset(p.timeout)
	return false
}

// onLoops runs f on each loop in turn and waits for it; not at all once the proxy has stopped.
func (p *Proxy) onLoops(f func(*loop)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopped {
		return
	}
	for _, l := range p.loops {
		l.call(f)
	}
}
