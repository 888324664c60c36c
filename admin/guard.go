package admin

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
)

// guard lets a request over TCP pass only if it was meant for lb. A browser on this host can reach a loopback address
// too, so a page of a stranger could ask lb in its user's name: by a name of the stranger's that resolves to the
// loopback address (DNS rebinding; then the Host is that name), or from its own origin (then the Origin is foreign).
type guard struct {
	host string // the host of Config.HTTP; empty for every address
	next http.Handler
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.hostAllowed(r) {
		writeError(w, refuse(http.StatusForbidden,
			"the Host %q is neither a loopback address nor the host of admin.http; use that, or name this one there", r.Host))
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" && !sameOrigin(origin, r.Host) {
		writeError(w, refuse(http.StatusForbidden, "requests of the origin %q are not served", origin))
		return
	}
	g.next.ServeHTTP(w, r)
}

// hostAllowed accepts a loopback name or address, the configured host, and the address that the request came to: that
// one is an IP address, which no name of a stranger's is.
func (g *guard) hostAllowed(r *http.Request) bool {
	host := hostOnly(r.Host)
	if strings.EqualFold(host, "localhost") || g.host != "" && strings.EqualFold(host, g.host) {
		return true
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		return false
	}
	if ip.IsLoopback() {
		return true
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(*net.TCPAddr)
	return local != nil && local.AddrPort().Addr().Unmap() == ip.Unmap()
}

// sameOrigin says whether a page of that origin was loaded from the host it now asks.
func sameOrigin(origin, host string) bool {
	u, err := url.Parse(origin)
	return err == nil && u.Scheme == "http" && strings.EqualFold(u.Host, host)
}

// hostOnly cuts the port and the brackets of IPv6 off.
func hostOnly(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.TrimSuffix(strings.TrimPrefix(hostport, "["), "]")
}
