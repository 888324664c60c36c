//go:build e2e

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// noise returns n bytes that no relay could guess, the same ones for the same seed.
func noise(n int64, seed byte) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{seed}), n)
}

func checksum(r io.Reader) (string, error) {
	h := sha256.New()
	_, err := io.Copy(h, r)
	return hex.EncodeToString(h.Sum(nil)), err
}

func mustChecksum(t testing.TB, r io.Reader) string {
	t.Helper()
	sum, err := checksum(r)
	if err != nil {
		t.Fatalf("cannot read to the end: %v", err)
	}
	return sum
}

// exchange sends n bytes both ways at the same time, ends both directions, and compares what arrived.
func exchange(t testing.TB, a, b net.Conn, n int64) {
	t.Helper()
	type outcome struct {
		what string
		err  error
	}
	outcomes := make(chan outcome, 4)
	send := func(what string, conn net.Conn, seed byte) {
		// The wrapper hides ReadFrom: the bytes come through user memory in pieces, as a program's do.
		_, err := io.Copy(struct{ io.Writer }{conn}, noise(n, seed))
		if err == nil {
			err = conn.(halfCloser).CloseWrite()
		}
		outcomes <- outcome{what, err}
	}
	receive := func(what string, conn net.Conn, seed byte) {
		want, _ := checksum(noise(n, seed))
		got, err := checksum(conn)
		if err == nil && got != want {
			err = fmt.Errorf("got checksum %s; want %s", got, want)
		}
		outcomes <- outcome{what, err}
	}
	go send("client sends", a, 1)
	go send("backend sends", b, 2)
	go receive("backend receives", b, 1)
	go receive("client receives", a, 2)
	for range cap(outcomes) {
		if o := <-outcomes; o.err != nil {
			t.Errorf("%s: %v", o.what, o.err)
		}
	}
}

func TestRelay_EveryKindOfAddress(t *testing.T) {
	dir := tempDir(t)
	named := strings.Replace(freePort(t, "127.0.0.1"), "127.0.0.1", "localhost", 1)
	backends := []struct{ name, address, listen string }{
		{"unix", socketPath(dir, "b.sock"), ""},
		{"abstract", "unix:@" + dir + "/b", ""},
		{"ipv4", freePort(t, "127.0.0.1"), ""},
		{"ipv6", freePort(t, "::1"), ""},
		{"localhost", named, strings.Replace(named, "localhost", "127.0.0.1", 1)},
	}
	var config lbConfig
	manuals := make(map[string]*manual)
	for _, b := range backends {
		if b.listen == "" {
			b.listen = b.address
		}
		manuals[b.name] = startManual(t, b.listen)
		config.Listeners = append(config.Listeners, lbListener{
			Name: b.name,
			Bind: []string{freePort(t, "127.0.0.1"), freePort(t, "::1"), socketPath(dir, b.name+".front")},
			Pool: b.name,
		})
		config.Pools = append(config.Pools, lbPool{
			Name:     b.name,
			Backends: []lbBackend{{Name: b.name, Address: b.address}},
		})
	}
	startLB(t, config)
	for _, l := range config.Listeners {
		for i, front := range []string{"ipv4", "ipv6", "unix"} {
			t.Run(front+"To"+l.Name, func(t *testing.T) {
				client, backend := manuals[l.Name].session(t, l.Bind[i])
				exchange(t, client, backend, 3<<20+1)
				client.Close()
				backend.Close()
			})
		}
	}
}

// backendKinds are the two kinds of sockets that behave differently at the end of a connection.
func backendKinds(t testing.TB) map[string]string {
	t.Helper()
	return map[string]string{
		"unix": socketPath(tempDir(t), "b.sock"),
		"tcp":  freePort(t, "127.0.0.1"),
	}
}

func TestRelay_ClientHalfCloseKeepsTheAnswer(t *testing.T) {
	for kind, address := range backendKinds(t) {
		t.Run(kind, func(t *testing.T) {
			m := startManual(t, address)
			l := startLB(t, onePool(t, address))
			client, backend := m.session(t, l.addr())
			say(t, client, "question")
			closeWrite(t, client)
			hear(t, backend, "question")
			hearEnd(t, backend)
			// The backend answers only after it has seen the end of the question.
			want := mustChecksum(t, noise(5<<20, 7))
			go func() {
				io.Copy(backend, noise(5<<20, 7))
				backend.Close()
			}()
			if got := mustChecksum(t, client); got != want {
				t.Errorf("checksum of the answer: got %s; want %s", got, want)
			}
		})
	}
}

func TestRelay_BackendHalfCloseKeepsTheQuestion(t *testing.T) {
	for kind, address := range backendKinds(t) {
		t.Run(kind, func(t *testing.T) {
			m := startManual(t, address)
			l := startLB(t, onePool(t, address))
			client, backend := m.session(t, l.addr())
			say(t, backend, "enough")
			closeWrite(t, backend)
			hear(t, client, "enough")
			hearEnd(t, client)
			want := mustChecksum(t, noise(5<<20, 8))
			go func() {
				io.Copy(client, noise(5<<20, 8))
				client.Close()
			}()
			if got := mustChecksum(t, backend); got != want {
				t.Errorf("checksum of what came after the half-close: got %s; want %s", got, want)
			}
		})
	}
}

