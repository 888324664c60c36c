//go:build e2e

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

// offlineAfter returns how long after the given time lb has taken the backend offline, by lb's own clock.
func (l *lb) offlineAfter(t testing.TB, since time.Time, backend string) time.Duration {
	t.Helper()
	for dec := json.NewDecoder(strings.NewReader(l.mustCommand(t, "events", "--json").stdout)); dec.More(); {
		var e struct {
			Time                time.Time
			Kind, Subject, Text string
		}
		if err := dec.Decode(&e); err != nil {
			t.Fatal(err)
		}
		if e.Kind == "health" && e.Subject == "app/"+backend && strings.HasPrefix(e.Text, "up → down") {
			return e.Time.Sub(since)
		}
	}
	t.Fatalf("events: got none of %s going down; want one", backend)
	return 0
}

// nodeHangs is a Node program whose event loop hangs for ever when a client, or a signal, asks for it. Its
// kernel accepts connections all the same.
const nodeHangs = `
const hang = () => { while (true) {} }
process.on('SIGUSR2', hang)
require('net').createServer((c) => {
	c.on('error', () => {})
	c.on('data', (d) => { if (String(d).startsWith('hang')) hang(); c.write('w' + process.env.LB_WORKER_ID + ' ' + d) })
}).listen(3000)
`

// A program whose event loop hangs is seen by what it does not take: by clients' connections within
// handoff_timeout, and without clients by lb's own.
func TestHandOff_AHungNodeWorkerGoesOffline(t *testing.T) {
	for name, busy := range map[string]bool{"under load": true, "idle": false} {
		t.Run(name, func(t *testing.T) {
			script := writeFile(t, tempDir(t), "app.js", nodeHangs, 0o644)
			config := handoffPool(t, "node", `handoff_timeout = "500ms"`, fmt.Sprintf("command = [%q, %q]\ncount = 2\n", program(t, "node"), script))
			config.Pools[0].Health = "interval = \"500ms\"\ntimeout = \"500ms\"\nfall = 1\n"
			l := startLB(t, config)
			w := l.waitUp(t, 2).Slots[1]
			if busy {
				startNumbered(t, l.addr(), 10*time.Millisecond)
			}
			hung := time.Now()
			syscall.Kill(w.PID, syscall.SIGUSR2)
			l.waitHealth(t, "down", w.Backend)
			took := l.offlineAfter(t, hung, w.Backend)
			t.Logf("offline %v after it hung", took)
			if limit := 1500 * time.Millisecond; took > limit {
				// handoff_timeout and an interval, and as much for a busy machine
				t.Errorf("offline: got it after %v; want it within %v", took, limit)
			}
			for range 10 {
				if who, err := askLine(l.addr(), patience); err != nil || who != "w0" {
					t.Errorf("answer: got one of %q, %v; want one of w0", who, err)
				}
			}
			syscall.Kill(w.PID, syscall.SIGKILL) // SIGTERM does not end it
		})
	}
}
