package admin

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/descriptor"
)

// Names of a Server's sockets.
const (
	controlName = "control"
	httpName    = "http"
)

// Frozen is a Server at rest, for the lb that takes over from this one: what it listens on, and what it
// knows.
type Frozen struct {
	Sockets []Socket `json:"sockets"`
	State   State    `json:"state"`
	// Cut is how many requests had to be cut; Running is how many of their handlers had not returned when
	// Freeze did.
	Cut     int `json:"-"`
	Running int `json:"-"`
}

// Socket is a listening socket of a Server.
type Socket struct {
	Name    string `json:"name"`    // "control" or "http"
	Address string `json:"address"` // as the config has it
	// Dev and Ino say which file the control socket's is; 0 is not known.
	Dev uint64 `json:"dev,omitempty"`
	Ino uint64 `json:"ino,omitempty"`
	// File is a duplicate of the socket, closed on exec. Who has the Frozen closes it.
	File *os.File `json:"-"`
}

// State is what a Server counts and remembers. A field that a reader does not find is as it is at a first
// start; one that it does not know is passed over.
type State struct {
	Refused map[string]uint64      `json:"refused,omitempty"` // by reason
	Events  []api.Event            `json:"events,omitempty"`
	Lines   map[string]SavedLines  `json:"lines,omitempty"` // by pool
	Samples []SavedConnectionCount `json:"samples,omitempty"`
}

// SavedLines are the last lines of a pool's workers.
type SavedLines struct {
	Lines []api.WorkerLine `json:"lines"`
	Last  uint64           `json:"last"` // how many lines there have been
}

// SavedConnectionCount is how many connections there had been at one moment, for the rates of the next
// seconds.
type SavedConnectionCount struct {
	Time      time.Time         `json:"time"`
	Backends  map[string]uint64 `json:"backends"` // by POOL/BACKEND
	Listeners map[string]uint64 `json:"listeners"`
}

// Close closes the files.
func (f *Frozen) Close() {
	for _, x := range f.Sockets {
		if x.File != nil {
			x.File.Close()
		}
	}
}

// socket is the inherited one of that name and address, or nil.
func (f *Frozen) socket(name, address string) *Socket {
	for i := range f.Sockets {
		if x := &f.Sockets[i]; x.Name == name && x.Address == address && x.File != nil {
			return x
		}
	}
	return nil
}

// Errors of Freeze.
var (
	errFrozen = errors.New("the control API is frozen already")
	errClosed = errors.New("the control API is closed")
)

const (
	// silentPatience is how long a caller who has connected may take to say something when the server
	// freezes.
	silentPatience = 100 * time.Millisecond
	// cutPatience is how long the handlers of requests that were cut may take to notice.
	cutPatience = 250 * time.Millisecond
)

// Freeze brings the server to rest: nobody is accepted any more, and newcomers wait in the kernel's queue,
// for the sockets go on listening. Who follows events or logs is sent away at once, an idle connection is
// closed, and the requests under way may finish until ctx is done; then they are cut, which is no error. A
// connection that was given away with Reply.Hand is not the server's any more. When Freeze returns, Serve has
// returned, and no goroutine of the server runs but the Running ones. State is as it is then; it goes on as
// long as somebody publishes, see Server.State.
//
// What follows is an exec, or Thaw and another Serve, or Close. After an error the server is as before.
func (s *Server) Freeze(ctx context.Context) (*Frozen, error) {
	f := new(Frozen)
	fail := func(err error) (*Frozen, error) {
		f.Close()
		s.pin(false)
		return nil, err
	}
	s.pin(true)
	for _, e := range s.ends {
		x, err := e.socket()
		if err != nil {
			return fail(fmt.Errorf("cannot freeze the control API: %w", err))
		}
		f.Sockets = append(f.Sockets, x)
	}
	served, err := s.halted()
	if err != nil {
		return fail(err)
	}
	for _, e := range s.ends {
		e.listener.pause()
	}
	if served != nil {
		<-served
	}
	var ending sync.WaitGroup
	var mu sync.Mutex
	for _, e := range s.ends {
		ending.Go(func() {
			cut, running := e.finish(ctx)
			mu.Lock()
			defer mu.Unlock()
			f.Cut += cut
			f.Running += running
		})
	}
	ending.Wait()
	f.State = s.State()
	return f, nil
}

// pin keeps the sockets as they are, or no longer.
func (s *Server) pin(on bool) {
	for _, e := range s.ends {
		e.listener.pin(on)
	}
}

