package admin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/273ebdf9/lb/admin/api"
)

// fleetLB is a fakeLB whose pool app has two workers.
func fleetLB(t testing.TB) (*fakeLB, *Server, *api.Client) {
	t.Helper()
	f := newFakeLB(t)
	src := f.sources()
	src.Workers = func(pool string) *api.WorkersStatus {
		if pool != "app" {
			return nil
		}
		return &api.WorkersStatus{Count: 2, Notifications: map[string]uint64{"taken": 3}, Slots: []api.SlotStatus{
			{WorkerStatus: api.WorkerStatus{Slot: 0, State: "up", PID: 7, Backend: "w1"}, Restarts: 4}, {WorkerStatus: api.WorkerStatus{Slot: 1, State: "failed"}},
		}}
	}
	s, socket, _ := newServer(t, src, false)
	s.Control = f
	serve(t, s)
	return f, s, api.NewClient(socket)
}

func step(slot int, what string, done int) api.RestartStep {
	return api.RestartStep{Step: what, Slot: &slot, Done: done, Total: 2}
}

func TestRestart_StreamsItsStepsAndItsEnd(t *testing.T) {
	f, _, c := fleetLB(t)
	var outcome error
	f.restart = func(_ context.Context, pool string, r api.RestartRequest, progress func(api.RestartStep)) error {
		if pool != "app" || r.Surge != 3 || r.Bound().String() != "1m30s" {
			t.Errorf("restart: got %q, %+v; want what was asked", pool, r)
		}
		progress(step(0, "started", 0))
		progress(step(0, "replaced", 1))
		return outcome
	}
	ask := func(ctx context.Context) (steps []string, err error) {
		err = c.Restart(ctx, "app", api.RestartRequest{Surge: 3, Timeout: "90s"}, func(s api.RestartStep) error {
			steps = append(steps, fmt.Sprintf("%s %v %d %d", s.Step, s.Slot == nil, s.Done, s.Total))
			return nil
		})
		return steps, err
	}
	want := []string{"started false 0 2", "replaced false 1 2"}
	if got, err := ask(t.Context()); err != nil || !slices.Equal(got, append(want, "done true 1 2")) {
		t.Errorf("restart: got %q, %v; want its steps and its end", got, err)
	}
	outcome = errors.New("worker 1: exit status 3\n  no database")
	var refusal *api.Error
	if got, err := ask(t.Context()); !errors.As(err, &refusal) || refusal.Message != outcome.Error() || !slices.Equal(got, append(want, "failed true 1 2")) {
		t.Errorf("restart that fails: got %q, %v; want its steps and why", got, err)
	}
}

func TestRestart_ThatDoesNotBeginIsARefusal(t *testing.T) {
	f, _, c := fleetLB(t)
	f.restart = func(context.Context, string, api.RestartRequest, func(api.RestartStep)) error {
		return errors.New("another restart is under way")
	}
	ten := 10
	for _, tc := range []struct {
		pool string
		r    api.RestartRequest
		want int
	}{
		{"app", api.RestartRequest{}, 409}, {"api", api.RestartRequest{}, 404}, {"none", api.RestartRequest{}, 404},
		{"app", api.RestartRequest{Slot: &ten}, 404}, {"app", api.RestartRequest{Timeout: "soon"}, 400},
	} {
		err := c.Restart(t.Context(), tc.pool, tc.r, func(api.RestartStep) error { t.Error("got a step; want none"); return nil })
		var refusal *api.Error
		if !errors.As(err, &refusal) || refusal.Status != tc.want {
			t.Errorf("restart of %s %+v: got %v; want %d", tc.pool, tc.r, err, tc.want)
		}
	}
}

