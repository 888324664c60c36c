package admin

import (
	"errors"
	"net/http"
	"os"
	"sync/atomic"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

func refuse(status int, format string, args ...any) *api.Error {
	return api.Refuse(status, format, args...)
}

// refusalReason is why a request was refused that a stranger may have sent; the reason label of
// lb_admin_refused_total.
type refusalReason uint8

const (
	refusedHost       refusalReason = iota // a Host that is not lb's
	refusedOrigin                          // a page of another origin
	refusedNoToken                         // a change over TCP without the token
	refusedWrongToken                      // a token that is not the one
	refusedAccess                          // a caller who is known and may not do this
	refusedBodySize                        // a body of more than maxBody
	refusedSlowBody                        // a body that did not come within readTimeout
	refusedSelf                            // lb itself, which relays somebody else
	refusedShare                           // a connection beyond the share of its user or address

	numRefusalReasons = int(refusedShare) + 1
)

var refusalNames = [numRefusalReasons]string{"host", "origin", "no_token", "wrong_token", "access", "body_size", "slow_body", "self", "share"}

// refusals counts by reason. Safe for concurrent use.
type refusals [numRefusalReasons]atomic.Uint64

func (c *refusals) count(why refusalReason) { c[why].Add(1) }

// asRefusal is the refusal that an error stands for.
func asRefusal(err error) *api.Error {
	var refusal *api.Error
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &refusal):
		return refusal
	case errors.As(err, &tooLarge):
		return refuse(http.StatusRequestEntityTooLarge, "the body has more than %d bytes", tooLarge.Limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return refuse(http.StatusRequestTimeout, "the request did not come within %v", readTimeout)
	case errors.Is(err, backends.ErrUnknown):
		return refuse(http.StatusNotFound, "%v", err)
	case errors.Is(err, backends.ErrRange):
		return refuse(http.StatusBadRequest, "%v", err)
	default:
		return refuse(http.StatusInternalServerError, "%v", err)
	}
}
