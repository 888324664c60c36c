package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
)

func ids(events []api.Event) (all []uint64) {
	for _, e := range events {
		all = append(all, e.ID)
	}
	return all
}

func TestEvents_AreNumberedAndTheOldestFallOut(t *testing.T) {
	s := new(Server)
	for range eventLogSize + 5 {
		s.Publish(api.Event{Text: "x", Dropped: 9})
	}
	all := s.Events()
	if len(all) != eventLogSize || all[0].ID != 6 || all[len(all)-1].ID != eventLogSize+5 || all[0].Time.IsZero() || all[0].Dropped != 0 {
		t.Fatalf("events: got %d, the first %+v; want %d from 6 on", len(all), all[0], eventLogSize)
	}
	if got, upTo, missed, _ := s.events.after(2, 3); !slices.Equal(ids(got), []uint64{6, 7, 8}) || missed != 3 || upTo != 8 {
		t.Errorf("after 2: got %+v; want 6, 7, 8, with 3 dropped before the first", got)
	}
	for _, tc := range []struct{ after, last, want uint64 }{
		{0, 1 << 40, 5}, {3, 1 << 40, 3}, {100, 1 << 40, 100}, {0, 2, eventLogSize + 3}, {100, 2, eventLogSize + 3}, {1 << 40, 1 << 40, 5},
		{eventLogSize + 5, 1 << 40, eventLogSize + 5}, {eventLogSize + 4, 2, eventLogSize + 4}, {0, 0, eventLogSize + 5},
	} {
		if got := eventPosition(s.events, tc.after, tc.last); got != tc.want {
			t.Errorf("the last %d after %d: got %d; want %d", tc.last, tc.after, got, tc.want)
		}
	}
	if got, _, _, wake := s.events.after(eventLogSize+5, 3); got != nil || wake == nil {
		t.Errorf("after the last: got %+v; want a wait", got)
	}
	restored := new(Server)
	restored.RestoreEvents(all[eventLogSize-2:])
	if e := restored.Publish(api.Event{}); e.ID != eventLogSize+6 || len(restored.Events()) != 3 {
		t.Errorf("after a restore: got %d, %d remembered; want %d and 3", e.ID, len(restored.Events()), eventLogSize+6)
	}
}

func TestEvents_FollowerSeesWhatComesAndTheLastOnes(t *testing.T) {
	f := newFakeLB(t)
	s, c, _ := serveFake(t, f, "")
	for range 5 {
		s.Publish(api.Event{Kind: "weight"})
	}
	read := func(q api.EventQuery, n int) []uint64 {
		t.Helper()
		var got []api.Event
		enough := errors.New("enough")
		err := c.Events(t.Context(), q, func(e api.Event) error {
			got = append(got, e)
			if q.Follow && e.ID == 5 {
				s.Publish(api.Event{}) // 6 comes while he follows
			}
			if len(got) == n {
				return enough
			}
			return nil
		})
		if err != nil && err != enough {
			t.Fatal(err)
		}
		return ids(got)
	}
	if got := read(api.EventQuery{}, 0); !slices.Equal(got, []uint64{1, 2, 3, 4, 5}) {
		t.Errorf("all: got %v", got)
	}
	if got := read(api.EventQuery{Last: -1}, 0); got != nil {
		t.Errorf("none: got %v", got)
	}
	if got := read(api.EventQuery{After: 3}, 0); !slices.Equal(got, []uint64{4, 5}) {
		t.Errorf("after 3: got %v", got)
	}
	if got := read(api.EventQuery{Last: 2, Follow: true}, 3); !slices.Equal(got, []uint64{4, 5, 6}) {
		t.Errorf("the last 2 and what comes: got %v; want 4, 5, 6", got)
	}
}

func TestEvents_SlowFollowerHoldsUpNobodyAndIsToldWhatHeMissed(t *testing.T) {
	f := newFakeLB(t)
	s, _, _ := serveFake(t, f, "")
	resp := askControl(t, s, http.MethodGet, "/v1/events?follow=1", "")
	defer resp.Body.Close()
	long := strings.Repeat("x", 4096) // the socket is full after some
	const n = 3 * eventLogSize
	for range n {
		s.Publish(api.Event{Text: long}) // would hang here
	}
	var seen, missed uint64
	var err error
	dec := newEventDecoder(resp.Body)
	for last := uint64(0); last < n && err == nil; {
		var e api.Event
		if e, err = dec(); err == nil {
			seen, missed, last = seen+1, missed+e.Dropped, e.ID
		}
	}
	if err != nil || missed == 0 || seen+missed != n {
		t.Errorf("slow follower: got %d seen, %d told as missed, %v; want %d in all", seen, missed, err, n)
	}
}

