package health

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
	"golang.org/x/sys/unix"
)

// look probes an address once, as a Checker of that config would; the type is "connect" if change does not
// say another.
func look(t *testing.T, address string, change func(c *Config)) result {
	t.Helper()
	c := exact(func(c *Config) {
		if c.Type = typeConnect; change != nil {
			change(c)
		}
	})
	p, err := c.plan()
	if err != nil {
		t.Fatal(err)
	}
	return new(prober).probe(t.Context(), p, newPool(t, backends.HealthUp, address).Backends()[0])
}

func wantResult(t *testing.T, got result, outcome Outcome, reason string) {
	t.Helper()
	if got.outcome != outcome || got.reason != reason {
		t.Errorf("got %v %q; want %v %q", got.outcome, got.reason, outcome, reason)
	}
}

// serve listens and hands each connection to serve, which need not close it. The address is as backends has
// it.
func serve(t *testing.T, network, address string, serve func(conn net.Conn)) string {
	t.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { acceptAll(l, serve) })
	t.Cleanup(func() {
		_ = l.Close()
		wg.Wait()
	})
	if network == "unix" {
		return "unix:" + address
	}
	return l.Addr().String()
}

func acceptAll(l net.Listener, serve func(conn net.Conn)) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		serve(conn)
		_ = conn.Close()
	}
}

// says is a server that waits for a first line, or for nothing if wait is false, writes reply and waits for
// the close.
func says(t *testing.T, wait bool, reply string) string {
	t.Helper()
	return serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		reader := bufio.NewReader(conn)
		if wait {
			_, _ = reader.ReadString('\n')
		}
		_, _ = io.WriteString(conn, reply)
		_, _ = io.Copy(io.Discard, reader)
	})
}

func closedPort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

func TestProbe_ConnectTCPClosesWithReset(t *testing.T) {
	ended := make(chan error, 1)
	address := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	})
	wantResult(t, look(t, address, nil), Success, "connected")
	if err := <-ended; !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("the server saw %v; want a reset", err)
	}
}

func TestProbe_ConnectUnix(t *testing.T) {
	ended := make(chan error, 2)
	read := func(conn net.Conn) {
		_, err := conn.Read(make([]byte, 1))
		ended <- err
	}
	path := filepath.Join(t.TempDir(), "s")
	address := serve(t, "unix", path, read)
	wantResult(t, look(t, address, nil), Success, "connected")
	abstract := serve(t, "unix", fmt.Sprintf("@health-%d-%d", unix.Getpid(), time.Now().UnixNano()), read)
	wantResult(t, look(t, abstract, nil), Success, "connected")
	for range 2 {
		if err := <-ended; err != io.EOF {
			t.Errorf("the server saw %v; want a clean end", err)
		}
	}
}

func TestProbe_NobodyListens(t *testing.T) {
	wantResult(t, look(t, closedPort(t), nil), Failure, "connection refused")
	wantResult(t, look(t, "unix:/nonexistent/s", nil), Failure, "no such file or directory")
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	_ = l.Close()
	wantResult(t, look(t, "unix:"+path, nil), Failure, "connection refused")
}

