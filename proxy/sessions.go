package proxy

import (
	"net/netip"
	"slices"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/sockdiag"
)

// SessionInfo is one running session at one moment.
type SessionInfo struct {
	ID       uint64 // unique in the process
	Client   netip.AddrPort
	Listener string
	Pool     string // empty while its PROXY header is awaited
	Backend  string // empty while none is chosen
	Phase    string // "header", "queued", "connecting", "relaying", "giving" or "handed off"
	Start    time.Time
	Idle     time.Duration // since the last byte
	BytesIn  uint64        // from the client
	BytesOut uint64        // to the client
}

var phaseNames = [...]string{phaseFree: "", phaseHeader: "header", phaseQueued: "queued", phaseConnecting: "connecting", phaseRelaying: "relaying", phaseHandedOff: "handed off"}

// SessionList lists the running sessions, the oldest first. Each loop is asked at its own moment. It costs a
// loop about as much as it has sessions; none once the proxy has stopped.
func (p *Proxy) SessionList() []SessionInfo {
	var all []SessionInfo
	cookies := map[uint64]int{} // of those that were handed over, their places
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
			if h := s.handed(); h != nil && h.takenAt() == 0 {
				info.Phase = "giving"
			} else if h != nil {
				cookies[h.cookie] = len(all)
			}
			all = append(all, info)
		})
	})
	p.fillHanded(all, cookies)
	slices.SortFunc(all, func(a, b SessionInfo) int { return a.Start.Compare(b.Start) })
	return all
}

// fillHanded asks the kernel what the connections have carried that workers hold.
func (p *Proxy) fillHanded(all []SessionInfo, cookies map[uint64]int) {
	if len(cookies) == 0 || p.diag == nil {
		return
	}
	for port := range p.handed.portsNow() {
		_ = p.diag.Sockets(port, func(s *sockdiag.Socket) { // else they are shown without
			if i, ok := cookies[s.Cookie]; ok {
				all[i].BytesIn, all[i].BytesOut = s.Received, s.Acked
				all[i].Idle = s.Idle
			}
		})
	}
}

// Kill closes the sessions with these ids, as far as they run, and returns how many it closed. Their
// termination is "K" and the phase they were in. The error says why connections that workers hold could not
// be ended.
func (p *Proxy) Kill(ids []uint64) (int, error) {
	want := make(map[uint64]bool, len(ids))
	for _, id := range ids {
		want[id] = true
	}
	return p.closeAll(func(s *session) bool { return want[s.id] }, 'K')
}

// CloseBackend closes the sessions of a backend that is down or gone, and returns how many there were. Their
// termination is "DD".
func (p *Proxy) CloseBackend(b *backends.Backend) (int, error) {
	return p.closeAll(func(s *session) bool {
		return s.backend == b && (s.phase == phaseRelaying || s.phase == phaseHandedOff)
	}, 'D')
}

// closeAll closes sessions. One that was handed over is not lb's to close: the kernel ends it, and then
// tells.
func (p *Proxy) closeAll(which func(*session) bool, by byte) (int, error) {
	n := 0
	cookies := map[uint64]bool{}
	p.onLoops(func(l *loop) {
		l.table.each(func(s *session) {
			switch {
			case !which(s):
			case s.phase == phaseHandedOff:
				s.end = s.endedBy(by)
				cookies[s.handed().cookie] = true
			default:
				n++
				s.end = s.endedBy(by)
				l.close(s, false)
			}
		})
	})
	destroyed, err := p.destroy(cookies)
	if err != nil {
		p.onLoops(func(l *loop) { // they go on
			l.table.each(func(s *session) {
				if h := s.handed(); h != nil && cookies[h.cookie] {
					s.end = Termination{}
				}
			})
		})
	}
	return n + destroyed, err
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

// patience is a timer that begins again where the process, or the machine, stood still: whoever is waited for
// did so too.
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
