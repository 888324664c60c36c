package admin

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/273ebdf9/lb/admin/api"
)

// upgradeable is a server whose Upgrade is the test's.
func upgradeable(t *testing.T, upgrade func(ctx context.Context, r api.UpgradeRequest, c *Reply, by string) (api.UpgradeResult, error)) (x *served, socket, address string) {
	t.Helper()
	cfg := Config{Socket: socketPath(t), SocketMode: "0660", HTTP: "127.0.0.1:0", TokenFile: writeToken(t, testToken, 0o600)}
	s, err := selfServing(NewServer(cfg, Sources{}))
	if err != nil {
		t.Fatal(err)
	}
	s.Control = &fakeLB{upgrade: upgrade}
	return serveUntilFrozen(t, s), cfg.Socket, s.Addrs()[1].String()
}

// askUpgrade asks over TCP, with the token.
func askUpgrade(t *testing.T, address, body string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("POST", "http://"+address+"/v1/upgrade", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+testToken)
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp, string(b)
}

func TestUpgrade_IsAnsweredByTheNewProgram(t *testing.T) {
	given, freeze := make(chan *os.File), make(chan struct{})
	x, socket, address := upgradeable(t, func(_ context.Context, r api.UpgradeRequest, c *Reply, by string) (api.UpgradeResult, error) {
		f, err := c.Hand()
		if err != nil {
			t.Errorf("Hand: got %v; want a file", err)
		}
		given <- f
		<-freeze // as after an exec, this one does not come back
		return api.UpgradeResult{}, nil
	})
	want := api.UpgradeResult{From: "1.2.0", To: "1.3.0 <new>", Sessions: 8200, Standstill: 0.031, PID: 7, Warnings: []string{"mind the gap"}}
	type answer struct {
		result *api.UpgradeResult
		err    error
	}
	local, tcp := make(chan answer, 1), make(chan string, 1)
	go func() {
		result, err := api.NewClient(socket).Upgrade(context.Background(), api.UpgradeRequest{Binary: "/new"})
		local <- answer{result, err}
	}()
	forLocal := <-given
	go func() {
		resp, body := askUpgrade(t, address, `{}`)
		tcp <- resp.Status + " " + resp.Header.Get("Content-Type") + " " + body
	}()
	forTCP := <-given
	if f := x.freeze(time.Minute); f.Cut != 0 || f.Running != 0 {
		t.Errorf("frozen: got %d cut, %d running; want the callers of the upgrade left alone", f.Cut, f.Running)
	}
	if flags, err := unix.FcntlInt(forLocal.Fd(), unix.F_GETFD, 0); err != nil || flags&unix.FD_CLOEXEC == 0 {
		t.Errorf("flags of the connection: got %x, %v; want it closed on exec", flags, err)
	}
	if err := Answer(forLocal, want, nil); err != nil {
		t.Errorf("Answer: got %v; want nil", err)
	}
	if err := forLocal.Close(); !errors.Is(err, os.ErrClosed) {
		t.Errorf("file after Answer: got %v; want it closed", err)
	}
	if err := Answer(forTCP, api.UpgradeResult{}, api.Refuse(http.StatusConflict, "no: %s", "reasons")); err != nil {
		t.Errorf("Answer: got %v; want nil", err)
	}
	if got := <-local; got.err != nil || got.result.To != want.To || got.result.Sessions != 8200 || got.result.Standstill != 0.031 || got.result.Warnings[0] != "mind the gap" {
		t.Errorf("over the control socket: got %+v, %v; want %+v", got.result, got.err, want)
	}
	if got := <-tcp; got != `409 Conflict application/json {"error":"no: reasons"}`+"\n" {
		t.Errorf("over HTTP: got %q; want the refusal", got)
	}
	close(freeze)
}

