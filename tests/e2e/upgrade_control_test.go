//go:build e2e

package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The tests of this file are about those who ask lb's control API while it is upgraded.

// talkingWorker is a pool of one worker that counts aloud.
func talkingWorker(t testing.TB) lbConfig {
	t.Helper()
	config := linesWorkers(t, 1, "")
	config.Pools[0].Options = strings.Replace(config.Pools[0].Options, roleVariable+" = \""+roleLines, roleVariable+" = \""+roleTalking, 1)
	return config
}

// follower is a command of lb that shows what comes, as JSON, one value a line.
type follower struct {
	*process
	mu  sync.Mutex
	out bytes.Buffer // guarded by mu
}

// follow runs such a command, and waits until it has shown something.
func (l *lb) follow(t testing.TB, args ...string) *follower {
	t.Helper()
	f := new(follower)
	cmd := exec.Command(lbBinary(t), append(args, "--json", "-s", l.socket)...)
	cmd.Stdout = f
	f.process = startProcess(t, "lb "+args[0], cmd)
	f.stop = syscall.SIGINT
	f.waitText(t, "}\n")
	return f
}

func (f *follower) Write(b []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.out.Write(b)
}

func (f *follower) text() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.out.String()
}

func (f *follower) waitText(t testing.TB, want string) {
	t.Helper()
	eventually(t, patience, func() error {
		if got := f.text(); !strings.Contains(got, want) {
			return fmt.Errorf("output of %s: got %q; want %q", f.name, got, want)
		}
		return nil
	})
}

// wantSentAway wants it to have ended by itself, and to have said why.
func (f *follower) wantSentAway(t testing.TB) {
	t.Helper()
	if code, said := f.exitCode(t, patience), f.tail(); code != 1 || !strings.Contains(said, "has been upgraded") {
		t.Errorf("%s over an upgrade: got exit code %d, %q; want 1 and the reason", f.name, code, said)
	}
}

// numbers reads the lines of a worker that counts aloud, as lb logs --json shows them, and wants none to be
// missing.
func numbers(t testing.TB, text string) (first, last int) {
	t.Helper()
	for line := range strings.Lines(text) {
		var said struct {
			Text    string
			Dropped int
		}
		n := 0
		if err := json.Unmarshal([]byte(line), &said); err != nil {
			t.Fatalf("cannot read the output of lb logs --json: %v: %s", err, line)
		}
		if _, err := fmt.Sscanf(said.Text, "number %d", &n); err != nil {
			continue
		}
		if first == 0 {
			first = n
		} else if n != last+1 || said.Dropped > 0 {
			t.Errorf("line after number %d: got %d, %d dropped; want the next one", last, n, said.Dropped)
		}
		last = n
	}
	return first, last
}

// TestUpgrade_FollowersEndAndMissNothing: lb events -f and lb logs -f end and say why. Whoever starts them
// again has everything: what came during the upgrade is remembered.
func TestUpgrade_FollowersEndAndMissNothing(t *testing.T) {
	l := startLB(t, talkingWorker(t))
	l.waitUp(t, 1)
	for i := range 3 {
		events, logs := l.follow(t, "events", "-f"), l.follow(t, "logs", "-f", "app")
		l.upgrade(t, "")
		events.wantSentAway(t)
		logs.wantSentAway(t)
		_, seen := numbers(t, logs.text())
		first, _ := numbers(t, l.mustCommand(t, "logs", "app", "--json").stdout)
		if first > seen+1 {
			t.Errorf("lines that lb remembers: got those from number %d on; want them from %d on, the last that was shown before the upgrade", first, seen)
		}
		if n := strings.Count(l.mustCommand(t, "events", "--json").stdout, "carried over"); n != i+1 {
			t.Errorf("upgrades among the events: got %d; want %d", n, i+1)
		}
	}
	events, logs := l.follow(t, "events", "-f"), l.follow(t, "logs", "-f", "app")
	l.mustCommand(t, "log-level", "debug")
	events.waitText(t, "log-level")
	_, seen := numbers(t, logs.text())
	logs.waitText(t, fmt.Sprintf("number %d", seen+100))
	for _, f := range []*follower{events, logs} {
		f.signal(t, syscall.SIGINT)
		if code := f.exitCode(t, patience); code != 0 {
			t.Errorf("exit code of %s after an interrupt: got %d; want 0", f.name, code)
		}
	}
}

// asking is a request to the control API that is not complete yet.
type asking struct {
	net.Conn
	rest string
}

// ask sends the beginning of a request.
func (l *lb) ask(t testing.TB, begin, rest string) *asking {
	t.Helper()
	a := &asking{dial(t, "unix:"+l.socket), rest}
	say(t, a, begin)
	return a
}

