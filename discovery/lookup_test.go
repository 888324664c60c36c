package discovery

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/miekg/dns"
)

// serveDNS runs a name server on loopback, UDP and TCP, that answers by handler. It returns its address.
func serveDNS(t *testing.T, handler dns.HandlerFunc) string {
	t.Helper()
	l, pc := listenBoth(t)
	for _, srv := range []*dns.Server{{Listener: l, Handler: handler}, {PacketConn: pc, Handler: handler}} {
		started := make(chan struct{})
		srv.NotifyStartedFunc = func() { close(started) }
		ended := make(chan error, 1)
		go func() { ended <- srv.ActivateAndServe() }()
		<-started
		t.Cleanup(func() {
			srv.Shutdown()
			<-ended
		})
	}
	return l.Addr().String()
}

// listenBoth opens a port of loopback for TCP and UDP.
func listenBoth(t *testing.T) (net.Listener, net.PacketConn) {
	t.Helper()
	for range 100 {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		pc, err := net.ListenPacket("udp", l.Addr().String())
		if err == nil {
			return l, pc
		}
		l.Close()
	}
	t.Fatal("no port is free for TCP and UDP")
	return nil, nil
}

// zone answers with the records of its lines that have the name and type in question, and with NXDOMAIN for a
// name that has none.
func zone(t *testing.T, lines ...string) dns.HandlerFunc {
	t.Helper()
	var rrs []dns.RR
	for _, line := range lines {
		rr, err := dns.NewRR(line)
		if err != nil {
			t.Fatal(err)
		}
		rrs = append(rrs, rr)
	}
	return func(w dns.ResponseWriter, ask *dns.Msg) {
		m := new(dns.Msg).SetReply(ask)
		m.Rcode = dns.RcodeNameError
		for _, rr := range rrs {
			if strings.EqualFold(rr.Header().Name, ask.Question[0].Name) {
				m.Rcode = dns.RcodeSuccess
				if typ := rr.Header().Rrtype; typ == ask.Question[0].Qtype || typ == dns.TypeCNAME {
					m.Answer = append(m.Answer, rr)
				}
			}
		}
		if w.LocalAddr().Network() == "udp" {
			m.Truncate(udpSize)
		}
		w.WriteMsg(m)
	}
}

// lookUp looks source up at a name server.
func lookUp(t *testing.T, server, source string, known ...Backend) (Answer, error) {
	t.Helper()
	return lookUpWith(t, &Resolver{Servers: []string{server}}, source, known...)
}

func lookUpWith(t *testing.T, r *Resolver, source string, known ...Backend) (Answer, error) {
	t.Helper()
	src, err := ParseSource(source)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	return r.LookUp(ctx, src, known, 256)
}

// text is an answer in one line.
func text(a Answer) string {
	var all []string
	for _, b := range a.Backends {
		s := fmt.Sprintf("%s@%v*%d", b.Address, b.At, b.Weight)
		if b.Backup {
			s += "b"
		}
		all = append(all, s)
	}
	return fmt.Sprint(strings.Join(all, " "), " ttl ", a.TTL)
}

