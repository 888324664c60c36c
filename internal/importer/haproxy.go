package importer

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/haproxytech/config-parser/v5/common"
	"github.com/haproxytech/config-parser/v5/params"
)

// HAProxy translates an haproxy.cfg (https://docs.haproxy.org/3.2/configuration.html): its TCP frontends,
// backends and listens. file is the name that the draft mentions.
func HAProxy(file string, text []byte) (*Draft, error) {
	h := &haproxy{d: &Draft{source: file}, defaults: map[string]section{}}
	for i, line := range strings.Split(string(text), "\n") {
		words, _ := common.StringSplitWithCommentIgnoreEmpty(line)
		for j := range words {
			words[j] = strings.Trim(words[j], `"'`)
		}
		if len(words) > 0 {
			h.line(i+1, words)
		}
	}
	h.flush()
	if len(h.d.listeners) == 0 && len(h.d.pools) == 0 {
		return nil, errors.New("it has no frontend, backend or listen section")
	}
	h.link()
	return h.d, nil
}

type haproxy struct {
	d        *Draft
	defaults map[string]section // by name
	last     section            // the defaults that hold for what follows
	now      section
	routes   []route
}

// section is one section of the file as it is read.
type section struct {
	kind, name string
	line       int
	lines      []numbered
}

type numbered struct {
	n     int
	words []string
}

// route is a listener and the backend section that it names.
type route struct {
	listener *listener
	to       string
	line     int
}

var sections = []string{"global", "defaults", "frontend", "backend", "listen", "peers", "resolvers", "mailers", "userlist", "cache",
	"program", "http-errors", "ring", "log-forward", "log-profile", "fcgi-app", "crt-store", "traces", "acme"}

func (h *haproxy) line(n int, words []string) {
	if !slices.Contains(sections, words[0]) {
		h.now.lines = append(h.now.lines, numbered{n, words})
		return
	}
	h.flush()
	h.now = section{kind: words[0], line: n}
	if len(words) > 1 && words[1] != "from" {
		h.now.name = words[1]
	}
	if at := slices.Index(words, "from"); at > 0 && at+1 < len(words) {
		h.last = h.defaults[words[at+1]]
	}
}

// flush translates the section that has ended.
func (h *haproxy) flush() {
	s := h.now
	h.now = section{}
	switch s.kind {
	case "defaults":
		h.last = s
		h.defaults[s.name] = s
	case "global":
		h.global(s)
	case "frontend", "listen", "backend":
		h.proxy(s)
	case "":
	default:
		h.d.loose = append(h.d.loose, Note{s.line, strings.TrimSpace(s.kind + " " + s.name), "lb has no such section"})
	}
}

func (h *haproxy) global(s section) {
	for _, l := range s.lines {
		switch l.words[0] {
		case "maxconn":
			if n, err := strconv.Atoi(word(l.words, 1)); err == nil {
				h.d.proxy.set("max_sessions", n)
			}
		case "nbthread":
			if n, err := strconv.Atoi(word(l.words, 1)); err == nil {
				h.d.proxy.set("loops", n)
			}
		case "daemon", "user", "group", "chroot", "pidfile", "stats", "log", "master-worker", "nbproc", "ulimit-n", "log-send-hostname":
			// how it runs; docs/systemd.md has lb's way
		default:
			h.d.proxy.note(l.n, strings.Join(l.words, " "), "no counterpart in lb")
		}
	}
}

// proxy translates a frontend, a backend or a listen, with the defaults that hold for it.
func (h *haproxy) proxy(s section) {
	t := translator{h: h, s: s}
	if s.kind != "backend" {
		t.l = h.d.listener(s.name)
	}
	if s.kind != "frontend" {
		t.p = h.d.pool(s.name)
	}
	for _, l := range h.last.lines {
		t.inherited = true
		t.line(l)
	}
	t.inherited = false
	for _, l := range s.lines {
		t.line(l)
	}
	t.finish()
}

// translator translates the lines of one frontend, backend or listen.
type translator struct {
	h         *haproxy
	s         section
	l         *listener // nil in a backend
	p         *pool     // nil in a frontend
	inherited bool      // the line is one of the defaults
	idle      time.Duration
	check     bool // a server has check
	http      bool
	weights   bool // a server has a weight
	defaults  []params.ServerOption
}

// on returns the table that a note belongs to.
func (t *translator) on() *table {
	if t.p != nil {
		return &t.p.table
	}
	return &t.l.table
}

// note notes a line that has no counterpart. One of the defaults is noted once, and not in each section.
func (t *translator) note(l numbered, reason string) {
	text := strings.Join(l.words, " ")
	if t.inherited {
		n := Note{l.n, "defaults: " + text, reason}
		if !slices.Contains(t.h.d.loose, n) {
			t.h.d.loose = append(t.h.d.loose, n)
		}
		return
	}
	t.on().note(l.n, text, reason)
}

func word(words []string, i int) string {
	if i < len(words) {
		return words[i]
	}
	return ""
}

