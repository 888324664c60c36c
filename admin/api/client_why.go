package api

import (
	"context"
	"encoding/json"
)

// Why asks what is wrong with a backend, or with the worker of a slot.
func (c *Client) Why(ctx context.Context, pool, backend string) (*Diagnosis, error) {
	d := new(Diagnosis)
	return d, c.get(ctx, backendPath(pool, backend)+"/why", d)
}

// WhyPool asks what is wrong with a pool and each of its backends.
func (c *Client) WhyPool(ctx context.Context, pool string) (*PoolDiagnosis, error) {
	d := new(PoolDiagnosis)
	return d, c.get(ctx, poolPath(pool)+"/why", d)
}

// WhyJSON is Why, or for an empty backend WhyPool, as lb sent it.
func (c *Client) WhyJSON(ctx context.Context, pool, backend string) (json.RawMessage, error) {
	path := poolPath(pool)
	if backend != "" {
		path = backendPath(pool, backend)
	}
	var raw json.RawMessage
	return raw, c.get(ctx, path+"/why", &raw)
}