func TestRestart_EndsWhenTheCallerLeaves(t *testing.T) {
	f, _, c := fleetLB(t)
	ended := make(chan struct{})
	f.restart = func(ctx context.Context, _ string, _ api.RestartRequest, progress func(api.RestartStep)) error {
		progress(step(0, "started", 0))
		<-ctx.Done()
		close(ended)
		return ctx.Err()
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := c.Restart(ctx, "app", api.RestartRequest{}, func(api.RestartStep) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("restart: got %v; want context.Canceled", err)
	}
	<-ended
}

func TestWorkers_SlotStandsForItsBackend(t *testing.T) {
	_, _, c := fleetLB(t)
	if st, err := c.SetAdmin(t.Context(), "app", "0", "drain"); err != nil || st.Name != "w1" || st.Admin != "drain" {
		t.Errorf("drain app/0: got %+v, %v; want w1 in drain", st, err)
	}
	if _, err := c.SetAdmin(t.Context(), "app", "1", "drain"); err == nil {
		t.Error("drain app/1, which has no backend: got no error; want one")
	}
	st, err := c.Workers(t.Context(), "app")
	if err != nil || len(st.Slots) != 2 || st.Slots[0].Restarts != 4 || st.Retired == nil {
		t.Errorf("workers: got %+v, %v; want two slots", st, err)
	}
	if p, err := c.Pool(t.Context(), "api"); err != nil || p.Workers != nil {
		t.Errorf("workers of api: got %+v, %v; want none", p.Workers, err)
	}
}

func TestScale_CountOrDelta(t *testing.T) {
	f, _, c := fleetLB(t)
	got := -1
	f.scaled = func(count int) { got = count }
	two, minus := 2, -3
	for _, tc := range []struct {
		r    api.ScaleRequest
		want int
	}{{api.ScaleRequest{Count: &two}, 2}, {api.ScaleRequest{Delta: &two}, 4}, {api.ScaleRequest{Delta: &minus}, -1}, {api.ScaleRequest{}, -1}, {api.ScaleRequest{Count: &two, Delta: &two}, -1}} {
		got = -1
		_, err := c.Scale(t.Context(), "app", tc.r)
		if got != tc.want || (err != nil) != (tc.want < 0) {
			t.Errorf("scale %+v: got %d, %v; want %d", tc.r, got, err, tc.want)
		}
	}
}

func TestLogs_LastLinesOfASlotAndThoseToCome(t *testing.T) {
	_, s, c := fleetLB(t)
	for i := range lineLogSize + 10 {
		s.PublishLine("app", api.WorkerLine{Slot: i % 2, Text: fmt.Sprint(i)})
	}
	read := func(q api.LogQuery, most int) (texts []string, dropped uint64) {
		stop := errors.New("enough")
		err := c.Logs(t.Context(), "app", q, func(l api.WorkerLine) error {
			texts, dropped = append(texts, l.Text), dropped+l.Dropped
			if q.Follow && len(texts) == most-1 {
				s.PublishLine("app", api.WorkerLine{Slot: 0, Text: "other"})
				s.PublishLine("app", api.WorkerLine{Slot: 1, Text: strings.Repeat("x", lineLogText+1)})
			}
			if len(texts) == most {
				return stop
			}
			return nil
		})
		if err != nil && err != stop {
			t.Errorf("logs: %v", err)
		}
		return texts, dropped
	}
	if got, _ := read(api.LogQuery{Slot: -1}, 0); len(got) != lineLogSize || got[0] != "10" || got[lineLogSize-1] != fmt.Sprint(lineLogSize+9) {
		t.Errorf("all lines: got %d, from %q; want the last %d", len(got), got[0], lineLogSize)
	}
	if got, _ := read(api.LogQuery{Slot: 0, Last: 2}, 0); !slices.Equal(got, []string{"1006", "1008"}) {
		t.Errorf("last of slot 0: got %q; want 1006 and 1008", got)
	}
	if got, _ := read(api.LogQuery{Slot: 1, Last: 1, Follow: true}, 2); len(got) != 2 || got[0] != "1009" || len(got[1]) != lineLogText {
		t.Errorf("followed: got %q; want 1009, and the new one cut", got)
	}
}

func TestMetrics_OfWorkers(t *testing.T) {
	_, s, _ := fleetLB(t)
	resp := askControl(t, s, http.MethodGet, "/metrics", "")
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	text := string(body)
	for _, want := range []string{`lb_workers{pool="app"} 2`, `lb_workers_up{pool="app"} 1`, `lb_worker_restarts_total{pool="app",slot="0"} 4`, `lb_worker_notifications_total{pool="app",result="taken"} 3`} {
		if !strings.Contains(text, want+"\n") {
			t.Errorf("metrics: got none %s; want it", want)
		}
	}
}
