package admin

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/admin/why"
	"github.com/273ebdf9/lb/backends"
)

func TestReaders_SeeNothingThatWorkersWroteOrWereStartedWith(t *testing.T) {
	const secret = "hunter2"
	worker := func(slot int) api.WorkerStatus {
		return api.WorkerStatus{Slot: slot, State: "up", Backend: "w1", Reason: `it listens at "` + secret + `"`, Text: secret, Dir: "/srv/" + secret, Command: []string{"app", "--password=" + secret}}
	}
	next := worker(0)
	p := newPool(t, "app", "w1")
	src := Sources{
		Pools: func() []*backends.Pool { return []*backends.Pool{p} },
		Probe: func(*backends.Backend) api.ProbeStatus {
			return api.ProbeStatus{Time: time.Now(), Error: `expected 200, got "` + secret + `"`}
		},
		Setup: func(*backends.Pool, *backends.Backend) why.Setup {
			return why.Setup{Sent: `"AUTH ` + secret + `"`, Wanted: `"` + secret + `"`}
		},
		Workers: func(string) *api.WorkersStatus {
			return &api.WorkersStatus{
				Count: 1, RecordError: `cannot write "/run/` + secret + `"`, Retired: []api.WorkerStatus{worker(3)},
				Slots: []api.SlotStatus{{WorkerStatus: worker(0), Next: &next, LastExit: &api.WorkerExit{Reason: `cannot start "` + secret + `"`, Fault: "panic: " + secret, Lines: []string{secret}}}},
			}
		},
	}
	cfg := Config{Socket: socketPath(t), SocketMode: "0600", HTTP: "127.0.0.1:0", TokenFile: writeToken(t, testToken, 0o600)}
	s, err := selfServing(NewServer(cfg, src))
	if err != nil {
		t.Fatal(err)
	}
	serve(t, s)
	address := s.ends[1].listener.Addr().String()
	s.Publish(api.Event{Kind: "workers", Subject: "app", Text: "not restarted: slot 0 died; its last lines: " + secret})
	s.Publish(api.Event{Kind: "health", Subject: "app/w1", Text: `up → down: expected 200, got "` + secret + `"`})
	s.PublishLine("app", api.WorkerLine{Text: secret})
	var paths []string
	for _, rt := range s.routes() { // whatever comes, too
		if rt.method == http.MethodGet {
			paths = append(paths, strings.NewReplacer("{pool}", "app", "{backend}", "w1", "{listener}", "web", "{slot}", "0").Replace(rt.path))
		}
	}
	told := 0
	for _, path := range paths {
		_, reader := ask(t, "GET", address, path, "", "")
		if strings.Contains(reader, secret) {
			t.Errorf("GET %s without a token: got %s; want no word of the worker", path, reader)
		}
		if status, _ := ask(t, "GET", address, path, "", ""); status == 200 && strings.HasPrefix(path, "/v1") && !json.Valid([]byte(strings.Split(reader, "\n")[0])) {
			t.Errorf("GET %s: got %s; want JSON", path, reader)
		}
		req, err := http.NewRequest("GET", "http://"+address+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+testToken)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		operator, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if strings.Contains(string(operator), secret) {
			told++
		}
	}
	if told != 8 { // status, pool, backend, why of the two, workers, logs, events
		t.Errorf("routes that tell it with the token: got %d; want 8", told)
	}
}
