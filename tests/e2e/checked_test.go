//go:build e2e

package e2e

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/worker"
)

// A checked exchange: the client sends a question (seed, length of what follows, length of the answer) and a
// seeded stream; the backend checks the stream and answers with another seeded stream, which the client
// checks. A kept connection carries many exchanges. An exchange that fails must fail loudly: with a reset or
// an error, never with a clean end in the middle of a stream, with a wrong byte, or with silence.

const (
	questionSize = 24
	// in the answer's length: the backend resets the connection behind the answer
	resetAfter = 1 << 63
	stuckAfter = 15 * time.Second // nothing moved for so long: the exchange hangs
)

// stream writes or checks the bytes of one seeded stream.
type stream struct {
	source *rand.ChaCha8
	buf    [32 << 10]byte
	want   [32 << 10]byte
}

func newStream(seed uint64, up bool) *stream {
	var key [32]byte
	binary.LittleEndian.PutUint64(key[:], seed)
	if up {
		key[31] = 1
	}
	return &stream{source: rand.NewChaCha8(key)}
}

func (s *stream) write(conn net.Conn, n uint64) error {
	for n > 0 {
		part := s.buf[:min(n, uint64(len(s.buf)))]
		s.source.Read(part)
		conn.SetWriteDeadline(time.Now().Add(stuckAfter))
		if _, err := conn.Write(part); err != nil {
			return err
		}
		n -= uint64(len(part))
	}
	return nil
}

var errWrongByte = errors.New("wrong byte")

// check reads n bytes, which must be those of the stream. It returns how many came.
func (s *stream) check(conn net.Conn, n uint64) (got uint64, err error) {
	for got < n {
		part := s.buf[:min(n-got, uint64(len(s.buf)))]
		conn.SetReadDeadline(time.Now().Add(stuckAfter))
		m, err := conn.Read(part)
		want := s.want[:m]
		s.source.Read(want)
		if string(want) != string(part[:m]) {
			return got, fmt.Errorf("%w after byte %d", errWrongByte, got)
		}
		got += uint64(m)
		if err != nil && got < n {
			return got, err
		}
	}
	return got, nil
}

// outcome is how an exchange ended.
type outcome int

const (
	exchanged outcome = iota // everything arrived
	// it failed, and both the client and the kernel's rules say so: refused, reset, timed out
	told
	unheard // a clean end before the first byte of the answer
	silent  // a clean end inside a stream, or a wrong byte: what no client can notice
	stuck   // nothing moved for stuckAfter
)

// classify tells how an exchange ended whose answer broke off with err after got bytes.
func classify(err error, got uint64) outcome {
	var timeout net.Error
	switch {
	case err == nil:
		return exchanged
	case errors.Is(err, errWrongByte):
		return silent
	case errors.As(err, &timeout) && timeout.Timeout():
		return stuck
	case errors.Is(err, io.EOF) && got == 0:
		return unheard
	case errors.Is(err, io.EOF):
		return silent
	default:
		return told
	}
}

// checkedBackend checks and answers exchanges inside the test process.
type checkedBackend struct {
	resetTold bool         // its kind of socket can be told of a reset
	faults    *checkedLoad // where it counts what it found wrong
}

func startCheckedBackend(t testing.TB, address string, load *checkedLoad) {
	t.Helper()
	network, _ := splitAddress(address)
	b := &checkedBackend{resetTold: network != "unix", faults: load}
	go b.serve(listenBackend(t, address))
}

func (b *checkedBackend) serve(l net.Listener) {
	for {
		conn, err := l.Accept()
		if err != nil {
			return
		}
		go b.answer(conn)
	}
}

// serveChecked is a worker that takes connections over from lb and answers exchanges. It prints what it finds
// wrong.
func serveChecked() error {
	w, err := worker.Listen(context.Background())
	if err != nil {
		return err
	}
	b := &checkedBackend{resetTold: true, faults: newCheckedLoad()}
	var all sync.WaitGroup
	return w.Serve(func(l net.Listener) error {
		for {
			conn, err := l.Accept()
			if err != nil {
				return err
			}
			all.Go(func() { b.answer(conn) })
		}
	}, func(context.Context) error {
		all.Wait()
		return nil
	})
}

