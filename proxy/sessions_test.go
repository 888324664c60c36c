package proxy_test

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/273ebdf9/lb/backends"
	poll "github.com/273ebdf9/lb/internal/eventually"
	"github.com/273ebdf9/lb/proxy"
)

// phases are those of the running sessions, the oldest first.
func (r *rig) phases() (phases []string) {
	for _, s := range r.proxy.SessionList() {
		phases = append(phases, s.Phase)
	}
	return phases
}

// hasPhases waits until the running sessions are in these phases, the oldest first.
func (r *rig) hasPhases(want ...string) []proxy.SessionInfo {
	r.Helper()
	var list []proxy.SessionInfo
	if !poll.Within(poll.Patience, func() bool {
		list = r.proxy.SessionList()
		return slices.EqualFunc(list, want, func(s proxy.SessionInfo, phase string) bool { return s.Phase == phase })
	}) {
		r.Fatalf("phases of the sessions: got %v; want %v", r.phases(), want)
	}
	return list
}

func TestSessionList_TellsEachPhase(t *testing.T) {
	r := newRig(t, func(s *setup) {
		s.listener.AcceptProxy = true
		s.pool.MaxConns = 1
	}, serve(t, unixSocket, echo).address)
	start := time.Now()
	relaying := r.dial()
	send(t, relaying, []byte("PROXY TCP4 192.0.2.7 198.51.100.9 4711 443\r\n"))
	talk(t, relaying)
	queued := r.dial()
	send(t, queued, []byte("PROXY TCP6 2001:db8::7 2001:db8::9 4712 443\r\n"))
	r.waits(1)
	waiting := r.dial()
	list := r.hasPhases("relaying", "queued", "header")
	ids := map[uint64]bool{}
	for i, want := range []proxy.SessionInfo{
		{Client: farClient4, Listener: "web", Pool: "pool", Backend: "b0", BytesIn: 4, BytesOut: 4},
		{Client: netip.MustParseAddrPort("[2001:db8::7]:4712"), Listener: "web", Pool: "pool"},
		{Client: netip.MustParseAddrPort(waiting.LocalAddr().String()), Listener: "web"},
	} {
		got := list[i]
		if ids[got.ID] {
			t.Errorf("session %d: its id %d is another's too", i, got.ID)
		}
		ids[got.ID] = true
		if got.Start.Before(start.Add(-time.Millisecond)) || got.Start.After(time.Now()) || got.Idle < 0 || got.Idle > time.Since(start) {
			t.Errorf("session %d: got start %v, idle %v; want after %v", i, got.Start, got.Idle, start)
		}
		got.ID, got.Phase, got.Start, got.Idle = 0, "", time.Time{}, 0
		if got != want {
			t.Errorf("session %d: got %+v; want %+v", i, got, want)
		}
	}
	relaying.Close()
	r.hasPhases("relaying", "header")
	queued.Close()
	r.hasPhases("header")
	waiting.Close()
	r.hasPhases()
	r.ended(3)
}

func TestSessionList_TellsOfAConnectUnderWay(t *testing.T) {
	r := newRig(t, nil, blackHole(t))
	c := r.dial()
	list := r.hasPhases("connecting")
	if list[0].Backend != "b0" || list[0].Pool != "pool" {
		t.Errorf("session: got %+v; want one with b0 of pool", list[0])
	}
	reset(c)
	r.ended(1)
}

func TestSessionList_ListsAllOfAllLoopsOldestFirst(t *testing.T) {
	r := newRig(t, nil, allUnix(t, 2, silent)...)
	hold(t, r, 200)
	list := r.proxy.SessionList()
	ids := map[uint64]bool{}
	for _, s := range list {
		ids[s.ID] = true
	}
	if len(list) != 200 || len(ids) != 200 {
		t.Errorf("sessions: got %d with %d ids; want 200", len(list), len(ids))
	}
	if !slices.IsSortedFunc(list, func(a, b proxy.SessionInfo) int { return a.Start.Compare(b.Start) }) {
		t.Error("the sessions are not in the order of their starts")
	}
}

func TestKill_ClosesTheNamedSessionsAlone(t *testing.T) {
	r := newRig(t, nil, allUnix(t, 2, echo)...)
	var clients []conn
	for range 6 {
		c := r.dial()
		talk(t, c)
		clients = append(clients, c)
	}
	var ids []uint64
	for _, s := range r.proxy.SessionList() {
		for i, c := range clients {
			if i%2 == 0 && s.Client.String() == c.LocalAddr().String() {
				ids = append(ids, s.ID)
			}
		}
	}
	if n, err := r.proxy.Kill(append(ids, 1<<60)); n != 3 || err != nil {
		t.Errorf("Kill: got %d; want 3", n)
	}
	for i, c := range clients {
		if i%2 == 0 {
			wantEOF(t, c)
		} else {
			talk(t, c)
		}
	}
	for _, rec := range r.ended(3) {
		if rec.Termination.String() != "KD" {
			t.Errorf("termination code: got %v; want KD", rec.Termination)
		}
	}
	if n, _ := r.proxy.Kill(ids); n != 0 {
		t.Errorf("Kill of sessions that have ended: got %d; want 0", n)
	}
	if n, _ := r.proxy.Kill(nil); n != 0 {
		t.Errorf("Kill of none: got %d; want 0", n)
	}
}

