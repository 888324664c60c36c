package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/internal/clock"
)

// Failure is why a request was not answered.
type Failure string

// The ways in which a request fails.
const (
	Refused Failure = "refused" // nobody listens
	Reset   Failure = "reset"   // RST
	Closed  Failure = "closed"  // FIN before the answer was complete
	Hung    Failure = "hung"    // no answer within the time-out
	Status  Failure = "status"  // an answer of another status than 200
	Other   Failure = "other"
)

// Failures are all of them.
func Failures() []Failure { return []Failure{Refused, Reset, Closed, Hung, Status, Other} }

func classify(err error) Failure {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded), errors.Is(err, context.DeadlineExceeded):
		return Hung
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return Refused
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Reset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return Closed
	case errors.Is(err, errStatus):
		return Status
	}
	return Other
}

var errStatus = errors.New("status other than 200")

// The headers of request and reply.
const (
	serviceHeader = "Service-Time"
	workerHeader  = "Worker"
)

// requestHead is what all requests to a target begin with.
func requestHead(t Target) []byte {
	p := t.Path
	if p == "" {
		p = "/"
	}
	host := t.Address
	if network(host) == "unix" {
		host = "localhost"
	}
	return []byte("GET " + p + " HTTP/1.1\r\nHost: " + host + "\r\n" + serviceHeader + ": ")
}

// network and path are of an address: "unix:/path" or "host:port".
func network(address string) string {
	if strings.HasPrefix(address, "unix:") {
		return "unix"
	}
	return "tcp"
}

func path(address string) string { return strings.TrimPrefix(address, "unix:") }

// readers are for replies on connections that are used once.
var readers = sync.Pool{New: func() any { return bufio.NewReaderSize(nil, 4096) }}

// session is a connection that is used again, and opened anew when it broke.
type session struct {
	*runner
	conn net.Conn
	in   *bufio.Reader
}

func (s *session) open() {
	dialer := net.Dialer{Timeout: s.target.Timeout}
	s.conn, _ = dialer.DialContext(s.ctx, network(s.target.Address), path(s.target.Address))
}

func (s *session) close() {
	if s.conn != nil {
		s.conn.Close()
		s.conn = nil
	}
}

// exchange sends one request, over a new connection if there is none.
func (s *session) exchange(intended, began, service time.Duration) Outcome {
	deadline := s.start + intended + s.target.Timeout
	if s.conn == nil {
		dialer := net.Dialer{Deadline: time.Now().Add(deadline - clock.Monotonic())}
		conn, err := dialer.DialContext(s.ctx, network(s.target.Address), path(s.target.Address))
		if err != nil {
			return Outcome{Intended: intended, Began: began, Done: s.elapsed(), Failure: classify(err), Worker: -1}
		}
		s.conn = conn
	}
	o := s.runner.exchange(s.conn, s.in, intended, began, service, false)
	if o.Failure != "" || o.last {
		s.close()
	}
	return o
}

// exchange sends one request and reads its whole reply: over conn, or over a new connection, which it closes,
// if conn is nil.
func (r *runner) exchange(conn net.Conn, in *bufio.Reader, intended, began, service time.Duration, last bool) Outcome {
	o := Outcome{Intended: intended, Began: began, Worker: -1}
	err := r.speak(conn, in, &o, service, last)
	o.Done = r.elapsed()
	if err != nil {
		o.Failure = classify(err)
	}
	return o
}

func (r *runner) speak(conn net.Conn, in *bufio.Reader, o *Outcome, service time.Duration, last bool) (err error) {
	deadline := time.Now().Add(r.start + o.Intended + r.target.Timeout - clock.Monotonic())
	if conn == nil {
		dialer := net.Dialer{Deadline: deadline}
		if conn, err = dialer.DialContext(r.ctx, network(r.target.Address), path(r.target.Address)); err != nil {
			return err
		}
		defer conn.Close()
	}
	if err := conn.SetDeadline(deadline); err != nil {
		return err
	}
	stop := context.AfterFunc(r.ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	request := strconv.AppendInt(append(make([]byte, 0, 128), r.request...), int64(service), 10)
	if last {
		request = append(request, "\r\nConnection: close"...)
	}
	if _, err := conn.Write(append(request, "\r\n\r\n"...)); err != nil {
		return err
	}
	in.Reset(conn)
	reply, err := http.ReadResponse(in, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, reply.Body); err != nil {
		return err
	}
	if reply.StatusCode != http.StatusOK {
		return errStatus
	}
	if text := reply.Header.Get(workerHeader); text != "" {
		r.readWorker(text, o)
	}
	o.last = reply.Close
	return nil
}

// readWorker reads the header Worker: number, pid, and when it began and ended. A server of the user's own
// may send only what it has.
func (r *runner) readWorker(text string, o *Outcome) {
	var begin, end int64
	n, _ := fmt.Sscan(text, &o.Worker, &o.PID, &begin, &end)
	if n == 0 {
		o.Worker = -1
	}
	if n == 4 {
		o.Begin, o.End = time.Duration(begin)-r.start, time.Duration(end)-r.start
	}
}