// answer plays the backend's side of the exchanges of one connection.
func (b *checkedBackend) answer(conn net.Conn) {
	defer conn.Close()
	for {
		var question [questionSize]byte
		conn.SetReadDeadline(time.Now().Add(time.Hour)) // a kept connection waits for its next exchange
		if _, err := io.ReadFull(conn, question[:]); err != nil {
			return // a probe, or the end
		}
		seed, up, down := readQuestion(question)
		got, err := newStream(seed, true).check(conn, up)
		how := classify(err, got+1) // the question has arrived
		if how == silent && !b.resetTold && !errors.Is(err, errWrongByte) {
			how = told // a Unix socket's peer cannot be told of a reset (unix(7)): it sees an end
		}
		if how == silent {
			b.faults.report(silent, fmt.Errorf("backend: %w after %d of %d bytes of the client", err, got, up))
		}
		if err != nil {
			if tcp, ok := conn.(*net.TCPConn); ok {
				tcp.SetLinger(0) // what the client did not send, it gets no clean end for
			}
			return
		}
		if newStream(seed, false).write(conn, down&^resetAfter) != nil {
			return
		}
		if down&resetAfter != 0 {
			if tcp, ok := conn.(*net.TCPConn); ok {
				awaitAcknowledged(tcp) // else this kernel drops what lb was not sent
				tcp.SetLinger(0)
			}
			return
		}
	}
}

// awaitAcknowledged waits until the peer's kernel has acknowledged everything (tcp(7), SIOCOUTQ).
func awaitAcknowledged(conn *net.TCPConn) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return
	}
	for left := 1; left > 0; time.Sleep(time.Millisecond) { // the kernel has no event for it
		if raw.Control(func(fd uintptr) { left, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }) != nil || err != nil {
			return
		}
	}
}

func readQuestion(q [questionSize]byte) (seed, up, down uint64) {
	return binary.LittleEndian.Uint64(q[:]), binary.LittleEndian.Uint64(q[8:]), binary.LittleEndian.Uint64(q[16:])
}

// exchange plays the client's side of one exchange on a connection.
func exchangeOn(conn net.Conn, seed, up, down uint64) (outcome, error) {
	var question [questionSize]byte
	binary.LittleEndian.PutUint64(question[:], seed)
	binary.LittleEndian.PutUint64(question[8:], up)
	binary.LittleEndian.PutUint64(question[16:], down)
	conn.SetWriteDeadline(time.Now().Add(stuckAfter))
	_, err := conn.Write(question[:])
	if err == nil {
		err = newStream(seed, true).write(conn, up)
	}
	if err != nil {
		return classify(err, 0), err
	}
	reset := down&resetAfter != 0
	down &^= resetAfter
	got, err := newStream(seed, false).check(conn, down)
	if err == nil && reset {
		conn.SetReadDeadline(time.Now().Add(stuckAfter))
		if _, err = conn.Read(make([]byte, 1)); classify(err, got) != stuck {
			return exchanged, nil // an end of whatever form
		}
	}
	if err != nil {
		err = fmt.Errorf("%w after %d of %d bytes of the answer", err, got, down)
	}
	return classify(err, got), err
}

// checkedLoad is clients with checked exchanges: short connections, kept ones, and bulk that is spliced.
type checkedLoad struct {
	quit   chan struct{}
	all    sync.WaitGroup
	counts [stuck + 1]atomic.Int64

	// killed says that lb is being killed: the kernel closes a dead process's sockets with a FIN (where
	// nothing unread waits), so an end in the middle of a stream is nobody's fault.
	killed atomic.Bool

	mu    sync.Mutex
	worst []error // guarded by mu: what must not be, the first few
}

