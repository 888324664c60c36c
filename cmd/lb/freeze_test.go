package main

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin"
)

// writeDown freezes the daemon as an upgrade does, does something in the middle, and gives what the next code would read. The
// daemon goes on afterwards.
func (r *rig) writeDown(meanwhile func()) *live {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), requestPatience)
	defer cancel()
	api, err := r.admin.Freeze(ctx)
	r.must(err)
	defer func() {
		api.Close()
		r.admin.Thaw()
		r.running.Go(r.serveAdmin)
	}()
	frozen, err := r.proxy.Freeze()
	r.must(err)
	defer r.proxy.Thaw()
	meanwhile()
	l := &live{admin: liveAdmin{Frozen: *api, FDs: make([]int, len(api.Sockets))}}
	u := &upgrading{d: r.daemon, caller: -1, lock: -1}
	u.writeDown(l, frozen)
	l, err = readLive(l.marshal())
	r.must(err)
	return l
}

func TestUpgrade_WhatIsPublishedUntilTheLastMomentGoesAlong(t *testing.T) {
	r := newRig(t)
	l := r.writeDown(func() {
		r.admin.Publish(admin.Event{Subject: "lb", Text: "late"})
		r.admin.PublishLine("app", admin.WorkerLine{Time: time.Now(), Text: "late"})
	})
	if !slices.ContainsFunc(l.admin.State.Events, func(e admin.Event) bool { return e.Text == "late" }) {
		t.Errorf("events: got %+v; want the last one too", l.admin.State.Events)
	}
	if lines := l.admin.State.Lines["app"].Lines; len(lines) != 1 || lines[0].Text != "late" {
		t.Errorf("lines: got %+v; want the last one", lines)
	}
}