func TestRelay_HalfClosedSessionStaysOpen(t *testing.T) {
	for kind, address := range backendKinds(t) {
		t.Run(kind, func(t *testing.T) {
			m := startManual(t, address)
			l := startLB(t, onePool(t, address))
			client, backend := m.session(t, l.addr())
			closeWrite(t, client)
			hearEnd(t, backend)
			for i := range 5 { // more than one event, with time between them
				text := fmt.Sprintf("event %d\n", i)
				say(t, backend, text)
				hear(t, client, text)
			}
			if got := l.status(t).total(); got != 1 {
				t.Errorf("sessions while half-closed: got %d; want 1", got)
			}
			backend.Close()
			hearEnd(t, client)
		})
	}
}

// wantReset reads until the end of conn, which must be a reset.
func wantReset(t testing.TB, conn net.Conn) {
	t.Helper()
	if n, err := io.Copy(io.Discard, conn); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read until the end: got %d bytes, then %v; want %v", n, err, syscall.ECONNRESET)
	}
}

// reset closes a TCP connection with RST instead of FIN.
func reset(t testing.TB, conn net.Conn) {
	t.Helper()
	if err := conn.(*net.TCPConn).SetLinger(0); err != nil {
		t.Fatalf("cannot set SO_LINGER: %v", err)
	}
	conn.Close()
}

func TestRelay_ClientResetReachesTCPBackend(t *testing.T) {
	address := freePort(t, "127.0.0.1")
	m := startManual(t, address)
	l := startLB(t, onePool(t, address))
	t.Run("idle", func(t *testing.T) {
		client, backend := m.session(t, l.addr())
		reset(t, client)
		wantReset(t, backend)
	})
	t.Run("after the backend's half-close", func(t *testing.T) {
		client, backend := m.session(t, l.addr())
		closeWrite(t, backend)
		hearEnd(t, client)
		reset(t, client)
		wantReset(t, backend)
	})
	t.Run("while the backend sends", func(t *testing.T) {
		client, backend := m.session(t, l.addr())
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(struct{ io.Writer }{backend}, noise(1<<30, 1))
			sent <- err
		}()
		io.CopyN(io.Discard, client, 1<<20)
		reset(t, client)
		if err := <-sent; !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
			t.Errorf("write to a client that reset: got %v; want %v", err, syscall.ECONNRESET)
		}
	})
}

func TestRelay_ClientResetEndsUnixBackend(t *testing.T) {
	address := socketPath(tempDir(t), "b.sock")
	m := startManual(t, address)
	l := startLB(t, onePool(t, address))
	client, backend := m.session(t, l.addr())
	reset(t, client)
	// A Unix socket knows no RST; it must end all the same, both ways.
	if n, err := io.Copy(io.Discard, backend); n != 0 || (err != nil && !errors.Is(err, syscall.ECONNRESET)) {
		t.Errorf("read after the client's reset: got %d bytes, then %v; want the end", n, err)
	}
	eventually(t, patience, func() error {
		if _, err := io.WriteString(backend, "anybody there?"); err == nil {
			return errors.New("write after the client's reset: got no error; want one")
		}
		return nil
	})
}

func TestRelay_BackendResetReachesClient(t *testing.T) {
	address := freePort(t, "127.0.0.1")
	m := startManual(t, address)
	l := startLB(t, onePool(t, address))
	t.Run("idle", func(t *testing.T) {
		client, backend := m.session(t, l.addr())
		say(t, backend, "answer")
		hear(t, client, "answer")
		reset(t, backend)
		wantReset(t, client)
	})
	t.Run("after the client's half-close", func(t *testing.T) {
		client, backend := m.session(t, l.addr())
		closeWrite(t, client)
		hearEnd(t, backend)
		reset(t, backend)
		wantReset(t, client)
	})
}

// A worker that dies before it read everything must not look like one that closed in peace: the client would
// take what it has for the whole answer.
func TestRelay_WorkerKilledWithUnreadBytesIsAReset(t *testing.T) {
	for kind, address := range backendKinds(t) {
		t.Run(kind, func(t *testing.T) {
			worker := startMute(t, address)
			l := startLB(t, onePool(t, address))
			client := dial(t, l.addr())
			say(t, client, "will you read this?")
			waitOutput(t, worker, fmt.Sprint("unread ", len("will you read this?")))
			worker.kill()
			wantReset(t, client)
		})
	}
}

func TestRelay_WorkerKilledWithNothingUnreadIsAnEnd(t *testing.T) {
	for kind, address := range backendKinds(t) {
		t.Run(kind, func(t *testing.T) {
			worker := startLines(t, "w1", address)
			l := startLB(t, onePool(t, address))
			client := dial(t, l.addr())
			if who, err := askOn(client); who != "w1" || err != nil {
				t.Fatalf("answer: got %q, %v; want w1", who, err)
			}
			worker.kill()
			hearEnd(t, client)
		})
	}
}

