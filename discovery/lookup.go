package discovery

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/miekg/dns"

	"github.com/273ebdf9/lb/backends"
)

const (
	// serverTimeout is how long one name server has for one answer.
	serverTimeout = time.Second
	// attempts is how often each name server is asked before a look-up has failed.
	attempts = 2
	// maxAliases is how many CNAMEs are followed from a name.
	maxAliases = 8
	// udpSize is what a name server may send without TCP (DNS flag day 2020).
	udpSize = 1232
)

// errEmpty says that a name has no address, or no target. No sound answer of a source is empty: lb takes it
// for a mistake.
var errEmpty = errors.New("the answer lists nothing")

// Resolver asks name servers. It is safe for concurrent use.
type Resolver struct {
	// Servers are asked in this order, as PoolConfig.Resolver has them. Empty: those of ResolvConf, which is
	// read for each look-up.
	Servers []string
	// ResolvConf is the path of the host's resolv.conf(5). Default "": /etc/resolv.conf.
	ResolvConf string

	last atomic.Uint32 // the server that answered last is asked first
}

// Answer is a sound answer.
type Answer struct {
	// Backends are sorted by address.
	Backends []Backend
	// TTL is how long it holds.
	TTL time.Duration
	// Partial is why some of Backends are not of this answer, but known from before; nil if all are.
	Partial error
}

// NewAnswer returns an answer that holds until its source says otherwise. It sorts found.
func NewAnswer(found []Backend) Answer {
	slices.SortFunc(found, func(x, y Backend) int { return strings.Compare(x.EffectiveName(), y.EffectiveName()) })
	return Answer{Backends: found, TTL: maxTTL}
}

// LookUp asks where the backends of src are. known are those of the last answer: if only the IPv4 or the IPv6
// addresses of a name can be had, the others stay. An answer of more than limit backends is an error. The
// error says which name could not be looked up, and why.
func (r *Resolver) LookUp(ctx context.Context, src Source, known []Backend, limit int) (Answer, error) {
	servers, names, err := r.setup(src.name)
	if err != nil {
		return Answer{}, err
	}
	q := &query{servers: servers, last: &r.last}
	var a Answer
	for i, name := range names { // the search list of resolv.conf
		if src.kind == kindSRV {
			a, err = q.services(ctx, name, known, limit)
		} else {
			a, err = q.hosts(ctx, name, src.port, known)
		}
		if err == nil || !errors.Is(err, errEmpty) || i == len(names)-1 {
			break
		}
	}
	switch {
	case err != nil:
		return Answer{}, fmt.Errorf("cannot look up %q: %w", src.name, err)
	case len(a.Backends) > limit:
		return Answer{}, fmt.Errorf("cannot use the answer for %q: it lists %d backends, and discover_max is %d", src.name, len(a.Backends), limit)
	}
	if a.Partial != nil {
		a.Partial = fmt.Errorf("cannot look up all of %q: %w", src.name, a.Partial)
	}
	slices.SortFunc(a.Backends, func(x, y Backend) int { return strings.Compare(x.Address, y.Address) })
	a.Backends = slices.CompactFunc(a.Backends, func(x, y Backend) bool { return x.Address == y.Address })
	return a, nil
}

// setup returns the name servers, and the full names to ask for, in order.
func (r *Resolver) setup(name string) (servers, names []string, err error) {
	names = []string{dns.Fqdn(name)}
	for _, s := range r.Servers {
		addr, err := serverAddress(s)
		if err != nil {
			return nil, nil, err
		}
		servers = append(servers, addr)
	}
	if len(servers) > 0 {
		return servers, names, nil
	}
	path := cmp.Or(r.ResolvConf, "/etc/resolv.conf")
	conf, err := dns.ClientConfigFromFile(path)
	if err != nil {
		return nil, nil, fmt.Errorf("cannot find a name server: %w", err)
	}
	for _, s := range conf.Servers {
		if addr, err := serverAddress(s); err == nil {
			servers = append(servers, addr)
		}
	}
	if len(servers) == 0 {
		return nil, nil, fmt.Errorf("cannot find a name server: %s names none", path)
	}
	return servers, conf.NameList(name), nil
}

