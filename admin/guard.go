package admin

import (
	"context"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// wrongTokenDelay is how long the answer to a wrong token waits. With maxConns at once that is 64 guesses a
// second; the right token never waits.
const wrongTokenDelay = time.Second

// guard lets a request over TCP pass only if it was meant for lb. A browser on this host can reach a loopback
// address too, so a page of a stranger could ask lb in its user's name: by a name of the stranger's that
// resolves to the loopback address (DNS rebinding; then the Host is that name), or from its own origin (then
// the Origin is foreign, and so is the Sec-Fetch-Site of whatever changes something). Then it looks at the
// token, which says what he may do.
type guard struct {
	host    string     // the host of Config.HTTP; empty for every address
	token   *tokenFile // nil is none
	refused *refusals
	next    http.Handler

	crossOrigin http.CrossOriginProtection
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !g.hostAllowed(r) {
		g.refuse(w, refusedHost, refuse(http.StatusForbidden,
			"the Host %q is neither a loopback address nor the host of admin.http; use that, or name this one there", r.Host))
		return
	}
	if origin := r.Header.Get("Origin"); origin != "" && !sameOrigin(origin, r.Host) {
		g.refuse(w, refusedOrigin, refuse(http.StatusForbidden, "requests of the origin %q are not served", origin))
		return
	}
	if err := g.crossOrigin.Check(r); err != nil {
		g.refuse(w, refusedOrigin, refuse(http.StatusForbidden, "requests of pages of other sites are not served"))
		return
	}
	if sent := r.Header.Get("Authorization"); sent != "" {
		if refusal := g.authorize(r, sent); refusal != nil {
			wait(r.Context(), wrongTokenDelay)
			g.refuse(w, refusedWrongToken, refusal)
			return
		}
		caller := CallerFrom(r.Context())
		caller.Token = true
		r = r.WithContext(context.WithValue(r.Context(), callerKey{}, caller))
	}
	g.next.ServeHTTP(w, r)
}

// authorize refuses a token that is not lb's, also where none was needed: its sender shall know.
func (g *guard) authorize(r *http.Request, sent string) *api.Error {
	scheme, token, _ := strings.Cut(sent, " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return refuse(http.StatusUnauthorized, "an Authorization of the kind %q is not known; write Bearer and the token", scheme)
	}
	if g.token == nil {
		return refuse(http.StatusUnauthorized, "this lb has no token: set admin.token_file, or use the control socket")
	}
	ok, err := g.token.matches(strings.TrimSpace(token))
	switch {
	case err != nil:
		return refuse(http.StatusUnauthorized, "no token is right at the moment: %v", err)
	case !ok:
		return refuse(http.StatusUnauthorized, "that is not the token of admin.token_file")
	}
	return nil
}

func (g *guard) refuse(w http.ResponseWriter, why refusalReason, refusal *api.Error) {
	g.refused.count(why)
	if refusal.Status == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="lb"`) // RFC 6750, section 3
	}
	w.Header().Set("Connection", "close")
	writeError(w, refusal)
}

// wait waits for d, or for the end of ctx.
func wait(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}

// hostAllowed accepts a loopback name or address, the configured host, and the address that the request came
// to: that one is an IP address, which no name of a stranger's is.
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
