package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"
)

const testToken = "correct-horse-battery-staple"

func writeToken(t testing.TB, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

// zeros are bytes without end.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestHTTP_ChangesNeedTheTokenAndNoPageOfStrangersGetsThrough(t *testing.T) {
	f := newFakeLB(t)
	s, _, address := serveFake(t, f, testToken)
	right := "Bearer " + testToken
	const change = `{"weight": 5}`
	for _, tc := range []struct {
		name   string
		header http.Header
		host   string
		body   io.Reader
		status int
		reason refusalReason
	}{
		{"no token", nil, "", strings.NewReader(change), 401, refusedNoToken},
		{"no token, 100 MB", nil, "", io.LimitReader(zeros{}, 100<<20), 401, refusedNoToken},
		{"100 MB", http.Header{"Authorization": {right}}, "", io.LimitReader(zeros{}, 100<<20), 400, numRefusals},
		{"100 MB of blanks", http.Header{"Authorization": {right}}, "", bytes.NewReader(bytes.Repeat([]byte{' '}, 100<<20)), 413, refusedBodySize},
		{"foreign origin", http.Header{"Authorization": {right}, "Origin": {"http://evil.example"}}, "", strings.NewReader(change), 403, refusedOrigin},
		{"no origin", http.Header{"Authorization": {right}, "Origin": {"null"}}, "", strings.NewReader(change), 403, refusedOrigin},
		{"cross-site", http.Header{"Authorization": {right}, "Sec-Fetch-Site": {"cross-site"}}, "", strings.NewReader(change), 403, refusedOrigin},
		{"foreign host", http.Header{"Authorization": {right}}, "evil.example", strings.NewReader(change), 403, refusedHost},
	} {
		before := s.refused[min(int(tc.reason), numRefusalReasons-1)].Load()
		status, err := put(address, tc.host, tc.header, tc.body)
		// lb answers before it has read 100 MB, and closes: the sender may see only that.
		if status != tc.status && !(err != nil && strings.Contains(tc.name, "100 MB")) {
			t.Errorf("%s: got %d, %v; want %d", tc.name, status, err, tc.status)
		}
		if tc.reason != numRefusals {
			if got := s.refused[tc.reason].Load() - before; got != 1 {
				t.Errorf("%s: got %d counted as %q; want 1", tc.name, got, refusalNames[tc.reason])
			}
		}
	}
	if n := f.count(); n != 0 {
		t.Errorf("changes: got %d, the last %q; want none", n, f.last())
	}
	if status, err := put(address, "", http.Header{"Authorization": {right}, "Origin": {"http://" + address}, "Sec-Fetch-Site": {"same-origin"}}, strings.NewReader(change)); status != 200 {
		t.Errorf("lb's own page with the token: got %d, %v; want 200", status, err)
	}
	if f.count() != 1 || f.last() != "weight app/w1 5 false by the token over HTTP" {
		t.Errorf("change: got %q; want one by the token", f.last())
	}
	if _, text := ask(t, "GET", address, "/metrics", "", ""); !strings.Contains(text, `lb_admin_refused_total{reason="no_token"} 2`) {
		t.Errorf("metrics: got %s; want the refusals", grep(text, "refused"))
	}
}

// numRefusals stands for a refusal that is not counted.
const numRefusals = refusalReason(numRefusalReasons)

func grep(text, word string) string {
	var found []string
	for _, line := range strings.Split(text, "\n") {
		if strings.Contains(line, word) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "\n")
}

func put(address, host string, header http.Header, body io.Reader) (status int, err error) {
	req, err := http.NewRequest("PUT", "http://"+address+"/v1/pools/app/backends/w1/weight", body)
	if err != nil {
		return 0, err
	}
	req.Host = host
	if header != nil {
		req.Header = header
	}
	resp, err := (&http.Client{Transport: &http.Transport{DisableKeepAlives: true}}).Do(req)
	if err != nil {
		return 0, err
	}
	resp.Body.Close()
	return resp.StatusCode, nil
}

// bubble serves a fake lb in a synctest bubble, with a token, and gives a connection to it.
func bubble(t *testing.T, f *fakeLB) (*Server, net.Conn) {
	t.Helper()
	s := &Server{src: f.sources(), Control: f, done: make(chan struct{}), token: &tokenFile{path: writeToken(t, testToken, 0o600)}}
	l := &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
	s.add(httpName, l, httpShares, s.guarded("", s.mux(s.routes())))
	serve(t, s)
	near, far := net.Pipe()
	l.conns <- far
	t.Cleanup(func() { near.Close() })
	return s, near
}

