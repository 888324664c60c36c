package proxy

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/proxy/internal/access"
)

func TestAccessConfig_DefaultLetsEverybodyIn(t *testing.T) {
	c := DefaultAccessConfig()
	if err := c.validate(); err != nil {
		t.Fatal(err)
	}
	if r, err := c.rules(); r != nil || err != nil {
		t.Errorf("rules: got %v, %v; want none", r, err)
	}
	if c.limitsSources() || access.NewRateLimiter(c.Rate, c.RateBurst) != nil {
		t.Error("the default has limits")
	}
}

func TestAccessConfig_Validate(t *testing.T) {
	f := func(change func(c *AccessConfig), want ...string) {
		t.Helper()
		c := DefaultAccessConfig()
		change(&c)
		var got []string
		if err := c.validate(); err != nil {
			got = strings.Split(err.Error(), "\n")
		}
		if len(got) != len(want) {
			t.Fatalf("got %q; want %q", got, want)
		}
		for i := range want {
			if !strings.HasPrefix(got[i], want[i]+": ") {
				t.Errorf("got %q; want one of %s", got[i], want[i])
			}
		}
	}
	f(func(c *AccessConfig) {
		*c = AccessConfig{
			Allow: []string{"192.0.2.0/24", "unix:"}, Deny: []string{"192.0.2.7"}, MaxConns: 1000, Rate: 0.5, RateBurst: 10,
			SourceMaxConns: 100, SourceRate: 20, SourceBurst: 40, SourcePrefixV6: 56, SourceTableSize: 1024,
			AcceptProxy: true, ProxyFrom: []string{"10.0.0.0/8"}, ProxyTimeout: 3 * time.Second,
		}
	})
	f(func(c *AccessConfig) { *c = AccessConfig{} }, "source_prefix_v6", "source_table_size", "proxy_timeout")
	f(func(c *AccessConfig) { c.Allow = []string{"::/0", "localhost", "10.0.0.1/8"} }, "allow[1]", "allow[2]")
	f(func(c *AccessConfig) { c.Deny = []string{"x"}; c.Allow = []string{"y"} }, "allow[0]", "deny[0]")
	f(func(c *AccessConfig) { c.ProxyFrom = []string{"10.0.0.0/8", ""}; c.AcceptProxy = true }, "proxy_from[1]")
	f(func(c *AccessConfig) { c.ProxyFrom = []string{"10.0.0.0/8"} }, "proxy_from")
	f(func(c *AccessConfig) { c.MaxConns, c.SourceMaxConns, c.RateBurst, c.SourceBurst = -1, -1, -1, -1 },
		"max_conns", "source_max_conns", "rate_burst", "source_burst")
	f(func(c *AccessConfig) { c.MaxConns, c.SourceMaxConns = math.MaxInt32, math.MaxInt32 })
	f(func(c *AccessConfig) { c.RateBurst, c.SourceBurst = access.MaxBurst+1, access.MaxBurst+1 }, "rate_burst", "source_burst")
	f(func(c *AccessConfig) { c.Rate, c.SourceRate = access.MaxRate, access.MinRate })
	for _, rate := range []float64{-1, access.MinRate / 2, access.MaxRate * 2, math.NaN(), math.Inf(1), math.Inf(-1)} {
		f(func(c *AccessConfig) { c.Rate, c.SourceRate = rate, rate }, "rate", "source_rate")
	}
	f(func(c *AccessConfig) { c.SourcePrefixV6 = 129 }, "source_prefix_v6")
	f(func(c *AccessConfig) { c.SourceTableSize = 1023 }, "source_table_size")
	f(func(c *AccessConfig) { c.SourceTableSize = 1<<24 + 1 }, "source_table_size")
	f(func(c *AccessConfig) { c.ProxyTimeout = 5 }, "proxy_timeout")
	f(func(c *AccessConfig) { c.ProxyTimeout = 0 }, "proxy_timeout")
}

func TestAccessConfig_SourceLimits(t *testing.T) {
	c := DefaultAccessConfig()
	c.SourceMaxConns, c.SourceRate, c.SourceBurst = 7, 10, 5
	got := c.sourceLimits()
	want := access.SourceLimits{MaxConns: 7, Pace: access.NewPace(10, 5)}
	if got != want || !c.limitsSources() {
		t.Errorf("got %+v; want %+v", got, want)
	}
}
