//go:build e2e

package e2e

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

const templateUnit = `[Service]
ExecStart=/usr/bin/sample
Environment=LB_WORKER_SOCKET=/run/app-%i.sock
UMask=0000
`

const templateConfig = `
[admin]
http = ""
[listeners.web]
bind = ["unix:/run/lb/web.sock"]
pool = "app"
[pools.app]
[pools.app.health]
interval = "100ms"
[[pools.app.backends]]
name = "blue"
address = "unix:/run/app-blue.sock"
[[pools.app.backends]]
name = "green"
address = "unix:/run/app-green.sock"
`

// Template units that lb does not run are restarted one by one under load. One that does not come back stays
// drained, and the other is not touched.
func TestRollout_RestartsUnitsUnderLoad(t *testing.T) {
	stage := tempDir(t)
	stageFile(t, stage, lbBinary(t), "usr/bin/lb", 0o755)
	stageFile(t, stage, sampleWorker(t), "usr/bin/sample", 0o755)
	stageFile(t, stage, "../../packaging/lb.sysusers", "usr/lib/sysusers.d/lb.conf", 0o644)
	stageFile(t, stage, "../../packaging/lb.service", "etc/lb-test/lb.service", 0o644)
	writeFile(t, stage, "etc/lb-test/app@.service", templateUnit, 0o644)
	os.Mkdir(filepath.Join(stage, "etc/lb"), 0o755)
	writeFile(t, stage, "etc/lb/lb.toml", templateConfig, 0o644)
	m := boot(t, stage)
	m.must("systemctl", "start", "app@blue.service", "app@green.service", "lb.service")
	m.until("StatusText", "0 sessions, 2 of 2 backends up")

	var done, failed atomic.Int64
	ctx, cancel := context.WithCancel(context.Background())
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			client := http.Client{Timeout: patience, Transport: &http.Transport{DisableKeepAlives: true,
				DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
					return new(net.Dialer).DialContext(ctx, "unix", m.root+"/run/lb/web.sock")
				}}}
			for ctx.Err() == nil {
				response, err := client.Get("http://lb/")
				if err == nil {
					_, err = io.Copy(io.Discard, response.Body)
					response.Body.Close()
				}
				if err == nil {
					done.Add(1)
				} else if failed.Add(1) <= 3 {
					t.Errorf("a request while units restart: %v", err)
				}
			}
		})
	}
	t.Cleanup(func() { cancel(); load.Wait() })

	pids := func() string {
		return m.must("systemctl", "show", "-P", "MainPID", "app@blue.service") + " " + m.must("systemctl", "show", "-P", "MainPID", "app@green.service")
	}
	before := strings.Fields(pids())
	if got, want := m.must("lb", "rollout", "app", "--exec", "systemctl restart app@{name}"), "app/blue: replaced, 1 of 2\napp/green: replaced, 2 of 2"; got != want {
		t.Errorf("lb rollout: got %q; want %q", got, want)
	}
	after := strings.Fields(pids())
	for i := range before {
		if before[i] == after[i] {
			t.Errorf("pid of unit %d: got %s as before; want another", i, after[i])
		}
	}
	r := m.do("lb", "rollout", "app", "--exec", "systemctl stop app@{name}", "--ready-timeout", "500ms", "--on-failure", "echo put $LB_BACKEND back")
	if r.code != 1 || !strings.Contains(r.stderr, "put blue back") || !strings.Contains(r.stderr, "app/blue stays drained: not healthy within 500ms") ||
		!strings.Contains(r.stderr, "not touched: green") {
		t.Errorf("lb rollout of units that do not come back: got exit code %d, %q; want 1, the hook, and what stays", r.code, r.stderr)
	}
	if got := strings.Fields(pids())[1]; got != after[1] {
		t.Errorf("pid of the unit after the failed one: got %s; want it untouched, %s", got, after[1])
	}
	if r := m.do("lb", "rollout", "app", "--exec", "true"); r.code != 1 || !strings.Contains(r.stderr, "while it restarts there is none") {
		t.Errorf("lb rollout with one backend left: got exit code %d, %q; want a refusal", r.code, r.stderr)
	}
	cancel()
	load.Wait()
	t.Logf("%d requests, %d failed", done.Load(), failed.Load())
	if done.Load() < 100 {
		t.Errorf("requests while units restarted: got %d; want many", done.Load())
	}
}
