package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

// fakeLB is an lb of two pools whose changes are made for real, and counted.
type fakeLB struct {
	app, api *backends.Pool

	killing chan struct{} // closed when a Kill over an hour has begun

	setting func(*backends.Backend) // after a SetWeight; nil: nothing
	restart func(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep)) error
	scaled  func(count int)
	upgrade func(ctx context.Context, r api.UpgradeRequest, c *Reply, by string) (api.UpgradeResult, error)

	mu     sync.Mutex
	calls  []string
	split  map[string]int
	refuse error // what every change fails with
}

func newFakeLB(t testing.TB) *fakeLB {
	return &fakeLB{app: newPool(t, "app", "w1", "w2"), api: newPool(t, "api", "w1"), split: map[string]int{"app": 90, "api": 10}, killing: make(chan struct{})}
}

func (f *fakeLB) called(by, format string, args ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...)+" by "+by)
	return f.refuse
}

func (f *fakeLB) count() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.calls)
}

func (f *fakeLB) last() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.calls[len(f.calls)-1]
}

func (f *fakeLB) sources() Sources {
	return Sources{
		Pools: func() []*backends.Pool { return []*backends.Pool{f.app, f.api} },
		Listeners: func() []api.ListenerStatus {
			return []api.ListenerStatus{{Name: "web", Split: f.split}, {Name: "local", Pool: "app"}}
		},
		Sessions: f.sessions,
	}
}

func (f *fakeLB) SetWeight(b *backends.Backend, to api.WeightChange, by string) ([]string, error) {
	if f.setting != nil {
		defer f.setting(b)
	}
	weight, percent := 0, to.Percent != nil
	var err error
	if percent {
		weight, err = backends.PercentOf(b.ConfiguredWeight(), *to.Percent)
	} else {
		weight = *to.Weight
	}
	if err = errors.Join(err, backends.CheckWeight(weight)); err != nil {
		return nil, err
	}
	if err := f.called(by, "weight %s/%s %d %v", b.Pool().Name, b.Name, weight, percent); err != nil {
		return nil, err
	}
	return nil, b.Pool().SetWeight(b, weight, by)
}

func (f *fakeLB) SetAdmin(b *backends.Backend, to backends.AdminState, by string) ([]string, error) {
	if err := f.called(by, "admin %s/%s %v", b.Pool().Name, b.Name, to); err != nil {
		return nil, err
	}
	b.Pool().SetAdmin(b, to, "by "+by)
	return nil, nil
}

func (f *fakeLB) SetMaxConns(b *backends.Backend, n int, by string) ([]string, error) {
	if err := backends.CheckMaxConns(n, "for no limit"); err != nil {
		return nil, err
	}
	if err := f.called(by, "max_conns %s/%s %d", b.Pool().Name, b.Name, n); err != nil {
		return nil, err
	}
	return nil, b.Pool().SetMaxConns(b, n, by)
}

func (f *fakeLB) AddBackend(p *backends.Pool, b api.NewBackend, by string) ([]string, error) {
	if err := f.called(by, "add %s %s %s", p.Name, b.Name, b.Address); err != nil {
		return nil, err
	}
	cfg := backends.DefaultBackendConfig()
	cfg.Name, cfg.Address, cfg.MaxConns, cfg.Backup = b.Name, b.Address, b.MaxConns, b.Backup
	if b.Weight != nil {
		cfg.Weight = *b.Weight
	}
	_, err := p.Add(cfg, backends.HealthUp)
	return nil, err
}

func (f *fakeLB) RemoveBackend(b *backends.Backend, by string) ([]string, error) {
	if err := f.called(by, "remove %s/%s", b.Pool().Name, b.Name); err != nil {
		return nil, err
	}
	return []string{"it will be back"}, b.Pool().Remove(b, by)
}

func (f *fakeLB) SetSplit(listener string, weights map[string]int, by string) (map[string]int, []string, error) {
	return map[string]int{"app": 1, "api": weights["api"]}, nil, f.called(by, "split %s %v", listener, weights)
}

func (f *fakeLB) SetListenerMaxConns(listener string, n int, by string) ([]string, error) {
	return nil, f.called(by, "limit %s %d", listener, n)
}

