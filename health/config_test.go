package health

import (
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

func TestConfig_DefaultIsValid(t *testing.T) {
	c := DefaultConfig()
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for _, typ := range types {
		c := DefaultConfig()
		if c.Type = typ; typ == typeSendExpect {
			c.Expect = "+PONG"
		}
		if err := c.Validate(); err != nil {
			t.Errorf("type %q: %v", typ, err)
		}
	}
}

func TestConfig_IntervalIsTheDefaultOfTheOtherTwo(t *testing.T) {
	c := DefaultConfig()
	c.Interval = 7 * time.Second
	p, err := c.plan()
	if err != nil {
		t.Fatal(err)
	}
	if p.FastInterval != c.Interval || p.DownInterval != c.Interval {
		t.Errorf("got %v and %v; want %v", p.FastInterval, p.DownInterval, c.Interval)
	}
}

func TestConfig_InitialHealth(t *testing.T) {
	c := DefaultConfig()
	if got := c.InitialHealth(); got != backends.HealthUp {
		t.Errorf("default: got %v; want up", got)
	}
	if c.Initial = "down"; c.InitialHealth() != backends.HealthDown {
		t.Errorf("down: got %v; want down", c.InitialHealth())
	}
}

func TestConfig_EachFaultNamesItsKey(t *testing.T) {
	f := func(change func(c *Config), want ...string) {
		t.Helper()
		c := DefaultConfig()
		change(&c)
		err := c.Validate()
		if err == nil {
			t.Errorf("got no error; want %q", want)
			return
		}
		lines := strings.Split(err.Error(), "\n")
		if len(lines) != len(want) {
			t.Errorf("got %q; want %q", lines, want)
			return
		}
		for i := range want {
			if !strings.HasPrefix(lines[i], want[i]) {
				t.Errorf("got %q; want it to start with %q", lines[i], want[i])
			}
		}
	}
	f(func(c *Config) { c.Type = "tcp" }, `type: unknown type "tcp"; write one of ["accept" "connect" "send-expect"`)
	f(func(c *Config) { c.Interval = 0 }, "interval: must be more than 0")
	f(func(c *Config) { c.Interval = 5 }, `interval: 5ns is below 1ms; a bare number counts nanoseconds: write "5s"`)
	f(func(c *Config) { c.FastInterval = -1 }, "fast_interval: -1ns is negative")
	f(func(c *Config) { c.DownInterval = 1 }, "down_interval: 1ns")
	f(func(c *Config) { c.Timeout = 0 }, "timeout: must")
	f(func(c *Config) { c.PassiveHold = 0 }, "passive_hold: must")
	f(func(c *Config) { c.Jitter = 0.6 }, "jitter: 0.6 is not within 0..0.5")
	f(func(c *Config) { c.Rise = 0 }, "rise: 0")
	f(func(c *Config) { c.Fall = -1 }, "fall: -1")
	f(func(c *Config) { c.Initial = "starting" }, `initial: unknown state "starting"`)
	f(func(c *Config) { c.PassiveFall = -1 }, "passive_fall: -1 is negative")
	f(func(c *Config) { c.Address = "localhost" }, "address: cannot parse")
	f(func(c *Config) { c.Address = ":80" }, `address: ":80" needs a host`)
	f(func(c *Config) { c.Port = 70000 }, "port: 70000 is not within")
	f(func(c *Config) { c.Address, c.Port = "h:1", 2 }, "port: give address or port, not both")
	f(func(c *Config) { c.Type, c.Port, c.Address = "none", 2, "" }, `port: nothing is probed with type "none"`)
	f(func(c *Config) { c.Type, c.Address = "notify", "h:1" }, `address: nothing is probed with type "notify"`)
	f(func(c *Config) { c.Send = "PING" }, `send: has no meaning with type "accept"`)
	f(func(c *Config) { c.Expect = "PONG" }, `expect: has no meaning with type "accept"`)
	f(func(c *Config) { c.Type = "send-expect" }, `expect: missing; type "send-expect" needs it`)
	f(func(c *Config) { c.Type, c.Send, c.Expect = "send-expect", "hex:1", "hex:" }, "send: ", "expect: ")
	f(func(c *Config) { c.HTTPMethod = "" }, `http_method: "" is no HTTP method`)
	f(func(c *Config) { c.HTTPMethod = "GET /\r\n" }, "http_method: ")
	f(func(c *Config) { c.HTTPPath = "health" }, `http_path: "health" must start with /`)
	f(func(c *Config) { c.HTTPPath = "/a b" }, "http_path: ")
	f(func(c *Config) { c.HTTPHost = "a\r\nX: y" }, "http_host: ")
	f(func(c *Config) { c.HTTPStatus = "200-" }, `http_status: cannot parse status "200-"`)
	// all at once
	f(func(c *Config) { c.Rise, c.Fall, c.HTTPPath = 0, 0, "" }, "rise: ", "fall: ", "http_path: ")
}

func TestNewChecker_RefusesWhatValidateRefuses(t *testing.T) {
	c := DefaultConfig()
	c.Rise = 0
	_, err := NewChecker(newPool(t, backends.HealthUp), c)
	if err == nil || err.Error() != `cannot watch pool "p": rise: 0 is not a positive number` {
		t.Errorf("got %v", err)
	}
}