// changing begins to send a request with a body, of which the last byte is missing.
func (l *lb) changing(t testing.TB, path, body string) *asking {
	t.Helper()
	last := len(body) - 1
	return l.ask(t, fmt.Sprintf("PUT %s HTTP/1.1\r\nHost: lb\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body[:last]), body[last:])
}

// finish sends the rest, and gives the answer; status 0 is none.
func (a *asking) finish(t testing.TB) (status int, text string) {
	t.Helper()
	io.WriteString(a, a.rest) // fails where lb has ended the connection
	resp, err := http.ReadResponse(bufio.NewReader(a), nil)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("answer: %v", err)
	}
	return resp.StatusCode, string(body)
}

// TestUpgrade_RequestsUnderWay has requests half said when an upgrade begins. Sessions go on while it waits
// for them; those that are complete within a second have their answer, the others are cut, and who comes anew
// is answered afterwards.
func TestUpgrade_RequestsUnderWay(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	l := startLB(t, onePool(t, address))
	session := dial(t, l.addr())
	if _, err := askOn(session); err != nil {
		t.Fatal(err)
	}
	const weight = "/v1/pools/app/backends/w1/weight"
	silent, noBody := l.ask(t, "", ""), l.changing(t, weight, `{"weight":5}`)
	noHead := l.ask(t, "GET /v1/status HTTP/1.1\r\nHost:", " lb\r\n\r\n")
	harmless, refused := l.changing(t, "/v1/log-level", `{"level":"debug"}`), l.changing(t, weight, `{"weight":7}`)
	events := l.ask(t, "GET /v1/events?follow=1 HTTP/1.1\r\nHost: lb\r\n\r\n", "")
	hear(t, events, "HTTP/1.1 200 OK\r\n")

	upgraded := make(chan error, 1)
	go func() {
		status, u, err := l.askUpgrade("")
		if err == nil && (status != http.StatusOK || u.Sessions != 1) {
			err = fmt.Errorf("got status %d, %+v; want it done, with one session", status, u)
		}
		upgraded <- err
	}()
	if _, err := io.Copy(io.Discard, events); err != nil {
		t.Fatalf("events: got %v; want their end", err)
	}
	// Now it waits for the others.
	anew := l.ask(t, "GET /v1/status HTTP/1.1\r\nHost: lb\r\nConnection: close\r\n\r\n", "")
	if status, text := harmless.finish(t); status != http.StatusOK {
		t.Errorf("request that was complete in time: got status %d, %s; want an answer", status, text)
	}
	if status, text := refused.finish(t); status != http.StatusConflict || !strings.Contains(text, "upgrade is under way") {
		t.Errorf("change that was complete in time: got status %d, %s; want it refused, as an upgrade is under way", status, text)
	}
	if _, err := askOn(session); err != nil {
		t.Errorf("session while the upgrade waits: %v", err)
	}
	if status, text := anew.finish(t); status != http.StatusOK || !strings.Contains(text, `"w1"`) {
		t.Errorf("request of who came meanwhile: got status %d, %s; want an answer", status, text)
	}
	if err := <-upgraded; err != nil {
		t.Errorf("upgrade: %v", err)
	}
	for name, a := range map[string]*asking{"nothing": silent, "half a head": noHead, "half a body": noBody} {
		if status, text := a.finish(t); status != 0 {
			t.Errorf("request of which %s had come: got status %d, %s; want the connection ended", name, status, text)
		}
	}
	if w := l.status(t).backend(t, "w1").Weight; w != 100 {
		t.Errorf("weight after changes that were refused or cut: got %d; want 100", w)
	}
	if text := l.mustCommand(t, "events").stdout; !strings.Contains(text, "debug, by") {
		t.Errorf("events: got\n%s\nwant the change that was made while the upgrade waited", text)
	}
	session.Close()
}

// TestUpgrade_KillThatTakesItsTimeEnds: lb kill --over is cut, says so, and closes nobody any more.
func TestUpgrade_KillThatTakesItsTimeEnds(t *testing.T) {
	const n = 40
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	l := startLB(t, onePool(t, address))
	conns := dialAll(t, l.addr(), n)
	for _, conn := range conns {
		if _, err := askOn(conn); err != nil {
			t.Fatal(err)
		}
	}
	kill := startProcess(t, "lb kill", exec.Command(lbBinary(t), "kill", "app/w1", "--over", "20s", "-s", l.socket))
	eventually(t, patience, func() error {
		if active := l.status(t).total(); active == n {
			return fmt.Errorf("sessions: got all %d; want some closed", n)
		}
		return nil
	})
	u := l.upgrade(t, "")
	if code, said := kill.exitCode(t, patience), kill.tail(); code != 1 || !strings.Contains(said, "has been upgraded") {
		t.Errorf("lb kill over an upgrade: got exit code %d, %q; want 1 and the reason", code, said)
	}
	time.Sleep(2 * time.Second) // in which about four would have been closed
	alive := 0
	for _, conn := range conns {
		if _, err := askOn(conn); err == nil {
			alive++
		}
		conn.Close()
	}
	if alive != u.Sessions || alive == 0 {
		t.Errorf("sessions that answer: got %d; want the %d that were carried over", alive, u.Sessions)
	}
}

// TestUpgrade_CommandsThatAskAgainGoOn: lb drain --wait outlives upgrades, and no lb status fails because of
// one.
func TestUpgrade_CommandsThatAskAgainGoOn(t *testing.T) {
	address := socketPath(tempDir(t), "w1")
	startLines(t, "w1", address)
	l := startLB(t, onePool(t, address))
	session := dial(t, l.addr())
	if _, err := askOn(session); err != nil {
		t.Fatal(err)
	}
	drain := startProcess(t, "lb drain", exec.Command(lbBinary(t), "drain", "app/w1", "--wait", "-s", l.socket))
	asks := startAgain(t, "lb status", func() error {
		_, err := output(nil, lbBinary(t), "status", "-s", l.socket)
		return err
	})
	eventually(t, patience, func() error {
		if got := l.status(t).backend(t, "w1").Admin; got != "drain" {
			return fmt.Errorf("admin state: got %s; want drain", got)
		}
		return nil
	})
	for range 5 {
		l.upgrade(t, "")
	}
	if !drain.running() {
		t.Fatalf("lb drain --wait over upgrades: got its end, %s; want it to wait on", drain.tail())
	}
	session.Close()
	if code := drain.exitCode(t, patience); code != 0 {
		t.Errorf("lb drain --wait: got exit code %d, %s; want 0 once the session has ended", code, drain.tail())
	}
	asks.wantAllGood(t)
}
