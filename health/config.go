package health

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/273ebdf9/lb/backends"
)

// Types of watching, as type has them.
const (
	typeNone       = "none"
	typeAccept     = "accept"
	typeConnect    = "connect"
	typeSendExpect = "send-expect"
	typeHTTP       = "http"
	typeAgent      = "agent"
	typeNotify     = "notify"
)

var types = []string{typeAccept, typeConnect, typeSendExpect, typeHTTP, typeAgent, typeNotify, typeNone}

// Config is how a pool's backends are watched, [pools.NAME.health]. Take DefaultConfig and change it.
type Config struct {
	// Type is where the signs of life come from:
	//
	//   - "accept" (default) opens a connection and asks the kernel whether a process takes it out of the
	//     listener's queue within Timeout (sock_diag). It finds a backend that hangs, whatever its protocol,
	//     and needs no word of it. A backend that is busy is up as long as its queue moves. One that does not
	//     accept goes offline, and back when it does; only with [pools.NAME.workers] kill_after set is a
	//     worker killed for it. While no backend of the pool is selectable, those that are down for this
	//     alone are offered nevertheless. Where the listener is in another network namespace or on another
	//     host, or sock_diag is refused, it is "connect".
	//   - "connect" opens a connection and closes it. The kernel answers that, even for a process that hangs:
	//     it finds a backend that is gone, not one that is stuck. A Unix socket whose backlog is full is
	//     saturated, which counts neither as a success nor as a failure.
	//   - "send-expect" sends Send and wants Expect back.
	//   - "http" sends an HTTP/1.1 request and looks at the status. The body is not read.
	//   - "agent" reads one line of HAProxy's agent protocol. "down", "fail" or "stopped" takes the backend
	//     down at once, and down it stays until "up", which brings it back at once; "ready", "drain" and
	//     "maint" set the admin state, "75%" the weight, in parts of the configured one, "maxconn:30"
	//     max_conns. What the line does not mention stays, and an admin state that the operator set stands.
	//     As there is no second probe beside it, an agent that answers without a health word is a success,
	//     and one that does not answer is a failure, which for HAProxy it is not.
	//   - "notify" probes nothing: workers that lb runs push their heartbeat (WATCHDOG=1 of sd_notify), and
	//     an Interval without one is a miss.
	//   - "none" probes nothing: the backends are up, and only a run of failed connects of clients takes one
	//     down, until PassiveHold is over.
	Type string `toml:"type"`
	// Interval is the time from the start of a probe of a backend to the start of the next; for "notify" the
	// time within which a heartbeat must come. Default 1s.
	Interval time.Duration `toml:"interval"`
	// FastInterval is Interval for a backend that is about to change: not probed yet, up and failing, or down
	// and succeeding. Default "0s": Interval. "notify" does not use it.
	FastInterval time.Duration `toml:"fast_interval"`
	// DownInterval is Interval for a backend that is down and whose last probe failed. Default "0s":
	// Interval. "notify" does not use it.
	DownInterval time.Duration `toml:"down_interval"`
	// Jitter shortens each interval by up to this part of it, 0..0.5, and spreads the first probes of many
	// backends over up to one interval, so that probes do not come in step. Default 0.1; 0 is none. "notify"
	// does not use it.
	Jitter float64 `toml:"jitter"`
	// Timeout is how long one probe may take, from the connect to the answer. A probe that takes longer than
	// its interval is followed by the next at once, never overlapped. Default 500ms.
	Timeout time.Duration `toml:"timeout"`
	// Rise is how many probes in a row must succeed until a backend that is down is up. Default 2. The first
	// probe after the start, or after the admin state maint, decides alone, either way.
	Rise int `toml:"rise"`
	// Fall is how many probes in a row must fail until a backend that is up is down. Default 3.
	Fall int `toml:"fall"`
	// Initial is the state until the first probe: "up" (default) or "down".
	Initial string `toml:"initial"`
	// OnDown is what happens to the running sessions of a backend that goes down: "keep" (default) lets them
	// go on, "close" closes them, so that their clients find another backend at once.
	OnDown string `toml:"on_down"`
	// PassiveFall is how many connects of clients in a row must fail until the backend is taken down at once,
	// without waiting for a probe. Default 3; 0 is never. A full backlog is no failure. Rise probes bring it
	// back.
	PassiveFall int `toml:"passive_fall"`
	// PassiveHold is how long a backend that PassiveFall took down stays down with type "none". Default 10s.
	PassiveHold time.Duration `toml:"passive_hold"`
	// Address is probed instead of each backend's own, in the same forms: "unix:/path", "unix:@name",
	// "host:port" or "[v6]:port". Default "": the backend's own.
	Address string `toml:"address"`
	// Port is probed instead of each backend's own, on the backend's host. A backend on a Unix socket has no
	// port and is probed as it is. Default 0: the backend's own.
	Port int `toml:"port"`
	// Send is what "send-expect" and "agent" send once connected: the text as it stands, or "hex:" and
	// hexadecimal digits, with spaces where wanted ("text:" in front takes what follows as it stands). Up to
	// 4096 bytes. Default "": nothing.
	Send string `toml:"send"`
	// Expect is what the reply to "send-expect" must begin with, in the forms of Send; with "contains:" in
	// front, what it must have somewhere in its first 4096 bytes. Required for that type.
	Expect string `toml:"expect"`
	// HTTPMethod is the method of the request of "http". Default "GET".
	HTTPMethod string `toml:"http_method"`
	// HTTPPath is the path, and the query if any, of that request. Default "/".
	HTTPPath string `toml:"http_path"`
	// HTTPHost is its Host header. Default "": the probed address, or localhost for a Unix socket.
	HTTPHost string `toml:"http_host"`
	// HTTPStatus are the statuses that are a success: codes ("204"), ranges ("200-399") and classes ("2xx"),
	// separated by commas. Default "200-399".
	HTTPStatus string `toml:"http_status"`
}

