package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// ask sends a request over TCP, with a Host and an Origin where they are not empty.
func ask(t *testing.T, method, address, path, host, origin string) (status int, body string) {
	t.Helper()
	req, err := http.NewRequest(method, "http://"+address+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if host != "" {
		req.Host = host
	}
	if origin != "" {
		req.Header.Set("Origin", origin)
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// testSources are two listeners and a pool of two backends, one of which carries and one of which is down.
func testSources(t testing.TB) Sources {
	app := newPool(t, "app", "w1", "w2")
	w1, w2 := app.Get("w1"), app.Get("w2")
	if _, err := app.Acquire(&backends.Request{}, new(backends.Waiter)); err != nil {
		t.Fatal(err)
	}
	w1.Connected(100 * time.Microsecond)
	w1.Counters.BytesIn.Add(11)
	w1.Counters.BytesOut.Add(22)
	w1.SessionTime.Observe(2 * time.Second)
	w2.ConnectFailed(backends.ConnectRefused)
	app.SetHealth(w2, backends.HealthDown, "connection refused")
	app.SetAdmin(w2, backends.AdminDrain, "by root")
	started := time.Now().Add(-time.Minute)
	return Sources{
		Pools: func() []*backends.Pool { return []*backends.Pool{app} },
		Listeners: func() []api.ListenerStatus {
			return []api.ListenerStatus{
				{Name: "web", Addresses: []string{"127.0.0.1:8080"}, Pool: "app", Active: 1, Connections: 7, BytesIn: 11, BytesOut: 22},
				{Name: "local", Pool: "app"},
			}
		},
		Process: func() api.ProcessStatus {
			return api.ProcessStatus{
				Version: "1.2.3", Revision: "abc", Started: started, Sessions: 1, MaxSessions: 1000,
				AcceptErrors: map[string]uint64{"emfile": 2, "other": 0},
				Pipes:        3, SplicedBytes: 4, AccessLogDropped: 5, SessionLimitReached: 6,
			}
		},
		Probe: func(b *backends.Backend) api.ProbeStatus {
			if b == w2 {
				return api.ProbeStatus{Time: started, Error: "connection refused", Duration: 0.5}
			}
			return api.ProbeStatus{}
		},
	}
}

func TestStatus_ReachesTheClient(t *testing.T) {
	s, socket, _ := newServer(t, testSources(t), false)
	serve(t, s)
	st, err := api.NewClient(socket).Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if st.PID != os.Getpid() || st.Version != "1.2.3" || st.Sessions != 1 || st.MaxSessions != 1000 || st.Uptime < 60 {
		t.Errorf("process: got %+v; want this pid, version 1.2.3, 1 of 1000 sessions, up for a minute", st.ProcessStatus)
	}
	if len(st.Listeners) != 2 || st.Listeners[0].Connections != 7 {
		t.Errorf("listeners: got %+v; want two, the first with 7 connections", st.Listeners)
	}
	if len(st.Pools) != 1 || len(st.Pools[0].Backends) != 2 {
		t.Fatalf("pools: got %+v; want one of two backends", st.Pools)
	}
	pool, w1, w2 := st.Pools[0], st.Pools[0].Backends[0], st.Pools[0].Backends[1]
	if pool.Name != "app" || pool.Balance != "leastconn" || pool.Active != 1 || pool.Selectable != 1 {
		t.Errorf("pool: got %+v; want app, leastconn, 1 active, 1 selectable", pool)
	}
	if w1.Active != 1 || w1.Connections != 1 || w1.BytesIn != 11 || w1.BytesOut != 22 || !w1.Selectable || w1.Share != 1 || w1.LastProbe != nil {
		t.Errorf("w1: got %+v; want 1 active with all of the share, and no probe", w1)
	}
	if w1.ConnectP50 <= 0 || w1.ConnectP50 > 0.001 || w1.ConnectP99 < w1.ConnectP50 {
		t.Errorf("connect times of w1: got %v and %v; want about 100 µs", w1.ConnectP50, w1.ConnectP99)
	}
	if w2.Health != "down" || w2.Admin != "drain" || w2.Reason != "by root" || w2.Share != 0 || w2.ConnectErrors["refused"] != 1 {
		t.Errorf("w2: got %+v; want it down, draining by root, without a share, with one refused connect", w2)
	}
	if w2.LastProbe == nil || w2.LastProbe.OK || w2.LastProbe.Error != "connection refused" {
		t.Errorf("last probe of w2: got %+v; want a refusal", w2.LastProbe)
	}
}

// The names of fields are a promise to scripts.
func TestStatus_FieldNamesStay(t *testing.T) {
	src := testSources(t)
	b, err := json.Marshal(src.Status())
	if err != nil {
		t.Fatal(err)
	}
	var top map[string]any
	if err := json.Unmarshal(b, &top); err != nil {
		t.Fatal(err)
	}
	wantKeys(t, "status", top, "accept_errors access_log_dropped handed_off_sessions handoff_ends_lost listeners log_dropped max_sessions pid pipes pools revision session_limit_reached sessions spliced_bytes started stopping upgrade_sessions upgrade_standstill_seconds upgrades uptime_seconds version")
	first := func(v any) map[string]any { return v.([]any)[0].(map[string]any) }
	wantKeys(t, "listener", first(top["listeners"]), "active addresses bytes_in bytes_out connections connections_per_second max_conns name pool refused")
	pool := first(top["pools"])
	wantKeys(t, "pool", pool, "active backends balance handoff name queue selectable")
	wantKeys(t, "backend", first(pool["backends"]), "accept_queue active address admin backup bytes_in bytes_out configured_weight connect_errors connect_p50_seconds connect_p99_seconds connections connections_per_second first_byte handoff health last_probe last_resort max_conns name reason selectable session share since weight")
	down := pool["backends"].([]any)[1].(map[string]any)
	wantKeys(t, "probe", down["last_probe"].(map[string]any), "duration_seconds error ok time type")
	wantKeys(t, "connect errors", down["connect_errors"].(map[string]any), "other refused resource saturated timeout unreachable untrusted")
}

func wantKeys(t *testing.T, what string, m map[string]any, want string) {
	t.Helper()
	var keys []string
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	if got := strings.Join(keys, " "); got != want {
		t.Errorf("fields of a %s: got %s; want %s", what, got, want)
	}
}

func TestStatus_OfAnEmptyServerHasListsAndNoNulls(t *testing.T) {
	b, err := json.Marshal(new(Sources).Status())
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(b, []byte("null")) {
		t.Errorf("status: got %s; want no null", b)
	}
}

func TestHTTP_ServesReadersOnly(t *testing.T) {
	s, _, address := newServer(t, Sources{}, true)
	called := false
	routes := append(s.routes(), route{method: "POST", path: "/v1/test", access: AccessOperate, handler: func(http.ResponseWriter, *http.Request) { called = true }})
	s.ends[1].server.Handler = s.guarded("", s.mux(routes))
	serve(t, s)
	if status, body := ask(t, "GET", address, "/v1/status", "", ""); status != http.StatusOK {
		t.Errorf("GET /v1/status: got %d %s; want 200", status, body)
	}
	status, body := ask(t, "POST", address, "/v1/test", "", "")
	if status != http.StatusForbidden || called || !strings.Contains(body, "control socket") {
		t.Errorf("POST to a route that changes something: got %d %s, handler called: %v; want 403 that names the control socket", status, body, called)
	}
}

func TestHTTP_RefusesStrangers(t *testing.T) {
	s, _, address := newServer(t, Sources{}, true)
	s.ends[1].server.Handler.(*guard).host = "lb1.example"
	serve(t, s)
	_, port, _ := net.SplitHostPort(address)
	for _, tc := range []struct {
		host, origin string
		want         int
	}{
		{"", "", 200},
		{"localhost", "", 200},
		{"LOCALHOST:" + port, "", 200},
		{"127.8.9.1:1", "", 200},
		{"[::1]:" + port, "", 200},
		{"::1", "", 200},
		{"lb1.example:" + port, "", 200},
		{"evil.example", "", 403},
		{"evil.example:" + port, "", 403},
		{"localhost.evil.example", "", 403},
		{"192.0.2.1", "", 403},
		{"", "http://" + address, 200},
		{"", "http://evil.example", 403},
		{"", "https://" + address, 403},
		{"", "http://localhost:1", 403},
		{"", "null", 403},
	} {
		status, body := ask(t, "GET", address, "/v1/status", tc.host, tc.origin)
		if status != tc.want {
			t.Errorf("Host %q, Origin %q: got %d %s; want %d", tc.host, tc.origin, status, body, tc.want)
		}
		if status == 403 && !strings.HasPrefix(body, `{"error":"`) {
			t.Errorf("body of a refusal: got %s; want JSON with the error", body)
		}
	}
}

func TestHTTP_AcceptsTheAddressThatItWasReachedAt(t *testing.T) {
	g := &guard{next: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})}
	for host, want := range map[string]bool{"192.0.2.7:9901": true, "192.0.2.7": true, "192.0.2.8:9901": false} {
		req := &http.Request{Host: host}
		local := &net.TCPAddr{IP: net.IPv4(192, 0, 2, 7), Port: 9901}
		req = req.WithContext(context.WithValue(t.Context(), http.LocalAddrContextKey, local))
		if got := g.hostAllowed(req); got != want {
			t.Errorf("Host %q at 192.0.2.7: got %v; want %v", host, got, want)
		}
	}
}

func TestRoutes_UnknownPathAndMethodSayWhatThereIs(t *testing.T) {
	s, _, address := newServer(t, Sources{}, true)
	serve(t, s)
	if status, body := ask(t, "GET", address, "/nonsense", "", ""); status != 404 || !strings.Contains(body, "GET /v1") {
		t.Errorf("unknown path: got %d %s; want 404 that names GET /v1", status, body)
	}
	if status, body := ask(t, "POST", address, "/v1/status", "", ""); status != 405 || !strings.Contains(body, "takes GET") {
		t.Errorf("unknown method: got %d %s; want 405 that names GET", status, body)
	}
	if status, body := ask(t, "GET", address, "/healthz", "", ""); status != 200 || body != "ok\n" {
		t.Errorf("GET /healthz: got %d %q; want 200 ok", status, body)
	}
	_, body := ask(t, "GET", address, "/v1", "", "")
	for _, rt := range s.routes() {
		if !strings.Contains(body, rt.doc[1:]) && !strings.Contains(body, `"path":"`+rt.path+`"`) {
			t.Errorf("GET /v1: got %s; want it to list %s", body, rt.path)
		}
	}
}

func TestRoutes_BodyIsLimited(t *testing.T) {
	s, _, address := newServer(t, Sources{}, true)
	s.Control = newFakeLB(t)
	echo := s.reply(func(r *http.Request) (any, error) {
		n, err := io.Copy(io.Discard, r.Body)
		return n, err
	})
	s.ends[1].server.Handler = s.mux([]route{{method: "POST", path: "/echo", handler: echo}})
	serve(t, s)
	for size, want := range map[int]int{maxBody: 200, maxBody + 1: 413} {
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Post("http://"+address+"/echo", "", bytes.NewReader(make([]byte, size)))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != want {
			t.Errorf("body of %d bytes: got %d; want %d", size, resp.StatusCode, want)
		}
	}
}

func TestCaller_OfTheControlSocketIsKnown(t *testing.T) {
	s, socket, _ := newServer(t, Sources{}, false)
	s.ends[0].server.Handler = s.mux([]route{{method: "GET", path: "/v1/status", access: AccessAdmin, handler: s.reply(func(r *http.Request) (any, error) {
		p := CallerFrom(r.Context())
		return nil, refuse(418, "%v %d %d %d", p.Local, p.PID, p.UID, p.GID)
	})}})
	serve(t, s)
	_, err := api.NewClient(socket).Status(t.Context())
	var refusal *api.Error
	want := fmt.Sprintf("true %d %d %d", os.Getpid(), os.Getuid(), os.Getgid())
	if !errors.As(err, &refusal) || refusal.Status != 418 || refusal.Message != want {
		t.Errorf("caller: got %v; want %s", err, want)
	}
}

func TestCaller_AccessFollowsFromTheWayItCame(t *testing.T) {
	for _, tc := range []struct {
		caller Caller
		want   Access
	}{
		{Caller{}, AccessRead},
		{Caller{Addr: "127.0.0.1:1"}, AccessRead},
		{Caller{Local: true, UID: 0}, AccessAdmin},
		{Caller{Local: true, UID: uint32(os.Geteuid())}, AccessAdmin},
		{Caller{Local: true, UID: uint32(os.Geteuid()) + 1000}, AccessOperate},
	} {
		if got := tc.caller.Access(); got != tc.want {
			t.Errorf("access of %+v: got %v; want %v", tc.caller, got, tc.want)
		}
	}
}

// pipeListener accepts one end of a net.Pipe, which a synctest bubble can wait on.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

func TestServer_CutsCallersWhoStall(t *testing.T) {
	for name, tc := range map[string]struct {
		send  string
		limit time.Duration
	}{
		"silent":          {"", headerTimeout},
		"half a header":   {"GET /v1/status HTTP/1.1\r\nHost: lb\r\n", headerTimeout},
		"half a body":     {"POST /echo HTTP/1.1\r\nHost: lb\r\nContent-Length: 9\r\n\r\nhalf", readTimeout},
		"an idle session": {"GET /nothing HTTP/1.1\r\nHost: lb\r\n\r\n", idleTimeout},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &Server{done: make(chan struct{})}
				l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
				echo := func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) }
				s.add(httpName, l, httpShares, s.mux([]route{{method: "POST", path: "/echo", handler: echo}}))
				serve(t, s)
				near, far := net.Pipe()
				defer near.Close()
				l.conns <- far
				start := time.Now()
				io.WriteString(near, tc.send)
				io.Copy(io.Discard, near) // ends when the server closes
				if got := time.Since(start); got < tc.limit || got > tc.limit+time.Second {
					t.Errorf("cut after %v; want about %v", got, tc.limit)
				}
			})
		})
	}
}

