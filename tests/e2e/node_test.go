//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// get returns the body of an answer with status 200.
func get(t testing.TB, client *http.Client, url string) string {
	t.Helper()
	answer, err := client.Get(url)
	return body(t, url, answer, err)
}

func body(t testing.TB, url string, answer *http.Response, err error) string {
	t.Helper()
	if err != nil {
		t.Fatalf("request of %s: got %v; want an answer", url, err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil || answer.StatusCode != http.StatusOK {
		t.Fatalf("answer of %s: got status %d, %v; want 200 and all of it", url, answer.StatusCode, err)
	}
	return string(text)
}

func TestNode_HTTPServer(t *testing.T) {
	l := startLB(t, onePool(t, startNode(t, "w1"), startNode(t, "w2")))
	l.waitHealth(t, "up")
	url := "http://" + l.addr()
	client := &http.Client{Timeout: 3 * patience, Transport: &http.Transport{}}
	defer client.CloseIdleConnections()

	t.Run("wrk", func(t *testing.T) {
		wrk(t, url+"/name")
		wrk(t, url+"/name", "-H", "Connection: close")
	})
	t.Run("both take part", func(t *testing.T) {
		l.waitReleased(t) // else one may have sessions left, and the other takes all
		seen := make(map[string]int)
		for range 20 {
			seen[get(t, client, url+"/name")]++
			client.CloseIdleConnections()
		}
		if seen["w1"] == 0 || seen["w2"] == 0 || len(seen) != 2 {
			t.Errorf("answers by server: got %v; want some of w1 and w2", seen)
		}
	})
	t.Run("large request in chunks", func(t *testing.T) {
		const size = 64 << 20
		want, _ := checksum(noise(size, 4))
		answer, err := client.Post(url+"/sum", "application/octet-stream", noise(size, 4))
		if got := body(t, url+"/sum", answer, err); got != want {
			t.Errorf("checksum of the request at the server: got %s; want %s", got, want)
		}
	})
	t.Run("answer in many chunks", func(t *testing.T) {
		const lines = 100000
		var want strings.Builder
		for i := range lines {
			fmt.Fprintln(&want, i)
		}
		if got := get(t, client, fmt.Sprintf("%s/count?n=%d", url, lines)); got != want.String() {
			t.Errorf("answer of %d lines: got %d bytes unlike the %d wanted", lines, len(got), want.Len())
		}
	})
	t.Run("upgrade to an echo", func(t *testing.T) {
		conn := dial(t, l.addr())
		say(t, conn, "GET /echo HTTP/1.1\r\nHost: lb\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		hear(t, conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
		const size = 16 << 20
		sent := make(chan error, 1)
		go func() {
			_, err := io.Copy(conn, noise(size, 5))
			if err == nil {
				err = conn.(halfCloser).CloseWrite()
			}
			sent <- err
		}()
		want, _ := checksum(noise(size, 5))
		if got := mustChecksum(t, conn); got != want {
			t.Errorf("checksum of the echo: got %s; want %s", got, want)
		}
		if err := <-sent; err != nil {
			t.Errorf("write: got %v; want no error", err)
		}
	})
}