// query is one look-up, of several questions.
type query struct {
	servers []string
	last    *atomic.Uint32
}

// hosts returns the addresses of a host name as backends.
func (q *query) hosts(ctx context.Context, name string, port uint16, known []Backend) (Answer, error) {
	ips, ttl, partial, err := q.addresses(ctx, name, func(is6 bool) (stay []netip.Addr) {
		for _, b := range known {
			if ip := b.At.Addr(); ip.Is6() == is6 {
				stay = append(stay, ip)
			}
		}
		return stay
	})
	if err != nil {
		return Answer{}, err
	}
	a := Answer{TTL: ttl, Partial: partial}
	for _, ip := range ips {
		at := netip.AddrPortFrom(ip, port)
		a.Backends = append(a.Backends, Backend{Address: at.String(), At: at, Weight: backends.DefaultWeight})
	}
	return a, nil
}

// addresses returns the IPv4 and IPv6 addresses of a name. If one kind cannot be looked up and the other can,
// those that stay take its place; partial is why, if there are any.
func (q *query) addresses(ctx context.Context, name string, stay func(is6 bool) []netip.Addr) (all []netip.Addr, ttl time.Duration, partial, err error) {
	types := [2]uint16{dns.TypeA, dns.TypeAAAA}
	var found [2][]netip.Addr
	var ttls [2]time.Duration
	var errs [2]error
	var asking sync.WaitGroup
	for i := range types {
		asking.Go(func() {
			var rrs []dns.RR
			if rrs, ttls[i], errs[i] = q.records(ctx, name, types[i]); errs[i] == nil {
				found[i] = addressesIn(rrs)
			}
		})
	}
	asking.Wait()
	if errs[0] != nil && errs[1] != nil {
		return nil, 0, nil, errs[0]
	}
	for i := range errs {
		if errs[i] == nil {
			continue
		}
		if len(found[1-i]) == 0 { // the other kind says only that it has none
			return nil, 0, nil, errs[i]
		}
		found[i], ttls[i] = stay(types[i] == dns.TypeAAAA), retryMost
		if len(found[i]) > 0 {
			partial = errs[i]
		}
	}
	if all = slices.Concat(found[0], found[1]); len(all) == 0 {
		return nil, 0, nil, errEmpty
	}
	return all, min(ttls[0], ttls[1]), partial, nil
}

// addressesIn returns the addresses that connections can go to.
func addressesIn(rrs []dns.RR) (ips []netip.Addr) {
	for _, rr := range rrs {
		var raw net.IP
		switch rr := rr.(type) {
		case *dns.A:
			raw = rr.A
		case *dns.AAAA:
			raw = rr.AAAA
		}
		if ip, ok := netip.AddrFromSlice(raw); ok && usable(ip.Unmap()) {
			ips = append(ips, ip.Unmap())
		}
	}
	return ips
}

