package importer

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/tufanbarisyildirim/gonginx/config"
	"github.com/tufanbarisyildirim/gonginx/parser"
)

// Nginx translates the stream part of an nginx.conf
// (https://nginx.org/en/docs/stream/ngx_stream_core_module.html). A file of a stream.d directory, which has
// only what stands within stream, will do too.
func Nginx(file string, text []byte) (*Draft, error) {
	conf, err := parser.NewStringParser(string(text), parser.WithSkipValidDirectivesErr(), parser.WithSkipComments()).Parse()
	if err != nil {
		return nil, fmt.Errorf("it cannot be read as a config of nginx: %w", err)
	}
	n := &nginx{d: &Draft{source: file}}
	directives := conf.GetDirectives()
	http := false
	for _, dir := range directives {
		switch dir.GetName() {
		case "stream":
			directives = dir.GetBlock().GetDirectives()
		case "http":
			http = true
		}
	}
	n.stream(directives)
	if len(n.d.listeners) == 0 {
		if http {
			return nil, errors.New("it has no stream server, and lb balances TCP: for http write a listener and a pool, and let nginx or the app speak HTTP")
		}
		return nil, errors.New("it has no stream server")
	}
	return n.d, nil
}

type nginx struct {
	d *Draft
	// what stands in stream itself and holds for every server
	outer []config.IDirective
}

func (n *nginx) stream(directives []config.IDirective) {
	var servers []config.IDirective
	for _, dir := range directives {
		switch dir.GetName() {
		case "upstream":
			n.upstream(dir)
		case "server":
			servers = append(servers, dir)
		case "user", "worker_processes", "worker_rlimit_nofile", "error_log", "pid", "events", "http", "include", "load_module", "daemon", "mail",
			"log_format", "access_log", "open_log_file_cache", "stream":
			if dir.GetName() == "include" {
				n.d.loose = append(n.d.loose, n.note(dir, "the other file is not read: give it to lb init too"))
			}
		case "map", "geo", "split_clients", "limit_conn_zone", "js_import", "js_path", "resolver", "resolver_timeout", "variables_hash_max_size":
			if dir.GetName() != "limit_conn_zone" {
				n.d.loose = append(n.d.loose, n.note(dir, "lb has no variables; for shares of the connections see split"))
			}
		default:
			n.outer = append(n.outer, dir)
		}
	}
	for i, server := range servers {
		n.server(server, i)
	}
}

func (n *nginx) note(dir config.IDirective, reason string) Note {
	return Note{dir.GetLine(), directiveText(dir), reason}
}

func directiveText(dir config.IDirective) string {
	words := []string{dir.GetName()}
	for _, p := range dir.GetParameters() {
		words = append(words, p.GetValue())
	}
	return strings.Join(words, " ")
}

// arguments are the words of a directive after its name, without quotes.
func arguments(dir config.IDirective) []string {
	var words []string
	for _, p := range dir.GetParameters() {
		words = append(words, strings.Trim(p.GetValue(), `"'`))
	}
	return words
}

func (n *nginx) upstream(dir config.IDirective) {
	p := n.d.pool(word(arguments(dir), 0))
	p.set("balance", "roundrobin") // nginx's own way
	weights := false
	var block []config.IDirective
	if upstream, ok := dir.(*config.Upstream); ok {
		for _, s := range upstream.UpstreamServers {
			block = append(block, s)
		}
		block = append(block, upstream.Directives...)
	} else if dir.GetBlock() != nil {
		block = dir.GetBlock().GetDirectives()
	}
	for _, d := range block {
		words := arguments(d)
		switch d.GetName() {
		case "server":
			weights = n.upstreamServer(p, d, words) || weights
		case "least_conn":
			p.set("balance", "leastconn")
		case "random":
			p.set("balance", "random")
		case "hash":
			p.set("balance", "source")
			if word(words, 0) != "$remote_addr" && word(words, 0) != "$binary_remote_addr" {
				p.note(d.GetLine(), directiveText(d), "lb hashes the client's address only")
			}
		case "zone", "keepalive", "state":
		case "least_time":
			p.set("balance", "leastconn")
			p.note(d.GetLine(), directiveText(d), "lb has no least_time; leastconn is nearest")
		default:
			p.note(d.GetLine(), directiveText(d), "no counterpart in lb")
		}
	}
	if weights { // nginx's default is 1, lb's 100
		for _, b := range p.backends {
			if !slices.ContainsFunc(b.settings, func(s setting) bool { return s.key == "weight" }) {
				b.set("weight", 1)
			}
		}
	}
}