func TestEvents_FollowersEndWithTheServerAndWhenTheyLeave(t *testing.T) {
	f := newFakeLB(t)
	s, socket, _ := newServer(t, f.sources(), false)
	served := make(chan error, 1)
	go func() { served <- s.Serve() }()
	c := api.NewClient(socket)
	s.Publish(api.Event{})
	following, ended := make(chan struct{}, 2), make(chan error, 2)
	follow := func(ctx context.Context) {
		ended <- c.Events(ctx, api.EventQuery{Follow: true}, func(api.Event) error { following <- struct{}{}; return nil })
	}
	ctx, cancel := context.WithCancel(t.Context())
	go follow(ctx)
	<-following
	cancel()
	if err := <-ended; !errors.Is(err, context.Canceled) {
		t.Errorf("follower who left: got %v; want context.Canceled", err)
	}
	go follow(t.Context())
	<-following
	if err := s.Close(context.Background()); err != nil { // waits for the handlers
		t.Errorf("Close: got %v; want nil", err)
	}
	if err := <-ended; !errors.Is(err, api.ErrStreamEnded) {
		t.Errorf("follower at the end: got %v; want ErrStreamEnded", err)
	}
	<-served
	if n := len(s.followers.of); n != 0 {
		t.Errorf("followers: got %d; want none left", n)
	}
}

func TestEvents_FollowersLeaveRoomForOthersAndForTheirOwnUser(t *testing.T) {
	var f followers
	fill := func(p Caller) (n int, release func()) {
		t.Helper()
		for {
			r, err := f.enter(p)
			if err != nil {
				var refusal *api.Error
				if !errors.As(err, &refusal) || refusal.Status != 503 {
					t.Errorf("one too many of %v: got %v; want 503", p, err)
				}
				return n, release
			}
			n, release = n+1, r
		}
	}
	stranger := uint32(os.Geteuid()) + 4711
	for _, tc := range []struct {
		who  Caller
		room int
	}{
		{Caller{Local: true, UID: stranger}, controlShares.each}, {Caller{Local: true, UID: stranger + 1}, controlShares.each},
		{Caller{Local: true}, controlShares.total}, {Caller{Addr: "192.0.2.1:1"}, httpShares.each}, {Caller{Addr: "192.0.2.2:1"}, httpShares.each},
	} {
		n, release := fill(tc.who)
		if n < 10 || n > tc.room-10 {
			t.Errorf("followers of %v: got %d; want at least 10, and as much room beside of %d", tc.who, n, tc.room)
		}
		release()
		if _, err := f.enter(tc.who); err != nil {
			t.Errorf("%v after one has left: got %v; want room", tc.who, err)
		}
	}
}

func newEventDecoder(r io.Reader) func() (api.Event, error) {
	dec := json.NewDecoder(r)
	return func() (e api.Event, err error) { return e, dec.Decode(&e) }
}

func TestRates_AreOfTheLastSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPool(t, "app", "w1")
		b := p.Get("w1")
		var accepted uint64
		s := &Server{src: Sources{
			Pools:     func() []*backends.Pool { return []*backends.Pool{p} },
			Listeners: func() []api.ListenerStatus { return []api.ListenerStatus{{Name: "web", Connections: accepted}} },
		}}
		status := func() (backend, listener *float64) {
			v, err := s.status(nil)
			if err != nil {
				t.Fatal(err)
			}
			return v.(*api.Status).Pools[0].Backends[0].Rate, v.(*api.Status).Listeners[0].Rate
		}
		if backend, listener := status(); backend != nil || listener != nil {
			t.Errorf("first question: got %v, %v; want no rate", backend, listener)
		}
		for range 20 { // a connection each 100 ms, a question each second
			for range 10 {
				time.Sleep(100 * time.Millisecond)
				b.Counters.Connections.Add(1)
				accepted += 2
			}
			if backend, listener := status(); *backend < 9.9 || *backend > 10.1 || *listener < 19.9 || *listener > 20.1 {
				t.Errorf("rates: got %v and %v; want 10 and 20", *backend, *listener)
			}
		}
		if n := len(s.rates.samples); n > 15 {
			t.Errorf("samples: got %d; want those of 10 seconds", n)
		}
		time.Sleep(time.Hour)
		if backend, _ := status(); backend != nil {
			t.Errorf("after an hour: got %v; want no rate", *backend)
		}
	})
}