// DefaultConfig returns a Config with every default set.
func DefaultConfig() Config {
	return Config{
		Type:        typeAccept,
		Interval:    time.Second,
		Jitter:      0.1,
		Timeout:     500 * time.Millisecond,
		Rise:        2,
		Fall:        3,
		Initial:     "up",
		OnDown:      "keep",
		PassiveFall: 3,
		PassiveHold: 10 * time.Second,
		HTTPMethod:  "GET",
		HTTPPath:    "/",
		HTTPStatus:  "200-399",
	}
}

// InitialHealth returns the health state of a backend that was not probed yet, for Pool.Add.
func (c *Config) InitialHealth() backends.HealthState {
	if c.Initial == "down" {
		return backends.HealthDown
	}
	return backends.HealthUp
}

// Validate returns every fault. Each error's text starts with the key.
func (c *Config) Validate() error {
	_, err := c.plan()
	return err
}

// plan is a checked Config in the form that probes use. It is never changed.
type plan struct {
	Config
	send    []byte
	expect  pattern
	status  statusSet
	address backends.Address // zero: the backend's own
}

// plan checks and translates c.
func (c *Config) plan() (*plan, error) {
	p := &plan{Config: *c}
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	known := slices.Contains(types, c.Type)
	if !known {
		fault("type: unknown type %q; write one of %q", c.Type, types)
	}
	errs = append(errs,
		backends.CheckDuration("interval", c.Interval, false),
		backends.CheckDuration("fast_interval", c.FastInterval, true),
		backends.CheckDuration("down_interval", c.DownInterval, true),
		backends.CheckDuration("timeout", c.Timeout, false),
		backends.CheckDuration("passive_hold", c.PassiveHold, false))
	if !(c.Jitter >= 0 && c.Jitter <= 0.5) { // also NaN
		fault("jitter: %v is not within 0..0.5", c.Jitter)
	}
	if c.Rise < 1 {
		fault("rise: %d is not a positive number", c.Rise)
	}
	if c.Fall < 1 {
		fault("fall: %d is not a positive number", c.Fall)
	}
	if c.Initial != "up" && c.Initial != "down" {
		fault("initial: unknown state %q; write \"up\" or \"down\"", c.Initial)
	}
	if c.OnDown != "keep" && c.OnDown != "close" {
		fault("on_down: unknown value %q; write \"keep\" or \"close\"", c.OnDown)
	}
	if c.PassiveFall < 0 {
		fault("passive_fall: %d is negative; write 0 for never", c.PassiveFall)
	}
	if known {
		errs = append(errs, p.target(), p.exchange())
	}
	errs = append(errs, p.http())
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}

	if p.FastInterval == 0 {
		p.FastInterval = p.Interval
	}
	if p.DownInterval == 0 {
		p.DownInterval = p.Interval
	}
	return p, nil
}

