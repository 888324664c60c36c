package proxy_test

import (
	"net"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/proxy"
)

// wildcardPort is a port that is free on every address; the test is skipped where there is no IPv6.
func wildcardPort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		t.Skip("there is no IPv6 here: ", err)
	}
	ln.Close()
	if ln, err = net.Listen("tcp", ":0"); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	_, port, err := net.SplitHostPort(ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestPrepare_IPv6WildcardLeavesIPv4ToWhoeverNamesIt(t *testing.T) {
	for _, v4 := range []string{"0.0.0.0:", "127.0.0.1:", "localhost:"} {
		port := wildcardPort(t)
		r := newRig(t, nil, serve(t, unixSocket, echo).address)
		r.become(r.spec("web", v4+port, "[::]:"+port))
		wantServed(t, "127.0.0.1:"+port)
		wantServed(t, "[::1]:"+port)
	}
	port := wildcardPort(t)
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	// two listeners, the other way round
	r.become(r.spec("six", "[::]:"+port), r.spec("four", "0.0.0.0:"+port))
	wantServed(t, "127.0.0.1:"+port)
	wantServed(t, "[::1]:"+port)
}

func TestPrepare_IPv6WildcardAloneTakesIPv4Too(t *testing.T) {
	port := wildcardPort(t)
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	r.become(r.spec("web", "[::]:"+port))
	wantServed(t, "127.0.0.1:"+port)
	wantServed(t, "[::1]:"+port)
}

func TestPrepare_RefusesToChangeTheFamiliesOfAnOpenSocket(t *testing.T) {
	port := wildcardPort(t)
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	both, alone := r.spec("web", "0.0.0.0:"+port, "[::]:"+port), r.spec("web", "[::]:"+port)
	r.become(alone)
	if _, err := r.proxy.Prepare([]proxy.ListenerSpec{both}, nil); err == nil || !strings.Contains(err.Error(), "is open for IPv4 too and would be for IPv6 alone") {
		t.Errorf("got %v; want that the open socket cannot change, and what to do", err)
	}
	wantServed(t, "127.0.0.1:"+port)
	r.become(r.spec("web", "127.0.0.1:0"))
	r.become(both)
	if _, err := r.proxy.Prepare([]proxy.ListenerSpec{alone}, nil); err == nil || !strings.Contains(err.Error(), "is open for IPv6 alone and would be for IPv4 too") {
		t.Errorf("got %v; want that the open socket cannot change, and what to do", err)
	}
	wantServed(t, "[::1]:"+port)
}