// services returns the targets of a service as backends. Each must have an address, or have had one.
func (q *query) services(ctx context.Context, name string, known []Backend, limit int) (Answer, error) {
	rrs, ttl, err := q.records(ctx, name, dns.TypeSRV)
	if err != nil {
		return Answer{}, err
	}
	targets := targetsIn(rrs)
	switch {
	case len(targets) == 0:
		return Answer{}, errEmpty
	case len(targets) > limit:
		return Answer{}, fmt.Errorf("the answer lists %d targets, and discover_max is %d", len(targets), limit)
	}
	at := map[string]netip.AddrPort{}
	for _, b := range known {
		at[b.Address] = b.At
	}
	a := Answer{TTL: ttl, Backends: make([]Backend, len(targets))}
	errs, partial, ttls := make([]error, len(targets)), make([]error, len(targets)), make([]time.Duration, len(targets))
	room := make(chan struct{}, 8) // questions at once
	var asking sync.WaitGroup
	for i, t := range targets {
		room <- struct{}{}
		asking.Go(func() {
			defer func() { <-room }()
			b := Backend{Address: net.JoinHostPort(t.host(), strconv.Itoa(int(t.port))), Weight: t.weight, Backup: t.backup}
			before := at[b.Address]
			var ips []netip.Addr
			// An address that stays is of a target that has another one now: it does not count.
			ips, ttls[i], _, errs[i] = q.addresses(ctx, t.name, func(is6 bool) []netip.Addr {
				if before.IsValid() && before.Addr().Is6() == is6 {
					return []netip.Addr{before.Addr()}
				}
				return nil
			})
			switch {
			case errs[i] == nil:
				b.At = netip.AddrPortFrom(oneOf(ips, before.Addr()), t.port)
			case before.IsValid(): // it is listed, so it goes on where it was
				b.At, partial[i], errs[i], ttls[i] = before, fmt.Errorf("%s: %w", t.host(), errs[i]), nil, retryMost
			}
			a.Backends[i] = b
		})
	}
	asking.Wait()
	var found []Backend
	for i := range a.Backends {
		if errs[i] == nil {
			found, a.TTL = append(found, a.Backends[i]), min(a.TTL, ttls[i])
		} else {
			a.TTL = min(a.TTL, retryMost) // the others serve meanwhile
		}
	}
	a.Partial = errors.Join(partial...)
	if a.Backends = found; len(found) == 0 {
		return Answer{}, fmt.Errorf("none of its targets has an address: %w", errs[0])
	}
	return a, nil
}

// oneOf returns before if it is among ips, so that an answer in another order changes nothing; else the
// lowest IPv4 address, else the lowest.
func oneOf(ips []netip.Addr, before netip.Addr) netip.Addr {
	if slices.Contains(ips, before) {
		return before
	}
	return slices.MinFunc(ips, netip.Addr.Compare) // IPv4 is lower
}

// target is one target of a service.
type target struct {
	name   string
	port   uint16
	weight int
	backup bool
}

// host returns the name without the final dot.
func (t *target) host() string { return strings.TrimSuffix(t.name, ".") }

// targetsIn returns the targets of SRV records, sorted, each once (RFC 2782). Those of the lowest priority
// are in use, the others are backups. Weights beyond MaxWeight are scaled down together; a weight of 0 among
// others is the smallest; where all are 0 they are equal.
func targetsIn(rrs []dns.RR) []target {
	var all []*dns.SRV
	var most, lowest uint16 = 0, 1<<16 - 1
	for _, rr := range rrs {
		srv, ok := rr.(*dns.SRV)
		// "." says that there is no such service
		if !ok || srv.Port == 0 || checkHost(strings.TrimSuffix(srv.Target, ".")) != nil {
			continue
		}
		all = append(all, srv)
		most, lowest = max(most, srv.Weight), min(lowest, srv.Priority)
	}
	var targets []target
	for _, srv := range all {
		t := target{name: strings.ToLower(srv.Target), port: srv.Port, weight: backends.DefaultWeight, backup: srv.Priority > lowest}
		switch {
		case most > backends.MaxWeight:
			t.weight = max(1, int(srv.Weight)*backends.MaxWeight/int(most))
		case most > 0:
			t.weight = max(1, int(srv.Weight))
		}
		targets = append(targets, t)
	}
	slices.SortFunc(targets, func(x, y target) int {
		return cmp.Or(strings.Compare(x.name, y.name), cmp.Compare(x.port, y.port), btoi(x.backup)-btoi(y.backup), y.weight-x.weight)
	})
	return slices.CompactFunc(targets, func(x, y target) bool { return x.name == y.name && x.port == y.port })
}

func btoi(b bool) int {
	if b {
		return 1
	}
	return 0
}

