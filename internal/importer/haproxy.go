package importer

import (
	"errors"
	"maps"
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
	h := &haproxy{d: &Draft{source: file}, defaults: map[string]section{}, idle: map[string]idleTimes{}}
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
	last     section            // the defaults that hold for what follows and names none
	now      section
	idle     map[string]idleTimes // by pool
	routes   []route
}

// section is one section of the file as it is read.
type section struct {
	kind, name string
	line       int
	lines      []numbered
	inherits   []numbered // the lines of the defaults that hold for it
	from       bool       // it names these
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
	h.now.inherits = h.last.lines
	if at := slices.Index(words, "from"); at > 0 && at+1 < len(words) {
		h.now.inherits, h.now.from = h.defaults[words[at+1]].lines, true
	}
}

// flush translates the section that has ended.
func (h *haproxy) flush() {
	s := h.now
	h.now = section{}
	switch s.kind {
	case "defaults":
		if s.from { // other defaults begin with none
			s.lines = append(slices.Clone(s.inherits), s.lines...)
		}
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
	t := translator{h: h, s: s, idle: idleTimes{}}
	if s.kind != "backend" {
		t.l = h.d.listener(s.name)
	}
	if s.kind != "frontend" {
		t.p = h.d.pool(s.name)
	}
	for _, l := range s.inherits {
		t.inherited = true
		t.line(l)
	}
	t.inherited = false
	for _, l := range s.lines {
		t.line(l)
	}
	t.finish()
}

// idleTimes are the times after which HAProxy ends a silent session, by the side that is silent.
type idleTimes map[string]time.Duration

// longest returns the longest of them: lb ends a session when both sides are silent.
func (t idleTimes) longest() (d time.Duration) {
	for _, x := range t {
		d = max(d, x)
	}
	return d
}

// translator translates the lines of one frontend, backend or listen.
type translator struct {
	h         *haproxy
	s         section
	l         *listener // nil in a backend
	p         *pool     // nil in a frontend
	inherited bool      // the line is one of the defaults
	idle      idleTimes
	check     bool // a server has check
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

func (t *translator) line(l numbered) {
	w := l.words
	switch w[0] {
	case "bind":
		t.bind(l)
	case "mode":
		if word(w, 1) == "http" {
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
		t.h.idle[t.p.name] = t.idle
	} else if client, ok := t.idle["client"]; ok {
		t.l.client = client
	}
	if t.s.kind == "listen" {
		t.h.routes = append(t.h.routes, route{t.l, t.s.name, t.s.line})
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
		if idle := h.idle[to[l]]; idle != nil && l.client > 0 {
			idle["client"] = max(idle["client"], l.client)
		}
		if pool := to[l]; exists[pool] {
			l.settings = slices.Insert(l.settings, 0, setting{"pool", Value(pool)})
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
	for _, p := range h.d.pools {
		if d := h.idle[p.name].longest(); d > 0 {
			p.set("idle_timeout", duration(d))
		}
	}
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
