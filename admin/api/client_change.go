package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// ErrStreamEnded: lb ended a stream of events or of workers' lines, as it does when it stops and when it is
// upgraded.
var ErrStreamEnded = errors.New("lb has ended the stream: it stops, or has been upgraded")

func poolPath(pool string) string { return "/v1/pools/" + url.PathEscape(pool) }

func backendPath(pool, backend string) string {
	return poolPath(pool) + "/backends/" + url.PathEscape(backend)
}

func listenerPath(listener string) string { return "/v1/listeners/" + url.PathEscape(listener) }

// Backend asks for one backend.
func (c *Client) Backend(ctx context.Context, pool, backend string) (*BackendStatus, error) {
	return c.backend(ctx, http.MethodGet, backendPath(pool, backend), nil)
}

// SetWeight changes the weight of a backend, and returns it as it is then. Each of the changes below does the
// same for what it changes; a refusal is an *Error.
func (c *Client) SetWeight(ctx context.Context, pool, backend string, weight int) (*BackendStatus, error) {
	return c.backend(ctx, http.MethodPut, backendPath(pool, backend)+"/weight", WeightChange{Weight: &weight})
}

// SetWeightPercent changes the weight of a backend to a part of the configured one.
func (c *Client) SetWeightPercent(ctx context.Context, pool, backend string, percent int) (*BackendStatus, error) {
	return c.backend(ctx, http.MethodPut, backendPath(pool, backend)+"/weight", WeightChange{Percent: &percent})
}

// SetAdmin changes the admin state of a backend: "ready", "drain" or "maint".
func (c *Client) SetAdmin(ctx context.Context, pool, backend, state string) (*BackendStatus, error) {
	return c.backend(ctx, http.MethodPut, backendPath(pool, backend)+"/admin", AdminChange{state})
}

// SetMaxConns changes the limit of a backend; 0 is none.
func (c *Client) SetMaxConns(ctx context.Context, pool, backend string, n int) (*BackendStatus, error) {
	return c.backend(ctx, http.MethodPut, backendPath(pool, backend)+"/max_conns", MaxConnsChange{&n})
}

// AddBackend adds a backend to a pool.
func (c *Client) AddBackend(ctx context.Context, pool string, b NewBackend) (*BackendStatus, error) {
	return c.backend(ctx, http.MethodPost, poolPath(pool)+"/backends", b)
}

// RemoveBackend takes a backend out of its pool, and returns the pool as it is then.
func (c *Client) RemoveBackend(ctx context.Context, pool, backend string) (*PoolStatus, error) {
	st := new(PoolStatus)
	return st, c.do(ctx, http.MethodDelete, backendPath(pool, backend), nil, st)
}

func (c *Client) backend(ctx context.Context, method, path string, body any) (*BackendStatus, error) {
	st := new(BackendStatus)
	if err := c.do(ctx, method, path, body, st); err != nil {
		return nil, err
	}
	return st, nil
}

// SetSplit changes the weights of a listener's split, and returns them all.
func (c *Client) SetSplit(ctx context.Context, listener string, weights map[string]int) (*SplitResult, error) {
	split := new(SplitResult)
	return split, c.do(ctx, http.MethodPut, listenerPath(listener)+"/split", SplitChange{weights}, split)
}

// SetListenerMaxConns changes the limit of a listener; 0 is none.
func (c *Client) SetListenerMaxConns(ctx context.Context, listener string, n int) (*MaxConnsResult, error) {
	limit := new(MaxConnsResult)
	return limit, c.do(ctx, http.MethodPut, listenerPath(listener)+"/max_conns", MaxConnsChange{&n}, limit)
}

// Sessions lists running sessions, the oldest first, at most limit of them; 0 is the server's 1000.
func (c *Client) Sessions(ctx context.Context, f SessionFilter, limit int) (*SessionList, error) {
	list := new(SessionList)
	return list, c.get(ctx, "/v1/sessions?"+f.query(limit), list)
}

// Clients lists addresses of clients with running sessions, at most limit of them; 0 is the server's 20.
func (c *Client) Clients(ctx context.Context, f SessionFilter, limit int) (*ClientList, error) {
	list := new(ClientList)
	return list, c.get(ctx, "/v1/clients?"+f.query(limit), list)
}

// Kill closes sessions, spread over a time, and returns how many there were when all are closed. The end of
// ctx ends the killing; what was closed by then stays closed.
func (c *Client) Kill(ctx context.Context, f SessionFilter, over time.Duration) (*KillResult, error) {
	body := KillRequest{ID: f.ID, Pool: f.Pool, Backend: f.Backend}
	if f.Older > 0 {
		body.Older = f.Older.String()
	}
	if over > 0 {
		body.Over = over.String()
	}
	result := new(KillResult)
	return result, c.do(ctx, http.MethodPost, "/v1/sessions/kill", body, result)
}

// Reload has lb read its config again and apply the differences, or with dryRun tell them.
func (c *Client) Reload(ctx context.Context, dryRun bool) (*ReloadResult, error) {
	result := new(ReloadResult)
	return result, c.do(ctx, http.MethodPost, "/v1/reload", ReloadRequest{dryRun}, result)
}

// Stop begins a graceful stop, or with now an immediate one.
func (c *Client) Stop(ctx context.Context, now bool) (*StopResult, error) {
	result := new(StopResult)
	return result, c.do(ctx, http.MethodPost, "/v1/stop", StopRequest{now}, result)
}

// SetLogLevel changes the least level of the event log.
func (c *Client) SetLogLevel(ctx context.Context, level string) (*LogLevelChange, error) {
	result := new(LogLevelChange)
	return result, c.do(ctx, http.MethodPut, "/v1/log-level", LogLevelChange{level}, result)
}

// Events calls each for every event, the oldest first, until each fails, ctx is over, or there are no more.
// With Follow the error is never nil; it is ErrStreamEnded when lb has ended it.
func (c *Client) Events(ctx context.Context, q EventQuery, each func(Event) error) error {
	v := url.Values{}
	if q.After > 0 {
		v.Set("after", strconv.FormatUint(q.After, 10))
	}
	if q.Last != 0 {
		v.Set("last", strconv.Itoa(max(q.Last, 0)))
	}
	if q.Follow {
		v.Set("follow", "1")
	}
	resp, err := c.send(ctx, http.MethodGet, "/v1/events?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var e Event
		if err := dec.Decode(&e); err != nil {
			return c.streamError(ctx, q.Follow, err)
		}
		if err := each(e); err != nil {
			return err
		}
	}
}

// streamError is what the end of a stream means.
func (c *Client) streamError(ctx context.Context, follow bool, err error) error {
	var syntax *json.SyntaxError
	var typ *json.UnmarshalTypeError
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.As(err, &syntax), errors.As(err, &typ):
		return fmt.Errorf("cannot read the events of lb at %q: %w", c.socket, err)
	case follow:
		return ErrStreamEnded
	case errors.Is(err, io.EOF):
		return nil
	default:
		return fmt.Errorf("cannot read the events of lb at %q: %w", c.socket, err)
	}
}
