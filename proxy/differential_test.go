package proxy_test

import (
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

	"github.com/273ebdf9/lb/proxy"
)

// script is what both ends of one session do, made from a seed.
type script struct {
	number  uint64
	sends   [2]int // by side: how many bytes
	pace    [2]pace
	ending  ending
	abortAt int  // bytes that the aborting side sends before
	ack     bool // the client sends only when it has heard the backend
	shrink  bool // lb's own sockets get small buffers
	lateFIN bool // the client closes its direction only when it has heard everything
	plain   bool // the abort is a close, which is a reset only where bytes wait unread
}

// the two sides of a session.
const (
	clientSide  = 0
	backendSide = 1
)

type ending uint8

const (
	bothFinish    ending = iota // each side closes its direction when it has sent everything
	backendCloses               // the backend closes both ways when it has read and sent everything
	clientAborts
	backendAborts
)

func (e ending) String() string {
	return [...]string{"both finish", "backend closes", "client aborts", "backend aborts"}[e]
}

// pace is how a side reads and writes.
type pace struct {
	seed          uint64
	write, read   int // at most at once
	pause         int // one call in so many is followed by a pause; 0 is none
	smallBuffers  bool
	startsReading int // microseconds
}

func newScript(seed, number uint64) *script {
	rnd := rand.New(rand.NewPCG(seed, number))
	s := &script{number: number, ack: rnd.IntN(2) == 0, lateFIN: rnd.IntN(2) == 0, plain: rnd.IntN(3) == 0}
	s.shrink = s.ack && rnd.IntN(2) == 0
	size := func() int {
		switch rnd.IntN(8) {
		case 0:
			return 0
		case 1:
			return 1 + rnd.IntN(100)
		case 2:
			return 4096*(1+rnd.IntN(4)) - 2 + rnd.IntN(5) // around the relay's own limits
		case 3, 4:
			return rnd.IntN(20 << 10)
		case 5, 6:
			return rnd.IntN(150 << 10)
		}
		return rnd.IntN(600 << 10)
	}
	s.sends = [2]int{size(), size()}
	for side := range 2 {
		s.pace[side] = pace{
			seed:  rnd.Uint64(),
			write: 1 + rnd.IntN([]int{50, 5000, 100_000}[rnd.IntN(3)]), read: 1 + rnd.IntN([]int{500, 5000, 100_000}[rnd.IntN(3)]),
			smallBuffers: rnd.IntN(2) == 0,
		}
		if rnd.IntN(2) == 0 {
			s.pace[side].pause = 1 + rnd.IntN(20)
		}
		if rnd.IntN(3) == 0 {
			s.pace[side].startsReading = rnd.IntN(5000)
		}
		// A byte at a time is for small sizes.
		s.pace[side].write = max(s.pace[side].write, s.sends[side]/200)
		s.pace[side].read = max(s.pace[side].read, s.sends[1-side]/200)
	}
	switch rnd.IntN(10) {
	case 0:
		s.ending = clientAborts
	case 1:
		s.ending = backendAborts
	case 2, 3:
		s.ending = backendCloses
	}
	if s.ending >= clientAborts {
		s.ack = true // else the backend may never hear of the session
		s.abortAt = rnd.IntN(s.sends[s.ending-clientAborts] + 1)
	}
	return s
}

func (s *script) String() string {
	return fmt.Sprintf("session %d (%v, client sends %d, backend sends %d, abort after %d, ack %v, shrink %v, late FIN %v, plain %v, %+v)",
		s.number, s.ending, s.sends[0], s.sends[1], s.abortAt, s.ack, s.shrink, s.lateFIN, s.plain, s.pace)
}

// outcome is what one side has seen.
type outcome struct {
	sent, got int
	clean     bool  // the stream it read ended with EOF
	reset     bool  // it heard of a reset, reading or writing
	fault     error // a wrong byte, or an error that no ending explains
}