// records returns the records of a name and a type, behind its CNAMEs, and how long they hold. A name that
// does not exist has none.
func (q *query) records(ctx context.Context, name string, typ uint16) ([]dns.RR, time.Duration, error) {
	ttl := maxTTL
	for range maxAliases {
		m, err := q.ask(ctx, name, typ)
		if err != nil {
			return nil, 0, err
		}
		for range maxAliases { // as far as this answer has them
			alias := aliasIn(m.Answer, name)
			if alias == nil {
				break
			}
			name, ttl = alias.Target, min(ttl, time.Duration(alias.Hdr.Ttl)*time.Second)
		}
		var found []dns.RR
		for _, rr := range m.Answer {
			if h := rr.Header(); h.Rrtype == typ && h.Class == dns.ClassINET && strings.EqualFold(h.Name, name) {
				found, ttl = append(found, rr), min(ttl, time.Duration(h.Ttl)*time.Second)
			}
		}
		if len(found) > 0 || strings.EqualFold(name, m.Question[0].Name) {
			return found, ttl, nil
		}
		// the server does not follow its CNAMEs
	}
	return nil, 0, fmt.Errorf("more than %d CNAMEs", maxAliases)
}

func aliasIn(rrs []dns.RR, name string) *dns.CNAME {
	for _, rr := range rrs {
		if c, ok := rr.(*dns.CNAME); ok && c.Hdr.Class == dns.ClassINET && strings.EqualFold(c.Hdr.Name, name) && !strings.EqualFold(c.Target, name) {
			return c
		}
	}
	return nil
}

// ask asks the name servers in turn, until one gives an answer that can be true: records, or the word that
// there are none.
func (q *query) ask(ctx context.Context, name string, typ uint16) (*dns.Msg, error) {
	var failed []error
	first := int(q.last.Load())
	for i := range attempts * len(q.servers) {
		n := (first + i) % len(q.servers)
		m, err := exchange(ctx, q.servers[n], name, typ)
		if err == nil {
			q.last.Store(uint32(n))
			return m, nil
		}
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err = fmt.Errorf("name server %s: %w", q.servers[n], err); i < len(q.servers) {
			failed = append(failed, err)
		}
	}
	return nil, errors.Join(failed...)
}

// exchange asks one name server, again over TCP if the answer does not fit a datagram.
func exchange(ctx context.Context, server, name string, typ uint16) (*dns.Msg, error) {
	ctx, cancel := context.WithTimeout(ctx, serverTimeout)
	defer cancel()
	ask := new(dns.Msg).SetQuestion(name, typ)
	ask.SetEdns0(udpSize, false)
	for _, network := range []string{"udp", "tcp"} {
		client := dns.Client{Net: network, Timeout: serverTimeout}
		m, _, err := client.ExchangeContext(ctx, ask, server)
		switch {
		case err != nil:
			return nil, readable(err)
		case !answers(m, ask):
			return nil, errors.New("it answers another question")
		case m.Truncated && network == "udp":
			continue
		case m.Truncated:
			return nil, errors.New("the answer is cut short, even over TCP")
		case m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError:
			return m, nil
		case m.Rcode == dns.RcodeFormatError && ask.IsEdns0() != nil: // it knows no EDNS (RFC 6891, 7)
			ask.Extra = nil
			if m, _, err = client.ExchangeContext(ctx, ask, server); err != nil {
				return nil, readable(err)
			}
			if answers(m, ask) && !m.Truncated && (m.Rcode == dns.RcodeSuccess || m.Rcode == dns.RcodeNameError) {
				return m, nil
			}
		}
		return nil, fmt.Errorf("it answers %s", dns.RcodeToString[m.Rcode])
	}
	panic("BUG: discovery: an exchange over TCP goes on to another network")
}

// answers reports whether m is an answer to ask.
func answers(m, ask *dns.Msg) bool {
	return m.Response && m.Id == ask.Id && len(m.Question) == 1 && m.Question[0].Qtype == ask.Question[0].Qtype &&
		strings.EqualFold(m.Question[0].Name, ask.Question[0].Name)
}

// readable says in words what became of a question.
func readable(err error) error {
	var timeout net.Error
	var op *net.OpError
	var format *dns.Error
	switch {
	case errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("it has not answered within %v", serverTimeout)
	case errors.As(err, &op):
		return op.Err
	case errors.As(err, &format):
		return fmt.Errorf("its answer cannot be read: %v", strings.TrimPrefix(format.Error(), "dns: "))
	}
	return err
}
