//go:build e2e

package e2e

import (
	"fmt"
	"io"
	"testing"
	"time"
)

func TestSplit_ThousandConnectionsAreExactlyShared(t *testing.T) {
	dir := tempDir(t)
	config := lbConfig{Listeners: []lbListener{{Name: "web", Bind: []string{freePort(t, "127.0.0.1")}, Options: "split = { blue = 90, green = 10 }\n"}}}
	for _, name := range []string{"blue", "green"} {
		address := socketPath(dir, name)
		startLines(t, name, address)
		config.Pools = append(config.Pools, lbPool{Name: name, Backends: []lbBackend{{Name: name, Address: address}}})
	}
	l := startLB(t, config)
	l.waitHealth(t, "up")
	thousand := func() map[string]int {
		answers := map[string]int{}
		for range 1000 {
			who, err := askLine(l.addr(), patience)
			if err != nil {
				t.Fatalf("connection: %v", err)
			}
			answers[who]++
		}
		return answers
	}
	if got := thousand(); got["blue"] != 900 || got["green"] != 100 {
		t.Errorf("connections by pool: got %v; want 900 to 100", got)
	}
	mustRun(t, patience, lbBinary(t), "split", "web", "blue=10", "green=30", "-s", l.socket)
	if got := thousand(); got["blue"] != 250 || got["green"] != 750 {
		t.Errorf("connections by pool after lb split: got %v; want 250 to 750", got)
	}
}

// TestOnDown_SaysWhatBecomesOfTheSessions has a probe of its own address, so that the worker itself stays as
// it is.
func TestOnDown_SaysWhatBecomesOfTheSessions(t *testing.T) {
	for _, onDown := range []string{"keep", "close"} {
		t.Run(onDown, func(t *testing.T) {
			dir := tempDir(t)
			startLines(t, "w1", socketPath(dir, "w1"))
			probed := startLines(t, "probed", socketPath(dir, "probed"))
			config := onePool(t, socketPath(dir, "w1"))
			config.Pools[0].Health = probe(fmt.Sprintf("type = \"connect\"\naddress = %q\non_down = %q", socketPath(dir, "probed"), onDown))
			l := startLB(t, config)
			l.waitHealth(t, "up")
			conn := dial(t, l.addr())
			if _, err := askOn(conn); err != nil {
				t.Fatal(err)
			}
			probed.kill()
			l.waitHealth(t, "down")
			if onDown == "keep" {
				if who, err := askOn(conn); err != nil || who != "w1" {
					t.Errorf("answer on the session: got %q, %v; want w1", who, err)
				}
				return
			}
			conn.SetDeadline(time.Now().Add(patience))
			if n, err := conn.Read(make([]byte, 1)); n != 0 || err != io.EOF {
				t.Errorf("read: got %d bytes, %v; want EOF", n, err)
			}
		})
	}
}
