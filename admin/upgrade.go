package admin

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/internal/descriptor"
)

// Reply is the way to who waits for the answer of an upgrade. It is for the time of one call of
// Control.Upgrade, and for one goroutine.
type Reply struct {
	rc   *http.ResponseController
	conn net.Conn // once it was given away
}

// Hand takes the caller's connection out of the Server, which Freeze then does not wait for, and returns a
// duplicate of it, closed on exec, that the caller of Hand closes. The request has been read whole, and no
// deadline is left on it. Who is the process after an exec answers with Answer; if there is none, the Server
// answers as usual with what Control.Upgrade returns. From then on it is not seen when the caller leaves.
func (c *Reply) Hand() (*os.File, error) {
	if c.conn == nil {
		conn, _, err := c.rc.Hijack()
		if err != nil {
			return nil, fmt.Errorf("cannot hand the caller's connection over: %w", err)
		}
		c.conn = conn
	}
	f, err := descriptor.CopyFile(bareConn(c.conn), "caller")
	if err != nil {
		return nil, fmt.Errorf("cannot hand the caller's connection over: %w", err)
	}
	return f, nil
}

// bareConn is the socket of a Server's connection.
func bareConn(c net.Conn) syscall.Conn {
	if limited, ok := c.(*limitedConn); ok {
		c = limited.Conn
	}
	return c.(syscall.Conn) // a listener of the Server gives no other
}

// upgrade answers like every other handler, but the connection may have been given away meanwhile.
func (s *Server) upgrade(w http.ResponseWriter, r *http.Request) {
	c := &Reply{rc: http.NewResponseController(w)}
	v, err := s.upgraded(c, r)
	switch {
	case c.conn != nil:
		setNonblock(bareConn(c.conn))
		answerOn(c.conn, v, err) // an error is that of a caller who left
	case err != nil:
		s.fail(w, err)
	default:
		writeJSON(w, http.StatusOK, v)
	}
}

func (s *Server) upgraded(c *Reply, r *http.Request) (any, error) {
	var body api.UpgradeRequest
	if err := readBodyIfAny(r, &body); err != nil {
		return nil, err
	}
	if err := s.mayName(body.Binary, CallerFrom(r.Context())); err != nil {
		return nil, err
	}
	unhurried(c.rc, slowest)
	result, err := s.Control.Upgrade(r.Context(), body, c, by(r))
	return upgradeAnswer(result, err)
}

// mayName refuses a binary that p may not name. To name one is to have lb run any program of its host as its
// own user, also in a dry run: more than a token is for, which a dashboard or a script holds, perhaps on
// another host.
func (s *Server) mayName(binary string, p Caller) error {
	switch {
	case binary == "":
	case !p.Local:
		s.refused.count(refusedAccess)
		return refuse(http.StatusForbidden, "binary: over HTTP lb goes on only as the program that it was started from: leave it out, or name it over the control socket, with lb upgrade --binary FILE")
	case !filepath.IsAbs(binary):
		return refuse(http.StatusBadRequest, "binary: %q is no absolute path", binary)
	}
	return nil
}

func upgradeAnswer(result api.UpgradeResult, err error) (any, error) {
	if result.Warnings == nil {
		result.Warnings = []string{}
	}
	return changed(result, err)
}

const (
	// answerTimeout is how long an answer may take whose reader does not read. It fits into the socket's
	// buffer.
	answerTimeout = 5 * time.Second
	// lingerTimeout is how long a TCP connection waits for the caller's end, so that what he sent besides
	// does not reset it before he has read the answer (RFC 9112, section 9.6).
	lingerTimeout = 100 * time.Millisecond
)

// Answer answers the caller of POST /v1/upgrade on the connection that Reply.Hand gave to the process before
// the exec, and closes f. With err it is the refusal that the handler would have sent. A caller who has left
// is an error, and nothing else.
func Answer(f *os.File, result api.UpgradeResult, err error) error {
	conn, connErr := net.FileConn(f)
	f.Close() // conn has a duplicate
	if connErr != nil {
		return fmt.Errorf("cannot answer the caller: %w", connErr)
	}
	v, err := upgradeAnswer(result, err)
	return answerOn(conn, v, err)
}

// answerOn writes a whole HTTP response, and closes the connection.
func answerOn(conn net.Conn, v any, err error) error {
	defer conn.Close()
	text, err := wholeAnswer(v, err)
	if err != nil {
		return fmt.Errorf("cannot answer the caller: %w", err)
	}
	// fails only on a closed connection, as the write does then
	conn.SetWriteDeadline(time.Now().Add(answerTimeout))
	if _, err := conn.Write(text); err != nil {
		return fmt.Errorf("cannot answer the caller: %w", err)
	}
	if tcp, ok := bareConn(conn).(*net.TCPConn); ok {
		tcp.CloseWrite()
		tcp.SetReadDeadline(time.Now().Add(lingerTimeout))
		io.Copy(io.Discard, io.LimitReader(tcp, maxBody))
	}
	return nil
}

// wholeAnswer returns a whole HTTP response, the last on its connection: v, or the refusal that err is.
func wholeAnswer(v any, err error) ([]byte, error) {
	status := http.StatusOK
	if err != nil {
		refusal := asRefusal(err)
		status, v = refusal.Status, refusal
	}
	var body bytes.Buffer
	enc := newEncoder(&body)
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	resp := &http.Response{
		StatusCode: status, ProtoMajor: 1, ProtoMinor: 1, Close: true,
		Header: http.Header{
			"Cache-Control":          {"no-store"},
			"Content-Type":           {"application/json"},
			"Date":                   {time.Now().UTC().Format(http.TimeFormat)},
			"X-Content-Type-Options": {"nosniff"},
		},
		Body: io.NopCloser(&body), ContentLength: int64(body.Len()),
	}
	var text bytes.Buffer
	err = resp.Write(&text)
	return text.Bytes(), err
}

// setNonblock undoes what a program may have done that asked a duplicate for its descriptor (os.File.Fd): the
// mode is that of the socket, and not of the descriptor.
func setNonblock(c syscall.Conn) {
	if raw, err := c.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) { syscall.SetNonblock(int(fd), true) })
	}
}