func (t *translator) line(l numbered) {
	w := l.words
	switch w[0] {
	case "bind":
		t.bind(l)
	case "mode":
		if t.http = word(w, 1) == "http"; t.http && !t.inherited {
			t.note(l, "lb relays TCP: HTTP passes through it unchanged, and what looks into requests does not happen")
		}
	case "default_backend":
		if t.l != nil {
			t.h.routes = append(t.h.routes, route{t.l, word(w, 1), l.n})
		}
	case "maxconn":
		if n, err := strconv.Atoi(word(w, 1)); err == nil && t.l != nil {
			t.l.set("max_conns", n)
		}
	case "balance":
		t.balance(l)
	case "server":
		t.server(l)
	case "default-server":
		t.defaults = append(t.defaults, params.ParseServerOptions(w[1:])...)
	case "server-template":
		t.note(l, "write a backend for each server")
	case "timeout":
		t.timeout(l)
	case "option":
		t.option(l)
	case "retries":
		// lb tries each backend once
	case "backlog":
		if n, err := strconv.Atoi(word(w, 1)); err == nil && t.l != nil {
			t.l.set("backlog", n)
		}
	case "tcp-request":
		t.tcpRequest(l)
	case "stick-table", "log", "description", "id", "enabled", "errorfile", "http-reuse":
		// a stick-table stands for what the rules do with it; logs are lb's own
	case "disabled":
		t.note(l, "the section is disabled; here it is not")
	case "http-check":
		t.httpCheck(l)
	case "use_backend", "acl", "http-request", "http-response", "redirect", "reqadd", "stats", "cookie", "capture", "compression", "filter", "use-server":
		t.note(l, "it needs a look into the requests, which lb relays unread; for shares of the connections see split")
	default:
		t.note(l, "no counterpart in lb")
	}
}

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

func (t *translator) balance(l numbered) {
	if t.p == nil {
		return
	}
	switch algorithm := word(l.words, 1); algorithm {
	case "leastconn", "source", "first":
		t.p.set("balance", algorithm)
	case "roundrobin", "static-rr":
		t.p.set("balance", "roundrobin")
	default:
		if strings.HasPrefix(algorithm, "random") {
			t.p.set("balance", "random")
			return
		}
		t.note(l, "lb has leastconn, roundrobin, random, source and first; leastconn is taken")
	}
}