func TestUpgrade_ThatDidNotHappenIsAnsweredByTheOldProgram(t *testing.T) {
	var handing bool
	result, failure := api.UpgradeResult{DryRun: true, From: "1", To: "2"}, error(nil)
	var x *served
	x, socket, address := upgradeable(t, func(_ context.Context, r api.UpgradeRequest, c *Reply, by string) (api.UpgradeResult, error) {
		if handing {
			f, err := c.Hand()
			if err != nil {
				return api.UpgradeResult{}, err
			}
			f.Fd()
			unix.SetNonblock(int(f.Fd()), false)
			frozen, err := x.Freeze(context.Background())
			if err != nil {
				return api.UpgradeResult{}, err
			}
			// The exec fails here.
			f.Close()
			frozen.Close()
			<-x.ended
			x.Thaw()
			go func() { x.ended <- x.Serve() }()
		}
		return result, failure
	})
	for _, handing = range []bool{false, true} {
		failure = nil
		got, err := api.NewClient(socket).Upgrade(t.Context(), api.UpgradeRequest{DryRun: true})
		if err != nil || !got.DryRun || got.To != "2" {
			t.Errorf("dry run, handed over %v: got %+v, %v; want the result", handing, got, err)
		}
		failure = errors.New("it does not start")
		var refusal *api.Error
		if _, err := api.NewClient(socket).Upgrade(t.Context(), api.UpgradeRequest{}); !errors.As(err, &refusal) || refusal.Status != 409 || refusal.Message != "it does not start" {
			t.Errorf("failure, handed over %v: got %v; want a conflict with the reason", handing, err)
		}
		failure = api.Refuse(http.StatusForbidden, "not now")
		if resp, body := askUpgrade(t, address, ""); resp.StatusCode != 403 || body != `{"error":"not now"}`+"\n" || resp.Header.Get("Cache-Control") != "no-store" {
			t.Errorf("refusal over HTTP, handed over %v: got %s %q; want 403 not now", handing, resp.Status, body)
		}
	}
	wantHealthz(t, "after all that", knock(t, "unix", socket))
	for deadline := time.Now().Add(5 * time.Second); ; runtime.Gosched() {
		n := x.ends[0].listener.held() + x.ends[1].listener.held()
		if n <= 1 { // that of the last caller
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("slots of connections in use: got %d; want those of the handed ones given back", n)
		}
	}
}

func TestUpgrade_CallerWhoLeftHurtsNobody(t *testing.T) {
	given, end := make(chan *os.File), make(chan struct{})
	_, socket, address := upgradeable(t, func(_ context.Context, r api.UpgradeRequest, c *Reply, by string) (api.UpgradeResult, error) {
		f, _ := c.Hand()
		given <- f
		<-end
		return api.UpgradeResult{}, nil
	})
	defer close(end)
	const request = "POST /v1/upgrade HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + testToken + "\r\nContent-Length: 2\r\n\r\n{}"
	for _, network := range []string{"unix", "tcp"} {
		to := map[string]string{"unix": socket, "tcp": address}[network]
		// He says that he sends no more, and still reads.
		c := send(t, network, to, request)
		f := <-given
		c.(interface{ CloseWrite() error }).CloseWrite()
		if err := Answer(f, api.UpgradeResult{To: "2"}, nil); err != nil {
			t.Errorf("Answer over %s to who has half left: got %v; want nil", network, err)
		}
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || resp.StatusCode != 200 || !resp.Close {
			t.Errorf("who has half left over %s: got %+v, %v; want the answer", network, resp, err)
		}
		// He sends another request that nobody will read.
		c = send(t, network, to, request+getHealthz)
		if err := Answer(<-given, api.UpgradeResult{To: "2"}, nil); err != nil {
			t.Errorf("Answer over %s to who sends more: got %v; want nil", network, err)
		}
		var result api.UpgradeResult
		if resp, err := http.ReadResponse(bufio.NewReader(c), nil); err != nil || json.NewDecoder(resp.Body).Decode(&result) != nil || result.To != "2" {
			t.Errorf("who sends more over %s: got %v, %+v; want the answer", network, err, result)
		}
		// He is gone.
		c = send(t, network, to, request)
		f = <-given
		c.Close()
		Answer(f, api.UpgradeResult{}, nil) // may or may not see it
		// He does not read: the answer fits, and nobody waits for him.
		send(t, network, to, request)
		if err := Answer(<-given, api.UpgradeResult{}, nil); err != nil {
			t.Errorf("Answer over %s to who does not read: got %v; want nil", network, err)
		}
	}
}