func TestLookUp_ReadsAnswers(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		source string
		zone   []string
		want   string
	}{
		"addresses of both kinds, in order": {"dns:app.test:80",
			[]string{"app.test. 9 A 10.0.0.2", "app.test. 7 A 10.0.0.1", "app.test. 8 AAAA fd00::1"},
			"10.0.0.1:80@10.0.0.1:80*100 10.0.0.2:80@10.0.0.2:80*100 [fd00::1]:80@[fd00::1]:80*100 ttl 7s"},
		"letters of either case": {"dns:App.TEST:80", []string{"aPP.test. 9 A 10.0.0.2"}, "10.0.0.2:80@10.0.0.2:80*100 ttl 9s"},
		"an address twice":       {"dns:app.test:80", []string{"app.test. 9 A 10.0.0.2", "app.test. 9 AAAA ::ffff:10.0.0.2"}, "10.0.0.2:80@10.0.0.2:80*100 ttl 9s"},
		"an alias, which is asked for": {"dns:app.test:80", []string{"app.test. 5 CNAME web.test.", "web.test. 9 A 10.0.0.2"},
			"10.0.0.2:80@10.0.0.2:80*100 ttl 5s"},
		"no addresses of one host": {"dns:app.test:80",
			[]string{"app.test. 9 A 0.0.0.0", "app.test. 9 A 255.255.255.255", "app.test. 9 A 224.0.0.1", "app.test. 9 AAAA ::", "app.test. 9 A 10.0.0.1"},
			"10.0.0.1:80@10.0.0.1:80*100 ttl 9s"},
		"a service with weights and tiers": {"srv:_app._tcp.test",
			[]string{"_app._tcp.test. 9 SRV 10 60 8001 W1.test.", "_app._tcp.test. 9 SRV 10 0 8002 w2.test.", "_app._tcp.test. 9 SRV 20 60 8003 w2.test.",
				"w1.test. 4 A 10.0.0.1", "w2.test. 9 A 10.0.0.2", "w2.test. 9 AAAA fd00::2"},
			"w1.test:8001@10.0.0.1:8001*60 w2.test:8002@10.0.0.2:8002*1 w2.test:8003@10.0.0.2:8003*60b ttl 4s"},
		"a service without weights": {"srv:_app._tcp.test",
			[]string{"_app._tcp.test. 9 SRV 0 0 8001 w1.test.", "w1.test. 9 A 10.0.0.1"}, "w1.test:8001@10.0.0.1:8001*100 ttl 9s"},
		"a service with weights beyond lb's": {"srv:_app._tcp.test",
			[]string{"_app._tcp.test. 9 SRV 0 60000 1 w1.test.", "_app._tcp.test. 9 SRV 0 30000 2 w1.test.", "w1.test. 9 A 10.0.0.1"},
			"w1.test:1@10.0.0.1:1*1000 w1.test:2@10.0.0.1:2*500 ttl 9s"},
		"a target that has no address, beside one that has": {"srv:_app._tcp.test",
			[]string{"_app._tcp.test. 60 SRV 0 5 1 w1.test.", "_app._tcp.test. 60 SRV 0 5 2 gone.test.", "w1.test. 60 A 10.0.0.1"},
			"w1.test:1@10.0.0.1:1*5 ttl 3s"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := lookUp(t, serveDNS(t, zone(t, test.zone...)), test.source)
			if err != nil {
				t.Fatal(err)
			}
			if got := text(a); got != test.want {
				t.Errorf("got\n%s\nwant\n%s", got, test.want)
			}
		})
	}
}

func TestLookUp_TakesALongAnswerOverTCP(t *testing.T) {
	t.Parallel()
	var lines []string
	for i := range 256 {
		lines = append(lines, fmt.Sprintf("app.test. 9 A 10.0.1.%d", i))
	}
	a, err := lookUp(t, serveDNS(t, zone(t, lines...)), "dns:app.test:80")
	if err != nil || len(a.Backends) != 256 {
		t.Errorf("got %d backends, error %v; want 256", len(a.Backends), err)
	}
}