func (f *fakeLB) sessions(filter api.SessionFilter, limit int) ([]api.SessionStatus, int) {
	return []api.SessionStatus{{ID: "7", Pool: filter.Pool, Backend: filter.Backend, Age: filter.Older.Seconds()}}, limit
}

func (f *fakeLB) Kill(ctx context.Context, filter api.SessionFilter, over time.Duration, by string) (int, error) {
	err := f.called(by, "kill %+v %v", filter, over)
	if over == time.Hour {
		close(f.killing)
		<-ctx.Done()
		return 1, ctx.Err()
	}
	if filter.ID == "gone" {
		return 0, nil
	}
	return 2, err
}

func (f *fakeLB) Restart(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) ([]string, error) {
	return []string{"mind the gap"}, f.restart(ctx, pool, r, progress)
}

func (f *fakeLB) Rollback(ctx context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep), by string) ([]string, error) {
	return nil, f.called(by, "rollback %s", pool)
}

func (f *fakeLB) Scale(_ context.Context, pool string, count int, by string) error {
	f.scaled(count)
	return f.called(by, "scale %s %d", pool, count)
}

func (f *fakeLB) StopWorker(_ context.Context, pool string, slot int, by string) error {
	return f.called(by, "stop %s/%d", pool, slot)
}

func (f *fakeLB) StartWorker(_ context.Context, pool string, slot int, by string) error {
	return f.called(by, "start %s/%d", pool, slot)
}

func (f *fakeLB) Reload(_ context.Context, dryRun bool, by string) (api.ReloadResult, error) {
	return api.ReloadResult{DryRun: dryRun, Changes: []string{"pools.app.max_conns: 0 → 5"}}, f.called(by, "reload %v", dryRun)
}

func (f *fakeLB) Upgrade(ctx context.Context, r api.UpgradeRequest, c *Reply, by string) (api.UpgradeResult, error) {
	return f.upgrade(ctx, r, c, by)
}

func (f *fakeLB) Stop(now bool, by string) { f.called(by, "stop %v", now) }

func (f *fakeLB) SetLogLevel(level slog.Level, by string) { f.called(by, "level %v", level) }

// serveFake serves a fake lb, on HTTP too if a token is given.
func serveFake(t testing.TB, f *fakeLB, token string) (s *Server, c *api.Client, address string) {
	t.Helper()
	cfg := Config{Socket: socketPath(t), SocketMode: "0660"}
	if token != "" {
		cfg.HTTP, cfg.TokenFile = "127.0.0.1:0", writeToken(t, token+"\n", 0o600)
	}
	s, err := selfServing(NewServer(cfg, f.sources()))
	if err != nil {
		t.Fatal(err)
	}
	s.Control = f
	serve(t, s)
	return s, api.NewClient(cfg.Socket), s.Addrs()[len(s.Addrs())-1].String()
}