// play is one side of the session from the moment that the connection is there and the script is known.
func (s *script) play(side int, c conn, shrink func()) outcome {
	p := s.pace[side]
	if p.smallBuffers {
		n := 2048
		if _, ok := c.(*net.TCPConn); ok { // with less than a segment of loopback, TCP itself crawls
			n = 64 << 10
		}
		c.(buffered).SetReadBuffer(n)
		c.(buffered).SetWriteBuffer(n)
	}
	var o outcome
	out, in := newStream(2*s.number+uint64(side)), newStream(2*s.number+uint64(1-side))
	heard := make(chan struct{}) // everything of the other side
	var hear sync.Once
	aborts := s.ending == clientAborts && side == clientSide || s.ending == backendAborts && side == backendSide

	note := func(err error) {
		switch {
		case err == nil || errors.Is(err, net.ErrClosed):
		case errors.Is(err, unix.ECONNRESET), errors.Is(err, unix.EPIPE), errors.Is(err, unix.ENOTCONN):
			o.reset = true
		default:
			o.fault = errors.Join(o.fault, err)
		}
	}
	written := make(chan error, 1)
	go func() { written <- s.write(side, c, out, &o.sent, heard, aborts) }()
	var readErr error
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		if s.sends[1-side] == 0 {
			hear.Do(func() { close(heard) })
		}
		readErr = s.read(side, c, in, &o, func() { hear.Do(func() { close(heard) }) })
	}()
	if shrink != nil {
		shrink()
	}
	writeErr := <-written
	if aborts {
		if tcp, ok := c.(*net.TCPConn); ok && !s.plain {
			tcp.SetLinger(0)
		}
		c.Close()
	}
	if s.ending == backendCloses && side == backendSide {
		<-heard
		c.Close()
	}
	<-finished
	note(writeErr)
	if !aborts {
		note(readErr)
	}
	return o
}

// write sends this side's bytes, or as many as come before the abort, and closes the direction where that is
// the ending.
func (s *script) write(side int, c conn, out *stream, sent *int, heard <-chan struct{}, aborts bool) error {
	p := s.pace[side]
	rnd := rand.New(rand.NewPCG(p.seed, 1))
	total := s.sends[side]
	if aborts {
		total = s.abortAt
	}
	for *sent < total {
		n := min(1+rnd.IntN(p.write), total-*sent)
		k, err := c.Write(out.next(n))
		*sent += k
		if err != nil {
			return err
		}
		rest(rnd, p.pause)
	}
	switch {
	case aborts:
		return nil
	case s.ending == backendCloses:
		// the client's direction ends as the backend closes; the backend closes when it has heard everything
		return nil
	case side == clientSide && s.lateFIN && s.ending == bothFinish:
		select {
		case <-heard:
		case <-time.After(ioTimeout):
			return errors.New("has not heard everything")
		}
	}
	return c.CloseWrite()
}

// read takes and compares what comes, until the end.
func (s *script) read(side int, c conn, in *stream, o *outcome, everything func()) error {
	p := s.pace[side]
	rnd := rand.New(rand.NewPCG(p.seed, 2))
	time.Sleep(time.Duration(p.startsReading) * time.Microsecond)
	buf := make([]byte, p.read)
	for {
		n, err := c.Read(buf[:1+rnd.IntN(p.read)])
		if wrong := in.check(buf[:n]); wrong != nil {
			o.fault = wrong
			everything()
			return nil
		}
		o.got += n
		if o.got >= s.sends[1-side] {
			everything()
		}
		if err == io.EOF {
			o.clean = true
			everything() // whatever it was
			return nil
		}
		if err != nil {
			everything()
			return err
		}
		rest(rnd, p.pause)
	}
}

func rest(rnd *rand.Rand, pause int) {
	if pause > 0 && rnd.IntN(pause) == 0 {
		time.Sleep(time.Duration(rnd.IntN(200)) * time.Microsecond)
	}
}

// judge says what is wrong with what the two sides have seen.
func (s *script) judge(kind string, c, b outcome) error {
	sides := [2]outcome{c, b}
	for i, o := range sides {
		if o.fault != nil {
			return fmt.Errorf("side %d: %w", i, o.fault)
		}
		if other := sides[1-i]; o.got > other.sent {
			return fmt.Errorf("side %d got %d bytes; the other sent %d", i, o.got, other.sent)
		}
	}
	switch s.ending {
	case bothFinish, backendCloses:
		if c.sent != s.sends[0] || b.sent != s.sends[1] || c.got != b.sent || b.got != c.sent {
			return fmt.Errorf("bytes: client sent %d and got %d; backend sent %d and got %d", c.sent, c.got, b.sent, b.got)
		}
		if c.reset || b.reset {
			return errors.New("got a reset; want clean ends")
		}
		if !c.clean || !b.clean && s.ending == bothFinish {
			return errors.New("no EOF")
		}
	case clientAborts, backendAborts:
		aborted, other := b, c // by whom, and who is told
		if s.ending == clientAborts {
			aborted, other = c, b
		}
		// A Unix backend cannot be told of a reset: it sees an end, wherever that is.
		if kind != tcpSocket && s.ending == clientAborts {
			return nil
		}
		if other.clean && !other.reset && other.got != aborted.sent {
			return fmt.Errorf("a clean end after %d of %d bytes", other.got, aborted.sent)
		}
		if kind == tcpSocket && !s.plain && !other.reset {
			return errors.New("the reset did not reach the other side")
		}
	}
	return nil
}