// fullBacklog is a Unix socket that nobody accepts from, and that takes no more.
func fullBacklog(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	if err := unix.Listen(fd, 0); err != nil {
		t.Fatal(err)
	}
	for {
		conn, err := net.Dial("unix", path)
		if errors.Is(err, unix.EAGAIN) {
			return "unix:" + path
		}
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

func TestProbe_FullBacklogIsSaturation(t *testing.T) {
	wantResult(t, look(t, fullBacklog(t), nil), Inconclusive, "saturated: its backlog is full")
}

// A probe that wants an answer has none: a process that hangs fills its backlog, and must not hide behind it.
func TestProbe_FullBacklogIsNoAnswer(t *testing.T) {
	got := look(t, fullBacklog(t), func(c *Config) { c.Type, c.Timeout = "http", 50*time.Millisecond })
	wantResult(t, got, Failure, "timeout after 50ms: its backlog was full")
}

func TestProbe_SendExpect(t *testing.T) {
	f := func(reply, expect string, outcome Outcome, reason string) {
		t.Helper()
		got := look(t, says(t, true, reply), func(c *Config) {
			c.Type, c.Send, c.Expect, c.Timeout = "send-expect", "PING\r\n", expect, 5*time.Second
		})
		wantResult(t, got, outcome, reason)
	}
	f("+PONG\r\n", "+PONG", Success, `got "+PONG"`)
	f("+PONG\r\n", "hex:2b50", Success, `got "+P"`)
	f("all is ready\n", "contains:ready", Success, `got "ready"`)
	f("-ERR no such command\r\n", "+PONG", Failure, `expected "+PONG", got "-ERR no such command\r\n"`)
	f("é"+strings.Repeat("x", 100), "+PONG", Failure, `expected "+PONG", got "\u00e9`+strings.Repeat("x", 62)+`"…`)
	f(strings.Repeat("x", maxReply+1), "contains:ready", Failure,
		`expected a reply with "ready", got "`+strings.Repeat("x", maxQuote)+`"…`)

	closes := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { _, _ = io.WriteString(conn, "22") })
	expect := func(c *Config) { c.Type, c.Expect = "send-expect", "220" } // sends nothing
	wantResult(t, look(t, closes, expect), Failure, `expected "220", got "22"`)
	closes = serve(t, "tcp", "127.0.0.1:0", func(net.Conn) {})
	wantResult(t, look(t, closes, expect), Failure, `expected "220", but it closed the connection`)
}

func TestProbe_Timeout(t *testing.T) {
	f := func(reply, typ, reason string) {
		t.Run(typ, func(t *testing.T) {
			t.Parallel() // they wait
			got := look(t, says(t, false, reply), func(c *Config) {
				if c.Type, c.Timeout = typ, 250*time.Millisecond; typ == "send-expect" {
					c.Expect = "220"
				}
			})
			wantResult(t, got, Failure, reason)
		})
	}
	f("", "send-expect", `timeout after 250ms: expected "220", got no reply`)
	f("22", "send-expect", `timeout after 250ms: expected "220", got "22"`)
	f("", "http", "timeout after 250ms: expected an HTTP response, got no reply")
	f("HTTP/1.1 200 OK\r\nA: b\r\n", "http", `timeout after 250ms: expected an HTTP response, got "HTTP/1.1 200 OK\r\nA: b\r\n"`)
	f("up", "agent", `timeout after 250ms: expected a whole line from the agent, got "up"`)
}

func TestProbe_IsCutOffWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	address := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		reader := bufio.NewReader(conn)
		_, _ = reader.ReadString('\n')
		cancel() // it waits for a line
		_, _ = io.Copy(io.Discard, reader)
	})
	c := exact(func(c *Config) { c.Type, c.Send, c.Timeout = "agent", "b0\n", time.Hour })
	p, err := c.plan()
	if err != nil {
		t.Fatal(err)
	}
	new(prober).probe(ctx, p, newPool(t, backends.HealthUp, address).Backends()[0])
}

func TestProbe_HTTP(t *testing.T) {
	asked := make(chan string, 1)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked <- r.Method + " " + r.Host + r.RequestURI
		w.WriteHeader(http.StatusEarlyHints) // an interim one first
		if r.URL.Path == "/busy" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer server.Close()
	address := server.Listener.Addr().String()
	f := func(path string, change func(c *Config), request string, outcome Outcome, reason string) {
		t.Helper()
		got := look(t, address, func(c *Config) {
			c.Type, c.HTTPPath, c.Timeout = "http", path, 5*time.Second
			if change != nil {
				change(c)
			}
		})
		wantResult(t, got, outcome, reason)
		if got := <-asked; got != request {
			t.Errorf("request: got %q; want %q", got, request)
		}
	}
	f("/", nil, "GET "+address+"/", Success, "http status 200")
	f("/busy?a=b", nil, "GET "+address+"/busy?a=b", Failure, "http status 503, want 200-399")
	f("/busy", func(c *Config) { c.HTTPStatus = "2xx,503" }, "GET "+address+"/busy", Success, "http status 503")
	f("/", func(c *Config) { c.HTTPMethod, c.HTTPHost = "HEAD", "app.example" }, "HEAD app.example/", Success, "http status 200")

	// The body is not waited for.
	endless := says(t, true, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\na part")
	began := time.Now()
	wantResult(t, look(t, endless, func(c *Config) { c.Type, c.Timeout = "http", 5*time.Second }), Success, "http status 200")
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("the probe took %v", took)
	}
}

