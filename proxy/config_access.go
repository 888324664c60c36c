package proxy

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/proxy/internal/access"
)

const (
	maxSourceTable = 1 << 24 // entries, 768 MiB
	minSourceTable = 1024
)

// AccessConfig is who may connect to a listener, how many and how fast, part of [listeners.NAME]. Take
// DefaultAccessConfig and change it: the zero value is not valid.
//
// Clients are told apart by their address; behind a proxy, with AcceptProxy, by the one that the PROXY header
// names. A connection that is refused is closed at once. What refuses, in this order: ProxyFrom, Deny, Allow,
// MaxConns, SourceMaxConns, SourceRate, Rate.
type AccessConfig struct {
	// Allow are the only clients that may connect: prefixes such as "192.0.2.0/24" and "2001:db8::/32",
	// single addresses, and "unix:" for the clients of a Unix socket. "::/0" is every IPv6 address, and no
	// IPv4 one. Default []: everybody.
	Allow []string `toml:"allow"`
	// Deny are clients that may not connect, in the forms of Allow. It wins over Allow, whichever prefix is
	// longer; the order of the entries means nothing. Default []: nobody.
	Deny []string `toml:"deny"`
	// MaxConns is how many connections the listener has at once. 0 (default) is no limit but
	// proxy.max_sessions.
	MaxConns int `toml:"max_conns"`
	// Rate is how many new connections the listener takes a second, up to 1000000, over all event loops
	// together; 0.5 is one in two seconds. 0 (default) is no limit.
	Rate float64 `toml:"rate"`
	// RateBurst is how many new connections Rate lets in at once after a pause. 0 (default) is what comes in
	// one second, at least 1.
	RateBurst int `toml:"rate_burst"`
	// SourceMaxConns is how many connections one client address has at once. 0 (default) is no limit.
	SourceMaxConns int `toml:"source_max_conns"`
	// SourceRate is how many new connections one client address makes a second, as Rate. 0 (default) is no
	// limit.
	SourceRate float64 `toml:"source_rate"`
	// SourceBurst is RateBurst for SourceRate. 0 (default) is what comes in one second, at least 1.
	SourceBurst int `toml:"source_burst"`
	// SourcePrefixV6 is how many bits of an IPv6 address tell one client from another, 1..128: whoever has
	// one address has a whole prefix. Default 64; 48 or 56 where clients are known to have more.
	SourcePrefixV6 int `toml:"source_prefix_v6"`
	// SourceTableSize is how many client addresses are remembered for SourceMaxConns and SourceRate,
	// 1024..16777216, in at most 48 bytes each, 2.75 MiB with the default. Beyond it the address unused for
	// longest is forgotten, never one with live connections; while all have some, new addresses are let in
	// without being counted. Default 65536.
	SourceTableSize int `toml:"source_table_size"`
	// AcceptProxy expects each connection to begin with a PROXY header, version 1 or 2, and takes the
	// client's address from it. A connection without a valid one is closed. Default false.
	AcceptProxy bool `toml:"accept_proxy"`
	// ProxyFrom are the only peers that may connect with AcceptProxy, in the forms of Allow: the proxies in
	// front of lb. Default []: every peer, each of which can pretend any client address.
	ProxyFrom []string `toml:"proxy_from"`
	// ProxyTimeout is how long the PROXY header may take from the accept until it is complete; 3s cover the
	// loss of one packet. Default 5s.
	ProxyTimeout time.Duration `toml:"proxy_timeout"`
}

// DefaultAccessConfig lets everybody in.
func DefaultAccessConfig() AccessConfig {
	return AccessConfig{SourcePrefixV6: 64, SourceTableSize: 65536, ProxyTimeout: 5 * time.Second}
}

// validate finds every fault. Each error's text starts with the key.
func (c *AccessConfig) validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	_, err := c.rules()
	errs = append(errs, err)
	_, err = access.ParsePrefixes("proxy_from", c.ProxyFrom)
	errs = append(errs, err)
	if len(c.ProxyFrom) > 0 && !c.AcceptProxy {
		fault("proxy_from: has no effect without accept_proxy = true; use allow to choose the clients")
	}
	for _, limit := range []struct {
		key   string
		value int
		max   int
	}{
		{"max_conns", c.MaxConns, math.MaxInt32},
		{"source_max_conns", c.SourceMaxConns, math.MaxInt32},
		{"rate_burst", c.RateBurst, access.MaxBurst},
		{"source_burst", c.SourceBurst, access.MaxBurst},
	} {
		if limit.value < 0 || limit.value > limit.max {
			fault("%s: %d is not within 0..%d", limit.key, limit.value, limit.max)
		}
	}
	errs = append(errs, checkRate("rate", c.Rate), checkRate("source_rate", c.SourceRate))
	if c.SourcePrefixV6 < 1 || c.SourcePrefixV6 > 128 {
		fault("source_prefix_v6: %d is not within 1..128", c.SourcePrefixV6)
	}
	if c.SourceTableSize < minSourceTable || c.SourceTableSize > maxSourceTable {
		fault("source_table_size: %d is not within %d..%d", c.SourceTableSize, minSourceTable, maxSourceTable)
	}
	errs = append(errs, backends.CheckDuration("proxy_timeout", c.ProxyTimeout, false))
	return errors.Join(errs...)
}

func checkRate(key string, rate float64) error {
	if rate == 0 || rate >= access.MinRate && rate <= access.MaxRate { // not so for NaN
		return nil
	}
	return fmt.Errorf("%s: %v is not within %v..%.0f connections a second; write 0 for no limit", key, rate, access.MinRate, access.MaxRate)
}

// rules are Allow and Deny; nil when both are empty.
func (c *AccessConfig) rules() (*access.Rules, error) {
	allow, allowErr := access.ParsePrefixes("allow", c.Allow)
	deny, denyErr := access.ParsePrefixes("deny", c.Deny)
	if err := errors.Join(allowErr, denyErr); err != nil {
		return nil, err
	}
	if allow == nil && deny == nil {
		return nil, nil
	}
	return &access.Rules{Allow: allow, Deny: deny}, nil
}

// limitsSources says whether there is anything to count by source.
func (c *AccessConfig) limitsSources() bool { return c.SourceMaxConns > 0 || c.SourceRate > 0 }

// sourceLimits are the limits of one source.
func (c *AccessConfig) sourceLimits() access.SourceLimits {
	return access.SourceLimits{MaxConns: uint32(c.SourceMaxConns), Pace: access.NewPace(c.SourceRate, c.SourceBurst)}
}
