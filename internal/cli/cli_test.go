package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin"
	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/balancer"
	"github.com/273ebdf9/lb/internal/eventually"
)

// fakeLB is a control API over pools without a data plane.
type fakeLB struct {
	admin.Control // nil; no test calls the methods that are not below

	server *admin.Server
	app    *backends.Pool
	split  map[string]int

	drained chan struct{} // closed when somebody asked for a drain
	killing chan struct{} // closed when a kill over an hour has begun
	once    sync.Once
	refuse  error
	upgrade func(context.Context, api.UpgradeRequest, *admin.Reply) (api.UpgradeResult, error)
}

// startFake serves one with the pools app (w1, w2) and api (w1), and names its socket in LB_SOCKET.
func startFake(t *testing.T) *fakeLB {
	t.Helper()
	f := &fakeLB{split: map[string]int{"app": 90, "api": 10}, drained: make(chan struct{}), killing: make(chan struct{})}
	pool := func(name string, members ...string) *backends.Pool {
		policy, err := balancer.New("leastconn")
		if err != nil {
			t.Fatal(err)
		}
		p := backends.NewPool(name, backends.DefaultConfig(), policy)
		for _, m := range members {
			cfg := backends.DefaultBackendConfig()
			cfg.Name, cfg.Address = m, "unix:/run/"+m+".sock"
			if _, err := p.Add(cfg, backends.HealthUp); err != nil {
				t.Fatal(err)
			}
		}
		return p
	}
	f.app = pool("app", "w1", "w2")
	second := pool("api", "w1")
	socket := filepath.Join(t.TempDir(), "a.sock")
	s, err := admin.NewServer(admin.Config{Socket: socket, SocketMode: "0600"}, admin.Sources{
		Pools: func() []*backends.Pool { return []*backends.Pool{f.app, second} },
		Listeners: func() []api.ListenerStatus {
			return []api.ListenerStatus{{Name: "web", Split: f.split}, {Name: "local", Pool: "app"}}
		},
		Sessions: f.sessions,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.ServeSelf()
	f.server = s
	s.Control = f
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	t.Cleanup(func() {
		s.Close(context.Background())
		<-served
	})
	t.Setenv("LB_SOCKET", socket)
	return f
}

func (f *fakeLB) SetWeight(b *backends.Backend, to api.WeightChange, by string) ([]string, error) {
	if to.Percent == nil {
		return nil, f.app.SetWeight(b, *to.Weight, by)
	}
	weight, err := backends.PercentOf(b.ConfiguredWeight(), *to.Percent)
	if err != nil {
		return nil, err
	}
	return nil, f.app.SetWeight(b, weight, by)
}

func (f *fakeLB) SetAdmin(b *backends.Backend, to backends.AdminState, by string) ([]string, error) {
	f.app.SetAdmin(b, to, "by "+by)
	f.once.Do(func() { close(f.drained) })
	return nil, nil
}

func (f *fakeLB) SetMaxConns(b *backends.Backend, n int, by string) ([]string, error) {
	return nil, f.app.SetMaxConns(b, n, by)
}

func (f *fakeLB) AddBackend(_ *backends.Pool, b api.NewBackend, _ string) ([]string, error) {
	cfg := backends.DefaultBackendConfig()
	cfg.Name, cfg.Address, cfg.MaxConns, cfg.Backup = b.Name, b.Address, b.MaxConns, b.Backup
	if b.Weight != nil {
		cfg.Weight = *b.Weight
	}
	_, err := f.app.Add(cfg, backends.HealthStarting)
	return nil, err
}

func (f *fakeLB) RemoveBackend(b *backends.Backend, by string) ([]string, error) {
	return nil, f.app.Remove(b, by)
}

func (f *fakeLB) SetSplit(_ string, weights map[string]int, _ string) (map[string]int, []string, error) {
	return map[string]int{"app": weights["app"], "api": 10}, nil, nil
}

func (f *fakeLB) SetListenerMaxConns(string, int, string) ([]string, error) { return nil, nil }

func (f *fakeLB) sessions(filter api.SessionFilter, _ int) ([]api.SessionStatus, int) {
	return []api.SessionStatus{{ID: "1f", Client: "192.0.2.1:5000", Listener: "web", Pool: "app", Backend: filter.Backend,
		State: "relaying", Age: 61, BytesIn: 1024}}, 3
}

func (f *fakeLB) Kill(ctx context.Context, filter api.SessionFilter, over time.Duration, _ string) (int, error) {
	if over == time.Hour {
		close(f.killing)
		<-ctx.Done()
		return 0, ctx.Err()
	}
	if filter.ID == "gone" || filter.ID == "app" {
		return 0, nil
	}
	return 1, nil
}

func (f *fakeLB) Reload(_ context.Context, dryRun bool, _ string) (api.ReloadResult, error) {
	return api.ReloadResult{DryRun: dryRun, Changes: []string{"pools.app.max_conns: 0 → 5"}, Warnings: []string{"pools.spare: unused"}}, f.refuse
}

func (f *fakeLB) Upgrade(ctx context.Context, r api.UpgradeRequest, c *admin.Reply, _ string) (api.UpgradeResult, error) {
	return f.upgrade(ctx, r, c)
}

func (f *fakeLB) Stop(bool, string) { go f.server.Close(context.Background()) }

func (f *fakeLB) SetLogLevel(slog.Level, string) {}

func TestCommands_PrintWhatIsNowTrue(t *testing.T) {
	f := startFake(t)
	warnings := map[string]string{"reload": "lb: warning: pools.spare: unused\n"}
	for _, tc := range []struct{ line, want string }{
		{"weight app/w1 300", "app/w1: up, weight 300 (config 100), share 75.0%, 0 active\n"},
		{"weight app/w1 50%", "app/w1: up, weight 50 (config 100), share 33.3%, 0 active\n"},
		{"weight app/w1 100", "app/w1: up, weight 100, share 50.0%, 0 active\n"},
		{"drain app/w1", "app/w1: drain, weight 100, share -, 0 active\n"},
		{"drain app/w1 --wait --timeout 5s", "app/w1: drain, weight 100, share -, 0 active\n"},
		{"maint app/w1 --wait", "app/w1: maint, weight 100, share -, 0 active\n"},
		{"ready app/w1 --wait", "app/w1: up, weight 100, share 50.0%, 0 active\n"},
		{"set-limit app/w1 9", "app/w1: up, weight 100, share 50.0%, 0 of 9 active, max_conns 9\n"},
		{"set-limit web 9", "web: max_conns 9\n"},
		{"split web app=50", "web: api=10 app=50\n"},
		{"add app w3 unix:/run/w3.sock --weight 0 --backup", "added app/w3: starting,backup, weight 0, share -, 0 active\n"},
		{"remove app/w3", "removed app/w3: pool app has 2 backends, 2 selectable\n"},
		{"kill 1f", "closed 1 session\n"},
		{"kill app/w1 --over 1s --older 1m", "closed 1 session\n"},
		{"reload", "  pools.app.max_conns: 0 → 5\nreloaded: 1 change\n"},
		{"reload --dry-run", "  pools.app.max_conns: 0 → 5\n1 difference; nothing was changed (--dry-run)\n"},
		{"log-level debug", "log level: debug\n"},
		{"conns app/w1", "SESSION  CLIENT          LISTENER  BACKEND  STATE      AGE  IDLE      IN  OUT\n" +
			"1f       192.0.2.1:5000  web       app/w1   relaying  1m1s    0s  1.0KiB   0B\nand 2 more; --limit shows them\n"},
	} {
		code, stdout, stderr := lb(t, strings.Fields(tc.line)...)
		if command, _, _ := strings.Cut(tc.line, " "); code != exitDone || stdout != tc.want || stderr != warnings[command] {
			t.Errorf("lb %s: got %d, %q, %q; want 0, %q, and the warning %q", tc.line, code, stdout, stderr, tc.want, warnings[command])
		}
		if code, stdout, _ := lb(t, append(strings.Fields(tc.line), "--json")...); !strings.HasPrefix(tc.line, "add") && !strings.HasPrefix(tc.line, "remove") && (code != exitDone || !json.Valid([]byte(stdout))) {
			t.Errorf("lb %s --json: got %d, %q; want JSON", tc.line, code, stdout)
		}
	}
	if f.app.Get("w1").MaxConns() != 9 {
		t.Errorf("max_conns of app/w1: got %d; want 9", f.app.Get("w1").MaxConns())
	}
	code, stdout, _ := lb(t, "status", "app")
	if code != exitDone || !strings.HasPrefix(stdout, "pool app, leastconn: 2 of 2 backends selectable") || strings.Contains(stdout, "pool api") {
		t.Errorf("lb status app: got %d, %q; want the one pool", code, stdout)
	}
	var p api.PoolStatus
	if _, stdout, _ = lb(t, "status", "app", "--json"); json.Unmarshal([]byte(stdout), &p) != nil || p.Name != "app" {
		t.Errorf("lb status app --json: got %q; want the pool", stdout)
	}
}

func TestCommands_RefusalIsExitCode1AndSaysWhatToDo(t *testing.T) {
	f := startFake(t)
	for _, tc := range []struct{ line, want string }{
		{"status ap", `lb: there is no pool "ap"; there are "app", "api"` + "\n"},
		{"weight apx/w1 5", `lb: there is no pool "apx"; there are "app", "api"` + "\n"},
		{"weight app/w11 5", `lb: there is no backend "w11" in pool "app"; there are "w1", "w2"` + "\n"},
		{"weight app/w1 1001", "lb: weight: 1001 is not within 0..1000\n"},
		{"drain app/w9 --wait", `lb: there is no backend "w9" in pool "app"; there are "w1", "w2"` + "\n"},
		{"split wab app=1", `lb: there is no listener "wab"; there are "web", "local"` + "\n"},
		{"add app w1 unix:/x", `lb: pool "app" has a backend "w1" already; choose another name, or remove that one first` + "\n"},
		{"kill gone", `lb: there is no session "gone"; lb conns lists them` + "\n"},
		{"kill app", "lb: app is a pool; name the backend whose sessions to close: lb kill app/w1 (lb status app lists them)\n"},
		{"log-level loud", `lb: level: unknown level "loud"; write "debug", "info", "warn" or "error"` + "\n"},
	} {
		code, stdout, stderr := lb(t, strings.Fields(tc.line)...)
		if code != exitFailed || stdout != "" || stderr != tc.want {
			t.Errorf("lb %s: got %d, %q, %q; want 1 and %q", tc.line, code, stdout, stderr, tc.want)
		}
	}
	f.refuse = errors.New("lb.toml:3: pools.app: bad\nlb.toml:4: pools.app: worse")
	if code, stdout, stderr := lb(t, "reload"); code != exitFailed || stdout != "" || stderr != f.refuse.Error()+"\n" {
		t.Errorf("lb reload of a bad file: got %d, %q, %q; want 1 and the faults as they stand", code, stdout, stderr)
	}
}

func TestDrain_TimeoutIsExitCode1AndSaysHowMuchIsLeft(t *testing.T) {
	f := startFake(t)
	if b, err := f.app.Acquire(&backends.Request{}, new(backends.Waiter)); err != nil || b == nil {
		t.Fatal(err)
	}
	name := "w1"
	if f.app.Get("w2").Active() == 1 {
		name = "w2"
	}
	code, _, stderr := lb(t, "drain", "app/"+name, "--wait", "--timeout", "20ms")
	if want := fmt.Sprintf("lb: not within 20ms: app/%s stays in drain with 1 session; lb kill app/%[1]s --over 30s closes them\n", name); code != exitFailed || stderr != want {
		t.Errorf("lb drain: got %d, %q; want 1 and %q", code, stderr, want)
	}
	f.app.SetHealth(f.app.Get(name), backends.HealthDown, "refused")
	code, _, stderr = lb(t, "ready", "app/"+name, "--wait", "--timeout", "20ms")
	if code != exitFailed || !strings.Contains(stderr, "is ready and down, and does not take connections yet") {
		t.Errorf("lb ready: got %d, %q; want 1 and what is wrong", code, stderr)
	}
}

// interrupted runs a command line, interrupts it when it has begun, and gives its outcome.
func interrupted(t *testing.T, begun <-chan struct{}, args ...string) (code int, stderr string) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		code, _, stderr = lb(t, args...)
	}()
	<-begun
	if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
		t.Fatal(err)
	}
	<-done
	return code, stderr
}

