//go:build e2e

package e2e

import (
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// listenBackend listens on an address as lb's config writes it, until the end of the test.
func listenBackend(t testing.TB, address string) net.Listener {
	t.Helper()
	l, err := listenAgain(address)
	if err != nil {
		t.Fatalf("cannot listen on %q: %v", address, err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

// holder is a backend that holds what it accepts until the client closes.
type holder struct {
	address string
	open    atomic.Int64
}

// startHolder starts a holder inside the test process.
func startHolder(t testing.TB, address string) *holder {
	t.Helper()
	h := &holder{address: address}
	go h.serve(listenBackend(t, address))
	return h
}

func (h *holder) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go h.hold(conn)
	}
}

func (h *holder) hold(conn net.Conn) {
	h.open.Add(1)
	defer h.open.Add(-1)
	defer conn.Close()
	io.Copy(io.Discard, conn)
}

// manual is a backend whose side of each session the test plays itself.
type manual struct {
	conns chan net.Conn
}

// startManual starts a manual backend inside the test process. A health probe, which connects and closes
// without a byte, must not be taken for a session: so the test's client speaks first, and session returns the
// connection on which that was said.
func startManual(t testing.TB, address string) *manual {
	t.Helper()
	m := &manual{conns: make(chan net.Conn, 64)}
	go m.serve(listenBackend(t, address))
	return m
}

// greeting is the first word of the client in a session with a manual backend.
const greeting = "hi lb\n"

func (m *manual) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			word := make([]byte, len(greeting))
			if _, err := io.ReadFull(conn, word); err != nil || string(word) != greeting {
				conn.Close()
				return
			}
			m.conns <- conn
		}()
	}
}

// session connects a client to front, which must lead to m, and returns both ends.
func (m *manual) session(t testing.TB, front string) (client, backend net.Conn) {
	t.Helper()
	client = dial(t, front)
	if _, err := io.WriteString(client, greeting); err != nil {
		t.Fatalf("cannot write to %q: %v", front, err)
	}
	return client, m.next(t)
}

// next returns the backend's end of the next session.
func (m *manual) next(t testing.TB) net.Conn {
	t.Helper()
	select {
	case conn := <-m.conns:
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(3 * patience))
		return conn
	case <-time.After(patience):
		t.Fatalf("session of the backend: got none within %v; want one", patience)
		return nil
	}
}

// halfCloser is the side of a connection that can end one direction.
type halfCloser interface{ CloseWrite() error }

func closeWrite(t testing.TB, conn net.Conn) {
	t.Helper()
	if err := conn.(halfCloser).CloseWrite(); err != nil {
		t.Fatalf("cannot close one direction: %v", err)
	}
}

// say writes text, hear reads what must be text.
func say(t testing.TB, conn net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatalf("cannot write %q: %v", text, err)
	}
}

func hear(t testing.TB, conn net.Conn, want string) {
	t.Helper()
	got := make([]byte, len(want))
	if n, err := io.ReadFull(conn, got); err != nil || string(got) != want {
		t.Fatalf("read: got %q, %v; want %q", got[:n], err, want)
	}
}

// hearEnd reads what must be the clean end of the stream.
func hearEnd(t testing.TB, conn net.Conn) {
	t.Helper()
	var b strings.Builder
	if n, err := io.Copy(&b, conn); n != 0 || err != nil {
		t.Fatalf("read at the end: got %q, %v; want a clean end", b.String(), err)
	}
}

// askLine sends a line over a new connection to a lines backend behind address, and returns who answered.
func askLine(address string, timeout time.Duration) (who string, err error) {
	network, addr := splitAddress(address)
	conn, err := net.DialTimeout(network, addr, timeout)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(timeout))
	return askOn(conn)
}

// askOn sends a line on a connection to a lines backend and returns who answered.
func askOn(conn net.Conn) (who string, err error) {
	if _, err := io.WriteString(conn, "hello\n"); err != nil {
		return "", err
	}
	answer := make([]byte, 0, 64)
	for !strings.HasSuffix(string(answer), "\n") {
		n, err := conn.Read(answer[len(answer):cap(answer)])
		answer = answer[:len(answer)+n]
		if err != nil {
			return "", err
		}
	}
	who, _, _ = strings.Cut(string(answer), " ")
	return who, nil
}