func TestHTTP_WrongTokenWaitsAndIsCounted(t *testing.T) {
	for _, sent := range []string{"Bearer wrong-horse-battery-staple", "Bearer", "Bearer ", "Basic " + testToken, testToken} {
		synctest.Test(t, func(t *testing.T) {
			f := newFakeLB(t)
			s, c := bubble(t, f)
			start := time.Now()
			fmt.Fprintf(c, "GET /v1/status HTTP/1.1\r\nHost: localhost\r\nAuthorization: %s\r\n\r\n", sent)
			answer, _ := io.ReadAll(c)
			if took := time.Since(start); took < wrongTokenDelay || !strings.HasPrefix(string(answer), "HTTP/1.1 401") || s.refused[refusedWrongToken].Load() != 1 {
				t.Errorf("Authorization %q: got %.12s after %v, %d counted; want 401 after a second, counted", sent, answer, took, s.refused[refusedWrongToken].Load())
			}
		})
	}
}

func TestHTTP_SlowBodyIsCutAndChangesNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFakeLB(t)
		s, c := bubble(t, f)
		var sender sync.WaitGroup
		defer sender.Wait()
		sender.Go(func() {
			fmt.Fprintf(c, "PUT /v1/pools/app/backends/w1/weight HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Length: 13\r\n\r\n", testToken)
			for range 8 {
				if _, err := c.Write([]byte(" ")); err != nil {
					return
				}
				time.Sleep(2 * time.Second)
			}
		})
		start := time.Now()
		answer, _ := io.ReadAll(c)
		if took := time.Since(start); took < readTimeout || took > readTimeout+5*time.Second {
			t.Errorf("cut after %v; want about %v", took, readTimeout)
		}
		if !strings.HasPrefix(string(answer), "HTTP/1.1 408") || s.refused[refusedSlowBody].Load() != 1 || f.count() != 0 {
			t.Errorf("got %.80q, %d counted, %d changes; want 408, counted, no change", answer, s.refused[refusedSlowBody].Load(), f.count())
		}
	})
}

func TestToken_FileIsReadAgainWhenItChanges(t *testing.T) {
	tok := &tokenFile{path: writeToken(t, testToken+"\r\n", 0o640)}
	matches := func(candidate string) bool {
		ok, err := tok.matches(candidate)
		return ok && err == nil
	}
	if !matches(testToken) || matches(testToken+"x") || matches("") {
		t.Errorf("first token: want it to match, and nothing else")
	}
	next := writeToken(t, "another-horse-battery", 0o600)
	if err := os.Rename(next, tok.path); err != nil {
		t.Fatal(err)
	}
	if matches(testToken) || !matches("another-horse-battery") {
		t.Errorf("after the change: want the new token alone to match")
	}
	if err := os.Chmod(tok.path, 0o644); err != nil {
		t.Fatal(err)
	}
	if ok, err := tok.matches("another-horse-battery"); ok || !errors.Is(err, ErrToken) {
		t.Errorf("readable for all: got %v, %v; want ErrToken", ok, err)
	}
	os.Remove(tok.path)
	if ok, err := tok.matches("another-horse-battery"); ok || !errors.Is(err, ErrToken) {
		t.Errorf("removed: got %v, %v; want ErrToken", ok, err)
	}
}

func TestToken_FileThatIsNoneIsRefusedAtTheStart(t *testing.T) {
	fifo := filepath.Join(t.TempDir(), "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for want, path := range map[string]string{
		"chmod 0600":           writeToken(t, testToken, 0o604),
		"write at least 16":    writeToken(t, "short\n", 0o600),
		"a second line":        writeToken(t, testToken+"\n"+testToken+"\n", 0o600),
		"more than 4096 bytes": writeToken(t, strings.Repeat("x", 5000), 0o600),
		"no regular file":      fifo,
		"no such file":         fifo + ".none",
	} {
		_, err := selfServing(NewServer(Config{HTTP: "127.0.0.1:0", TokenFile: path}, Sources{}))
		if !errors.Is(err, ErrToken) || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "admin.token_file") {
			t.Errorf("NewServer: got %v; want ErrToken with %q", err, want)
		}
	}
}

// asUser runs do on a thread of that user and group alone.
func asUser(t *testing.T, uid, gid int, do func()) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlock: the thread ends with the goroutine
		var err error
		for _, call := range [][2]uintptr{{unix.SYS_SETGROUPS, 0}, {unix.SYS_SETRESGID, uintptr(gid)}, {unix.SYS_SETRESUID, uintptr(uid)}} {
			a, b := call[1], call[1]
			if _, _, errno := unix.RawSyscall(call[0], a, b, call[1]); errno != 0 && err == nil {
				err = errno
			}
		}
		if err == nil {
			do()
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatalf("cannot become user %d: %v", uid, err)
	}
}

