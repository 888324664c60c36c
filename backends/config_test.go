package backends_test

import (
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// validConfig is a configuration with two backends.
func validConfig() backends.Config {
	cfg := backends.DefaultConfig()
	for _, address := range []string{"unix:/a", "127.0.0.1:80"} {
		b := backends.DefaultBackendConfig()
		b.Address = address
		cfg.Backends = append(cfg.Backends, b)
	}
	return cfg
}

func TestConfig_DefaultIsValid(t *testing.T) {
	cfg := validConfig()
	must(t, cfg.Validate())
	empty := backends.DefaultConfig()
	must(t, empty.Validate())
}

func TestConfig_EachFaultNamesItsKey(t *testing.T) {
	for want, spoil := range map[string]func(*backends.Config){
		`balance: unknown policy "best"`:                                                  func(c *backends.Config) { c.Balance = "best" },
		"max_conns: -1 is not within 0..2147483647":                                       func(c *backends.Config) { c.MaxConns = -1 },
		"queue_size: -1 is negative":                                                      func(c *backends.Config) { c.QueueSize = -1 },
		"queue_timeout: must be more than 0":                                              func(c *backends.Config) { c.QueueTimeout = 0 },
		"connect_timeout: must be more than 0":                                            func(c *backends.Config) { c.ConnectTimeout = 0 },
		`connect_timeout: 5ns is below 1ms; a bare number counts nanoseconds: write "5s"`: func(c *backends.Config) { c.ConnectTimeout = 5 },
		"idle_timeout: -1s is negative":                                                   func(c *backends.Config) { c.IdleTimeout = -time.Second },
		"half_closed_timeout: 1µs is below 1ms":                                           func(c *backends.Config) { c.HalfClosedTimeout = time.Microsecond },
		"slow_start: 1ns is below 1ms":                                                    func(c *backends.Config) { c.SlowStart = 1 },
		"max_session_age: 1ns is below 1ms":                                               func(c *backends.Config) { c.MaxSessionAge = 1 },
		`when_all_down: unknown value "panic"`:                                            func(c *backends.Config) { c.WhenAllDown = "panic" },
		`send_proxy: unknown version "v3"`:                                                func(c *backends.Config) { c.SendProxy = "v3" },
		"keepalive: 1ms is not within 1s..9h":                                             func(c *backends.Config) { c.Keepalive = time.Millisecond },
		"keepalive_count: 0 is not within 1..127":                                         func(c *backends.Config) { c.KeepaliveCount = 0 },
		"backends[1].address: missing":                                                    func(c *backends.Config) { c.Backends[1].Address = "" },
		`backends[0].address: cannot parse address "x"`:                                   func(c *backends.Config) { c.Backends[0].Address = "x" },
		`backends[1].address: ":80" needs a host`:                                         func(c *backends.Config) { c.Backends[1].Address = ":80" },
		`backends[1].address: "h:0" needs a host and a port other than 0`:                 func(c *backends.Config) { c.Backends[1].Address = "h:0" },
		`backends[0].name: "a b" must be`:                                                 func(c *backends.Config) { c.Backends[0].Name = "a b" },
		`backends[1].name: "unix:/a" is already the name of backends[0]`:                  func(c *backends.Config) { c.Backends[1].Address = "unix:/a" },
		"backends[1].weight: 1001 is not within 0..1000":                                  func(c *backends.Config) { c.Backends[1].Weight = 1001 },
		"backends[0].weight: -1 is not within 0..1000":                                    func(c *backends.Config) { c.Backends[0].Weight = -1 },
		"backends[0].max_conns: -2 is not within 0..2147483647":                           func(c *backends.Config) { c.Backends[0].MaxConns = -2 },
	} {
		cfg := validConfig()
		spoil(&cfg)
		err := cfg.Validate()
		if err == nil || !strings.HasPrefix(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("got %v; want the one fault %q", err, want)
		}
	}
}

func TestConfig_AllFaultsAreFound(t *testing.T) {
	cfg := validConfig()
	cfg.MaxConns, cfg.IdleTimeout = -1, 7
	cfg.Backends[0].Weight, cfg.Backends[0].MaxConns, cfg.Backends[1].Address = -1, -1, "?"
	err := cfg.Validate()
	if err == nil || len(strings.Split(err.Error(), "\n")) != 5 {
		t.Errorf("got %v; want five faults, one a line", err)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "web-1.app_2": true, "0": true, strings.Repeat("x", 64): true,
		"": false, "-a": false, ".a": false, "a/b": false, "a b": false, "ä": false, strings.Repeat("x", 65): false, "a\n": false,
	} {
		if got := backends.ValidName(name); got != want {
			t.Errorf("ValidName(%q): got %v; want %v", name, got, want)
		}
	}
}

func TestBackendConfig_NameIsTheAddressUnlessGiven(t *testing.T) {
	c := backends.BackendConfig{Address: "unix:/a"}
	if got := c.EffectiveName(); got != "unix:/a" {
		t.Errorf("got %q; want the address", got)
	}
	c.Name = "one"
	if got := c.EffectiveName(); got != "one" {
		t.Errorf("got %q; want one", got)
	}
}