func TestChange_AnswersWithWhatIsNowTrue(t *testing.T) {
	f := newFakeLB(t)
	_, c, _ := serveFake(t, f, "")
	ctx := t.Context()
	check := func(what string, b *api.BackendStatus, err error, ok func(*api.BackendStatus) bool, call string) {
		t.Helper()
		if err != nil || !ok(b) {
			t.Fatalf("%s: got %+v, %v", what, b, err)
		}
		if got := f.last(); !strings.HasPrefix(got, call+" by ") || !strings.HasSuffix(got, " over the control socket") {
			t.Errorf("%s: got the call %q; want %q", what, got, call)
		}
	}
	b, err := c.SetWeight(ctx, "app", "w1", 300)
	check("weight", b, err, func(b *api.BackendStatus) bool {
		return b.Weight == 300 && b.ConfiguredWeight == 100 && b.Share == 0.75
	}, "weight app/w1 300 false")
	b, err = c.SetWeightPercent(ctx, "app", "w1", 50)
	check("percent", b, err, func(b *api.BackendStatus) bool { return b.Weight == 50 }, "weight app/w1 50 true")
	b, err = c.SetAdmin(ctx, "app", "w1", "drain")
	check("drain", b, err, func(b *api.BackendStatus) bool { return b.Admin == "drain" && !b.Selectable && b.Share == 0 }, "admin app/w1 drain")
	b, err = c.SetMaxConns(ctx, "app", "w2", 9)
	check("limit", b, err, func(b *api.BackendStatus) bool { return b.MaxConns == 9 }, "max_conns app/w2 9")
	zero := 0
	b, err = c.AddBackend(ctx, "app", api.NewBackend{Name: "w3", Address: "unix:/run/w3.sock", Weight: &zero, Backup: true})
	check("add", b, err, func(b *api.BackendStatus) bool { return b.Name == "w3" && b.Weight == 0 && b.Backup }, "add app w3 unix:/run/w3.sock")
	if p, err := c.RemoveBackend(ctx, "app", "w3"); err != nil || len(p.Backends) != 2 {
		t.Errorf("remove: got %+v, %v; want the pool with 2 backends", p, err)
	}
	if x, err := c.SetSplit(ctx, "web", map[string]int{"api": 7}); err != nil || x.Weights["api"] != 7 || x.Weights["app"] != 1 {
		t.Errorf("split: got %+v, %v; want api 7, app 1", x, err)
	}
	if x, err := c.SetListenerMaxConns(ctx, "web", 5); err != nil || *x.MaxConns != 5 {
		t.Errorf("limit of a listener: got %+v, %v; want 5", x, err)
	}
	if x, err := c.Sessions(ctx, api.SessionFilter{Pool: "app", Backend: "w1", Older: time.Minute}, 3); err != nil || x.Total != 3 || x.Sessions[0].Backend != "w1" || x.Sessions[0].Age != 60 {
		t.Errorf("sessions: got %+v, %v; want the filter and the limit to arrive", x, err)
	}
	if x, err := c.Kill(ctx, api.SessionFilter{Pool: "app", Backend: "w1"}, time.Second); err != nil || x.Killed != 2 || !strings.HasPrefix(f.last(), "kill {ID: Pool:app Backend:w1 Older:0s} 1s") {
		t.Errorf("kill: got %+v, %v, %q; want 2", x, err, f.last())
	}
	if x, err := c.Reload(ctx, true); err != nil || !x.DryRun || len(x.Changes) != 1 || x.Warnings == nil {
		t.Errorf("reload: got %+v, %v; want a dry run with a change and no null", x, err)
	}
	if x, err := c.Stop(ctx, true); err != nil || !x.Stopping || x.PID == 0 || !strings.HasPrefix(f.last(), "stop true") {
		t.Errorf("stop: got %+v, %v; want it stopping", x, err)
	}
	if x, err := c.SetLogLevel(ctx, "debug"); err != nil || x.Level != "debug" {
		t.Errorf("log level: got %+v, %v; want debug", x, err)
	}
}

func TestChange_BackendNamedByItsAddressIsFound(t *testing.T) {
	f := newFakeLB(t)
	_, c, _ := serveFake(t, f, "")
	for _, address := range []string{"unix:/run/a b/%2F?x#y.sock", "unix:@abstract", "[::1]:80"} {
		if _, err := c.AddBackend(t.Context(), "app", api.NewBackend{Address: address}); err != nil {
			t.Fatalf("add %s: got %v", address, err)
		}
		if b, err := c.SetWeight(t.Context(), "app", address, 5); err != nil || b.Name != address || b.Weight != 5 {
			t.Errorf("weight of %s: got %+v, %v; want 5", address, b, err)
		}
	}
}

// request sends a body over the control socket.
func request(t *testing.T, s *Server, method, path, body string) (status int, message string) {
	t.Helper()
	resp := askControl(t, s, method, path, body)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	var refusal api.Error
	json.Unmarshal(text, &refusal)
	return resp.StatusCode, refusal.Message
}

