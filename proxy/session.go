package proxy

import (
	"net/netip"
	"time"

	"github.com/valyala/bytebufferpool"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy/internal/access"
)

// The two ends of a session. A direction is named after the end that it reads from: dirs[client] carries the
// client's bytes to the backend.
const (
	client  = 0
	backend = 1
)

// phase is where a session is in its life: accept → connecting → relaying → free.
type phase uint8

const (
	phaseFree       phase = iota
	phaseHeader           // waits for the client's PROXY header
	phaseQueued           // waits in the pool's queue for a slot of a backend
	phaseConnecting       // a connect to a backend is in progress
	phaseRelaying         // both ends are connected
	phaseHandedOff        // the client was given to a worker, which may have taken it
)

// flags of an end.
const (
	// an edge said that there is something to read, and it was not read to the end yet
	endReadable   = 1 << iota
	endHalfClosed // EPOLLRDHUP: its FIN is behind what is still to be read
	endHungUp     // EPOLLHUP: it closed both ways
	endFailed     // EPOLLERR: reading to the end gives the error
	// EPOLLPRI: a short read may stop at the urgent mark, so it proves nothing (tcp(7))
	endUrgent
	endArmedOut   // EPOLLOUT is in its epoll mask
	endRegistered // it is in the epoll set
	endUnix       // a Unix socket, not TCP
)

// end is one of the two sockets.
type end struct {
	fd    int32 // -1 when there is none
	flags uint8
}

// flags of a direction.
const (
	dirEOF      = 1 << iota // its source has sent its last byte, and all of them are out
	dirSplicing             // goes through a pipe while there is much to carry
	dirBroken               // its destination takes nothing any more; what comes is not read
	dirQueued               // in loop.ready: it used up its turn
	dirSettling             // the session ends with a reset once its destination has acknowledged every byte
	dirCopies               // splice(2) does not work between its two sockets
	dirHeld                 // its destination's TCP holds bytes back for the FIN (holdBack)
)

// direction is one of the two streams of bytes.
type direction struct {
	// read, and not taken by the destination yet; nil when there is nothing
	buffered *bytebufferpool.ByteBuffer
	off      int32  // how much of buffered is out already
	piped    int32  // bytes in pipe
	pipe     *pipe  // while splicing; nil otherwise
	bytes    uint64 // delivered to the destination
	counted  uint64 // how much of bytes the shared counters have
	full     uint8  // 1 when the last read filled the buffer
	flags    uint8
}

// blocked says whether bytes wait for the destination.
func (d *direction) blocked() bool { return d.buffered != nil || d.piped > 0 }

// session is one client connection and its backend connection. It belongs to one loop and nobody else touches
// it. It is plain data (descriptors, flags, counters, deadlines, who it belongs to) so that it can be written
// down.
type session struct {
	ends  [2]end
	dirs  [2]direction
	timer timer

	slot     int32 // its place in the loop's table
	gen      int32 // counts the tenants of that place; stale events carry an older one
	phase    phase
	halfOpen bool  // one direction has ended: half_closed_timeout holds
	dirty    bool  // in loop.dirty
	busy     bool  // a backend's backlog was full
	short    bool  // the last backend could not be had for a shortage of lb's own
	spread   bool  // its keepalive probes are
	answered bool  // the backend's first byte has come
	lastFrom uint8 // the end that sent last: client or backend
	retries  uint8
	end      Termination

	listener  *Listener
	pool      *backends.Pool
	backend   *backends.Backend // its slot is held; nil while none is chosen
	wait      *wait             // nil while it relays, as a rule
	client    netip.AddrPort
	forwarded *forwarded       // what the client's PROXY header said; nil as a rule
	source    access.SourceRef // its place among the counted sources; the zero value as a rule
	id        uint64           // for the operator; unique in the process

	start     time.Duration // accepted; since the proxy's epoch, as all below
	budget    time.Duration // connect_timeout counts from here: accepted, or granted a slot after waiting
	queued    time.Duration // how long it has waited in a queue
	chosen    time.Duration // the backend was chosen
	connected time.Duration // the backend connection was established; 0 before
	asked     time.Duration // the client's first byte came; 0 before
	active    time.Duration // the last byte moved
	expires   time.Duration // max_session_age is over; 0 is never
}

// wait is what a session has only while it waits: for a backend, for a worker to take it, or for its end. It
// is apart, and pooled by the loop, so that an idle session is small.
type wait struct {
	tried      []*backends.Backend // could not be had
	waiter     *backends.Waiter    // while phaseQueued, in the pool's queue
	place      *backlogPlace       // while phaseQueued, for a backlog
	handed     *handed             // while phaseHandedOff
	queuedAt   time.Duration       // it began to wait in the queue
	pause      time.Duration       // the last wait for an acknowledgement; see settle
	recheck    time.Duration       // when to look at it; 0 is not
	shortSince time.Duration       // since when it cannot go on for want of kernel memory; 0 is not
	unacked    int                 // bytes that the destination had not acknowledged when settle looked
}

