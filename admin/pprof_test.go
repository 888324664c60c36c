package admin

import (
	"context"
	"net"
	"net/http"
	"strings"
	"testing"
)

func TestProfile_IsForTheControlSocketAlone(t *testing.T) {
	cfg := Config{Socket: socketPath(t), SocketMode: "0600", HTTP: "127.0.0.1:0", TokenFile: writeToken(t, testToken, 0o600)}
	s, err := selfServing(NewServer(cfg, Sources{}))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	get := func(network, address, path string) int {
		t.Helper()
		req, err := http.NewRequest("GET", "http://localhost"+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if network == "tcp" {
			req.Header.Set("Authorization", "Bearer "+testToken)
		}
		resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true,
			DialContext: func(context.Context, string, string) (net.Conn, error) { return net.Dial(network, address) }}}).Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode
	}
	for path, want := range map[string]int{"/debug/pprof/heap": 200, "/debug/pprof/goroutine?debug=1": 200, "/debug/pprof/profile?seconds=1": 200, "/debug/pprof/nonsense": 404} {
		if got := get("unix", cfg.Socket, path); got != want {
			t.Errorf("GET %s over the control socket: got %d; want %d", path, got, want)
		}
	}
	if got := get("tcp", s.ends[1].listener.Addr().String(), "/debug/pprof/heap"); got != http.StatusForbidden {
		t.Errorf("with the token over HTTP: got %d; want 403", got)
	}
}

func TestUnknown_PersonsAreShownTheWay(t *testing.T) {
	s, _, address := newServer(t, Sources{}, true)
	serve(t, s)
	for path, want := range map[string]int{"/": 200, "/stats": 404, "/ui": 404} {
		req, _ := http.NewRequest("GET", "http://"+address+path, nil)
		req.Header.Set("Accept", "text/html,*/*")
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text := make([]byte, 4096)
		n, _ := resp.Body.Read(text)
		resp.Body.Close()
		if resp.StatusCode != want || !strings.Contains(string(text[:n]), "lb status") {
			t.Errorf("GET %s: got %d %q; want %d, and the way to lb status", path, resp.StatusCode, text[:n], want)
		}
	}
}