// upstreamServer adds a backend, and reports whether it has a weight.
func (n *nginx) upstreamServer(p *pool, dir config.IDirective, words []string) (weight bool) {
	address, err := nginxAddress(word(words, 0), "127.0.0.1")
	if err != nil {
		p.note(dir.GetLine(), directiveText(dir), err.Error())
		return false
	}
	b := &backend{}
	p.backends = append(p.backends, b)
	b.set("name", fmt.Sprintf("w%d", len(p.backends)))
	b.set("address", address)
	for _, option := range words[min(1, len(words)):] {
		key, value, _ := strings.Cut(option, "=")
		number, notNumber := strconv.Atoi(value)
		switch {
		case key == "weight" && notNumber == nil:
			b.set("weight", number)
			weight = true
		case key == "max_conns" && notNumber == nil:
			if number > 0 {
				b.set("max_conns", number)
			}
		case key == "backup":
			b.set("backup", true)
		case key == "max_fails" && notNumber == nil:
			p.health.set("passive_fall", number)
		case key == "fail_timeout":
			if d, err := nginxDuration(value); err == nil {
				p.health.set("passive_hold", duration(d))
			}
		case key == "slow_start":
			if d, err := nginxDuration(value); err == nil {
				p.set("slow_start", duration(d))
			}
		case key == "down":
			b.off = true
			b.note(dir.GetLine(), key, "weight = 0, so that it takes no connections; leave that line out to have it take part")
		default:
			b.note(dir.GetLine(), option, "no counterpart in lb")
		}
	}
	if b.off {
		b.set("weight", 0)
	}
	return weight
}

// nginxAddress is an address of nginx as lb writes it.
func nginxAddress(at, host string) (string, error) {
	switch {
	case strings.HasPrefix(at, "unix:"):
		return at, nil
	case strings.Contains(at, "$"):
		return "", errors.New("lb has no variables: write the address out")
	}
	if _, err := strconv.Atoi(at); err == nil {
		return net.JoinHostPort(host, at), nil
	}
	h, port, err := net.SplitHostPort(at)
	if err != nil {
		return "", errors.New("the address has no port")
	}
	if h == "*" {
		h = "0.0.0.0"
	}
	if n, err := strconv.Atoi(port); err != nil || n < 1 || n > 65535 {
		return "", fmt.Errorf("%q is not a port", port)
	}
	return net.JoinHostPort(h, port), nil
}