func TestServer_ManyIdleCallersDoNotTakeAllDescriptors(t *testing.T) {
	s, _, address := newServer(t, Sources{}, true)
	serve(t, s)
	var conns []net.Conn
	for range maxConns + 8 {
		c, err := net.Dial("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		conns = append(conns, c)
	}
	answers := func(c net.Conn, wait time.Duration) error {
		fmt.Fprintf(c, "GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
		c.SetReadDeadline(time.Now().Add(wait))
		_, err := c.Read(make([]byte, 1))
		return err
	}
	for _, c := range conns[:maxConns] {
		if err := answers(c, 5*time.Second); err != nil {
			t.Fatalf("connection within the limit: got %v; want an answer", err)
		}
	}
	last := conns[len(conns)-1]
	if err := answers(last, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("connection beyond the limit: got %v; want it to wait", err)
	}
	for _, c := range conns[:maxConns] {
		c.Close()
	}
	if err := answers(last, 5*time.Second); err != nil {
		t.Errorf("the one that waited: got %v; want an answer once there is room", err)
	}
}

func TestServer_CloseWaitsForRequestsUnderWay(t *testing.T) {
	s, socket, _ := newServer(t, Sources{}, false)
	entered, leave := make(chan struct{}), make(chan struct{})
	s.ends[0].server.Handler = s.mux([]route{{method: "GET", path: "/v1/status", handler: s.reply(func(*http.Request) (any, error) {
		close(entered)
		<-leave
		return api.Status{}, nil
	})}})
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	answered := make(chan error, 1)
	go func() {
		_, err := api.NewClient(socket).Status(context.Background())
		answered <- err
	}()
	<-entered
	closed := make(chan error, 1)
	go func() { closed <- s.Close(context.Background()) }()
	<-s.done
	close(leave)
	if err := <-answered; err != nil {
		t.Errorf("request under way: got %v; want its answer", err)
	}
	if err := errors.Join(<-closed, <-served); err != nil {
		t.Errorf("Close and Serve: got %v; want nil", err)
	}
}

func TestServer_CloseCutsRequestsAtItsDeadline(t *testing.T) {
	s, socket, _ := newServer(t, Sources{}, false)
	entered := make(chan struct{})
	s.ends[0].server.Handler = s.mux([]route{{method: "GET", path: "/v1/status", handler: func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}}})
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	answered := make(chan error, 1)
	go func() {
		_, err := api.NewClient(socket).Status(context.Background())
		answered <- err
	}()
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := s.Close(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Close: got %v; want context.Canceled", err)
	}
	if err := <-answered; !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("request under way: got %v; want it cut", err)
	}
	<-served
}