func TestChange_WhatIsWrongIsRefusedAndChangesNothing(t *testing.T) {
	f := newFakeLB(t)
	s, _, _ := serveFake(t, f, "")
	for _, tc := range []struct {
		line, body string
		status     int
		want       string
	}{
		{"PUT /v1/pools/app/backends/w1/weight", ``, 400, `the body is empty`},
		{"PUT /v1/pools/app/backends/w1/weight", `{`, 400, `the body is not what it should be`},
		{"PUT /v1/pools/app/backends/w1/weight", `{"wieght": 5}`, 400, `unknown field "wieght"`},
		{"PUT /v1/pools/app/backends/w1/weight", `{"weight": 5} {}`, 400, `behind the object`},
		{"PUT /v1/pools/app/backends/w1/weight", `{"weight": "5"}`, 400, `weight`},
		{"PUT /v1/pools/app/backends/w1/weight", `{}`, 400, `either "weight" or "percent"`},
		{"PUT /v1/pools/app/backends/w1/weight", `{"weight": 5, "percent": 5}`, 400, `either "weight" or "percent"`},
		{"PUT /v1/pools/app/backends/w1/weight", `{"weight": 1001}`, 400, `1001 is not within 0..1000`},
		{"PUT /v1/pools/app/backends/w1/weight", `{"weight": -1}`, 400, `-1 is not within 0..1000`},
		{"PUT /v1/pools/app/backends/w1/weight", `{"percent": 1001}`, 400, `1001% of the configured weight 100`},
		{"PUT /v1/pools/ap/backends/w1/weight", `{"weight": 5}`, 404, `there is no pool "ap"; there are "app", "api"`},
		{"PUT /v1/pools/apix/backends/w1/weight", `{"weight": 5}`, 404, `there is no pool "apix"; there are "api", "app"`},
		{"PUT /v1/pools/app/backends/w22/weight", `{"weight": 5}`, 404, `there is no backend "w22" in pool "app"; there are "w2", "w1"`},
		{"PUT /v1/pools/app/backends/w1/admin", `{"state": "off"}`, 400, `write ready, drain or maint`},
		{"PUT /v1/pools/app/backends/w1/max_conns", `{}`, 400, `max_conns: missing`},
		{"PUT /v1/pools/app/backends/w1/max_conns", `{"max_conns": -1}`, 400, `-1 is not within`},
		{"PUT /v1/listeners/wib/max_conns", `{"max_conns": 1}`, 404, `there is no listener "wib"; there are "web", "local"`},
		{"PUT /v1/listeners/web/split", `{"weights": {}}`, 400, `weights: missing`},
		{"PUT /v1/listeners/web/split", `{"weights": {"apx": 1}}`, 404, `there is no pool "apx"`},
		{"POST /v1/pools/app/backends", `{"name": "w1", "address": "unix:/x"}`, 409, `has a backend "w1" already`},
		{"DELETE /v1/pools/app/backends/w9", ``, 404, `there is no backend "w9"`},
		{"GET /v1/sessions?older=10", ``, 400, `older: "10" is no duration`},
		{"GET /v1/sessions?limit=0", ``, 400, `limit:`},
		{"GET /v1/sessions?backend=w1", ``, 400, `of which pool?`},
		{"GET /v1/sessions?pool=apq", ``, 404, `there is no pool "apq"`},
		{"POST /v1/sessions/kill", `{}`, 400, `which sessions?`},
		{"POST /v1/sessions/kill", `{"older": "1s"}`, 400, `which sessions?`},
		{"POST /v1/sessions/kill", `{"id": "1", "over": "-1s"}`, 400, `over:`},
		{"POST /v1/sessions/kill", `{"id": "1", "over": "25h"}`, 400, `over: 25h0m0s is more than 24h0m0s`},
		{"POST /v1/reload", `{"dryrun": true}`, 400, `unknown field`},
		{"POST /v1/stop", `[]`, 400, `the body is not`},
		{"PUT /v1/log-level", `{"level": "loud"}`, 400, `unknown level "loud"`},
		{"GET /v1/events?after=x", ``, 400, `after:`},
		{"GET /v1/events?last=-1", ``, 400, `last:`},
		{"GET /v1/events?follow=maybe", ``, 400, `follow:`},
		{"POST /v1/status", ``, 405, `takes GET`},
	} {
		method, path, _ := strings.Cut(tc.line, " ")
		status, message := request(t, s, method, path, tc.body)
		if status != tc.status || !strings.Contains(message, tc.want) {
			t.Errorf("%s %s: got %d %q; want %d with %q", tc.line, tc.body, status, message, tc.status, tc.want)
		}
	}
	if n := f.count(); n != 0 {
		t.Errorf("changes: got %d, the last %q; want none", n, f.last())
	}
}