func TestLookUp_RefusesWhatIsNoSoundAnswer(t *testing.T) {
	t.Parallel()
	reply := func(change func(m *dns.Msg)) dns.HandlerFunc {
		return func(w dns.ResponseWriter, ask *dns.Msg) {
			m := new(dns.Msg).SetReply(ask)
			rr, _ := dns.NewRR(ask.Question[0].Name + " 9 A 10.0.0.1")
			m.Answer = append(m.Answer, rr)
			change(m)
			w.WriteMsg(m)
		}
	}
	var thousand []string
	for i := range 1000 {
		thousand = append(thousand, fmt.Sprintf("app.test. 9 A 10.0.%d.%d", i/250, i%250))
	}
	for name, test := range map[string]struct {
		handler dns.HandlerFunc
		want    string
	}{
		"SERVFAIL":        {reply(func(m *dns.Msg) { m.Rcode = dns.RcodeServerFailure }), "SERVFAIL"},
		"REFUSED":         {reply(func(m *dns.Msg) { m.Rcode = dns.RcodeRefused }), "REFUSED"},
		"NXDOMAIN":        {zone(t), "lists nothing"},
		"no records":      {zone(t, "app.test. 9 TXT x"), "lists nothing"},
		"silence":         {func(dns.ResponseWriter, *dns.Msg) {}, "not answered within"},
		"another name":    {reply(func(m *dns.Msg) { m.Question[0].Name = "other.test." }), "another question"},
		"others' records": {reply(func(m *dns.Msg) { m.Answer[0].Header().Name = "other.test." }), "lists nothing"},
		"garbage": {func(w dns.ResponseWriter, ask *dns.Msg) {
			w.Write(append([]byte{byte(ask.Id >> 8), byte(ask.Id)}, "\x81\x80\xff\xff\xff\xff\xff\xff\xff\xff garbage"...))
		}, "cannot be read"},
		"a query sent back": {func(w dns.ResponseWriter, ask *dns.Msg) { w.WriteMsg(ask) }, "another question"},
		"aliases in a circle": {zone(t, "app.test. 9 CNAME b.test.", "b.test. 9 CNAME app.test."),
			"CNAMEs"},
		"a thousand addresses": {zone(t, thousand...), "lists 1000 backends, and discover_max is 256"},
		"only 0.0.0.0":         {zone(t, "app.test. 9 A 0.0.0.0"), "lists nothing"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			a, err := lookUp(t, serveDNS(t, test.handler), "dns:app.test:80")
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %s, error %v; want an error with %q", text(a), err, test.want)
			}
		})
	}
	t.Run("nobody there", func(t *testing.T) {
		t.Parallel()
		l, pc := listenBoth(t)
		l.Close()
		pc.Close()
		if a, err := lookUp(t, l.Addr().String(), "dns:app.test:80"); err == nil {
			t.Errorf("got %s; want an error", text(a))
		}
	})
	t.Run("no such service", func(t *testing.T) {
		t.Parallel()
		if a, err := lookUp(t, serveDNS(t, zone(t, "_app._tcp.test. 9 SRV 0 0 0 .")), "srv:_app._tcp.test"); err == nil {
			t.Errorf("got %s; want an error", text(a))
		}
	})
}

func TestLookUp_AsksTheNextServer(t *testing.T) {
	t.Parallel()
	silent := serveDNS(t, func(w dns.ResponseWriter, ask *dns.Msg) {
		m := new(dns.Msg).SetRcode(ask, dns.RcodeServerFailure)
		w.WriteMsg(m)
	})
	good := serveDNS(t, zone(t, "app.test. 9 A 10.0.0.1"))
	if a, err := lookUpWith(t, &Resolver{Servers: []string{silent, good}}, "dns:app.test:80"); err != nil || len(a.Backends) != 1 {
		t.Errorf("got %s, error %v; want one backend", text(a), err)
	}
}

func TestLookUp_KeepsAddressesOfTheKindThatCannotBeHad(t *testing.T) {
	t.Parallel()
	good := zone(t, "app.test. 9 A 10.0.0.1")
	server := serveDNS(t, func(w dns.ResponseWriter, ask *dns.Msg) {
		if ask.Question[0].Qtype == dns.TypeAAAA {
			w.WriteMsg(new(dns.Msg).SetRcode(ask, dns.RcodeServerFailure))
			return
		}
		good(w, ask)
	})
	known, err := lookUp(t, serveDNS(t, zone(t, "app.test. 9 A 10.0.0.7", "app.test. 9 AAAA fd00::1")), "dns:app.test:80")
	if err != nil {
		t.Fatal(err)
	}
	a, err := lookUp(t, server, "dns:app.test:80", known.Backends...)
	if want := "10.0.0.1:80@10.0.0.1:80*100 [fd00::1]:80@[fd00::1]:80*100 ttl 3s"; err != nil || text(a) != want || a.Partial == nil {
		t.Errorf("got %s, error %v, partial %v; want %s, and why it is not all of the answer", text(a), err, a.Partial, want)
	}
	// A server that never answers for AAAA is no fault of a name that has none.
	a, err = lookUp(t, server, "dns:app.test:80")
	if want := "10.0.0.1:80@10.0.0.1:80*100 ttl 3s"; err != nil || text(a) != want || a.Partial != nil {
		t.Errorf("got %s, error %v, partial %v; want %s", text(a), err, a.Partial, want)
	}
	// That there is no AAAA says nothing of A.
	none := serveDNS(t, func(w dns.ResponseWriter, ask *dns.Msg) {
		m := new(dns.Msg).SetReply(ask)
		if ask.Question[0].Qtype == dns.TypeA {
			m.Rcode = dns.RcodeServerFailure
		}
		w.WriteMsg(m)
	})
	if a, err := lookUp(t, none, "dns:app.test:80", known.Backends...); err == nil {
		t.Errorf("A answers SERVFAIL and AAAA nothing: got %s; want an error", text(a))
	}
}