// TestRelay_SlowReaderStopsTheWriter sends more than any buffer on the way may hold to a side that does not
// read, and then lets it read.
func TestRelay_SlowReaderStopsTheWriter(t *testing.T) {
	const size = 192 << 20
	for kind, address := range backendKinds(t) {
		m := startManual(t, address)
		l := startLB(t, onePool(t, address))
		stall := func(t *testing.T, writer, reader net.Conn) {
			var written atomic.Int64
			sent := make(chan error, 1)
			go func() {
				_, err := io.Copy(&countingWriter{writer, &written}, noise(size, 3))
				if err == nil {
					err = writer.(halfCloser).CloseWrite()
				}
				sent <- err
			}()
			// It stalls: nothing more goes in for a second.
			last, since := int64(-1), time.Now()
			eventually(t, patience, func() error {
				if n := written.Load(); n != last {
					last, since = n, time.Now()
				}
				if time.Since(since) < time.Second {
					return fmt.Errorf("writer: got %d bytes out and going on; want it to stall", last)
				}
				return nil
			})
			if last > size/2 {
				t.Errorf("bytes written to a side that reads nothing: got %d; want less than %d", last, size/2)
			}
			want := mustChecksum(t, noise(size, 3))
			if got := mustChecksum(t, reader); got != want {
				t.Errorf("checksum: got %s; want %s", got, want)
			}
			if err := <-sent; err != nil {
				t.Errorf("write: got %v; want no error", err)
			}
		}
		t.Run(kind+"ToClient", func(t *testing.T) {
			client, backend := m.session(t, l.addr())
			stall(t, backend, client)
			client.Close()
			backend.Close()
		})
		t.Run("clientTo"+kind, func(t *testing.T) {
			client, backend := m.session(t, l.addr())
			stall(t, client, backend)
			client.Close()
			backend.Close()
		})
	}
}

// countingWriter counts what went into a writer.
type countingWriter struct {
	io.Writer
	n *atomic.Int64
}

func (w *countingWriter) Write(p []byte) (int, error) {
	n, err := w.Writer.Write(p)
	w.n.Add(int64(n))
	return n, err
}

// A session that never sends a byte is a session too, and is released. When one session makes its loop busy,
// the sessions of other loops, which sleep between their words, get theirs through as ever.
func TestRelay_BusyLoopKeepsNobodyWaiting(t *testing.T) {
	address := socketPath(tempDir(t), "w1.sock")
	backend := startManual(t, address)
	l := startLB(t, onePool(t, address))
	type pair struct{ client, backend net.Conn }
	open := func() pair {
		client, b := backend.session(t, l.addr())
		return pair{client, b}
	}
	echo := func(p pair) error {
		word := []byte("ping")
		for _, way := range [][2]net.Conn{{p.client, p.backend}, {p.backend, p.client}} {
			if _, err := way[0].Write(word); err != nil {
				return err
			}
			if _, err := io.ReadFull(way[1], word); err != nil {
				return err
			}
		}
		return nil
	}
	busy := open()
	var quiet []pair
	for range 8 { // some on each loop
		quiet = append(quiet, open())
	}
	const rounds = 8
	slow := 0
	for round := range rounds {
		time.Sleep(200 * time.Millisecond) // the loop becomes idle
		working, stop, stopped := make(chan struct{}), make(chan struct{}), make(chan error, 1)
		go func() {
			for i := 0; ; i++ {
				if i == 500 {
					close(working) // the loop is busy
				}
				select {
				case <-stop:
					stopped <- nil
					return
				default:
				}
				if err := echo(busy); err != nil {
					stopped <- err
					return
				}
			}
		}()
		select {
		case <-working:
		case err := <-stopped:
			t.Fatal("the busy session: ", err)
		}
		start := time.Now()
		for i, p := range quiet {
			if err := echo(p); err != nil {
				t.Fatalf("round %d, quiet session %d: %v", round, i, err)
			}
		}
		if took := time.Since(start); took > 250*time.Millisecond {
			t.Logf("round %d: a word of each quiet session took %v", round, took)
			slow++
		}
		close(stop)
		if err := <-stopped; err != nil {
			t.Fatal("the busy session: ", err)
		}
	}
	if slow > rounds/4 { // a machine may be busy with something else for a moment
		t.Errorf("in %d of %d rounds a word of each quiet session took more than 250ms beside a busy one", slow, rounds)
	}
}

func TestRelay_ConnectionsWithoutAByteAreReleased(t *testing.T) {
	address := socketPath(tempDir(t), "b.sock")
	h := startHolder(t, address)
	l := startLB(t, onePool(t, address))
	var clients []net.Conn
	for range 50 {
		clients = append(clients, dial(t, l.addr()))
	}
	l.waitActive(t, 50)
	for i, client := range clients {
		if i%2 == 0 {
			reset(t, client)
		} else {
			client.Close()
		}
	}
	l.waitReleased(t)
	eventually(t, patience, func() error {
		if got := h.open.Load(); got != 0 {
			return fmt.Errorf("connections at the backend: got %d; want 0", got)
		}
		return nil
	})
}