// halted sends the followers away, and returns what tells that Serve has returned; nil if it does not run.
func (s *Server) halted() (served <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case over(s.done):
		return nil, errClosed
	case s.stopped:
		return nil, errFrozen
	}
	s.stopped = true
	close(s.haltLocked())
	return s.served, nil
}

// Thaw undoes Freeze, so that Serve can be called again; for a server that is not frozen it does nothing. It
// does not close what Freeze gave.
func (s *Server) Thaw() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopped {
		return
	}
	s.stopped, s.frozen, s.served = false, nil, nil
	for _, e := range s.ends {
		e.server = s.newHTTPServer(e, e.server.Handler)
		if c, ok := e.listener.inner().(syscall.Conn); ok {
			setNonblock(c)
		}
		e.listener.resume()
	}
	s.pin(false)
}

// socket duplicates the listening socket.
func (e *serverEnd) socket() (Socket, error) {
	x := Socket{Name: e.name, Address: e.address}
	l := e.listener.inner()
	if c, ok := l.(*controlSocket); ok {
		x.Dev, x.Ino = c.dev, c.ino
	}
	conn, ok := l.(syscall.Conn)
	if !ok {
		return x, fmt.Errorf("%v is no socket", l.Addr())
	}
	var err error
	x.File, err = descriptor.CopyFile(conn, e.name)
	return x, err
}

// finish ends the connections of an end that accepts no more.
func (e *serverEnd) finish(ctx context.Context) (cut, running int) {
	e.server.SetKeepAlivesEnabled(false) // and the idle ones are closed
	silence := time.NewTimer(silentPatience)
	defer silence.Stop()
wait:
	for {
		ended := e.conns.wait()
		select {
		case <-ended:
			break wait
		case <-silence.C:
			e.conns.closeSilent()
		case <-ctx.Done():
			break wait
		}
	}
	cut = e.conns.count()
	e.server.Close()
	if cut == 0 {
		return 0, 0
	}
	late := time.NewTimer(cutPatience)
	defer late.Stop()
	select {
	case <-e.conns.wait():
	case <-late.C:
	}
	return cut, e.conns.count()
}

// connSet knows the connections of an end that have a goroutine. Package http knows them too, and tells only
// by looking again and again.
type connSet struct {
	mu    sync.Mutex
	conns map[net.Conn]http.ConnState
	empty chan struct{} // closed when there are none; nil while nobody waits
}

// changed is the http.Server.ConnState.
func (c *connSet) changed(conn net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch state {
	case http.StateClosed, http.StateHijacked:
		delete(c.conns, conn)
	default:
		if c.conns == nil {
			c.conns = map[net.Conn]http.ConnState{}
		}
		c.conns[conn] = state
	}
	if len(c.conns) == 0 && c.empty != nil {
		close(c.empty)
		c.empty = nil
	}
}

// wait gives what is closed once there are none; nobody is to come.
func (c *connSet) wait() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.empty == nil {
		c.empty = make(chan struct{})
	}
	empty := c.empty
	if len(c.conns) == 0 {
		close(c.empty)
		c.empty = nil
	}
	return empty
}

func (c *connSet) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.conns)
}

// closeSilent closes those on which no request has come yet.
func (c *connSet) closeSilent() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn, state := range c.conns {
		if state == http.StateNew {
			conn.Close()
		}
	}
}

// State is what the server counts and remembers now. While the server is frozen others may still publish; who
// waits for them to come to rest takes it afterwards. Safe for concurrent use.
func (s *Server) State() State {
	st := State{Refused: map[string]uint64{}, Events: s.Events(), Lines: map[string]SavedLines{}, Samples: s.rates.save()}
	for i := range s.refused {
		st.Refused[refusalNames[i]] = s.refused[i].Load()
	}
	s.lines.Range(func(pool, l any) bool {
		lines, last := l.(*ring[api.WorkerLine]).save()
		st.Lines[pool.(string)] = SavedLines{Lines: lines, Last: last}
		return true
	})
	return st
}

// restore is for a server that has counted and published nothing yet.
func (s *Server) restore(st State) {
	for i, name := range refusalNames {
		s.refused[i].Store(st.Refused[name])
	}
	s.RestoreEvents(st.Events)
	for pool, saved := range st.Lines {
		s.lineRing(pool).restore(saved.Lines, saved.Last)
	}
	s.rates.restore(st.Samples)
}
