package admin

import (
	"fmt"
	"testing"
	"time"
	"unsafe"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

func TestHistory_KeepsTenMinutesAndTheLatencyOfTheLast(t *testing.T) {
	pool := newPool(t, "app", "w1")
	b := pool.Get("w1")
	var h history
	now := time.Now()
	h.sample([]*backends.Pool{pool}, now)
	tick := func(latency time.Duration) {
		b.Connected(time.Millisecond)
		b.FirstByteTime.Observe(latency)
		b.SessionTime.Observe(latency)
		now = now.Add(historyEvery)
		h.sample([]*backends.Pool{pool}, now)
	}
	status := func() *api.Latency {
		st := api.PoolStatus{Backends: []api.BackendStatus{{Name: "w1"}}}
		h.fill(pool, &st)
		return st.Backends[0].FirstByte
	}
	if got := status(); got != nil {
		t.Errorf("before the first session: got %+v; want nothing", got)
	}
	tick(time.Second)
	if got := status(); got == nil || got.Count != 1 || got.P99 < 0.5 {
		t.Errorf("after a slow answer: got %+v; want one of about a second", got)
	}
	for range latencyPoints {
		tick(time.Millisecond)
	}
	if got := status(); got == nil || got.Count != latencyPoints || got.P99 > 0.01 {
		t.Errorf("a minute later: got %+v; want the quick ones alone", got)
	}
	for range 2 * historyPoints {
		tick(time.Millisecond)
	}
	all := h.status([]*backends.Pool{pool}, "").Backends
	if len(all) != 1 || len(all[0].Connections) != historyPoints || all[0].Connections[0] != 1 || all[0].FirstByteP99[0] <= 0 {
		t.Errorf("got a history %+v; want %d points of one connection", all, historyPoints)
	}
	pool.Remove(b, "")
	h.sample([]*backends.Pool{pool}, now)
	if len(h.backend) != 0 {
		t.Error("a backend that is gone: got a history; want it forgotten")
	}
}

func TestHistory_MemoryIsBounded(t *testing.T) {
	const most = 3500
	if n := unsafe.Sizeof(backendHistory{}); n > most {
		t.Errorf("history of one backend: got %d bytes; want at most %d", n, most)
	}
	var names []string
	for i := range historyBackends + 10 {
		names = append(names, fmt.Sprintf("w%d", i))
	}
	var h history
	h.sample([]*backends.Pool{newPool(t, "app", names...)}, time.Now())
	if len(h.backend) != historyBackends {
		t.Errorf("got the history of %d backends; want %d", len(h.backend), historyBackends)
	}
}

func TestClients_AreSummedByAddress(t *testing.T) {
	start := time.Now()
	session := func(id, client string, in uint64) api.SessionStatus {
		return api.SessionStatus{ID: id, Client: client, BytesIn: in, BytesOut: 1, Age: 3, Started: start}
	}
	var c clients
	list := c.of([]api.SessionStatus{session("1", "10.0.0.1:1", 100), session("2", "10.0.0.1:2", 100), session("3", "[2001:db8::1]:5", 7), session("4", "unix", 0)}, 2, start)
	if list.Total != 3 || len(list.Clients) != 2 || list.Clients[0].Address != "10.0.0.1" || list.Clients[0].Sessions != 2 ||
		list.Clients[0].BytesIn != 200 || list.Clients[1].Address != "2001:db8::1" || list.Clients[0].Rate != nil {
		t.Errorf("got %+v; want the sessions of an address together, those with the most first", list)
	}
	list = c.of([]api.SessionStatus{session("1", "10.0.0.1:1", 1100), session("3", "[2001:db8::1]:5", 7)}, 9, start.Add(10*time.Second))
	if r := list.Clients[0].Rate; r == nil || *r != 100 {
		t.Errorf("1000 bytes in ten seconds: got rate %v; want 100", r)
	}
}
