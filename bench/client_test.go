package bench

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// server returns the address of a web server that counts its connections.
func server(t *testing.T, handler http.HandlerFunc) (addr string, opened *atomic.Int64, s *httptest.Server) {
	t.Helper()
	opened = new(atomic.Int64)
	s = httptest.NewUnstartedServer(handler)
	s.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			opened.Add(1)
		}
	}
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String(), opened, s
}

func TestProbe_ChecksStatusAndLength(t *testing.T) {
	f := func(want string, handler http.HandlerFunc) {
		t.Helper()
		addr, _, _ := server(t, handler)
		err := Probe(t.Context(), addr, "/64k")
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("got %v; want %q", err, want)
		}
	}
	f("", serveBodies)
	f("of status 404", http.NotFound)
	f("of 3 bytes", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("abc")) })
	f("cannot read reply", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "65536")
		w.Write([]byte("abc"))
	})
}

func TestSessions_EachIsAConnection(t *testing.T) {
	addr, opened, srv := server(t, serveBodies)
	s, err := OpenSessions(t.Context(), addr, "/small", 40)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if err := s.Check(t.Context()); err != nil {
		t.Error(err)
	}
	if got := opened.Load(); got != 40 {
		t.Errorf("got %d connections; want 40", got)
	}
	srv.CloseClientConnections()
	if err := s.Check(t.Context()); err == nil {
		t.Error("got no error from lost sessions")
	}
}

func TestOpenSessions_ReportsFailure(t *testing.T) {
	addr, _, _ := server(t, http.NotFound)
	if s, err := OpenSessions(t.Context(), addr, "/small", 3); err == nil {
		s.Close()
		t.Error("got no error from a server without the path")
	}
}

func TestOpenSessions_EndsWithContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	addr, _, _ := server(t, func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	})
	if _, err := OpenSessions(ctx, addr, "/small", 1); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v; want %v", err, context.Canceled)
	}
}

func TestWarmUp_NewConnectionPerRequest(t *testing.T) {
	const requests = 20
	// opened returns how many connections the first requests took. The last of them ends the warm-up.
	opened := func(newConn bool) int64 {
		t.Helper()
		ctx, cancel := context.WithCancel(t.Context())
		var served atomic.Int64
		addr, opened, _ := server(t, func(w http.ResponseWriter, r *http.Request) {
			if served.Add(1) == requests {
				cancel()
			}
			serveBodies(w, r)
		})
		if err := WarmUp(ctx, addr, "/small", 2, newConn, testLimit); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v; want %v", err, context.Canceled)
		}
		return opened.Load()
	}
	if got := opened(false); got > 2 {
		t.Errorf("got %d connections; want at most 2", got)
	}
	if got := opened(true); got < requests {
		t.Errorf("got %d connections for %d requests; want one for each", got, requests)
	}
}

func TestWarmUp_EndsByItself(t *testing.T) {
	addr, _, _ := server(t, serveBodies)
	if err := WarmUp(t.Context(), addr, "/small", 2, false, time.Millisecond); err != nil {
		t.Error(err)
	}
}
