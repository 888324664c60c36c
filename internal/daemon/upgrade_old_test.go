package daemon

import (
	"context"
	"io"
	"net"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin/api"
	"github.com/273ebdf9/lb/backends"
	"github.com/273ebdf9/lb/internal/eventually"
)

// writeDown freezes the daemon as an upgrade does, does something in the middle, and gives what the next code
// would read. The daemon goes on afterwards.
func (r *rig) writeDown(meanwhile func()) *snapshot {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(r.t.Context(), requestPatience)
	defer cancel()
	api, err := r.admin.Freeze(ctx)
	r.must(err)
	defer func() {
		api.Close()
		r.admin.Thaw()
		r.background.run(r.serveAdmin)
	}()
	frozen, err := r.proxy.Freeze()
	r.must(err)
	defer r.proxy.Thaw()
	meanwhile()
	snap := &snapshot{admin: adminSnapshot{Frozen: *api, FDs: make([]int, len(api.Sockets))}}
	u := &upgrading{d: r.daemon, caller: -1, lock: -1}
	u.writeDown(snap, frozen)
	snap, err = readSnapshot(snap.marshal())
	r.must(err)
	return snap
}

func TestUpgrade_WhatIsPublishedUntilTheLastMomentGoesAlong(t *testing.T) {
	r := newRig(t)
	snap := r.writeDown(func() {
		r.admin.Publish(api.Event{Subject: "lb", Text: "late"})
		r.admin.PublishLine("app", api.WorkerLine{Time: time.Now(), Text: "late"})
	})
	if !slices.ContainsFunc(snap.admin.State.Events, func(e api.Event) bool { return e.Text == "late" }) {
		t.Errorf("events: got %+v; want the last one too", snap.admin.State.Events)
	}
	if lines := snap.admin.State.Lines["app"].Lines; len(lines) != 1 || lines[0].Text != "late" {
		t.Errorf("lines: got %+v; want the last one", lines)
	}
}

// TestUpgrade_SessionsThatAreToBeClosedAreByTheNextCode has a loop find a backend down that closes its
// sessions then, in the round before it stands still.
func TestUpgrade_SessionsThatAreToBeClosedAreByTheNextCode(t *testing.T) {
	r := newRig(t)
	r.configure("[pools.app]\n", "[pools.app]\n[pools.app.health]\ntype = \"none\"\non_down = \"close\"\n")
	r.mustReload()
	conn, err := net.Dial("unix", filepath.Join(r.dir, "web.sock"))
	r.must(err)
	defer conn.Close()
	var b *backends.Backend
	eventually.True(t, "a session of app runs", func() bool {
		for _, s := range r.proxy.SessionList() {
			b = r.view.Load().pool("app").Get(s.Backend)
		}
		return b != nil
	})
	snap := r.writeDown(func() { b.Pool().SetHealth(b, backends.HealthDown, "a test says so") })
	if len(snap.head.Closing) != 1 {
		t.Fatalf("backends whose sessions are to be closed: got %v; want one", snap.head.Closing)
	}
	if at := snap.head.Closing[0]; snap.pools[at[0]].Name != "app" || snap.pools[at[0]].Backends[at[1]].Name != b.Name {
		t.Errorf("backend whose sessions are to be closed: got number %v; want %s", at, b.Name)
	}
	conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 1)); err != io.EOF { // this code goes on here, and closes it itself
		t.Errorf("session of a backend that is down: got %v; want its end", err)
	}
	r.closing.wait()
	if snap := r.writeDown(func() {}); len(snap.head.Closing) != 0 {
		t.Errorf("backends whose sessions are to be closed, afterwards: got %v; want none", snap.head.Closing)
	}
}

func TestProgramPath_FollowsNoLink(t *testing.T) {
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir, args := t.TempDir(), os.Args
	t.Cleanup(func() { os.Args = args })
	link := filepath.Join(dir, "lb")
	if err := os.Symlink(exe, link); err != nil {
		t.Fatal(err)
	}
	t.Chdir(dir)
	for _, c := range []struct{ name, path, want string }{
		{link, "", link},
		{"./lb", "", link},
		{"lb", dir, link},
		{"lb", "/nowhere", exe}, // somebody has given it another name
		{"sh", os.Getenv("PATH"), exe},
	} {
		t.Setenv("PATH", c.path)
		os.Args = []string{c.name}
		if got := programPath(); got != c.want {
			t.Errorf("started as %s with PATH=%s: got %s; want %s", c.name, c.path, got, c.want)
		}
	}
}
