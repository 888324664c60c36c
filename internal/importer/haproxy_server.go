package importer

import (
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/haproxytech/config-parser/v5/params"
)

func (t *translator) server(l numbered) {
	if t.p == nil || t.inherited {
		return
	}
	address, err := haproxyAddress(word(l.words, 2))
	if err != nil {
		t.note(l, err.Error())
		return
	}
	b := &backend{}
	t.p.backends = append(t.p.backends, b)
	b.set("name", name(word(l.words, 1)))
	b.set("address", address)
	options := append(slices.Clone(t.defaults), params.ParseServerOptions(l.words[min(3, len(l.words)):])...)
	for _, option := range options {
		key, value, _ := strings.Cut(option.String(), " ")
		t.serverOption(l, b, key, value)
	}
	if b.off {
		b.set("weight", 0)
	}
}

func (t *translator) serverOption(l numbered, b *backend, key, value string) {
	number, notNumber := strconv.Atoi(value)
	health := func(to string) {
		if d, err := haproxyDuration(value); err == nil {
			t.p.health.set(to, duration(d))
		}
	}
	switch key {
	case "weight":
		if notNumber == nil {
			b.set("weight", number)
			t.weights = true
		}
	case "maxconn":
		if notNumber == nil {
			b.set("max_conns", number)
		}
	case "backup":
		b.set("backup", true)
	case "check":
		t.check = true
	case "inter":
		health("interval")
	case "fastinter":
		health("fast_interval")
	case "downinter":
		health("down_interval")
	case "rise", "fall":
		if notNumber == nil {
			t.p.health.set(key, number)
		}
	case "port":
		if notNumber == nil {
			t.p.health.set("port", number)
		}
	case "send-proxy":
		t.p.set("send_proxy", "v1")
	case "send-proxy-v2":
		t.p.set("send_proxy", "v2")
	case "slowstart":
		if d, err := haproxyDuration(value); err == nil {
			t.p.set("slow_start", duration(d))
		}
	case "on-marked-down":
		if value == "shutdown-sessions" {
			t.p.health.set("on_down", "close")
		}
	case "cookie", "id", "no-check", "tfo", "resolve-prefer", "init-addr", "no-backup", "enabled":
	case "disabled":
		b.off = true
		b.note(l.n, key, "weight = 0, so that it takes no connections; leave that line out to have it take part")
	case "ssl", "verify", "ca-file", "crt", "sni", "alpn", "check-ssl":
		b.note(l.n, strings.TrimSpace(key+" "+value), "lb speaks no TLS to a backend: the client's passes through")
	default:
		b.note(l.n, strings.TrimSpace(key+" "+value), "no counterpart in lb")
	}
}

// unique gives the backends of a pool names that differ.
func (d *Draft) unique(p *pool) {
	seen := map[string]int{}
	for _, b := range p.backends {
		for i := range b.settings {
			if b.settings[i].key != "name" {
				continue
			}
			seen[b.settings[i].value]++
			if n := seen[b.settings[i].value]; n > 1 {
				b.settings[i].value = Value(fmt.Sprintf("%s-%d", strings.Trim(b.settings[i].value, `"`), n))
			}
		}
	}
}
