package importer

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/haproxytech/config-parser/v5/params"
)

func (t *translator) bind(l numbered) {
	if t.l == nil {
		return
	}
	for _, at := range strings.Split(word(l.words, 1), ",") {
		address, err := haproxyAddress(at)
		if err != nil {
			t.note(l, err.Error())
			continue
		}
		t.l.bind = append(t.l.bind, address)
	}
	options, err := params.ParseBindOptions(l.words[min(2, len(l.words)):])
	if err != nil {
		t.note(l, "its options cannot be read: "+err.Error())
	}
	for _, option := range options {
		switch text := option.String(); {
		case text == "accept-proxy":
			t.l.set("accept_proxy", true)
		case text == "ssl" || strings.HasPrefix(text, "crt ") || strings.HasPrefix(text, "alpn ") || strings.HasPrefix(text, "ca-file "):
			t.note(numbered{l.n, []string{"bind", text}}, "lb ends no TLS: it passes through to the backends, which need the certificate")
		case strings.HasPrefix(text, "mode "):
			t.l.set("unix_mode", strings.TrimPrefix(text, "mode "))
		case text == "v4v6" || text == "v6only" || text == "tfo" || strings.HasPrefix(text, "name "):
		default:
			t.note(numbered{l.n, []string{"bind", text}}, "no counterpart in lb")
		}
	}
}

// haproxyAddress is an address of HAProxy (https://docs.haproxy.org/3.2/configuration.html#11) as lb writes
// it.
func haproxyAddress(at string) (string, error) {
	at = strings.TrimPrefix(at, "tcp@")
	switch {
	case strings.HasPrefix(at, "unix@"):
		return "unix:" + strings.TrimPrefix(at, "unix@"), nil
	case strings.HasPrefix(at, "abns@"):
		return "unix:@" + strings.TrimPrefix(at, "abns@"), nil
	case strings.HasPrefix(at, "/"):
		return "unix:" + at, nil
	case strings.HasPrefix(at, "ipv4@"):
		at = strings.TrimPrefix(at, "ipv4@")
	case strings.HasPrefix(at, "ipv6@"):
		at = strings.TrimPrefix(at, "ipv6@")
	case strings.ContainsAny(at, "@$"):
		return "", fmt.Errorf("lb has no such address: write it out")
	}
	colon := strings.LastIndexByte(at, ':')
	if colon < 0 {
		return "", errors.New("the address has no port")
	}
	host, port := strings.Trim(at[:colon], "[]"), at[colon+1:]
	if strings.Contains(port, "-") {
		return "", errors.New("lb has no ranges of ports: write one address for each")
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%q is not a port", port)
	}
	if host == "*" {
		host = "0.0.0.0" // HAProxy's * is IPv4 only
	}
	return net.JoinHostPort(host, port), nil
}

func (t *translator) timeout(l numbered) {
	d, err := haproxyDuration(word(l.words, 2))
	if err != nil {
		t.note(l, err.Error())
		return
	}
	switch what := word(l.words, 1); what {
	case "client", "server", "tunnel":
		t.idle[what] = d
	case "client-fin", "server-fin":
		if t.p != nil {
			t.p.set("half_closed_timeout", duration(d))
		}
	case "connect":
		if t.p != nil {
			t.p.set("connect_timeout", duration(d))
		}
	case "queue":
		if t.p != nil {
			t.p.set("queue_timeout", duration(d))
		}
	case "check":
		if t.p != nil {
			t.p.health.set("timeout", duration(d))
		}
	case "http-request", "http-keep-alive", "tarpit":
		t.note(l, "lb relays requests unread")
	default:
		t.note(l, "no counterpart in lb")
	}
}

// haproxyDuration reads a time of HAProxy: a number of milliseconds, or one with a unit.
func haproxyDuration(text string) (time.Duration, error) {
	if n, err := strconv.ParseInt(text, 10, 64); err == nil {
		return time.Duration(n) * time.Millisecond, nil
	}
	if days, ok := strings.CutSuffix(text, "d"); ok {
		if n, err := strconv.Atoi(days); err == nil {
			return time.Duration(n) * 24 * time.Hour, nil
		}
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		return 0, fmt.Errorf("%q is not a time", text)
	}
	return d, nil
}