// nginxDuration reads a time of nginx (https://nginx.org/en/docs/syntax.html): seconds where there is no
// unit.
func nginxDuration(text string) (time.Duration, error) {
	if n, err := strconv.Atoi(text); err == nil {
		return time.Duration(n) * time.Second, nil
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

func (n *nginx) server(dir config.IDirective, i int) {
	l := n.d.listener(fmt.Sprintf("stream%d", i+1))
	s := nginxServer{n: n, l: l}
	for _, d := range append(slices.Clone(n.outer), dir.GetBlock().GetDirectives()...) {
		s.directive(d)
	}
	s.access()
	switch {
	case len(l.bind) == 0:
		s.drop("it has no address that lb could take connections at")
	case s.p == nil:
		s.drop("it has no proxy_pass that lb could follow")
	default:
		l.settings = slices.Insert(l.settings, 0, setting{"pool", Value(s.p.name)})
		for _, set := range s.late {
			set(s.p)
		}
	}
}

// nginxServer is a server block as it is translated.
type nginxServer struct {
	n     *nginx
	l     *listener
	p     *pool
	late  []func(*pool)       // what goes to the pool, which comes last
	rules []config.IDirective // allow and deny, in order: the first that fits holds
}

// access translates allow and deny. lb's lists have no order, so only the two usual forms have a counterpart:
// some addresses and then deny all, and denied ones alone.
func (s *nginxServer) access() {
	lists := map[string][]string{}
	last := ""
	for _, d := range s.rules {
		if to := word(arguments(d), 0); to == "all" {
			last = d.GetName()
			break
		} else {
			lists[d.GetName()] = append(lists[d.GetName()], to)
		}
	}
	switch {
	case len(lists["allow"]) == 0 && len(lists["deny"]) > 0 && last != "deny":
		s.l.set("deny", lists["deny"])
	case len(lists["deny"]) == 0 && len(lists["allow"]) > 0 && last == "deny":
		s.l.set("allow", lists["allow"])
	case len(lists) > 0 || last == "deny":
		for _, d := range s.rules {
			s.l.note(d.GetLine(), directiveText(d), "lb's allow and deny have no order, and deny wins: write what is meant")
		}
	}
}

func (s *nginxServer) drop(reason string) {
	d := s.n.d
	d.listeners = slices.DeleteFunc(d.listeners, func(l *listener) bool { return l == s.l })
	d.loose = append(d.loose, Note{0, "server " + s.l.name, reason})
	d.loose = append(d.loose, s.l.notes...)
}

func (s *nginxServer) directive(d config.IDirective) {
	words := arguments(d)
	note := func(reason string) { s.l.note(d.GetLine(), directiveText(d), reason) }
	time := func(key string) {
		if t, err := nginxDuration(word(words, 0)); err == nil {
			s.late = append(s.late, func(p *pool) { p.set(key, duration(t)) })
		}
	}
	switch d.GetName() {
	case "listen":
		s.listen(d, words, note)
	case "proxy_pass":
		s.pass(words, note)
	case "proxy_timeout":
		time("idle_timeout")
	case "proxy_connect_timeout":
		time("connect_timeout")
	case "proxy_protocol":
		if word(words, 0) == "on" {
			s.late = append(s.late, func(p *pool) { p.set("send_proxy", "v1") })
		}
	case "proxy_protocol_timeout":
		if t, err := nginxDuration(word(words, 0)); err == nil {
			s.l.set("proxy_timeout", duration(t))
		}
	case "set_real_ip_from":
		s.l.set("proxy_from", append(quotedList(s.l, "proxy_from"), word(words, 0)))
	case "allow", "deny":
		s.rules = append(s.rules, d)
	case "limit_conn":
		if n, err := strconv.Atoi(word(words, 1)); err == nil {
			s.l.set("source_max_conns", n)
		}
	case "tcp_nodelay", "proxy_socket_keepalive", "proxy_next_upstream", "proxy_next_upstream_tries", "proxy_next_upstream_timeout", "proxy_buffer_size",
		"access_log", "error_log", "status_zone", "proxy_half_close", "limit_conn_log_level", "preread_buffer_size", "preread_timeout", "server_name":
		// lb does it, or has its own
	case "ssl_certificate", "ssl_certificate_key", "ssl_protocols", "ssl_ciphers", "ssl_session_cache", "ssl_session_timeout", "ssl_preread":
		note("lb ends no TLS and does not look into it: it passes through to the backends")
	case "proxy_ssl", "proxy_ssl_certificate", "proxy_ssl_verify", "proxy_ssl_server_name":
		note("lb speaks no TLS to a backend: the client's passes through")
	default:
		note("no counterpart in lb")
	}
}

// quotedList is the list of strings that a key has already.
func quotedList(l *listener, key string) []string {
	for _, s := range l.settings {
		if s.key == key {
			return strings.Split(strings.NewReplacer(`"`, "", "[", "", "]", "", " ", "").Replace(s.value), ",")
		}
	}
	return nil
}

func (s *nginxServer) listen(d config.IDirective, words []string, note func(string)) {
	if slices.Contains(words, "udp") {
		note("lb balances TCP only")
		return
	}
	address, err := nginxAddress(word(words, 0), "0.0.0.0")
	if err != nil {
		note(err.Error())
		return
	}
	s.l.bind = append(s.l.bind, address)
	for _, option := range words[min(1, len(words)):] {
		key, value, _ := strings.Cut(option, "=")
		switch key {
		case "proxy_protocol":
			s.l.set("accept_proxy", true)
		case "backlog":
			if n, err := strconv.Atoi(value); err == nil {
				s.l.set("backlog", n)
			}
		case "ssl":
			note("lb ends no TLS: it passes through to the backends, which need the certificate")
		case "reuseport", "default_server", "so_keepalive", "ipv6only", "bind", "fastopen", "deferred":
		default:
			s.l.note(d.GetLine(), option, "no counterpart in lb")
		}
	}
}

// pass leads to an upstream, or to one address.
func (s *nginxServer) pass(words []string, note func(string)) {
	to := word(words, 0)
	if strings.Contains(to, "$") {
		note("lb has no variables; for shares of the connections see split")
		return
	}
	for _, p := range s.n.d.pools {
		if p.name == name(to) {
			s.p = p
			return
		}
	}
	address, err := nginxAddress(to, "127.0.0.1")
	if err != nil {
		note("there is no such upstream, and " + err.Error())
		return
	}
	s.p = s.n.d.pool(to)
	b := &backend{}
	b.set("name", "w1")
	b.set("address", address)
	s.p.backends = []*backend{b}
}