func TestWait_InterruptIsACleanExitCode1(t *testing.T) {
	f := startFake(t)
	for f.app.Get("w1").Active() == 0 { // ties rotate
		if _, err := f.app.Acquire(&backends.Request{}, new(backends.Waiter)); err != nil {
			t.Fatal(err)
		}
	}
	code, stderr := interrupted(t, f.drained, "drain", "app/w1", "--wait")
	if code != exitFailed || !strings.HasPrefix(stderr, "lb: interrupted") {
		t.Errorf("lb drain --wait: got %d, %q; want 1 and that it was interrupted", code, stderr)
	}
	code, stderr = interrupted(t, f.killing, "kill", "app/w1", "--over", "1h")
	if code != exitFailed || stderr != "lb: interrupted: no more are closed; those that were stay closed\n" {
		t.Errorf("lb kill --over: got %d, %q; want 1 and what holds now", code, stderr)
	}
}

func TestStop_WaitsUntilLBIsGone(t *testing.T) {
	startFake(t)
	code, stdout, stderr := lb(t, "stop", "--wait")
	if code != exitDone || stdout != fmt.Sprintf("lb has stopped, pid %d\n", os.Getpid()) || stderr != "" {
		t.Errorf("lb stop --wait: got %d, %q, %q; want 0 and that it has stopped", code, stdout, stderr)
	}
}