func TestLookUp_ServiceStaysAtTheAddressThatItHas(t *testing.T) {
	t.Parallel()
	const srv = "_app._tcp.test. 9 SRV 0 5 1 w1.test."
	before, err := lookUp(t, serveDNS(t, zone(t, srv, "w1.test. 9 A 10.0.0.9")), "srv:_app._tcp.test")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ zone, want string }{
		"listed beside another": {"w1.test. 9 A 10.0.0.9", "10.0.0.9:1"},
		"its name is gone":      {"other.test. 9 A 10.0.0.1", "10.0.0.9:1"},
		"moved":                 {"w1.test. 9 A 10.0.0.1", "10.0.0.1:1"},
	} {
		lines := []string{srv, test.zone}
		if name == "listed beside another" {
			lines = append(lines, "w1.test. 9 A 10.0.0.1")
		}
		a, err := lookUp(t, serveDNS(t, zone(t, lines...)), "srv:_app._tcp.test", before.Backends...)
		if err != nil || len(a.Backends) != 1 || a.Backends[0].At.String() != test.want {
			t.Errorf("%s: got %s, error %v; want it at %s", name, text(a), err, test.want)
		}
	}
}

func TestLookUp_HasTheServersAndTheSearchListOfResolvConf(t *testing.T) {
	t.Parallel()
	asked := make(chan string, 10)
	answer := zone(t, "app.corp.test. 9 A 10.0.0.1")
	_, port, _ := net.SplitHostPort(serveDNS(t, func(w dns.ResponseWriter, ask *dns.Msg) {
		if ask.Question[0].Qtype == dns.TypeA {
			asked <- ask.Question[0].Name
		}
		answer(w, ask)
	}))
	// resolv.conf has no ports, so the names are taken from it and the server is given.
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte("nameserver 127.0.0.1\nsearch none.test corp.test\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	servers, names, err := (&Resolver{ResolvConf: path}).setup("app")
	if err != nil || !slices.Equal(servers, []string{"127.0.0.1:53"}) || !slices.Equal(names, []string{"app.none.test.", "app.corp.test.", "app."}) {
		t.Errorf("got servers %q, names %q, error %v", servers, names, err)
	}
	if _, _, err := (&Resolver{ResolvConf: path + ".none"}).setup("app"); err == nil {
		t.Error("a resolv.conf that is not there is no error")
	}
	a, err := lookUp(t, "127.0.0.1:"+port, "dns:app.corp.test:80")
	if err != nil || len(a.Backends) != 1 || <-asked != "app.corp.test." {
		t.Errorf("got %s, error %v; want one backend", text(a), err)
	}
}

func TestParseSource(t *testing.T) {
	t.Parallel()
	for _, good := range []string{"dns:app.example:80", "dns:app:1", "dns:app.example.:65535", "srv:_app._tcp.example", "srv:_http._tcp.app.default.svc.cluster.local"} {
		if src, err := ParseSource(good); err != nil || src.String() != good {
			t.Errorf("%s: got %q, error %v", good, src, err)
		}
	}
	for bad, want := range map[string]string{
		"app:80": "unknown source", "dns:app": "has no port", "dns:app:0": "no port", "dns:app:x": "no port", "dns::80": "no host name",
		"dns:10.0.0.1:80": "an address", "dns:[fd00::1]:80": "an address", "dns:a b:80": "no host name", "dns:a\x1b[2J:80": "no host name", "dns:-a:80": "no host name",
		"srv:app.example": "no service", "srv:_app._sctp.example": "no service", "srv:_app._tcp.": "no service", "dns:" + strings.Repeat("a.", 200) + "b:80": "no host name",
	} {
		if src, err := ParseSource(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: got %v, error %v; want an error with %q", bad, src, err, want)
		}
	}
}
