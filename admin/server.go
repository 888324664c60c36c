package admin

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// Limits of a request, so that a caller who stalls or babbles costs little. A handler that must wait for an
// outcome moves its own deadlines with http.ResponseController.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 60 * time.Second
	maxHeader     = 64 << 10
	// maxConns is how many connections the HTTP address holds at once, maxControlConns the control socket.
	maxConns        = 64
	maxControlConns = 192
)

// httpShares and controlShares divide them. An own address has more than a browser opens, and than a scraper
// needs.
var (
	httpShares    = shares{total: maxConns, reserve: 8, each: 24}
	controlShares = shares{total: maxControlConns, reserve: 32, each: 64}
)

// Server is the control API of one lb. Make it with NewServer.
type Server struct {
	// Control makes the changes that callers ask for. Set it before Serve; with nil, the Server refuses all
	// of them.
	Control Control

	src       Sources
	token     *tokenFile // nil is none
	ends      []*serverEnd
	ringOnce  sync.Once
	events    *ring[api.Event] // by eventRing
	followers followers
	lines     sync.Map // of pool names to *ring[api.WorkerLine]
	refused   refusals
	rates     rates
	history   history
	clients   clients
	inherited Frozen // what NewServerFrom was given
	close     sync.Once
	done      chan struct{} // closed when Close began
	who       identifier
	failures  acceptFailures

	mu      sync.Mutex
	frozen  chan struct{} // closed when Freeze began; replaced by Thaw; nil before it is asked for
	served  chan struct{} // closed when the present Serve has ended; nil when there is none
	stopped bool          // Freeze has begun
}

// serverEnd is one listener and what serves it.
type serverEnd struct {
	name     string // controlName or httpName
	address  string // as the config has it
	listener *limitListener
	server   *http.Server
	conns    connSet
}

// NewServer opens the control socket and the HTTP address of cfg, either of which may be off. Nobody is
// served before Serve; the caller owes a Close in any case. Errors are those of the addresses and of the
// token's file, ErrSocketInUse, ErrNotSocket and ErrToken among them; then nothing stays open.
func NewServer(cfg Config, src Sources) (*Server, error) { return NewServerFrom(cfg, src, Frozen{}) }

// guarded puts a guard before a handler.
func (s *Server) guarded(host string, next http.Handler) *guard {
	return &guard{host: host, token: s.token, refused: &s.refused, next: next}
}

// add adds a listener that holds connections within its shares.
func (s *Server) add(name string, l net.Listener, conns shares, handler http.Handler) *serverEnd {
	e := &serverEnd{name: name, listener: limitConns(l, conns)}
	e.listener.identify = s.who.identify
	e.listener.failed = func(err error) {
		s.failures.count(name)
		s.report(slog.LevelError, "admin accept "+name, "cannot accept a connection to the control API; trying again", "socket", name, "error", err)
	}
	e.listener.refused = func(p Caller) {
		s.refused.count(refusedShare)
		s.report(slog.LevelWarn, "admin share "+p.share(), "refused a connection to the control API: too many at once",
			"socket", name, "of", p.share())
	}
	e.server = s.newHTTPServer(e, handler)
	s.ends = append(s.ends, e)
	return e
}

// newHTTPServer makes what serves an end, once: package http has no way to take a stopped server up again.
func (s *Server) newHTTPServer(e *serverEnd, handler http.Handler) *http.Server {
	log := s.src.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &http.Server{
		Handler:           handler,
		ConnContext:       withCaller,
		ConnState:         e.changed,
		ReadHeaderTimeout: headerTimeout,
		ReadTimeout:       readTimeout,
		WriteTimeout:      writeTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    maxHeader,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// Addrs are the addresses that the server listens on: the control socket first, where there is one.
func (s *Server) Addrs() []net.Addr {
	var addrs []net.Addr
	for _, e := range s.ends {
		addrs = append(addrs, e.listener.Addr())
	}
	return addrs
}

// Serve answers requests until Close or Freeze, and then returns nil. If one of its listeners fails it closes
// all and returns the error. It runs once at a time; after a Freeze, Thaw comes first.
func (s *Server) Serve() error {
	frozen, ended := s.begin()
	if ended == nil {
		return nil
	}
	defer close(ended) // last: Freeze waits for it
	failed := make(chan error, len(s.ends))
	var keepers sync.WaitGroup
	defer keepers.Wait()
	for _, e := range s.ends {
		go s.serveEnd(e, frozen, failed)
		if e.name == controlName {
			keepers.Go(func() { s.keepSocket(e, frozen) })
		}
	}
	keepers.Go(func() { s.history.run(&s.src, s.done, frozen) })
	var err error
	for range s.ends {
		if e := <-failed; e != nil && err == nil {
			err = fmt.Errorf("cannot serve the control API: %w", e)
			s.Close(context.Background())
		}
	}
	select { // with no listener there is nothing else to wait for
	case <-s.done:
	case <-frozen:
	}
	return err
}

// begin notes that Serve runs; ended is nil when it must not.
func (s *Server) begin() (frozen <-chan struct{}, ended chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopped {
		return nil, nil
	}
	s.served = make(chan struct{})
	return s.haltLocked(), s.served
}

// halt is closed when those who follow something shall be sent away.
func (s *Server) halt() <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.haltLocked()
}

func (s *Server) haltLocked() chan struct{} {
	if s.frozen == nil {
		s.frozen = make(chan struct{})
	}
	return s.frozen
}

func (s *Server) serveEnd(e *serverEnd, frozen <-chan struct{}, failed chan<- error) {
	err := e.server.Serve(pausing{e.listener})
	select {
	case <-s.done:
		err = nil
	case <-frozen:
		err = nil
	default:
	}
	failed <- err
}

// Close stops listening, removes the control socket, and waits for the requests under way until ctx is done;
// those that are left then are cut, and the error is ctx's. A Server that never served is closed too.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	s.close.Do(func() {
		close(s.done)
		s.closeListeners()
		for _, server := range s.servers() {
			if err := server.Shutdown(ctx); err != nil {
				errs = append(errs, err)
				server.Close()
			}
		}
	})
	return errors.Join(errs...)
}

func (s *Server) servers() (all []*http.Server) {
	s.mu.Lock() // Thaw may replace them
	defer s.mu.Unlock()
	for _, e := range s.ends {
		all = append(all, e.server)
	}
	return all
}

func (s *Server) closeListeners() {
	for _, e := range s.ends {
		e.listener.Close()
	}
	s.who.kernel.close()
}

// ServeSelf has connections of this very process served, which are refused otherwise: a session that lb
// relays to itself. It is for a test whose client runs in the server's process, and is called before Serve.
func (s *Server) ServeSelf() { s.who.serveSelf = true }

// report tells of what may repeat.
func (s *Server) report(level slog.Level, key, msg string, args ...any) {
	if s.src.Report != nil {
		s.src.Report(level, key, msg, args...)
	}
}

// changed is the http.Server.ConnState.
func (e *serverEnd) changed(c net.Conn, state http.ConnState) {
	if lc, ok := c.(*limitedConn); ok {
		lc.changed(state)
	}
	e.conns.changed(c, state)
}

// acceptFailures counts accepts that failed, by the name of the socket. Safe for concurrent use.
type acceptFailures struct{ control, http atomic.Uint64 }

func (f *acceptFailures) of(name string) *atomic.Uint64 {
	if name == controlName {
		return &f.control
	}
	return &f.http
}

func (f *acceptFailures) count(name string) { f.of(name).Add(1) }