func TestProbe_HTTPThatIsNone(t *testing.T) {
	f := func(reply, reason string) {
		t.Helper()
		got := look(t, says(t, true, reply), func(c *Config) { c.Type, c.Timeout = "http", 5*time.Second })
		wantResult(t, got, Failure, reason)
	}
	f("SSH-2.0-OpenSSH\r\n", `expected an HTTP response, got "SSH-2.0-OpenSSH\r\n"`)
	f("HTTP/1.1 abc\r\n\r\n", `expected an HTTP response, got "HTTP/1.1 abc\r\n\r\n"`)
	f(strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 6), "expected an HTTP response, got more than 5 interim ones")
	header := "HTTP/1.1 200 OK\r\nX-Long: "
	f(header+strings.Repeat("x", maxHeader)+"\r\n\r\n",
		`expected an HTTP response, got only the start of its header: "HTTP/1.1 200 OK\r\nX-Long: `+strings.Repeat("x", maxQuote-len(header))+`"…`)
	asHTTP := func(c *Config) { c.Type = "http" }
	closes := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { _, _ = http.ReadRequest(bufio.NewReader(conn)) })
	wantResult(t, look(t, closes, asHTTP), Failure, "expected an HTTP response, but it closed the connection")
	resets := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) {
		_, _ = http.ReadRequest(bufio.NewReader(conn))
		_ = conn.(*net.TCPConn).SetLinger(0)
	})
	wantResult(t, look(t, resets, asHTTP), Failure, "connection reset by peer: expected an HTTP response, got no reply")
}

func TestProbe_HTTPHostOfAUnixSocket(t *testing.T) {
	asked := make(chan string, 1)
	path := filepath.Join(t.TempDir(), "s")
	serve(t, "unix", path, func(conn net.Conn) {
		if r, err := http.ReadRequest(bufio.NewReader(conn)); err == nil {
			asked <- r.Host
			_, _ = io.WriteString(conn, "HTTP/1.0 204 \r\n\r\n")
		}
	})
	wantResult(t, look(t, "unix:"+path, func(c *Config) { c.Type = "http" }), Success, "http status 204")
	if got := <-asked; got != "localhost" {
		t.Errorf("Host: got %q; want localhost", got)
	}
}

func TestProbe_Agent(t *testing.T) {
	f := func(reply string, outcome Outcome, reason string) {
		t.Helper()
		got := look(t, says(t, true, reply), func(c *Config) { c.Type, c.Send, c.Timeout = "agent", "pool/b0\n", 5*time.Second })
		wantResult(t, got, outcome, reason)
		if (got.agent != nil) != (outcome == Success) {
			t.Errorf("%q: got agent %v", reply, got.agent)
		}
	}
	f("up 75%\n", Success, "agent says up 75%")
	f("drain\rand what not", Success, "agent says drain")
	f("\n", Success, "agent says nothing")
	f("+OK ready, set\n", Success, `agent says ready; unknown word "+OK"`)
	f("SSH-2.0-OpenSSH\r\n", Failure, `expected a line of the agent protocol, got "SSH-2.0-OpenSSH"`)
	f(strings.Repeat(" ", maxLine)+"up\n", Failure,
		`expected a whole line from the agent, got 1024 bytes without an end: "`+strings.Repeat(" ", maxQuote)+`"…`)
	closes := serve(t, "tcp", "127.0.0.1:0", func(conn net.Conn) { _, _ = io.WriteString(conn, "maxconn:10") })
	got := look(t, closes, func(c *Config) { c.Type = "agent" })
	// it may have been 100
	wantResult(t, got, Failure, `expected a whole line from the agent, got "maxconn:10"`)
}

// TestProbe_WhoSpeaksFirstMayHaveClosedAlready: an agent, or a server with a banner, that does not wait for
// anything.
func TestProbe_WhoSpeaksFirstMayHaveClosedAlready(t *testing.T) {
	here, there := unixPair(t)
	if _, err := there.Write([]byte("up 50%\n")); err != nil {
		t.Fatal(err)
	}
	there.Close()
	agent := exact(func(c *Config) { c.Type = typeAgent })
	p, err := agent.plan()
	if err != nil {
		t.Fatal(err)
	}
	wantResult(t, p.askAgent(here), Success, "agent says up 50%")

	here, there = unixPair(t)
	if _, err := there.Write([]byte("220 ready\r\n")); err != nil {
		t.Fatal(err)
	}
	there.Close()
	banner := exact(func(c *Config) { c.Type, c.Expect = typeSendExpect, "220 " })
	if p, err = banner.plan(); err != nil {
		t.Fatal(err)
	}
	wantResult(t, p.sendExpect(here), Success, `got "220 "`)
}

