package admin

import (
	"context"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/leaktest"
)

// TestMain plays the holder of a socket, or runs the tests and looks for what they leave behind.
func TestMain(m *testing.M) {
	if os.Getenv(askVariable) != "" {
		askAsProcess()
	}
	if os.Getenv(holderVariable) != "" {
		holdSocket()
	}
	os.Exit(leaktest.Run(m))
}

// anyPolicy chooses the first eligible backend.
type anyPolicy struct{ members []*backends.Backend }

func (p *anyPolicy) Reset(members []*backends.Backend) { p.members = members }
func (p *anyPolicy) Update(*backends.Backend)          {}
func (p *anyPolicy) Pick(*backends.Request) *backends.Backend {
	for _, b := range p.members {
		if b.Eligible() {
			return b
		}
	}
	return nil
}

// held returns how many connections have a place.
func (l *limitListener) held() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.open)
}

// selfServing has a server serve the test's own process.
func selfServing(s *Server, err error) (*Server, error) {
	if s != nil {
		s.ServeSelf()
	}
	return s, err
}

// newPool makes a pool with backends of the given names, which are up.
func newPool(t testing.TB, name string, members ...string) *backends.Pool {
	t.Helper()
	p := backends.NewPool(name, backends.DefaultConfig(), new(anyPolicy))
	for _, m := range members {
		cfg := backends.DefaultBackendConfig()
		cfg.Name, cfg.Address = m, "unix:/run/"+m+".sock"
		if _, err := p.Add(cfg, backends.HealthUp); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

// socketPath gives a path for a control socket in a folder of its own.
func socketPath(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "lb-admin-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return filepath.Join(dir, "admin.sock")
}

// newServer makes a server on a control socket of its own and, with http, on a free loopback port.
func newServer(t testing.TB, src Sources, http bool) (s *Server, socket, address string) {
	t.Helper()
	cfg := Config{Socket: socketPath(t), SocketMode: "0660"}
	if http {
		cfg.HTTP = "127.0.0.1:0"
	}
	s, err := selfServing(NewServer(cfg, src))
	if err != nil {
		t.Fatal(err)
	}
	return s, cfg.Socket, s.Addrs()[len(s.Addrs())-1].String()
}

// serve serves s until the end of the test.
func serve(t testing.TB, s *Server) {
	t.Helper()
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		if err := s.Close(context.Background()); err != nil {
			t.Errorf("Close: got %v; want nil", err)
		}
		if err := <-served; err != nil {
			t.Errorf("Serve: got %v; want nil after Close", err)
		}
	})
}

// askControl sends a request over the control socket of s. The caller closes the body of the answer.
func askControl(t testing.TB, s *Server, method, path, body string) *http.Response {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://lb"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "unix", s.Addrs()[0].String())
	}}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	return resp
}
