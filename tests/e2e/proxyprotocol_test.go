//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"sync"
	"testing"
)

// startHAProxy starts haproxy with these sections and waits until it listens at the addresses.
func startHAProxy(t testing.TB, sections string, addresses ...string) {
	t.Helper()
	config := writeFile(t, tempDir(t), "haproxy.cfg", "global\n\tmaxconn 1000\ndefaults\n\ttimeout connect 5s\n\ttimeout client 20s\n\ttimeout server 20s\n"+sections, 0o644)
	p := startProcess(t, "haproxy", exec.Command(program(t, "haproxy"), "-db", "-f", config))
	for _, address := range addresses {
		waitAccepts(t, p, address)
	}
}

// sayWho is a pair of servers that want a PROXY header and answer with the client and the server that it
// names: nginx at a TCP and a Unix address, haproxy likewise.
type sayWho struct{ name, tcp, unix string }

func startSayWho(t testing.TB) []sayWho {
	t.Helper()
	dir := tempDir(t)
	nginx := sayWho{"nginx", freePort(t, "127.0.0.1"), socketPath(dir, "nginx.sock")}
	startNginxWith(t, dir, fmt.Sprintf(`
	server {
		listen %s proxy_protocol; listen %s proxy_protocol;
		location / { return 200 "$proxy_protocol_addr $proxy_protocol_port $proxy_protocol_server_addr $proxy_protocol_server_port\n"; }
	}`, nginx.tcp, nginx.unix))
	haproxy := sayWho{"haproxy", freePort(t, "127.0.0.1"), socketPath(dir, "haproxy.sock")}
	_, path := splitAddress(haproxy.unix)
	startHAProxy(t, fmt.Sprintf(`
frontend who
	mode http
	bind %s accept-proxy
	bind %s accept-proxy
	http-request return status 200 content-type text/plain lf-string "%%[src] %%[src_port] %%[dst] %%[dst_port]\n"
`, haproxy.tcp, path), haproxy.tcp, haproxy.unix)
	return []sayWho{nginx, haproxy}
}

// askWho sends an HTTP request on conn and returns the body of the answer.
func askWho(conn net.Conn) (string, error) {
	if _, err := io.WriteString(conn, "GET / HTTP/1.1\r\nHost: who\r\nConnection: close\r\n\r\n"); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	head, body, _ := strings.Cut(string(answer), "\r\n\r\n")
	if err == nil && !strings.HasPrefix(head, "HTTP/1.1 200 ") {
		err = fmt.Errorf("cannot read the answer %q", answer)
	}
	return strings.TrimSpace(body), err
}

// spaced is "address port" of both ends of a connection, as the servers write it.
func spaced(client, server net.Addr) string {
	word := func(a net.Addr) string {
		host, port, _ := net.SplitHostPort(a.String())
		return host + " " + port
	}
	return word(client) + " " + word(server)
}

// proxyPool is a config of one pool that sends PROXY headers. Its probe sends none, so only "none" suits the
// servers.
func proxyPool(t testing.TB, version string, addresses ...string) lbConfig {
	config := onePool(t, addresses...)
	config.Pools[0].Options = fmt.Sprintf("send_proxy = %q\n", version)
	config.Pools[0].Health = "type = \"none\"\n"
	return config
}

func TestProxyProtocol_ToNginxAndHAProxy(t *testing.T) {
	servers := startSayWho(t)
	for _, server := range servers {
		for _, version := range []string{"v1", "v2"} {
			for _, address := range []string{server.tcp, server.unix} {
				for _, host := range []string{"127.0.0.1", "::1"} {
					network, _ := splitAddress(address)
					t.Run(fmt.Sprintf("%s %s over %s from %s", server.name, version, network, host), func(t *testing.T) {
						config := proxyPool(t, version, address)
						config.Listeners[0].Bind = []string{freePort(t, host)}
						l := startLB(t, config)
						var all sync.WaitGroup
						for range 4 {
							all.Go(func() {
								for range 25 {
									conn, err := net.Dial("tcp", l.addr())
									if err != nil {
										t.Errorf("connect: %v", err)
										return
									}
									got, err := askWho(conn)
									if want := spaced(conn.LocalAddr(), conn.RemoteAddr()); err != nil || got != want {
										t.Errorf("client as the server was told: got %q, %v; want %q", got, err, want)
									}
									conn.Close()
								}
							})
						}
						all.Wait()
					})
				}
			}
		}
	}
}

// TestProxyProtocol_FromHAProxy sends through haproxy, lb and a server: each hears of the client of the
// first.
func TestProxyProtocol_FromHAProxy(t *testing.T) {
	servers := startSayWho(t)
	for _, in := range []string{"send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options unique-id,crc32c"} {
		for _, server := range servers {
			for _, out := range []string{"v1", "v2"} {
				t.Run(fmt.Sprintf("%s, %s to %s", in, out, server.name), func(t *testing.T) {
					config := proxyPool(t, out, server.unix)
					config.Listeners[0].Options = "accept_proxy = true\nproxy_from = [\"127.0.0.1\"]\n"
					l := startLB(t, config)
					front := freePort(t, "127.0.0.1")
					startHAProxy(t, fmt.Sprintf(`
listen front
	mode tcp
	bind %s
	unique-id-format %%ci-%%cp-%%Ts
	server lb %s %s
`, front, l.addr(), in), front)
					for range 20 {
						conn := dial(t, front)
						got, err := askWho(conn)
						if want := spaced(conn.LocalAddr(), conn.RemoteAddr()); err != nil || got != want {
							t.Errorf("client as the server was told: got %q, %v; want %q", got, err, want)
						}
						conn.Close()
					}
				})
			}
		}
	}
}

// TestProxyProtocol_HAProxyProbeIsTaken has haproxy probe lb with LOCAL headers: lb lets them in.
func TestProxyProtocol_HAProxyProbeIsTaken(t *testing.T) {
	server := startSayWho(t)[0]
	config := proxyPool(t, "v2", server.tcp)
	config.Listeners[0].Options = "accept_proxy = true\n"
	l := startLB(t, config)
	front := freePort(t, "127.0.0.1")
	startHAProxy(t, fmt.Sprintf(`
listen front
	mode http
	bind %s
	option httpchk GET /
	server lb %s send-proxy-v2 check-send-proxy check inter 100ms rise 2 fall 1
`, front, l.addr()), front)
	eventually(t, patience, func() error {
		conn := dial(t, front)
		defer conn.Close()
		_, err := askWho(conn)
		return err
	})
}

func TestProxyProtocol_ClientWithoutAHeaderIsClosed(t *testing.T) {
	server := startSayWho(t)[0]
	config := proxyPool(t, "v2", server.tcp)
	config.Listeners[0].Options = "accept_proxy = true\n"
	l := startLB(t, config)
	for range 10 {
		if got, err := askWho(dial(t, l.addr())); got != "" || err == nil {
			t.Errorf("answer without a PROXY header: got %q, %v; want none", got, err)
		}
	}
	if n := l.status(t).backend(t, "w1").Connections; n != 0 {
		t.Errorf("connections to the server: got %d; want 0", n)
	}
}