// unixPair gives both ends of a connection.
func unixPair(t *testing.T) (here, there net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if here, err = net.Dial("unix", l.Addr().String()); err == nil {
		there, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { here.Close(); there.Close() })
	return here, there
}

func TestProbe_OtherAddressOrPort(t *testing.T) {
	open := says(t, false, "")
	_, port, err := net.SplitHostPort(open)
	if err != nil {
		t.Fatal(err)
	}
	closed := closedPort(t)
	wantResult(t, look(t, closed, func(c *Config) { c.Address = open }), Success, "connected")
	wantResult(t, look(t, closed, func(c *Config) { _, _ = fmt.Sscan(port, &c.Port) }), Success, "connected")
	// A Unix socket has no port.
	wantResult(t, look(t, "unix:/nonexistent/s", func(c *Config) { c.Port = 1 }), Failure, "no such file or directory")
}

// A host name is probed where the connections of clients go.
func TestProbe_HostNameIsProbedWhereClientsGo(t *testing.T) {
	pool := newPool(t, backends.HealthUp, "localhost:80", "127.0.0.1:81", "[fe80::1%7]:82", "unix:@x")
	b := pool.Backends()
	if err := b[0].Resolve(t.Context()); err != nil {
		t.Skip(err)
	}
	c := DefaultConfig()
	p, err := c.plan()
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"tcp 127.0.0.1:80", "tcp 127.0.0.1:81", "tcp [fe80::1%7]:82", "unix @x"} {
		to := p.destination(b[i])
		network, address := to.Network(), to.Dial()
		if got := network + " " + address; got != want {
			t.Errorf("%v: got %q; want %q", b[i].Address, got, want)
		}
	}
}

// From the socket to the pool, once with everything real.
func TestChecker_FindsAServerThatComesAndGoes(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	pool := newPool(t, backends.HealthUp, "unix:"+path)
	changes := make(chan string, 10)
	pool.OnChange = func(c backends.Change) { changes <- c.To + ": " + c.Reason }
	checker, err := NewChecker(pool, exact(func(c *Config) { c.Interval = 2 * time.Millisecond }))
	if err != nil {
		t.Fatal(err)
	}
	checker.Sockets = kernel(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go runTo(ctx, checker, ended)
	defer func() { cancel(); <-ended }()

	want := func(want string) {
		t.Helper()
		if got := <-changes; got != want {
			t.Errorf("got %q; want %q", got, want)
		}
	}
	want("down: no such file or directory")
	l, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { acceptAll(l, func(net.Conn) {}) })
	want("up: accepted (2 in a row)")
	_ = l.Close()
	wg.Wait()
	want("down: no such file or directory (3 in a row)")
}

// A worker to which sockets are handed over takes the probe's in its turn. It hangs only if it takes nothing.
func TestProbe_AWorkerThatTakesOthersIsUp(t *testing.T) {
	for _, test := range []struct {
		typ     string
		err     error
		outcome Outcome
		hung    bool
	}{
		{typeAccept, ErrBusy, Success, false},
		{typeConnect, ErrBusy, Success, false},
		{typeHTTP, ErrBusy, Failure, false}, // which wants an answer
		{typeAccept, context.DeadlineExceeded, Failure, true},
		{typeConnect, context.DeadlineExceeded, Failure, true},
	} {
		c := exact(func(c *Config) { c.Type = test.typ })
		p, err := c.plan()
		if err != nil {
			t.Fatal(err)
		}
		b := newPool(t, backends.HealthUp, "127.0.0.1:1").Backends()[0]
		b.Channel = "its own"
		x := prober{channel: func(context.Context, *backends.Backend) (net.Conn, error) { return nil, test.err }}
		if got := x.probe(t.Context(), p, b); got.outcome != test.outcome || got.hung != test.hung {
			t.Errorf("%s, %v: got %+v; want outcome %v, hung %v", test.typ, test.err, got, test.outcome, test.hung)
		}
	}
}