func TestServer_FailureOfOneAddressLeavesNothingOpen(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg := Config{Socket: socketPath(t), SocketMode: "0660", HTTP: taken.Addr().String()}
	if _, err := selfServing(NewServer(cfg, Sources{})); err == nil || !strings.Contains(err.Error(), "admin.http") {
		t.Errorf("NewServer on a taken port: got %v; want an error that names admin.http", err)
	}
	if _, err := os.Lstat(cfg.Socket); err == nil {
		t.Errorf("control socket: got a file; want none")
	}
}

func TestServer_WithNothingToListenOnServesUntilClose(t *testing.T) {
	s, err := selfServing(NewServer(Config{}, Sources{}))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
}

func TestClient_ErrorsSayWhatToDo(t *testing.T) {
	absent := socketPath(t)
	dead := socketPath(t)
	startHolder(t, dead).end()
	silent := socketPath(t)
	startHolder(t, silent)
	gone := socketPath(t)
	leaver, err := net.Listen("unix", gone)
	if err != nil {
		t.Fatal(err)
	}
	defer leaver.Close()
	go func() {
		conn, err := leaver.Accept()
		if err == nil {
			conn.Read(make([]byte, 1<<10)) // the whole request
			conn.Close()
		}
	}()
	for _, tc := range []struct{ socket, want string }{
		{absent, `cannot reach lb at "` + absent + `": no such file: is lb running? name its socket with -s or LB_SOCKET`},
		{dead, `cannot reach lb at "` + dead + `": nobody listens on it: is lb running? name its socket with -s or LB_SOCKET`},
		{silent, `cannot reach lb at "` + silent + `": no answer in time: lb is stopped or very busy`},
		{gone, `lb at "` + gone + `" has ended the connection before its answer: it stops, or has been upgraded`},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		_, err := api.NewClient(tc.socket).Status(ctx)
		cancel()
		if !errors.Is(err, api.ErrUnreachable) || err.Error() != tc.want {
			t.Errorf("Status: got %v; want %s", err, tc.want)
		}
	}
}