// firstLine tells when something was written.
type firstLine struct {
	once    sync.Once
	written chan struct{}
}

func (w *firstLine) Write(p []byte) (int, error) {
	w.once.Do(func() { close(w.written) })
	return len(p), nil
}

func TestEvents_AreShownAndFollowedUntilAnInterrupt(t *testing.T) {
	f := startFake(t)
	when := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	for i := range 3 {
		f.server.Publish(api.Event{Time: when, Level: "warn", Kind: "health", Subject: "app/w1", Text: fmt.Sprintf("change %d\x1b", i)})
	}
	t.Setenv("TZ", "UTC")
	code, stdout, _ := lb(t, "events", "-n", "1")
	if want := when.Local().Format("2006-01-02 15:04:05.000") + "  warn   app/w1  change 2\\x1b\n"; code != exitDone || stdout != want {
		t.Errorf("lb events -n 1: got %d, %q; want 0 and %q", code, stdout, want)
	}
	if code, stdout, _ = lb(t, "events", "--json"); code != exitDone || strings.Count(stdout, "\n") != 3 || !strings.HasPrefix(stdout, `{"id":1,`) {
		t.Errorf("lb events --json: got %d, %q; want 3 lines", code, stdout)
	}
	for _, args := range [][]string{{"events", "-f"}, {"status", "--watch"}} {
		out := &firstLine{written: make(chan struct{})}
		done := make(chan int, 1)
		var errs bytes.Buffer
		go func() { done <- Execute(args, out, &errs, Programs{}) }()
		<-out.written
		syscall.Kill(os.Getpid(), syscall.SIGINT)
		if code := <-done; code != exitDone || errs.Len() > 0 {
			t.Errorf("lb %v: got %d, %q; want 0 at an interrupt", args, code, errs.String())
		}
	}
}

