package admin

import (
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
var ErrUnreachable = errors.New("admin: cannot reach lb")

// maxReply is how many bytes of an answer the client reads.
const maxReply = 256 << 20

// Client asks a running lb over its control socket. Make it with NewClient. Safe for concurrent use.
type Client struct {
	socket string
	http   http.Client
}

// NewClient makes a client of the lb with that control socket. It connects anew for every request.
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

// StatusJSON is Status as lb sent it, with what a newer lb has and this Status lacks.
func (c *Client) StatusJSON(ctx context.Context) (json.RawMessage, error) {
	var raw json.RawMessage
	if err := c.get(ctx, "/v1/status", &raw); err != nil {
		return nil, err
	}
	return raw, nil
}

// get asks for path and reads the answer into v. A refusal of lb is an *Error; an lb that cannot be asked is ErrUnreachable.
func (c *Client) get(ctx context.Context, path string, v any) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://lb"+path, nil)
	if err != nil {
		return err
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return &unreachableError{socket: c.socket, cause: err}
	}
	defer resp.Body.Close()
	body := json.NewDecoder(io.LimitReader(resp.Body, maxReply))
	if resp.StatusCode != http.StatusOK {
		refusal := &Error{Status: resp.StatusCode}
		if body.Decode(refusal) != nil || refusal.Message == "" {
			refusal.Message = fmt.Sprintf("lb at %q answered %s", c.socket, resp.Status)
		}
		return refusal
	}
	if err := body.Decode(v); err != nil {
		return fmt.Errorf("cannot read the answer of lb at %q: %w", c.socket, err)
	}
	return nil
}

// unreachableError says what went wrong and what to do about it.
type unreachableError struct {
	socket string
	cause  error
}

func (e *unreachableError) Error() string {
	return fmt.Sprintf("cannot reach lb at %q: %s", e.socket, e.advice())
}

func (e *unreachableError) Unwrap() []error { return []error{ErrUnreachable, e.cause} }

func (e *unreachableError) advice() string {
	const name = "is lb running? name its socket with -s or LB_SOCKET"
	switch {
	case errors.Is(e.cause, fs.ErrNotExist):
		return "no such file: " + name
	case errors.Is(e.cause, syscall.ECONNREFUSED):
		return "nobody listens on it: " + name
	case errors.Is(e.cause, fs.ErrPermission):
		return "permission denied: run as root, or as a user who may write to it (admin.socket_mode)"
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
