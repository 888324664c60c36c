package daemon

import (
	"context"
	"errors"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"github.com/273ebdf9/lb/admin/api"
)

// dialNameServer, if set, is how look-ups reach their name server. TestMain installs it: whatever runs reads
// net.DefaultResolver.
var dialNameServer atomic.Pointer[func(context.Context) error]

func installResolver() {
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		if dial := dialNameServer.Load(); dial != nil {
			return nil, (*dial)(ctx)
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
}

// slowNameServer has every look-up of this process wait until its answer, which is that there is none. Each
// comes as a channel to close.
func slowNameServer(t *testing.T) <-chan chan struct{} {
	t.Helper()
	lookups := make(chan chan struct{})
	dial := func(ctx context.Context) error {
		answer := make(chan struct{})
		select {
		case lookups <- answer:
		case <-ctx.Done():
			return ctx.Err()
		}
		select {
		case <-answer:
		case <-ctx.Done():
		}
		return errors.New("no answer")
	}
	dialNameServer.Store(&dial)
	t.Cleanup(func() { dialNameServer.Store(nil) })
	return lookups
}

// An upgrade compares the config file with what runs. It refuses changes meanwhile, and must not hold up a
// stop.
func TestUpgrade_LookUpOfANameHoldsNoLock(t *testing.T) {
	r := newRig(t)
	r.configure("name = \"w2\"\naddress = \"unix:DIR/w2.sock\"", "name = \"w2\"\naddress = \"db.example:80\"",
		"[listeners.both]", "[listeners.named]\nbind = [\"127.0.0.1:80\"]\npool = \"app\"\n[listeners.both]")
	lookups := slowNameServer(t)
	ended := make(chan error, 1)
	go func() {
		ended <- second(r.Upgrade(context.Background(), api.UpgradeRequest{Binary: filepath.Join(r.dir, "none"), DryRun: true}, nil, "test"))
	}()
	duringLookUps(t, lookups, ended, func(n int) {
		if !r.changing.TryLock() {
			t.Errorf("look-up %d: the lock of changes is held", n)
		} else {
			r.changing.Unlock()
		}
	})
}

// duringLookUps calls f with the number of each look-up while that waits for its answer, until what asks has
// ended. There must be at least one.
func duringLookUps(t *testing.T, lookups <-chan chan struct{}, ended <-chan error, f func(n int)) {
	t.Helper()
	for n := 0; ; n++ {
		select {
		case answer := <-lookups:
			f(n)
			close(answer)
			continue
		case <-ended:
		}
		if n == 0 {
			t.Error("nothing was looked up; the test shows nothing")
		}
		return
	}
}

// TestReload_LookUpOfANameHoldsUpNoOtherChange makes another change during each look-up.
func TestReload_LookUpOfANameHoldsUpNoOtherChange(t *testing.T) {
	for name, do := range map[string]func(*rig) error{
		"backend of a reload": func(r *rig) error {
			r.configure("name = \"w2\"\naddress = \"unix:DIR/w2.sock\"", "name = \"w2\"\naddress = \"db.example:80\"")
			return second(r.client().Reload(context.Background(), false))
		},
		"listener of a reload": func(r *rig) error {
			r.configure("[listeners.both]", "[listeners.named]\nbind = [\"db.example:80\"]\npool = \"app\"\n[listeners.both]")
			return second(r.client().Reload(context.Background(), false))
		},
		"backend that is added": func(r *rig) error {
			return second(r.client().AddBackend(context.Background(), "app", api.NewBackend{Name: "w9", Address: "db.example:80"}))
		},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			lookups := slowNameServer(t)
			ended := make(chan error, 1)
			go func() { ended <- do(r) }()
			duringLookUps(t, lookups, ended, func(n int) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				if _, err := r.client().SetWeight(ctx, "app", "w1", n); err != nil {
					t.Errorf("weight during look-up %d: got %v; want it changed", n, err)
				}
			})
		})
	}
}