func TestCompletion_NamesComeFromTheRunningLB(t *testing.T) {
	startFake(t)
	for line, want := range map[string]string{
		"weight ":             "app/w1 app/w2 api/w1",
		"weight app/w1 ":      "",
		"drain ":              "app/w1 app/w2 api/w1",
		"remove ":             "app/w1 app/w2 api/w1",
		"status ":             "app api",
		"add ":                "app api",
		"split ":              "web",
		"split web ":          "api= app=",
		"split web api=5 ":    "app=",
		"conns ":              "app api app/w1 app/w2 api/w1",
		"set-limit ":          "app/w1 app/w2 api/w1 web local",
		"log-level ":          "debug info warn error",
		"weight -s /no/sock ": "",
	} {
		args := append([]string{"__complete"}, strings.Split(line, " ")...)
		got := ""
		complete := func() bool {
			_, stdout, _ := lb(t, args...)
			lines := strings.Split(strings.TrimSpace(stdout), "\n")
			got = strings.Join(lines[:len(lines)-1], " ")
			return got == want
		}
		// What lb does not answer within completeTimeout has no names, on a busy machine.
		if !complete() && (got != "" || !eventually.Within(eventually.Patience, complete)) {
			t.Errorf("completion of %q: got %q; want %q", line, got, want)
		}
	}
}
