package api

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
)

// UpgradeRequest is the body of POST /v1/upgrade; it may be absent.
type UpgradeRequest struct {
	// Binary is the absolute path of the program to go on as, which only a caller of the control socket may
	// name; empty is the one that lb was started from.
	Binary string `json:"binary,omitempty"`
	// DryRun only asks the new program whether it can take over.
	DryRun bool `json:"dry_run,omitempty"`
	// Reload has the new program read the config again.
	Reload bool `json:"reload,omitempty"`
}

// UpgradeResult is the answer of POST /v1/upgrade.
type UpgradeResult struct {
	DryRun bool `json:"dry_run"`
	// From and To are the versions before and after.
	From string `json:"from"`
	To   string `json:"to"`
	// Sessions is how many sessions were carried over, or with dry_run how many there are.
	Sessions int `json:"sessions"`
	// Standstill is how many seconds they stood still; 0 with dry_run.
	Standstill float64 `json:"standstill_seconds"`
	PID        int     `json:"pid"`
	// Warnings are what the new program found that is legal and probably wrong.
	Warnings []string `json:"warnings"`
}

// ErrOutcomeUnknown: the connection to lb ended before the answer, and what was asked for may have been done
// or not.
var ErrOutcomeUnknown = errors.New("the connection ended before lb answered")

// Upgrade has lb go on as another program, or with DryRun asks whether it could, and returns the outcome. It
// takes as long as ctx lets it. ErrOutcomeUnknown says that lb did not answer.
func (c *Client) Upgrade(ctx context.Context, r UpgradeRequest) (*UpgradeResult, error) {
	result := new(UpgradeResult)
	err := c.do(ctx, http.MethodPost, "/v1/upgrade", r, result)
	var refusal *Error
	var dial *net.OpError
	switch {
	case err == nil:
		return result, nil
	case errors.As(err, &refusal), errors.Is(err, context.Canceled), errors.As(err, &dial) && dial.Op == "dial":
		return nil, err
	}
	return nil, fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
}
