package proxy

import (
	"fmt"
	"net/netip"
	"sync/atomic"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy/internal/access"
)

// settings are what a listener does with a new connection. A change of the configuration replaces them as a
// whole, so that a connection sees the old ones or the new ones.
type settings struct {
	cfg       ListenerConfig
	pool      *backends.Pool
	split     *backends.Split
	rules     *access.Rules       // nil: everybody
	proxyFrom *access.PrefixSet   // nil: every peer
	rate      *access.RateLimiter // nil: no limit
	sources   *access.SourceTable // nil: no limits
	maxConns  atomic.Int64        // 0: no limit
}

// newSettings makes the settings of spec. What old has counted (rates, sources) goes on.
func newSettings(spec *ListenerSpec, old *settings, p *Proxy) (*settings, error) {
	set := &settings{cfg: spec.Config, pool: spec.Pool, split: spec.Split}
	set.maxConns.Store(int64(spec.Config.MaxConns))
	var err error
	if set.rules, err = spec.Config.rules(); err != nil {
		return nil, fmt.Errorf("cannot set up listener %q: %w", spec.Name, err)
	}
	if set.proxyFrom, err = access.ParsePrefixes("proxy_from", spec.Config.ProxyFrom); err != nil {
		return nil, fmt.Errorf("cannot set up listener %q: %w", spec.Name, err)
	}
	now := p.since()
	set.rate = access.NewRateLimiter(spec.Config.Rate, spec.Config.RateBurst)
	if set.rate != nil && old != nil && old.rate != nil {
		set.rate.SetDebt(old.rate.Debt(now), now)
	}
	if spec.Config.limitsSources() {
		same := old != nil && old.sources != nil && old.cfg.SourceTableSize == spec.Config.SourceTableSize &&
			old.cfg.SourcePrefixV6 == spec.Config.SourcePrefixV6
		if same {
			set.sources = old.sources
		} else {
			set.sources = access.NewSourceTable(spec.Config.SourceTableSize, spec.Config.SourcePrefixV6, spec.Config.sourceLimits())
		}
	}
	return set, nil
}

// begin makes the limits of the sources hold, in a table that the settings may share with those before.
func (set *settings) begin() {
	if set.sources != nil {
		set.sources.SetLimits(set.cfg.sourceLimits())
	}
}

// route gives the pool of a new connection.
func (set *settings) route(client netip.Addr) *backends.Pool {
	if set.split != nil {
		return set.split.Pick(client)
	}
	return set.pool
}
