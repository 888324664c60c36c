package api

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"syscall"
)

// ErrUnreachable: nobody answers at the control socket. What it wraps says why.
var ErrUnreachable = errors.New("cannot reach lb")

// DefaultSocket is where the control socket is when nobody says otherwise.
const DefaultSocket = "/run/lb/admin.sock"

// maxReply is how many bytes of an answer the client reads.
const maxReply = 256 << 20

// Client asks a running lb over its control socket. Make it with NewClient. Safe for concurrent use.
type Client struct {
	socket string
	http   http.Client
}

// NewClient makes a client of the lb with that control socket. It connects again for every request.
func NewClient(socket string) *Client {
	c := &Client{socket: socket}
	c.http.Transport = &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			var d net.Dialer
			return d.DialContext(ctx, "unix", socket)
		},
	}
	return c
}

// Status asks for listeners, pools and backends.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	st := new(Status)
	if err := c.get(ctx, "/v1/status", st); err != nil {
		return nil, err
	}
	return st, nil
}

// Pool asks for one pool.
func (c *Client) Pool(ctx context.Context, pool string) (*PoolStatus, error) {
	st := new(PoolStatus)
	if err := c.get(ctx, poolPath(pool), st); err != nil {
		return nil, err
	}
	return st, nil
}

// PoolJSON is Pool as lb sent it.
func (c *Client) PoolJSON(ctx context.Context, pool string) (json.RawMessage, error) {
	var raw json.RawMessage
	if err := c.get(ctx, poolPath(pool), &raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// StatusJSON is Status as lb sent it, with what a newer lb has and this Status lacks.
func (c *Client) StatusJSON(ctx context.Context) (json.RawMessage, error) {
	var raw json.RawMessage
	if err := c.get(ctx, "/v1/status", &raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// get asks for path and reads the answer into v.
func (c *Client) get(ctx context.Context, path string, v any) error {
	return c.do(ctx, http.MethodGet, path, nil, v)
}

// do sends a request, with body as JSON unless it is nil, and reads the answer into v. A refusal of lb is an
// *Error; an lb that cannot be asked is ErrUnreachable; a ctx that was cancelled is its error.
func (c *Client) do(ctx context.Context, method, path string, body, v any) error {
	resp, err := c.send(ctx, method, path, body)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if err := json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(v); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("cannot read the answer of lb at %q: %w", c.socket, err)
	}
	return nil
}

// send sends a request and returns the answer, whose body the caller closes, if lb did not refuse.
func (c *Client) send(ctx context.Context, method, path string, body any) (*http.Response, error) {
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return nil, err
		}
		sent = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://lb"+path, sent)
	if err != nil {
		return nil, err
	}
	if body != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if errors.Is(err, context.Canceled) {
			return nil, context.Canceled
		}
		return nil, &unreachableError{socket: c.socket, cause: err}
	}
	if resp.StatusCode != http.StatusOK {
		defer resp.Body.Close()
		refusal := &Error{Status: resp.StatusCode}
		if json.NewDecoder(io.LimitReader(resp.Body, maxReply)).Decode(refusal) != nil || refusal.Message == "" {
			refusal.Message = fmt.Sprintf("lb at %q answered %s", c.socket, resp.Status)
		}
		return nil, refusal
	}
	return resp, nil
}

// unreachableError says what went wrong and what to do about it.
type unreachableError struct {
	socket string
	cause  error
}

func (e *unreachableError) Error() string {
	if e.ended() {
		return fmt.Sprintf("lb at %q has ended the connection before its answer: it stops, or has been upgraded", e.socket)
	}
	return fmt.Sprintf("cannot reach lb at %q: %s", e.socket, e.remedy())
}

// ended says whether lb was there, and is gone before it has answered.
func (e *unreachableError) ended() bool {
	var op *net.OpError
	if errors.As(e.cause, &op) && op.Op == "dial" {
		return false
	}
	return errors.Is(e.cause, io.EOF) || errors.Is(e.cause, io.ErrUnexpectedEOF) || errors.Is(e.cause, syscall.ECONNRESET) || errors.Is(e.cause, syscall.EPIPE)
}

func (e *unreachableError) Unwrap() []error { return []error{ErrUnreachable, e.cause} }

func (e *unreachableError) remedy() string {
	const name = "is lb running? name its socket with -s or LB_SOCKET"
	switch {
	case errors.Is(e.cause, fs.ErrNotExist):
		return "no such file: " + name
	case errors.Is(e.cause, syscall.ECONNREFUSED):
		return "nobody listens on it: " + name
	case errors.Is(e.cause, fs.ErrPermission):
		return "permission denied: run as root, or as a user who may write to it (admin.socket_group, admin.socket_mode)"
	case errors.Is(e.cause, context.DeadlineExceeded):
		return "no answer in time: lb is stopped or very busy"
	case errors.Is(e.cause, syscall.EAGAIN):
		return "too many wait for its answer already: lb is stopped or very busy"
	}
	// What http.Client wraps it in speaks of a URL that nobody wrote.
	cause := e.cause
	for next := errors.Unwrap(cause); next != nil; next = errors.Unwrap(cause) {
		cause = next
	}
	return cause.Error()
}