func TestConfig_FaultsNameTheirKey(t *testing.T) {
	for want, change := range map[string]func(*Config){
		"":             func(*Config) {},
		"socket:":      func(c *Config) { c.Socket = "admin.sock" },
		"socket: ":     func(c *Config) { c.Socket = "/" + strings.Repeat("x", 107) },
		"socket_mode:": func(c *Config) { c.SocketMode = "rw" },
		"http:":        func(c *Config) { c.HTTP = "9901" },
		"http: ":       func(c *Config) { c.HTTP = "localhost:metrics" },
	} {
		c := DefaultConfig()
		change(&c)
		err := c.Validate()
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("Validate: got %v; want %q", err, want)
		}
	}
}

// TestHealthz_NamesTheListenersThatAcceptNothing is what a probe of lb itself lives on: it takes lb out while
// a listener takes no connections, and back once all do.
func TestHealthz_NamesTheListenersThatAcceptNothing(t *testing.T) {
	var deaf atomic.Pointer[[]string]
	deaf.Store(&[]string{"web", "api"})
	s, socket, address := newServer(t, Sources{NotAccepting: func() []string { return *deaf.Load() }}, true)
	serve(t, s)
	for network, at := range map[string]string{"tcp": address, "unix": socket} {
		status, body := askOver(t, network, at, "/healthz")
		if status != 503 || !strings.Contains(body, "web, api") {
			t.Errorf("over %s: got %d %q; want 503 and the names of both listeners", network, status, body)
		}
	}
	deaf.Store(new([]string))
	for network, at := range map[string]string{"tcp": address, "unix": socket} {
		if status, body := askOver(t, network, at, "/healthz"); status != 200 || body != "ok\n" {
			t.Errorf("over %s, once all accept: got %d %q; want 200 ok", network, status, body)
		}
	}
}

// askOver asks for a path over TCP or a Unix socket.
func askOver(t *testing.T, network, address, path string) (status int, body string) {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}}
	resp, err := client.Get("http://localhost" + path)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}