// TestRelay_CarriesRandomSessionsByteByByte runs thousands of sessions with random sizes, paces and endings
// through two loops, over Unix and TCP backends, with buffers and limits so small that every path of the
// relay is taken.
func TestRelay_CarriesRandomSessionsByteByByte(t *testing.T) {
	carryRandomSessions(t, 3000, func(*rig, func() bool) {})
}

// TestFreeze_CarriesRandomSessionsOverHandOvers is the same, with one proxy handing over to the next all the
// time.
func TestFreeze_CarriesRandomSessionsOverHandOvers(t *testing.T) {
	carryRandomSessions(t, 1500, func(r *rig, going func() bool) {
		n, carried := 0, 0
		for ; going(); n++ {
			carried += r.handOver()
		}
		t.Logf("%d hand-overs of %d sessions in all", n, carried)
		if n < 5 || carried < 20 {
			t.Errorf("hand-overs: got %d of %d sessions in all; want at least 5 of 20", n, carried)
		}
	})
}

// carryRandomSessions runs random sessions, while meanwhile runs with a rig and a word on whether they still
// go on.
func carryRandomSessions(t *testing.T, sessions int, meanwhile func(r *rig, going func() bool)) {
	seed := testSeed(t)
	budget, least := 3*time.Second, int64(200)
	if testing.Short() {
		sessions, least = 300, 100
	}
	type played struct {
		kind string
		outcome
	}
	results := make([]chan played, sessions)
	for i := range results {
		results[i] = make(chan played, 1)
	}
	backend := func(kind string) func(conn) {
		return func(c conn) {
			var header [8]byte
			if _, err := io.ReadFull(c, header[:]); failIf(t, err, "backend: read of the number") {
				return
			}
			s := newScript(seed, binary.BigEndian.Uint64(header[:]))
			if s.ack {
				if _, err := c.Write(header[:1]); failIf(t, err, "backend: ack of %v", s) {
					return
				}
			}
			results[s.number] <- played{kind, s.play(backendSide, c, nil)}
		}
	}
	var addresses []string
	for _, kind := range []string{unixSocket, tcpSocket, abstractSocket, tcpSocket} {
		addresses = append(addresses, serve(t, kind, backend(kind)).address)
	}
	r := newRig(t, func(s *setup) {
		s.prepare = func(p *proxy.Proxy) { p.SetRelayLimits(4096, 12<<10, 4096, 2048, 16<<10) }
	}, addresses...)

	address := r.ln.Addresses()[0]
	one := func(number uint64) error {
		s := newScript(seed, number)
		nc, err := net.Dial("tcp", address)
		if err != nil {
			return err
		}
		defer nc.Close()
		c := nc.(conn)
		c.SetDeadline(time.Now().Add(ioTimeout))
		if _, err := c.Write(binary.BigEndian.AppendUint64(nil, number)); err != nil {
			return err
		}
		var shrink func()
		if s.ack {
			var b [1]byte
			if _, err := io.ReadFull(c, b[:]); err != nil {
				return fmt.Errorf("%v: ack: %w", s, err)
			}
			if s.shrink {
				shrink = func() {
					r.handing.RLock()
					defer r.handing.RUnlock()
					r.proxy.ShrinkBuffers(2048, 64<<10)
				}
			}
		}
		got := s.play(clientSide, c, shrink)
		if s.ending == backendCloses {
			c.Close()
		}
		select {
		case b := <-results[number]:
			if err := s.judge(b.kind, got, b.outcome); err != nil {
				return fmt.Errorf("%v over %s: %w\nclient %+v\nbackend %+v", s, b.kind, err, got, b.outcome)
			}
		case <-time.After(2 * ioTimeout):
			return fmt.Errorf("%v: the backend has not finished; client %+v", s, got)
		}
		return nil
	}
	var running sync.WaitGroup
	var next, failed atomic.Int64
	started := time.Now()
	for range 32 {
		running.Go(func() {
			for failed.Load() < 5 && (time.Since(started) < budget || next.Load() < least) {
				number := next.Add(1) - 1
				if number >= int64(sessions) {
					return
				}
				if failIf(t, one(uint64(number)), "LB_TEST_SEED=%d", seed) {
					failed.Add(1)
				}
			}
		})
	}
	var over atomic.Bool
	handing := make(chan struct{})
	go func() {
		defer close(handing)
		meanwhile(r, func() bool { return !over.Load() })
	}()
	running.Wait()
	over.Store(true)
	<-handing
	done := min(next.Load(), int64(sessions))
	t.Logf("%d sessions in %v, %d bytes spliced", done, time.Since(started).Round(time.Millisecond), r.proxy.Stats.SplicedBytes.Load())
	if r.proxy.Stats.SplicedBytes.Load() == 0 {
		t.Error("nothing was spliced")
	}
}