func send(t *testing.T, network, address, text string) net.Conn {
	t.Helper()
	c, err := net.Dial(network, address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(10 * time.Second))
	if _, err := io.WriteString(c, text); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestUpgrade_RefusesBeforeItBegins(t *testing.T) {
	called := false
	x, socket, address := upgradeable(t, func(context.Context, api.UpgradeRequest, *Reply, string) (api.UpgradeResult, error) {
		called = true
		return api.UpgradeResult{}, nil
	})
	var refusal *api.Error
	if _, err := api.NewClient(socket).Upgrade(t.Context(), api.UpgradeRequest{Binary: "lb"}); !errors.As(err, &refusal) || refusal.Status != 400 {
		t.Errorf("relative path: got %v; want 400", err)
	}
	if resp, _ := askUpgrade(t, address, `{"colour": "red"}`); resp.StatusCode != 400 {
		t.Errorf("unknown field: got %s; want 400", resp.Status)
	}
	if status, _ := ask(t, "POST", address, "/v1/upgrade", "", ""); status != 401 {
		t.Errorf("without the token: got %d; want 401", status)
	}
	for _, body := range []string{`{"binary": "/bin/sh"}`, `{"binary": "/bin/sh", "dry_run": true}`, `{"binary": "sh"}`} {
		before := x.refused[refusedAccess].Load()
		resp, text := askUpgrade(t, address, body)
		if resp.StatusCode != 403 || !strings.Contains(text, "leave it out, or name it over the control socket") || x.refused[refusedAccess].Load() != before+1 {
			t.Errorf("%s over HTTP with the token: got %s %q, counted %d; want 403, what to do, and 1", body, resp.Status, text, x.refused[refusedAccess].Load()-before)
		}
	}
	if called {
		t.Error("Upgrade was called; want it not called")
	}
	if resp, body := askUpgrade(t, address, `{"binary": "", "dry_run": true}`); resp.StatusCode != 200 || !called {
		t.Errorf("the program of the start over HTTP: got %s %q, called %v; want 200", resp.Status, body, called)
	}
	x.Control = nil
	if _, err := api.NewClient(socket).Upgrade(t.Context(), api.UpgradeRequest{}); !errors.As(err, &refusal) || refusal.Status != 501 {
		t.Errorf("an lb that cannot: got %v; want 501", err)
	}
}

func TestClientUpgrade_SaysWhenTheOutcomeIsUnknown(t *testing.T) {
	_, socket, _ := upgradeable(t, func(_ context.Context, r api.UpgradeRequest, c *Reply, by string) (api.UpgradeResult, error) {
		f, err := c.Hand()
		f.Close()
		c.conn.Close() // it dies
		return api.UpgradeResult{}, err
	})
	if _, err := api.NewClient(socket).Upgrade(t.Context(), api.UpgradeRequest{}); !errors.Is(err, api.ErrOutcomeUnknown) {
		t.Errorf("broken connection: got %v; want ErrOutcomeUnknown", err)
	}
	if _, err := api.NewClient(socketPath(t)).Upgrade(t.Context(), api.UpgradeRequest{}); errors.Is(err, api.ErrOutcomeUnknown) || !errors.Is(err, api.ErrUnreachable) {
		t.Errorf("no lb: got %v; want ErrUnreachable, and the outcome known", err)
	}
}
