package proxy

import (
	"net/netip"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// Termination says how a session ended, in the two letters of HAProxy's log (its manual, §8.5 "Session state
// at disconnection"): who or what ended it, and in which phase.
//
//	first letter                         second letter
//	-  both sides finished               -  the session was complete
//	C  the client reset or aborted       Q  waiting for a slot of a backend
//	S  the backend reset or refused      C  connecting to a backend
//	c  the client was silent too long    D  relaying data
//	s  the backend was silent too long
//	R  lb was out of a resource (fds, memory, ports)
//	P  lb refused it by a rule or a limit
//	D  lb closed it as its backend went down or away
//	K  lb closed it for the operator, or as it stopped
//	                                     R  before it was let in: rules, limits, PROXY header
//	                                     H  handed over to a worker: who ended it is not known, but
//	                                        that the worker died before it had taken it (SH), or lb ended it
type Termination [2]byte

// String is the two letters.
func (t Termination) String() string { return string(t[:]) }

var (
	termNormal          = Termination{'-', '-'}
	termClientReset     = Termination{'C', 'D'}
	termBackendReset    = Termination{'S', 'D'}
	termClientIdle      = Termination{'c', 'D'}
	termBackendIdle     = Termination{'s', 'D'}
	termClientGone      = Termination{'C', 'C'}
	termRefused         = Termination{'S', 'C'}
	termConnectLate     = Termination{'s', 'C'}
	termAge             = Termination{'P', 'D'}
	termRefusedByRule   = Termination{'P', 'R'}
	termHeaderLate      = Termination{'c', 'R'}
	termClientGoneEarly = Termination{'C', 'R'}
	termQueue           = Termination{'s', 'Q'}
	termQueueGone       = Termination{'C', 'Q'}
	termHandedOff       = Termination{'-', 'H'}
	termUntaken         = Termination{'S', 'H'}
)

// phaseLetters are the second letters of what can happen in any phase.
var phaseLetters = [...]byte{phaseFree: '-', phaseHeader: 'R', phaseQueued: 'Q', phaseConnecting: 'C', phaseRelaying: 'D', phaseHandedOff: 'H'}

// endedBy is the termination of a session that by ends in its present phase.
func (s *session) endedBy(by byte) Termination { return Termination{by, phaseLetters[s.phase]} }

// Record is what is known of a session when it has ended.
type Record struct {
	Start       time.Time      // when it was accepted
	Client      netip.AddrPort // the zero value on a Unix listener
	Listener    *Listener
	Pool        *backends.Pool    // nil when it was refused before one was chosen
	Backend     *backends.Backend // nil when none was reached
	QueueTime   time.Duration     // in the pool's queue
	ConnectTime time.Duration     // from accept to the established backend connection; -1 when there was none
	SessionTime time.Duration     // from accept to the end
	BytesIn     uint64            // from the client, delivered to the backend
	BytesOut    uint64            // from the backend, delivered to the client
	Retries     int               // backends that were tried in vain
	Termination Termination
	Sessions    int64 // sessions of the process at this moment, this one included
}

// report tells Proxy.OnSession.
func (l *loop) report(s *session) {
	if l.p.OnSession == nil {
		return
	}
	l.rec = Record{
		Start: l.p.epoch.Add(s.start), Client: s.client,
		Listener: s.listener, Pool: s.pool, Backend: s.backend,
		QueueTime: s.queued, ConnectTime: -1, SessionTime: l.now - s.start,
		BytesIn: s.dirs[client].bytes, BytesOut: s.dirs[backend].bytes,
		Retries: int(s.retries), Termination: s.end, Sessions: l.p.sessions.Load(),
	}
	if s.connected > 0 {
		l.rec.ConnectTime = s.connected - s.start
	}
	if h := s.handed(); h != nil && h.takenAt() > 0 {
		l.rec.ConnectTime = h.takenAt() - s.start
	}
	l.p.OnSession(&l.rec)
}
