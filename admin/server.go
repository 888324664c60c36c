package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Limits of a request, so that a caller who stalls or babbles costs little. A handler that must wait for an outcome
// moves its own deadlines with http.ResponseController.
const (
	headerTimeout = 5 * time.Second
	readTimeout   = 10 * time.Second
	writeTimeout  = 30 * time.Second
	idleTimeout   = 60 * time.Second
	maxHeader     = 64 << 10
	// maxConns is how many connections the HTTP address holds at once, maxControlConns the control socket; more wait in
	// the kernel's queue.
	maxConns        = 64
	maxControlConns = 192
)

// Server is the control API of one lb. Make it with NewServer.
type Server struct {
	// Control are the changes that callers may make. Set it before Serve; the zero value offers none.
	Control Control

	src       Sources
	token     *tokenFile // nil is none
	ends      []serverEnd
	events    eventLog
	followers followers
	lines     sync.Map // of pool names to *lineLog
	refused   refusals
	rates     rates
	close     sync.Once
	done      chan struct{} // closed when Close began
}

// serverEnd is one listener and what serves it.
type serverEnd struct {
	listener net.Listener
	server   *http.Server
}

// NewServer opens the control socket and the HTTP address of cfg, either of which may be off. Nobody is served before
// Serve; the caller owes a Close in any case. Errors are those of the addresses and of the token's file, ErrSocketInUse,
// ErrNotSocket and ErrToken among them; then nothing stays open.
func NewServer(cfg Config, src Sources) (*Server, error) {
	s := &Server{src: src, done: make(chan struct{})}
	if cfg.TokenFile != "" {
		s.token = &tokenFile{path: cfg.TokenFile}
		if err := s.token.check(); err != nil {
			return nil, err
		}
	}
	handler := s.mux(s.routes())
	if cfg.Socket != "" {
		mode, err := strconv.ParseUint(cfg.SocketMode, 8, 9)
		if err != nil {
			return nil, fmt.Errorf("cannot listen on control socket %q: socket_mode: %w", cfg.Socket, err)
		}
		group, err := groupID(cfg.SocketGroup)
		if err != nil {
			return nil, fmt.Errorf("cannot listen on control socket %q: %w", cfg.Socket, err)
		}
		l, err := listenControl(cfg.Socket, fs.FileMode(mode), group)
		if err != nil {
			return nil, err
		}
		s.add(l, maxControlConns, handler)
	}
	if cfg.HTTP != "" {
		l, err := net.Listen("tcp", cfg.HTTP)
		if err != nil {
			s.closeListeners()
			return nil, fmt.Errorf("cannot listen on admin.http %q: %w", cfg.HTTP, err)
		}
		s.add(l, maxConns, s.guarded(hostOnly(cfg.HTTP), handler))
	}
	return s, nil
}

// guarded puts a guard before a handler.
func (s *Server) guarded(host string, next http.Handler) *guard {
	return &guard{host: host, token: s.token, refused: &s.refused, next: next}
}

// add adds a listener that holds up to conns connections.
func (s *Server) add(l net.Listener, conns int, handler http.Handler) {
	log := s.src.Log
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	s.ends = append(s.ends, serverEnd{
		listener: limitConns(l, conns),
		server: &http.Server{
			Handler:           handler,
			ConnContext:       withPeer,
			ReadHeaderTimeout: headerTimeout,
			ReadTimeout:       readTimeout,
			WriteTimeout:      writeTimeout,
			IdleTimeout:       idleTimeout,
			MaxHeaderBytes:    maxHeader,
			ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
		},
	})
}

// Addrs are the addresses that the server listens on: the control socket first, where there is one.
func (s *Server) Addrs() []net.Addr {
	var addrs []net.Addr
	for _, e := range s.ends {
		addrs = append(addrs, e.listener.Addr())
	}
	return addrs
}

// Serve answers requests until Close, and then returns nil. If one of its listeners fails it closes all and gives the
// error. It is called once.
func (s *Server) Serve() error {
	failed := make(chan error, len(s.ends))
	for i := range s.ends {
		go s.serveEnd(&s.ends[i], failed)
	}
	var err error
	for range s.ends {
		if e := <-failed; e != nil && err == nil {
			err = fmt.Errorf("cannot serve the control API: %w", e)
			s.Close(context.Background())
		}
	}
	<-s.done // with no listener there is nothing else to wait for
	return err
}

func (s *Server) serveEnd(e *serverEnd, failed chan<- error) {
	err := e.server.Serve(e.listener)
	select {
	case <-s.done:
		err = nil
	default:
	}
	failed <- err
}

// Close stops listening, removes the control socket, and waits for the requests under way until ctx is done; those
// that are left then are cut, and the error is ctx's. A Server that never served is closed too.
func (s *Server) Close(ctx context.Context) error {
	var errs []error
	s.close.Do(func() {
		close(s.done)
		s.closeListeners()
		for _, e := range s.ends {
			if err := e.server.Shutdown(ctx); err != nil {
				errs = append(errs, err)
				e.server.Close()
			}
		}
	})
	return errors.Join(errs...)
}

func (s *Server) closeListeners() {
	for _, e := range s.ends {
		e.listener.Close()
	}
}