// checkedKind is what one client does over and over.
type checkedKind struct {
	up, down  uint64        // the most bytes of an exchange in each direction
	exchanges int           // of one connection
	pause     time.Duration // after each exchange
	reset     bool          // the backend resets the connection after its answer
}

var checkedKinds = []checkedKind{
	{up: 1 << 10, down: 8 << 10, exchanges: 1},
	{up: 1 << 10, down: 8 << 10, exchanges: 1},
	{up: 200, down: 2 << 10, exchanges: 50, pause: time.Millisecond},
	{up: 200, down: 2 << 10, exchanges: 1000, pause: 5 * time.Millisecond},
	{up: 100 << 10, down: 100 << 10, exchanges: 5, pause: 5 * time.Millisecond},
	{up: 1 << 20, down: 3 << 20, exchanges: 2, pause: 20 * time.Millisecond},
	{up: 1 << 10, down: 400 << 10, exchanges: 1, pause: 20 * time.Millisecond, reset: true},
}

// handedKinds is the load of workers that are given the sockets.
var handedKinds = []checkedKind{
	{up: 1 << 10, down: 8 << 10, exchanges: 1, pause: time.Millisecond},
	{up: 200, down: 2 << 10, exchanges: 50, pause: 5 * time.Millisecond},
}

// newCheckedLoad returns a load without clients, for backends to report to.
func newCheckedLoad() *checkedLoad { return &checkedLoad{quit: make(chan struct{})} }

// start starts one client of each kind for each address.
func (d *checkedLoad) start(t testing.TB, kinds []checkedKind, addresses ...string) {
	for i, address := range addresses {
		for j, kind := range kinds {
			seeds := rand.New(rand.NewPCG(uint64(i), uint64(j)))
			d.all.Go(func() { d.run(address, kind, seeds) })
		}
	}
	t.Cleanup(d.end)
}

func (d *checkedLoad) run(address string, kind checkedKind, seeds *rand.Rand) {
	for !d.ending() {
		network, addr := splitAddress(address)
		conn, err := net.DialTimeout(network, addr, stuckAfter)
		if err != nil {
			d.report(classify(err, 0), fmt.Errorf("client: %w", err))
			time.Sleep(5 * time.Millisecond) // the pace of a client that is refused
			continue
		}
		for range kind.exchanges {
			down := 1 + seeds.Uint64N(kind.down)
			if kind.reset {
				down |= resetAfter
			}
			how, err := exchangeOn(conn, seeds.Uint64(), seeds.Uint64N(kind.up+1), down)
			d.report(how, err)
			if err != nil || d.ending() {
				break
			}
			time.Sleep(kind.pause)
		}
		conn.Close()
	}
}

func (d *checkedLoad) ending() bool {
	select {
	case <-d.quit:
		return true
	default:
		return false
	}
}

// report counts an exchange, and keeps the error of one that must not be.
func (d *checkedLoad) report(how outcome, err error) {
	if how == silent && d.killed.Load() && errors.Is(err, io.EOF) {
		how = told
	}
	d.counts[how].Add(1)
	if how != silent && how != stuck {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.worst) < 20 {
		d.worst = append(d.worst, err)
	}
}

// takeWorst returns what must not have been since the last call.
func (d *checkedLoad) takeWorst() []error {
	d.mu.Lock()
	defer d.mu.Unlock()
	worst := d.worst
	d.worst = nil
	return worst
}

// done returns how many exchanges have ended well.
func (d *checkedLoad) done() int64 { return d.counts[exchanged].Load() }

func (d *checkedLoad) String() string {
	return fmt.Sprintf("%d exchanges, %d failed loudly, %d ended before an answer, %d silently, %d stuck",
		d.counts[exchanged].Load(), d.counts[told].Load(), d.counts[unheard].Load(), d.counts[silent].Load(), d.counts[stuck].Load())
}

// end stops the clients and waits for them.
func (d *checkedLoad) end() {
	select {
	case <-d.quit:
	default:
		close(d.quit)
	}
	d.all.Wait()
}
