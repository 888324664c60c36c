package proxy

// Hot path of new connections: who may come in. What is not configured costs a comparison with nil or 0.

import (
	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/proxy/internal/access"
)

// Refusal is why a connection was closed before a backend was chosen for it; it is the reason label of
// lb_listener_refused_total.
type Refusal uint8

const (
	RefusedProxyFrom      Refusal = iota // the peer may not send PROXY headers
	RefusedHeader                        // no PROXY header, or a bad one
	RefusedHeaderTimeout                 // the PROXY header did not come within proxy_timeout
	RefusedDeny                          // deny, or not in allow
	RefusedMaxConns                      // max_conns
	RefusedSourceMaxConns                // source_max_conns
	RefusedSourceRate                    // source_rate
	RefusedRate                          // rate

	NumRefusals = int(RefusedRate) + 1
)

var refusalNames = [NumRefusals]string{"proxy_from", "bad_header", "header_timeout", "denied", "max_conns",
	"source_max_conns", "source_rate", "rate"}

// String is the reason label.
func (r Refusal) String() string { return refusalNames[r] }

// admit says whether the session's client, as known by now, may come in. If not, the session has ended.
func (l *loop) admit(s *session, set *settings) bool {
	addr := s.client.Addr()
	if set.rules != nil && !set.rules.Permit(addr) {
		return l.refuse(s, RefusedDeny)
	}
	if limit := set.maxConns.Load(); limit > 0 && s.listener.active.Load() > limit {
		return l.refuse(s, RefusedMaxConns)
	}
	if set.sources != nil {
		ref, verdict := set.sources.Acquire(addr, l.now)
		switch verdict {
		case access.TooMany:
			return l.refuse(s, RefusedSourceMaxConns)
		case access.TooFast:
			return l.refuse(s, RefusedSourceRate)
		}
		s.source = ref
	}
	if set.rate != nil && !set.rate.Take(l.now) {
		return l.refuse(s, RefusedRate)
	}
	return true
}

// refuse ends a session that is not let in; it returns false.
func (l *loop) refuse(s *session, why Refusal) bool {
	s.listener.Refused[why].Add(1)
	s.end = termRefusedByRule
	if why == RefusedHeaderTimeout {
		s.end = termHeaderLate
	}
	l.close(s, false)
	return false
}

// awaitHeader begins to wait for the session's PROXY header.
func (l *loop) awaitHeader(s *session, set *settings) {
	if set.proxyFrom != nil && !set.proxyFrom.Contains(s.client.Addr()) {
		l.refuse(s, RefusedProxyFrom)
		return
	}
	s.phase = phaseHeader
	if errno := l.register(s, client, sessionEvents); errno != 0 {
		s.end = s.endedBy('R')
		l.close(s, false)
		return
	}
	l.wheel.arm(s, l.now+set.cfg.ProxyTimeout)
}

// headerEvent looks whether the PROXY header is complete. Until then its bytes stay in the socket, so that
// nothing has to be kept here.
func (l *loop) headerEvent(s *session, mask uint32) {
	s.note(client, mask)
	fd := s.ends[client].fd
	n, errno := peek(fd, l.scratch[:min(maxProxyBytes, len(l.scratch))])
	switch {
	case errno == unix.EAGAIN:
		return
	case errno != 0:
		s.end = termClientGoneEarly
		l.close(s, true)
		return
	case n == 0:
		l.refuse(s, RefusedHeader)
		return
	}
	h, size, err := l.headers.read(l.scratch[:n])
	switch {
	case err != nil:
		l.refuse(s, RefusedHeader)
		return
	case size == 0:
		if mask&unix.EPOLLERR != 0 { // the error comes after the bytes, which a peek does not get past
			s.end = termClientGoneEarly
			l.close(s, true)
			return
		}
		if mask&unix.EPOLLRDHUP != 0 { // it will never be complete
			l.refuse(s, RefusedHeader)
		}
		return
	}
	if h.Client.IsValid() {
		s.forwarded = &forwarded{peer: s.client, server: h.Server}
		s.client = h.Client
	}
	if len(h.TLVs) > 0 {
		if s.forwarded == nil {
			s.forwarded = &forwarded{peer: s.client}
		}
		s.forwarded.tlvs = append([]byte(nil), h.TLVs...)
	}
	recv(fd, l.scratch[:size]) // take it out of the socket
	l.wheel.cancel(s)
	set := s.listener.settings.Load()
	if l.admit(s, set) {
		l.begin(s, set)
	}
}

// sendHeader tells the backend who the client is. It is the first thing on a new connection, whose socket
// buffer takes it whole. It says whether the session lives.
func (l *loop) sendHeader(s *session, version string) bool {
	var v uint8 = 1
	if version == "v2" {
		v = 2
	}
	server := localAddr(s.ends[client].fd)
	var tlvs []byte
	if f := s.forwarded; f != nil {
		tlvs = f.tlvs
		if f.server.IsValid() {
			server = f.server
		}
	}
	b, err := appendProxyHeader(l.header[:0], v, s.client, server, tlvs)
	if err != nil { // the TLVs of the client's header do not fit with these addresses: leave them out
		b, err = appendProxyHeader(l.header[:0], v, s.client, server, nil)
	}
	if err != nil {
		panic("BUG: proxy: cannot format a PROXY header: " + err.Error())
	}
	l.header = b
	n, errno := send(s.ends[backend].fd, b, 0)
	if errno != 0 || n < len(b) {
		s.end = termBackendReset
		l.close(s, true)
		return false
	}
	return true
}