// tried returns the backends that could not be had.
func (s *session) tried() []*backends.Backend {
	if s.wait == nil {
		return nil
	}
	return s.wait.tried
}

// waiter returns the session's place in its pool's queue; nil when it does not wait there.
func (s *session) waiter() *backends.Waiter {
	if s.wait == nil {
		return nil
	}
	return s.wait.waiter
}

// place returns the session's place among those that wait for a backlog; nil when it does not.
func (s *session) place() *backlogPlace {
	if s.wait == nil {
		return nil
	}
	return s.wait.place
}

// handed returns what is known of a connection that was given to a worker; nil when it was not.
func (s *session) handed() *handed {
	if s.wait == nil {
		return nil
	}
	return s.wait.handed
}

// recheck returns when to look at the session; 0 is not.
func (s *session) recheck() time.Duration {
	if s.wait == nil {
		return 0
	}
	return s.wait.recheck
}

// forwarded is what a PROXY header said beside the client's address.
type forwarded struct {
	peer   netip.AddrPort // who sent the header
	server netip.AddrPort // where the client had connected to; the zero value when it was not told
	tlvs   []byte
}

// token is what epoll hands back with an event: which session and end, or, with a negative id, which listener
// or the inbox. gen tells a session from an earlier tenant of its slot.
type token struct{ id, gen int32 }

func (s *session) token(e int) token { return token{s.slot<<1 | int32(e), s.gen} }

// sessionRef names a session that may be gone when it is looked up.
type sessionRef struct{ slot, gen int32 }

func (s *session) ref() sessionRef { return sessionRef{s.slot, s.gen} }

// pack is the ref as a waiter carries it.
func (r sessionRef) pack() uint64 { return uint64(uint32(r.slot))<<32 | uint64(uint32(r.gen)) }

func unpackRef(x uint64) sessionRef { return sessionRef{int32(x >> 32), int32(uint32(x))} }

// tableChunk sessions are one piece of memory. The allocator rounds it up to whole pages of 8 KiB, and 128
// sessions of 320 bytes are five of them: TestTable_SessionsFillTheirPages.
const tableChunk = 128

// table holds the sessions of a loop, in chunks that never move.
type table struct {
	chunks []*[tableChunk]session
	free   []int32
	used   int
	waits  []*wait // free ones
}

// take returns a session that is blank but for slot and gen.
func (t *table) take() *session {
	if len(t.free) == 0 {
		base := int32(len(t.chunks) * tableChunk)
		t.chunks = append(t.chunks, new([tableChunk]session))
		for i := int32(tableChunk - 1); i >= 0; i-- {
			t.free = append(t.free, base+i)
		}
	}
	slot := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.used++
	s := t.at(slot)
	*s = session{slot: slot, gen: s.gen}
	return s
}

// put takes back a session that nothing refers to but old events.
func (t *table) put(s *session) {
	t.endWait(s)
	*s = session{slot: s.slot, gen: s.gen + 1}
	t.free = append(t.free, s.slot)
	t.used--
}

// wait returns the session's wait, which it has from now on.
func (t *table) wait(s *session) *wait {
	if s.wait != nil {
		return s.wait
	}
	if n := len(t.waits); n > 0 {
		s.wait, t.waits = t.waits[n-1], t.waits[:n-1]
	} else {
		s.wait = new(wait)
	}
	return s.wait
}

// endWait takes the session's wait back, if it has one.
func (t *table) endWait(s *session) {
	w := s.wait
	if w == nil {
		return
	}
	clear(w.tried)
	*w = wait{tried: w.tried[:0]}
	t.waits = append(t.waits, w)
	s.wait = nil
}

func (t *table) at(slot int32) *session { return &t.chunks[slot/tableChunk][slot%tableChunk] }

// find returns the session that ref names, or nil when it has ended.
func (t *table) find(ref sessionRef) *session {
	if int(ref.slot) >= len(t.chunks)*tableChunk {
		return nil
	}
	if s := t.at(ref.slot); s.gen == ref.gen && s.phase != phaseFree {
		return s
	}
	return nil
}

// each calls f for every session; f may end it.
func (t *table) each(f func(*session)) {
	for _, c := range t.chunks {
		for i := range c {
			if c[i].phase != phaseFree {
				f(&c[i])
			}
		}
	}
}
