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
)

func slotPath(pool string, slot int) string { return poolPath(pool) + "/workers/" + strconv.Itoa(slot) }

// Workers asks for the workers of a pool.
func (c *Client) Workers(ctx context.Context, pool string) (*WorkersStatus, error) {
	st := new(WorkersStatus)
	return st, c.get(ctx, poolPath(pool)+"/workers", st)
}

// Scale changes how many workers a pool has, and returns them when the new ones are ready.
func (c *Client) Scale(ctx context.Context, pool string, s ScaleRequest) (*WorkersStatus, error) {
	st := new(WorkersStatus)
	return st, c.do(ctx, http.MethodPost, poolPath(pool)+"/scale", s, st)
}

// StopWorker ends the worker of a slot, and returns the pool's when it has ended. None is started there until
// StartWorker.
func (c *Client) StopWorker(ctx context.Context, pool string, slot int) (*WorkersStatus, error) {
	st := new(WorkersStatus)
	return st, c.do(ctx, http.MethodPost, slotPath(pool, slot)+"/stop", nil, st)
}

// StartWorker starts the worker of a slot, and returns the pool's when it is ready.
func (c *Client) StartWorker(ctx context.Context, pool string, slot int) (*WorkersStatus, error) {
	st := new(WorkersStatus)
	return st, c.do(ctx, http.MethodPost, slotPath(pool, slot)+"/start", nil, st)
}

// Restart replaces workers, and calls each for every step. It returns when the restart has ended, or with
// NoWait when it has begun. The end of ctx ends it: the workers that were not replaced stay. A restart that
// failed is an *Error.
func (c *Client) Restart(ctx context.Context, pool string, r RestartRequest, each func(RestartStep) error) error {
	return c.rollout(ctx, poolPath(pool)+"/restart", r, each)
}

// Rollback is Restart with the command, the environment and the directory that worked before those of now.
func (c *Client) Rollback(ctx context.Context, pool string, r RestartRequest, each func(RestartStep) error) error {
	return c.rollout(ctx, poolPath(pool)+"/rollback", r, each)
}

func (c *Client) rollout(ctx context.Context, path string, r RestartRequest, each func(RestartStep) error) error {
	resp, err := c.send(ctx, http.MethodPost, path, r)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var step RestartStep
		switch err := dec.Decode(&step); {
		case ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return fmt.Errorf("cannot tell what became of the restart; lb at %q has ended its answer: %w", c.socket, err)
		}
		if err := each(step); err != nil {
			return err
		}
		switch {
		case step.Slot != nil:
		case step.Step == "failed":
			return &Error{Status: http.StatusConflict, Message: step.Error}
		default:
			return nil
		}
	}
}

// Logs calls each for every line that the pool's workers wrote, the oldest first. Its end is as that of
// Events.
func (c *Client) Logs(ctx context.Context, pool string, q LogQuery, each func(WorkerLine) error) error {
	v := url.Values{}
	if q.Slot >= 0 {
		v.Set("slot", strconv.Itoa(q.Slot))
	}
	if q.Last > 0 {
		v.Set("last", strconv.Itoa(q.Last))
	}
	if q.Follow {
		v.Set("follow", "1")
	}
	resp, err := c.send(ctx, http.MethodGet, poolPath(pool)+"/logs?"+v.Encode(), nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	for dec := json.NewDecoder(resp.Body); ; {
		var line WorkerLine
		if err := dec.Decode(&line); err != nil {
			if !q.Follow && errors.Is(err, io.EOF) {
				return nil
			}
			return c.streamError(ctx, q.Follow, err)
		}
		if err := each(line); err != nil {
			return err
		}
	}
}