func (t *translator) timeout(l numbered) {
	d, err := haproxyDuration(word(l.words, 2))
	if err != nil {
		t.note(l, err.Error())
		return
	}
	switch what := word(l.words, 1); what {
	case "client", "server", "tunnel":
		t.idle = max(t.idle, d)
		if t.p != nil {
			t.p.set("idle_timeout", duration(t.idle))
		}
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

func (t *translator) option(l numbered) {
	switch what := word(l.words, 1); what {
	case "tcp-check", "tcpka", "clitcpka", "srvtcpka", "tcplog", "httplog", "dontlognull", "redispatch", "splice-auto", "splice-request",
		"splice-response", "log-health-checks", "dontlog-normal", "logasap", "contstats":
		// lb does it, or has its own logs
	case "httpchk":
		if t.p == nil {
			return
		}
		t.p.health.set("type", "http")
		switch method, path := word(l.words, 2), word(l.words, 3); {
		case path != "":
			t.p.health.set("http_method", method)
			t.p.health.set("http_path", path)
		case method != "":
			t.p.health.set("http_path", method)
		}
	case "mysql-check", "pgsql-check", "redis-check", "smtpchk", "ldap-check", "ssl-hello-chk":
		t.note(l, "lb has no such check: accept is taken; send-expect can speak a simple protocol")
	case "allbackups":
		t.note(l, "lb uses all backups together, always")
	default:
		t.note(l, "it needs a look into the requests, or has no counterpart in lb")
	}
}

func (t *translator) httpCheck(l numbered) {
	w := l.words
	if t.p == nil {
		return
	}
	switch {
	case word(w, 1) == "expect" && word(w, 2) == "status":
		t.p.health.set("http_status", word(w, 3))
	case word(w, 1) == "send":
		for i := 2; i+1 < len(w); i += 2 {
			switch w[i] {
			case "meth":
				t.p.health.set("http_method", w[i+1])
			case "uri":
				t.p.health.set("http_path", w[i+1])
			case "hdr":
				if strings.EqualFold(w[i+1], "host") {
					t.p.health.set("http_host", word(w, i+2))
				} else {
					t.note(l, "lb's check sends no header but Host")
				}
				i++
			case "ver":
			default:
				t.note(l, "lb's check is a plain request")
			}
		}
	default:
		t.note(l, "lb's check is one plain request")
	}
}

// tcpRequest maps the usual limits of source addresses.
func (t *translator) tcpRequest(l numbered) {
	text := strings.Join(l.words, " ")
	if t.l == nil || !strings.Contains(text, "reject") && !strings.Contains(text, "track-sc") && !strings.Contains(text, "accept") {
		t.note(l, "no counterpart in lb")
		return
	}
	if strings.Contains(text, "track-sc") && strings.Contains(text, " src") {
		return // what is done with the table is said by the rules
	}
	condition := strings.Fields(strings.NewReplacer("{", " ", "}", " ").Replace(text))
	for i, w := range condition {
		key := ""
		switch w {
		case "src_conn_cur", "sc0_conn_cur", "sc1_conn_cur", "sc_conn_cur(0)":
			key = "source_max_conns"
		case "src_conn_rate", "sc0_conn_rate", "sc1_conn_rate", "sc_conn_rate(0)":
			t.note(l, "lb's source_rate is a second's; the table's period is not known here: set source_rate and source_burst")
			return
		default:
			continue
		}
		limit, err := strconv.Atoi(word(condition, i+2))
		switch op := word(condition, i+1); {
		case err != nil:
		case op == "gt":
			t.l.set(key, limit)
			return
		case op == "ge":
			t.l.set(key, limit-1)
			return
		}
	}
	if key, addresses := sourceRule(condition); key != "" {
		t.l.set(key, addresses)
		return
	}
	t.note(l, "see allow, deny, source_max_conns and source_rate of a listener")
}

// sourceRule reads a rule such as "tcp-request connection reject if ! src 10.0.0.0/8", without its braces:
// the list of a listener that it stands for, and its addresses. The key is empty where it says something
// else.
func sourceRule(condition []string) (key string, addresses []string) {
	at := slices.Index(condition, "src")
	if at < 1 || at+1 == len(condition) || strings.HasPrefix(condition[at+1], "-") {
		return "", nil
	}
	denies, before := true, at-1
	if !slices.Contains(condition, "reject") {
		return "", nil // an accept spares addresses the rules below it, which lb cannot
	}
	if condition[before] == "!" && before > 0 {
		denies = !denies
		before--
	}
	switch condition[before] {
	case "if":
	case "unless":
		denies = !denies
	default:
		return "", nil
	}
	addresses = condition[at+1:]
	for _, a := range addresses {
		if net.ParseIP(a) == nil {
			if _, _, err := net.ParseCIDR(a); err != nil {
				return "", nil
			}
		}
	}
	if denies {
		return "deny", addresses
	}
	return "allow", addresses
}

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
		b.note(l.n, key, "the server is disabled; after the start: lb maint "+t.p.name+"/"+strings.Trim(b.settings[0].value, `"`))
	case "ssl", "verify", "ca-file", "crt", "sni", "alpn", "check-ssl":
		b.note(l.n, strings.TrimSpace(key+" "+value), "lb speaks no TLS to a backend: the client's passes through")
	default:
		b.note(l.n, strings.TrimSpace(key+" "+value), "no counterpart in lb")
	}
}

// finish adds what follows from the whole section.
func (t *translator) finish() {
	if t.p != nil {
		if !t.check && len(t.p.backends) > 0 {
			t.p.health.note(t.s.line, t.s.kind+" "+t.s.name, "no server has check: HAProxy gives them connections always; lb finds out whether they accept. type = \"none\" is HAProxy's way")
		}
		if t.weights { // HAProxy's default is 1, lb's 100
			for _, b := range t.p.backends {
				if !slices.ContainsFunc(b.settings, func(s setting) bool { return s.key == "weight" }) {
					b.set("weight", 1)
				}
			}
		}
		t.h.d.unique(t.p)
	}
	if t.s.kind == "listen" {
		t.h.routes = append(t.h.routes, route{t.l, t.s.name, t.s.line})
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
				b.settings[i].value = toml(fmt.Sprintf("%s-%d", strings.Trim(b.settings[i].value, `"`), n))
			}
		}
	}
}

// link names the pool of each listener, and drops what leads nowhere.
func (h *haproxy) link() {
	to := map[*listener]string{}
	for _, r := range h.routes {
		to[r.listener] = name(r.to)
	}
	exists := map[string]bool{}
	for _, p := range h.d.pools {
		exists[p.name] = true
	}
	for _, l := range h.d.listeners {
		if pool := to[l]; exists[pool] {
			l.settings = slices.Insert(l.settings, 0, setting{"pool", toml(pool)})
		}
	}
	h.d.listeners = slices.DeleteFunc(h.d.listeners, func(l *listener) bool {
		pool := to[l]
		if exists[pool] && len(l.bind) > 0 {
			return false
		}
		reason := "it has no default_backend that exists: lb has nowhere to send its connections"
		if len(l.bind) == 0 {
			reason = "it has no address that lb could take connections at"
		}
		h.d.loose = append(h.d.loose, Note{0, "frontend " + l.name, reason})
		h.d.loose = append(h.d.loose, l.notes...)
		return true
	})
	used := map[string]bool{}
	for pool := range maps.Values(to) {
		used[pool] = true
	}
	for _, p := range h.d.pools {
		if !used[p.name] {
			p.note(0, "backend "+p.name, "no frontend that lb can have leads here by default")
		}
	}
}