// connectUnix connects on the calling thread.
func connectUnix(path string) error {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Connect(fd, &unix.SockaddrUnix{Name: path})
}

func TestSocket_IsForItsGroupAlone(t *testing.T) {
	const group, uid = 54321, 65534
	path := socketPath(t)
	if os.Getuid() != 0 {
		t.Skip("needs root")
	}
	os.Chmod(filepath.Dir(path), 0o755)
	s, err := selfServing(NewServer(Config{Socket: path, SocketMode: "0660", SocketGroup: fmt.Sprint(group)}, Sources{}))
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close(context.Background())
	asUser(t, uid, uid, func() {
		if err := connectUnix(path); err != unix.EACCES {
			t.Errorf("connect from outside the group: got %v; want EACCES", err)
		}
	})
	asUser(t, uid, group, func() {
		if err := connectUnix(path); err != nil {
			t.Errorf("connect from the group: got %v; want nil", err)
		}
	})
}

func TestSocket_GroupThatIsNotThereIsNamed(t *testing.T) {
	_, err := selfServing(NewServer(Config{Socket: socketPath(t), SocketMode: "0660", SocketGroup: "no-such-group"}, Sources{}))
	if err == nil || !strings.Contains(err.Error(), "admin.socket_group") || !strings.Contains(err.Error(), "no-such-group") {
		t.Errorf("NewServer: got %v; want the key and the group named", err)
	}
}

func TestOpenAPI_HasEveryRouteAndEveryReferenceResolves(t *testing.T) {
	s, _, address := newServer(t, Sources{}, true)
	serve(t, s)
	_, text := ask(t, "GET", address, "/v1/openapi.json", "", "")
	var doc map[string]any
	if err := json.Unmarshal([]byte(text), &doc); err != nil {
		t.Fatal(err)
	}
	paths := doc["paths"].(map[string]any)
	ids := map[any]bool{}
	for _, rt := range s.routes() {
		item, _ := paths[strings.TrimSuffix(rt.path, "{$}")].(map[string]any)
		op, _ := item[strings.ToLower(rt.method)].(map[string]any)
		if op == nil {
			t.Errorf("%s %s: got nothing; want it in the document", rt.method, rt.path)
			continue
		}
		if id := op["operationId"]; ids[id] {
			t.Errorf("%s %s: got the operationId %v twice", rt.method, rt.path, id)
		} else {
			ids[id] = true
		}
		if rt.answer == nil || rt.doc == "" {
			t.Errorf("%s %s: got no answer or no doc; want both", rt.method, rt.path)
		}
		params := 0
		for _, p := range list(op["parameters"]) {
			if p.(map[string]any)["in"] == "path" {
				params++
			}
		}
		if want := strings.Count(strings.TrimSuffix(rt.path, "{$}"), "{"); params != want {
			t.Errorf("%s %s: got %d path parameters; want %d", rt.method, rt.path, params, want)
		}
		if (op["requestBody"] != nil) != (rt.body != nil) || (op["security"] != nil) != (rt.access > AccessRead) {
			t.Errorf("%s %s: got body %v, security %v; want them as in the table", rt.method, rt.path, op["requestBody"], op["security"])
		}
	}
	refs := 0
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case map[string]any:
			if ref, ok := v["$ref"].(string); ok {
				refs++
				if resolve(doc, ref) == nil {
					t.Errorf("$ref %q: got nothing there", ref)
				}
			}
			for _, x := range v {
				walk(x)
			}
		case []any:
			for _, x := range v {
				walk(x)
			}
		}
	}
	walk(doc)
	if refs < len(s.routes()) {
		t.Errorf("references: got %d; want at least one a route", refs)
	}
	status := resolve(doc, "#/components/schemas/BackendStatus").(map[string]any)["properties"].(map[string]any)
	for _, field := range []string{"name", "weight", "configured_weight", "connections_per_second", "last_probe"} {
		if status[field] == nil {
			t.Errorf("BackendStatus: got no %q", field)
		}
	}
}

func list(v any) []any { l, _ := v.([]any); return l }

// resolve finds what a reference within the document stands for (RFC 6901).
func resolve(doc map[string]any, ref string) any {
	var v any = doc
	for _, key := range strings.Split(strings.TrimPrefix(ref, "#/"), "/") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[key]
	}
	return v
}