// probes reports whether the type opens connections.
func (p *plan) probes() bool { return p.Type != typeNone && p.Type != typeNotify }

// longest returns the longest time until something is due.
func (p *plan) longest() time.Duration {
	if p.Type == typeNone {
		return p.PassiveHold
	}
	return max(p.Interval, p.FastInterval, p.DownInterval)
}

// target checks and translates what is probed.
func (p *plan) target() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.Port < 0 || p.Port > 65535 {
		fault("port: %d is not within 1..65535, nor 0 for the backend's own", p.Port)
	}
	if p.Port != 0 && p.Address != "" {
		fault("port: give address or port, not both")
	}
	if !p.probes() && p.Port != 0 {
		fault("port: nothing is probed with type %q", p.Type)
	}
	if p.Address == "" {
		return errors.Join(errs...)
	}
	if !p.probes() {
		fault("address: nothing is probed with type %q", p.Type)
	}
	a, err := backends.ParseAddress(p.Address)
	switch {
	case err != nil:
		fault("address: %w", err)
	case !a.IsUnix() && (a.Host == "" || a.Port == 0):
		fault("address: %q needs a host and a port other than 0", p.Address)
	}
	p.address = a
	return errors.Join(errs...)
}

// exchange checks and translates what is sent and expected.
func (p *plan) exchange() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if p.Send != "" && p.Type != typeSendExpect && p.Type != typeAgent {
		fault("send: has no meaning with type %q", p.Type)
	} else if send, err := parseBytes(p.Send); err != nil {
		fault("send: %w", err)
	} else {
		p.send = send
	}
	switch {
	case p.Type != typeSendExpect && p.Expect != "":
		fault("expect: has no meaning with type %q", p.Type)
	case p.Type != typeSendExpect:
	case p.Expect == "":
		fault("expect: missing; type %q needs it", p.Type)
	default:
		expect, err := parsePattern(p.Expect)
		if err != nil {
			fault("expect: %w", err)
		}
		p.expect = expect
	}
	return errors.Join(errs...)
}

// http checks and translates the request and the statuses.
func (p *plan) http() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !isToken(p.HTTPMethod) {
		fault("http_method: %q is no HTTP method; write \"GET\", \"HEAD\" or \"OPTIONS\"", p.HTTPMethod)
	}
	if !(strings.HasPrefix(p.HTTPPath, "/") || p.HTTPPath == "*") || !isVisible(p.HTTPPath) {
		fault("http_path: %q must start with / and have no spaces; write special characters as %%20", p.HTTPPath)
	}
	if !isVisible(p.HTTPHost) {
		fault("http_host: %q must have no spaces and only ASCII", p.HTTPHost)
	}
	status, err := parseStatusSet(p.HTTPStatus)
	if err != nil {
		fault("http_status: %w", err)
	}
	p.status = status
	return errors.Join(errs...)
}

// isVisible reports whether s can stand in an HTTP request line or header: printable ASCII, no blanks.
func isVisible(s string) bool {
	return !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f })
}

// isToken reports whether s is a method that a server takes: ASCII letters, digits and dashes.
func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool {
		return !(r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || r == '-')
	})
}
