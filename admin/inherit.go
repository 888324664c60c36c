package admin

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
)

// NewServerFrom is NewServer for an lb that takes over from another: where a socket of inherited has the name
// and the address that cfg asks for, it is used, and none is opened. What was counted and remembered goes on.
//
// The files of inherited stay as they are, and the caller's, also on an error: until Settle, the one that
// gave them can have them back. The caller owes a Close, or an Abandon if he gives up.
func NewServerFrom(cfg Config, src Sources, inherited Frozen) (_ *Server, err error) {
	s := &Server{src: src, done: make(chan struct{}), inherited: inherited}
	defer func() {
		if err != nil {
			s.Abandon()
		}
	}()
	if cfg.TokenFile != "" {
		s.token = &tokenFile{path: cfg.TokenFile}
		if err := s.token.check(); err != nil {
			if len(inherited.Sockets) == 0 {
				return nil, err
			}
			s.warn("there is no token until its file is right", err) // sessions must not end for it
		}
	}
	handler := s.mux(s.routes())
	if cfg.Socket != "" {
		l, err := s.controlListener(cfg)
		if err != nil {
			return nil, err
		}
		s.add(controlName, l, controlShares, handler).address = cfg.Socket
	}
	if cfg.HTTP != "" {
		l, err := s.httpListener(cfg)
		if err != nil {
			return nil, err
		}
		s.add(httpName, l, httpShares, s.guarded(hostOnly(cfg.HTTP), handler)).address = cfg.HTTP
	}
	s.restore(inherited.State)
	return s, nil
}

// controlListener inherits or opens the control socket. One whose file is gone is opened again: nobody could
// find it.
func (s *Server) controlListener(cfg Config) (*controlSocket, error) {
	mode, err := strconv.ParseUint(cfg.SocketMode, 8, 9)
	if err != nil {
		return nil, fmt.Errorf("cannot listen on control socket %q: socket_mode: %w", cfg.Socket, err)
	}
	group, err := groupID(cfg.SocketGroup)
	if err != nil {
		err = fmt.Errorf("cannot listen on control socket %q: %w", cfg.Socket, err)
	}
	from := s.inherited.socket(controlName, cfg.Socket)
	if from == nil {
		if err != nil {
			return nil, err
		}
		return listenControl(cfg.Socket, fs.FileMode(mode), group)
	}
	// What cannot be done by name is no reason to end: the socket itself is here.
	if err != nil {
		s.warn("the control socket keeps its group", err)
		group = -1
	}
	if _, err := os.Lstat(cfg.Socket); errors.Is(err, fs.ErrNotExist) {
		l, err := listenControl(cfg.Socket, fs.FileMode(mode), group)
		if err == nil {
			return l, nil
		}
		s.warn("no client can reach the control socket, whose file is gone", err)
	}
	return inheritControl(*from, s.warn, fs.FileMode(mode), group)
}

func (s *Server) warn(what string, err error) {
	if s.src.Log != nil {
		s.src.Log.Warn(what, "error", err)
	}
}

// httpListener inherits or opens the HTTP address.
func (s *Server) httpListener(cfg Config) (net.Listener, error) {
	from := s.inherited.socket(httpName, cfg.HTTP)
	if from == nil {
		l, err := net.Listen("tcp", cfg.HTTP)
		if err != nil {
			return nil, fmt.Errorf("cannot listen on admin.http %q: %w", cfg.HTTP, err)
		}
		return l, nil
	}
	l, err := net.FileListener(from.File)
	if err != nil {
		return nil, fmt.Errorf("cannot take over admin.http %q: %w", cfg.HTTP, err)
	}
	return l, nil
}

// Settle ends what NewServerFrom left open for a way back: it closes every file of inherited, and removes the
// file of a control socket that this Server does not have. Without it they stay.
func (s *Server) Settle() {
	for _, x := range s.inherited.Sockets {
		if x.Name == controlName && s.end(x.Name, x.Address) == nil {
			removeOwn(x.Address, x.Dev, x.Ino)
		}
		if x.File != nil {
			x.File.Close()
		}
	}
	s.inherited.Sockets = nil
}

// Abandon is Close for a Server that took over and gives back: it closes what it opened itself, and leaves
// the inherited sockets and their files to the one that gave them. It is called instead of Serve.
func (s *Server) Abandon() {
	for _, e := range s.ends {
		if c, ok := e.listener.inner().(*controlSocket); ok && c.inherited {
			c.dev, c.ino = 0, 0 // so that the file stays
		}
	}
	s.Close(context.Background())
}

// end is the end of that name and address, or nil.
func (s *Server) end(name, address string) *serverEnd {
	for _, e := range s.ends {
		if e.name == name && e.address == address {
			return e
		}
	}
	return nil
}