func TestKill_InEveryPhaseFreesWhatWasHeld(t *testing.T) {
	r := newRig(t, func(s *setup) {
		s.listener.AcceptProxy = true
		s.listener.SourceMaxConns = 10
		s.pool.MaxConns = 1
	}, serve(t, unixSocket, echo).address)
	header := "PROXY TCP4 192.0.2.7 198.51.100.9 4711 443\r\n"
	relaying := r.dial()
	send(t, relaying, []byte(header))
	talk(t, relaying)
	queued, next := r.dial(), r.dial()
	send(t, queued, []byte(header))
	r.waits(1)
	send(t, next, []byte(header))
	r.waits(2)
	waiting := r.dial()
	list := r.proxy.SessionList()
	eventually(t, "four sessions", func() bool { list = r.proxy.SessionList(); return len(list) == 4 })
	var ids []uint64
	for _, s := range list {
		if s.Client.Port() != 4711 || s.Phase == "relaying" {
			// the one without a header, and the one that holds the slot
			ids = append(ids, s.ID)
		}
	}
	for _, s := range list {
		if s.Phase == "queued" {
			ids = append(ids, s.ID)
			break
		}
	}
	if n, _ := r.proxy.Kill(ids); n != 3 {
		t.Errorf("Kill: got %d; want 3", n)
	}
	for _, c := range []conn{relaying, waiting} {
		wantEOF(t, c)
	}
	// Of the two that waited one is left, and has the slot.
	eventually(t, "one session is left", func() bool { l := r.proxy.SessionList(); return len(l) == 1 && l[0].Phase == "relaying" })
	r.waits(0)
	if n := r.pool.Active(); n != 1 {
		t.Errorf("slots: got %d; want 1", n)
	}
	if n := r.ln.Active(); n != 1 {
		t.Errorf("sessions of the listener: got %d; want 1", n)
	}
	queued.Close()
	next.Close()
	r.ended(4)
	if n := r.ln.LiveSources(); n != 0 {
		t.Errorf("sources with connections: got %d; want 0", n)
	}
}

func TestCloseBackend_ClosesItsSessionsAlone(t *testing.T) {
	backendKinds(t, func(t *testing.T, kind string) {
		r := newRig(t, nil, serve(t, kind, echo).address, serve(t, kind, echo).address)
		clients := map[string]conn{}
		for range 10 {
			c := r.dial()
			talk(t, c)
			clients[c.LocalAddr().String()] = c
		}
		at := map[string][]conn{}
		for _, s := range r.proxy.SessionList() {
			at[s.Backend] = append(at[s.Backend], clients[s.Client.String()])
		}
		b := r.pool.Get("b0")
		r.pool.SetHealth(b, backends.HealthDown, "test")
		if n, _ := r.proxy.CloseBackend(b); n != 5 || len(at["b0"]) != 5 {
			t.Errorf("CloseBackend: got %d of %d; want 5", n, len(at["b0"]))
		}
		for _, c := range at["b0"] {
			wantEOF(t, c)
		}
		for _, c := range at["b1"] {
			talk(t, c)
		}
		for _, rec := range r.ended(5) {
			if rec.Termination.String() != "DD" || rec.Backend != b {
				t.Errorf("record: got %v at %s; want DD at b0", rec.Termination, rec.Backend.Name)
			}
		}
		if n, _ := r.proxy.CloseBackend(b); n != 0 {
			t.Errorf("CloseBackend once more: got %d; want 0", n)
		}
	})
}

func TestCloseBackend_WhoWaitsGetsAnother(t *testing.T) {
	r := newRig(t, func(s *setup) { s.pool.MaxConns = 1 }, allUnix(t, 2, echo)...)
	first, second := r.dial(), r.dial()
	talk(t, first)
	talk(t, second)
	third := r.dial()
	r.waits(1)
	b := r.pool.Get("b0")
	r.pool.SetHealth(b, backends.HealthDown, "test")
	if n, _ := r.proxy.CloseBackend(b); n != 1 {
		t.Errorf("CloseBackend: got %d; want 1", n)
	}
	r.ended(1)
	r.proxy.Settle()
	if n := r.pool.QueueLen(); n != 1 { // the slot that is free is of a backend that is down
		t.Errorf("waiting: got %d; want 1", n)
	}
	r.pool.SetHealth(b, backends.HealthUp, "test")
	talk(t, third)
	for _, c := range []conn{first, second, third} {
		c.Close()
	}
	r.ended(3)
}

func TestTurning_SaysWhetherEveryLoopComesRound(t *testing.T) {
	r := newRig(t, nil, serve(t, unixSocket, echo).address)
	if !r.proxy.Turning(5 * time.Second) {
		t.Error("Turning: got false; want true")
	}
	release := r.proxy.HoldLoops()
	if r.proxy.Turning(20 * time.Millisecond) {
		t.Error("Turning while the loops are held: got true; want false")
	}
	release()
	if !r.proxy.Turning(5 * time.Second) {
		t.Error("Turning after that: got false; want true")
	}
	r.stopped = true
	if _, err := r.proxy.Stop(context.Background()); err != nil {
		t.Fatal(err)
	}
	if !r.proxy.Turning(time.Millisecond) {
		t.Error("Turning once stopped: got false; want true, there is nothing to turn")
	}
	killed, _ := r.proxy.Kill([]uint64{1})
	closed, _ := r.proxy.CloseBackend(r.pool.Get("b0"))
	if list := r.proxy.SessionList(); list != nil || killed != 0 || closed != 0 {
		t.Errorf("sessions once stopped: got %v; want none", list)
	}
}
