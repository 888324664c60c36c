package importer

import (
	"net"
	"slices"
	"strconv"
	"strings"
)

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