func TestChange_RefusalHasItsOwnStatusOrIsAConflict(t *testing.T) {
	f := newFakeLB(t)
	_, c, _ := serveFake(t, f, "")
	for _, tc := range []struct {
		err  error
		want int
	}{
		{errors.New("line 1\nline 2"), 409},
		{fmt.Errorf("no: %w", backends.ErrUnknown), 404},
		{fmt.Errorf("no: %w", api.Refuse(400, "bad")), 400},
	} {
		f.refuse = tc.err
		_, err := c.Reload(t.Context(), false)
		var refusal *api.Error
		if !errors.As(err, &refusal) || refusal.Status != tc.want || refusal.Message == "" {
			t.Errorf("refusal for %q: got %v; want status %d", tc.err, err, tc.want)
		}
	}
	if _, err := c.Kill(t.Context(), api.SessionFilter{ID: "gone"}, 0); err == nil || !strings.Contains(err.Error(), `there is no session "gone"`) {
		t.Errorf("kill of a session that is not there: got %v; want it named", err)
	}
}

func TestChange_ThatThisLBCannotMakeIsNotImplemented(t *testing.T) {
	s, _, _ := newServer(t, newFakeLB(t).sources(), false)
	serve(t, s)
	bodies := map[string]string{"/weight": `{"weight":1}`, "/admin": `{"state":"ready"}`}
	for _, rt := range s.routes() {
		if rt.method == http.MethodGet { // which is no change
			continue
		}
		path := strings.NewReplacer("{pool}", "app", "{backend}", "w1", "{listener}", "web").Replace(rt.path)
		if status, message := request(t, s, rt.method, path, bodies[rt.path]); status != 501 || message != errUnable.Message {
			t.Errorf("%s %s: got %d %q; want 501", rt.method, path, status, message)
		}
	}
}

func TestKill_EndsWhenTheCallerLeaves(t *testing.T) {
	f := newFakeLB(t)
	_, c, _ := serveFake(t, f, "")
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() {
		_, err := c.Kill(ctx, api.SessionFilter{Pool: "app", Backend: "w1"}, time.Hour)
		ended <- err
	}()
	<-f.killing
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("kill: got %v; want context.Canceled", err)
	} // serve's Close waits for the handler, which waits for the end of its context
}

func TestServer_AHundredClientsAtOnceEndConsistent(t *testing.T) {
	f := newFakeLB(t)
	s, c, _ := serveFake(t, f, "")
	f.setting = func(b *backends.Backend) {
		s.Publish(api.Event{Level: "info", Kind: "weight", Subject: b.Pool().Name + "/" + b.Name, Text: fmt.Sprint(b.Weight())})
	}
	const clients, changes = 100, 2
	var wg sync.WaitGroup
	for i := range clients {
		wg.Go(func() { // events -f
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
			defer cancel()
			enough := errors.New("enough")
			want := uint64(1)
			err := c.Events(ctx, api.EventQuery{Follow: true}, func(e api.Event) error {
				if e.ID != want || e.Dropped != 0 {
					t.Errorf("follower %d: got event %d, %d dropped; want %d", i, e.ID, e.Dropped, want)
				}
				if want++; e.ID == clients*changes {
					return enough
				}
				return nil
			})
			if err != enough {
				t.Errorf("follower %d: got %v; want all events", i, err)
			}
		})
		wg.Go(func() {
			for j := range changes {
				name := []string{"w1", "w2"}[i%2]
				if b, err := c.SetWeight(t.Context(), "app", name, 1+(i+j)%1000); err != nil || b.Weight < 1 {
					t.Errorf("client %d: got %+v, %v; want the change", i, b, err)
				}
			}
		})
	}
	wg.Wait()
	if n := f.count(); n != clients*changes {
		t.Errorf("changes: got %d; want %d", n, clients*changes)
	}
	st, err := c.Status(t.Context())
	if err != nil || st.Pools[0].Backends[0].Weight != f.app.Get("w1").Weight() || st.Pools[0].Backends[1].Weight != f.app.Get("w2").Weight() {
		t.Errorf("status: got %+v, %v; want the weights that the pool has", st, err)
	}
}
